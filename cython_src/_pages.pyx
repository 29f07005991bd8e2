"""Memory of a table. See _pages.pxd."""

from libc.stdint cimport UINT32_MAX, uint32_t, uint64_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from monolith_kv._backing cimport (
    REGION_BYTES,
    backer_create,
    backer_destroy,
    backer_forget_loose,
    backer_region,
    region_unmap,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, status_t

cdef extern from "<pthread.h>" nogil:
    int pthread_mutex_init(pthread_mutex_t* mutex, void* attributes)
    int pthread_mutex_destroy(pthread_mutex_t* mutex)

cdef extern from *:
    """
    #include <sys/mman.h>
    /* Give the memory of a part of a region back, for good: of one that may be huge the kernel
       would make a whole one again by itself, in its own time. */
    static void mkv_part_drop(void *region, size_t region_bytes, void *part, size_t bytes) {
    #ifdef MADV_NOHUGEPAGE
        madvise(region, region_bytes, MADV_NOHUGEPAGE);
    #endif
        madvise(part, bytes, MADV_DONTNEED);
    }
    """
    void mkv_part_drop(
        void* region, size_t region_bytes, void* part, size_t bytes) noexcept nogil

cdef extern from *:
    int __builtin_ctz(unsigned int value) noexcept nogil

cdef enum:
    REGION_PIECES = 8
    # A small table should cost no more than its rows: from so many regions (64 MiB) on others are
    # backed ahead of need, one and a share of those that there are.
    BACKED_REGIONS = 32
    BACKED_SHARE = 512
    # Free pieces that keep their memory: as many, or this share of all.
    SPARE_MIN = 8
    SPARE_SHARE = 256


cdef status_t pages_create(Pages* pages) noexcept nogil:
    memset(pages, 0, sizeof(Pages))
    if pthread_mutex_init(&pages.lock, NULL):
        return STATUS_OUT_OF_MEMORY
    return backer_create(&pages.backer)


cdef void pages_destroy(Pages* pages) noexcept nogil:
    cdef uint32_t i
    backer_destroy(&pages.backer)    # First: it may be at work in one of the regions.
    for i in range(pages.regions_count):
        region_unmap(pages.regions[i])
    free(pages.regions)
    free(pages.free)
    pthread_mutex_destroy(&pages.lock)
    memset(pages, 0, sizeof(Pages))


cdef char* pages_take(Pages* pages) noexcept nogil:
    cdef char* piece
    pthread_mutex_lock(&pages.lock)
    piece = locked_take(pages)
    pthread_mutex_unlock(&pages.lock)
    return piece


cdef void pages_give(Pages* pages, void* piece) noexcept nogil:
    pthread_mutex_lock(&pages.lock)
    locked_give(pages, <char*>piece)
    pthread_mutex_unlock(&pages.lock)


cdef char* pages_take_part(Pages* pages, uint32_t parts) noexcept nogil:
    cdef PieceHead* head
    cdef uint32_t part
    pthread_mutex_lock(&pages.lock)
    head = pages.partial[parts]
    if head == NULL:
        head = <PieceHead*>locked_take(pages)
        if head != NULL:
            head.parts = parts
            head.used = 0
            partial_link(pages, head)
    if head == NULL:
        pthread_mutex_unlock(&pages.lock)
        return NULL
    part = <uint32_t>__builtin_ctz(~head.used)
    head.used |= <uint32_t>1 << part
    if head.used == (<uint32_t>1 << parts) - 1:
        partial_unlink(pages, head)
    pthread_mutex_unlock(&pages.lock)
    return <char*>head + 64 + part * part_bytes(parts)


cdef void pages_give_part(Pages* pages, void* part) noexcept nogil:
    cdef PieceHead* head = <PieceHead*>(<uintptr_t>part & ~<uintptr_t>(PIECE_BYTES - 1))
    cdef size_t offset = <char*>part - <char*>head - 64
    pthread_mutex_lock(&pages.lock)
    if head.used == (<uint32_t>1 << head.parts) - 1:
        partial_link(pages, head)
    head.used &= ~(<uint32_t>1 << <uint32_t>(offset // part_bytes(head.parts)))
    if head.used == 0:
        partial_unlink(pages, head)
        locked_give(pages, <char*>head)
    pthread_mutex_unlock(&pages.lock)


cdef void pages_expect(Pages* pages, uint64_t pieces) noexcept nogil:
    # Whole regions only: the last one may remain half empty.
    cdef uint64_t regions = pieces // REGION_PIECES
    pthread_mutex_lock(&pages.lock)
    if regions < UINT32_MAX - pages.regions_count:
        pages.regions_expected = pages.regions_count + <uint32_t>regions
    pthread_mutex_unlock(&pages.lock)


cdef size_t pages_spare_bytes(Pages* pages) noexcept nogil:
    """What is mapped, may hold memory and belongs to nobody."""
    cdef size_t spare
    pthread_mutex_lock(&pages.lock)
    spare = <size_t>(pages.free_count - pages.dry_count) * PIECE_BYTES
    pthread_mutex_unlock(&pages.lock)
    return spare


cdef void partial_link(Pages* pages, PieceHead* head) noexcept nogil:
    head.next = pages.partial[head.parts]
    head.previous = NULL
    if head.next != NULL:
        head.next.previous = head
    pages.partial[head.parts] = head


cdef void partial_unlink(Pages* pages, PieceHead* head) noexcept nogil:
    if head.previous == NULL:
        pages.partial[head.parts] = head.next
    else:
        head.previous.next = head.next
    if head.next != NULL:
        head.next.previous = head.previous


cdef char* locked_take(Pages* pages) noexcept nogil:
    """The piece freed last: those that keep their memory lie on top of those that do not."""
    if pages.free_count == 0 and region_add(pages) != STATUS_OK:
        return NULL
    pages.free_count -= 1
    if pages.dry_count > pages.free_count:
        pages.dry_count = pages.free_count
    return pages.free[pages.free_count]


cdef void locked_give(Pages* pages, char* piece) noexcept nogil:
    cdef uint32_t spare = pages.pieces_count // SPARE_SHARE
    pages.free[pages.free_count] = piece
    pages.free_count += 1
    if pages.free_count - pages.dry_count <= (spare if spare > SPARE_MIN else SPARE_MIN):
        return
    # Those that were freed first: they are the last to be used again.
    backer_forget_loose(&pages.backer)
    piece = pages.free[pages.dry_count]
    mkv_part_drop(
        <void*>(<uintptr_t>piece & ~<uintptr_t>(REGION_BYTES - 1)), REGION_BYTES, piece,
        PIECE_BYTES)
    pages.dry_count += 1


cdef status_t region_add(Pages* pages) noexcept nogil:
    cdef uint32_t capacity = pages.regions_capacity
    cdef uint32_t ahead = 0
    cdef char** grown
    cdef char* base
    cdef int i
    if pages.regions_count == capacity:
        capacity = capacity * 2 if capacity else 4
        grown = <char**>realloc(pages.regions, capacity * sizeof(char*))
        if grown == NULL:
            return STATUS_OUT_OF_MEMORY
        pages.regions = grown
        grown = <char**>realloc(pages.free, <size_t>capacity * REGION_PIECES * sizeof(char*))
        if grown == NULL:
            return STATUS_OUT_OF_MEMORY
        pages.free = grown
        pages.regions_capacity = capacity
    if pages.regions_count >= BACKED_REGIONS:
        ahead = 1 + pages.regions_count // BACKED_SHARE
    if pages.regions_count < pages.regions_expected >= BACKED_REGIONS:
        ahead = pages.regions_expected - pages.regions_count - 1
    base = backer_region(
        &pages.backer, ahead, pages.regions_count < pages.regions_expected)
    if base == NULL:
        return STATUS_OUT_OF_MEMORY
    pages.regions[pages.regions_count] = base
    pages.regions_count += 1
    pages.pieces_count += REGION_PIECES
    for i in range(REGION_PIECES):
        # The lowest on top.
        pages.free[pages.free_count] = base + (REGION_PIECES - 1 - i) * PIECE_BYTES
        pages.free_count += 1
    # Nobody was given any yet: to give these back would only break a huge page up.
    pages.dry_count = pages.free_count
    return STATUS_OK
