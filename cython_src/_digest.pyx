"""Row digests: NH (Black et al. 1999, UMAC) over the embedding, then mixed with the id.

NH pairs the 32-bit words of the first half with those of the second, adds a key word to each and
sums the 64-bit products: two different rows agree once in 2**32, whatever they hold. Two passes
with distinct keys make that 2**64. The keys are fixed, for a digest is compared across machines.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._hashing cimport hash_fid, hash_mix
from monolith_kv._types cimport fid_t

cdef extern from *:
    """
    /* Floats read as words: the attribute makes that legal. */
    typedef uint32_t __attribute__((__may_alias__)) digest_word_t;
    """
    ctypedef uint32_t digest_word_t

cdef uint32_t LOW_KEYS[DIGEST_DIM_MAX + 2]
cdef uint32_t HIGH_KEYS[DIGEST_DIM_MAX + 2]


cdef void digest_make_keys() noexcept nogil:
    """Draw the key words with SplitMix64. Part of what a digest means: never change."""
    cdef uint64_t state = 0
    cdef uint64_t word
    cdef size_t i
    for i in range(DIGEST_DIM_MAX + 2):
        state += <uint64_t>0x9E3779B97F4A7C15ULL
        word = hash_mix(state)
        LOW_KEYS[i] = <uint32_t>word
        HIGH_KEYS[i] = <uint32_t>(word >> 32)


digest_make_keys()


cdef RowDigest digest_row(fid_t fid, const float* embedding, size_t dim) noexcept nogil:
    cdef const digest_word_t* first = <const digest_word_t*>embedding
    cdef size_t half = dim // 2
    cdef const digest_word_t* second = first + half
    cdef uint64_t low = 0
    cdef uint64_t high = 0
    cdef uint64_t mixed = hash_fid(fid)
    cdef uint32_t a, b
    cdef RowDigest digest
    cdef size_t i
    for i in range(half):
        a = first[i]
        b = second[i]
        low += <uint64_t>(a + LOW_KEYS[i]) * <uint64_t>(b + LOW_KEYS[half + i])
        high += <uint64_t>(a + HIGH_KEYS[i]) * <uint64_t>(b + HIGH_KEYS[half + i])
    if dim % 2:
        # The odd word out, the last, is paired with a zero.
        a = first[dim - 1]
        low += <uint64_t>(a + LOW_KEYS[dim - 1]) * <uint64_t>LOW_KEYS[dim]
        high += <uint64_t>(a + HIGH_KEYS[dim - 1]) * <uint64_t>HIGH_KEYS[dim]
    digest.low = hash_mix(low ^ mixed)
    digest.high = hash_mix(high + mixed * <uint64_t>0x9FB21C651E98DF25ULL)
    return digest
