"""The first value of a row: a function of (key, fid, place in the row) and nothing else.

    base    = hash_mix(hash_fid(fid) ^ key)
    word[j] = hash_mix(base + (j + 1) * 0x9E3779B97F4A7C15)               modulo 2**64

    Zeros     0
    Constant  a
    Uniform   float32(a + (b - a) * u),      u = (word[j] >> 40) * 2**-24
    Normal    float32(a + b * (r * cos(t))) for even j, float32(a + b * (r * sin(t))) for odd j,
              r = sqrt(-2 ln(((word[k] >> 11) + 1) * 2**-53)), k being j rounded down to even,
              t = 2 pi * ((word[k + 1] >> 11) * 2**-53)

All in float64 up to the final float32 (Box and Muller 1958).
"""

from libc.stdint cimport uint64_t

from monolith_kv._types cimport fid_t

# On disk (in the schema): never renumber.
cdef enum:
    INITIALIZER_ZEROS = 0
    INITIALIZER_CONSTANT = 1
    INITIALIZER_UNIFORM = 2
    INITIALIZER_NORMAL = 3


cdef struct Initializer:
    int kind       # INITIALIZER_*
    float a        # value, low or mean
    float b        # high or standard deviation
    uint64_t key   # made of the seed and the names of table and slice


cdef void initializer_fill(
    const Initializer* initializer, fid_t fid, float* out, size_t dim
) noexcept nogil
