/* A disk that fails at the k-th change, for LD_PRELOAD.

   Counts the calls that change something below one folder and, at the k-th, does what it was armed for: kill the process, tear
   the write in two and kill it, or let the call fail. With a shadow folder it also keeps what a power loss would leave: a file
   enters the shadow when it is synced, with the bytes it has then; what is never synced is never there. A folder is there as
   soon as it is made, and its name changes when its files' names do. No call here waits for the real disk. Inert until `fault_arm` is called, which the child does after it was forked. */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

enum { WRITES = 1, SYNCS = 2, SIZES = 4, NAMES = 8 };              /* kinds of calls */
enum { WATCH, KILL, TEAR, FAIL, FAIL_FROM_HERE, FAIL_AND_FORGET }; /* what to do at the k-th */
#define TEAR_IT (-1)
#define MOST_LATE 256

static struct {
    int armed, kinds, action, error, late_names;
    long at;
    char folder[PATH_MAX], shadow[PATH_MAX];
} plan;
static long calls[16]; /* by kind, and in [0] those that count towards `at` */

/* Renames and removals that no sync of their folder has made durable yet; `to` is empty for a removal. */
static struct { char from[PATH_MAX], to[PATH_MAX]; } late[MOST_LATE];
static int lates;

#define REAL(result, name, ...) \
    static result (*real)(__VA_ARGS__); \
    if (!real) *(void **)&real = dlsym(RTLD_NEXT, #name)

static ssize_t plain_write(int fd, const void *bytes, size_t count)
{
    REAL(ssize_t, write, int, const void *, size_t);
    return real(fd, bytes, count);
}

static int plain_rename(const char *from, const char *to)
{
    REAL(int, rename, const char *, const char *);
    return real(from, to);
}

static int plain_unlink(const char *path)
{
    REAL(int, unlink, const char *);
    return real(path);
}

void fault_arm(const char *folder, const char *shadow, int kinds, int action, int error, long at, int late_names)
{
    snprintf(plan.folder, sizeof plan.folder, "%s", folder);
    snprintf(plan.shadow, sizeof plan.shadow, "%s", shadow);
    plan.kinds = kinds, plan.action = action, plan.error = error, plan.at = at, plan.late_names = late_names;
    memset(calls, 0, sizeof calls);
    lates = 0;
    plan.armed = 1;
}

long fault_calls(int kind) { return calls[kind]; }

static int below(const char *path)
{
    size_t length = strlen(plan.folder);
    return plan.armed && path && !strncmp(path, plan.folder, length) && (path[length] == '/' || !path[length]);
}

/* The file behind a descriptor, if it lies below the folder. */
static int watched(int fd, char *path)
{
    char link[64];
    if (!plan.armed) return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return below(path);
}

static void die(void)
{
    kill(getpid(), SIGKILL);
    for (;;) pause();
}

/* What becomes of a call: 0 it goes on, TEAR_IT, or the errno it fails with. Does not return from a kill. */
static int strike(int kind)
{
    __atomic_add_fetch(&calls[kind], 1, __ATOMIC_SEQ_CST);
    if (!(plan.kinds & kind)) return 0;
    long here = __atomic_add_fetch(&calls[0], 1, __ATOMIC_SEQ_CST);
    if (plan.action == WATCH || here < plan.at || (here > plan.at && plan.action != FAIL_FROM_HERE)) return 0;
    if (plan.action == KILL) die();
    return plan.action == TEAR ? TEAR_IT : plan.error;
}

/* --- the shadow: one flat folder; a slash in a name below the watched folder becomes a bar, and a folder ends in one -- */

static void in_shadow(const char *path, char *out)
{
    int length = snprintf(out, PATH_MAX, "%s/", plan.shadow);
    snprintf(out + length, PATH_MAX - length, "%s", path + strlen(plan.folder) + 1);
    for (char *rest = out + length; *rest; rest++)
        if (*rest == '/') *rest = '|';
}

static void folder_in_shadow(const char *path, int is_there)
{
    char marker[PATH_MAX];
    if (!*plan.shadow) return;
    in_shadow(path, marker);
    strncat(marker, "|", PATH_MAX - strlen(marker) - 1);
    if (is_there) close(open(marker, O_CREAT | O_WRONLY | O_CLOEXEC, 0644));
    else plain_unlink(marker);
}

static void copy(const char *from, const char *to)
{
    static __thread char chunk[1 << 16];
    char temporary[PATH_MAX + 8];
    ssize_t count;
    int in = open(from, O_RDONLY | O_CLOEXEC);
    if (in < 0) return;
    snprintf(temporary, sizeof temporary, "%s~", to);
    int out = open(temporary, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0644);
    while ((count = read(in, chunk, sizeof chunk)) > 0)
        if (plain_write(out, chunk, count) != count) die();
    close(in), close(out);
    plain_rename(temporary, to);
}

/* In the shadow too: a removal where `to` is empty, else a rename; a folder's with all that lies below it. */
static void apply(const char *from, const char *to)
{
    char shadow_from[PATH_MAX], shadow_to[PATH_MAX], below_from[2 * PATH_MAX], below_to[2 * PATH_MAX];
    struct dirent *entry;
    in_shadow(from, shadow_from);
    if (!*to) { plain_unlink(shadow_from); return; }
    in_shadow(to, shadow_to);
    if (!plain_rename(shadow_from, shadow_to)) return;
    const char *name = shadow_from + strlen(plan.shadow) + 1;
    DIR *all = opendir(plan.shadow);
    while (all && (entry = readdir(all)))
        if (!strncmp(entry->d_name, name, strlen(name)) && entry->d_name[strlen(name)] == '|') {
            snprintf(below_from, sizeof below_from, "%s/%s", plan.shadow, entry->d_name);
            snprintf(below_to, sizeof below_to, "%s%s", shadow_to, entry->d_name + strlen(name));
            plain_rename(below_from, below_to);
        }
    if (all) closedir(all);
}

/* A name changed: in the shadow at once, or when its folder is synced. */
static void renamed(const char *from, const char *to)
{
    if (!*plan.shadow) return;
    if (!plan.late_names || lates == MOST_LATE) { apply(from, to); return; }
    snprintf(late[lates].from, PATH_MAX, "%s", from);
    snprintf(late[lates++].to, PATH_MAX, "%s", to);
}

static int lies_in(const char *path, const char *folder)
{
    const char *slash = strrchr(path, '/');
    return (size_t)(slash - path) == strlen(folder) && !strncmp(path, folder, slash - path);
}

/* Synced: a file enters the shadow, and what was late under its name is over; a folder lets its late names happen. */
static void synced(int fd, const char *path)
{
    struct stat about;
    char shadow[PATH_MAX];
    if (!*plan.shadow || fstat(fd, &about)) return;
    int is_folder = S_ISDIR(about.st_mode), kept = 0;
    for (int each = 0; each < lates; each++) {
        int ours = is_folder ? lies_in(late[each].from, path) : !strcmp(late[each].from, path) || !strcmp(late[each].to, path);
        if (ours) apply(late[each].from, late[each].to);
        else late[kept++] = late[each];
    }
    lates = kept;
    if (is_folder) return;
    in_shadow(path, shadow);
    copy(path, shadow);
}

/* A failed sync after which the kernel has dropped what was not on the disk yet: the file is what the shadow has. */
static void forget(const char *path)
{
    static __thread char chunk[1 << 16];
    char shadow[PATH_MAX];
    ssize_t count;
    int out = open(path, O_WRONLY | O_TRUNC | O_CLOEXEC);
    if (out < 0) return;
    in_shadow(path, shadow);
    int in = open(shadow, O_RDONLY | O_CLOEXEC);
    while (in >= 0 && (count = read(in, chunk, sizeof chunk)) > 0)
        if (plain_write(out, chunk, count) != count) die();
    if (in >= 0) close(in);
    close(out);
}

/* --- the calls ------------------------------------------------------------------------------------------------------ */

#define FAILED(code) do { errno = (code); return -1; } while (0)

ssize_t write(int fd, const void *bytes, size_t count)
{
    char path[PATH_MAX];
    int fate = watched(fd, path) ? strike(WRITES) : 0;
    if (fate == TEAR_IT) { plain_write(fd, bytes, count / 2); die(); }
    if (fate) FAILED(fate);
    return plain_write(fd, bytes, count);
}

ssize_t pwrite64(int fd, const void *bytes, size_t count, off64_t offset)
{
    REAL(ssize_t, pwrite64, int, const void *, size_t, off64_t);
    char path[PATH_MAX];
    int fate = watched(fd, path) ? strike(WRITES) : 0;
    if (fate == TEAR_IT) { real(fd, bytes, count / 2, offset); die(); }
    if (fate) FAILED(fate);
    return real(fd, bytes, count, offset);
}

ssize_t pwrite(int fd, const void *bytes, size_t count, off_t offset) { return pwrite64(fd, bytes, count, offset); }

ssize_t writev(int fd, const struct iovec *parts, int number)
{
    REAL(ssize_t, writev, int, const struct iovec *, int);
    char path[PATH_MAX];
    int fate = watched(fd, path) ? strike(WRITES) : 0;
    if (fate == TEAR_IT) { plain_write(fd, parts[0].iov_base, parts[0].iov_len / 2); die(); }
    if (fate) FAILED(fate);
    return real(fd, parts, number);
}

ssize_t sendfile64(int out, int in, off64_t *offset, size_t count)
{
    REAL(ssize_t, sendfile64, int, int, off64_t *, size_t);
    char path[PATH_MAX];
    int fate = watched(out, path) ? strike(WRITES) : 0;
    if (fate == TEAR_IT) { real(out, in, offset, count / 2); die(); }
    if (fate) FAILED(fate);
    return real(out, in, offset, count);
}

ssize_t sendfile(int out, int in, off_t *offset, size_t count) { return sendfile64(out, in, offset, count); }

ssize_t copy_file_range(int in, off64_t *from, int out, off64_t *to, size_t count, unsigned flags)
{
    REAL(ssize_t, copy_file_range, int, off64_t *, int, off64_t *, size_t, unsigned);
    char path[PATH_MAX];
    int fate = watched(out, path) ? strike(WRITES) : 0;
    if (fate == TEAR_IT) { real(in, from, out, to, count / 2, flags); die(); }
    if (fate) FAILED(fate);
    return real(in, from, out, to, count, flags);
}

int fsync(int fd)
{
    REAL(int, fsync, int);
    char path[PATH_MAX];
    if (!watched(fd, path)) return real(fd);
    int fate = strike(SYNCS);
    if (fate && plan.action == FAIL_AND_FORGET) forget(path);
    if (fate) FAILED(fate);
    synced(fd, path);
    return 0;
}

int fdatasync(int fd)
{
    return fsync(fd);
}

int ftruncate64(int fd, off64_t length)
{
    REAL(int, ftruncate64, int, off64_t);
    char path[PATH_MAX];
    int fate = watched(fd, path) ? strike(SIZES) : 0;
    if (fate) FAILED(fate);
    return real(fd, length);
}

int ftruncate(int fd, off_t length) { return ftruncate64(fd, length); }

int fallocate64(int fd, int mode, off64_t offset, off64_t length)
{
    REAL(int, fallocate64, int, int, off64_t, off64_t);
    char path[PATH_MAX];
    int fate = watched(fd, path) ? strike(SIZES) : 0;
    if (fate) FAILED(fate);
    return real(fd, mode, offset, length);
}

int fallocate(int fd, int mode, off_t offset, off_t length) { return fallocate64(fd, mode, offset, length); }

int posix_fallocate64(int fd, off64_t offset, off64_t length)
{
    REAL(int, posix_fallocate64, int, off64_t, off64_t);
    char path[PATH_MAX];
    int fate = watched(fd, path) ? strike(SIZES) : 0;
    return fate ? fate : real(fd, offset, length);
}

int posix_fallocate(int fd, off_t offset, off_t length) { return posix_fallocate64(fd, offset, length); }

int rename(const char *from, const char *to)
{
    int fate = below(from) ? strike(NAMES) : 0;
    if (fate) FAILED(fate);
    int result = plain_rename(from, to);
    if (!result && below(from) && below(to)) renamed(from, to);
    return result;
}

int unlink(const char *path)
{
    int fate = below(path) ? strike(NAMES) : 0;
    if (fate) FAILED(fate);
    int result = plain_unlink(path);
    if (!result && below(path)) renamed(path, "");
    return result;
}

int unlinkat(int folder, const char *name, int flags)
{
    REAL(int, unlinkat, int, const char *, int);
    char path[2 * PATH_MAX];
    if (folder == AT_FDCWD || *name == '/') snprintf(path, sizeof path, "%s", name);
    else if (watched(folder, path)) snprintf(path + strlen(path), PATH_MAX, "/%s", name);
    else return real(folder, name, flags);
    int is_folder = flags & AT_REMOVEDIR, ours = below(path), fate = ours && !is_folder ? strike(NAMES) : 0;
    if (fate) FAILED(fate);
    int result = real(folder, name, flags);
    if (result || !ours) return result;
    if (is_folder) folder_in_shadow(path, 0);
    else renamed(path, "");
    return 0;
}

int mkdir(const char *path, mode_t mode)
{
    REAL(int, mkdir, const char *, mode_t);
    int result = real(path, mode);
    if (!result && below(path)) folder_in_shadow(path, 1);
    return result;
}

int rmdir(const char *path)
{
    REAL(int, rmdir, const char *);
    int result = real(path);
    if (!result && below(path)) folder_in_shadow(path, 0);
    return result;
}

int link(const char *from, const char *to)
{
    REAL(int, link, const char *, const char *);
    char shadow_from[PATH_MAX], shadow_to[PATH_MAX];
    int fate = below(to) ? strike(NAMES) : 0;
    if (fate) FAILED(fate);
    int result = real(from, to);
    if (!result && *plan.shadow && below(from) && below(to)) {
        in_shadow(from, shadow_from), in_shadow(to, shadow_to);
        copy(shadow_from, shadow_to);
    }
    return result;
}

int remove(const char *path)
{
    REAL(int, remove, const char *);
    struct stat about;
    return below(path) && !stat(path, &about) && !S_ISDIR(about.st_mode) ? unlink(path) : real(path);
}
