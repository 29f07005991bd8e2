/* Reads of one record and its checksum at a position of a file. */
#ifndef MKV_ROWFILE_H
#define MKV_ROWFILE_H

#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <sys/uio.h>
#include <unistd.h>

/* Whether the record was in the page cache and is read now; never waits for the disk. */
static int mkv_read_cached(int fd, uint8_t *record, size_t size, uint32_t *sum, int64_t offset) {
#if defined(__linux__) && defined(RWF_NOWAIT)
    struct iovec parts[2] = {{record, size}, {sum, sizeof *sum}};
    return preadv2(fd, parts, 2, offset, RWF_NOWAIT) == (ssize_t)(size + sizeof *sum);
#else
    (void)fd, (void)record, (void)size, (void)sum, (void)offset;
    return 0;
#endif
}

/* Let the disk begin with it: many such requests are under way at once. */
static void mkv_read_ask(int fd, size_t size, int64_t offset) {
#ifdef POSIX_FADV_WILLNEED
    posix_fadvise(fd, offset, (off_t)size, POSIX_FADV_WILLNEED);
#else
    (void)fd, (void)size, (void)offset;
#endif
}

/* How many bytes there are, -1 where the disk fails; waits for it. */
static int64_t mkv_read_whole(int fd, uint8_t *data, size_t size, int64_t offset) {
    int64_t total = 0;
    while ((size_t)total < size) {
        ssize_t got = pread(fd, data + total, size - (size_t)total, offset + total);
        if (got < 0 && errno == EINTR) continue;
        if (got < 0) return -1;
        if (got == 0) break;
        total += got;
    }
    return total;
}

#endif
