"""Pull: read rows and let new ids in through the gate.

A sighting of an id that has no row counts at the gate, once a call. What was counted is also kept
as a list, so that a seal can make it durable without writing the sketch: see shard_see.
"""

from libc.stdint cimport uint8_t

from monolith_kv._buffer cimport Buffer
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport fid_t, status_t, unix_s_t

# Fids that were inserted are appended to `inserted`. STATUS_FULL: not may_insert, and one would
# pass; nothing was counted then.
cdef status_t shards_pull(
    Shard* shards, const fid_t* fids, size_t count, float* out, unix_s_t now, bint may_insert,
    Buffer* inserted
) noexcept nogil
# Replay runs of sightings; is_pending: they also belong to the next seal.
cdef status_t shard_see(
    Shard* shard, const uint8_t* runs, size_t size_bytes, bint is_pending) noexcept nogil
