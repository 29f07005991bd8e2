"""Pooled lookups. See _pooling.pxd."""

from libc.math cimport sqrtf
from libc.stdint cimport int64_t, uint64_t
from libc.string cimport memset

from monolith_kv._arena cimport arena_embedding, arena_header
from monolith_kv._buffer cimport Buffer, buffer_append_u64, buffer_reserve
from monolith_kv._finder cimport (
    RING,
    Finder,
    Finding,
    finder_ahead,
    finder_ask,
    finder_at,
    finder_look,
    finder_look_again,
)
from monolith_kv._hashing cimport SHARDS, hash_fid, hash_shard
from monolith_kv._lock cimport lock_leave, lock_shared
from monolith_kv._row cimport row_is_cold
from monolith_kv._shard cimport MKV_ADD64, Shard, floats_prefetch, header_warm
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, fid_t, row_t, status_t

cdef extern from "dispatch.h":
    # Returns nothing, and is compiled for several widths of vectors.
    ctypedef void wide_void "MKV_WIDE void"


cdef enum:
    STEP_IDS = 2048    # whoever changes rows is let in after each


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
        stop = start + STEP_IDS if end - start > STEP_IDS else end
        # Rows of all shards are added in the order of the ids: all are held for one step.
        for number in range(SHARDS):
            lock_shared(&shards[number].lock)
        status = shared_pool(shards, fids, start, stop, &bags, cold)
        for number in range(SHARDS):
            lock_leave(&shards[number].lock)
        start = stop
    if combiner != POOL_SUM and status == STATUS_OK:
        bags_divide(offsets, count, combiner, out, bags.dim)
    return status


cdef inline const float* row_of(Shard* shard, const row_t* cell) noexcept nogil:
    """Where a row lies, asked for; NULL if it is not in memory."""
    cdef const float* row
    if cell == NULL or row_is_cold(cell[0]):
        return NULL
    row = arena_embedding(&shard.arena, cell[0])
    floats_prefetch(row, shard.policy.dim)
    if shard.policy.counts_heat:
        header_warm(arena_header(&shard.arena, cell[0]))
    return row


cdef status_t shared_pool(
    Shard* shards, const fid_t* fids, size_t start, size_t stop, Bags* bags, Buffer* cold
) noexcept nogil:
    """Add the rows of positions start..stop to their bags, in order."""
    cdef const float* rows[RING]
    cdef size_t count = stop - start
    cdef size_t ahead = finder_ahead(bags.dim * sizeof(float))
    cdef size_t hits = 0
    cdef size_t i, k
    cdef Finding* found
    cdef Finder finder
    finder.first = &shards[0].index
    finder.stride = <char*>&shards[1] - <char*>&shards[0]
    for k in range(count + 3 * ahead):
        if k < count:
            finder_ask(&finder, k, fids[start + k], hash_fid(fids[start + k]))
        i = k - ahead
        if k >= ahead and i < count:
            found = finder_look(&finder, i)
            rows[i % RING] = row_of(&shards[hash_shard(found.hashed)], found.cell)
        i = k - 2 * ahead
        if k >= 2 * ahead and i < count and finder_at(&finder, i).cell == NULL:
            found = finder_look_again(&finder, i)
            rows[i % RING] = row_of(&shards[hash_shard(found.hashed)], found.cell)
        if k < 3 * ahead:
            continue
        i = k - 3 * ahead
        found = finder_at(&finder, i)
        hits += found.cell != NULL
        if rows[i % RING] != NULL:
            add_row(rows[i % RING], start + i, bags)
        elif found.cell != NULL:
            if buffer_reserve(cold, sizeof(uint64_t)) != STATUS_OK:
                return STATUS_OUT_OF_MEMORY
            buffer_append_u64(cold, start + i)
    MKV_ADD64(&shards[0].counters.lookups, count)
    MKV_ADD64(&shards[0].counters.hits, hits)
    return STATUS_OK


cdef inline void add_row(const float* row, size_t position, Bags* bags) noexcept nogil:
    cdef float* total
    while <size_t>bags.offsets[bags.bag + 1] <= position:
        bags.bag += 1
    total = bags.out + bags.bag * bags.dim
    if bags.weights == NULL:
        floats_add(total, row, bags.dim)
    else:
        floats_add_times(total, row, bags.weights[position], bags.dim)


cdef wide_void floats_add(float* total, const float* row, size_t dim) noexcept nogil:
    cdef size_t j
    for j in range(dim):
        total[j] += row[j]


cdef wide_void floats_add_times(
    float* total, const float* row, float weight, size_t dim
) noexcept nogil:
    cdef size_t j
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
