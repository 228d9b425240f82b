/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/beneath.c: by hand it opens the same files as the kernel does, and
 * refuses the same, whoever exchanges what meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <ftw.h>
#include <limits.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <unistd.h>

#include "check.h"
#include "storage/beneath.h"
#include "wrap.h"

/* ------------------------------------------------------------------ faults */

static int no_call; /* openat2 fails with this, unless it is 0 */

extern long __wrap_syscall (long nr, int fd, const char *path, void *how,
                            size_t size);
extern long __real_syscall (long nr, int fd, const char *path, void *how,
                            size_t size);
long
__wrap_syscall (long nr, int fd, const char *path, void *how, size_t size)
{
  if (nr == SYS_openat2 && no_call != 0) {
    errno = no_call;
    return -1;
  }
  return __real_syscall (nr, fd, path, how, size);
}

/* Before the n-th call from now on somebody does this. */
static void (*strike) (void);
static unsigned strike_at, nr_calls;
static bool no_proc; /* it is not mounted */

extern int __real_openat (int dir, const char *path, int flags, mode_t mode);
extern int __wrap_openat (int dir, const char *path, int flags, mode_t mode);
int
__wrap_openat (int dir, const char *path, int flags, mode_t mode)
{
  if (++nr_calls == strike_at)
    strike ();
  if (no_proc && strncmp (path, "/proc/", 6) == 0) {
    errno = ENOENT;
    return -1;
  }
  return __real_openat (dir, path, flags, mode);
}

/* ------------------------------------------------------------------- files */

static char folder[] = "test-beneath.XXXXXX";
static int root = -1;

static void
put (const char *path, const char *text)
{
  FILE *f = fopen (path, "w");

  if (f == NULL || fputs (text, f) == EOF || fclose (f) != 0)
    abort ();
}

static unsigned
count_descriptors (void)
{
  unsigned n = 0;
  int fd;

  for (fd = 0; fd < 1024; ++fd)
    n += fcntl (fd, F_GETFD) != -1;
  return n;
}

typedef int open_fn (int dirfd, const char *path, int flags);

