"""Mix a fid; derive its shard and its two buckets. All inline.

One mix serves everything. It is a bijection, so distinct fids have distinct hashes, and it is the
same in every store, so that the admission sketches of several stores can be added up. What an
attacker could aim at, the buckets, is drawn with a secret odd multiplier of the index segment.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._types cimport fid_t

cdef enum:
    SHARD_BITS = 3
    SHARDS = 8     # On disk (the sketch is kept by shard): never change.


cdef inline uint64_t hash_mix(uint64_t x) noexcept nogil:
    """Finaliser of SplitMix64, variant 13 (Stafford 2011): each bit in reaches each bit out."""
    x ^= x >> 30
    x *= <uint64_t>0xBF58476D1CE4E5B9ULL
    x ^= x >> 27
    x *= <uint64_t>0x94D049BB133111EBULL
    x ^= x >> 31
    return x


cdef inline uint64_t hash_fid(fid_t fid) noexcept nogil:
    # The constant keeps fid 0 from mixing to 0.
    return hash_mix(fid + <uint64_t>0x9E3779B97F4A7C15ULL)


cdef inline uint32_t hash_shard(uint64_t hashed) noexcept nogil:
    return <uint32_t>(hashed >> (64 - SHARD_BITS))


cdef inline uint32_t hash_range(uint64_t product, uint32_t count) noexcept nogil:
    """Map the upper 32 bits of a product onto 0..count-1 without a division (Lemire 2019)."""
    return <uint32_t>(((product >> 32) * <uint64_t>count) >> 32)


cdef inline uint32_t hash_bucket_first(
    uint64_t hashed, uint64_t multiplier, uint32_t buckets
) noexcept nogil:
    return hash_range(hashed * multiplier, buckets)


cdef inline uint32_t hash_bucket_second(
    uint64_t hashed, uint64_t multiplier, uint32_t buckets
) noexcept nogil:
    # Halves swapped: the low bits, which the first bucket hardly depends on, decide here.
    return hash_range(((hashed << 32) | (hashed >> 32)) * multiplier, buckets)
