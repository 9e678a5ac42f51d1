/* Stands between a process and its disk (LD_PRELOAD): fails, or kills at, the n-th write, keeps what was synced, makes
   what is no journal slow, and holds up whatever is written to some files.

   Python calls the functions shim_*; everything else looks as libc does. Only files below one folder are concerned.
   What is at an fsync is copied before the fsync, so that nothing is called durable that was written behind it. The
   copy is read through the descriptor that is synced: closing one of our own would drop SQLite's locks.

   Python's signal handlers write to a socket on a stack of some 10 kB (faulthandler's), and what lies below that is the
   heap. So nothing here that is called for other than files has buffers, nor looks a name up. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static char root[4096], durable[4096];
static long n_calls, fail_from, fail_upto;
static int fail_errno;
static long slow_bytes_s;
static struct timespec slow_until;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Looked up once; the first time is long before any signal. */
#define REAL(name)                                                                    \
    ({                                                                                \
        static __typeof__(&name) found;                                               \
        if (!found) found = (__typeof__(&name))dlsym(RTLD_NEXT, #name);               \
        found;                                                                        \
    })

static int is_on_disk(int fd) {
    struct stat found;
    return !fstat(fd, &found) && (S_ISREG(found.st_mode) || S_ISDIR(found.st_mode));
}

/* Calls from number first to last, counted from 1, fail with this errno; 0 kills the process instead. A negative one: the
   disk does what it is told, and then says that it failed. */
void shim_arm(const char *folder, const char *keep, long first, long last, int number) {
    snprintf(root, sizeof root, "%s", folder);
    snprintf(durable, sizeof durable, "%s", keep);
    n_calls = 0;
    fail_from = first;
    fail_upto = last;
    fail_errno = number;
}

/* For so long from now, what is written to other files than journals takes so long as on a disk of this rate. */
void shim_slow(long bytes_s, long seconds) {
    slow_bytes_s = bytes_s;
    clock_gettime(CLOCK_MONOTONIC, &slow_until);
    slow_until.tv_sec += seconds;
}

long shim_calls(void) { return n_calls; }

static int below(const char *path) {
    size_t n = strlen(root);
    return n && !strncmp(path, root, n) && path[n] == '/';
}

/* Files that mean nothing once the process is dead: SQLite's shared memory, and who holds the lock. */
static int is_passing(const char *path) {
    size_t n = strlen(path);
    return (n > 4 && !strcmp(path + n - 4, "-shm")) || (n > 5 && !strcmp(path + n - 5, "/lock"));
}

static int path_of(int fd, char *path, size_t size) {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, size - 1);
    if (n < 0) return 0;
    path[n] = 0;
    return below(path) && !is_passing(path);
}

/* What becomes of a call: 0 if it goes on, 1 if it fails, 2 if it is done and then called failed. */
static int fate(void) {
    long n = __sync_add_and_fetch(&n_calls, 1);
    if (!fail_from || n < fail_from || n > fail_upto) return 0;
    if (!fail_errno) kill(getpid(), SIGKILL);
    errno = abs(fail_errno);
    return fail_errno > 0 ? 1 : 2;
}

static long called_failed(void) {
    errno = abs(fail_errno);
    return -1;
}

static void copy_name(const char *path, char *name, size_t size) {
    snprintf(name, size, "%s/", durable);
    size_t at = strlen(name);
    for (path += strlen(root) + 1; *path && at < size - 1; path++) name[at++] = *path == '/' ? '\\' : *path;
    name[at] = 0;
}

