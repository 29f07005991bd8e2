"""A batch of fids. See _batch.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from monolith_kv._hashing cimport SHARDS, hash_fid, hash_shard
from monolith_kv._types cimport (
    STATUS_NOT_FINITE,
    STATUS_OK,
    STATUS_OUT_OF_MEMORY,
    fid_t,
    status_t,
)

cdef extern from "<math.h>" nogil:
    bint isfinite(float value)


cdef status_t batch_create(Batch* batch, const fid_t* fids, size_t count) noexcept nogil:
    """Hash all fids and sort their positions by shard (a counting sort, so it is stable)."""
    cdef size_t next_place[SHARDS]
    cdef size_t i, total
    cdef uint32_t shard
    batch.fids = fids
    batch.count = count
    batch.hashes = <uint64_t*>malloc((count + 1) * sizeof(uint64_t))
    batch.order = <uint32_t*>malloc((count + 1) * sizeof(uint32_t))
    if batch.hashes == NULL or batch.order == NULL or count >> 32:
        batch_destroy(batch)
        return STATUS_OUT_OF_MEMORY
    memset(batch.starts, 0, sizeof(batch.starts))
    for i in range(count):
        batch.hashes[i] = hash_fid(fids[i])
        batch.starts[hash_shard(batch.hashes[i]) + 1] += 1
    total = 0
    for shard in range(SHARDS):
        next_place[shard] = total
        total += batch.starts[shard + 1]
        batch.starts[shard + 1] = total
    for i in range(count):
        shard = hash_shard(batch.hashes[i])
        batch.order[next_place[shard]] = <uint32_t>i
        next_place[shard] += 1
    return STATUS_OK


cdef void batch_destroy(Batch* batch) noexcept nogil:
    free(batch.hashes)
    free(batch.order)
    batch.hashes = NULL
    batch.order = NULL


cdef status_t unique_create(Unique* unique, const fid_t* fids, size_t count) noexcept nogil:
    """Number the distinct fids through a hash table of the batch, at most half full."""
    cdef size_t slots = 16
    cdef size_t i, slot
    cdef uint32_t entry
    cdef uint32_t* table
    while slots < 2 * count:
        slots *= 2
    memset(unique, 0, sizeof(Unique))
    table = <uint32_t*>calloc(slots, sizeof(uint32_t))     # entry + 1; 0 is an empty slot
    unique.fids = <fid_t*>malloc((count + 1) * sizeof(fid_t))
    unique.entries = <uint32_t*>malloc((count + 1) * sizeof(uint32_t))
    unique.firsts = <uint32_t*>malloc((count + 1) * sizeof(uint32_t))
    unique.counts = <uint32_t*>malloc((count + 1) * sizeof(uint32_t))
    if (table == NULL or unique.fids == NULL or unique.entries == NULL
            or unique.firsts == NULL or unique.counts == NULL):
        free(table)
        unique_destroy(unique)
        return STATUS_OUT_OF_MEMORY
    for i in range(count):
        slot = hash_fid(fids[i]) & (slots - 1)
        while table[slot] and unique.fids[table[slot] - 1] != fids[i]:
            slot = (slot + 1) & (slots - 1)
        if table[slot] == 0:
            entry = <uint32_t>unique.count
            unique.fids[entry] = fids[i]
            unique.firsts[entry] = <uint32_t>i
            unique.counts[entry] = 0
            unique.count += 1
            table[slot] = entry + 1
        entry = table[slot] - 1
        unique.entries[i] = entry
        unique.counts[entry] += 1
    free(table)
    return STATUS_OK


cdef void unique_destroy(Unique* unique) noexcept nogil:
    free(unique.fids)
    free(unique.entries)
    free(unique.firsts)
    free(unique.counts)
    memset(unique, 0, sizeof(Unique))


cdef status_t sums_create(
    Sums* sums, const Unique* unique, const float* gradients, size_t count, size_t dim
) noexcept nogil:
    """Sum the gradients of each fid in the order of the batch; a fid that is there once costs none.

    STATUS_NOT_FINITE if a sum overflows.
    """
    cdef size_t repeated = 0
    cdef size_t i, j
    cdef uint32_t entry
    cdef float* total
    cdef bint finite = True
    for i in range(unique.count):
        repeated += unique.counts[i] > 1
    sums.gradients = <const float**>malloc((unique.count + 1) * sizeof(float*))
    sums.buffer = <float*>malloc((repeated * dim + 1) * sizeof(float))
    if sums.gradients == NULL or sums.buffer == NULL:
        sums_destroy(sums)
        return STATUS_OUT_OF_MEMORY
    total = sums.buffer
    for i in range(unique.count):
        sums.gradients[i] = gradients + <size_t>unique.firsts[i] * dim
        if unique.counts[i] > 1:
            memcpy(total, sums.gradients[i], dim * sizeof(float))
            sums.gradients[i] = total
            total += dim
    for i in range(count if repeated else 0):
        entry = unique.entries[i]
        if unique.counts[entry] > 1 and unique.firsts[entry] != i:
            total = <float*>sums.gradients[entry]
            for j in range(dim):
                total[j] += gradients[i * dim + j]
    for i in range(repeated * dim):
        finite &= isfinite(sums.buffer[i])
    if not finite:
        sums_destroy(sums)
        return STATUS_NOT_FINITE
    return STATUS_OK


cdef void sums_destroy(Sums* sums) noexcept nogil:
    free(sums.gradients)
    free(sums.buffer)
    sums.gradients = NULL
    sums.buffer = NULL
