"""Regions of memory, backed ahead of need. See _backing.pxd."""

from libc.stdint cimport uint32_t, uintptr_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from monolith_kv._thread cimport (
    getpid,
    mkv_thread_start,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_join,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, status_t

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
    /* Where the system has no huge pages, small ones stay, and all that is lost is speed. */
    static void mkv_region_advise(char *region, size_t bytes) {
    #ifdef MADV_HUGEPAGE
        madvise(region, bytes, MADV_HUGEPAGE);
    #endif
    }
    static void mkv_region_back(char *region, size_t bytes) {
        mkv_region_advise(region, bytes);
    #ifdef MADV_POPULATE_WRITE
        if (madvise(region, bytes, MADV_POPULATE_WRITE) == 0) return;
    #endif
        for (size_t i = 0; i < bytes; i += 4096) ((volatile char *)region)[i] = 0;
    }
    /* Into one huge page, contents kept. Kernels before 6.1 do it in their own time. */
    static void mkv_region_collapse(char *region, size_t bytes) {
        mkv_region_advise(region, bytes);
    #ifdef __linux__
        madvise(region, bytes, 25);   /* MADV_COLLAPSE, which older headers lack */
    #endif
    }
    """
    void mkv_region_advise(char* region, size_t size_bytes) noexcept nogil
    void mkv_region_back(char* region, size_t size_bytes) noexcept nogil
    void mkv_region_collapse(char* region, size_t size_bytes) noexcept nogil


cdef status_t backer_create(Backer* backer) noexcept nogil:
    memset(backer, 0, sizeof(Backer))
    backer.owner = getpid()
    if pthread_mutex_init(&backer.lock, NULL):
        return STATUS_OUT_OF_MEMORY
    return STATUS_OUT_OF_MEMORY if pthread_cond_init(&backer.wanted, NULL) else STATUS_OK


cdef void backer_destroy(Backer* backer) noexcept nogil:
    cdef uint32_t i
    if backer.is_running and backer.owner == getpid():
        pthread_mutex_lock(&backer.lock)
        backer.is_ending = True
        pthread_cond_signal(&backer.wanted)
        pthread_mutex_unlock(&backer.lock)
        pthread_join(backer.thread, NULL)
        pthread_cond_destroy(&backer.wanted)
        pthread_mutex_destroy(&backer.lock)
    for i in range(backer.ready_count):
        region_unmap(backer.ready[i])
    free(backer.loose)
    memset(backer, 0, sizeof(Backer))


cdef char* backer_region(Backer* backer, uint32_t ahead, bint filled) noexcept nogil:
    cdef char* region = NULL
    pthread_mutex_lock(&backer.lock)
    if ahead and not backer.is_running:
        # Without the thread all goes on as before it was needed.
        backer.is_running = mkv_thread_start(&backer.thread, backer_run, backer) == 0
    backer.ready_wanted = ahead if ahead < READY_MAX else READY_MAX
    if backer.ready_count:
        backer.ready_count -= 1
        region = backer.ready[backer.ready_count]
    pthread_cond_signal(&backer.wanted)
    pthread_mutex_unlock(&backer.lock)
    if region != NULL:
        return region
    region = region_map()
    if region != NULL and filled:
        mkv_region_advise(region, REGION_BYTES)
    elif region != NULL:
        backer_note_loose(backer, region)
    return region


cdef size_t backer_ready_bytes(Backer* backer) noexcept nogil:
    cdef size_t ready
    pthread_mutex_lock(&backer.lock)
    ready = backer.ready_count * <size_t>REGION_BYTES
    pthread_mutex_unlock(&backer.lock)
    return ready


cdef void backer_note_loose(Backer* backer, char* region) noexcept nogil:
    """Where memory for the note lacks, the region keeps its small pages."""
    cdef uint32_t capacity
    cdef char** grown
    pthread_mutex_lock(&backer.lock)
    if backer.loose_count == backer.loose_capacity:
        capacity = 2 * backer.loose_capacity if backer.loose_capacity else 64
        grown = <char**>realloc(backer.loose, capacity * sizeof(char*))
        if grown != NULL:
            backer.loose = grown
            backer.loose_capacity = capacity
    if backer.loose_count < backer.loose_capacity:
        backer.loose[backer.loose_count] = region
        backer.loose_count += 1
    pthread_mutex_unlock(&backer.lock)


cdef void backer_forget_loose(Backer* backer) noexcept nogil:
    pthread_mutex_lock(&backer.lock)
    backer.loose_count = 0
    pthread_mutex_unlock(&backer.lock)


cdef void* backer_run(void* argument) noexcept nogil:
    """The thread: back what is wanted, then collapse what is loose, then sleep."""
    cdef Backer* backer = <Backer*>argument
    cdef char* region
    pthread_mutex_lock(&backer.lock)
    while not backer.is_ending:
        if backer.ready_count < backer.ready_wanted:
            pthread_mutex_unlock(&backer.lock)
            region = region_map()
            if region != NULL:
                mkv_region_back(region, REGION_BYTES)
            pthread_mutex_lock(&backer.lock)
            if region == NULL:
                # Whoever needs memory next will see that there is none, and try again.
                backer.ready_wanted = 0
            else:
                backer.ready[backer.ready_count] = region
                backer.ready_count += 1
        elif backer.loose_count:
            # The oldest of those noted first: the newest is being filled.
            region = backer.loose[0]
            backer.loose_count -= 1
            backer.loose[0] = backer.loose[backer.loose_count]
            pthread_mutex_unlock(&backer.lock)
            mkv_region_collapse(region, REGION_BYTES)
            pthread_mutex_lock(&backer.lock)
        else:
            pthread_cond_wait(&backer.wanted, &backer.lock)
    pthread_mutex_unlock(&backer.lock)
    return NULL


cdef char* region_map() noexcept nogil:
    """Map twice the bytes and give back what lies outside the aligned region."""
    cdef char* base = <char*>mmap(
        NULL, 2 * REGION_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0)
    cdef size_t before
    if base == <char*>MAP_FAILED:
        return NULL
    before = (REGION_BYTES - (<uintptr_t>base & (REGION_BYTES - 1))) & (REGION_BYTES - 1)
    if before:
        munmap(base, before)
    munmap(base + before + REGION_BYTES, REGION_BYTES - before)
    return base + before


cdef void region_unmap(char* region) noexcept nogil:
    munmap(region, REGION_BYTES)
