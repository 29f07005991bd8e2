"""The hand of CLOCK. See _clock.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memcpy

from monolith_kv._arena cimport arena_header
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
    cuckoo_segment,
    segment_end,
)
from monolith_kv._hashing cimport SHARD_BITS, hash_shard
from monolith_kv._lock cimport lock_alone, lock_leave
from monolith_kv._row cimport (
    ROW_HEAT_MAX,
    ROW_HEAT_SHIFT,
    ROW_TOUCHED_EVEN,
    ROW_TOUCHED_ODD,
    row_is_cold,
)
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, status_t


cdef extern from "prefetch.h":
    void MKV_PREFETCH(const void* address) noexcept nogil

cdef enum:
    AHEAD_BUCKETS = 8      # of the hand: headers lie all over the slabs


cdef status_t shard_coldest(
    Shard* shard, size_t count, bint is_dirty_too, Buffer* fids
) noexcept nogil:
    """The hand goes round at most once for each step of
    heat and once more. It stops at the bucket where enough were found: what it passes gets cooler,
    and would lose its heat for nothing.

    Of up to twice as many as are asked for, those go first that no seal still has to write.
    """
    cdef uint64_t left
    cdef size_t room = count * sizeof(fid_t)
    cdef size_t begun = fids.count
    cdef Buffer dirty
    buffer_init(&dirty)
    # A bucket more: it is passed as a whole.
    if (buffer_reserve(fids, room + BUCKET_CELLS * sizeof(fid_t)) != STATUS_OK
            or buffer_reserve(&dirty, 2 * room + BUCKET_CELLS * sizeof(fid_t)) != STATUS_OK):
        buffer_free(&dirty)
        return STATUS_OUT_OF_MEMORY
    lock_alone(&shard.lock)
    left = <uint64_t>(ROW_HEAT_MAX + 2) * (shard.index.rows - shard.cold_rows)
    while left and fids.count - begun < room and fids.count - begun + dirty.count < 2 * room:
        locked_pass(shard, fids, &dirty if is_dirty_too else NULL, &left)
    lock_leave(&shard.lock)
    if fids.count - begun > room:
        fids.count = begun + room
    room -= fids.count - begun
    room = room if room < dirty.count else dirty.count
    if room:
        memcpy(buffer_extend(fids, room), dirty.data, room)
    buffer_free(&dirty)
    return STATUS_OK


cdef inline void bucket_prefetch_headers(const Shard* shard, const Bucket* bucket) noexcept nogil:
    cdef uint32_t cell
    for cell in range(BUCKET_CELLS):
        if bucket_has(bucket, cell) and not row_is_cold(bucket.rows[cell]):
            MKV_PREFETCH(arena_header(&shard.arena, bucket.rows[cell]))


cdef void locked_pass(Shard* shard, Buffer* clean, Buffer* dirty, uint64_t* left) noexcept nogil:
    """Let the hand pass one bucket; `left` counts rows in memory down. Dirty rows stay warm where
    there is no list of them."""
    cdef Segment* segment = cuckoo_segment(&shard.index, shard.hand)
    cdef uint64_t end = segment_end(segment, shard.hand)
    cdef uint64_t span = <uint64_t>1 << (64 - SHARD_BITS - segment.depth)
    cdef uint64_t start = end - span
    # The segment's hashes, shared out among its buckets: the hand keeps its place if it splits.
    cdef uint64_t step = span // (segment.buckets_count if segment.buckets_count else 1)
    cdef uint64_t number = (shard.hand - start) // step
    cdef uint32_t cell
    cdef Bucket* bucket
    cdef uint64_t* header
    shard.hand = start + (number + 1) * step
    if number + 1 >= segment.buckets_count:
        shard.hand = end
        if hash_shard(end) != hash_shard(start):
            shard.hand = <uint64_t>hash_shard(start) << (64 - SHARD_BITS)
    if number >= segment.buckets_count:
        return    # Behind the last bucket is what the division left over.
    if number + AHEAD_BUCKETS < segment.buckets_count:
        bucket_prefetch_headers(shard, &segment.buckets[number + AHEAD_BUCKETS])
    bucket = &segment.buckets[number]
    for cell in range(BUCKET_CELLS):
        if not bucket_has(bucket, cell):
            continue
        if row_is_cold(bucket.rows[cell]):
            continue
        left[0] -= left[0] != 0
        header = arena_header(&shard.arena, bucket.rows[cell])
        if header[0] & (ROW_TOUCHED_EVEN | ROW_TOUCHED_ODD) and dirty == NULL:
            continue
        if header[0] & (<uint64_t>ROW_HEAT_MAX << ROW_HEAT_SHIFT):
            header[0] -= <uint64_t>1 << ROW_HEAT_SHIFT
        elif header[0] & (ROW_TOUCHED_EVEN | ROW_TOUCHED_ODD):
            buffer_append_u64(dirty, bucket.fids[cell])
        else:
            buffer_append_u64(clean, bucket.fids[cell])
