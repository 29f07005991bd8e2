"""Change a shard's rows for a batch: push, upsert, insert, remove.

`number` is the shard's in the batch; gradients and rows are by position in the batch.
"""

from libc.stdint cimport uint64_t

from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport status_t, unix_s_t

cdef status_t shards_push(
    Shard* shards, const Batch* batch, const float** gradients, unix_s_t now) noexcept nogil
cdef status_t shards_upsert(
    Shard* shards, const Batch* batch, const float* rows, unix_s_t now) noexcept nogil
cdef status_t shard_insert(
    Shard* shard, const Batch* batch, size_t number, unix_s_t now) noexcept nogil
# Insert those that are absent, with the first of their rows; append their fids.
cdef status_t shard_upsert_new(
    Shard* shard, const Batch* batch, size_t number, const float* rows, unix_s_t now,
    Buffer* inserted) noexcept nogil
# Room was promised.
cdef void shard_remove(
    Shard* shard, const Batch* batch, size_t number, uint64_t* removed) noexcept nogil
