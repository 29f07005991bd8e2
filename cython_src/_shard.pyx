"""One shard of a table. See _shard.pxd."""

from libc.stdint cimport uint8_t, uint64_t
from libc.string cimport memcpy, memset

from monolith_kv._arena cimport (
    arena_allocate,
    arena_create,
    arena_destroy,
    arena_embedding,
    arena_free,
    arena_header,
    arena_state,
)
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport (
    Buffer,
    buffer_append_u64,
    buffer_extend,
    buffer_free,
    buffer_reserve,
)
from monolith_kv._codec cimport record_pack
from monolith_kv._cuckoo cimport (
    FIND_GROUP,
    cuckoo_create,
    cuckoo_destroy,
    cuckoo_erase,
    cuckoo_find,
    cuckoo_insert,
)
from monolith_kv._digest cimport RowDigest, digest_add, digest_row, digest_subtract
from monolith_kv._hashing cimport SHARDS, hash_fid
from monolith_kv._initializers cimport initializer_fill
from monolith_kv._lock cimport lock_alone, lock_create, lock_destroy, lock_leave
from monolith_kv._optimizers cimport optimizer_initial_state
from monolith_kv._pages cimport Pages
from monolith_kv._row cimport (
    ROW_HEAT_SHIFT,
    ROW_SNAPSHOT,
    ROW_TIME_SHIFT,
    ROW_TOUCHED_EVEN,
    ROW_UNSUMMED,
    row_is_cold,
    row_time,
)
from monolith_kv._sketch cimport sketch_destroy
from monolith_kv._types cimport (
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    fid_t,
    row_t,
    status_t,
    unix_s_t,
)

cdef status_t shard_create(
    Shard* shard, const Policy* policy, Pages* pages, uint64_t seed
) noexcept nogil:
    memset(shard, 0, sizeof(Shard))
    shard.policy = policy
    shard.touched_flag = ROW_TOUCHED_EVEN
    if lock_create(&shard.lock) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    if cuckoo_create(&shard.index, pages, seed) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    return arena_create(&shard.arena, pages, policy.dim, policy.state_floats)


cdef void shard_destroy(Shard* shard) noexcept nogil:
    cuckoo_destroy(&shard.index)
    arena_destroy(&shard.arena)
    sketch_destroy(&shard.sketch)
    buffer_free(&shard.sightings)
    buffer_free(&shard.touched)
    buffer_free(&shard.seal_fids)
    buffer_free(&shard.seal_saved)
    buffer_free(&shard.snapshot_saved)
    lock_destroy(&shard.lock)


# --- one row, with the lock held -------------------------------------------------------------

cdef status_t locked_reserve(Shard* shard, size_t rows) noexcept nogil:
    """Make room for what changing `rows` rows appends, so that no change stops half-way."""
    rows += shard.promised
    # The list of a seal under way has its room in the next one: giving up must not fail.
    if buffer_reserve(
            &shard.touched, rows * sizeof(fid_t) + shard.seal_fids.count) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    if shard.is_sealing and buffer_reserve(
            &shard.seal_saved, rows * shard.policy.record_bytes) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    if shard.snapshot_left and buffer_reserve(
            &shard.snapshot_saved, rows * shard.policy.record_bytes) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    return STATUS_OK


cdef status_t shards_promise(Shard* shards, const Batch* batch) noexcept nogil:
    """Those that are free first, as whoever comes to change rows afterwards."""
    cdef uint32_t left = ALL_SHARDS
    cdef size_t number
    cdef bint is_patient
    cdef status_t status = STATUS_OK
    for is_patient in range(2):
        for number in range(SHARDS):
            if left >> number & 1 and shard_enter_alone(&shards[number], is_patient):
                status = locked_reserve(&shards[number], batch_rows(batch, number))
                if status == STATUS_OK:
                    shards[number].promised += batch_rows(batch, number)
                    left ^= <uint32_t>1 << number
                lock_leave(&shards[number].lock)
                if status != STATUS_OK:
                    promises_end(shards, batch, ALL_SHARDS ^ left)
                    return status
    return STATUS_OK


