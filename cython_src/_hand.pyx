"""One more thread for a store's large changes. See _hand.pxd."""

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


cdef status_t hand_create(Hand* hand) noexcept nogil:
    memset(hand, 0, sizeof(Hand))
    hand.owner = getpid()
    if pthread_mutex_init(&hand.lock, NULL):
        return STATUS_OUT_OF_MEMORY
    return STATUS_OUT_OF_MEMORY if pthread_cond_init(&hand.changed, NULL) else STATUS_OK


cdef void hand_destroy(Hand* hand) noexcept nogil:
    if hand.owner != getpid():
        return
    if hand.is_running:
        pthread_mutex_lock(&hand.lock)
        hand.is_ending = True
        pthread_cond_broadcast(&hand.changed)
        pthread_mutex_unlock(&hand.lock)
        pthread_join(hand.thread, NULL)
    pthread_cond_destroy(&hand.changed)
    pthread_mutex_destroy(&hand.lock)


cdef bint hand_offer(Hand* hand, const Work* work) noexcept nogil:
    cdef bint is_taken
    pthread_mutex_lock(&hand.lock)
    if not hand.is_running:
        # Without the thread all goes on as before it was needed.
        hand.is_running = mkv_thread_start(&hand.thread, hand_run, hand) == 0
    is_taken = hand.is_running and hand.stage == STAGE_IDLE
    if is_taken:
        hand.work = work
        MKV_STORE(&hand.is_warm, False)
        locked_stage(hand, STAGE_OFFERED)
    pthread_mutex_unlock(&hand.lock)
    return is_taken


cdef void hand_settle(Hand* hand) noexcept nogil:
    pthread_mutex_lock(&hand.lock)
    if hand.stage == STAGE_OFFERED:
        locked_prepare(hand)
    while hand.stage == STAGE_PREPARING:
        pthread_cond_wait(&hand.changed, &hand.lock)
    pthread_mutex_unlock(&hand.lock)


cdef void hand_go(Hand* hand) noexcept nogil:
    MKV_STORE(&hand.is_warm, True)
    pthread_mutex_lock(&hand.lock)
    locked_stage(hand, STAGE_MAKING)
    pthread_mutex_unlock(&hand.lock)


cdef void hand_finish(Hand* hand) noexcept nogil:
    MKV_STORE(&hand.is_warm, True)
    pthread_mutex_lock(&hand.lock)
    while hand.stage == STAGE_PREPARING or hand.is_busy:
        pthread_cond_wait(&hand.changed, &hand.lock)
    hand.stage = STAGE_IDLE
    pthread_mutex_unlock(&hand.lock)


cdef void locked_stage(Hand* hand, Stage stage) noexcept nogil:
    hand.stage = stage
    pthread_cond_broadcast(&hand.changed)


cdef void locked_prepare(Hand* hand) noexcept nogil:
    """The lock is let go meanwhile, as below."""
    hand.stage = STAGE_PREPARING
    pthread_mutex_unlock(&hand.lock)
    hand.work.prepare(hand.work.what)
    pthread_mutex_lock(&hand.lock)
    locked_stage(hand, STAGE_PREPARED)


cdef void locked_warm(Hand* hand) noexcept nogil:
    hand.is_busy = True
    pthread_mutex_unlock(&hand.lock)
    hand.work.warm(hand.work.what, &hand.is_warm)
    pthread_mutex_lock(&hand.lock)
    hand.is_busy = False
    locked_stage(hand, STAGE_WARMED if hand.stage == STAGE_PREPARED else hand.stage)


cdef void locked_make(Hand* hand) noexcept nogil:
    hand.is_busy = True
    pthread_mutex_unlock(&hand.lock)
    hand.work.make(hand.work.what)
    pthread_mutex_lock(&hand.lock)
    hand.is_busy = False
    locked_stage(hand, STAGE_MADE)


cdef void* hand_run(void* argument) noexcept nogil:
    cdef Hand* hand = <Hand*>argument
    pthread_mutex_lock(&hand.lock)
    while not hand.is_ending:
        if hand.stage == STAGE_OFFERED:
            locked_prepare(hand)
        elif hand.stage == STAGE_PREPARED:
            locked_warm(hand)
        elif hand.stage == STAGE_MAKING:
            locked_make(hand)
        else:
            pthread_cond_wait(&hand.changed, &hand.lock)
    pthread_mutex_unlock(&hand.lock)
    return NULL
