/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <unistd.h>

#include "storage/locks.h"

/* QEMU's protocol (its block/file-posix.c): a shared lock on byte 100 + p says
 * that permission p is used, one on byte 200 + p that it is denied to others.
 * Every process locks first and then looks for conflicts, so that of two that
 * start at once at least one notices.
 */
#define LOCK_USED 100
#define LOCK_DENIED 200
#define LOCK_PERMISSIONS 4

/* If a lock is refused but its holder can't be found, it is asked for again:
 * the holder may just have left.  After so many tries the host is taken to
 * refuse it.
 */
#define MAX_TRIES 3

/* As fcntl, for one byte.  *type becomes what it met. */
static int
control (int fd, int cmd, off_t byte, short *type)
{
  struct flock lock = {
    .l_type = *type,
    .l_whence = SEEK_SET,
    .l_start = byte,
    .l_len = 1,
  };
  int r;

  do
    r = fcntl (fd, cmd, &lock);
  while (r == -1 && errno == EINTR);
  *type = lock.l_type;
  return r;
}

/* Would a lock of this type meet another process's? */
static enum locks
look_at (int fd, off_t byte, short type)
{
  if (control (fd, F_OFD_GETLK, byte, &type) == -1)
    return LOCKS_MISSING;
  return type == F_UNLCK ? LOCKS_TAKEN : LOCKS_CONFLICT;
}

static enum locks
place_at (int fd, off_t byte)
{
  unsigned tries;

  for (tries = 0; tries < MAX_TRIES; ++tries) {
    short type = F_RDLCK;
    int err;

    if (control (fd, F_OFD_SETLK, byte, &type) == 0)
      return LOCKS_TAKEN;
    /* What else is not about locks of others: ENOSYS, EINVAL, ENOTSUP, ENOLCK,
     * EIO and EPERM were seen, and what is missing may be told otherwise.
     */
    if (errno != EAGAIN && errno != EACCES)
      return LOCKS_MISSING;
    err = errno;
    if (look_at (fd, byte, F_RDLCK) == LOCKS_CONFLICT)
      return LOCKS_CONFLICT;
    errno = err;
  }
  return LOCKS_MISSING;
}

/* For each of these permissions, look or place.  A conflict counts more than
 * what is missing; errno is that of the latter.
 */
static enum locks
for_each (int fd, bool look, off_t base, unsigned permissions)
{
  enum locks result = LOCKS_TAKEN;
  unsigned p;
  int err = 0;

  for (p = 0; p < LOCK_PERMISSIONS; ++p) {
    enum locks r;

    if (!(permissions & (1U << p)))
      continue;
    r = look ? look_at (fd, base + p, F_WRLCK) : place_at (fd, base + p);
    if (r == LOCKS_CONFLICT)
      return r;
    if (r == LOCKS_MISSING && result == LOCKS_TAKEN) {
      result = r;
      err = errno;
    }
  }
  errno = err;
  return result;
}

/* The same for both kinds: locks are placed where one's own are, and looked
 * for where those are that they contradict.
 */
static enum locks
for_both (int fd, bool look, unsigned uses, unsigned denies)
{
  const enum locks r = for_each (fd, look, look ? LOCK_DENIED : LOCK_USED,
                                 uses);
  const int err = errno;
  enum locks r2;

  if (r == LOCKS_CONFLICT)
    return r;
  r2 = for_each (fd, look, look ? LOCK_USED : LOCK_DENIED, denies);
  if (r2 == LOCKS_CONFLICT || r == LOCKS_TAKEN)
    return r2;
  errno = err;
  return r;
}

static void
unlock (int fd, off_t base, unsigned permissions)
{
  unsigned p;

  for (p = 0; p < LOCK_PERMISSIONS; ++p) {
    short type = F_UNLCK;

    if (permissions & (1U << p))
      (void) control (fd, F_OFD_SETLK, base + p, &type);
  }
}

enum locks
locks_place (int fd, unsigned uses, unsigned denies)
{
  return for_both (fd, false, uses, denies);
}

enum locks
locks_take (int fd, unsigned uses, unsigned denies, int instead,
            unsigned instead_denies)
{
  const enum locks placed = for_both (fd, false, uses, denies);
  const int err = errno;
  enum locks seen;

  if (instead != -1)
    unlock (instead, LOCK_DENIED, instead_denies);
  if (placed == LOCKS_CONFLICT)
    return placed;
  /* Those of others may be seen even if there can't be any of our own. */
  seen = for_both (fd, true, uses, denies);
  if (seen == LOCKS_CONFLICT || placed == LOCKS_TAKEN)
    return seen;
  errno = err;
  return placed;
}

void
locks_deny (int fd, unsigned denies)
{
  (void) for_each (fd, false, LOCK_DENIED, denies);
}
