"""Slabs of equal rows. See _arena.pxd."""

from libc.stdint cimport uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, row_t, status_t

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* address, size_t length, int protection, int flags, int fd, long offset)
    int munmap(void* address, size_t length)
    int PROT_READ
    int PROT_WRITE
    int MAP_PRIVATE
    int MAP_ANONYMOUS
    void* MAP_FAILED

cdef extern from *:
    """
    #include <sys/mman.h>
    /* Ask for a huge page behind a slab: at once where the kernel can (Linux 6.1), else when its
       own scan comes by. Where it gives none, small pages stay, and all that is lost is speed. */
    static void mkv_back_huge(void *slab, size_t bytes) {
    #ifdef MADV_HUGEPAGE
        madvise(slab, bytes, MADV_HUGEPAGE);
    #ifndef MADV_COLLAPSE
    #define MADV_COLLAPSE 25
    #endif
        madvise(slab, bytes, MADV_COLLAPSE);
    #endif
    }
    """
    void mkv_back_huge(void* slab, size_t size_bytes) noexcept nogil

cdef enum:
    LINE_BYTES = 64


cdef status_t arena_create(
    Arena* arena, size_t embedding_floats, size_t state_floats
) noexcept nogil:
    memset(arena, 0, sizeof(Arena))
    arena.embedding_floats = embedding_floats
    arena.state_floats = state_floats
    cdef size_t row_bytes = sizeof(uint64_t) + sizeof(float) * (embedding_floats + state_floats)
    # Two lines are set aside for aligning the embeddings and the states.
    arena.places = <uint32_t>((SLAB_BYTES - 2 * LINE_BYTES) / row_bytes)
    while (<uint32_t>1 << arena.place_bits) < arena.places:
        arena.place_bits += 1
    return STATUS_OK


cdef void arena_destroy(Arena* arena) noexcept nogil:
    cdef uint32_t i
    for i in range(arena.slabs_count):
        if arena.slabs[i].headers != NULL:
            munmap(arena.slabs[i].headers, SLAB_BYTES)
    free(arena.slabs)
    memset(arena, 0, sizeof(Arena))


cdef status_t arena_allocate(Arena* arena, row_t* row) noexcept nogil:
    """Take the lowest slab that has room, so that high slabs drain and can be given back."""
    cdef uint32_t number = arena.room_first
    cdef Slab* slab
    while number < arena.slabs_count:
        slab = &arena.slabs[number]
        if slab.headers != NULL and slab.used < arena.places and not slab.closed:
            break
        number += 1
    if number == arena.slabs_count:
        number = 0
        while number < arena.slabs_count and arena.slabs[number].headers != NULL:
            number += 1
        if slab_map(arena, number) != STATUS_OK:
            return STATUS_OUT_OF_MEMORY
    arena.room_first = number
    slab = &arena.slabs[number]
    cdef uint32_t place = slab.free_first
    if place != SLAB_NO_PLACE:
        slab.free_first = <uint32_t>slab.headers[place]
    else:
        place = slab.fresh
        slab.fresh += 1
        arena.unused -= 1
        if slab.fresh == arena.places:
            mkv_back_huge(slab.headers, SLAB_BYTES)
    slab.used += 1
    arena.rows += 1
    row[0] = <row_t>(number << arena.place_bits) | place
    return STATUS_OK


cdef void arena_free(Arena* arena, row_t row) noexcept nogil:
    cdef uint32_t number = row >> arena.place_bits
    cdef uint32_t place = arena_place(arena, row)
    cdef Slab* slab = &arena.slabs[number]
    slab.headers[place] = slab.free_first
    slab.free_first = place
    slab.used -= 1
    arena.rows -= 1
    if slab.used == 0:
        arena.unused -= arena.places - slab.fresh
        munmap(slab.headers, SLAB_BYTES)
        slab.headers = NULL
        arena.slabs_mapped -= 1
        while arena.slabs_count and arena.slabs[arena.slabs_count - 1].headers == NULL:
            arena.slabs_count -= 1
    if number < arena.room_first:
        arena.room_first = number


