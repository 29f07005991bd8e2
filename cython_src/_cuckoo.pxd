"""fid -> row number: an extendible directory of small cuckoo tables (segments).

A bucket is one cache line of five cells; a fid lives in one of two buckets (Pagh and Rodler 2004,
with buckets as in Dietzfelbinger and Weidling 2007). All five are compared without a branch: no
predictor can guess which cell it is. Each segment owns a range of hashes and grows by itself, by a
part of its size and up to SEGMENT_ROWS_MAX, then splits in two (Fagin et al. 1979): so no caller
ever waits for more than one segment to be rebuilt. All but small segments are parts of pieces of
the table's memory (see _pages.pxd). Guarded by shard.lock.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._hashing cimport SHARD_BITS
from monolith_kv._pages cimport Pages
from monolith_kv._types cimport fid_t, row_t, status_t

cdef enum:
    BUCKET_CELLS = 5
    FIND_GROUP = 128           # fids whose cache misses are in flight together

cdef extern from *:
    int __builtin_ctz(unsigned int value) noexcept nogil

cdef struct Bucket:
    fid_t fids[BUCKET_CELLS]
    row_t rows[BUCKET_CELLS]
    uint32_t used           # bit i: cell i holds a fid; others may still show one that was erased

cdef struct Segment:
    Bucket* buckets
    uint64_t multiplier     # odd, secret: which buckets a hash gets
    uint32_t buckets_count
    uint32_t used           # cells that hold a fid
    uint32_t depth          # leading hash bits, behind the shard's, that its fids share
    uint32_t moves          # goes up when fids that stay get other cells

cdef struct Cuckoo:
    Pages* pages
    Segment** directory     # by the leading `depth` bits; several entries may be one segment
    uint32_t depth
    uint64_t rows           # stored atomically: read without the shard's lock
    size_t size_bytes       # buckets, segments and directory
    uint64_t random         # state of the generator of multipliers and victims
    uint64_t rows_expected  # until so many are there,
    uint32_t buckets_expected   # a segment gets so many with its first growth

cdef status_t cuckoo_create(Cuckoo* index, Pages* pages, uint64_t seed) noexcept nogil
cdef void cuckoo_destroy(Cuckoo* index) noexcept nogil
# The index of a fid lies `stride` bytes behind `first` times the number of its shard.
cdef void cuckoo_find(
    const Cuckoo* first, size_t stride, const fid_t* fids, const uint64_t* hashes, size_t count,
    row_t** cells
) noexcept nogil
cdef row_t* cuckoo_find_one(const Cuckoo* index, fid_t fid, uint64_t hashed) noexcept nogil
cdef status_t cuckoo_insert(
    Cuckoo* index, fid_t fid, uint64_t hashed, row_t row) noexcept nogil
cdef void cuckoo_erase(Cuckoo* index, fid_t fid, uint64_t hashed) noexcept nogil
# So many fids will come into an empty index. On STATUS_OUT_OF_MEMORY it grows as it always does.
cdef status_t cuckoo_expect(Cuckoo* index, uint64_t rows) noexcept nogil
cdef void cuckoo_shrink(Cuckoo* index, uint64_t position) noexcept nogil
cdef uint64_t segment_end(const Segment* segment, uint64_t position) noexcept nogil


cdef inline uint32_t cuckoo_place(const Cuckoo* index, uint64_t hashed) noexcept nogil:
    # Two shifts, since one by 64 would be undefined where the depth is 0.
    return <uint32_t>(((hashed << SHARD_BITS) >> 1) >> (63 - index.depth))


cdef inline Segment* cuckoo_segment(const Cuckoo* index, uint64_t hashed) noexcept nogil:
    return index.directory[cuckoo_place(index, hashed)]


cdef inline bint bucket_has(const Bucket* bucket, uint32_t cell) noexcept nogil:
    return bucket.used >> cell & 1


cdef inline int bucket_find(const Bucket* bucket, fid_t fid) noexcept nogil:
    """The cell that holds `fid`, or -1."""
    cdef uint32_t equal = (
        <uint32_t>(bucket.fids[0] == fid)
        | <uint32_t>(bucket.fids[1] == fid) << 1
        | <uint32_t>(bucket.fids[2] == fid) << 2
        | <uint32_t>(bucket.fids[3] == fid) << 3
        | <uint32_t>(bucket.fids[4] == fid) << 4
    ) & bucket.used
    return <int>__builtin_ctz(equal) if equal else -1
