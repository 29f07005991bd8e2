"""A lock that any number of readers share. All inline.

A waiting writer goes before new readers where the system offers that, or a stream of reads would
keep it waiting for ever. A writer with much to do lets readers in between two steps: lock_pass; and
who only reads, but has to mark what it has read, lets in whoever waits: lock_pass_any.
"""

from libc.stdint cimport int64_t

from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, status_t

cdef extern from *:
    """
    #include <pthread.h>
    #include <time.h>
    static int mkv_lock_init(pthread_rwlock_t *lock) {
        pthread_rwlockattr_t attributes;
        int failed = pthread_rwlockattr_init(&attributes);
        if (failed) return failed;
    #ifdef PTHREAD_RWLOCK_WRITER_NONRECURSIVE_INITIALIZER_NP
        pthread_rwlockattr_setkind_np(
            &attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    #endif
        failed = pthread_rwlock_init(lock, &attributes);
        pthread_rwlockattr_destroy(&attributes);
        return failed;
    }
    #if defined(__x86_64__)
    #define MKV_PAUSE() __builtin_ia32_pause()
    #elif defined(__aarch64__)
    #define MKV_PAUSE() __asm__ volatile("yield")
    #else
    #define MKV_PAUSE() ((void)0)
    #endif
    static inline int64_t mkv_lock_now_ns(void) {
        struct timespec now;
        clock_gettime(CLOCK_MONOTONIC, &now);
        return (int64_t)now.tv_sec * 1000000000 + now.tv_nsec;
    }
    #define MKV_ADD(place, value) __atomic_fetch_add(place, value, __ATOMIC_RELAXED)
    #define MKV_LOAD(place) __atomic_load_n(place, __ATOMIC_RELAXED)
    """
    int mkv_lock_init(pthread_rwlock_t* lock) noexcept nogil
    int64_t mkv_lock_now_ns() noexcept nogil
    void MKV_PAUSE() noexcept nogil
    void MKV_ADD(int* place, int value) noexcept nogil
    int MKV_LOAD(const int* place) noexcept nogil

cdef extern from "<pthread.h>" nogil:
    ctypedef struct pthread_rwlock_t:
        pass
    int pthread_rwlock_destroy(pthread_rwlock_t* lock)
    int pthread_rwlock_rdlock(pthread_rwlock_t* lock)
    int pthread_rwlock_tryrdlock(pthread_rwlock_t* lock)
    int pthread_rwlock_wrlock(pthread_rwlock_t* lock)
    int pthread_rwlock_trywrlock(pthread_rwlock_t* lock)
    int pthread_rwlock_unlock(pthread_rwlock_t* lock)

cdef enum:
    # A thread that sleeps is woken some 50 to 100 us late: longer than a lookup of 512 ids (35 us)
    # or a writer's step (5 to 15 us) holds a lock. So long is tried before; by the clock, since a
    # pause takes 20 ns on one machine and 60 on another. A reader tries once with the GIL, once
    # without.
    LOCK_ALONE_NS = 40000
    LOCK_SHARED_NS = 20000
    LOCK_PASS_NS = 2000        # as long as a reader may need to see that the lock is free
    LOCK_PAUSES = 8            # between two looks at the clock
    PASS_IDS = 16              # who inserts lets readers in after so many ids: some 15 us

cdef struct Lock:
    pthread_rwlock_t lock
    int readers_waiting
    int writers_waiting


cdef inline status_t lock_create(Lock* lock) noexcept nogil:
    lock.readers_waiting = lock.writers_waiting = 0
    return STATUS_OUT_OF_MEMORY if mkv_lock_init(&lock.lock) else STATUS_OK


cdef inline void lock_destroy(Lock* lock) noexcept nogil:
    pthread_rwlock_destroy(&lock.lock)


cdef inline bint lock_try_alone(Lock* lock) noexcept nogil:
    return pthread_rwlock_trywrlock(&lock.lock) == 0


cdef inline void lock_alone(Lock* lock) noexcept nogil:
    cdef int64_t end
    cdef int _pause
    cdef bint is_alone = lock_try_alone(lock)
    if is_alone:
        return
    MKV_ADD(&lock.writers_waiting, 1)
    end = mkv_lock_now_ns() + LOCK_ALONE_NS
    while not is_alone and mkv_lock_now_ns() < end:
        for _pause in range(LOCK_PAUSES):
            MKV_PAUSE()
            is_alone = lock_try_alone(lock)
            if is_alone:
                break
    if not is_alone:
        pthread_rwlock_wrlock(&lock.lock)
    MKV_ADD(&lock.writers_waiting, -1)


cdef inline bint lock_try_shared(Lock* lock) noexcept nogil:
    return pthread_rwlock_tryrdlock(&lock.lock) == 0


cdef inline bint lock_shared_soon(Lock* lock, bint is_patient) noexcept nogil:
    """Share a lock once it is free; not patient: False if that takes LOCK_SHARED_NS."""
    cdef int64_t end
    cdef int _pause
    cdef bint is_shared = lock_try_shared(lock)
    if is_shared:
        return True
    MKV_ADD(&lock.readers_waiting, 1)
    end = mkv_lock_now_ns() + LOCK_SHARED_NS
    while not is_shared and mkv_lock_now_ns() < end:
        for _pause in range(LOCK_PAUSES):
            MKV_PAUSE()
            is_shared = lock_try_shared(lock)
            if is_shared:
                break
    if not is_shared and is_patient:
        is_shared = pthread_rwlock_rdlock(&lock.lock) == 0
    MKV_ADD(&lock.readers_waiting, -1)
    return is_shared


cdef inline void lock_shared(Lock* lock) noexcept nogil:
    lock_shared_soon(lock, True)


cdef inline void lock_leave(Lock* lock) noexcept nogil:
    pthread_rwlock_unlock(&lock.lock)


cdef inline bint lock_is_wanted(Lock* lock, bint by_writers) noexcept nogil:
    return MKV_LOAD(&lock.readers_waiting) + by_writers * MKV_LOAD(&lock.writers_waiting) != 0


cdef inline bint lock_pass_some(Lock* lock, bint to_writers) noexcept nogil:
    cdef int64_t end
    if not lock_is_wanted(lock, to_writers):
        return False
    lock_leave(lock)
    end = mkv_lock_now_ns() + LOCK_PASS_NS
    while lock_is_wanted(lock, to_writers) and mkv_lock_now_ns() < end:
        MKV_PAUSE()
    lock_alone(lock)
    return True


cdef inline bint lock_pass(Lock* lock) noexcept nogil:
    """Let readers that wait in; whether there were any: others may have come in, too.

    The lock is held alone before and after.
    """
    return lock_pass_some(lock, False)


cdef inline bint lock_pass_any(Lock* lock) noexcept nogil:
    """As lock_pass, for writers that wait, too."""
    return lock_pass_some(lock, True)
