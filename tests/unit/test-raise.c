/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/alloc.h: alloc_raise.  Others can have refcounts_lock after each slice
 * of refcounts, and do have it if they wait.  What a failure leaves raised is told.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdlib.h>

#include "alloc-rig.h"
#include "check.h"

#define BITS 9
#define ORDER 6
#define PER_SLICE 64  /* clusters of 2^9, refcounts of 2^6 bits */
#define CLUSTERS 8000 /* more slices than may be changed at once */

static struct host_off first; /* of those that were taken */
static uint64_t raised[2 * CLUSTERS];
static size_t nr;

/* What the thread that raises did with the lock held. */
static bool held;
static unsigned holds, changes, most_changes;

/* Somebody else wants it in that hold; 0: nobody. */
static unsigned meet_in, met_in;
static pthread_t other;
static atomic_bool waits;
static __thread bool is_other;

/* -------------------------------------------------------------------- the lock */

extern int __real_pthread_mutex_lock (pthread_mutex_t *m);
extern int __wrap_pthread_mutex_lock (pthread_mutex_t *m);
extern int __real_pthread_mutex_unlock (pthread_mutex_t *m);
extern int __wrap_pthread_mutex_unlock (pthread_mutex_t *m);
extern int __real_writeback_change (struct writeback *c,
                                    const struct change *ch, uint64_t *batch);
extern int __wrap_writeback_change (struct writeback *c,
                                    const struct change *ch, uint64_t *batch);

int
__wrap_pthread_mutex_lock (pthread_mutex_t *m)
{
  int r;

  if (m != &space.refcounts_lock)
    return __real_pthread_mutex_lock (m);
  if (is_other)
    atomic_store (&waits, true);
  r = __real_pthread_mutex_lock (m);
  if (is_other)
    met_in = holds;
  else {
    held = true;
    holds++;
    changes = 0;
  }
  return r;
}

int
__wrap_pthread_mutex_unlock (pthread_mutex_t *m)
{
  if (m == &space.refcounts_lock && !is_other)
    held = false;
  return __real_pthread_mutex_unlock (m);
}

static void *
other_main (void *opaque)
{
  uint64_t refcount;

  is_other = true;
  CHECK_OK (alloc_refcount (&space, first, &refcount));
  return opaque;
}

/* Until the other one can do nothing but wait. */
static void
meet (void)
{
  atomic_store (&waits, false);
  CHECK_EQ (pthread_create (&other, NULL, other_main, NULL), 0);
  while (!atomic_load (&waits))
    sched_yield ();
}

int
__wrap_writeback_change (struct writeback *c, const struct change *ch,
                         uint64_t *batch)
{
  if (held && ++changes > most_changes)
    most_changes = changes;
  if (held && holds == meet_in) {
    meet_in = 0;
    meet ();
  }
  return __real_writeback_change (c, ch, batch);
}

/* ------------------------------------------------------------------------ raising */

/* They have a reference each.  All are to be raised, each seventh of them twice. */
static void
start (void)
{
  struct alloc_clusters got;
  uint64_t i;

  refcount_order = ORDER;
  alloc_rig_start (BITS, false);
  CHECK_OK (alloc_take_contiguous (&space, CLUSTERS, &got));
  CHECK_OK (writeback_flush (&writeback));
  first = got.host;
  nr = 0;
  for (i = 0; i < CLUSTERS; ++i) {
    raised[nr++] = (first.v >> BITS) + i;
    if (i % 7 == 0)
      raised[nr++] = (first.v >> BITS) + i;
  }
  holds = most_changes = meet_in = 0;
}

/* The first so many were raised, others were not. */
static void
check_raised (size_t done)
{
  uint64_t i, refcount = 0;
  size_t k = 0;

  for (i = 0; i < CLUSTERS; ++i) {
    uint64_t expected = 1;

    for (; k < done && raised[k] == (first.v >> BITS) + i; ++k)
      expected++;
    CHECK_OK (alloc_refcount (&space, (struct host_off) {
          first.v + (i << BITS) }, &refcount));
    CHECK_EQ (refcount, expected);
  }
  CHECK_EQ (k, done);
}

static void
test_slices (void)
{
  size_t done = 0;

  start ();
  CHECK_OK (alloc_raise (&space, raised, nr, &done));
  CHECK_EQ (done, nr);
  CHECK_EQ (most_changes, 1);
  CHECK (holds >= CLUSTERS / PER_SLICE && holds <= CLUSTERS / PER_SLICE + 1);
  check_raised (nr);
  CHECK_OK (writeback_flush (&writeback));
  alloc_rig_end ();
}

static void
test_turns (void)
{
  unsigned i;

  start ();
  for (i = 0; i < 40; ++i) {
    size_t done = 0;

    holds = 0;
    meet_in = 1 + i;
    CHECK_OK (alloc_raise (&space, raised, nr, &done));
    CHECK_EQ (pthread_join (other, NULL), 0);
    CHECK_EQ (met_in, 1 + i);
  }
  alloc_rig_end ();
}

/* -------------------------------------------------------------------- failing */

/* One of them has none: nothing of its slice is raised. */
static void
test_damage (void)
{
  size_t done = 0;
  uint64_t bad;

  start ();
  bad = (first.v >> BITS) + CLUSTERS / 2;
  CHECK_OK (refcount_set (&space.refcounts, bad, 1, 0, NULL));
  CHECK_EQ (alloc_raise (&space, raised, nr, &done), -1);
  CHECK_ERROR (EIO, "is 0, but it is in use");
  CHECK (done > 0 && raised[done] / PER_SLICE == bad / PER_SLICE);
  CHECK (raised[done - 1] / PER_SLICE < bad / PER_SLICE);
  CHECK_OK (refcount_set (&space.refcounts, bad, 1, 1, NULL));
  check_raised (done);
  alloc_rig_end ();
}

static void
test_flush_fails (void)
{
  size_t done = 0;

  start ();
  memory_fail (&control, MEMORY_FLUSH, 1, EIO);
  CHECK_EQ (alloc_raise (&space, raised, nr, &done), -1);
  CHECK_ERROR (EIO, "");
  CHECK (done > 0 && done < nr && raised[done] % PER_SLICE == 0);
  check_raised (done);
  alloc_rig_end ();
}

int
main (void)
{
  test_slices ();
  test_turns ();
  test_damage ();
  test_flush_fails ();
  return check_result ();
}
