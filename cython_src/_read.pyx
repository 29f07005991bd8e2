"""Read a shard's rows. See _read.pxd."""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from monolith_kv._arena cimport arena_embedding, arena_header, arena_state
from monolith_kv._batch cimport Batch
from monolith_kv._buffer cimport Buffer, buffer_append_u64, buffer_reserve
from monolith_kv._hashing cimport SHARDS
from monolith_kv._lock cimport lock_leave, lock_shared
from monolith_kv._row cimport row_is_cold, row_time
from monolith_kv._shard cimport (
    ALL_SHARDS,
    MKV_ADD64,
    Group,
    Policy,
    Shard,
    group_fill,
    group_prefetch,
    header_warm,
    shard_enter,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, row_t, status_t


cdef inline status_t note_cold(Buffer* cold, uint32_t position) noexcept nogil:
    if buffer_reserve(cold, sizeof(uint64_t)) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    buffer_append_u64(cold, position)
    return STATUS_OK


cdef status_t shared_copy_group(
    Shard* shard, const Group* group, float* out, uint8_t* found, Buffer* cold, Buffer* absent
) noexcept nogil:
    """Copy the embeddings of a group to their positions; zeros where there is none in memory."""
    cdef const Policy* policy = shard.policy
    cdef size_t bytes_row = policy.dim * sizeof(float)
    cdef size_t hits = 0
    cdef size_t i
    cdef uint32_t position
    cdef row_t row
    cdef status_t status = STATUS_OK
    group_prefetch(shard, group, True, False, policy.counts_heat)
    for i in range(group.count):
        position = group.positions[i]
        if found != NULL:
            found[position] = group.cells[i] != NULL
        if group.cells[i] == NULL:
            memset(out + position * policy.dim, 0, bytes_row)
            if absent != NULL:
                status |= note_cold(absent, position)
            continue
        hits += 1
        row = group.cells[i][0]
        if row_is_cold(row):
            memset(out + position * policy.dim, 0, bytes_row)
            status |= note_cold(cold, position)
            continue
        memcpy(out + position * policy.dim, arena_embedding(&shard.arena, row), bytes_row)
        if policy.counts_heat:
            header_warm(arena_header(&shard.arena, row))
    MKV_ADD64(&shard.counters.hits, hits)
    MKV_ADD64(&shard.counters.lookups, group.count)
    return status


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
                status |= shared_lookup(&shards[number], batch, number, out, found, cold)
                lock_leave(&shards[number].lock)
                left ^= <uint32_t>1 << number
    return status


cdef status_t shared_lookup(
    Shard* shard, const Batch* batch, size_t number, float* out, uint8_t* found, Buffer* cold
) noexcept nogil:
    cdef size_t start = batch.starts[number]
    cdef size_t end = batch.starts[number + 1]
    cdef Group group
    cdef status_t status = STATUS_OK
    while start < end:
        group_fill(shard, batch, start, end, &group)
        status |= shared_copy_group(shard, &group, out, found, cold, NULL)
        start += group.count
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
                status |= note_cold(cold, group.positions[i])
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
                status |= note_cold(cold, group.positions[i])
            else:
                out[group.positions[i]] = row_time(
                    arena_header(&shard.arena, group.cells[i][0])[0])
        start += group.count
    lock_leave(&shard.lock)
    return status
