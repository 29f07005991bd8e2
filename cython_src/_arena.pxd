"""Slabs of equal rows: allocate, free, give back; row number -> addresses.

A slab is a piece of the table's memory (see _pages.pxd): first the headers of its rows, then their
embeddings, then their states. A row number is the number of its slab, shifted, and its place there.
Guarded by shard.lock.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._pages cimport Pages
from monolith_kv._types cimport row_t, status_t

cdef enum:
    SLAB_NO_PLACE = 0xFFFFFFFF

cdef struct Slab:
    uint32_t used          # places that hold a row
    uint32_t fresh         # from here on no place was ever used
    uint32_t free_first    # head of the list of freed places, linked through their headers
    bint closed            # being emptied: allocate elsewhere

cdef struct Arena:
    Pages* pages
    size_t embedding_floats
    size_t state_floats
    size_t embeddings_at   # bytes from the base of a slab
    size_t states_at
    uint32_t places        # rows a slab holds
    uint32_t place_bits
    char** bases           # by slab; NULL where it was given back
    Slab* slabs
    uint32_t slabs_count
    uint32_t slabs_capacity
    uint32_t slabs_mapped
    uint32_t room_first    # below this number no slab has room
    uint64_t rows

cdef status_t arena_create(
    Arena* arena, Pages* pages, size_t embedding_floats, size_t state_floats) noexcept nogil
cdef void arena_destroy(Arena* arena) noexcept nogil
cdef status_t arena_allocate(Arena* arena, row_t* row) noexcept nogil
cdef void arena_free(Arena* arena, row_t row) noexcept nogil
cdef size_t arena_size_bytes(const Arena* arena) noexcept nogil
cdef uint32_t arena_close_sparse(Arena* arena, uint32_t wanted) noexcept nogil
cdef void arena_open_all(Arena* arena) noexcept nogil


cdef inline Slab* arena_slab(const Arena* arena, row_t row) noexcept nogil:
    return &arena.slabs[row >> arena.place_bits]


cdef inline char* arena_base(const Arena* arena, row_t row) noexcept nogil:
    return arena.bases[row >> arena.place_bits]


cdef inline uint32_t arena_place(const Arena* arena, row_t row) noexcept nogil:
    return row & ((<uint32_t>1 << arena.place_bits) - 1)


cdef inline uint64_t* arena_header(const Arena* arena, row_t row) noexcept nogil:
    return <uint64_t*>arena_base(arena, row) + arena_place(arena, row)


cdef inline float* arena_embedding(const Arena* arena, row_t row) noexcept nogil:
    return (
        <float*>(arena_base(arena, row) + arena.embeddings_at)
        + arena_place(arena, row) * arena.embedding_floats
    )


cdef inline float* arena_state(const Arena* arena, row_t row) noexcept nogil:
    return (
        <float*>(arena_base(arena, row) + arena.states_at)
        + arena_place(arena, row) * arena.state_floats
    )
