"""Find the rows of many fids with all steps of many of them in flight. All inline.

A fid costs up to three misses in a row: a bucket, its other bucket, the row. Whoever works through
a run of fids takes three steps for each, `ahead` fids apart: ask for the first bucket, look into it
and ask for the row or for the second bucket, look into that and ask for the row. Work on rows goes
on meanwhile, so that the memory never waits for the processor: a third faster than finding, asking
and copying a group at a time. The shard is locked all the while.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._cuckoo cimport (
    Bucket,
    Cuckoo,
    Segment,
    bucket_find,
    cuckoo_segment,
)
from monolith_kv._hashing cimport hash_bucket_first, hash_bucket_second, hash_shard, hash_tag
from monolith_kv._types cimport fid_t, row_t

cdef extern from "prefetch.h":
    void MKV_PREFETCH(const void* address) noexcept nogil

cdef enum:
    RING = 128             # of fids under way: more than three times AHEAD_MAX
    AHEAD_MAX = 32
    AHEAD_BYTES = 16384    # of rows asked for: they have to stay in the first-level cache

cdef struct Finding:
    fid_t fid
    uint64_t hashed
    Bucket* bucket
    row_t* cell            # NULL: not in the first bucket

cdef struct Finder:
    # The index of a fid lies `stride` bytes behind `first` times the number of its shard.
    const Cuckoo* first
    size_t stride
    Finding ring[RING]     # by the number of a fid in its run, modulo RING


cdef inline size_t finder_ahead(size_t row_bytes) noexcept nogil:
    cdef size_t ahead = AHEAD_BYTES // row_bytes
    return 4 if ahead < 4 else (AHEAD_MAX if ahead > AHEAD_MAX else ahead)


cdef inline Segment* finder_segment(const Finder* finder, uint64_t hashed) noexcept nogil:
    return cuckoo_segment(
        <const Cuckoo*>(<const char*>finder.first + finder.stride * hash_shard(hashed)), hashed)


cdef inline Finding* finder_at(Finder* finder, size_t k) noexcept nogil:
    return &finder.ring[k % RING]


cdef inline void finder_ask(Finder* finder, size_t k, fid_t fid, uint64_t hashed) noexcept nogil:
    """Step one for the fid with number `k` in its run."""
    cdef Finding* found = finder_at(finder, k)
    cdef const Segment* segment = finder_segment(finder, hashed)
    found.fid = fid
    found.hashed = hashed
    found.bucket = segment.buckets + hash_bucket_first(
        hashed, segment.multiplier, segment.buckets_count)
    MKV_PREFETCH(found.bucket)


cdef inline Finding* finder_look(Finder* finder, size_t k) noexcept nogil:
    """Step two: the cell, if the first bucket has it."""
    cdef Finding* found = finder_at(finder, k)
    cdef int cell = bucket_find(found.bucket, found.fid, hash_tag(found.hashed))
    cdef const Segment* segment
    if cell >= 0:
        found.cell = &found.bucket.rows[cell]
        return found
    found.cell = NULL
    segment = finder_segment(finder, found.hashed)
    found.bucket = segment.buckets + hash_bucket_second(
        found.hashed, segment.multiplier, segment.buckets_count)
    MKV_PREFETCH(found.bucket)
    return found


cdef inline Finding* finder_look_again(Finder* finder, size_t k) noexcept nogil:
    """Step three, if step two found no cell: the cell, if the second bucket has it."""
    cdef Finding* found = finder_at(finder, k)
    cdef int cell = bucket_find(found.bucket, found.fid, hash_tag(found.hashed))
    if cell >= 0:
        found.cell = &found.bucket.rows[cell]
    return found
