"""Rows in and out of a shard as records. See _tier.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t, uintptr_t
from libc.string cimport memcmp, memcpy

from monolith_kv._arena cimport (
    Arena,
    arena_allocate,
    arena_embedding,
    arena_free,
    arena_header,
    arena_state,
)
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer, buffer_append_u64, buffer_extend, buffer_reserve
from monolith_kv._codec cimport record_embedding, record_state, record_time
from monolith_kv._cuckoo cimport (
    BUCKET_CELLS,
    FIND_GROUP,
    Bucket,
    Segment,
    bucket_has,
    cuckoo_erase,
    cuckoo_find_one,
    cuckoo_insert,
    cuckoo_segment,
    segment_end,
)
from monolith_kv._digest cimport RowDigest, digest_add, digest_row
from monolith_kv._lock cimport lock_alone, lock_leave, lock_shared
from monolith_kv._pages cimport PIECE_BYTES
from monolith_kv._row cimport (
    ROW_BITS,
    ROW_HEAT_MAX,
    ROW_HEAT_SHIFT,
    ROW_TIME_SHIFT,
    row_clamp_time,
    row_cold,
    row_is_cold,
    row_time,
)
from monolith_kv._rowfile cimport RowFiles, rowfile_header, rowfile_of
from monolith_kv._shard cimport (
    MKV_ADD64,
    MKV_STORE64,
    Group,
    Policy,
    Shard,
    group_fill,
    group_prefetch,
    locked_before_change,
    locked_pack,
    locked_reserve,
    locked_sum,
    shard_header,
)
from monolith_kv._types cimport (
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    fid_t,
    row_t,
    status_t,
    unix_s_t,
)


cdef struct Fresh:
    # Rows of a group that are filled before anyone can find them.
    size_t count
    size_t members[FIND_GROUP]     # which of the group
    row_t rows[FIND_GROUP]
    uint64_t* headers[FIND_GROUP]
    RowDigest digests[FIND_GROUP]


cdef void row_fill(
    const Shard* shard, uint64_t* header, float* embedding, float* state, const uint8_t* record,
    uint64_t bits
) noexcept nogil:
    """Fill a row from its record; `bits` are the flags and the heat of its header."""
    cdef const Policy* policy = shard.policy
    cdef unix_s_t time = row_clamp_time(record_time(record))
    header[0] = (<uint64_t>time << ROW_TIME_SHIFT) | bits
    memcpy(embedding, record_embedding(record), policy.dim * sizeof(float))
    memcpy(state, record_state(record, policy.dim), policy.state_floats * sizeof(float))


cdef void row_load(Shard* shard, row_t row, const uint8_t* record, uint64_t bits) noexcept nogil:
    row_fill(
        shard, arena_header(&shard.arena, row), arena_embedding(&shard.arena, row),
        arena_state(&shard.arena, row), record, bits)


cdef void locked_replace(
    Shard* shard, fid_t fid, row_t row, const uint8_t* record
) noexcept nogil:
    """Overwrite a row; locked_reserve made room."""
    cdef uint64_t bits
    locked_before_change(shard, fid, row)
    bits = arena_header(&shard.arena, row)[0] & ((<uint64_t>1 << ROW_TIME_SHIFT) - 1)
    row_load(shard, row, record, bits)
    locked_sum(shard, fid, row)


cdef status_t locked_begin(
    Shard* shard, const Group* group, const uint8_t* records, Fresh* fresh
) noexcept nogil:
    """Replace the rows that are there, make room for those that are not."""
    cdef size_t i
    cdef size_t record_bytes = shard.policy.record_bytes
    cdef status_t status = locked_reserve(shard, group.count)
    fresh.count = 0
    for i in range(group.count if status == STATUS_OK else 0):
        if group.cells[i] != NULL and not row_is_cold(group.cells[i][0]):
            locked_replace(
                shard, group.fids[i], group.cells[i][0],
                records + group.positions[i] * record_bytes)
            continue
        status = arena_allocate(&shard.arena, &fresh.rows[fresh.count])
        if status != STATUS_OK:
            break
        fresh.members[fresh.count] = i
        fresh.headers[fresh.count] = arena_header(&shard.arena, fresh.rows[fresh.count])
        fresh.count += 1
    return status


cdef void fresh_fill(
    const Shard* shard, const Group* group, const uint8_t* records, Fresh* fresh
) noexcept nogil:
    """Without the lock: to write to memory for the first time takes longer than all the rest."""
    cdef const Arena* arena = &shard.arena
    cdef size_t i, place
    cdef char* base
    cdef float* embedding
    for i in range(fresh.count):
        # The list of slabs may move meanwhile, slabs do not.
        base = <char*>(<uintptr_t>fresh.headers[i] & ~<uintptr_t>(PIECE_BYTES - 1))
        place = (<char*>fresh.headers[i] - base) // sizeof(uint64_t)
        embedding = <float*>(base + arena.embeddings_at) + place * arena.embedding_floats
        row_fill(
            shard, fresh.headers[i], embedding,
            <float*>(base + arena.states_at) + place * arena.state_floats,
            records + group.positions[fresh.members[i]] * shard.policy.record_bytes,
            (<uint64_t>1 << ROW_HEAT_SHIFT) | shard.snapshot_flag)
        fresh.digests[i] = digest_row(
            group.fids[fresh.members[i]], embedding, shard.policy.dim)


cdef status_t locked_finish(
    Shard* shard, const Group* group, const uint8_t* records, const Fresh* fresh
) noexcept nogil:
    """Let the rows be found; one that has come meanwhile, or twice, is replaced."""
    cdef size_t i
    cdef fid_t fid
    cdef row_t* cell
    cdef status_t status = STATUS_OK
    for i in range(fresh.count):
        fid = group.fids[fresh.members[i]]
        cell = cuckoo_find_one(&shard.index, fid, group.hashes[fresh.members[i]])
        if status == STATUS_OK and cell != NULL and not row_is_cold(cell[0]):
            status = locked_reserve(shard, 1)
            if status == STATUS_OK:
                locked_replace(
                    shard, fid, cell[0],
                    records + group.positions[fresh.members[i]] * shard.policy.record_bytes)
        elif status == STATUS_OK:
            if cell != NULL:  # A damaged snapshot has an id in both tiers: its digest will tell.
                locked_leave_file(shard, cell[0])
                MKV_STORE64(&shard.cold_rows, shard.cold_rows - 1)
                cell[0] = fresh.rows[i]
            else:
                status = cuckoo_insert(
                    &shard.index, fid, group.hashes[fresh.members[i]], fresh.rows[i])
            if status == STATUS_OK:
                digest_add(&shard.digest, fresh.digests[i])
                continue
        arena_free(&shard.arena, fresh.rows[i])
    return status


cdef status_t shard_apply(
    Shard* shard, const Batch* batch, size_t number, const uint8_t* records
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef Group group
    cdef Fresh fresh
    cdef status_t status = STATUS_OK
    while start < end and status == STATUS_OK:
        lock_alone(&shard.lock)
        group_fill(shard, batch, start, end, &group)
        group_prefetch(shard, &group, True, True, True)
        status = locked_begin(shard, &group, records, &fresh)
        if fresh.count:
            lock_leave(&shard.lock)
            fresh_fill(shard, &group, records, &fresh)
            lock_alone(&shard.lock)
            status |= locked_finish(shard, &group, records, &fresh)
        lock_leave(&shard.lock)
        start += group.count
    return status


cdef status_t shard_apply_removals(
    Shard* shard, const Batch* batch, size_t number
) noexcept nogil:
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    cdef status_t status
    lock_alone(&shard.lock)
    status = locked_reserve(shard, batch.starts[number + 1] - batch.starts[number])
    for i in range(batch.starts[number], batch.starts[number + 1]):
        position = batch.order[i]
        cell = cuckoo_find_one(&shard.index, batch.fids[position], batch.hashes[position])
        if status != STATUS_OK or cell == NULL or row_is_cold(cell[0]):
            continue
        locked_before_change(shard, batch.fids[position], cell[0])
        arena_free(&shard.arena, cell[0])
        cuckoo_erase(&shard.index, batch.fids[position], batch.hashes[position])
        shard.counters.removed += 1
    lock_leave(&shard.lock)
    return status


cdef status_t shard_reserve(Shard* shard, const Batch* batch, size_t number) noexcept nogil:
    cdef status_t status
    lock_alone(&shard.lock)
    status = locked_reserve(shard, batch.starts[number + 1] - batch.starts[number])
    lock_leave(&shard.lock)
    return status


cdef void shard_put_back(
    Shard* shard, fid_t fid, uint64_t hashed, const uint8_t* record
) noexcept nogil:
    cdef row_t* cell
    lock_alone(&shard.lock)
    cell = cuckoo_find_one(&shard.index, fid, hashed)
    if cell != NULL and not row_is_cold(cell[0]):
        if record != NULL:
            locked_replace(shard, fid, cell[0], record)
        else:
            locked_before_change(shard, fid, cell[0])
            arena_free(&shard.arena, cell[0])
            cuckoo_erase(&shard.index, fid, hashed)
    lock_leave(&shard.lock)


# --- overflow --------------------------------------------------------------------------------

cdef status_t shard_pack(
    Shard* shard, const Batch* batch, size_t number, Buffer* records, Buffer* cold
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t record_bytes = shard.policy.record_bytes
    cdef size_t i
    cdef Group group
    cdef status_t status
    status = buffer_reserve(records, (end - start) * record_bytes)
    status |= buffer_reserve(cold, (end - start) * sizeof(fid_t))
    if status != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    lock_alone(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, end, &group)
        group_prefetch(shard, &group, True, True, True)
        for i in range(group.count):
            if group.cells[i] == NULL:
                continue
            if row_is_cold(group.cells[i][0]):
                buffer_append_u64(cold, group.fids[i])
            else:
                locked_pack(
                    shard, group.fids[i], group.cells[i][0], buffer_extend(records, record_bytes))
        start += group.count
    lock_leave(&shard.lock)
    return STATUS_OK


cdef status_t shard_promote(
    Shard* shard, const Batch* batch, size_t number, const uint8_t* records, const row_t* rows
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    cdef row_t row
    cdef uint64_t bits
    cdef Group group
    cdef status_t status = STATUS_OK
    lock_alone(&shard.lock)
    while start < end and status == STATUS_OK:
        group_fill(shard, batch, start, end, &group)
        for i in range(group.count):
            cell, position = group.cells[i], group.positions[i]
            if cell == NULL or not row_is_cold(cell[0]):
                continue
            if rows != NULL and cell[0] != rows[position]:
                continue
            status = arena_allocate(&shard.arena, &row)
            if status != STATUS_OK:
                break
            bits = shard_header(shard, cell[0])[0] & ROW_BITS
            row_load(
                shard, row, records + <size_t>position * shard.policy.record_bytes,
                bits | <uint64_t>1 << ROW_HEAT_SHIFT)
            locked_leave_file(shard, cell[0])
            cell[0] = row
            MKV_STORE64(&shard.cold_rows, shard.cold_rows - 1)
            shard.counters.promoted += 1
        start += group.count
    lock_leave(&shard.lock)
    return status


cdef inline void locked_enter_file(
    Shard* shard, row_t* cell, uint32_t number, uint64_t header
) noexcept nogil:
    """Let a cell name a place of a row file."""
    cdef RowFiles* files = shard.policy.row_files
    cell[0] = row_cold(number)
    rowfile_header(files, cell[0])[0] = header
    MKV_ADD64(&rowfile_of(files, cell[0]).live, 1)


cdef inline void locked_leave_file(Shard* shard, row_t row) noexcept nogil:
    MKV_ADD64(&rowfile_of(shard.policy.row_files, row).live, <uint64_t>-1)


cdef bint locked_is(const Shard* shard, row_t row, const uint8_t* record) noexcept nogil:
    """Is a row in memory what its record says?"""
    cdef size_t dim = shard.policy.dim
    return (
        row_time(arena_header(&shard.arena, row)[0]) == record_time(record)
        and memcmp(
            arena_embedding(&shard.arena, row), record_embedding(record),
            dim * sizeof(float)) == 0
        and memcmp(
            arena_state(&shard.arena, row), record_state(record, dim),
            shard.policy.state_floats * sizeof(float)) == 0)


cdef void shard_evict(
    Shard* shard, const Batch* batch, size_t number, const uint8_t* records,
    const uint32_t* places
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    cdef row_t row
    cdef Group group
    cdef uint64_t evicted = 0
    lock_alone(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, end, &group)
        group_prefetch(shard, &group, True, True, True)
        for i in range(group.count):
            cell, position = group.cells[i], group.positions[i]
            if cell == NULL or row_is_cold(cell[0]):
                continue
            row = cell[0]
            if not locked_is(shard, row, records + <size_t>position * shard.policy.record_bytes):
                continue
            locked_sum(shard, group.fids[i], row)
            locked_enter_file(
                shard, cell, places[position],
                arena_header(&shard.arena, row)[0] & ~(<uint64_t>ROW_HEAT_MAX << ROW_HEAT_SHIFT))
            arena_free(&shard.arena, row)
            evicted += 1
        start += group.count
    MKV_STORE64(&shard.cold_rows, shard.cold_rows + evicted)
    shard.counters.evicted += evicted
    lock_leave(&shard.lock)


cdef void shard_relocate(
    Shard* shard, const Batch* batch, size_t number, const row_t* rows, const uint32_t* places
) noexcept nogil:
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    lock_alone(&shard.lock)
    for i in range(batch.starts[number], batch.starts[number + 1]):
        position = batch.order[i]
        cell = cuckoo_find_one(&shard.index, batch.fids[position], batch.hashes[position])
        if cell != NULL and row_is_cold(cell[0]) and cell[0] == rows[position]:
            locked_enter_file(
                shard, cell, places[position], shard_header(shard, rows[position])[0])
            locked_leave_file(shard, rows[position])
    lock_leave(&shard.lock)


cdef status_t shard_enter_cold(
    Shard* shard, const Batch* batch, size_t number, const int64_t* times, uint32_t first
) noexcept nogil:
    cdef RowFiles* files = shard.policy.row_files
    cdef size_t i
    cdef uint32_t position
    cdef row_t row
    cdef uint64_t entered = 0
    cdef status_t status = STATUS_OK
    lock_alone(&shard.lock)
    for i in range(batch.starts[number], batch.starts[number + 1]):
        position = batch.order[i]
        if cuckoo_find_one(&shard.index, batch.fids[position], batch.hashes[position]) != NULL:
            continue
        row = row_cold(first + position)
        status = cuckoo_insert(
            &shard.index, batch.fids[position], batch.hashes[position], row)
        if status != STATUS_OK:
            break
        rowfile_header(files, row)[0] = (
            <uint64_t>row_clamp_time(times[position]) << ROW_TIME_SHIFT | shard.snapshot_flag)
        entered += 1
    MKV_ADD64(&rowfile_of(files, row_cold(first)).live, entered)
    MKV_STORE64(&shard.cold_rows, shard.cold_rows + entered)
    lock_leave(&shard.lock)
    return status


cdef void shard_cold_rows(
    Shard* shard, const Batch* batch, size_t number, row_t* rows
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef row_t* cell
    cdef Group group
    lock_shared(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, end, &group)
        for i in range(group.count):
            cell = group.cells[i]
            rows[group.positions[i]] = cell[0] if cell != NULL and row_is_cold(cell[0]) else 0
        start += group.count
    lock_leave(&shard.lock)


# --- walks -----------------------------------------------------------------------------------

cdef status_t shard_walk(
    Shard* shard, uint64_t position, Buffer* fids, uint64_t* next_position
) noexcept nogil:
    cdef uint32_t i, cell
    cdef Segment* segment
    cdef Bucket* bucket
    cdef status_t status
    lock_alone(&shard.lock)
    segment = cuckoo_segment(&shard.index, position)
    status = buffer_reserve(fids, segment.used * sizeof(fid_t))
    if status == STATUS_OK:
        for i in range(segment.buckets_count):
            bucket = &segment.buckets[i]
            for cell in range(BUCKET_CELLS):
                if bucket_has(bucket, cell):
                    buffer_append_u64(fids, bucket.fids[cell])
        next_position[0] = segment_end(segment, position)
    lock_leave(&shard.lock)
    return status
