"""Memory of a table: pieces of 256 KiB, cut out of regions that the kernel backs with huge pages.

A row or a bucket that is looked up is a miss of the TLB too, unless it lies in a huge page. Shards
take pieces from one pool, so that what is mapped ahead of need is one region a table and not one a
shard. Freed pieces are used again; past a share of the pool their memory goes back to the system.
Safe to call from any thread.
"""

from libc.stdint cimport uint32_t, uint64_t

from monolith_kv._backing cimport Backer, pthread_mutex_t
from monolith_kv._types cimport status_t

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_lock(pthread_mutex_t* mutex)
    int pthread_mutex_unlock(pthread_mutex_t* mutex)

cdef enum:
    PIECE_BYTES = 262144
    PARTS_MAX = 10         # a piece may be shared by as many equal parts

cdef struct PieceHead:
    # The first line of a piece that is cut into parts.
    uint32_t parts
    uint32_t used          # a bit for each part
    PieceHead* next        # of the pieces with a free part; NULL at both ends
    PieceHead* previous

cdef struct Pages:
    pthread_mutex_t lock
    Backer backer
    char** regions
    uint32_t regions_count
    uint32_t regions_capacity
    char** free            # pieces that nobody has
    uint32_t free_count
    uint32_t dry_count     # of them, the first that cost no memory
    uint32_t pieces_count  # of all regions
    uint32_t regions_expected   # will be filled at once, those that there are included
    PieceHead* partial[PARTS_MAX + 1]   # by parts

cdef status_t pages_create(Pages* pages) noexcept nogil
cdef void pages_destroy(Pages* pages) noexcept nogil
# A piece, aligned to its size, its contents undefined; NULL where memory lacks.
cdef char* pages_take(Pages* pages) noexcept nogil
cdef void pages_give(Pages* pages, void* piece) noexcept nogil
# A part of a piece of `parts`: part_bytes(parts) bytes, aligned to a cache line.
cdef char* pages_take_part(Pages* pages, uint32_t parts) noexcept nogil
cdef void pages_give_part(Pages* pages, void* part) noexcept nogil
# So many pieces will be taken and filled, one right after the other.
cdef void pages_expect(Pages* pages, uint64_t pieces) noexcept nogil
cdef size_t pages_spare_bytes(Pages* pages) noexcept nogil


cdef inline size_t part_bytes(uint32_t parts) noexcept nogil:
    """What is left of a piece behind its head, in equal parts of whole lines."""
    return ((PIECE_BYTES - 64) // parts) & ~<size_t>63
