/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/reports.c: of calls that overlap all fail if one does. */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "check.h"
#include "seconds.h"
#include "storage/reports.h"

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

int
main (void)
{
  check_time_limit (60);
  test_overlap (0, -1);
  test_overlap (1, -1);
  test_overlap (0, 0);
  test_overlap (1, 0);
  test_in_turn ();
  return check_result ();
}
