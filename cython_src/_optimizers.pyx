"""The seven kernels. State lies in a row in the order given at each kernel.

Constants are made float32 before the loops: one double among the operands and the compiler would
widen all of them. Nothing in the inner loops branches, so that they vectorise.
"""

from libc.math cimport fabsf, powf, sqrtf

cdef extern from "dispatch.h":
    # Returns nothing, and is compiled for several widths of vectors.
    ctypedef void wide_void "MKV_WIDE void"

cdef enum:
    MEAN_LANES = 8   # RowWiseAdagrad adds squares in as many partial sums: the loop vectorises.


cdef optimizer_kernel_t optimizer_kernel(int kind) noexcept nogil:
    if kind == OPTIMIZER_SGD:
        return step_sgd
    if kind == OPTIMIZER_MOMENTUM:
        return step_momentum
    if kind == OPTIMIZER_ADAGRAD:
        return step_adagrad
    if kind == OPTIMIZER_ROWWISE_ADAGRAD:
        return step_rowwise_adagrad
    if kind == OPTIMIZER_RMSPROP:
        return step_rmsprop
    if kind == OPTIMIZER_ADAM:
        return step_adam
    if kind == OPTIMIZER_FTRL:
        return step_ftrl
    return NULL


cdef size_t optimizer_state_floats(int kind, size_t dim) noexcept nogil:
    if kind == OPTIMIZER_SGD:
        return 0
    if kind == OPTIMIZER_ROWWISE_ADAGRAD:
        return 1
    if kind == OPTIMIZER_ADAM:
        return 1 + 2 * dim
    if kind == OPTIMIZER_FTRL:
        return 2 * dim
    return dim


cdef void optimizer_initial_state(
    const OptimizerParameters* p, float* state, size_t dim
) noexcept nogil:
    cdef float value = 0.0
    cdef size_t j
    if p.kind == OPTIMIZER_ADAGRAD or p.kind == OPTIMIZER_ROWWISE_ADAGRAD:
        value = p.values[1]   # initial_accumulator
    for j in range(optimizer_state_floats(p.kind, dim)):
        state[j] = value


cdef wide_void step_sgd(
    const OptimizerParameters* p, const SliceSpan* span,
    float** embeddings, float** states, const float** gradients, size_t rows,
) noexcept nogil:
    cdef float lr = p.values[0]
    cdef size_t dim = span.dim
    cdef float* w
    cdef const float* g
    cdef size_t i, j
    for i in range(rows):
        w = embeddings[i] + span.embedding_offset
        g = gradients[i] + span.embedding_offset
        for j in range(dim):
            w[j] = w[j] - lr * g[j]


cdef wide_void step_momentum(
    const OptimizerParameters* p, const SliceSpan* span,
    float** embeddings, float** states, const float** gradients, size_t rows,
) noexcept nogil:
    cdef float lr = p.values[0]
    cdef float mu = p.values[1]
    cdef size_t dim = span.dim
    cdef float* w
    cdef float* momentum
    cdef const float* g
    cdef size_t i, j
    for i in range(rows):
        w = embeddings[i] + span.embedding_offset
        momentum = states[i] + span.state_offset
        g = gradients[i] + span.embedding_offset
        for j in range(dim):
            momentum[j] = mu * momentum[j] + g[j]
            w[j] = w[j] - lr * momentum[j]


cdef wide_void step_adagrad(
    const OptimizerParameters* p, const SliceSpan* span,
    float** embeddings, float** states, const float** gradients, size_t rows,
) noexcept nogil:
    cdef float lr = p.values[0]
    cdef float decay = p.values[2]
    cdef size_t dim = span.dim
    cdef float* w
    cdef float* accumulator
    cdef const float* g
    cdef float step
    cdef size_t i, j
    for i in range(rows):
        w = embeddings[i] + span.embedding_offset
        accumulator = states[i] + span.state_offset
        g = gradients[i] + span.embedding_offset
        for j in range(dim):
            step = g[j] + decay * w[j]
            accumulator[j] = accumulator[j] + step * step
            w[j] = w[j] - lr * step / sqrtf(accumulator[j])


