"""What a row is: one header word, then the embedding of all slices, then their optimizer state.

The header word of a row, from the low end; it stays in memory when the row leaves for overflow:

    bits  0..2   flags: touched, and in the way of a snapshot
    bits  3..4   heat: how warm the row is for eviction
    bit   5      its digest is not in the shard's sum (ROW_UNSUMMED)
    bits  6..23  spare
    bits 24..63  last push, upsert or insertion, whole seconds since the epoch

Header, embedding and state of a row lie in three arrays of a slab (see _arena.pxd), so that a
lookup touches the lines of the embedding and no other.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._types cimport row_t, unix_s_t

cdef enum:
    ROW_TOUCHED_EVEN = 1   # touched since the last seal; two bits take turns, so that what a seal
    ROW_TOUCHED_ODD = 2    # is still reading can be told from what was touched after it began
    ROW_SNAPSHOT = 4       # equal to the shard's polarity: not, or no longer, in a snapshot's way

    ROW_HEAT_SHIFT = 3
    ROW_HEAT_MAX = 3

    ROW_UNSUMMED = 32

    ROW_BITS = 0xFFFFFF        # all but the time

    ROW_TIME_SHIFT = 24

cdef extern from *:
    """
    /* The upper half of the numbers is for rows that lie in overflow: see _rowfile.pxd. */
    #define ROW_COLD 0x80000000u
    """
    const row_t ROW_COLD

cdef enum:
    ROW_TIME_BITS = 40     # up to the year 36812


cdef inline unix_s_t row_time(uint64_t header) noexcept nogil:
    return <unix_s_t>(header >> ROW_TIME_SHIFT)


cdef inline unix_s_t row_clamp_time(unix_s_t now) noexcept nogil:
    cdef unix_s_t latest = (<unix_s_t>1 << ROW_TIME_BITS) - 1
    return 0 if now < 0 else (latest if now > latest else now)


cdef inline void row_renew(uint64_t* header, unix_s_t now) noexcept nogil:
    """Set the time to `now`, never to an earlier one: a clock going back makes no row older."""
    # Stored only if it changes: a line that stays clean is not written back.
    if now > row_time(header[0]):
        header[0] = (
            (header[0] & ((<uint64_t>1 << ROW_TIME_SHIFT) - 1))
            | (<uint64_t>now << ROW_TIME_SHIFT))


cdef inline row_t row_cold(uint32_t number) noexcept nogil:
    return ROW_COLD | number


cdef inline uint32_t row_cold_number(row_t row) noexcept nogil:
    return row & ~ROW_COLD


cdef inline bint row_is_cold(row_t row) noexcept nogil:
    return row >= ROW_COLD
