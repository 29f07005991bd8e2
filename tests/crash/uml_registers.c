/* Preload into user-mode-linux: hand all of the processor's registers back to a guest's thread.

   The kernel in Debian 12 keeps 832 bytes of them, as many as AVX has, and gives these back by
   PTRACE_SETREGSET. A host with AVX-512 refuses that as too short, and the guest dies at its first
   instruction. Here the whole state is kept for each thread, and what the guest gives back is laid
   over its beginning. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <elf.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum {
    STATE_BYTES_MAX = 16384, /* 11,008 with AMX, the widest there is. */
    FEATURES = 512,          /* Where the XSAVE header has its mask of the parts in use. */
    FEATURES_KEPT = 7,       /* x87, SSE, AVX: what lies in the first 832 bytes. */
    THREADS_MAX = 512,
};

typedef struct {
    void *buffer; /* Of the guest's thread, in its kernel: what tells one thread from another. */
    size_t bytes;
    unsigned char state[STATE_BYTES_MAX];
} thread_state;

static thread_state threads[THREADS_MAX];

static thread_state *thread_of(void *buffer)
{
    size_t start = ((uintptr_t)buffer >> 6) % THREADS_MAX;
    for (size_t i = 0; i < THREADS_MAX; i++) {
        thread_state *each = &threads[(start + i) % THREADS_MAX];
        if (each->buffer == buffer || each->buffer == NULL) {
            each->buffer = buffer;
            return each;
        }
    }
    return &threads[start]; /* Taken from another thread, whose widest registers are lost. */
}

static long registers(int request, pid_t pid, long what, struct iovec *given)
{
    thread_state *thread = thread_of(given->iov_base);
    struct iovec whole = {thread->state, STATE_BYTES_MAX};
    uint64_t rest, features;
    if (request == PTRACE_GETREGSET || thread->bytes == 0) {
        long failed = syscall(SYS_ptrace, PTRACE_GETREGSET, pid, what, &whole);
        if (failed)
            return failed;
        thread->bytes = whole.iov_len;
    }
    if (given->iov_len > thread->bytes)
        given->iov_len = thread->bytes;
    if (request == PTRACE_GETREGSET) {
        memcpy(given->iov_base, thread->state, given->iov_len);
        return 0;
    }
    memcpy(&rest, thread->state + FEATURES, sizeof rest);
    memcpy(thread->state, given->iov_base, given->iov_len);
    memcpy(&features, thread->state + FEATURES, sizeof features);
    features = (features & FEATURES_KEPT) | (rest & ~(uint64_t)FEATURES_KEPT);
    memcpy(thread->state + FEATURES, &features, sizeof features);
    whole.iov_len = thread->bytes;
    return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, what, &whole);
}

long ptrace(enum __ptrace_request request, ...)
{
    static long (*next)(int, long, long, void *);
    va_list rest;
    va_start(rest, request);
    long pid = va_arg(rest, pid_t), what = va_arg(rest, long);
    void *data = va_arg(rest, void *);
    va_end(rest);
    if ((request == PTRACE_GETREGSET || request == PTRACE_SETREGSET) && what == NT_X86_XSTATE)
        return registers(request, (pid_t)pid, what, data);
    if (next == NULL)
        next = (long (*)(int, long, long, void *))dlsym(RTLD_NEXT, "ptrace");
    return next(request, pid, what, data);
}
