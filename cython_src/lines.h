/* Whole cache lines, from the heap where they are few: large ones are mapped, since the heap would
   keep them when they are freed. */
#ifndef MKV_LINES_H
#define MKV_LINES_H

#include <stdlib.h>
#include <sys/mman.h>

#define MKV_MAPPED_FROM 65536

static void *mkv_lines_allocate(size_t bytes) {
    void *lines = NULL;
    if (bytes >= MKV_MAPPED_FROM) {
        lines = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        return lines == MAP_FAILED ? NULL : lines;
    }
    return posix_memalign(&lines, 64, bytes) ? NULL : lines;
}

static void mkv_lines_free(void *lines, size_t bytes) {
    if (bytes >= MKV_MAPPED_FROM)
        munmap(lines, bytes);
    else
        free(lines);
}

#endif
