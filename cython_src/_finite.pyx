"""Has an array of floats neither NaN nor infinity? See _finite.pxd."""

from libc.stdint cimport uint32_t

cdef extern from "dispatch.h":
    # Returns nothing, and is compiled for several widths of vectors.
    ctypedef void wide_void "MKV_WIDE void"

cdef extern from *:
    """
    /* Floats read as words: the attribute makes that legal. */
    typedef uint32_t __attribute__((__may_alias__)) finite_word_t;
    """
    ctypedef uint32_t finite_word_t

cdef enum:
    EXPONENT = 0x7F800000    # all of its bits are set in NaN and infinity, and in nothing else
    BLOCK = 4096             # words between two looks at what was found


cdef wide_void words_not_finite(
    const finite_word_t* words, size_t count, uint32_t* found
) noexcept nogil:
    cdef uint32_t some = 0
    cdef size_t i
    for i in range(count):
        some |= (words[i] & <uint32_t>EXPONENT) == <uint32_t>EXPONENT
    found[0] = some


cdef bint floats_finite(const float* values, size_t count) noexcept nogil:
    cdef const finite_word_t* words = <const finite_word_t*>values
    cdef size_t left = count
    cdef uint32_t found = 0
    while left and not found:
        count = left if left < BLOCK else BLOCK
        words_not_finite(words, count, &found)
        words += count
        left -= count
    return found == 0


def is_finite(const float[::1] values):
    """True if there is neither NaN nor infinity."""
    return values.shape[0] == 0 or floats_finite(&values[0], values.shape[0])