/* What the file at this path says; or an errno, less than 0. */
static int
read_by (open_fn *open, const char *path)
{
  const unsigned before = count_descriptors ();
  const int fd = open (root, path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  struct stat st;
  char c = 0;
  int r;

  if (fd == -1)
    r = -errno;
  else if (fstat (fd, &st) == 0 && S_ISDIR (st.st_mode))
    r = 'd';
  else
    r = read (fd, &c, 1) == 1 ? c : -EIO;
  if (fd != -1)
    close (fd);
  CHECK_EQ (count_descriptors (), before);
  return r;
}

static int
read_beneath (const char *path)
{
  return read_by (open_beneath, path);
}

static int
read_regular (const char *path)
{
  return read_by (open_regular_beneath, path);
}

/* ------------------------------------------------------------------- tests */

/* in/ is the directory; "a", "b" and "c" are what its files say, and "x" what
 * those outside of it do.
 */
static void
make_files (void)
{
  char deep[300] = "in/many";
  unsigned i;

  CHECK_OK (mkdir ("in", 0777));
  CHECK_OK (mkdir ("in/sub", 0777));
  CHECK_OK (mkdir ("in/sub/sub", 0777));
  CHECK_OK (mkdir ("out", 0777));
  put ("in/a", "a");
  put ("in/sub/b", "b");
  put ("in/sub/sub/c", "c");
  put ("out/x", "x");
  CHECK_OK (symlink ("sub/b", "in/to-b"));
  CHECK_OK (symlink ("../a", "in/sub/to-a"));
  CHECK_OK (symlink ("sub", "in/to-sub"));
  CHECK_OK (symlink ("to-sub/", "in/to-sub-slash"));
  CHECK_OK (symlink ("..", "in/sub/up"));
  CHECK_OK (symlink (".", "in/here"));
  CHECK_OK (symlink ("../out", "in/to-out"));
  CHECK_OK (symlink ("../out/x", "in/to-x"));
  CHECK_OK (symlink ("sub/../../out/x", "in/around"));
  CHECK_OK (symlink ("../in/a", "in/out-and-in"));
  CHECK_OK (symlink ("/etc/passwd", "in/absolute"));
  CHECK_OK (symlink ("loop", "in/loop"));
  CHECK_OK (symlink ("loop-b", "in/loop-a"));
  CHECK_OK (symlink ("loop-a", "in/loop-b"));
  CHECK_OK (symlink ("nothing", "in/to-nothing"));
  CHECK_OK (mkdir (deep, 0777));
  for (i = 0; i < 50; ++i) {
    strcat (deep, "/d");
    CHECK_OK (mkdir (deep, 0777));
  }
  strcat (deep, "/c");
  put (deep, "c");
}

static const struct {
  const char *path;
  int want;
} cases[] = {
  { "a", 'a' }, { "./a", 'a' }, { "sub/b", 'b' }, { "sub//b", 'b' },
  { "sub/./sub/.//c", 'c' }, { "sub/../a", 'a' }, { "sub/sub/../../a", 'a' },
  { "to-b", 'b' }, { "to-sub/b", 'b' }, { "to-sub-slash/b", 'b' },
  { "to-sub-slash/sub/../to-a", 'a' }, { "sub/to-a", 'a' },
  { "sub/up/a", 'a' }, { "sub/up/sub/up/sub/b", 'b' },
  { "here/here/here/a", 'a' },
  { "sub", 'd' }, { "sub/", 'd' }, { "to-sub", 'd' }, { ".", 'd' },
  { "sub/..", 'd' }, { "to-sub-slash", 'd' },
  { "", -ENOENT }, { "nothing", -ENOENT }, { "to-nothing", -ENOENT },
  { "nothing/..", -ENOENT }, { "a/b", -ENOTDIR }, { "a/", -ENOTDIR },
  { "a/.", -ENOTDIR }, { "to-b/", -ENOTDIR },
  { "..", -EXDEV }, { "../in/a", -EXDEV }, { "../out/x", -EXDEV },
  { "sub/../../out/x", -EXDEV }, { "/etc/passwd", -EXDEV }, { "/", -EXDEV },
  { "to-out/x", -EXDEV }, { "to-x", -EXDEV }, { "around", -EXDEV },
  { "out-and-in", -EXDEV }, { "absolute", -EXDEV }, { "sub/up/../a", -EXDEV },
  { "loop", -ELOOP }, { "loop/a", -ELOOP }, { "loop-a", -ELOOP },
};

static void
test_cases (void)
{
  static const int errs[] = { 0, ENOSYS, EPERM, EAGAIN };
  unsigned i, k;
  int r;

  for (k = 0; k < sizeof errs / sizeof errs[0]; ++k) {
    no_call = errs[k];
    if (no_call == 0 && syscall (SYS_openat2, root, "a", NULL, 0) == -1 &&
        (errno == ENOSYS || errno == EPERM))
      continue; /* the kernel that this runs on does not have it */
    for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
      r = read_beneath (cases[i].path);
      if (r != cases[i].want)
        check_failed (__FILE__, __LINE__, "%s: %d, not %d (openat2: %d)",
                      cases[i].path, r, cases[i].want, no_call);
    }
  }
  no_call = ENOSYS;
}

/* Names and folders that are very long, or very many. */
static void
test_long (void)
{
  char path[8192] = "";
  char name[NAME_MAX + 2];
  unsigned i;

  memset (name, 'n', NAME_MAX + 1);
  name[NAME_MAX + 1] = '\0';
  CHECK_EQ (read_beneath (name), -ENAMETOOLONG);
  name[NAME_MAX] = '\0';
  CHECK_EQ (read_beneath (name), -ENOENT);
  strcpy (path, "many");
  for (i = 0; i < 50; ++i)
    strcat (path, "/d");
  strcat (path, "/c");
  CHECK_EQ (read_beneath (path), 'c');
  path[0] = '\0';
  for (i = 0; i < 100; ++i)
    strcat (path, "sub/../");
  strcat (path, "a");
  CHECK_EQ (read_beneath (path), 'a');
  /* As many links as Linux follows, and one more. */
  path[0] = '\0';
  for (i = 0; i < 40; ++i)
    strcat (path, "here/");
  strcat (path, "a");
  CHECK_EQ (read_beneath (path), 'a');
  memmove (path + 5, path, strlen (path) + 1);
  memcpy (path, "here/", 5);
  CHECK_EQ (read_beneath (path), -ELOOP);
}

