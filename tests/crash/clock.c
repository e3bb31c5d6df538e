/* Another clock for one process, by LD_PRELOAD. MICRODB_CLOCK says which:

   +N, -N   the time of day is N seconds ahead or behind
   mad      the time of day is ten years ahead and ten years behind by turns
   frozen   the time of day and the monotonic clock stand still from the first look on

   What the kernel itself does with time stays as it is: the times of files, and how long a sleep takes. */

#define _GNU_SOURCE
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define TEN_YEARS 315360000L

static long turn;

static int is_time_of_day(clockid_t id) { return id == CLOCK_REALTIME || id == CLOCK_REALTIME_COARSE; }

int clock_gettime(clockid_t id, struct timespec *now) {
    const char *how = getenv("MICRODB_CLOCK");
    int result = syscall(SYS_clock_gettime, id, now);
    if (result != 0 || how == NULL) return result;
    if (strcmp(how, "frozen") == 0) {
        static struct timespec first[16];
        if (id >= 0 && id < 16 && id != CLOCK_PROCESS_CPUTIME_ID && id != CLOCK_THREAD_CPUTIME_ID) {
            if (first[id].tv_sec == 0) first[id] = *now;
            *now = first[id];
        }
    } else if (is_time_of_day(id)) {
        now->tv_sec += strcmp(how, "mad") == 0 ? (__sync_fetch_and_add(&turn, 1) % 2 ? TEN_YEARS : -TEN_YEARS) : atol(how);
    }
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    int result = clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return result;
}

time_t time(time_t *into) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (into != NULL) *into = found.tv_sec;
    return found.tv_sec;
}
