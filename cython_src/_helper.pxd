"""One more thread for a store's large changes, which are made one after the other.

Work has three steps: to find out whether it can be made, by whoever of the two threads comes first;
to warm what it will need, by the helper alone, until it has to be made; and to make it, by both,
each taking what is left. Who gives the work goes on with something else in between (the log):
nobody ever waits for the helper to wake up, only for what it has begun.
"""

from monolith_kv._thread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from monolith_kv._types cimport status_t

cdef struct Work:
    void (*prepare)(void* what) noexcept nogil
    void (*warm)(void* what, const int* is_cool) noexcept nogil
    void (*make)(void* what) noexcept nogil
    void* what

cdef enum Stage:
    STAGE_IDLE
    STAGE_OFFERED
    STAGE_PREPARING
    STAGE_PREPARED
    STAGE_WARMED
    STAGE_MAKING
    STAGE_MADE         # the helper has found nothing left to be taken

cdef struct HelperThread:
    pthread_mutex_t lock
    pthread_cond_t changed
    pthread_t thread
    bint is_running
    int owner                      # process that has the thread; a forked child has none
    # All below is guarded by lock.
    bint is_ending
    Stage stage
    bint is_busy                   # the helper is at it
    int is_cool                    # enough of warming; atomic
    const Work* work

cdef status_t helper_create(HelperThread* helper) noexcept nogil
cdef void helper_destroy(HelperThread* helper) noexcept nogil
# Whether this process has the thread: in a forked child none of what follows may be called.
cdef bint helper_is_here(const HelperThread* helper) noexcept nogil
# The order of calls, by one thread at a time. Where an offer is not taken there is no other call.
cdef bint helper_offer(HelperThread* helper, const Work* work) noexcept nogil
cdef void helper_settle(HelperThread* helper) noexcept nogil   # prepared when this returns
cdef void helper_cool(HelperThread* helper) noexcept nogil     # no more warming
cdef void helper_go(HelperThread* helper) noexcept nogil       # from now on it is made
cdef void helper_finish(HelperThread* helper) noexcept nogil   # it is done with it, made or not
