"""Pull: read a shard's rows and let new ids in through the gate. See _admission.pxd."""

from libc.stdint cimport uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from monolith_kv._arena cimport arena_embedding
from monolith_kv._batch cimport (
    Batch,
    Unique,
    batch_create,
    batch_destroy,
    unique_create,
    unique_destroy,
)
from monolith_kv._buffer cimport (
    Buffer,
    buffer_append_u64,
    buffer_extend,
    buffer_free,
    buffer_init,
    buffer_reserve,
)
from monolith_kv._codec cimport load_le64
from monolith_kv._cuckoo cimport cuckoo_find_one
from monolith_kv._hashing cimport SHARDS, hash_fid
from monolith_kv._lock cimport PASS_IDS, lock_alone, lock_leave, lock_pass
from monolith_kv._read cimport shards_lookup
from monolith_kv._row cimport row_clamp_time
from monolith_kv._shard cimport (
    ALL_SHARDS,
    Policy,
    Shard,
    fid_slot,
    locked_new_row,
    locked_reserve,
    shard_enter_alone,
)
from monolith_kv._sketch cimport sketch_advance, sketch_estimate, sketch_prefetch, sketch_see
from monolith_kv._types cimport (
    STATUS_BAD_DATA,
    STATUS_FULL,
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    fid_t,
    row_t,
    status_t,
    unix_s_t,
)


cdef enum:
    SEE_AHEAD = 8      # ids whose cells of the sketch are asked for ahead of need

cdef struct Absent:
    # Ids of one pull that have no row.
    const uint64_t* positions      # of each in the call
    float* out
    unix_s_t now
    Unique unique                  # firsts and entries count in `positions`
    Batch batch                    # of the distinct ones


cdef inline uint32_t policy_threshold(const Policy* policy, fid_t fid) noexcept nogil:
    if not policy.is_gated:
        return 1
    if policy.threshold_by_slot != NULL:
        return policy.threshold_by_slot[fid_slot(fid)]
    return policy.threshold


cdef status_t locked_log_sighting(Shard* shard, fid_t fid, unix_s_t now) noexcept nogil:
    """Append a sighting to what the next seal makes durable.

    A run is `now` (u64), how many ids (u64), then the ids: replaying runs in order leaves the
    sketch as it is.
    """
    if buffer_reserve(&shard.sightings, 3 * sizeof(uint64_t)) != STATUS_OK:
        return STATUS_OUT_OF_MEMORY
    if shard.sightings_run >= shard.sightings.count:
        shard.sightings_run = shard.sightings.count
        buffer_append_u64(&shard.sightings, <uint64_t>now)
        buffer_append_u64(&shard.sightings, 0)
    buffer_append_u64(&shard.sightings, fid)
    (<uint64_t*>(shard.sightings.data + shard.sightings_run))[1] += 1
    return STATUS_OK


cdef status_t locked_admit(
    Shard* shard, fid_t fid, uint64_t hashed, unix_s_t now, bint* is_admitted
) noexcept nogil:
    """Count a sighting of an absent id; does it pass?"""
    cdef uint32_t threshold = policy_threshold(shard.policy, fid)
    is_admitted[0] = True
    if threshold > 1:
        if locked_log_sighting(shard, fid, now) != STATUS_OK:
            return STATUS_OUT_OF_MEMORY
        is_admitted[0] = sketch_see(&shard.sketch, hashed, now) >= threshold
    shard.counters.admitted += is_admitted[0]
    shard.counters.rejected += not is_admitted[0]
    return STATUS_OK


cdef status_t locked_refuse(Shard* shard, const Absent* absent, size_t number) noexcept nogil:
    """STATUS_FULL if an absent id of a shard would pass; counts nothing."""
    cdef const Batch* batch = &absent.batch
    cdef size_t i
    cdef uint32_t entry, threshold
    if shard.policy.is_gated and shard.sketch.is_started:
        sketch_advance(&shard.sketch, absent.now)
    for i in range(batch.starts[number], batch.starts[number + 1]):
        entry = batch.order[i]
        threshold = policy_threshold(shard.policy, batch.fids[entry])
        if threshold > 1 and sketch_estimate(&shard.sketch, batch.hashes[entry]) + 1 < threshold:
            continue
        if cuckoo_find_one(&shard.index, batch.fids[entry], batch.hashes[entry]) == NULL:
            return STATUS_FULL
    return STATUS_OK


cdef status_t shards_refuse(Shard* shards, const Absent* absent) noexcept nogil:
    """All shards before one of them counts: a call that fails has counted nothing."""
    cdef size_t number
    cdef status_t status = STATUS_OK
    for number in range(SHARDS):
        if status == STATUS_OK and absent.batch.starts[number] < absent.batch.starts[number + 1]:
            lock_alone(&shards[number].lock)
            status = locked_refuse(&shards[number], absent, number)
            lock_leave(&shards[number].lock)
    return status


