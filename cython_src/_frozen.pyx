"""Bytes as they were at one instant. See _frozen.pxd."""

from libc.stdint cimport uint8_t, uint32_t
from libc.string cimport memcpy, memset

from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, status_t

cdef extern from *:
    """
    #include <sys/mman.h>
    #ifndef MAP_NORESERVE
    #define MAP_NORESERVE 0
    #endif
    /* Most of it is never touched: it is not to count against what the system promises. */
    static void *frozen_map(size_t n)
    {
        void *p = mmap(
            NULL, n, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        return p == MAP_FAILED ? NULL : p;
    }
    """
    void* frozen_map(size_t n) noexcept nogil
    int munmap(void* p, size_t n) noexcept nogil

cdef enum:
    PLACE_LIVE = 0     # as it was, and wanted
    PLACE_READ = 1
    PLACE_SAVED = 2    # the first one saved; others count on


cdef inline size_t blocks_of(size_t size_bytes) noexcept nogil:
    return (size_bytes + FROZEN_BLOCK_BYTES - 1) // FROZEN_BLOCK_BYTES


cdef status_t frozen_begin(Frozen* frozen, const uint8_t* live, size_t size_bytes) noexcept nogil:
    cdef size_t blocks = blocks_of(size_bytes)
    memset(frozen, 0, sizeof(Frozen))
    if blocks == 0 or blocks >= <uint32_t>-1 - PLACE_SAVED:
        return STATUS_OUT_OF_MEMORY
    frozen.size_bytes = size_bytes
    frozen.places = <uint32_t*>frozen_map(blocks * sizeof(uint32_t))
    frozen.saved = <uint8_t*>frozen_map(blocks * FROZEN_BLOCK_BYTES)
    frozen.live = live
    if frozen.places == NULL or frozen.saved == NULL:
        frozen_end(frozen)
        return STATUS_OUT_OF_MEMORY
    return STATUS_OK


cdef void frozen_save(Frozen* frozen, size_t offset, size_t size_bytes) noexcept nogil:
    cdef size_t block = offset // FROZEN_BLOCK_BYTES
    cdef size_t end = blocks_of(offset + size_bytes)
    while block < end:
        if frozen.places[block] == PLACE_LIVE:
            memcpy(
                frozen.saved + <size_t>frozen.saved_count * FROZEN_BLOCK_BYTES,
                frozen.live + block * FROZEN_BLOCK_BYTES, FROZEN_BLOCK_BYTES)
            frozen.places[block] = PLACE_SAVED + frozen.saved_count
            frozen.saved_count += 1
        block += 1


cdef void frozen_read(
    Frozen* frozen, size_t offset, size_t size_bytes, uint8_t* out
) noexcept nogil:
    cdef size_t block = offset // FROZEN_BLOCK_BYTES
    cdef size_t end = blocks_of(offset + size_bytes)
    cdef const uint8_t* source
    while block < end:   # The last time round size_bytes may wrap: nobody looks any more.
        source = frozen.live + block * FROZEN_BLOCK_BYTES
        if frozen.places[block] >= PLACE_SAVED:
            source = frozen.saved + (
                <size_t>(frozen.places[block] - PLACE_SAVED) * FROZEN_BLOCK_BYTES)
        else:
            frozen.places[block] = PLACE_READ
        memcpy(out, source, size_bytes if size_bytes < FROZEN_BLOCK_BYTES else FROZEN_BLOCK_BYTES)
        out += FROZEN_BLOCK_BYTES
        size_bytes -= FROZEN_BLOCK_BYTES
        block += 1


cdef void frozen_end(Frozen* frozen) noexcept nogil:
    cdef size_t blocks = blocks_of(frozen.size_bytes)
    if frozen.places != NULL:
        munmap(frozen.places, blocks * sizeof(uint32_t))
    if frozen.saved != NULL:
        munmap(frozen.saved, blocks * FROZEN_BLOCK_BYTES)
    memset(frozen, 0, sizeof(Frozen))