cdef inline float mean_square(const float* g, size_t dim) noexcept nogil:
    """Mean of the float32 squares. Added in float64, so that the order of adding hardly matters."""
    cdef double lanes[MEAN_LANES]
    cdef double total = 0.0
    cdef size_t _block, k
    for k in range(MEAN_LANES):
        lanes[k] = 0.0
    for _block in range(dim // MEAN_LANES):
        for k in range(MEAN_LANES):
            lanes[k] += g[k] * g[k]
        g += MEAN_LANES
    for k in range(dim % MEAN_LANES):
        lanes[k] += g[k] * g[k]
    for k in range(MEAN_LANES):
        total += lanes[k]
    return <float>(total / <double>dim)


cdef wide_void step_rowwise_adagrad(
    const OptimizerParameters* p, const SliceSpan* span,
    float** embeddings, float** states, const float** gradients, size_t rows,
) noexcept nogil:
    cdef float lr = p.values[0]
    cdef size_t dim = span.dim
    cdef float* w
    cdef float* accumulator
    cdef const float* g
    cdef float root
    cdef size_t i, j
    for i in range(rows):
        w = embeddings[i] + span.embedding_offset
        accumulator = states[i] + span.state_offset
        g = gradients[i] + span.embedding_offset
        accumulator[0] = accumulator[0] + mean_square(g, dim)
        root = sqrtf(accumulator[0])
        for j in range(dim):
            w[j] = w[j] - lr * g[j] / root


cdef wide_void step_rmsprop(
    const OptimizerParameters* p, const SliceSpan* span,
    float** embeddings, float** states, const float** gradients, size_t rows,
) noexcept nogil:
    cdef float lr = p.values[0]
    cdef float decay = p.values[1]
    cdef float fresh = <float>1.0 - decay
    cdef float epsilon = p.values[2]
    cdef size_t dim = span.dim
    cdef float* w
    cdef float* square
    cdef const float* g
    cdef size_t i, j
    for i in range(rows):
        w = embeddings[i] + span.embedding_offset
        square = states[i] + span.state_offset
        g = gradients[i] + span.embedding_offset
        for j in range(dim):
            square[j] = decay * square[j] + fresh * g[j] * g[j]
            w[j] = w[j] - lr * g[j] / (sqrtf(square[j]) + epsilon)


cdef inline double power_of(double base, float exponent) noexcept nogil:
    """base ** exponent for a whole exponent, by squaring: libm's pow() differs between machines."""
    cdef unsigned long left = <unsigned long>exponent
    cdef double power = 1.0
    while left:
        if left & 1:
            power *= base
        base *= base
        left >>= 1
    return power


cdef wide_void step_adam(
    const OptimizerParameters* p, const SliceSpan* span,
    float** embeddings, float** states, const float** gradients, size_t rows,
) noexcept nogil:
    # State: step, m of dim, v of dim. The step stands still at 2**24, long after it matters.
    cdef float lr = p.values[0]
    cdef float beta1 = p.values[1]
    cdef float beta2 = p.values[2]
    cdef float fresh1 = <float>1.0 - beta1
    cdef float fresh2 = <float>1.0 - beta2
    cdef float epsilon = p.values[3]
    cdef float decay = p.values[4]
    cdef size_t dim = span.dim
    cdef float* w
    cdef float* state
    cdef float* m
    cdef float* v
    cdef const float* g
    cdef float correction1, correction2
    cdef size_t i, j
    for i in range(rows):
        w = embeddings[i] + span.embedding_offset
        g = gradients[i] + span.embedding_offset
        state = states[i] + span.state_offset
        m = state + 1
        v = m + dim
        state[0] = state[0] + <float>1.0
        correction1 = <float>(1.0 - power_of(beta1, state[0]))
        correction2 = <float>(1.0 - power_of(beta2, state[0]))
        for j in range(dim):
            m[j] = beta1 * m[j] + fresh1 * g[j]
            v[j] = beta2 * v[j] + fresh2 * g[j] * g[j]
            w[j] = w[j] - lr * (
                m[j] / correction1 / (sqrtf(v[j] / correction2) + epsilon) + decay * w[j]
            )


cdef inline float ftrl_weight(
    float z, float root, float lr, float l1, float l2, float beta
) noexcept nogil:
    # copysign-free: z - sign(z) l1 is z -+ l1, and 0 is never reached with |z| > l1.
    cdef float shrunk = z - l1 if z > 0 else z + l1
    cdef float weight = -shrunk / ((beta + root) / lr + l2)
    return weight if fabsf(z) > l1 else <float>0.0


cdef wide_void step_ftrl(
    const OptimizerParameters* p, const SliceSpan* span,
    float** embeddings, float** states, const float** gradients, size_t rows,
) noexcept nogil:
    # State: z of dim, n of dim. "root" is n ** -lr_power, the square root by default.
    cdef float lr = p.values[0]
    cdef float l1 = p.values[1]
    cdef float l2 = p.values[2]
    cdef float beta = p.values[3]
    cdef float power = -p.values[4]
    cdef bint is_root = power == <float>0.5
    cdef size_t dim = span.dim
    cdef float* w
    cdef float* z
    cdef float* n
    cdef const float* g
    cdef float root
    cdef size_t i, j
    for i in range(rows):
        w = embeddings[i] + span.embedding_offset
        g = gradients[i] + span.embedding_offset
        z = states[i] + span.state_offset
        n = z + dim
        if is_root:
            for j in range(dim):
                root = sqrtf(n[j] + g[j] * g[j])
                z[j] = z[j] + g[j] - (root - sqrtf(n[j])) / lr * w[j]
                n[j] = n[j] + g[j] * g[j]
                w[j] = ftrl_weight(z[j], root, lr, l1, l2, beta)
        else:
            for j in range(dim):
                root = powf(n[j] + g[j] * g[j], power)
                z[j] = z[j] + g[j] - (root - powf(n[j], power)) / lr * w[j]
                n[j] = n[j] + g[j] * g[j]
                w[j] = ftrl_weight(z[j], root, lr, l1, l2, beta)
