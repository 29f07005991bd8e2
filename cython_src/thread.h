/* Threads of the data plane, which never run Python. */
#ifndef MKV_THREAD_H
#define MKV_THREAD_H
#include <pthread.h>
#include <signal.h>

/* Signals are for the threads of the application: their handlers are Python's. */
static inline int mkv_thread_start(pthread_t *thread, void *(*run)(void *), void *argument)
{
    sigset_t all, before;
    int failed;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    failed = pthread_create(thread, NULL, run, argument);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    return failed;
}
#endif