cdef void promises_end(Shard* shards, const Batch* batch, uint32_t chosen) noexcept nogil:
    cdef size_t number
    for number in range(SHARDS):
        if chosen >> number & 1:
            lock_alone(&shards[number].lock)
            locked_promise_end(&shards[number], batch, number)
            lock_leave(&shards[number].lock)


cdef void locked_promise_end(Shard* shard, const Batch* batch, size_t number) noexcept nogil:
    shard.promised -= batch_rows(batch, number)


cdef inline size_t batch_rows(const Batch* batch, size_t number) noexcept nogil:
    return batch.starts[number + 1] - batch.starts[number]


cdef void locked_pack(const Shard* shard, fid_t fid, row_t row, uint8_t* out) noexcept nogil:
    record_pack(
        out, fid, row_time(arena_header(&shard.arena, row)[0]),
        arena_embedding(&shard.arena, row), shard.policy.dim,
        arena_state(&shard.arena, row), shard.policy.state_floats)


cdef inline bint seal_wants(const Shard* shard, uint64_t header) noexcept nogil:
    return shard.is_sealing and (header & seal_flag(shard)) != 0


cdef inline bint snapshot_wants(const Shard* shard, uint64_t header) noexcept nogil:
    return (header & ROW_SNAPSHOT) != shard.snapshot_flag


cdef void locked_sum_views(Shard* shard, uint64_t header, RowDigest digest) noexcept nogil:
    """Put the digest of a row that was not in the sum into that of each view that wants it."""
    if seal_wants(shard, header):
        digest_add(&shard.seal_digest, digest)
    if snapshot_wants(shard, header):
        digest_add(&shard.snapshot_digest, digest)


cdef void locked_save(Shard* shard, fid_t fid, row_t row) noexcept nogil:
    """Pack a row for the views that still want it as it is; locked_reserve made room."""
    cdef uint64_t* header = arena_header(&shard.arena, row)
    cdef bint is_sealed = seal_wants(shard, header[0])
    cdef bint is_shot = snapshot_wants(shard, header[0])
    if (is_sealed or is_shot) and header[0] & ROW_UNSUMMED:
        locked_sum_views(
            shard, header[0],
            digest_row(fid, arena_embedding(&shard.arena, row), shard.policy.dim))
    if is_sealed:
        header[0] &= ~seal_flag(shard)
        locked_pack(
            shard, fid, row, buffer_extend(&shard.seal_saved, shard.policy.record_bytes))
    if is_shot:
        header[0] ^= ROW_SNAPSHOT
        shard.snapshot_left -= 1
        locked_pack(
            shard, fid, row, buffer_extend(&shard.snapshot_saved, shard.policy.record_bytes))


cdef void locked_before_change(Shard* shard, fid_t fid, row_t row) noexcept nogil:
    """Keep a row for the views and take its digest out; locked_sum or locked_touch comes after."""
    cdef uint64_t* header = arena_header(&shard.arena, row)
    locked_save(shard, fid, row)
    if not header[0] & ROW_UNSUMMED:
        header[0] |= ROW_UNSUMMED
        digest_subtract(
            &shard.digest, digest_row(fid, arena_embedding(&shard.arena, row), shard.policy.dim))


cdef void locked_sum(Shard* shard, fid_t fid, row_t row) noexcept nogil:
    """Put a row's digest into the sum, unless it is there."""
    cdef uint64_t* header = arena_header(&shard.arena, row)
    cdef RowDigest digest
    if header[0] & ROW_UNSUMMED:
        header[0] &= ~<uint64_t>ROW_UNSUMMED
        digest = digest_row(fid, arena_embedding(&shard.arena, row), shard.policy.dim)
        digest_add(&shard.digest, digest)
        locked_sum_views(shard, header[0], digest)


cdef void locked_sum_all(Shard* shard) noexcept nogil:
    """After this the sum is of all rows. It costs what changed since the last time."""
    locked_sum_listed(shard, &shard.seal_fids)
    locked_sum_listed(shard, &shard.touched)


