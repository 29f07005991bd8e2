"""Pooled lookups: sums, means or sqrt(n)-means of bags of ids, as in torch.nn.EmbeddingBag."""

from libc.stdint cimport int64_t

from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport fid_t, status_t

cdef enum:
    POOL_SUM = 0
    POOL_MEAN = 1
    POOL_SQRTN = 2

# offsets: bags + 1, rising, within the ids. weights: by position, or NULL. Cold positions are
# appended to `cold` and add nothing.
cdef status_t pool_bags(
    Shard* shards, const fid_t* fids, const int64_t* offsets, size_t bags, int combiner,
    const float* weights, float* out, Buffer* cold
) noexcept nogil
