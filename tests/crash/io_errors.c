/* Errors of system calls on the files of one folder, for LD_PRELOAD: the k-th call fails, or writes short.

   A call is counted, if its kind is among `kinds`, while it concerns a path below `prefix`. An fsync below `prefix`
   that does not fail is not carried out: what the disk holds is asked elsewhere, and it takes long.
   The kinds are numbered as in io_errors.py. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <dirent.h>
#include <unistd.h>

enum { OPEN, CREATE, MKDIR, RENAME, UNLINK, WRITE, FSYNC, FDATASYNC, TRUNCATE, READ, STAT, LISTDIR, MAP, FLOCK };
enum { SHORT = -1, SHORT_FULL = -2 };
#define CALLS_MAX 4096
#define NAME_BYTES 32

static pthread_mutex_t guard = PTHREAD_MUTEX_INITIALIZER;
static char prefix[PATH_MAX];
static unsigned kinds_counted;
static long first, second, last; /* Calls number `first` and `second` fail, and all from `first` to `last`. */
static int error_given, is_full;
static long calls, hits;
static struct { int kind; int is_hit; char name[NAME_BYTES]; } seen[CALLS_MAX];

void io_errors_arm(const char *path, unsigned kinds, long at, long again, long until, int error)
{
    pthread_mutex_lock(&guard);
    snprintf(prefix, sizeof prefix, "%s", path);
    kinds_counted = kinds;
    first = at, second = again, last = until;
    error_given = error;
    calls = hits = is_full = 0;
    pthread_mutex_unlock(&guard);
}

void io_errors_count(unsigned kinds)
{
    kinds_counted = kinds;
}

long io_errors_calls(void)
{
    return calls < CALLS_MAX ? calls : CALLS_MAX;
}

int io_errors_call(long number, char *name)
{
    snprintf(name, NAME_BYTES, "%s", seen[number].name);
    return seen[number].kind | seen[number].is_hit << 8;
}

static int is_ours(const char *path)
{
    return prefix[0] && path && !strncmp(path, prefix, strlen(prefix));
}

/* What a call is to do: 0 goes on; otherwise an errno, SHORT or SHORT_FULL. */
static int meet(int kind, const char *path)
{
    int error = 0;
    if (!(kinds_counted >> kind & 1) || !is_ours(path))
        return 0;
    pthread_mutex_lock(&guard);
    calls++;
    error = calls == first || calls == second || (first <= calls && calls <= last) ? error_given : 0;
    if (kind == WRITE && is_full)
        error = ENOSPC, is_full = 0;
    if (error < 0 && kind != WRITE)
        error = ENOSPC;
    if (error == SHORT_FULL)
        is_full = 1;
    hits += error != 0;
    if (calls <= CALLS_MAX) {
        const char *base = strrchr(path, '/');
        seen[calls - 1].kind = kind;
        seen[calls - 1].is_hit = error != 0;
        snprintf(seen[calls - 1].name, NAME_BYTES, "%s", base ? base + 1 : path);
    }
    pthread_mutex_unlock(&guard);
    return error;
}

static const char *path_of(int fd, char *path)
{
    char link[64];
    ssize_t length;
    int kept = errno;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    length = readlink(link, path, PATH_MAX - 1);
    errno = kept;
    path[length > 0 ? length : 0] = 0;
    return path;
}

static int meet_fd(int kind, int fd)
{
    char path[PATH_MAX];
    if (!(kinds_counted >> kind & 1))
        return 0;
    return meet(kind, path_of(fd, path));
}

#define REAL(name) static typeof(name) *real; if (!real) real = (typeof(name) *)dlsym(RTLD_NEXT, #name)
#define FAIL(error) do { int found = (error); if (found) { errno = found; return -1; } } while (0)

