"""Hash one record's id and embedding, so that a table's digest is a sum that can be kept up.

A table's digest is the sum, modulo 2**64 and word by word, of the digests of its records: adding
and subtracting single records keeps it up, in any order.
"""

from libc.stdint cimport uint64_t

from monolith_kv._types cimport fid_t

cdef enum:
    DIGEST_DIM_MAX = 4096


cdef struct RowDigest:
    uint64_t low     # two words by independent keys: a difference escapes both once in 2**64
    uint64_t high


# dim <= DIGEST_DIM_MAX. Sees the bits of the floats: 0.0 and -0.0 differ.
cdef RowDigest digest_row(fid_t fid, const float* embedding, size_t dim) noexcept nogil


cdef inline void digest_add(RowDigest* total, RowDigest row) noexcept nogil:
    total.low += row.low
    total.high += row.high


cdef inline void digest_subtract(RowDigest* total, RowDigest row) noexcept nogil:
    total.low -= row.low
    total.high -= row.high
