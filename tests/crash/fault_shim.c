/* Lets calls on files below one folder, or allocations of some libraries, fail: for LD_PRELOAD.

   Nothing happens before fault_arm() or fault_arm_memory(). From there on calls are counted, and from
   the chosen one on they fail, are cut short or kill the process. Only calls of the classes in the
   mask count: a full disk refuses what takes room and goes on reading. The process arms itself
   through ctypes (see shim.py), so a warm one can fork a child for each point. */

#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

/* The classes and actions of shim.py. */
enum { OPEN = 1, CREATE = 2, READ = 4, WRITE = 8, SYNC = 16, TRUNCATE = 32, RENAME = 64, LINK = 128,
       UNLINK = 256, MKDIR = 512, LOCK = 1024, MAP = 2048 };
enum { COUNT, FAIL, SHORT, KILL, TORN, FULL };
enum { GO_ON, REFUSE, HALVE, HALVE_AND_DIE };
enum { LOGGED_MAX = 4096, RANGES_MAX = 64 };

static struct {
    volatile int armed;
    char root[PATH_MAX];
    size_t root_length;
    int mask, action, error, sticky;
    long at;
    volatile long calls, fired;
    char log[LOGGED_MAX][96];
    int classes[LOGGED_MAX];
} file;

static struct {
    volatile int armed;
    int sticky;
    long at;
    volatile long calls, fired;
    int ranges;
    char *begin[RANGES_MAX], *end[RANGES_MAX];
} memory;

/* --- the doors for ctypes ------------------------------------------------------------------ */

void fault_arm(const char *root, int mask, long at, int action, int error, int sticky) {
    file.root_length = strlen(root);
    memcpy(file.root, root, file.root_length + 1);
    file.mask = mask, file.at = at, file.action = action, file.error = error, file.sticky = sticky;
    file.calls = file.fired = 0;
    file.armed = 1;
}

/* Ends it until fault_resume(): what the test itself does is not counted. */
void fault_disarm(void) { file.armed = memory.armed = 0; }
void fault_resume(int in_memory) { file.armed = !in_memory, memory.armed = in_memory; }
long fault_calls(void) { return file.calls; }
long fault_fired(void) { return file.fired + memory.fired; }
int fault_class(long number) { return number < LOGGED_MAX ? file.classes[number] : 0; }
const char *fault_log(long number) { return number < LOGGED_MAX ? file.log[number] : "?"; }

void fault_range(void *begin, void *end) {
    memory.begin[memory.ranges] = begin, memory.end[memory.ranges] = end;
    memory.ranges += memory.ranges < RANGES_MAX - 1;
}

void fault_arm_memory(long at, int sticky) {
    memory.at = at, memory.sticky = sticky, memory.calls = memory.fired = 0;
    memory.armed = 1;
}

long fault_allocations(void) { return memory.calls; }

/* --- which call is it ---------------------------------------------------------------------- */

static int below(const char *path) {
    return strncmp(path, file.root, file.root_length) == 0;
}

static const char *path_of(int fd, char *buffer) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, buffer, PATH_MAX - 1);
    buffer[length < 0 ? 0 : length] = 0;
    return buffer;
}

static int decide(int class, const char *name, const char *path) {
    if (!(class & file.mask) || !below(path)) return GO_ON;
    long number = __sync_fetch_and_add(&file.calls, 1);
    if (number < LOGGED_MAX)
        file.classes[number] = class,
        snprintf(file.log[number], sizeof file.log[0], "%s %.80s", name, path + file.root_length);
    if (number < file.at || (number > file.at && !file.sticky)) return GO_ON;
    if (file.action == COUNT) return GO_ON;
    __sync_fetch_and_add(&file.fired, 1);
    if (file.action == KILL) kill(getpid(), SIGKILL);
    if (file.action == TORN) return HALVE_AND_DIE;
    if (file.action == SHORT || (file.action == FULL && number == file.at && class == WRITE))
        return HALVE;
    return REFUSE;
}

