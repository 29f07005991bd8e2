"""A batch of fids: their hashes, their positions by shard, and which of them are the same."""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._hashing cimport SHARDS
from monolith_kv._types cimport fid_t, status_t

cdef struct Batch:
    const fid_t* fids              # the caller's array
    size_t count
    uint64_t* hashes               # by position
    uint32_t* order                # positions, those of one shard together and in rising order
    size_t starts[SHARDS + 1]      # shard s has order[starts[s]:starts[s + 1]]

cdef struct Unique:
    # One entry for each distinct fid, in the order of first appearance.
    size_t count
    fid_t* fids
    uint32_t* entries              # by position: which entry is its fid's
    uint32_t* firsts               # by entry: the first position
    uint32_t* counts               # by entry: how many positions

cdef struct Sums:
    const float** gradients        # by entry: the caller's row, or a sum of several
    float* buffer

cdef status_t batch_create(Batch* batch, const fid_t* fids, size_t count) noexcept nogil
cdef void batch_destroy(Batch* batch) noexcept nogil
cdef status_t unique_create(Unique* unique, const fid_t* fids, size_t count) noexcept nogil
cdef void unique_destroy(Unique* unique) noexcept nogil
cdef status_t sums_create(
    Sums* sums, const Unique* unique, const float* gradients, size_t count, size_t dim
) noexcept nogil
cdef void sums_destroy(Sums* sums) noexcept nogil