#define OPENS(name)                                                                   \
    int name(const char *path, int flags, ...)                                        \
    {                                                                                 \
        va_list rest;                                                                 \
        mode_t mode;                                                                  \
        REAL(name);                                                                   \
        va_start(rest, flags);                                                        \
        mode = flags & (O_CREAT | __O_TMPFILE) ? va_arg(rest, mode_t) : 0;            \
        va_end(rest);                                                                 \
        FAIL(meet(flags & O_CREAT ? CREATE : OPEN, path));                            \
        return real(path, flags, mode);                                               \
    }
OPENS(open)
OPENS(open64)

#define WRITES(name, offset_type)                                                     \
    ssize_t name(int fd, const void *data, size_t size, offset_type offset)           \
    {                                                                                 \
        int error = meet_fd(WRITE, fd);                                               \
        REAL(name);                                                                   \
        if (error < 0)                                                                \
            return real(fd, data, size > 1 ? size / 2 : size, offset);                \
        FAIL(error);                                                                  \
        return real(fd, data, size, offset);                                          \
    }
WRITES(pwrite, off_t)
WRITES(pwrite64, off64_t)

#define READS(name, offset_type)                                                      \
    ssize_t name(int fd, void *data, size_t size, offset_type offset)                 \
    {                                                                                 \
        REAL(name);                                                                   \
        FAIL(meet_fd(READ, fd));                                                      \
        return real(fd, data, size, offset);                                          \
    }
READS(pread, off_t)
READS(pread64, off64_t)

#define SYNCS(name, kind)                                                             \
    int name(int fd)                                                                  \
    {                                                                                 \
        char path[PATH_MAX];                                                          \
        REAL(name);                                                                   \
        FAIL(meet_fd(kind, fd));                                                      \
        return is_ours(path_of(fd, path)) ? 0 : real(fd);                             \
    }
SYNCS(fsync, FSYNC)
SYNCS(fdatasync, FDATASYNC)

#define TRUNCATES(name, offset_type)                                                  \
    int name(int fd, offset_type size)                                                \
    {                                                                                 \
        REAL(name);                                                                   \
        FAIL(meet_fd(TRUNCATE, fd));                                                  \
        return real(fd, size);                                                        \
    }
TRUNCATES(ftruncate, off_t)
TRUNCATES(ftruncate64, off64_t)

#define STATS(name, status_type)                                                      \
    int name(const char *path, status_type *status)                                   \
    {                                                                                 \
        REAL(name);                                                                   \
        FAIL(meet(STAT, path));                                                       \
        return real(path, status);                                                    \
    }                                                                                 \
    int f##name(int fd, status_type *status)                                          \
    {                                                                                 \
        REAL(f##name);                                                                \
        FAIL(meet_fd(STAT, fd));                                                      \
        return real(fd, status);                                                      \
    }
STATS(stat, struct stat)
STATS(stat64, struct stat64)

#define MAPS(name, offset_type)                                                       \
    void *name(void *at, size_t size, int access, int flags, int fd, offset_type offset) \
    {                                                                                 \
        int error = fd < 0 ? 0 : meet_fd(MAP, fd);                                    \
        REAL(name);                                                                   \
        if (error) {                                                                  \
            errno = error;                                                            \
            return MAP_FAILED;                                                        \
        }                                                                             \
        return real(at, size, access, flags, fd, offset);                             \
    }
MAPS(mmap, off_t)
MAPS(mmap64, off64_t)

int rename(const char *source, const char *target)
{
    REAL(rename);
    FAIL(meet(RENAME, target));
    return real(source, target);
}

int unlink(const char *path)
{
    REAL(unlink);
    FAIL(meet(UNLINK, path));
    return real(path);
}

int mkdir(const char *path, mode_t mode)
{
    REAL(mkdir);
    FAIL(meet(MKDIR, path));
    return real(path, mode);
}

DIR *opendir(const char *path)
{
    int error = meet(LISTDIR, path);
    REAL(opendir);
    if (error) {
        errno = error;
        return NULL;
    }
    return real(path);
}

int flock(int fd, int how)
{
    REAL(flock);
    if (!(how & LOCK_UN))
        FAIL(meet_fd(FLOCK, fd));
    return real(fd, how);
}
