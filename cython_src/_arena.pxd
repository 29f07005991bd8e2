"""Slabs of equal rows: allocate, free, give back; row number -> addresses.

A slab is one mapping of 2 MiB, aligned to it so that the kernel can back it with a huge page: once
it is full, for until then it should cost no more than its rows. A row number is the number of its
slab, shifted, and its place there. Guarded by shard.lock.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._types cimport row_t, status_t

cdef enum:
    SLAB_BYTES = 2097152
    SLAB_NO_PLACE = 0xFFFFFFFF

cdef struct Slab:
    uint64_t* headers      # start of the mapping; NULL where the slab was given back
    float* embeddings
    float* states
    uint32_t used          # places that hold a row
    uint32_t fresh         # from here on no place was ever used
    uint32_t free_first    # head of the list of freed places, linked through their headers
    bint closed            # being emptied: allocate elsewhere

cdef struct Arena:
    size_t embedding_floats
    size_t state_floats
    uint32_t places        # rows a slab holds
    uint32_t place_bits
    Slab* slabs
    uint32_t slabs_count
    uint32_t slabs_capacity
    uint32_t slabs_mapped
    uint32_t room_first    # below this number no slab has room
    uint64_t rows
    uint64_t unused        # places of mapped slabs that no row was ever in: they cost no memory

cdef status_t arena_create(
    Arena* arena, size_t embedding_floats, size_t state_floats) noexcept nogil
cdef void arena_destroy(Arena* arena) noexcept nogil
cdef status_t arena_allocate(Arena* arena, row_t* row) noexcept nogil
cdef void arena_free(Arena* arena, row_t row) noexcept nogil
cdef size_t arena_size_bytes(const Arena* arena) noexcept nogil
cdef uint32_t arena_close_sparse(Arena* arena) noexcept nogil
cdef void arena_open_all(Arena* arena) noexcept nogil


cdef inline Slab* arena_slab(const Arena* arena, row_t row) noexcept nogil:
    return &arena.slabs[row >> arena.place_bits]


cdef inline uint32_t arena_place(const Arena* arena, row_t row) noexcept nogil:
    return row & ((<uint32_t>1 << arena.place_bits) - 1)


cdef inline uint64_t* arena_header(const Arena* arena, row_t row) noexcept nogil:
    return arena_slab(arena, row).headers + arena_place(arena, row)


cdef inline float* arena_embedding(const Arena* arena, row_t row) noexcept nogil:
    return (
        arena_slab(arena, row).embeddings
        + <size_t>arena_place(arena, row) * arena.embedding_floats
    )


cdef inline float* arena_state(const Arena* arena, row_t row) noexcept nogil:
    return arena_slab(arena, row).states + <size_t>arena_place(arena, row) * arena.state_floats
