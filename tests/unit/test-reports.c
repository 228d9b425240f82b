/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/reports.c: of calls that overlap all fail if one does; and so with a
 * file's flushes, and its durable writes.
 */

#include <config.h>

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/uio.h>
#include <unistd.h>

#include "check.h"
#include "seconds.h"
#include "storage/file.h"
#include "storage/reports.h"
#include "wrap.h"

static struct reports reports;

struct call {
  struct report_wait wait;
  int result;         /* of the call itself */
  _Atomic bool ended; /* and its overlaps */
  int r, err;
  pthread_t thread;
};

static void *
end (void *opaque)
{
  struct call *c = opaque;

  errno = c->result == -1 ? ENOSPC : 0;
  c->r = reports_end (&reports, &c->wait, c->result);
  c->err = errno;
  atomic_store (&c->ended, true);
  return NULL;
}

/* The call itself has ended; what it overlaps with may not have. */
static void
begin_to_end (struct call *c, int result)
{
  c->result = result;
  atomic_store (&c->ended, false);
  if (pthread_create (&c->thread, NULL, end, c) != 0)
    abort ();
}

static bool
is_waited_for (const struct report_wait *w)
{
  const struct report_wait *p;
  bool r = false;

  pthread_mutex_lock (&reports.lock);
  for (p = reports.first; p != NULL; p = p->next)
    r |= p == w;
  pthread_mutex_unlock (&reports.lock);
  return r;
}

/* It has left the list: all that it does now is to wait for others. */
static void
has_begun_to_end (const struct call *c)
{
  while (is_waited_for (&c->wait))
    sched_yield ();
}

static void
finish (struct call *c, int r)
{
  pthread_join (c->thread, NULL);
  CHECK_EQ (c->r, (uint64_t) r);
  if (r == -1)
    CHECK_EQ (c->err, c->result == -1 ? ENOSPC : EIO);
}

/* A good call waits for one that began before it, for one that began while it was
 * running, and for none that began later.
 */
static void
test_overlap (unsigned which, int result)
{
  struct call good, other;
  struct report_wait later;

  reports_init (&reports);
  if (which == 0)
    reports_begin (&reports, &other.wait);
  reports_begin (&reports, &good.wait);
  if (which == 1)
    reports_begin (&reports, &other.wait);
  begin_to_end (&good, 0);
  has_begun_to_end (&good);
  reports_begin (&reports, &later);
  CHECK (!atomic_load (&good.ended));
  begin_to_end (&other, result);
  finish (&good, result);
  CHECK_EQ (reports_end (&reports, &later, 0), (uint64_t) result);
  finish (&other, result);
  reports_destroy (&reports);
}

/* One after the other: a failure stays. */
static void
test_in_turn (void)
{
  struct report_wait w[3];
  unsigned i;

  reports_init (&reports);
  for (i = 0; i < 4; ++i) {
    reports_begin (&reports, &w[0]);
    CHECK_OK (reports_end (&reports, &w[0], 0));
  }
  for (i = 0; i < 3; ++i)
    reports_begin (&reports, &w[i]);
  errno = EDQUOT;
  CHECK_EQ (reports_end (&reports, &w[1], -1), (uint64_t) -1);
  CHECK_EQ (errno, EDQUOT);
  for (i = 0; i < 3; i += 2) {
    CHECK_EQ (reports_end (&reports, &w[i], 0), (uint64_t) -1);
    CHECK_EQ (errno, EIO);
  }
  reports_begin (&reports, &w[0]);
  CHECK_EQ (reports_end (&reports, &w[0], 0), (uint64_t) -1);
  CHECK (reports.first == NULL);
  reports_destroy (&reports);
}

/* ----------------------------------------------------------------- of a file */

/* The first call to make something durable ends well, and last; the second one
 * is told of a loss, which may be the first one's.
 */
static _Atomic unsigned begun, told;

/* Instead of that: what comes of a durable write, of a flush, and of asking whether
 * anything was lost.
 */
static bool scripted;
static int write_error, flush_error, judgement;
static unsigned interruptions; /* that are still to come, of an EINTR */
static int flushed_fd, judge_fd;

static int
failed_with (int err)
{
  errno = err;
  return err == 0 ? 0 : -1;
}

static int
interruptible (int err)
{
  if (err != EINTR)
    return failed_with (err);
  if (interruptions == 0)
    return 0;
  interruptions--;
  return failed_with (EINTR);
}

static int
good_or_told (void)
{
  if (atomic_fetch_add (&begun, 1) == 0) {
    while (atomic_load (&told) == 0)
      sched_yield ();
    return 0;
  }
  errno = EIO;
  return -1;
}

extern ssize_t __wrap_pwritev2 (int fd, const struct iovec *iov, int nr,
                                off_t offset, int flags);
ssize_t
__wrap_pwritev2 (int fd, const struct iovec *iov, int nr, off_t offset,
                 int flags)
{
  (void) fd, (void) offset, (void) flags;
  CHECK_EQ (nr, 1);
  if (scripted)
    return interruptible (write_error) == 0 ? (ssize_t) iov->iov_len : -1;
  return good_or_told () == 0 ? (ssize_t) iov->iov_len : -1;
}

extern int __wrap_fdatasync (int fd);
int
__wrap_fdatasync (int fd)
{
  flushed_fd = fd;
  return scripted ? interruptible (flush_error) : good_or_told ();
}

