"""Pooled lookups. See _pooling.pxd."""

from libc.math cimport sqrtf
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from monolith_kv._arena cimport arena_embedding, arena_header
from monolith_kv._buffer cimport Buffer, buffer_append_u64, buffer_reserve
from monolith_kv._cuckoo cimport FIND_GROUP, cuckoo_find
from monolith_kv._hashing cimport SHARDS, hash_fid, hash_shard
from monolith_kv._lock cimport lock_leave, lock_shared
from monolith_kv._row cimport row_is_cold
from monolith_kv._shard cimport MKV_ADD64, Shard, floats_prefetch, header_warm
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, row_t, status_t

cdef extern from "dispatch.h":
    # Returns nothing, and is compiled for several widths of vectors.
    ctypedef void wide_void "MKV_WIDE void"


cdef struct Bags:
    # Where the adding is: positions come in order, so that sums are the same each time.
    const int64_t* offsets
    const float* weights
    float* out
    size_t dim
    size_t bag


cdef status_t pool_bags(
    Shard* shards, const fid_t* fids, const int64_t* offsets, size_t count, int combiner,
    const float* weights, float* out, Buffer* cold
) noexcept nogil:
    cdef size_t start = offsets[0]
    cdef size_t end = offsets[count]
    cdef size_t stop, number
    cdef status_t status = STATUS_OK
    cdef Bags bags
    bags.offsets = offsets
    bags.weights = weights
    bags.out = out
    bags.dim = shards[0].policy.dim
    bags.bag = 0
    memset(out, 0, count * bags.dim * sizeof(float))
    while start < end and status == STATUS_OK:
        stop = start + FIND_GROUP if end - start > FIND_GROUP else end
        # Rows of all shards are added in the order of the ids: all are held for one group.
        for number in range(SHARDS):
            lock_shared(&shards[number].lock)
        status = shared_pool(shards, fids, start, stop, &bags, cold)
        for number in range(SHARDS):
            lock_leave(&shards[number].lock)
        start = stop
    if combiner != POOL_SUM and status == STATUS_OK:
        bags_divide(offsets, count, combiner, out, bags.dim)
    return status


cdef status_t shared_pool(
    Shard* shards, const fid_t* fids, size_t start, size_t stop, Bags* bags, Buffer* cold
) noexcept nogil:
    """Find the rows of one group, then add them to their bags."""
    cdef uint64_t hashes[FIND_GROUP]
    cdef row_t* cells[FIND_GROUP]
    cdef const float* rows[FIND_GROUP]
    cdef size_t count = stop - start
    cdef size_t hits = 0
    cdef size_t i
    cdef Shard* shard
    for i in range(count):
        hashes[i] = hash_fid(fids[start + i])
    cuckoo_find(
        &shards[0].index, <char*>&shards[1] - <char*>&shards[0], fids + start, hashes, count, cells)
    for i in range(count):
        rows[i] = NULL
        if cells[i] == NULL:
            continue
        hits += 1
        shard = &shards[hash_shard(hashes[i])]
        if row_is_cold(cells[i][0]):
            if buffer_reserve(cold, sizeof(uint64_t)) != STATUS_OK:
                return STATUS_OUT_OF_MEMORY
            buffer_append_u64(cold, start + i)
            continue
        rows[i] = arena_embedding(&shard.arena, cells[i][0])
        floats_prefetch(rows[i], bags.dim)
        if shard.policy.counts_heat:
            header_warm(arena_header(&shard.arena, cells[i][0]))
    add_rows(rows, start, stop, bags)
    MKV_ADD64(&shards[0].counters.lookups, count)
    MKV_ADD64(&shards[0].counters.hits, hits)
    return STATUS_OK


cdef wide_void add_rows(
    const float** rows, size_t start, size_t stop, Bags* bags
) noexcept nogil:
    """Add rows[0], that of position `start`, and those that follow to their bags, in order."""
    cdef size_t dim = bags.dim
    cdef size_t position, j
    cdef float weight
    cdef float* total
    cdef const float* row
    for position in range(start, stop):
        while <size_t>bags.offsets[bags.bag + 1] <= position:
            bags.bag += 1
        total = bags.out + bags.bag * dim
        row = rows[position - start]
        if row == NULL:
            continue
        if bags.weights == NULL:
            for j in range(dim):
                total[j] += row[j]
        else:
            weight = bags.weights[position]
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