cdef size_t arena_size_bytes(const Arena* arena) noexcept nogil:
    cdef size_t row_bytes = sizeof(uint64_t) + sizeof(float) * (
        arena.embedding_floats + arena.state_floats)
    return (
        <size_t>arena.slabs_mapped * SLAB_BYTES - <size_t>arena.unused * row_bytes
        + arena.slabs_capacity * sizeof(Slab))


cdef uint32_t arena_close_sparse(Arena* arena) noexcept nogil:
    """Close the emptiest slabs whose rows fit into the room of the others; how many were closed.

    Slabs that are less than three quarters full are candidates. Closing goes from the emptiest
    eighth upwards, so that the fewest rows have to move.
    """
    cdef uint64_t room = <uint64_t>arena.slabs_mapped * arena.places - arena.rows
    cdef uint64_t moving = 0
    cdef uint32_t closed = 0
    cdef uint32_t eighth, i
    cdef Slab* slab
    for eighth in range(1, 7):
        for i in range(arena.slabs_count):
            slab = &arena.slabs[i]
            if slab.headers == NULL or slab.closed or slab.used * 8 > arena.places * eighth:
                continue
            if moving + slab.used > room - (arena.places - slab.used):
                return closed
            room -= arena.places - slab.used
            moving += slab.used
            slab.closed = True
            closed += 1
    return closed


cdef void arena_open_all(Arena* arena) noexcept nogil:
    cdef uint32_t i
    for i in range(arena.slabs_count):
        arena.slabs[i].closed = False
    arena.room_first = 0


cdef status_t slab_map(Arena* arena, uint32_t number) noexcept nogil:
    cdef Slab* slabs = arena.slabs
    cdef uint32_t capacity = arena.slabs_capacity
    # The last slab numbers are left out: row numbers there stand for rows in overflow.
    if number >= (<uint64_t>1 << (32 - arena.place_bits)) - 1:
        return STATUS_OUT_OF_MEMORY
    if number >= capacity:
        capacity = capacity * 2 if capacity else 4
        slabs = <Slab*>realloc(slabs, capacity * sizeof(Slab))
        if slabs == NULL:
            return STATUS_OUT_OF_MEMORY
        arena.slabs = slabs
        arena.slabs_capacity = capacity
    cdef char* base = map_aligned()
    if base == NULL:
        return STATUS_OUT_OF_MEMORY
    cdef Slab* slab = &slabs[number]
    memset(slab, 0, sizeof(Slab))
    slab.free_first = SLAB_NO_PLACE
    slab.headers = <uint64_t*>base
    cdef size_t offset = line_up(arena.places * sizeof(uint64_t))
    slab.embeddings = <float*>(base + offset)
    offset = line_up(offset + arena.places * arena.embedding_floats * sizeof(float))
    slab.states = <float*>(base + offset)
    arena.slabs_mapped += 1
    arena.unused += arena.places
    if number == arena.slabs_count:
        arena.slabs_count += 1
    return STATUS_OK


cdef inline size_t line_up(size_t offset) noexcept nogil:
    return (offset + LINE_BYTES - 1) & ~<size_t>(LINE_BYTES - 1)


cdef char* map_aligned() noexcept nogil:
    """Map twice the bytes and give back what lies outside the aligned slab."""
    cdef char* base = <char*>mmap(
        NULL, 2 * SLAB_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    if base == <char*>MAP_FAILED:
        return NULL
    cdef size_t before = (SLAB_BYTES - (<uintptr_t>base & (SLAB_BYTES - 1))) & (SLAB_BYTES - 1)
    if before:
        munmap(base, before)
    munmap(base + before + SLAB_BYTES, SLAB_BYTES - before)
    return base + before
