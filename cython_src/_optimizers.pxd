"""One optimizer step for each of many rows: a kernel per optimizer, the loop over rows inside it.

Element by element in float32, in the order of operations that monolith_kv.optimizers documents,
never fused: kernels equal their NumPy formula.
"""

# On disk (in the schema): never renumber.
cdef enum:
    OPTIMIZER_SGD = 0
    OPTIMIZER_MOMENTUM = 1
    OPTIMIZER_ADAGRAD = 2
    OPTIMIZER_ROWWISE_ADAGRAD = 3
    OPTIMIZER_RMSPROP = 4
    OPTIMIZER_ADAM = 5
    OPTIMIZER_FTRL = 6
    OPTIMIZER_KINDS = 7


cdef struct OptimizerParameters:
    int kind          # OPTIMIZER_*
    float values[8]   # hyper-parameters in the order of hyper() of the Python class


cdef struct SliceSpan:
    # All in floats.
    size_t dim                # width of the slice
    size_t embedding_offset   # where it begins in a row's embedding, and in a gradient
    size_t state_offset       # where its state begins in a row's state part


# embeddings[i], states[i]: the first float of row i's embedding and state part (states is not read
# for SGD); gradients[i]: its gradient over the whole embedding. Rows must not overlap.
ctypedef void (*optimizer_kernel_t)(
    const OptimizerParameters* p,
    const SliceSpan* span,
    float** embeddings,
    float** states,
    const float** gradients,
    size_t rows,
) noexcept nogil

# NULL if there is no such kind.
cdef optimizer_kernel_t optimizer_kernel(int kind) noexcept nogil

# Floats of state that one row keeps for a slice of width `dim`.
cdef size_t optimizer_state_floats(int kind, size_t dim) noexcept nogil

# Fill the state of a new row; `state` is the slice's own part.
cdef void optimizer_initial_state(
    const OptimizerParameters* p, float* state, size_t dim
) noexcept nogil