/* Deeper than what is held open. */
static void
test_deep (void)
{
  char path[400] = "";
  unsigned i;

  for (i = 0; i < 70; ++i) {
    strcat (path, "z/");
    CHECK_OK (mkdirat (root, path, 0777));
  }
  strcat (path, "a");
  CHECK_EQ (read_beneath (path), -ENAMETOOLONG);
  for (i = 0; i < 70; ++i) {
    path[strlen (path) - 2 + (i == 0)] = '\0';
    CHECK_OK (unlinkat (root, path, AT_REMOVEDIR));
  }
}

static void
make_socket (const char *path)
{
  struct sockaddr_un a = { .sun_family = AF_UNIX };
  const int fd = socket (AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);

  strcpy (a.sun_path, path);
  CHECK_OK (bind (fd, (struct sockaddr *) &a, sizeof a));
  close (fd);
}

/* What is no regular file is refused, and does not wait for anybody.  The same
 * where /proc is not mounted.
 */
static void
test_regular (void)
{
  unsigned i;
  int r, want;

  CHECK_OK (mkfifo ("in/fifo", 0666));
  CHECK_OK (symlink ("fifo", "in/to-fifo"));
  make_socket ("in/socket");
  for (i = 0; i < sizeof cases / sizeof cases[0]; ++i) {
    want = cases[i].want == 'd' ? -EINVAL : cases[i].want;
    r = read_regular (cases[i].path);
    if (r != want)
      check_failed (__FILE__, __LINE__, "%s: %d, not %d (no /proc: %d)",
                    cases[i].path, r, want, no_proc);
  }
  CHECK_EQ (read_regular ("fifo"), -EINVAL);
  CHECK_EQ (read_regular ("to-fifo"), -EINVAL);
  CHECK_EQ (read_regular ("socket"), -EINVAL);
  CHECK_OK (unlink ("in/fifo"));
  CHECK_OK (unlink ("in/to-fifo"));
  CHECK_OK (unlink ("in/socket"));
}

/* ------------------------------------------------------------- an attacker */

static void
exchange (const char *what, const char *target)
{
  CHECK_OK (symlink (target, "link"));
  CHECK_OK (rename (what, "was"));
  CHECK_OK (rename ("link", what));
}

static void
put_back (const char *what)
{
  if (access ("was", F_OK) == -1)
    return;
  CHECK_OK (unlink (what));
  CHECK_OK (rename ("was", what));
}

static void
exchange_file (void)
{
  exchange ("in/sub/x", "../../out/x");
}

static void
exchange_folder (void)
{
  exchange ("in/sub", "../out");
}

/* What opening it would do something with. */
static void
exchange_with_folder (void)
{
  exchange ("in/sub/x", ".");
}

/* Whatever is exchanged at whatever moment, what lies outside is not opened. */
static void
test_attack (open_fn *open, void (*attack) (void), const char *what)
{
  unsigned n = 0, refused = 0;
  int r;

  put ("in/sub/x", "i");
  do {
    strike = attack;
    strike_at = ++n;
    nr_calls = 0;
    r = read_by (open, "sub/x");
    strike_at = 0;
    CHECK (r == 'i' || r == -EXDEV || r == -ELOOP || r == -EINVAL);
    if (r != 'i')
      refused++;
    put_back (what);
  } while (nr_calls >= n);
  CHECK (n > 3);
  CHECK (refused > 0);
  CHECK_OK (unlink ("in/sub/x"));
}

static int
remove_it (const char *path, const struct stat *st, int type, struct FTW *f)
{
  return remove (path);
}

int
main (void)
{
  check_time_limit (60);
  if (mkdtemp (folder) == NULL || chdir (folder) == -1) {
    perror (folder);
    return 1;
  }
  make_files ();
  root = open ("in", O_PATH | O_DIRECTORY | O_CLOEXEC);
  test_cases ();
  test_long ();
  test_deep ();
  test_regular ();
  test_attack (open_beneath, exchange_file, "in/sub/x");
  test_attack (open_beneath, exchange_folder, "in/sub");
  test_attack (open_regular_beneath, exchange_file, "in/sub/x");
  test_attack (open_regular_beneath, exchange_with_folder, "in/sub/x");
  no_proc = true;
  test_regular ();
  test_attack (open_regular_beneath, exchange_with_folder, "in/sub/x");
  close (root);
  if (chdir ("..") == -1 ||
      nftw (folder, remove_it, 16, FTW_DEPTH | FTW_PHYS) == -1)
    perror (folder);
  return check_result ();
}
