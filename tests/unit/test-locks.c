/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/locks.c: what is a conflict, what is a file system without locks,
 * and what others see meanwhile.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <unistd.h>

#include "check.h"
#include "storage/locks.h"
#include "storage/storage.h"
#include "wrap.h"

#define ALL (STORAGE_CONSISTENT_READ | STORAGE_WRITE | STORAGE_RESIZE)
#define WRITES (STORAGE_WRITE | STORAGE_RESIZE)

/* ------------------------------------------------------------------ faults */

static int fail_set, fail_get; /* with this errno, 0: not */
static unsigned failures;      /* so many times, then no more */
static unsigned nr_set;
static void (*before_set) (void); /* each time */
static void (*before_get) (void); /* once */

extern int __real_fcntl (int fd, int cmd, void *arg);
extern int __wrap_fcntl (int fd, int cmd, void *arg);
int
__wrap_fcntl (int fd, int cmd, void *arg)
{
  const struct flock *lock = arg;
  const int err = cmd == F_OFD_SETLK && lock->l_type != F_UNLCK ? fail_set
    : cmd == F_OFD_GETLK ? fail_get : 0;
  void (*hook) (void) = before_get;

  if (cmd == F_OFD_SETLK) {
    nr_set++;
    if (before_set != NULL)
      before_set ();
  }
  if (err != 0 && failures > 0) {
    failures--;
    errno = err;
    return -1;
  }
  if (cmd == F_OFD_GETLK && hook != NULL) {
    before_get = NULL;
    hook ();
  }
  return __real_fcntl (fd, cmd, arg);
}

/* ------------------------------------------------------------------- files */

static char name[] = "test-locks.XXXXXX";

static int
open_it (void)
{
  const int fd = open (name, O_RDWR | O_CLOEXEC);

  if (fd == -1)
    abort ();
  return fd;
}

static enum locks
take (int fd, unsigned uses, unsigned denies)
{
  return locks_take (fd, uses, denies, -1, 0);
}

/* Is this byte locked, as seen by others? */
static bool
is_locked (off_t byte)
{
  struct flock lock = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = byte, .l_len = 1,
  };
  const int fd = open_it ();

  CHECK_OK (__real_fcntl (fd, F_OFD_GETLK, &lock));
  close (fd);
  return lock.l_type != F_UNLCK;
}

static void
drop (int fd)
{
  struct flock all = { .l_type = F_UNLCK, .l_whence = SEEK_SET };

  CHECK_OK (__real_fcntl (fd, F_OFD_SETLK, &all));
}

/* ------------------------------------------------------------------- tests */

static void
test_conflicts (void)
{
  const int a = open_it (), b = open_it ();

  /* Readers, and a writer. */
  CHECK_EQ (take (a, STORAGE_CONSISTENT_READ, WRITES), LOCKS_TAKEN);
  CHECK (is_locked (100) && is_locked (201) && is_locked (203));
  CHECK (!is_locked (101) && !is_locked (103) && !is_locked (200) &&
         !is_locked (202));
  CHECK_EQ (take (b, STORAGE_CONSISTENT_READ, WRITES), LOCKS_TAKEN);
  drop (b);
  CHECK_EQ (take (b, ALL, WRITES), LOCKS_CONFLICT);
  drop (b);
  CHECK_EQ (take (b, STORAGE_CONSISTENT_READ, 0), LOCKS_TAKEN);
  drop (a);
  CHECK_EQ (take (a, ALL, ALL), LOCKS_CONFLICT);
  drop (b);
  drop (a);
  CHECK (!is_locked (100) && !is_locked (101) && !is_locked (201));
  CHECK_EQ (take (a, ALL, ALL), LOCKS_TAKEN);
  CHECK_EQ (take (b, STORAGE_CONSISTENT_READ, 0), LOCKS_CONFLICT);
  close (a);
  drop (b);
  CHECK_EQ (take (b, ALL, ALL), LOCKS_TAKEN);
  close (b);
}

static int reader;

/* What the reader denied is denied at each moment, and at the end by the
 * writer.
 */
static void
look_meanwhile (void)
{
  CHECK (is_locked (201) && is_locked (203));
}

static void
look_between (void)
{
  CHECK (is_locked (101) && is_locked (201) && is_locked (100));
}

