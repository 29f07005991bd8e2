"""Read a shard's rows for a batch. Nothing but heat and counters changes: readers share the lock.

`number` is the shard's in the batch; out and found are by position in the batch; positions of rows
that lie in overflow are appended to `cold` (u64 each).
"""

from libc.stdint cimport int64_t, uint8_t

from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport status_t

cdef status_t shards_lookup(
    Shard* shards, const Batch* batch, float* out, uint8_t* found, Buffer* cold) noexcept nogil
cdef void shard_contains(
    Shard* shard, const Batch* batch, size_t number, uint8_t* found) noexcept nogil
cdef status_t shard_state(
    Shard* shard, const Batch* batch, size_t number, float* out, Buffer* cold) noexcept nogil
cdef status_t shard_timestamps(
    Shard* shard, const Batch* batch, size_t number, int64_t* out, Buffer* cold) noexcept nogil
# Positions of absent ids are appended to `absent`, where it is given (u64 each).
cdef status_t shared_copy(
    Shard* shard, const Batch* batch, size_t number, float* out, uint8_t* found, Buffer* cold,
    Buffer* absent
) noexcept nogil
