/* SPDX-License-Identifier: BSD-3-Clause */

/* base/inflight.c: ranges that overlap take turns, others don't wait. */

#include <config.h>

#include <stdlib.h>

#include "base/inflight.h"
#include "check.h"
#include "random.h"
#include "seconds.h"

struct waiter {
  pthread_t thread;
  struct inflight *f;
  struct inflight_range range;
  _Atomic bool entered;
};

static void *
enter_main (void *opaque)
{
  struct waiter *w = opaque;

  inflight_enter (w->f, &w->range);
  w->entered = true;
  return NULL;
}

static void
start (struct waiter *w, struct inflight *f, uint64_t first, uint64_t last)
{
  *w = (struct waiter) {
    .f = f, .range = { .first = first, .last = last },
  };
  pthread_create (&w->thread, NULL, enter_main, w);
}

/* Ranges beside others enter at once: if not, this hangs. */
static void
test_disjoint (void)
{
  struct inflight_range a = { .first = 10, .last = 19 };
  struct inflight_range b = { .first = 20, .last = 20 };
  struct inflight_range c = { .first = 0, .last = 9 };
  struct inflight_range d = { .first = UINT64_MAX, .last = UINT64_MAX };
  struct inflight f;

  inflight_init (&f);
  inflight_enter (&f, &a);
  inflight_enter (&f, &b);
  inflight_enter (&f, &c);
  inflight_enter (&f, &d);
  inflight_leave (&f, &b);
  inflight_leave (&f, &a);
  inflight_enter (&f, &a);
  inflight_leave (&f, &d);
  inflight_leave (&f, &c);
  inflight_leave (&f, &a);
  inflight_destroy (&f);
}

/* One that shares a single unit waits, until all in its way are gone. */
static void
test_overlap (void)
{
  static const uint64_t range[][2] = {
    { 19, 30 }, { 0, 10 }, { 12, 13 }, { 0, UINT64_MAX }, { 10, 19 },
  };
  struct inflight_range a = { .first = 10, .last = 15 };
  struct inflight_range b = { .first = 16, .last = 19 };
  struct inflight f;
  size_t i;

  inflight_init (&f);
  for (i = 0; i < sizeof range / sizeof range[0]; ++i) {
    const bool hits_b = range[i][1] >= 16;
    struct waiter w;

    inflight_enter (&f, &a);
    inflight_enter (&f, &b);
    start (&w, &f, range[i][0], range[i][1]);
    usleep (5000);
    CHECK (!w.entered);
    if (hits_b) {
      inflight_leave (&f, &a);
      usleep (5000);
      CHECK (!w.entered);
      inflight_leave (&f, &b);
    }
    else {
      inflight_leave (&f, &b);
      usleep (5000);
      CHECK (!w.entered);
      inflight_leave (&f, &a);
    }
    pthread_join (w.thread, NULL);
    CHECK (w.entered);
    inflight_leave (&f, &w.range);
  }
  inflight_destroy (&f);
}

/* Wait until a thread waits for its range, as the nr-th, or has entered it. */
static void
wait_for_waiter (struct inflight *f, const struct waiter *w, unsigned nr)
{
  unsigned waiting;

  do {
    pthread_mutex_lock (&f->lock);
    waiting = f->waiting;
    pthread_mutex_unlock (&f->lock);
    sched_yield ();
  } while (waiting < nr && !w->entered);
}

/* Whether no range has arrived after this one. */
static bool
is_empty_behind (struct inflight *f, const struct inflight_range *r)
{
  bool empty;

  pthread_mutex_lock (&f->lock);
  empty = r->next == NULL;
  pthread_mutex_unlock (&f->lock);
  return empty;
}

struct waiter_for_all {
  struct inflight *f;
  struct inflight_range range[3];
  _Atomic bool entered;
  pthread_t thread;
};

static void *
enter_all (void *opaque)
{
  struct waiter_for_all *w = opaque;

  inflight_enter_all (w->f, w->range, 3);
  w->entered = true;
  return NULL;
}

/* Of several ranges each is waited for, whichever it is, and all of them are in
 * the way of later ones while it is.
 */
