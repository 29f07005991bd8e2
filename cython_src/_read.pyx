"""Read rows of all shards. See _read.pxd."""

from libc.stdint cimport int64_t, uint8_t
from libc.string cimport memcpy, memset

from monolith_kv._arena cimport arena_embedding, arena_state
from monolith_kv._buffer cimport Buffer, buffer_note_u64
from monolith_kv._cuckoo cimport FIND_GROUP, cuckoo_find
from monolith_kv._hashing cimport SHARDS, hash_fid
from monolith_kv._lock cimport lock_leave, lock_shared, lock_shared_soon
from monolith_kv._row cimport row_is_cold, row_time
from monolith_kv._shard cimport MKV_ADD64, Shard, header_warm, shard_header, shared_header
from monolith_kv._types cimport STATUS_OK, fid_t, row_t, status_t

cdef enum:
    SHORT_BYTES = 131072   # of rows that are copied in some 20 us


# --- all shards ------------------------------------------------------------------------------

cdef void shards_share(Shard* shards) noexcept nogil:
    cdef size_t number
    # Always in this order, and whoever locks shards alone locks one, or all in this order.
    for number in range(SHARDS):
        lock_shared(&shards[number].lock)


cdef bint shards_share_soon(Shard* shards) noexcept nogil:
    cdef size_t number, i
    for number in range(SHARDS):
        if not lock_shared_soon(&shards[number].lock, False):
            for i in range(number):
                lock_leave(&shards[i].lock)
            return False
    return True


cdef void shards_leave(Shard* shards) noexcept nogil:
    cdef size_t number
    for number in range(SHARDS):
        lock_leave(&shards[number].lock)


cdef void shared_find(
    Shard* shards, const fid_t* fids, size_t start, size_t stop, Found* group
) noexcept nogil:
    """Find the next of fids[start:stop], FIND_GROUP at most; none where start is stop."""
    cdef bint counts_heat = shards[0].policy.counts_heat
    cdef Shard* shard
    cdef size_t i
    group.start = start
    group.count = stop - start if stop - start < FIND_GROUP else FIND_GROUP
    for i in range(group.count):
        group.hashes[i] = hash_fid(fids[start + i])
    cuckoo_find(
        &shards[0].index, <char*>&shards[1] - <char*>&shards[0], fids + start, group.hashes,
        group.count, group.cells)
    for i in range(group.count):
        group.rows[i] = NULL
        if group.cells[i] == NULL:
            continue
        shard = found_shard(shards, group, i)
        if counts_heat:
            header_warm(shard_header(shard, group.cells[i][0]))
        if not row_is_cold(group.cells[i][0]):
            group.rows[i] = arena_embedding(&shard.arena, group.cells[i][0])


# --- what callers want -----------------------------------------------------------------------

cdef bint lookup_is_short(const Shard* shards, size_t count) noexcept nogil:
    return (
        count <= SHARE_IDS // 2
        and count * shards[0].policy.dim * sizeof(float) <= SHORT_BYTES)


cdef status_t shards_lookup(
    Shard* shards, const fid_t* fids, size_t count, float* out, uint8_t* found, Buffer* cold,
    Buffer* absent, bint is_shared
) noexcept nogil:
    cdef size_t start = 0
    cdef size_t stop
    cdef Found groups[2]
    cdef Found* current = &groups[0]
    cdef Found* coming = &groups[1]
    cdef status_t status = STATUS_OK
    while start < count:
        stop = start + SHARE_IDS if count - start > SHARE_IDS else count
        current.count = 0
        if not is_shared:
            shards_share(shards)
        while start < stop or current.count:
            shared_find(shards, fids, start, stop, coming)
            status |= shared_copy(shards, current, coming, out, found, cold, absent)
            start += coming.count
            current, coming = coming, current
        if not is_shared:
            shards_leave(shards)
    return status


cdef status_t shared_copy(
    Shard* shards, const Found* group, const Found* coming, float* out, uint8_t* found,
    Buffer* cold, Buffer* absent
) noexcept nogil:
    """Copy the embeddings of a group to their positions; zeros where there is none in memory."""
    cdef size_t dim = shards[0].policy.dim
    cdef size_t hits = 0
    cdef size_t i, position
    cdef status_t status = STATUS_OK
    for i in range(group.count, coming.count):
        found_ask(coming, i, dim)
    for i in range(group.count):
        found_ask(coming, i, dim)
        position = group.start + i
        hits += group.cells[i] != NULL
        if found != NULL:
            found[position] = group.cells[i] != NULL
        if group.rows[i] != NULL:
            memcpy(out + position * dim, group.rows[i], dim * sizeof(float))
            continue
        memset(out + position * dim, 0, dim * sizeof(float))
        if group.cells[i] != NULL:
            status |= buffer_note_u64(cold, position)
        elif absent != NULL:
            status |= buffer_note_u64(absent, position)
    MKV_ADD64(&shards[0].counters.hits, hits)
    MKV_ADD64(&shards[0].counters.lookups, group.count)
    return status


cdef void shards_contain(
    Shard* shards, const fid_t* fids, size_t count, uint8_t* found
) noexcept nogil:
    cdef size_t start = 0
    cdef size_t i
    cdef Found group
    while start < count:
        shards_share(shards)
        shared_find(shards, fids, start, count, &group)
        for i in range(group.count):
            found[start + i] = group.cells[i] != NULL
        shards_leave(shards)
        start += group.count


cdef status_t shards_state(
    Shard* shards, const fid_t* fids, size_t count, float* out, Buffer* cold
) noexcept nogil:
    cdef size_t floats = shards[0].policy.state_floats
    cdef size_t start = 0
    cdef size_t i
    cdef float* place
    cdef row_t* cell
    cdef Found group
    cdef status_t status = STATUS_OK
    while start < count:
        shards_share(shards)
        shared_find(shards, fids, start, count, &group)
        for i in range(group.count):
            place = out + (start + i) * floats
            cell = group.cells[i]
            if cell != NULL and not row_is_cold(cell[0]):
                memcpy(
                    place, arena_state(&found_shard(shards, &group, i).arena, cell[0]),
                    floats * sizeof(float))
                continue
            memset(place, 0, floats * sizeof(float))
            if cell != NULL:
                status |= buffer_note_u64(cold, start + i)
        shards_leave(shards)
        start += group.count
    return status


cdef void shards_timestamps(
    Shard* shards, const fid_t* fids, size_t count, int64_t* out
) noexcept nogil:
    cdef size_t start = 0
    cdef size_t i
    cdef row_t* cell
    cdef Found group
    while start < count:
        shards_share(shards)
        shared_find(shards, fids, start, count, &group)
        for i in range(group.count):
            cell = group.cells[i]
            out[start + i] = -1
            if cell != NULL:
                out[start + i] = row_time(
                    shared_header(found_shard(shards, &group, i), cell[0]))
        shards_leave(shards)
        start += group.count
