"""Pooled lookups. See _pooling.pxd."""

from libc.math cimport sqrtf
from libc.stdint cimport int64_t
from libc.string cimport memset

from monolith_kv._buffer cimport Buffer, buffer_note_u64
from monolith_kv._read cimport SHARE_IDS, Found, found_ask, shards_leave, shards_share, shared_find
from monolith_kv._shard cimport MKV_ADD64, Shard
from monolith_kv._types cimport STATUS_OK, fid_t, status_t

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
    cdef size_t stop
    cdef Found groups[2]
    cdef Found* current = &groups[0]
    cdef Found* coming = &groups[1]
    cdef status_t status = STATUS_OK
    cdef Bags bags
    bags.offsets = offsets
    bags.weights = weights
    bags.out = out
    bags.dim = shards[0].policy.dim
    bags.bag = 0
    memset(out, 0, count * bags.dim * sizeof(float))
    while start < end and status == STATUS_OK:
        stop = start + SHARE_IDS if end - start > SHARE_IDS else end
        current.count = 0
        shards_share(shards)
        while start < stop or current.count:
            shared_find(shards, fids, start, stop, coming)
            status |= shared_note(shards, current, cold)
            add_rows(current, coming, &bags)
            start += coming.count
            current, coming = coming, current
        shards_leave(shards)
    if combiner != POOL_SUM and status == STATUS_OK:
        bags_divide(offsets, count, combiner, out, bags.dim)
    return status


cdef status_t shared_note(Shard* shards, const Found* group, Buffer* cold) noexcept nogil:
    """Count a group's lookups and note what lies in overflow."""
    cdef size_t hits = 0
    cdef size_t i
    cdef status_t status = STATUS_OK
    for i in range(group.count):
        hits += group.cells[i] != NULL
        if group.rows[i] == NULL and group.cells[i] != NULL:
            status |= buffer_note_u64(cold, group.start + i)
    MKV_ADD64(&shards[0].counters.lookups, group.count)
    MKV_ADD64(&shards[0].counters.hits, hits)
    return status


cdef wide_void add_rows(const Found* group, const Found* coming, Bags* bags) noexcept nogil:
    """Add the rows of a group to their bags, in order."""
    cdef size_t dim = bags.dim
    cdef size_t position, i, j
    cdef float weight
    cdef float* total
    cdef const float* row
    for i in range(group.count, coming.count):
        found_ask(coming, i, dim)
    for i in range(group.count):
        found_ask(coming, i, dim)
        row = group.rows[i]
        if row == NULL:
            continue
        position = group.start + i
        while <size_t>bags.offsets[bags.bag + 1] <= position:
            bags.bag += 1
        total = bags.out + bags.bag * dim
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
