"""Which rows are past their TTL; sparse memory given back. See _expiry.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from monolith_kv._arena cimport (
    arena_allocate,
    arena_close_sparse,
    arena_embedding,
    arena_free,
    arena_header,
    arena_open_all,
    arena_slab,
    arena_state,
)
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer, buffer_append_u64, buffer_reserve
from monolith_kv._cuckoo cimport (
    BUCKET_CELLS,
    Bucket,
    Segment,
    bucket_has,
    cuckoo_find_one,
    cuckoo_segment,
    cuckoo_shrink,
    segment_end,
)
from monolith_kv._lock cimport lock_alone, lock_leave, lock_shared
from monolith_kv._row cimport row_is_cold, row_time
from monolith_kv._shard cimport (
    Shard,
    locked_promise_end,
    locked_remove,
    shared_header,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, row_t, status_t, unix_s_t


cdef status_t shard_expired(
    Shard* shard, uint64_t position, unix_s_t now, Buffer* fids, Buffer* cold,
    uint64_t* next_position
) noexcept nogil:
    cdef uint32_t i, cell
    cdef Segment* segment
    cdef Bucket* bucket
    cdef row_t row
    cdef status_t status
    lock_shared(&shard.lock)
    segment = cuckoo_segment(&shard.index, position)
    next_position[0] = segment_end(segment, position)
    status = buffer_reserve(fids, segment.used * sizeof(fid_t))
    status |= buffer_reserve(cold, segment.used * sizeof(fid_t))
    for i in range(segment.buckets_count if status == STATUS_OK else 0):
        bucket = &segment.buckets[i]
        for cell in range(BUCKET_CELLS):
            if not bucket_has(bucket, cell):
                continue
            row = bucket.rows[cell]
            if is_expired(
                    shard.policy, bucket.fids[cell],
                    row_time(shared_header(shard, row)), now):
                buffer_append_u64(cold if row_is_cold(row) else fids, bucket.fids[cell])
    lock_leave(&shard.lock)
    return STATUS_OK if status == STATUS_OK else STATUS_OUT_OF_MEMORY


cdef void shard_expire(
    Shard* shard, const Batch* batch, size_t number, unix_s_t now, Buffer* removed
) noexcept nogil:
    cdef size_t i
    cdef uint32_t position
    cdef row_t* cell
    cdef fid_t fid
    lock_alone(&shard.lock)
    for i in range(batch.starts[number], batch.starts[number + 1]):
        position = batch.order[i]
        fid = batch.fids[position]
        cell = cuckoo_find_one(&shard.index, fid, batch.hashes[position])
        if cell == NULL or row_is_cold(cell[0]):
            continue
        # Again: the row may have been renewed since it was found expired.
        if is_expired(
                shard.policy, fid, row_time(arena_header(&shard.arena, cell[0])[0]), now):
            locked_remove(shard, fid, batch.hashes[position], cell[0])
            buffer_append_u64(removed, fid)
            shard.counters.expired += 1
    locked_promise_end(shard, batch, number)
    lock_leave(&shard.lock)


# --- giving memory back ----------------------------------------------------------------------

cdef uint64_t shard_shrink_begin(Shard* shard, uint32_t wanted) noexcept nogil:
    cdef uint64_t closed
    lock_alone(&shard.lock)
    closed = arena_close_sparse(&shard.arena, wanted)
    lock_leave(&shard.lock)
    return closed


cdef void shard_shrink_end(Shard* shard) noexcept nogil:
    lock_alone(&shard.lock)
    arena_open_all(&shard.arena)
    lock_leave(&shard.lock)


cdef status_t shard_shrink(
    Shard* shard, uint64_t position, uint64_t* next_position
) noexcept nogil:
    cdef uint32_t i, cell
    cdef Segment* segment
    cdef Bucket* bucket
    cdef status_t status = STATUS_OK
    lock_alone(&shard.lock)
    segment = cuckoo_segment(&shard.index, position)
    next_position[0] = segment_end(segment, position)
    for i in range(segment.buckets_count):
        bucket = &segment.buckets[i]
        for cell in range(BUCKET_CELLS):
            if (bucket_has(bucket, cell) and not row_is_cold(bucket.rows[cell])
                    and arena_slab(&shard.arena, bucket.rows[cell]).closed):
                status |= locked_move(shard, &bucket.rows[cell])
    cuckoo_shrink(&shard.index, position)
    lock_leave(&shard.lock)
    return status


cdef status_t locked_move(Shard* shard, row_t* cell) noexcept nogil:
    """Move a row to a slab that stays."""
    cdef row_t source = cell[0]
    cdef row_t target
    if arena_allocate(&shard.arena, &target) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    arena_header(&shard.arena, target)[0] = arena_header(&shard.arena, source)[0]
    memcpy(
        arena_embedding(&shard.arena, target), arena_embedding(&shard.arena, source),
        shard.policy.dim * sizeof(float))
    memcpy(
        arena_state(&shard.arena, target), arena_state(&shard.arena, source),
        shard.policy.state_floats * sizeof(float))
    cell[0] = target
    arena_free(&shard.arena, source)
    return STATUS_OK