cdef void locked_sum_listed(Shard* shard, const Buffer* listed) noexcept nogil:
    cdef const fid_t* fids = <const fid_t*>listed.data
    cdef size_t left = listed.count // sizeof(fid_t)
    cdef size_t i
    cdef Group group
    while left:
        group.count = left if left < FIND_GROUP else FIND_GROUP
        for i in range(group.count):
            group.fids[i] = fids[i]
            group.hashes[i] = hash_fid(fids[i])
        cuckoo_find(&shard.index, 0, group.fids, group.hashes, group.count, group.cells)
        group_prefetch(shard, &group, True, False, True)
        for i in range(group.count):
            if group.cells[i] != NULL and not row_is_cold(group.cells[i][0]):
                locked_sum(shard, group.fids[i], group.cells[i][0])
        fids += group.count
        left -= group.count


cdef void locked_remove(Shard* shard, fid_t fid, uint64_t hashed, row_t row) noexcept nogil:
    """Remove a row that is in memory; locked_reserve made room."""
    locked_before_change(shard, fid, row)
    if not arena_header(&shard.arena, row)[0] & shard.touched_flag:
        buffer_append_u64(&shard.touched, fid)
    arena_free(&shard.arena, row)
    cuckoo_erase(&shard.index, fid, hashed)


cdef status_t locked_new_row(
    Shard* shard, fid_t fid, uint64_t hashed, const float* embedding, unix_s_t now
) noexcept nogil:
    """Make a row with the embedding given, or else with its initial value, and fresh state."""
    cdef const Policy* policy = shard.policy
    cdef const SlicePolicy* slice
    cdef row_t row
    cdef size_t i
    if arena_allocate(&shard.arena, &row) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    cdef uint64_t* header = arena_header(&shard.arena, row)
    cdef float* values = arena_embedding(&shard.arena, row)
    cdef float* state = arena_state(&shard.arena, row)
    if embedding != NULL:
        memcpy(values, embedding, policy.dim * sizeof(float))
    for i in range(policy.slices_count):
        slice = &policy.slices[i]
        if embedding == NULL:
            initializer_fill(
                &slice.initializer, fid, values + slice.span.embedding_offset, slice.span.dim)
        optimizer_initial_state(&slice.optimizer, state + slice.span.state_offset, slice.span.dim)
    header[0] = (
        (<uint64_t>now << ROW_TIME_SHIFT) | (<uint64_t>1 << ROW_HEAT_SHIFT) | shard.snapshot_flag
        | ROW_UNSUMMED)
    if cuckoo_insert(&shard.index, fid, hashed, row) != STATUS_OK:
        arena_free(&shard.arena, row)
        return STATUS_OUT_OF_MEMORY
    locked_touch(shard, fid, header)
    shard.counters.inserted += 1
    return STATUS_OK


# --- groups ----------------------------------------------------------------------------------

cdef void group_fill(
    const Shard* shard, const Batch* batch, size_t start, size_t end, Group* group
) noexcept nogil:
    """Find the next ids of a batch, FIND_GROUP at most, from order[start] on."""
    cdef size_t i
    group.count = end - start if end - start < FIND_GROUP else FIND_GROUP
    group.positions = batch.order + start
    for i in range(group.count):
        group.fids[i] = batch.fids[group.positions[i]]
        group.hashes[i] = batch.hashes[group.positions[i]]
    cuckoo_find(&shard.index, 0, group.fids, group.hashes, group.count, group.cells)


cdef void group_prefetch(
    const Shard* shard, const Group* group, bint embedding, bint state, bint header
) noexcept nogil:
    cdef const Policy* policy = shard.policy
    cdef size_t i
    cdef row_t row
    for i in range(group.count):
        if group.cells[i] == NULL or row_is_cold(group.cells[i][0]):
            continue
        row = group.cells[i][0]
        if header:
            MKV_PREFETCH(arena_header(&shard.arena, row))
        if embedding:
            floats_prefetch(arena_embedding(&shard.arena, row), policy.dim)
        if state:
            floats_prefetch(arena_state(&shard.arena, row), policy.state_floats)