static void keep(int fd, const char *path) {
    struct stat found;
    if (!durable[0] || fstat(fd, &found) || !S_ISREG(found.st_mode)) return;
    char name[8192], unborn[8300];
    copy_name(path, name, sizeof name);
    snprintf(unborn, sizeof unborn, "%s.unborn", name);
    pthread_mutex_lock(&lock);
    int out = open(unborn, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    void *buffer = NULL;
    if (out < 0 || posix_memalign(&buffer, 4096, 1 << 20)) abort();
    int own = -1, in = fd;
    if ((fcntl(fd, F_GETFL) & O_ACCMODE) == O_WRONLY) in = own = open(path, O_RDONLY);
    for (off_t at = 0;;) {
        ssize_t n = REAL(pread64)(in, buffer, 1 << 20, at);
        if (n < 0) abort();
        if (n == 0) break;
        if (REAL(pwrite64)(out, buffer, n, at) != n) abort();
        at += n;
    }
    if (own >= 0) close(own);
    close(out);
    free(buffer);
    REAL(rename)(unborn, name);
    pthread_mutex_unlock(&lock);
}

/* One write after the other, as a disk has it. */
static pthread_mutex_t at_work = PTHREAD_MUTEX_INITIALIZER;

static void take_time(const char *path, size_t nbytes) {
    struct timespec now;
    if (!slow_bytes_s || strstr(path, "/journal/")) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    if (now.tv_sec >= slow_until.tv_sec) return;
    pthread_mutex_lock(&at_work);
    usleep(1000000.0 * nbytes / slow_bytes_s);
    pthread_mutex_unlock(&at_work);
}

/* While the file DISK_SHIM_GATE is there, a "write" or "sync", as DISK_SHIM_CALLS says, does not come back if
   DISK_SHIM_HELD is in the path of its file. */
static void wait_at_gate(int fd, const char *call) {
    const char *gate = getenv("DISK_SHIM_GATE"), *calls = getenv("DISK_SHIM_CALLS"), *held = getenv("DISK_SHIM_HELD");
    char link[64], path[4096];
    if (!gate || !calls || !held || strcmp(calls, call)) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t n = readlink(link, path, sizeof path - 1);
    if (n < 0) return;
    path[n] = 0;
    while (strstr(path, held) && !access(gate, F_OK)) usleep(10000);
}

static size_t total(const struct iovec *parts, int n) {
    size_t nbytes = 0;
    while (n-- > 0) nbytes += parts++->iov_len;
    return nbytes;
}

/* What becomes of a write to a file, which may have to wait here. */
__attribute__((noinline)) static int before_write(int fd, size_t nbytes) {
    char path[4096];
    int lot = 0;
    wait_at_gate(fd, "write");
    if (root[0] && path_of(fd, path, sizeof path) && (lot = fate()) != 1) take_time(path, nbytes);
    return lot;
}

#define ON_FD(type, name, params, args, nbytes)                  \
    type name params {                                           \
        int lot = is_on_disk(fd) ? before_write(fd, nbytes) : 0; \
        if (lot == 1) return -1;                                 \
        type done = REAL(name) args;                             \
        return lot ? called_failed() : done;                     \
    }
ON_FD(ssize_t, write, (int fd, const void *data, size_t n), (fd, data, n), n)
ON_FD(ssize_t, pwrite, (int fd, const void *data, size_t n, off_t at), (fd, data, n, at), n)
ON_FD(ssize_t, pwrite64, (int fd, const void *data, size_t n, off64_t at), (fd, data, n, at), n)
ON_FD(ssize_t, pwritev, (int fd, const struct iovec *parts, int n, off_t at), (fd, parts, n, at), total(parts, n))
ON_FD(ssize_t, pwritev64, (int fd, const struct iovec *parts, int n, off64_t at), (fd, parts, n, at), total(parts, n))
ON_FD(ssize_t, pwritev2, (int fd, const struct iovec *parts, int n, off_t at, int how), (fd, parts, n, at, how),
      total(parts, n))
// What Python's os.pwritev calls.
ON_FD(ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int n, off64_t at, int how), (fd, parts, n, at, how),
      total(parts, n))
ON_FD(int, ftruncate, (int fd, off_t size), (fd, size), 0)
ON_FD(int, ftruncate64, (int fd, off64_t size), (fd, size), 0)

__attribute__((noinline)) static int before_sync(int fd) {
    char path[4096];
    int lot = 0;
    wait_at_gate(fd, "sync");
    if (root[0] && path_of(fd, path, sizeof path) && (lot = fate()) != 1) keep(fd, path);
    return lot;
}

#define ON_SYNC(name)                                \
    int name(int fd) {                               \
        int lot = is_on_disk(fd) ? before_sync(fd) : 0; \
        if (lot == 1) return -1;                     \
        int done = REAL(name)(fd);                   \
        return lot ? called_failed() : done;         \
    }
ON_SYNC(fsync)
ON_SYNC(fdatasync)

/* A hole may be on the disk at once, with no sync: what was there is gone, whatever names it still. */
int fallocate(int fd, int mode, off_t at, off_t nbytes) {
    char path[4096], name[8192];
    int lot = 0;
    if (root[0] && path_of(fd, path, sizeof path)) {
        if ((lot = fate()) == 1) return -1;
        if (durable[0] && (mode & FALLOC_FL_PUNCH_HOLE)) {
            copy_name(path, name, sizeof name);
            pthread_mutex_lock(&lock);
            int copy = open(name, O_WRONLY);
            if (copy >= 0) {
                if (REAL(fallocate)(copy, mode, at, nbytes)) abort();
                close(copy);
            }
            pthread_mutex_unlock(&lock);
        }
    }
    int done = REAL(fallocate)(fd, mode, at, nbytes);
    return lot ? called_failed() : done;
}

int rename(const char *from, const char *to) {
    int lot = 0;
    if (root[0] && below(from)) {
        if ((lot = fate()) == 1) return -1;
        if (durable[0]) {
            char old[8192], new[8192];
            copy_name(from, old, sizeof old);
            copy_name(to, new, sizeof new);
            REAL(rename)(old, new);
        }
    }
    int done = REAL(rename)(from, to);
    return lot ? called_failed() : done;
}

int unlink(const char *path) {
    int lot = 0;
    if (root[0] && below(path) && !is_passing(path)) {
        if ((lot = fate()) == 1) return -1;
        if (durable[0]) {
            char name[8192];
            copy_name(path, name, sizeof name);
            REAL(unlink)(name);
        }
    }
    int done = REAL(unlink)(path);
    return lot ? called_failed() : done;
}