static void
test_all (unsigned which)
{
  struct inflight_range a = { .first = 10 * which + 5, .last = 10 * which + 5 };
  struct inflight f;
  struct waiter_for_all all = {
    .f = &f,
    .range = { { .first = 0, .last = 9 }, { .first = 10, .last = 19 },
               { .first = 20, .last = 29 } },
  };
  struct waiter later;
  unsigned i;

  inflight_init (&f);
  inflight_enter (&f, &a);
  if (pthread_create (&all.thread, NULL, enter_all, &all) != 0)
    abort ();
  while (is_empty_behind (&f, &a))
    sched_yield ();
  start (&later, &f, 29, 30);
  usleep (5000);
  CHECK (!all.entered);
  CHECK (!later.entered);
  inflight_leave (&f, &a);
  pthread_join (all.thread, NULL);
  usleep (5000);
  CHECK (!later.entered);
  for (i = 0; i < 3; ++i)
    inflight_leave (&f, &all.range[i]);
  pthread_join (later.thread, NULL);
  inflight_leave (&f, &later.range);
  inflight_destroy (&f);
}

/* First come, first served: a large range that waits is not overtaken by a
 * small one, though nobody is in that one's way but it.
 */
static void
test_fair (void)
{
  struct inflight_range a = { .first = 0, .last = 3 };
  struct waiter large, small, beside;
  struct inflight f;

  inflight_init (&f);
  inflight_enter (&f, &a);
  start (&large, &f, 0, 9);
  wait_for_waiter (&f, &large, 1);
  start (&small, &f, 7, 7);
  /* What is beside both enters at once. */
  start (&beside, &f, 10, 11);
  pthread_join (beside.thread, NULL);
  CHECK (beside.entered);
  wait_for_waiter (&f, &small, 2);
  CHECK (!small.entered && !large.entered);
  if (small.entered) /* the large one waits for it now */
    exit (check_result ());
  inflight_leave (&f, &beside.range);
  inflight_leave (&f, &a);
  pthread_join (large.thread, NULL);
  CHECK (!small.entered);
  inflight_leave (&f, &large.range);
  pthread_join (small.thread, NULL);
  inflight_leave (&f, &small.range);
  inflight_destroy (&f);
}

/* Who has a range has its units for itself.  The counters are not atomic,
 * so that ThreadSanitizer judges as well.
 */
#define UNITS 40
#define THREADS 6

struct many {
  struct inflight f;
  uint64_t owner[UNITS];
  double until;
  _Atomic uint64_t seed, entered;
};

static void
use (struct many *m, const struct inflight_range *r, uint64_t me)
{
  uint64_t i;

  for (i = r->first; i <= r->last; ++i) {
    CHECK_EQ (m->owner[i], 0);
    m->owner[i] = me;
  }
  if (me % 7 == 0)
    sched_yield ();
  for (i = r->first; i <= r->last; ++i) {
    CHECK_EQ (m->owner[i], me);
    m->owner[i] = 0;
  }
}

static void *
many_main (void *opaque)
{
  struct many *m = opaque;
  const uint64_t me = ++m->seed;
  uint64_t state = mix (me), nr = 0;

  while (seconds () < m->until) {
    struct inflight_range r;

    r.first = random_below (&state, UNITS);
    r.last = r.first + random_below (&state, 1 + random_below
                                     (&state, UNITS - r.first));
    inflight_enter (&m->f, &r);
    use (m, &r, me);
    inflight_leave (&m->f, &r);
    nr++;
  }
  m->entered += nr;
  return NULL;
}

static void
test_threads (void)
{
  static struct many m;
  pthread_t thread[THREADS];
  unsigned i;

  inflight_init (&m.f);
  m.until = seconds () + test_seconds (1);
  for (i = 0; i < THREADS; ++i)
    pthread_create (&thread[i], NULL, many_main, &m);
  for (i = 0; i < THREADS; ++i)
    pthread_join (thread[i], NULL);
  CHECK (m.f.first == NULL && m.f.end == &m.f.first);
  CHECK_EQ (m.f.waiting, 0);
  printf ("%" PRIu64 " ranges\n", m.entered);
  inflight_destroy (&m.f);
}

int
main (void)
{
  unsigned which;

  check_time_limit (100 + test_seconds (1));
  test_disjoint ();
  test_overlap ();
  test_fair ();
  for (which = 0; which < 3 && !check_any_failed (); ++which) /* else it may hang */
    test_all (which);
  test_threads ();
  return check_result ();
}
