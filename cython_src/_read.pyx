"""Read a shard's rows. See _read.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from monolith_kv._arena cimport arena_embedding, arena_header, arena_state
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer, buffer_append_u64, buffer_reserve
from monolith_kv._finder cimport (
    Finder,
    MKV_PREFETCH,
    finder_ahead,
    finder_ask,
    finder_at,
    finder_look,
    finder_look_again,
)
from monolith_kv._hashing cimport SHARDS
from monolith_kv._lock cimport lock_leave, lock_shared
from monolith_kv._row cimport row_is_cold, row_time
from monolith_kv._shard cimport (
    ALL_SHARDS,
    MKV_ADD64,
    Group,
    Shard,
    floats_prefetch,
    group_fill,
    group_prefetch,
    header_warm,
    shard_enter,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, row_t, status_t


cdef inline status_t note(Buffer* positions, uint32_t position) noexcept nogil:
    if buffer_reserve(positions, sizeof(uint64_t)) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    buffer_append_u64(positions, position)
    return STATUS_OK


cdef inline void prefetch_cell(const Shard* shard, const row_t* cell) noexcept nogil:
    if cell == NULL or row_is_cold(cell[0]):
        return
    floats_prefetch(arena_embedding(&shard.arena, cell[0]), shard.policy.dim)
    if shard.policy.counts_heat:
        MKV_PREFETCH(arena_header(&shard.arena, cell[0]))


cdef status_t shared_copy(
    Shard* shard, const Batch* batch, size_t number, float* out, uint8_t* found, Buffer* cold,
    Buffer* absent
) noexcept nogil:
    """Copy the embeddings of a batch to their positions; zeros where there is none in memory."""
    cdef size_t start = batch.starts[number]
    cdef size_t count = batch.starts[number + 1] - start
    cdef const uint32_t* order = batch.order + start
    cdef size_t ahead = finder_ahead(shard.policy.dim * sizeof(float))
    cdef size_t hits = 0
    cdef size_t k
    cdef const row_t* cell
    cdef Finder finder
    cdef status_t status = STATUS_OK
    finder.first = &shard.index
    finder.stride = 0
    for k in range(count + 3 * ahead if count else 0):
        if 3 * ahead <= k < count:
            # Most of a large batch: no step has to ask whether there is a fid for it.
            finder_ask(&finder, k, batch.fids[order[k]], batch.hashes[order[k]])
            prefetch_cell(shard, finder_look(&finder, k - ahead).cell)
            if finder_at(&finder, k - 2 * ahead).cell == NULL:
                prefetch_cell(shard, finder_look_again(&finder, k - 2 * ahead).cell)
        else:
            if k < count:
                finder_ask(&finder, k, batch.fids[order[k]], batch.hashes[order[k]])
            if k >= ahead and k - ahead < count:
                prefetch_cell(shard, finder_look(&finder, k - ahead).cell)
            if k >= 2 * ahead and k - 2 * ahead < count and (
                    finder_at(&finder, k - 2 * ahead).cell == NULL):
                prefetch_cell(shard, finder_look_again(&finder, k - 2 * ahead).cell)
            if k < 3 * ahead:
                continue
        k -= 3 * ahead
        cell = finder_at(&finder, k).cell
        hits += cell != NULL
        status |= shared_copy_row(shard, cell, order[k], out, found, cold, absent)
        k += 3 * ahead
    MKV_ADD64(&shard.counters.hits, hits)
    MKV_ADD64(&shard.counters.lookups, count)
    return status


cdef inline status_t shared_copy_row(
    Shard* shard, const row_t* cell, uint32_t position, float* out, uint8_t* found, Buffer* cold,
    Buffer* absent
) noexcept nogil:
    cdef size_t dim = shard.policy.dim
    out += position * dim
    if found != NULL:
        found[position] = cell != NULL
    if cell != NULL and not row_is_cold(cell[0]):
        memcpy(out, arena_embedding(&shard.arena, cell[0]), dim * sizeof(float))
        if shard.policy.counts_heat:
            header_warm(arena_header(&shard.arena, cell[0]))
        return STATUS_OK
    memset(out, 0, dim * sizeof(float))
    if cell != NULL:
        return note(cold, position)
    return note(absent, position) if absent != NULL else STATUS_OK


cdef status_t shards_lookup(
    Shard* shards, const Batch* batch, float* out, uint8_t* found, Buffer* cold
) noexcept nogil:
    cdef uint32_t left = ALL_SHARDS
    cdef size_t number
    cdef bint is_patient
    cdef status_t status = STATUS_OK
    for is_patient in range(2):
        for number in range(SHARDS):
            if left >> number & 1 and shard_enter(&shards[number], is_patient):
                status |= shared_copy(&shards[number], batch, number, out, found, cold, NULL)
                lock_leave(&shards[number].lock)
                left ^= <uint32_t>1 << number
    return status


cdef void shard_contains(
    Shard* shard, const Batch* batch, size_t number, uint8_t* found
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef Group group
    lock_shared(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, end, &group)
        for i in range(group.count):
            found[group.positions[i]] = group.cells[i] != NULL
        start += group.count
    lock_leave(&shard.lock)


cdef status_t shard_state(
    Shard* shard, const Batch* batch, size_t number, float* out, Buffer* cold
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t floats = shard.policy.state_floats
    cdef size_t i
    cdef float* place
    cdef Group group
    cdef status_t status = STATUS_OK
    lock_shared(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, end, &group)
        group_prefetch(shard, &group, False, True, False)
        for i in range(group.count):
            place = out + group.positions[i] * floats
            if group.cells[i] != NULL and not row_is_cold(group.cells[i][0]):
                memcpy(
                    place, arena_state(&shard.arena, group.cells[i][0]), floats * sizeof(float))
                continue
            memset(place, 0, floats * sizeof(float))
            if group.cells[i] != NULL:
                status |= note(cold, group.positions[i])
        start += group.count
    lock_leave(&shard.lock)
    return status


cdef status_t shard_timestamps(
    Shard* shard, const Batch* batch, size_t number, int64_t* out, Buffer* cold
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef Group group
    cdef status_t status = STATUS_OK
    lock_shared(&shard.lock)
    while start < end:
        group_fill(shard, batch, start, end, &group)
        for i in range(group.count):
            out[group.positions[i]] = -1
            if group.cells[i] == NULL:
                continue
            if row_is_cold(group.cells[i][0]):
                status |= note(cold, group.positions[i])
            else:
                out[group.positions[i]] = row_time(
                    arena_header(&shard.arena, group.cells[i][0])[0])
        start += group.count
    lock_leave(&shard.lock)
    return status