cdef status_t locked_let_in(
    Shard* shard, const Absent* absent, size_t number, bint may_insert, Buffer* inserted
) noexcept nogil:
    """Count each absent id of a shard once, insert those that pass and copy their rows out."""
    cdef const Batch* batch = &absent.batch
    cdef size_t end = batch.starts[number + 1]
    cdef size_t i
    cdef uint32_t entry
    cdef bint is_admitted
    cdef row_t* cell
    cdef status_t status = locked_reserve(shard, end - batch.starts[number])
    shard.sightings_run = shard.sightings.count
    for i in range(batch.starts[number], end):
        entry = batch.order[i]
        if i + SEE_AHEAD < end and shard.policy.is_gated:
            sketch_prefetch(&shard.sketch, batch.hashes[batch.order[i + SEE_AHEAD]])
        if i % PASS_IDS == 0 and lock_pass(&shard.lock):
            # Others may have used the room up, and begun a run of sightings at another time.
            status = locked_reserve(shard, end - i)
            shard.sightings_run = shard.sightings.count
        if status != STATUS_OK:
            break
        # Others may have inserted it since it was found absent.
        cell = cuckoo_find_one(&shard.index, batch.fids[entry], batch.hashes[entry])
        if cell == NULL:
            status = locked_admit(
                shard, batch.fids[entry], batch.hashes[entry], absent.now, &is_admitted)
            # An id that passes all the same does so by the count of another one of its call.
            if status != STATUS_OK or not is_admitted or not may_insert:
                continue
            status = locked_new_row(
                shard, batch.fids[entry], batch.hashes[entry], NULL, row_clamp_time(absent.now))
            if status != STATUS_OK:
                continue
            buffer_append_u64(inserted, batch.fids[entry])
            cell = cuckoo_find_one(&shard.index, batch.fids[entry], batch.hashes[entry])
        memcpy(
            absent.out + absent.positions[absent.unique.firsts[entry]] * shard.policy.dim,
            arena_embedding(&shard.arena, cell[0]), shard.policy.dim * sizeof(float))
    return status


cdef status_t shards_let_in(
    Shard* shards, Absent* absent, bint may_insert, Buffer* inserted
) noexcept nogil:
    """The distinct absent ids, a shard at a time: those that are free first."""
    cdef uint32_t left = ALL_SHARDS
    cdef size_t number
    cdef bint is_patient
    cdef status_t status = buffer_reserve(inserted, absent.unique.count * sizeof(fid_t))
    if status != STATUS_OK:
        return status
    for is_patient in range(2):
        for number in range(SHARDS):
            if absent.batch.starts[number] == absent.batch.starts[number + 1]:
                continue
            if left >> number & 1 and shard_enter_alone(&shards[number], is_patient):
                left ^= <uint32_t>1 << number
                status |= locked_let_in(&shards[number], absent, number, may_insert, inserted)
                lock_leave(&shards[number].lock)
    return status


cdef status_t shards_pull_absent(
    Shard* shards, const fid_t* fids, const Buffer* positions, float* out, unix_s_t now,
    bint may_insert, Buffer* inserted
) noexcept nogil:
    cdef size_t count = positions.count // sizeof(uint64_t)
    cdef size_t dim = shards[0].policy.dim
    cdef size_t i
    cdef uint32_t first
    cdef Absent absent
    cdef status_t status
    cdef fid_t* wanted = <fid_t*>malloc(count * sizeof(fid_t))
    if wanted == NULL:
        return STATUS_OUT_OF_MEMORY
    absent.positions = <const uint64_t*>positions.data
    absent.out = out
    absent.now = now
    for i in range(count):
        wanted[i] = fids[absent.positions[i]]
    status = unique_create(&absent.unique, wanted, count)
    if status == STATUS_OK:
        status = batch_create(&absent.batch, absent.unique.fids, absent.unique.count)
        if status == STATUS_OK:
            if not may_insert:
                status = shards_refuse(shards, &absent)
            if status == STATUS_OK:
                status = shards_let_in(shards, &absent, may_insert, inserted)
            for i in range(count):
                first = absent.unique.firsts[absent.unique.entries[i]]
                if first != i:
                    memcpy(
                        out + absent.positions[i] * dim, out + absent.positions[first] * dim,
                        dim * sizeof(float))
            batch_destroy(&absent.batch)
        unique_destroy(&absent.unique)
    free(wanted)
    return status


cdef status_t shards_pull(
    Shard* shards, const fid_t* fids, size_t count, float* out, unix_s_t now, bint may_insert,
    Buffer* inserted
) noexcept nogil:
    """Read as a lookup does; only a shard that misses ids is locked alone."""
    cdef Buffer absent, cold
    cdef status_t status
    buffer_init(&absent)
    buffer_init(&cold)
    status = shards_lookup(shards, fids, count, out, NULL, &cold, &absent, False)
    if absent.count and status == STATUS_OK:
        status = shards_pull_absent(shards, fids, &absent, out, now, may_insert, inserted)
    buffer_free(&absent)
    buffer_free(&cold)
    return status


cdef status_t shard_see(
    Shard* shard, const uint8_t* runs, size_t size_bytes, bint is_pending
) noexcept nogil:
    cdef size_t offset = 0
    cdef uint64_t count, i
    cdef unix_s_t now
    cdef status_t status = STATUS_OK
    lock_alone(&shard.lock)
    if is_pending:
        status = buffer_reserve(&shard.sightings, size_bytes)
        if status == STATUS_OK:
            memcpy(buffer_extend(&shard.sightings, size_bytes), runs, size_bytes)
    while status == STATUS_OK and offset < size_bytes and shard.policy.is_gated:
        if size_bytes - offset < 2 * sizeof(uint64_t):
            status = STATUS_BAD_DATA
            break
        now = <unix_s_t>load_le64(runs + offset)
        count = load_le64(runs + offset + sizeof(uint64_t))
        offset += 2 * sizeof(uint64_t)
        if count > (size_bytes - offset) // sizeof(uint64_t):
            status = STATUS_BAD_DATA
            break
        for i in range(count):
            sketch_see(
                &shard.sketch, hash_fid(load_le64(runs + offset + i * sizeof(uint64_t))), now)
        offset += count * sizeof(uint64_t)
    lock_leave(&shard.lock)
    return status