static void
test_instead (void)
{
  const int b = open_it (), c = open_it ();

  reader = open_it ();
  CHECK_EQ (take (reader, STORAGE_CONSISTENT_READ, WRITES), LOCKS_TAKEN);
  nr_set = 0;
  before_set = look_meanwhile;
  before_get = look_between;
  CHECK_EQ (locks_take (b, ALL, WRITES, reader, WRITES), LOCKS_TAKEN);
  CHECK (nr_set > 5);
  before_set = NULL;
  CHECK (before_get == NULL);
  CHECK_EQ (take (c, STORAGE_CONSISTENT_READ, WRITES), LOCKS_CONFLICT);
  close (b);
  drop (c);
  /* It did not come to be, say: the reader denies again. */
  locks_deny (reader, WRITES);
  CHECK (is_locked (201) && is_locked (203));
  CHECK_EQ (take (c, ALL, WRITES), LOCKS_CONFLICT);
  close (reader);
  close (c);
}

static const int errs[] = {
  ENOSYS, EIO, EPERM, EOPNOTSUPP, EINVAL, ENOLCK, EACCES, EAGAIN, ENOTTY,
};
#define NR_ERRS (sizeof errs / sizeof errs[0])

/* There are none: placing them fails, or looking for them, or both. */
static void
test_missing (void)
{
  const int a = open_it ();
  unsigned i, set, get;

  for (i = 0; i < NR_ERRS; ++i) {
    for (set = 0; set < 2; ++set) {
      for (get = 0; get < 2; ++get) {
        fail_set = set ? errs[i] : 0;
        fail_get = get ? errs[i] : 0;
        failures = 1000;
        errno = 0;
        CHECK_EQ (take (a, STORAGE_CONSISTENT_READ, WRITES),
                  set || get ? LOCKS_MISSING : LOCKS_TAKEN);
        CHECK_EQ (errno, set || get ? errs[i] : 0);
        drop (a);
      }
    }
  }
  fail_set = fail_get = 0;
  close (a);
}

/* Those of others may be seen all the same. */
static void
test_missing_conflict (void)
{
  const int a = open_it (), b = open_it ();
  unsigned i;

  CHECK_EQ (take (b, ALL, WRITES), LOCKS_TAKEN);
  for (i = 0; i < NR_ERRS; ++i) {
    fail_set = errs[i];
    failures = 1000;
    CHECK_EQ (take (a, STORAGE_CONSISTENT_READ, WRITES), LOCKS_CONFLICT);
    /* But not by who denies nothing, as with force-share. */
    CHECK_EQ (take (a, STORAGE_CONSISTENT_READ, 0), LOCKS_MISSING);
  }
  fail_set = 0;
  close (a);
  close (b);
}

/* Refused, and nobody is there, since he has just left: it is tried again. */
static void
test_refused (void)
{
  static const int refusals[] = { EAGAIN, EACCES };
  const int a = open_it ();
  unsigned i, n;

  for (i = 0; i < 2; ++i) {
    for (n = 1; n <= 2; ++n) {
      fail_set = refusals[i];
      failures = n;
      CHECK_EQ (take (a, STORAGE_CONSISTENT_READ, WRITES), LOCKS_TAKEN);
      CHECK (is_locked (100) && is_locked (201) && is_locked (203));
      drop (a);
    }
  }
  /* A signal is no reason. */
  fail_set = fail_get = EINTR;
  failures = 20;
  CHECK_EQ (take (a, ALL, WRITES), LOCKS_TAKEN);
  CHECK_EQ (failures, 0);
  CHECK (is_locked (101));
  fail_set = fail_get = 0;
  close (a);
}

/* A lock for writing, which none of QEMU's programs takes. */
static void
test_exclusive (void)
{
  struct flock lock = {
    .l_type = F_WRLCK, .l_whence = SEEK_SET, .l_start = 100, .l_len = 1,
  };
  const int a = open_it (), b = open_it ();

  CHECK_OK (__real_fcntl (b, F_OFD_SETLK, &lock));
  nr_set = 0;
  CHECK_EQ (take (a, STORAGE_CONSISTENT_READ, 0), LOCKS_CONFLICT);
  CHECK_EQ (nr_set, 1);
  close (a);
  close (b);
}

int
main (void)
{
  const int fd = mkstemp (name);

  check_time_limit (60);
  if (fd == -1) {
    perror (name);
    return 1;
  }
  close (fd);
  test_conflicts ();
  test_instead ();
  test_missing ();
  test_missing_conflict ();
  test_refused ();
  test_exclusive ();
  unlink (name);
  return check_result ();
}
