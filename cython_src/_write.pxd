"""Change a shard's rows for a batch: push, upsert, insert, remove.

`number` is the shard's in the batch; gradients and rows are by position in the batch.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport status_t, unix_s_t

# Room was promised. Several threads may be in it, each taking shards that are `left`, a bit each.
# What one puts back, since it was held up there, it does before it returns.
cdef void shards_push(
    Shard* shards, const Batch* batch, const float** gradients, unix_s_t now, uint32_t* left
) noexcept nogil
# Ask for the rows of a batch, to have them in the caches.
cdef void shards_warm(Shard* shards, const Batch* batch, const int* is_cool) noexcept nogil
# As shards_push; of the threads in it one may be told that there is no memory for a new row.
cdef status_t shards_upsert(
    Shard* shards, const Batch* batch, const float* rows, unix_s_t now, uint32_t* left
) noexcept nogil
cdef status_t shard_insert(
    Shard* shard, const Batch* batch, size_t number, unix_s_t now) noexcept nogil
# Insert those that are absent, with the first of their rows; append their fids.
cdef status_t shard_upsert_new(
    Shard* shard, const Batch* batch, size_t number, const float* rows, unix_s_t now,
    Buffer* inserted) noexcept nogil
# Room was promised.
cdef void shard_remove(
    Shard* shard, const Batch* batch, size_t number, uint64_t* removed) noexcept nogil
