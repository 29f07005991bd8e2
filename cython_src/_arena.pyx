"""Slabs of equal rows. See _arena.pxd."""

from libc.stdint cimport uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from monolith_kv._pages cimport PIECE_BYTES, Pages, pages_give, pages_take
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, row_t, status_t

cdef enum:
    LINE_BYTES = 64


cdef status_t arena_create(
    Arena* arena, Pages* pages, size_t embedding_floats, size_t state_floats
) noexcept nogil:
    cdef size_t row_bytes = sizeof(uint64_t) + sizeof(float) * (embedding_floats + state_floats)
    memset(arena, 0, sizeof(Arena))
    arena.pages = pages
    arena.embedding_floats = embedding_floats
    arena.state_floats = state_floats
    # Two lines are set aside for aligning the embeddings and the states.
    arena.places = <uint32_t>((PIECE_BYTES - 2 * LINE_BYTES) / row_bytes)
    while (<uint32_t>1 << arena.place_bits) < arena.places:
        arena.place_bits += 1
    arena.embeddings_at = line_up(arena.places * sizeof(uint64_t))
    arena.states_at = line_up(
        arena.embeddings_at + arena.places * embedding_floats * sizeof(float))
    return STATUS_OK


cdef void arena_destroy(Arena* arena) noexcept nogil:
    """Its slabs go with the pages."""
    free(arena.bases)
    free(arena.slabs)
    memset(arena, 0, sizeof(Arena))


cdef status_t arena_allocate(Arena* arena, row_t* row) noexcept nogil:
    """Take the lowest slab that has room, so that high slabs drain and can be given back."""
    cdef uint32_t number = arena.room_first
    cdef Slab* slab
    while number < arena.slabs_count:
        slab = &arena.slabs[number]
        if (arena.bases[number] != NULL and slab.used < arena.places
                and not slab.closed):
            break
        number += 1
    # Beyond it where the last slabs were given back.
    if number >= arena.slabs_count:
        number = 0 if arena.slabs_mapped < arena.slabs_count else arena.slabs_count
        while number < arena.slabs_count and arena.bases[number] != NULL:
            number += 1
        if slab_map(arena, number) != STATUS_OK:
            return STATUS_OUT_OF_MEMORY
    arena.room_first = number
    slab = &arena.slabs[number]
    cdef uint32_t place = slab.free_first
    if place != SLAB_NO_PLACE:
        slab.free_first = <uint32_t>(<uint64_t*>arena.bases[number])[place]
    else:
        place = slab.fresh
        slab.fresh += 1
    slab.used += 1
    arena.rows += 1
    row[0] = <row_t>(number << arena.place_bits) | place
    return STATUS_OK


cdef void arena_free(Arena* arena, row_t row) noexcept nogil:
    cdef uint32_t number = row >> arena.place_bits
    cdef uint32_t place = arena_place(arena, row)
    cdef Slab* slab = &arena.slabs[number]
    (<uint64_t*>arena.bases[number])[place] = slab.free_first
    slab.free_first = place
    slab.used -= 1
    arena.rows -= 1
    if slab.used == 0:
        pages_give(arena.pages, arena.bases[number])
        arena.bases[number] = NULL
        arena.slabs_mapped -= 1
        while arena.slabs_count and arena.bases[arena.slabs_count - 1] == NULL:
            arena.slabs_count -= 1
    if number < arena.room_first:
        arena.room_first = number


cdef size_t arena_size_bytes(const Arena* arena) noexcept nogil:
    return (
        <size_t>arena.slabs_mapped * PIECE_BYTES
        + arena.slabs_capacity * (sizeof(Slab) + sizeof(char*)))


cdef uint32_t arena_close_sparse(Arena* arena, uint32_t wanted) noexcept nogil:
    """Close the emptiest slabs whose rows fit into the room of the others; how many were closed.

    Slabs that are less than three quarters full are candidates; where so many are
    `wanted`, any is. Closing goes from the emptiest eighth upwards, so that the fewest rows have
    to move.
    """
    cdef uint64_t room = <uint64_t>arena.slabs_mapped * arena.places - arena.rows
    cdef uint64_t moving = 0
    cdef uint32_t closed = 0
    cdef uint32_t eighth, i
    cdef Slab* slab
    for eighth in range(1, 9 if wanted else 7):
        for i in range(arena.slabs_count):
            if wanted and closed == wanted:
                return closed
            slab = &arena.slabs[i]
            if arena.bases[i] == NULL or slab.closed or slab.used * 8 > arena.places * eighth:
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
    cdef uint32_t capacity = arena.slabs_capacity
    cdef Slab* slabs
    cdef char** bases
    # The upper half of the numbers stands for rows in overflow.
    if number >= <uint64_t>1 << (31 - arena.place_bits):
        return STATUS_OUT_OF_MEMORY
    if number >= capacity:
        capacity = capacity * 2 if capacity else 4
        slabs = <Slab*>realloc(arena.slabs, capacity * sizeof(Slab))
        if slabs == NULL:
            return STATUS_OUT_OF_MEMORY
        arena.slabs = slabs
        bases = <char**>realloc(arena.bases, capacity * sizeof(char*))
        if bases == NULL:
            return STATUS_OUT_OF_MEMORY
        arena.bases = bases
        arena.slabs_capacity = capacity
    cdef char* base = pages_take(arena.pages)
    if base == NULL:
        return STATUS_OUT_OF_MEMORY
    arena.bases[number] = base
    memset(&arena.slabs[number], 0, sizeof(Slab))
    arena.slabs[number].free_first = SLAB_NO_PLACE
    arena.slabs_mapped += 1
    if number == arena.slabs_count:
        arena.slabs_count += 1
    return STATUS_OK


cdef inline size_t line_up(size_t offset) noexcept nogil:
    return (offset + LINE_BYTES - 1) & ~<size_t>(LINE_BYTES - 1)
