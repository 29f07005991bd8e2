"""Which rows are past their TTL, a segment of the index at a time; sparse memory given back.

A row is expired when now - timestamp >= ttl, in whole seconds. A clock that went back makes the
difference negative: nothing expires.
"""

from libc.stdint cimport int64_t, uint32_t, uint64_t

from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Policy, Shard, fid_slot
from monolith_kv._types cimport fid_t, status_t, unix_s_t

# Of the segment at hash `position`, append the fids of expired rows, and of cold ones that may be.
cdef status_t shard_expired(
    Shard* shard, uint64_t position, unix_s_t now, Buffer* fids, Buffer* cold,
    uint64_t* next_position
) noexcept nogil
# Remove those of a batch that are expired still; append them to `removed`.
# Room was promised, and reserved in `removed`.
cdef void shard_expire(
    Shard* shard, const Batch* batch, size_t number, unix_s_t now, Buffer* removed) noexcept nogil
# Close sparse slabs, or if so many are `wanted` the emptiest: shard_shrink then moves their rows
# away. How many slabs.
cdef uint64_t shard_shrink_begin(Shard* shard, uint32_t wanted) noexcept nogil
# Move rows of the segment at `position` out of closed slabs, rebuild it smaller if it is mostly
# empty; the hash where the next begins, 0 at the end.
cdef status_t shard_shrink(Shard* shard, uint64_t position, uint64_t* next_position) noexcept nogil
cdef void shard_shrink_end(Shard* shard) noexcept nogil


cdef inline int64_t policy_ttl_s(const Policy* policy, fid_t fid) noexcept nogil:
    """0: never."""
    if policy.ttl_s_by_slot != NULL:
        return policy.ttl_s_by_slot[fid_slot(fid)]
    return policy.ttl_s


cdef inline bint is_expired(
    const Policy* policy, fid_t fid, unix_s_t time, unix_s_t now
) noexcept nogil:
    cdef int64_t ttl_s = policy_ttl_s(policy, fid)
    return ttl_s > 0 and now - time >= ttl_s
