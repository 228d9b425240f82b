/* SPDX-License-Identifier: BSD-3-Clause */

/* The kernel does this in one call (openat2, RESOLVE_BENEATH).  Linux before
 * 5.6 does not have it, and containers whose rules are older forbid it: there
 * the path is walked by hand, one part at a time.  Neither a symbolic link nor
 * ".." is ever resolved by the kernel then, and what was looked at is what is
 * gone through, so that exchanging parts meanwhile helps nobody.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/openat2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "storage/beneath.h"

#define MAX_DEPTH 64 /* of directories, each of which is held open */
#define MAX_LINKS 40 /* as in Linux */

struct walk {
  int dir[MAX_DEPTH]; /* the first is the caller's, the last the current */
  unsigned depth;     /* how many were entered */
  unsigned links;     /* that were met */
  char *path;         /* what is still to be gone; owned */
};

static int
current (const struct walk *w)
{
  return w->dir[w->depth];
}

static int
fail (int err)
{
  errno = err;
  return -1;
}

/* The first part of the path, and what comes after it: "" if it is the last,
 * and a slash at least if not.  Part has room for NAME_MAX + 1 bytes.
 */
static int
first_part (const char *path, char *part, const char **rest)
{
  const size_t n = strcspn (path, "/");

  if (n > NAME_MAX)
    return fail (ENAMETOOLONG);
  memcpy (part, path, n);
  part[n] = '\0';
  *rest = path + n;
  return 0;
}

/* Go on with this, and then with the rest of the path. */
static int
set_path (struct walk *w, const char *first, const char *rest)
{
  char *path;

  if (asprintf (&path, "%s%s", first, rest) == -1)
    return fail (ENOMEM);
  free (w->path);
  w->path = path;
  return 0;
}

static int
go_up (struct walk *w)
{
  if (w->depth == 0)
    return fail (EXDEV);
  close (w->dir[w->depth--]);
  return 0;
}

/* fd is owned from here on. */
static int
enter (struct walk *w, int fd)
{
  if (w->depth + 1 == MAX_DEPTH) {
    close (fd);
    return fail (ENAMETOOLONG);
  }
  w->dir[++w->depth] = fd;
  return 0;
}

/* Go where the link leads that fd is. */
static int
follow_link (struct walk *w, int fd, const char *rest)
{
  char target[PATH_MAX];
  const ssize_t n = readlinkat (fd, "", target, sizeof target);

  if (n == -1)
    return -1;
  if (n == sizeof target)
    return fail (ENAMETOOLONG);
  target[n] = '\0';
  if (target[0] == '/')
    return fail (EXDEV);
  if (++w->links > MAX_LINKS)
    return fail (ELOOP);
  return set_path (w, target, rest);
}

/* Go through one part that is neither "." nor "..".  Returns the file if that
 * was the last one, -1 with errno set, or NOT_YET.
 */
#define NOT_YET -2

static int
step (struct walk *w, const char *part, const char *rest, int flags)
{
  const int fd = openat (current (w), part, O_PATH | O_NOFOLLOW | O_CLOEXEC);
  struct stat st;
  int r;

  if (fd == -1)
    return -1;
  r = fstat (fd, &st);
  if (r == -1 || S_ISLNK (st.st_mode)) {
    if (r == 0)
      r = follow_link (w, fd, rest);
    close (fd);
    return r == -1 ? -1 : NOT_YET;
  }
  if (rest[0] != '\0')
    return enter (w, fd) == -1 || set_path (w, "", rest) == -1 ? -1 : NOT_YET;
  close (fd);
  /* If it is a link by now it is not followed. */
  return openat (current (w), part, flags | O_NOFOLLOW);
}

static int
walk (struct walk *w, int flags)
{
  char part[NAME_MAX + 1];
  const char *rest;
  int r = NOT_YET;

  while (r == NOT_YET) {
    const char *path = w->path + strspn (w->path, "/");

    if (path[0] == '\0') /* it ended with "/", "." or ".." */
      return openat (current (w), ".", flags);
    if (first_part (path, part, &rest) == -1)
      return -1;
    if (strcmp (part, ".") == 0)
      r = set_path (w, "", rest) == -1 ? -1 : NOT_YET;
    else if (strcmp (part, "..") == 0)
      r = go_up (w) == -1 || set_path (w, "", rest) == -1 ? -1 : NOT_YET;
    else
      r = step (w, part, rest, flags);
  }
  return r;
}

static int
open_by_hand (int dirfd, const char *path, int flags)
{
  struct walk w = { .dir = { dirfd } };
  int fd = -1, err;

  if (path[0] == '\0')
    return fail (ENOENT);
  if (path[0] == '/')
    return fail (EXDEV);
  if (set_path (&w, "", path) == 0)
    fd = walk (&w, flags);
  err = errno;
  while (w.depth > 0)
    (void) go_up (&w);
  free (w.path);
  errno = err;
  return fd;
}

int
open_beneath (int dirfd, const char *path, int flags)
{
  struct open_how how = { .flags = flags, .resolve = RESOLVE_BENEATH };
  const int fd = syscall (SYS_openat2, dirfd, path, &how, sizeof how);

  /* EAGAIN: something was renamed meanwhile, and the kernel can't be sure. */
  if (fd != -1 || (errno != ENOSYS && errno != EPERM && errno != EAGAIN))
    return fd;
  return open_by_hand (dirfd, path, flags);
}

static int
check_regular (int fd)
{
  struct stat st;

  if (fstat (fd, &st) == -1)
    return -1;
  return S_ISREG (st.st_mode) ? 0 : fail (EINVAL);
}

/* The file that place, of O_PATH, refers to. */
static int
open_place (int place, int dirfd, const char *path, int flags)
{
  char self[64];
  int fd;

  snprintf (self, sizeof self, "/proc/self/fd/%d", place);
  fd = openat (AT_FDCWD, self, flags);
  if (fd != -1 || errno != ENOENT)
    return fd;
  fd = open_beneath (dirfd, path, flags); /* /proc is not mounted */
  if (fd != -1 && check_regular (fd) == -1) {
    close (fd);
    return fail (EINVAL);
  }
  return fd;
}

int
open_regular_beneath (int dirfd, const char *path, int flags)
{
  const int place = open_beneath (dirfd, path, O_PATH | O_CLOEXEC);
  int fd = -1, err;

  if (place == -1)
    return -1;
  if (check_regular (place) == 0)
    fd = open_place (place, dirfd, path, flags);
  err = errno;
  close (place);
  errno = err;
  return fd;
}

int
open_in_place (int dirfd, const char *path, enum file_place place, int access)
{
  /* O_NONBLOCK: opening a FIFO must not wait for its other end. */
  const int flags = access | O_CLOEXEC | O_NOCTTY | O_NONBLOCK;

  return place == FILE_ANYWHERE ? openat (dirfd, path, flags)
    : place == FILE_BENEATH ? open_beneath (dirfd, path, flags)
    : open_regular_beneath (dirfd, path, flags);
}
