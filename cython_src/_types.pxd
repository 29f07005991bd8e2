"""The scalar types and status codes that every module of the data plane shares. No code."""

from libc.stdint cimport int64_t, uint32_t, uint64_t

ctypedef uint64_t fid_t      # a feature id: all 64 bits are legal
ctypedef uint32_t row_t      # where a row lies in an arena: slab number and place in the slab
ctypedef int64_t unix_s_t    # whole seconds since the epoch

cdef enum:
    FID_BYTES = 8

# What a function under nogil returns; _core turns it into an exception. A bit each: those of
# several shards are or-ed together.
ctypedef int status_t

cdef enum:
    STATUS_OK = 0
    STATUS_OUT_OF_MEMORY = 1
    STATUS_NOT_FINITE = 2     # a sum of gradients overflowed float32
    STATUS_FULL = 4           # an id needs a row and none may be made
    STATUS_BAD_DATA = 8       # opaque bytes that this build did not write
    STATUS_NOT_NUMBERS = 16   # NaN or infinity among the floats that were given
