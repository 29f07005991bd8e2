"""Read rows of all shards, in the order in which their ids are asked for.

All shards are shared for a step at a time: rows go to `out` one behind the other, which the caches
like, and whoever changes rows is let in between two steps. Positions of rows that lie in overflow
are appended to `cold` (u64 each), for the caller to read them there.
"""

from libc.stdint cimport int64_t, uint8_t, uint64_t

from monolith_kv._buffer cimport Buffer
from monolith_kv._cuckoo cimport FIND_GROUP
from monolith_kv._hashing cimport hash_shard
from monolith_kv._shard cimport Shard, floats_prefetch
from monolith_kv._types cimport fid_t, row_t, status_t

cdef enum:
    SHARE_IDS = 1024   # for so many the shards are shared at a time

cdef struct Found:
    # At most FIND_GROUP ids in a row, of any shard, whose cache misses are in flight together.
    size_t start               # of the first, in the caller's array
    size_t count
    uint64_t hashes[FIND_GROUP]
    row_t* cells[FIND_GROUP]          # NULL: absent
    const float* rows[FIND_GROUP]     # the embeddings; NULL: not in memory

# Whether a lookup takes less time than to give the GIL up and to be given it again may.
cdef bint lookup_is_short(const Shard* shards, size_t count) noexcept nogil
# Positions of absent ids are appended to `absent`, flags go to `found`, where they are given.
# is_shared: whoever calls shares the shards already, and leaves them.
cdef status_t shards_lookup(
    Shard* shards, const fid_t* fids, size_t count, float* out, uint8_t* found, Buffer* cold,
    Buffer* absent, bint is_shared
) noexcept nogil
cdef void shards_contain(
    Shard* shards, const fid_t* fids, size_t count, uint8_t* found) noexcept nogil
cdef status_t shards_state(
    Shard* shards, const fid_t* fids, size_t count, float* out, Buffer* cold) noexcept nogil
cdef void shards_timestamps(
    Shard* shards, const fid_t* fids, size_t count, int64_t* out) noexcept nogil

# --- for other ways to read
cdef void shards_share(Shard* shards) noexcept nogil
# False: one of them is held for long, and none is shared.
cdef bint shards_share_soon(Shard* shards) noexcept nogil
cdef void shards_leave(Shard* shards) noexcept nogil
cdef void shared_find(
    Shard* shards, const fid_t* fids, size_t start, size_t stop, Found* group) noexcept nogil


cdef inline void found_ask(const Found* group, size_t i, size_t dim) noexcept nogil:
    """Ask for an embedding: a row of the coming group for each that is read of the current one."""
    if i < group.count and group.rows[i] != NULL:
        floats_prefetch(group.rows[i], dim)


cdef inline Shard* found_shard(Shard* shards, const Found* group, size_t i) noexcept nogil:
    return &shards[hash_shard(group.hashes[i])]
