/* Die in the middle of a write: loaded before libc, so that the write, pwrite and pwrite64 of the process come here.
 *
 * Once armed, the k-th write to a file whose path begins with a prefix brings only a part of its bytes to the file, and
 * then the process kills itself with SIGKILL. What part: 0 none, 1 one byte, 2 the half, 3 all but one byte, 4 all.
 * Until then, and for all other files, everything is as usual.
 */

#define _GNU_SOURCE
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

static char armed_prefix[4096];
static long writes_left;
static int part_written;

void half_write_arm(const char *prefix, long k, int part)
{
    snprintf(armed_prefix, sizeof armed_prefix, "%s", prefix);
    part_written = part;
    writes_left = k;
}

static int is_watched(int fd)
{
    char link[64], path[4096];
    if (writes_left <= 0)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0)
        return 0;
    path[length] = 0;
    return strncmp(path, armed_prefix, strlen(armed_prefix)) == 0;
}

static size_t part_of(size_t count)
{
    switch (part_written) {
    case 0:
        return 0;
    case 1:
        return count > 0;
    case 2:
        return count / 2;
    case 3:
        return count > 0 ? count - 1 : 0;
    default:
        return count;
    }
}

/* The system call itself: at an offset, or, where it is negative, where the file stands. */
static ssize_t pass(int fd, const void *data, size_t count, off_t offset)
{
    return offset < 0 ? syscall(SYS_write, fd, data, count) : syscall(SYS_pwrite64, fd, data, count, offset);
}

static ssize_t meet(int fd, const void *data, size_t count, off_t offset)
{
    if (!is_watched(fd) || __sync_sub_and_fetch(&writes_left, 1) != 0)
        return pass(fd, data, count, offset);
    pass(fd, data, part_of(count), offset);
    kill(getpid(), SIGKILL);
    for (;;)
        pause();
}

ssize_t write(int fd, const void *data, size_t count)
{
    return meet(fd, data, count, -1);
}

ssize_t pwrite(int fd, const void *data, size_t count, off_t offset)
{
    return meet(fd, data, count, offset);
}

ssize_t pwrite64(int fd, const void *data, size_t count, off_t offset)
{
    return meet(fd, data, count, offset);
}
