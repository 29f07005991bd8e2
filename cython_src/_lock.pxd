"""A lock that any number of readers share. All inline.

A waiting writer goes before new readers where the system offers that, or a stream of reads would
keep it waiting for ever. A writer with much to do lets readers in between two steps: lock_pass.
"""

from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, status_t

cdef extern from *:
    """
    #include <pthread.h>
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
    #define MKV_ADD(place, value) __atomic_fetch_add(place, value, __ATOMIC_RELAXED)
    #define MKV_LOAD(place) __atomic_load_n(place, __ATOMIC_RELAXED)
    """
    int mkv_lock_init(pthread_rwlock_t* lock) noexcept nogil
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
    # To sleep and be woken takes longer than most calls hold a lock: some 10 us are spent trying.
    LOCK_TRIES = 400
    LOCK_PASS_TRIES = 50       # as long as a reader may need to see that the lock is free

cdef struct Lock:
    pthread_rwlock_t lock
    int readers_waiting


cdef inline status_t lock_create(Lock* lock) noexcept nogil:
    lock.readers_waiting = 0
    return STATUS_OUT_OF_MEMORY if mkv_lock_init(&lock.lock) else STATUS_OK


cdef inline void lock_destroy(Lock* lock) noexcept nogil:
    pthread_rwlock_destroy(&lock.lock)


cdef inline bint lock_try_alone(Lock* lock) noexcept nogil:
    return pthread_rwlock_trywrlock(&lock.lock) == 0


cdef inline void lock_alone(Lock* lock) noexcept nogil:
    cdef int _try
    for _try in range(LOCK_TRIES):
        if lock_try_alone(lock):
            return
        MKV_PAUSE()
    pthread_rwlock_wrlock(&lock.lock)


cdef inline bint lock_try_shared(Lock* lock) noexcept nogil:
    return pthread_rwlock_tryrdlock(&lock.lock) == 0


cdef inline void lock_shared(Lock* lock) noexcept nogil:
    cdef int _try
    if lock_try_shared(lock):
        return
    MKV_ADD(&lock.readers_waiting, 1)
    for _try in range(LOCK_TRIES):
        if lock_try_shared(lock):
            break
        MKV_PAUSE()
    else:
        pthread_rwlock_rdlock(&lock.lock)
    MKV_ADD(&lock.readers_waiting, -1)


cdef inline void lock_leave(Lock* lock) noexcept nogil:
    pthread_rwlock_unlock(&lock.lock)


cdef inline void lock_pass(Lock* lock) noexcept nogil:
    """Let readers that wait in; the lock is held alone before and after."""
    cdef int _try
    if MKV_LOAD(&lock.readers_waiting) == 0:
        return
    lock_leave(lock)
    for _try in range(LOCK_PASS_TRIES):
        if MKV_LOAD(&lock.readers_waiting) == 0:
            break
        MKV_PAUSE()
    lock_alone(lock)
