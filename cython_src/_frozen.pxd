"""Bytes as they were at one instant while they go on changing: copied in blocks before a change.

To take the instant copies nothing. Whoever changes bytes says so first, and each block that nobody
has read as it was is then saved, once. Guarded by the owner's lock.
"""

from libc.stdint cimport uint8_t, uint32_t

from monolith_kv._types cimport status_t

cdef enum:
    FROZEN_BLOCK_BYTES = 512   # Changes are scattered: a block costs about what its miss does.

cdef struct Frozen:
    const uint8_t* live    # what changes; NULL while there is no view
    size_t size_bytes
    uint32_t* places       # by block: not asked for yet, read, or where in `saved` it lies
    uint8_t* saved         # room for all blocks, so that saving cannot fail; paged in as it is used
    uint32_t saved_count

# Of whole blocks.
cdef status_t frozen_begin(Frozen* frozen, const uint8_t* live, size_t size_bytes) noexcept nogil
# Before any of these bytes change.
cdef void frozen_save(Frozen* frozen, size_t offset, size_t size_bytes) noexcept nogil
# From the start of a block on, and each byte once: what was read is not saved any more.
cdef void frozen_read(
    Frozen* frozen, size_t offset, size_t size_bytes, uint8_t* out) noexcept nogil
# Again: nothing.
cdef void frozen_end(Frozen* frozen) noexcept nogil
