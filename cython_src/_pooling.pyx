"""Pooled lookups. See _pooling.pxd."""

from libc.math cimport sqrtf
from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from monolith_kv._batch cimport Batch, batch_create, batch_destroy
from monolith_kv._buffer cimport Buffer
from monolith_kv._read cimport shards_lookup
from monolith_kv._shard cimport Shard
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, status_t

cdef enum:
    CHUNK_IDS = 4096     # rows that are looked up together: they stay in the L2 cache


cdef status_t pool_bags(
    Shard* shards, const fid_t* fids, const int64_t* offsets, size_t bags, int combiner,
    const float* weights, float* out, Buffer* cold
) noexcept nogil:
    cdef size_t dim = shards[0].policy.dim
    cdef size_t start = offsets[0]
    cdef size_t end = offsets[bags]
    cdef size_t bag = 0
    cdef size_t stop
    cdef status_t status = STATUS_OK
    cdef float* rows = <float*>malloc(CHUNK_IDS * dim * sizeof(float))
    if rows == NULL:
        return STATUS_OUT_OF_MEMORY
    memset(out, 0, bags * dim * sizeof(float))
    while start < end and status == STATUS_OK:
        stop = start + CHUNK_IDS if end - start > CHUNK_IDS else end
        status = chunk_lookup(shards, fids + start, stop - start, start, rows, cold)
        if status == STATUS_OK:
            chunk_add(rows, start, stop, offsets, &bag, weights, out, dim)
        start = stop
    free(rows)
    if combiner != POOL_SUM and status == STATUS_OK:
        bags_divide(offsets, bags, combiner, out, dim)
    return status


cdef status_t chunk_lookup(
    Shard* shards, const fid_t* fids, size_t count, size_t start, float* rows, Buffer* cold
) noexcept nogil:
    cdef Batch batch
    cdef size_t i
    cdef size_t known = cold.count // sizeof(uint64_t)
    cdef status_t status = batch_create(&batch, fids, count)
    if status != STATUS_OK:
        return status
    status = shards_lookup(shards, &batch, rows, NULL, cold)
    batch_destroy(&batch)
    # Positions in the chunk become positions in the caller's ids.
    for i in range(known, cold.count // sizeof(uint64_t)):
        (<uint64_t*>cold.data)[i] += start
    return status


cdef void chunk_add(
    const float* rows, size_t start, size_t stop, const int64_t* offsets, size_t* bag,
    const float* weights, float* out, size_t dim
) noexcept nogil:
    """Add the rows of positions start..stop to their bags, in order."""
    cdef size_t position, j
    cdef float weight
    cdef float* total
    cdef const float* row
    for position in range(start, stop):
        while <size_t>offsets[bag[0] + 1] <= position:
            bag[0] += 1
        total = out + bag[0] * dim
        row = rows + (position - start) * dim
        if weights == NULL:
            for j in range(dim):
                total[j] += row[j]
        else:
            weight = weights[position]
            for j in range(dim):
                total[j] += weight * row[j]


cdef void bags_divide(
    const int64_t* offsets, size_t bags, int combiner, float* out, size_t dim
) noexcept nogil:
    cdef size_t bag, j
    cdef float divisor
    for bag in range(bags):
        divisor = <float>(offsets[bag + 1] - offsets[bag])
        if divisor < 2:
            continue
        if combiner == POOL_SQRTN:
            divisor = sqrtf(divisor)
        for j in range(dim):
            out[bag * dim + j] /= divisor
