"""One more thread for a store's large changes. See _helper.pxd."""

from libc.string cimport memset

from monolith_kv._thread cimport (
    getpid,
    mkv_thread_start,
    pthread_cond_broadcast,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_wait,
    pthread_join,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from monolith_kv._types cimport STATUS_OK, STATUS_OUT_OF_MEMORY, status_t

cdef extern from "atomics.h" nogil:
    void MKV_STORE(int* place, int value)


cdef status_t helper_create(HelperThread* helper) noexcept nogil:
    memset(helper, 0, sizeof(HelperThread))
    helper.owner = getpid()
    if pthread_mutex_init(&helper.lock, NULL):
        return STATUS_OUT_OF_MEMORY
    return STATUS_OUT_OF_MEMORY if pthread_cond_init(&helper.changed, NULL) else STATUS_OK


cdef void helper_destroy(HelperThread* helper) noexcept nogil:
    if not helper_is_here(helper):
        return
    if helper.is_running:
        pthread_mutex_lock(&helper.lock)
        helper.is_ending = True
        pthread_cond_broadcast(&helper.changed)
        pthread_mutex_unlock(&helper.lock)
        pthread_join(helper.thread, NULL)
    pthread_cond_destroy(&helper.changed)
    pthread_mutex_destroy(&helper.lock)


cdef bint helper_is_here(const HelperThread* helper) noexcept nogil:
    return helper.owner == getpid()


cdef bint helper_offer(HelperThread* helper, const Work* work) noexcept nogil:
    cdef bint is_taken
    pthread_mutex_lock(&helper.lock)
    if not helper.is_running:
        # Without the thread all goes on as before it was needed.
        helper.is_running = mkv_thread_start(&helper.thread, helper_run, helper) == 0
    is_taken = helper.is_running and helper.stage == STAGE_IDLE
    if is_taken:
        helper.work = work
        MKV_STORE(&helper.is_cool, False)
        locked_stage(helper, STAGE_OFFERED)
    pthread_mutex_unlock(&helper.lock)
    return is_taken


cdef void helper_settle(HelperThread* helper) noexcept nogil:
    pthread_mutex_lock(&helper.lock)
    if helper.stage == STAGE_OFFERED:
        locked_prepare(helper)
    while helper.stage == STAGE_PREPARING:
        pthread_cond_wait(&helper.changed, &helper.lock)
    pthread_mutex_unlock(&helper.lock)


cdef void helper_cool(HelperThread* helper) noexcept nogil:
    MKV_STORE(&helper.is_cool, True)


cdef void helper_go(HelperThread* helper) noexcept nogil:
    pthread_mutex_lock(&helper.lock)
    locked_stage(helper, STAGE_MAKING)
    pthread_mutex_unlock(&helper.lock)


cdef void helper_finish(HelperThread* helper) noexcept nogil:
    helper_cool(helper)
    pthread_mutex_lock(&helper.lock)
    while helper.stage == STAGE_PREPARING or helper.is_busy:
        pthread_cond_wait(&helper.changed, &helper.lock)
    helper.stage = STAGE_IDLE
    pthread_mutex_unlock(&helper.lock)


cdef void locked_stage(HelperThread* helper, Stage stage) noexcept nogil:
    helper.stage = stage
    pthread_cond_broadcast(&helper.changed)


cdef void locked_prepare(HelperThread* helper) noexcept nogil:
    """The lock is let go meanwhile, as below."""
    helper.stage = STAGE_PREPARING
    pthread_mutex_unlock(&helper.lock)
    helper.work.prepare(helper.work.what)
    pthread_mutex_lock(&helper.lock)
    locked_stage(helper, STAGE_PREPARED)


cdef void locked_warm(HelperThread* helper) noexcept nogil:
    helper.is_busy = True
    pthread_mutex_unlock(&helper.lock)
    helper.work.warm(helper.work.what, &helper.is_cool)
    pthread_mutex_lock(&helper.lock)
    helper.is_busy = False
    locked_stage(helper, STAGE_WARMED if helper.stage == STAGE_PREPARED else helper.stage)


cdef void locked_make(HelperThread* helper) noexcept nogil:
    helper.is_busy = True
    pthread_mutex_unlock(&helper.lock)
    helper.work.make(helper.work.what)
    pthread_mutex_lock(&helper.lock)
    helper.is_busy = False
    locked_stage(helper, STAGE_MADE)


cdef void* helper_run(void* argument) noexcept nogil:
    cdef HelperThread* helper = <HelperThread*>argument
    pthread_mutex_lock(&helper.lock)
    while not helper.is_ending:
        if helper.stage == STAGE_OFFERED:
            locked_prepare(helper)
        elif helper.stage == STAGE_PREPARED:
            locked_warm(helper)
        elif helper.stage == STAGE_MAKING:
            locked_make(helper)
        else:
            pthread_cond_wait(&helper.changed, &helper.lock)
    pthread_mutex_unlock(&helper.lock)
    return NULL