static int at_path(int class, const char *name, int folder, const char *path) {
    char buffer[2 * PATH_MAX];
    if (!file.armed) return GO_ON;
    if (path[0] != '/' && folder != AT_FDCWD) {
        path_of(folder, buffer);
        size_t length = strlen(buffer);
        snprintf(buffer + length, sizeof buffer - length, "/%s", path);
        path = buffer;
    }
    return decide(class, name, path);
}

static int at_file(int class, const char *name, int fd) {
    char buffer[PATH_MAX];
    return file.armed && fd >= 0 ? decide(class, name, path_of(fd, buffer)) : GO_ON;
}

static int refused(void) {
    errno = file.error;
    return -1;
}

static size_t half(size_t size) { return size > 1 ? size / 2 : size; }

static ssize_t after(int decision, ssize_t result) {
    if (decision == HALVE_AND_DIE) kill(getpid(), SIGKILL);
    return result;
}

#define REAL(name) ({ \
    static __typeof__(&name) real; \
    if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name); \
    real; })

/* --- calls on names ------------------------------------------------------------------------ */

/* Opening a file that is there takes no room, whatever the flags. */
static int opening(int flags, int folder, const char *path) {
    return flags & O_CREAT && faccessat(folder, path, F_OK, 0) ? CREATE : OPEN;
}

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (file.armed && at_path(opening(flags, AT_FDCWD, path), "open", AT_FDCWD, path)) return refused(); \
        return REAL(name)(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
    int name(int folder, const char *path, int flags, ...) { \
        va_list rest; va_start(rest, flags); \
        mode_t mode = flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0; \
        va_end(rest); \
        if (file.armed && at_path(opening(flags, folder, path), "openat", folder, path)) return refused(); \
        return REAL(name)(folder, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

DIR *opendir(const char *path) {
    if (at_path(OPEN, "opendir", AT_FDCWD, path)) return refused(), NULL;
    return REAL(opendir)(path);
}

#define ON_PATH(type, class, name, folder, path, parameters, arguments) \
    type name parameters { \
        if (at_path(class, #name, folder, path)) return refused(); \
        return REAL(name) arguments; \
    }
ON_PATH(int, RENAME, rename, AT_FDCWD, from, (const char *from, const char *to), (from, to))
ON_PATH(int, RENAME, renameat, a, from, (int a, const char *from, int b, const char *to),
        (a, from, b, to))
ON_PATH(int, RENAME, renameat2, a, from,
        (int a, const char *from, int b, const char *to, unsigned flags), (a, from, b, to, flags))
ON_PATH(int, LINK, link, AT_FDCWD, from, (const char *from, const char *to), (from, to))
ON_PATH(int, LINK, linkat, a, from, (int a, const char *from, int b, const char *to, int flags),
        (a, from, b, to, flags))
ON_PATH(int, UNLINK, unlink, AT_FDCWD, path, (const char *path), (path))
ON_PATH(int, UNLINK, unlinkat, folder, path, (int folder, const char *path, int flags),
        (folder, path, flags))
ON_PATH(int, UNLINK, rmdir, AT_FDCWD, path, (const char *path), (path))
ON_PATH(int, MKDIR, mkdir, AT_FDCWD, path, (const char *path, mode_t mode), (path, mode))
ON_PATH(int, MKDIR, mkdirat, folder, path, (int folder, const char *path, mode_t mode),
        (folder, path, mode))

/* --- calls on descriptors ------------------------------------------------------------------ */

#define ON_FILE(class, name, parameters, arguments) \
    int name parameters { \
        if (at_file(class, #name, fd)) return refused(); \
        return REAL(name) arguments; \
    }
ON_FILE(SYNC, fsync, (int fd), (fd))
ON_FILE(SYNC, fdatasync, (int fd), (fd))
ON_FILE(TRUNCATE, ftruncate, (int fd, off_t size), (fd, size))
ON_FILE(TRUNCATE, ftruncate64, (int fd, off64_t size), (fd, size))
ON_FILE(WRITE, posix_fallocate, (int fd, off_t offset, off_t size), (fd, offset, size))
ON_FILE(LOCK, flock, (int fd, int operation), (fd, operation))

#define MOVES(class, name, data_type, offset_parameter, ...) \
    ssize_t name(int fd, data_type data, size_t size offset_parameter) { \
        int decision = at_file(class, #name, fd); \
        if (decision == REFUSE) return refused(); \
        if (decision != GO_ON) size = half(size); \
        return after(decision, REAL(name)(fd, data, size __VA_ARGS__)); \
    }
#define COMMA ,
MOVES(READ, read, void *, )
MOVES(READ, pread, void *, COMMA off_t offset, COMMA offset)
MOVES(READ, pread64, void *, COMMA off64_t offset, COMMA offset)
MOVES(WRITE, write, const void *, )
MOVES(WRITE, pwrite, const void *, COMMA off_t offset, COMMA offset)
MOVES(WRITE, pwrite64, const void *, COMMA off64_t offset, COMMA offset)

/* Half of what several buffers hold: whole ones, then a part of the next. */
static int shorten(struct iovec *cut, const struct iovec *given, int count) {
    size_t total = 0, wanted;
    int used = 0;
    for (int i = 0; i < count; i++) total += given[i].iov_len;
    wanted = half(total);
    while (used < count && wanted) {
        cut[used] = given[used];
        if (cut[used].iov_len > wanted) cut[used].iov_len = wanted;
        wanted -= cut[used++].iov_len;
    }
    return used;
}

#define GATHERS(name, offset_parameter, ...) \
    ssize_t name(int fd, const struct iovec *given, int count offset_parameter) { \
        struct iovec cut[IOV_MAX]; \
        int decision = at_file(WRITE, #name, fd); \
        if (decision == REFUSE) return refused(); \
        if (decision != GO_ON) count = shorten(cut, given, count), given = cut; \
        return after(decision, REAL(name)(fd, given, count __VA_ARGS__)); \
    }
GATHERS(writev, )
GATHERS(pwritev, COMMA off_t offset, COMMA offset)
GATHERS(pwritev64, COMMA off64_t offset, COMMA offset)

/* --- memory -------------------------------------------------------------------------------- */

static int no_memory(void *caller) {
    if (!memory.armed) return 0;
    int i = 0;
    while (i < memory.ranges && !((char *)caller >= memory.begin[i] && (char *)caller < memory.end[i])) i++;
    if (i == memory.ranges) return 0;
    long number = __sync_fetch_and_add(&memory.calls, 1);
    if (number < memory.at || (number > memory.at && !memory.sticky)) return 0;
    __sync_fetch_and_add(&memory.fired, 1);
    errno = ENOMEM;
    return 1;
}

/* dlsym() allocates, so the originals are taken by the names that glibc has beside. */
void *__libc_malloc(size_t), *__libc_calloc(size_t, size_t), *__libc_realloc(void *, size_t);
void *__libc_memalign(size_t, size_t);

#define CALLER __builtin_return_address(0)

void *malloc(size_t size) { return no_memory(CALLER) ? NULL : __libc_malloc(size); }
void *calloc(size_t n, size_t size) { return no_memory(CALLER) ? NULL : __libc_calloc(n, size); }
void *realloc(void *old, size_t size) { return no_memory(CALLER) ? NULL : __libc_realloc(old, size); }
void *aligned_alloc(size_t a, size_t size) { return no_memory(CALLER) ? NULL : __libc_memalign(a, size); }

int posix_memalign(void **place, size_t alignment, size_t size) {
    void *made = no_memory(CALLER) ? NULL : __libc_memalign(alignment, size);
    if (made == NULL) return ENOMEM;
    *place = made;
    return 0;
}

#define MAPS(name, offset_type) \
    void *name(void *place, size_t size, int protection, int flags, int fd, offset_type offset) { \
        if (flags & MAP_ANONYMOUS ? no_memory(CALLER) : at_file(MAP, "mmap", fd) != GO_ON) { \
            errno = flags & MAP_ANONYMOUS ? ENOMEM : file.error; \
            return MAP_FAILED; \
        } \
        return REAL(name)(place, size, protection, flags, fd, offset); \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)
