"""What the memory allows: the C loops that the benchmarks hold the engine against.

Each does the work of one call on rows of a plain array whose positions are known: no hashing, no
index, no locks. Rows are asked for a chunk ahead. Chunk and prefetch are the fastest of those tried
(chunks of 32 to 1,024; every hint), so that the limit is one. Nothing that is shipped imports this.
"""

from libc.stdint cimport int64_t
from libc.string cimport memcpy, memset

from monolith_kv._optimizers cimport (
    OPTIMIZER_ADAGRAD,
    OptimizerParameters,
    SliceSpan,
    optimizer_kernel,
)

cdef extern from "prefetch.h":
    void MKV_PREFETCH_ONCE(const void* address) noexcept nogil

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)
    int PROT_READ
    int PROT_WRITE
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    void* MAP_FAILED

cdef enum:
    CHUNK = 64
    LINE_FLOATS = 16


cdef inline void prefetch_row(const float* row, size_t dim) noexcept nogil:
    cdef size_t j = 0
    while j < dim:
        MKV_PREFETCH_ONCE(row + j)
        j += LINE_FLOATS


def copy_rows(const float[:, ::1] rows, const int64_t[::1] positions, float[:, ::1] out):
    """Copy rows[positions] into `out`: the limit of a lookup."""
    cdef size_t count = positions.shape[0]
    cdef size_t dim = rows.shape[1]
    cdef size_t start = 0
    cdef size_t stop, i
    with nogil:
        while start < count:
            stop = start + CHUNK if count - start > CHUNK else count
            for i in range(start, stop):
                prefetch_row(&rows[positions[i], 0], dim)
            for i in range(start, stop):
                memcpy(&out[i, 0], &rows[positions[i], 0], dim * sizeof(float))
            start = stop


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
    cdef OptimizerParameters parameters
    cdef SliceSpan span
    cdef float* embeddings[CHUNK]
    cdef float* states[CHUNK]
    cdef const float* steps[CHUNK]
    cdef size_t count = positions.shape[0]
    cdef size_t dim = rows.shape[1]
    cdef size_t start = 0
    cdef size_t members, i
    memset(&parameters, 0, sizeof(parameters))
    memset(&span, 0, sizeof(span))
    parameters.kind = OPTIMIZER_ADAGRAD
    parameters.values[0] = lr
    span.dim = dim
    with nogil:
        while start < count:
            members = CHUNK if count - start > CHUNK else count - start
            for i in range(members):
                embeddings[i] = &rows[positions[start + i], 0]
                states[i] = &accumulators[positions[start + i], 0]
                steps[i] = &gradients[start + i, 0]
                prefetch_row(embeddings[i], dim)
                prefetch_row(states[i], dim)
            optimizer_kernel(OPTIMIZER_ADAGRAD)(
                &parameters, &span, embeddings, states, steps, members)
            start += members


def first_touch(size_t size_bytes):
    """Map memory, write all of it for the first time, and unmap it: the limit of growth."""
    cdef void* base
    cdef bint failed
    with nogil:
        base = mmap(
            NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
        failed = base == MAP_FAILED
        if not failed:
            memset(base, 1, size_bytes)
            munmap(base, size_bytes)
    if failed:
        raise MemoryError(f"no memory for {size_bytes} bytes")
