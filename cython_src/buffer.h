/* The bytes of a buffer: from the heap, but mapped where they are many. The heap would keep what is
   freed of those, and a process that once took a snapshot would never be small again. */
#ifndef MKV_BUFFER_H
#define MKV_BUFFER_H

#include <stdlib.h>
#include <string.h>

#ifdef __linux__
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <sys/mman.h>

#define MKV_MAPPED_MIN ((size_t)1 << 20)

/* Grows `bytes` from `old` bytes, NULL from 0, to more; NULL where memory lacks. */
static inline void *mkv_bytes_grow(void *bytes, size_t old, size_t size) {
    void *grown;
    if (size < MKV_MAPPED_MIN) return realloc(bytes, size);
    if (old >= MKV_MAPPED_MIN) {
        grown = mremap(bytes, old, size, MREMAP_MAYMOVE);
        return grown == MAP_FAILED ? NULL : grown;
    }
    grown = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (grown == MAP_FAILED) return NULL;
    if (old) memcpy(grown, bytes, old);
    free(bytes);
    return grown;
}

static inline void mkv_bytes_free(void *bytes, size_t size) {
    if (size >= MKV_MAPPED_MIN) munmap(bytes, size);
    else free(bytes);
}
#else
static inline void *mkv_bytes_grow(void *bytes, size_t old, size_t size) {
    (void)old;
    return realloc(bytes, size);
}

static inline void mkv_bytes_free(void *bytes, size_t size) {
    (void)size;
    free(bytes);
}
#endif
#endif
