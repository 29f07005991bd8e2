"""Which rows of a shard were not used lately: CLOCK (Corbato 1968) with a small counter."""

from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport status_t

# Append the fids of at most `count` rows that were not used lately, cooling those that were.
cdef status_t shard_coldest(
    Shard* shard, size_t count, bint is_dirty_too, Buffer* fids) noexcept nogil
