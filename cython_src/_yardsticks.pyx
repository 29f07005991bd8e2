"""What the memory allows: the C loops that the benchmarks hold the engine against.

Each does the work of one call on rows of a plain array whose positions are known: no hashing, no
index, no locks. How rows are asked for is a matter of the machine: for copies that is tried out on
the spot (tools/bench/reads.py), the others do as the engine does. Only the benchmarks import this.
"""

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from monolith_kv._optimizers cimport (
    OPTIMIZER_ADAGRAD,
    OptimizerParameters,
    SliceSpan,
    optimizer_kernel,
)

cdef extern from "prefetch.h":
    void MKV_PREFETCH(const void* address) noexcept nogil
    void MKV_PREFETCH_ONCE(const void* address) noexcept nogil

cdef enum:
    CHUNK = 64
    LINE_FLOATS = 16


cdef inline void prefetch_row(const float* row, size_t dim, bint is_once) noexcept nogil:
    cdef size_t j = 0
    while j < dim:
        if is_once:
            MKV_PREFETCH_ONCE(row + j)
        else:
            MKV_PREFETCH(row + j)
        j += LINE_FLOATS


def copy_rows(
    const float[:, ::1] rows, const int64_t[::1] positions, float[:, ::1] out,
    size_t ahead=32, bint is_once=False
):
    """Copy rows[positions] to `out`, each asked for `ahead` rows before: the limit of a lookup."""
    cdef size_t count = positions.shape[0]
    cdef size_t dim = rows.shape[1]
    cdef size_t i
    with nogil:
        for i in range(ahead if ahead < count else count):
            prefetch_row(&rows[positions[i], 0], dim, is_once)
        for i in range(count):
            if i + ahead < count:
                prefetch_row(&rows[positions[i + ahead], 0], dim, is_once)
            memcpy(&out[i, 0], &rows[positions[i], 0], dim * sizeof(float))


def scatter_rows(float[:, ::1] rows, const int64_t[::1] positions, const float[:, ::1] values):
    """Set rows[positions] to `values`: the limit of an upsert."""
    cdef size_t count = positions.shape[0]
    cdef size_t dim = rows.shape[1]
    cdef size_t i
    with nogil:
        for i in range(count):
            memcpy(&rows[positions[i], 0], &values[i, 0], dim * sizeof(float))


def step_rows(
    float[:, ::1] rows, float[:, ::1] accumulators, const int64_t[::1] positions,
    const float[:, ::1] gradients, float lr
):
    """One Adagrad step for rows[positions], which are distinct: the limit of a push."""
    cdef size_t count = positions.shape[0]
    cdef size_t start = 0
    cdef size_t members, i
    cdef const float* steps[CHUNK]
    with nogil:
        while start < count:
            members = CHUNK if count - start > CHUNK else count - start
            for i in range(members):
                steps[i] = &gradients[start + i, 0]
            step_chunk(rows, accumulators, &positions[start], steps, members, lr)
            start += members


def step_sums(
    float[:, ::1] rows, float[:, ::1] accumulators, const int64_t[::1] positions,
    const int64_t[::1] starts, const int64_t[::1] order, const float[:, ::1] gradients, float lr
):
    """Sum gradients, one step for each sum: the limit of a push of a batch with repetitions.

    That of rows[positions[i]] is the sum of gradients[order[starts[i]:starts[i + 1]]].
    """
    cdef size_t count = positions.shape[0]
    cdef size_t dim = rows.shape[1]
    cdef size_t start = 0
    cdef size_t members, i, j
    cdef int64_t each
    cdef const float* steps[CHUNK]
    cdef float* sums = <float*>malloc(CHUNK * dim * sizeof(float))
    if sums == NULL:
        raise MemoryError("no memory for the sums of a chunk")
    with nogil:
        while start < count:
            members = CHUNK if count - start > CHUNK else count - start
            for i in range(members):
                each = starts[start + i]
                steps[i] = &gradients[order[each], 0]
                if starts[start + i + 1] > each + 1:
                    memcpy(&sums[i * dim], steps[i], dim * sizeof(float))
                    steps[i] = &sums[i * dim]
                    for each in range(starts[start + i] + 1, starts[start + i + 1]):
                        for j in range(dim):
                            sums[i * dim + j] += gradients[order[each], j]
            step_chunk(rows, accumulators, &positions[start], steps, members, lr)
            start += members
    free(sums)


cdef void step_chunk(
    float[:, ::1] rows, float[:, ::1] accumulators, const int64_t* positions,
    const float** steps, size_t members, float lr
) noexcept nogil:
    """One step for each of a chunk of rows."""
    cdef OptimizerParameters parameters
    cdef SliceSpan span
    cdef float* embeddings[CHUNK]
    cdef float* states[CHUNK]
    cdef size_t dim = rows.shape[1]
    cdef size_t i
    memset(&parameters, 0, sizeof(parameters))
    memset(&span, 0, sizeof(span))
    parameters.kind = OPTIMIZER_ADAGRAD
    parameters.values[0] = lr
    span.dim = dim
    for i in range(members):
        embeddings[i] = &rows[positions[i], 0]
        states[i] = &accumulators[positions[i], 0]
        prefetch_row(embeddings[i], dim, False)
        prefetch_row(states[i], dim, False)
    optimizer_kernel(OPTIMIZER_ADAGRAD)(&parameters, &span, embeddings, states, steps, members)