extern int __wrap_sync_file_range (int fd, off_t offset, off_t count,
                                   unsigned flags);
int
__wrap_sync_file_range (int fd, off_t offset, off_t count, unsigned flags)
{
  (void) offset, (void) count;
  CHECK (flags == SYNC_FILE_RANGE_WAIT_BEFORE);
  judge_fd = fd;
  return failed_with (judgement);
}

static struct storage *file;
static bool flush; /* rather than write */

static int
make_durable (void)
{
  struct iovec iov = { (void *) "x", 1 };

  return flush ? storage_flush (file)
    : storage_writev (file, &iov, 1, (struct host_off) { 0 }, true);
}

static void *
first_call (void *opaque)
{
  int *r = opaque;

  *r = make_durable ();
  return NULL;
}

static const char name[] = "test-reports.tmp";

static void
open_file (void)
{
  const int fd = open (name, O_CREAT | O_RDWR | O_TRUNC, 0600);

  CHECK (fd != -1);
  close (fd);
  file = storage_file_open (AT_FDCWD, name, false, name);
  CHECK (file != NULL);
  CHECK_OK (storage_make_writable (file, 0, 0));
}

static void
close_file (void)
{
  storage_close (file);
  unlink (name);
}

static void
test_file (void)
{
  pthread_t thread;
  int r;

  open_file ();
  begun = told = 0;
  if (pthread_create (&thread, NULL, first_call, &r) != 0)
    abort ();
  while (atomic_load (&begun) == 0)
    sched_yield ();
  CHECK_EQ (make_durable (), (uint64_t) -1);
  atomic_store (&told, 1);
  pthread_join (thread, NULL);
  CHECK_EQ (r, (uint64_t) -1);
  close_file ();
}

/* I13: a full file system stops no other write; a loss that a durable write is
 * told of stops all (I10), though it is a lack of space.
 */
static void
test_no_space (int err)
{
  scripted = true;
  flush = false;
  flush_error = 0;
  open_file ();
  write_error = err;
  CHECK_EQ (make_durable (), (uint64_t) -1);
  CHECK_EQ (error_errno (), ENOSPC);
  write_error = 0;
  CHECK_OK (make_durable ());
  CHECK_OK (storage_flush (file));

  write_error = err;
  flush_error = EIO;
  CHECK_EQ (make_durable (), (uint64_t) -1);
  CHECK_EQ (error_errno (), EIO);
  write_error = flush_error = 0;
  CHECK_EQ (make_durable (), (uint64_t) -1);
  CHECK_EQ (storage_flush (file), (uint64_t) -1);
  close_file ();
  scripted = false;
}

/* A signal stops neither the write that it interrupts nor any other; a loss that
 * such a write is told of stops all.
 */
static void
test_interrupted (void)
{
  scripted = true;
  flush = false;
  flush_error = 0;
  open_file ();
  write_error = EINTR;
  interruptions = 1;
  CHECK_OK (make_durable ());
  write_error = 0;
  CHECK_OK (make_durable ());
  CHECK_OK (storage_flush (file));

  write_error = EINTR;
  interruptions = 1;
  flush_error = EIO;
  CHECK_EQ (make_durable (), (uint64_t) -1);
  write_error = flush_error = 0;
  CHECK_EQ (make_durable (), (uint64_t) -1);
  close_file ();
  scripted = false;
}

/* I10: an ordinary write was told, and so fdatasync of its descriptor is not. */
static void
test_told_to_a_write (void)
{
  scripted = true;
  write_error = flush_error = 0;
  open_file ();
  CHECK_OK (storage_flush (file));
  CHECK (judge_fd != flushed_fd);
  judgement = ENOSPC;
  CHECK_EQ (storage_flush (file), (uint64_t) -1);
  judgement = 0;
  CHECK_EQ (storage_flush (file), (uint64_t) -1);
  close_file ();

  flush = false;
  open_file ();
  write_error = ENOSPC;
  judgement = ENOSPC;
  CHECK_EQ (make_durable (), (uint64_t) -1);
  CHECK_EQ (error_errno (), EIO);
  write_error = judgement = 0;
  CHECK_EQ (make_durable (), (uint64_t) -1);
  close_file ();
  scripted = false;
}

/* Where that can't be asked without writing anything back it is asked so. */
static void
test_not_to_be_asked (void)
{
  scripted = true;
  write_error = flush_error = 0;
  judgement = ENOSYS;
  open_file ();
  CHECK_OK (storage_flush (file));
  CHECK_EQ (flushed_fd, judge_fd);
  close_file ();
  judgement = 0;
  scripted = false;
}

static void
test_flush_interrupted (void)
{
  scripted = true;
  flush_error = EINTR;
  interruptions = 2;
  open_file ();
  CHECK_OK (storage_flush (file));
  CHECK_OK (storage_flush (file));
  close_file ();
  flush_error = 0;
  scripted = false;
}

int
main (void)
{
  check_time_limit (60);
  test_overlap (0, -1);
  test_overlap (1, -1);
  test_overlap (0, 0);
  test_overlap (1, 0);
  test_in_turn ();
  test_file ();
  flush = true;
  test_file ();
  test_no_space (ENOSPC);
  test_no_space (EDQUOT);
  test_no_space (EFBIG);
  test_interrupted ();
  test_told_to_a_write ();
  test_not_to_be_asked ();
  test_flush_interrupted ();
  return check_result ();
}
