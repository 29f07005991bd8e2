"""Initial values; the formulas are in the .pxd and are part of what a store promises."""

from libc.math cimport cos, log, sin, sqrt
from libc.stdint cimport uint64_t

from monolith_kv._hashing cimport hash_fid, hash_mix
from monolith_kv._types cimport fid_t

cdef double TWO_PI = 6.283185307179586
cdef double UNIT_24 = 1.0 / 16777216.0            # 2**-24: exact in float32
cdef double UNIT_53 = 1.0 / 9007199254740992.0    # 2**-53


cdef void initializer_fill(
    const Initializer* initializer, fid_t fid, float* out, size_t dim
) noexcept nogil:
    cdef uint64_t base = hash_mix(hash_fid(fid) ^ initializer.key)
    cdef float value = 0.0
    cdef size_t j
    if initializer.kind == INITIALIZER_UNIFORM:
        fill_uniform(initializer, base, out, dim)
        return
    if initializer.kind == INITIALIZER_NORMAL:
        fill_normal(initializer, base, out, dim)
        return
    if initializer.kind == INITIALIZER_CONSTANT:
        value = initializer.a
    for j in range(dim):
        out[j] = value


cdef inline uint64_t draw_word(uint64_t base, size_t j) noexcept nogil:
    return hash_mix(base + <uint64_t>(j + 1) * <uint64_t>0x9E3779B97F4A7C15ULL)


cdef void fill_uniform(
    const Initializer* initializer, uint64_t base, float* out, size_t dim
) noexcept nogil:
    cdef double low = initializer.a
    cdef double span = <double>initializer.b - low
    cdef size_t j
    for j in range(dim):
        out[j] = <float>(low + span * (<double>(draw_word(base, j) >> 40) * UNIT_24))


cdef void fill_normal(
    const Initializer* initializer, uint64_t base, float* out, size_t dim
) noexcept nogil:
    cdef double mean = initializer.a
    cdef double deviation = initializer.b
    cdef double radius, angle
    cdef size_t j = 0
    while j < dim:
        # One is added so that the logarithm is never of 0.
        radius = sqrt(-2.0 * log(<double>((draw_word(base, j) >> 11) + 1) * UNIT_53))
        angle = TWO_PI * (<double>(draw_word(base, j + 1) >> 11) * UNIT_53)
        out[j] = <float>(mean + deviation * (radius * cos(angle)))
        if j + 1 < dim:
            out[j + 1] = <float>(mean + deviation * (radius * sin(angle)))
        j += 2
