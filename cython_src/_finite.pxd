"""Has an array of floats neither NaN nor infinity?"""

cdef bint floats_finite(const float* values, size_t count) noexcept nogil
