"""Read a shard as it was at one instant. See _view.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy

from monolith_kv._arena cimport arena_embedding, arena_header, arena_state
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport (
    Buffer,
    buffer_append_u64,
    buffer_extend,
    buffer_free,
    buffer_init,
    buffer_reserve,
)
from monolith_kv._cuckoo cimport (
    BUCKET_CELLS,
    Bucket,
    Segment,
    bucket_has,
    cuckoo_find_one,
    cuckoo_segment,
    segment_end,
)
from monolith_kv._hashing cimport hash_fid
from monolith_kv._lock cimport lock_alone, lock_leave, lock_pass_any, lock_shared
from monolith_kv._row cimport ROW_SNAPSHOT, row_is_cold
from monolith_kv._shard cimport (
    MKV_PREFETCH,
    Group,
    Shard,
    floats_prefetch,
    group_fill,
    group_prefetch,
    locked_pack,
    locked_reserve,
    locked_sum,
    seal_flag,
    shard_header,
)
from monolith_kv._sketch cimport (
    SKETCH_HEADER_BYTES,
    SketchView,
    sketch_freeze,
    sketch_frozen_read,
    sketch_thaw,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, row_t, status_t

cdef enum:
    SLICE_BYTES = 65536    # copied or packed before callers that wait are let in: some 15 us
    SLICE_BUCKETS = 64     # and so many looked at


cdef inline size_t slice_bytes(size_t record_bytes) noexcept nogil:
    """Of whole records, one at least."""
    return (
        SLICE_BYTES // record_bytes * record_bytes if record_bytes <= SLICE_BYTES
        else record_bytes)


# --- a seal ----------------------------------------------------------------------------------

cdef void shard_seal_flip(Shard* shard) noexcept nogil:
    """From here on rows are touched with the other bit, into a new list."""
    lock_alone(&shard.lock)
    if shard.is_sealing:
        # Whoever was to give the last seal up was interrupted: by Ctrl-C, between two tables.
        locked_seal_abort(shard)
    shard.touched_flag ^= 3
    buffer_free(&shard.seal_fids)
    shard.seal_fids = shard.touched
    buffer_init(&shard.touched)
    shard.seal_digest = shard.digest
    shard.is_sealing = True
    lock_leave(&shard.lock)


cdef status_t shard_seal_read(
    Shard* shard, const Batch* batch, size_t number, Buffer* records, Buffer* absent, Buffer* cold
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t record_bytes = shard.policy.record_bytes
    cdef size_t step = slice_bytes(record_bytes) // record_bytes
    cdef size_t i
    cdef row_t* cell
    cdef Group group
    cdef status_t status
    status = buffer_reserve(absent, (end - start) * sizeof(fid_t))
    status |= buffer_reserve(cold, (end - start) * sizeof(fid_t))
    if status != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    lock_alone(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, start + step if end - start > step else end, &group)
        group_prefetch(shard, &group, True, True, True)
        for i in range(group.count):
            cell = group.cells[i]
            if cell == NULL or not shard_header(shard, cell[0])[0] & seal_flag(shard):
                buffer_append_u64(absent, group.fids[i])
            elif row_is_cold(cell[0]):
                buffer_append_u64(cold, group.fids[i])
            else:
                locked_sum(shard, group.fids[i], cell[0])
                shard_header(shard, cell[0])[0] &= ~seal_flag(shard)
                locked_pack(
                    shard, group.fids[i], cell[0], buffer_extend(records, record_bytes))
        start += group.count
        if start < end:
            lock_pass_any(&shard.lock)    # Each row is taken, or found saved, by itself.
    lock_leave(&shard.lock)
    return STATUS_OK


cdef void shard_seal_claim(
    Shard* shard, const Batch* batch, size_t number, uint8_t* is_wanted
) noexcept nogil:
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    lock_alone(&shard.lock)
    for i in range(batch.starts[number], batch.starts[number + 1]):
        position = batch.order[i]
        cell = cuckoo_find_one(&shard.index, batch.fids[position], batch.hashes[position])
        # A row that came back and changed was saved then, and has lost the flag.
        is_wanted[position] = (
            cell != NULL and (shard_header(shard, cell[0])[0] & seal_flag(shard)) != 0)
        if is_wanted[position]:
            shard_header(shard, cell[0])[0] &= ~seal_flag(shard)
    lock_leave(&shard.lock)


cdef size_t shard_saved(Shard* shard, bint is_seal, uint8_t* out, size_t room) noexcept nogil:
    """The last ones first, a slice at a time: callers wait for the lock.

    The list's memory stays with the shard: calls under way have their room in it reserved.
    """
    cdef Buffer* saved = &shard.seal_saved if is_seal else &shard.snapshot_saved
    cdef size_t record_bytes = shard.policy.record_bytes
    cdef size_t most = slice_bytes(record_bytes)
    cdef size_t taken = 0
    cdef size_t size_bytes
    while room - taken >= record_bytes:
        size_bytes = (room - taken) // record_bytes * record_bytes
        if size_bytes > most:
            size_bytes = most
        lock_alone(&shard.lock)
        if size_bytes > saved.count:
            size_bytes = saved.count
        saved.count -= size_bytes
        if size_bytes:
            memcpy(out + taken, saved.data + saved.count, size_bytes)
        lock_leave(&shard.lock)
        taken += size_bytes
        if size_bytes == 0:
            break
    return taken


cdef void shard_seal_end(Shard* shard, size_t kept_bytes) noexcept nogil:
    lock_alone(&shard.lock)
    if shard.seal_saved.capacity <= kept_bytes:
        shard.seal_saved.count = 0
    else:
        buffer_free(&shard.seal_saved)
    buffer_free(&shard.seal_fids)
    shard.is_sealing = False
    lock_leave(&shard.lock)


cdef void shard_seal_abort(Shard* shard) noexcept nogil:
    lock_alone(&shard.lock)
    locked_seal_abort(shard)
    lock_leave(&shard.lock)


cdef void locked_seal_abort(Shard* shard) noexcept nogil:
    cdef const fid_t* fids = <const fid_t*>shard.seal_fids.data
    cdef size_t count = shard.seal_fids.count // sizeof(fid_t)
    cdef size_t i
    cdef row_t* cell
    # Nothing was changed since, and nothing promised: or else locked_reserve has made room. Ids
    # twice in the list do no harm.
    if shard.touched.count + shard.seal_fids.count > shard.touched.capacity:
        buffer_free(&shard.touched)
        shard.touched = shard.seal_fids
        buffer_init(&shard.seal_fids)
    elif count:
        memcpy(
            buffer_extend(&shard.touched, shard.seal_fids.count), fids, shard.seal_fids.count)
    for i in range(count):
        cell = cuckoo_find_one(&shard.index, fids[i], hash_fid(fids[i]))
        if cell == NULL:
            continue
        shard_header(shard, cell[0])[0] &= ~seal_flag(shard)
        shard_header(shard, cell[0])[0] |= shard.touched_flag
    buffer_free(&shard.seal_saved)
    buffer_free(&shard.seal_fids)
    shard.is_sealing = False


cdef status_t shard_touch(Shard* shard, const Batch* batch, size_t number) noexcept nogil:
    cdef size_t count = batch.starts[number + 1] - batch.starts[number]
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    cdef status_t status
    lock_alone(&shard.lock)
    status = locked_reserve(shard, count)  # What was promised to others stays theirs.
    for i in range(batch.starts[number], batch.starts[number + 1]):
        if status != STATUS_OK:
            break
        position = batch.order[i]
        cell = cuckoo_find_one(&shard.index, batch.fids[position], batch.hashes[position])
        if cell != NULL and shard_header(shard, cell[0])[0] & shard.touched_flag:
            continue
        buffer_append_u64(&shard.touched, batch.fids[position])
        if cell != NULL:
            shard_header(shard, cell[0])[0] |= shard.touched_flag
    lock_leave(&shard.lock)
    return status


# --- a snapshot ------------------------------------------------------------------------------

cdef status_t shard_snapshot_flip(Shard* shard) noexcept nogil:
    """From here on every row that there is bears the wrong flag: it is still to be read."""
    cdef status_t status = STATUS_OK
    lock_alone(&shard.lock)
    if shard.policy.is_gated:
        status = sketch_freeze(&shard.sketch)
    if status == STATUS_OK:
        shard.snapshot_flag ^= ROW_SNAPSHOT
        shard.snapshot_left = shard.index.rows
        shard.snapshot_digest = shard.digest
        shard.snapshot_touched = shard.touched.count
        shard.snapshot_bucket = 0
    lock_leave(&shard.lock)
    return status


cdef status_t shard_snapshot_touched(Shard* shard, Buffer* fids) noexcept nogil:
    """A slice at a time, since callers wait for the lock: what was touched first stays in place."""
    cdef size_t done = 0
    cdef size_t size_bytes
    if buffer_reserve(fids, shard.snapshot_touched) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    while done < shard.snapshot_touched:
        size_bytes = shard.snapshot_touched - done
        if size_bytes > SLICE_BYTES:
            size_bytes = SLICE_BYTES
        lock_shared(&shard.lock)
        if done + size_bytes > shard.touched.count:
            shard.snapshot_touched = done    # A seal has taken the list after all.
        else:
            memcpy(buffer_extend(fids, size_bytes), shard.touched.data + done, size_bytes)
        lock_leave(&shard.lock)
        done += size_bytes
    return STATUS_OK


cdef void shard_snapshot_gate(Shard* shard, uint8_t* out) noexcept nogil:
    cdef const SketchView* view = &shard.sketch.view
    cdef size_t start, size_bytes
    cdef uint32_t age
    memcpy(out, view.header, SKETCH_HEADER_BYTES)
    out += SKETCH_HEADER_BYTES
    for age in range(2):
        start = 0
        while start < view.used_bytes:
            size_bytes = view.used_bytes - start
            if size_bytes > SLICE_BYTES:
                size_bytes = SLICE_BYTES
            lock_alone(&shard.lock)
            sketch_frozen_read(&shard.sketch, age, start, size_bytes, out)
            lock_leave(&shard.lock)
            start += size_bytes
            out += size_bytes
    lock_alone(&shard.lock)
    sketch_thaw(&shard.sketch)
    lock_leave(&shard.lock)


cdef inline void cell_pass_snapshot(Shard* shard, row_t* cell) noexcept nogil:
    shard.snapshot_left -= 1
    shard_header(shard, cell[0])[0] ^= ROW_SNAPSHOT


cdef inline void headers_prefetch(const Shard* shard, const Bucket* bucket) noexcept nogil:
    """Ask for what tells of the rows of a bucket which of them are still to be read."""
    cdef uint32_t cell
    for cell in range(BUCKET_CELLS):
        if bucket_has(bucket, cell) and not row_is_cold(bucket.rows[cell]):
            MKV_PREFETCH(arena_header(&shard.arena, bucket.rows[cell]))


cdef inline void rows_prefetch(const Shard* shard, const Bucket* bucket) noexcept nogil:
    """Ask for the rows of a bucket that will soon be packed."""
    cdef uint32_t cell
    cdef row_t row
    for cell in range(BUCKET_CELLS):
        row = bucket.rows[cell]
        if (not bucket_has(bucket, cell) or row_is_cold(row)
                or (arena_header(&shard.arena, row)[0] & ROW_SNAPSHOT) == shard.snapshot_flag):
            continue
        floats_prefetch(arena_embedding(&shard.arena, row), shard.policy.dim)
        floats_prefetch(arena_state(&shard.arena, row), shard.policy.state_floats)


cdef status_t shard_snapshot_read(
    Shard* shard, uint64_t position, Buffer* records, Buffer* cold, uint64_t* next_position,
    bint* is_whole
) noexcept nogil:
    cdef Segment* segment
    cdef uint32_t bucket = 0
    cdef uint32_t moves
    cdef status_t status
    lock_alone(&shard.lock)
    segment = cuckoo_segment(&shard.index, position)
    if shard.snapshot_position == position and shard.snapshot_moves == segment.moves:
        bucket = shard.snapshot_bucket
    status = buffer_reserve(cold, segment.used * sizeof(fid_t))
    while status == STATUS_OK and bucket < segment.buckets_count:
        moves = segment.moves
        bucket = locked_snapshot_some(shard, segment, bucket, records, cold)
        if records.capacity - records.count < shard.policy.record_bytes:
            break
        if bucket < segment.buckets_count and lock_pass_any(&shard.lock) and segment.moves != moves:
            # From the front, for those that have moved there; what was read is passed over.
            bucket = 0
            cold.count = 0
            status = buffer_reserve(cold, segment.used * sizeof(fid_t))
    next_position[0] = segment_end(segment, position)
    is_whole[0] = bucket >= segment.buckets_count
    shard.snapshot_position = position
    shard.snapshot_moves = segment.moves
    shard.snapshot_bucket = 0 if is_whole[0] else bucket
    lock_leave(&shard.lock)
    return status


cdef uint32_t locked_snapshot_some(
    Shard* shard, const Segment* segment, uint32_t first, Buffer* records, Buffer* cold
) noexcept nogil:
    """Read the next buckets, a slice of them or until there is no room; where it ended.

    The bucket that it ends with is to be looked at again, if room was what lacked.
    """
    cdef size_t record_bytes = shard.policy.record_bytes
    cdef size_t begun = records.count
    cdef size_t most = slice_bytes(record_bytes)
    cdef uint32_t i, cell
    cdef Bucket* bucket
    cdef row_t* row
    for i in range(first, segment.buckets_count):
        bucket = &segment.buckets[i]
        if i + 2 < segment.buckets_count:
            headers_prefetch(shard, &segment.buckets[i + 2])
        if i + 1 < segment.buckets_count:
            rows_prefetch(shard, &segment.buckets[i + 1])
        for cell in range(BUCKET_CELLS):
            row = &bucket.rows[cell]
            if (not bucket_has(bucket, cell)
                    or (shard_header(shard, row[0])[0] & ROW_SNAPSHOT) == shard.snapshot_flag):
                continue
            if row_is_cold(row[0]):
                buffer_append_u64(cold, bucket.fids[cell])
                continue
            if records.capacity - records.count < record_bytes:
                return i
            locked_sum(shard, bucket.fids[cell], row[0])
            cell_pass_snapshot(shard, row)
            locked_pack(shard, bucket.fids[cell], row[0], buffer_extend(records, record_bytes))
        if records.count - begun >= most or i - first >= SLICE_BUCKETS:
            return i + 1
    return segment.buckets_count


cdef void shard_snapshot_claim(
    Shard* shard, const Batch* batch, size_t number, uint8_t* is_wanted
) noexcept nogil:
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    lock_alone(&shard.lock)
    for i in range(batch.starts[number], batch.starts[number + 1]):
        position = batch.order[i]
        cell = cuckoo_find_one(&shard.index, batch.fids[position], batch.hashes[position])
        is_wanted[position] = (
            cell != NULL
            and (shard_header(shard, cell[0])[0] & ROW_SNAPSHOT) != shard.snapshot_flag)
        if is_wanted[position]:
            cell_pass_snapshot(shard, cell)
    lock_leave(&shard.lock)


cdef void shard_snapshot_end(Shard* shard, Buffer* saved) noexcept nogil:
    """End the view. Rows that were never read (the snapshot was given up) are passed over."""
    cdef uint32_t i, cell
    cdef row_t* row
    cdef size_t entry = 0
    cdef Segment* segment
    cdef Bucket* bucket
    lock_alone(&shard.lock)
    while shard.snapshot_left and entry < (<size_t>1 << shard.index.depth):
        segment = shard.index.directory[entry]
        entry += <size_t>1 << (shard.index.depth - segment.depth)
        for i in range(segment.buckets_count):
            bucket = &segment.buckets[i]
            for cell in range(BUCKET_CELLS):
                row = &bucket.rows[cell]
                if (bucket_has(bucket, cell)
                        and (shard_header(shard, row[0])[0] & ROW_SNAPSHOT) != shard.snapshot_flag):
                    cell_pass_snapshot(shard, row)
    saved[0] = shard.snapshot_saved
    buffer_init(&shard.snapshot_saved)
    sketch_thaw(&shard.sketch)
    lock_leave(&shard.lock)
