/* SPDX-License-Identifier: BSD-3-Clause */

/* The system calls and allocations that make a new image's file, for
 * test-create-file, which is linked with --wrap for each of them: each can fail,
 * be the last of the process, or be preceded by what somebody else does.
 */

#ifndef UNIT_CREATE_CALLS_H
#define UNIT_CREATE_CALLS_H

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "check.h"
#include "folder.h"
#include "wrap.h"

/* The number of the call that fails, from 1 on; 0: none. */
static unsigned fail_at, nr_calls;
static int fail_errno;
static bool die;              /* instead */
static void (*strike) (void); /* instead: somebody else does this before it */

static bool
fails (void)
{
  if (fail_at == 0 || ++nr_calls != fail_at)
    return false;
  if (die)
    _exit (99);
  if (strike != NULL) {
    strike ();
    return false;
  }
  errno = fail_errno;
  return true;
}

/* Calls that change what is there, a letter each, in their order. */
static char calls[4096];

static void
note (char letter)
{
  const size_t n = strlen (calls);

  if (n + 1 < sizeof calls)
    calls[n] = letter;
}

#define WRAP(type, name, failure, params, args)         \
  extern type __real_##name params;                     \
  extern type __wrap_##name params;                     \
  type                                                  \
  __wrap_##name params                                  \
  {                                                     \
    return fails () ? failure : __real_##name args;     \
  }

#define WRAP_NOTED(letter, type, name, params, call)    \
  extern type __real_##name params;                     \
  extern type __wrap_##name params;                     \
  type                                                  \
  __wrap_##name params                                  \
  {                                                     \
    note (letter);                                      \
    return fails () ? -1 : call;                        \
  }

WRAP (off_t, lseek, -1, (int fd, off_t at, int whence), (fd, at, whence))
WRAP_NOTED ('w', ssize_t, pwrite,
            (int fd, const void *buf, size_t n, off_t at),
            __real_pwrite (fd, buf, n, at))
/* What ends here is the process, not the host: syncing would only take time. */
WRAP_NOTED ('s', int, fdatasync, (int fd), 0)
WRAP_NOTED ('d', int, fsync, (int fd), 0)
WRAP (int, fallocate, -1, (int fd, int mode, off_t at, off_t n),
      (fd, mode, at, n))
WRAP (int, ftruncate, -1, (int fd, off_t size), (fd, size))
WRAP (int, fchmod, -1, (int fd, mode_t mode), (fd, mode))
WRAP (char *, realpath, NULL, (const char *path, char *buf), (path, buf))
WRAP (void *, malloc, NULL, (size_t n), (n))
WRAP (void *, calloc, NULL, (size_t nr, size_t n), (nr, n))
WRAP (char *, strdup, NULL, (const char *s), (s))
WRAP (char *, strndup, NULL, (const char *s, size_t n), (s, n))

/* These calls fail each time with this, unless it is 0. */
static int no_random, no_renameat2, no_link, no_unlink;

/* How often the same number comes, and others after that. */
static unsigned same_numbers;

extern ssize_t __real_getrandom (void *buf, size_t n, unsigned flags);
extern ssize_t __wrap_getrandom (void *buf, size_t n, unsigned flags);
ssize_t
__wrap_getrandom (void *buf, size_t n, unsigned flags)
{
  if (no_random != 0)
    errno = no_random;
  if (no_random != 0 || fails ())
    return -1;
  if (same_numbers == 0)
    return __real_getrandom (buf, n, flags);
  same_numbers--;
  memset (buf, 0, n);
  return n;
}

extern int __real_linkat (int a, const char *from, int b, const char *to,
                          int flags);
extern int __wrap_linkat (int a, const char *from, int b, const char *to,
                          int flags);
int
__wrap_linkat (int a, const char *from, int b, const char *to, int flags)
{
  note ('l');
  if (no_link != 0)
    errno = no_link;
  return no_link != 0 || fails () ? -1 : __real_linkat (a, from, b, to, flags);
}

/* The process may not give files away. */
static bool no_chown;

extern int __real_fchown (int fd, uid_t u, gid_t g);
extern int __wrap_fchown (int fd, uid_t u, gid_t g);
int
__wrap_fchown (int fd, uid_t u, gid_t g)
{
  if (no_chown)
    errno = EPERM;
  return no_chown || fails () ? -1 : __real_fchown (fd, u, g);
}

/* Somebody else makes these files: meanwhile; and once it was found missing. */
static const char *appears, *made_late;

extern int __real_lstat (const char *path, struct stat *st);
extern int __wrap_lstat (const char *path, struct stat *st);
int
__wrap_lstat (const char *path, struct stat *st)
{
  if (made_late != NULL)
    folder_put (made_late, "theirs");
  made_late = NULL;
  return __real_lstat (path, st);
}

/* Somebody else's file replaces the new one as soon as it has its name. */
static bool replaced;

extern int __real_renameat (int a, const char *from, int b, const char *to);
extern int __wrap_renameat (int a, const char *from, int b, const char *to);
int
__wrap_renameat (int a, const char *from, int b, const char *to)
{
  int r;

  note ('n');
  r = fails () ? -1 : __real_renameat (a, from, b, to);
  if (r == 0 && replaced) {
    folder_put ("other", "theirs");
    CHECK_OK (rename ("other", to));
  }
  return r;
}

extern int __real_renameat2 (int a, const char *from, int b, const char *to,
                             unsigned flags);
extern int __wrap_renameat2 (int a, const char *from, int b, const char *to,
                             unsigned flags);
int
__wrap_renameat2 (int a, const char *from, int b, const char *to,
                  unsigned flags)
{
  note ('n');
  if (appears != NULL)
    folder_put (appears, "theirs");
  if (no_renameat2 != 0)
    errno = no_renameat2;
  if (no_renameat2 != 0 || fails ())
    return -1;
  if (replaced && flags == RENAME_EXCHANGE) {
    folder_put ("other", "theirs");
    CHECK_OK (rename ("other", to));
    replaced = false;
  }
  return __real_renameat2 (a, from, b, to, flags);
}

/* Cleaning up does not fail, but may be where the process ends. */
extern int __real_unlinkat (int dir, const char *name, int flags);
extern int __wrap_unlinkat (int dir, const char *name, int flags);
int
__wrap_unlinkat (int dir, const char *name, int flags)
{
  if (no_unlink != 0) {
    errno = no_unlink;
    return -1;
  }
  return die && fails () ? -1 : __real_unlinkat (dir, name, flags);
}

/* Files here are another user's. */
static bool foreign;

extern uid_t __real_geteuid (void);
extern uid_t __wrap_geteuid (void);
uid_t
__wrap_geteuid (void)
{
  return __real_geteuid () + foreign;
}

extern int __real_open (const char *path, int flags, mode_t mode);
extern int __wrap_open (const char *path, int flags, mode_t mode);
int
__wrap_open (const char *path, int flags, mode_t mode)
{
  return fails () ? -1 : __real_open (path, flags, mode);
}

extern int __real_openat (int dir, const char *path, int flags, mode_t mode);
extern int __wrap_openat (int dir, const char *path, int flags, mode_t mode);
int
__wrap_openat (int dir, const char *path, int flags, mode_t mode)
{
  return fails () ? -1 : __real_openat (dir, path, flags, mode);
}

extern int __real_fcntl (int fd, int cmd, void *arg);
extern int __wrap_fcntl (int fd, int cmd, void *arg);
int
__wrap_fcntl (int fd, int cmd, void *arg)
{
  return fails () ? -1 : __real_fcntl (fd, cmd, arg);
}

#endif /* UNIT_CREATE_CALLS_H */
