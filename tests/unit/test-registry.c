/* SPDX-License-Identifier: BSD-3-Clause */

/* base/registry.c: Y1 to Y4; for ThreadSanitizer, too.  And base/budget.c. */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/budget.h"
#include "base/registry.h"
#include "check.h"
#include "random.h"
#include "seconds.h"

#define KEYS 3
#define THREADS 4

/* A thing with a number; it can be told to take its time. */
struct thing {
  struct registry *r;
  struct registry_key key;
  _Atomic int open;          /* 1 while it is, 2 would be Y1 broken */
  _Atomic bool being_opened, being_closed;
  _Atomic bool slow_to_open, slow_to_close;
  _Atomic unsigned fail;     /* how often it can't be opened */
  _Atomic unsigned opened, closed;
};

static struct thing things[KEYS];

static void *
open_thing (void *opaque)
{
  struct thing *t = opaque;

  t->being_opened = true;
  while (t->slow_to_open)
    sched_yield ();
  t->being_opened = false;
  if (t->fail > 0) {
    t->fail--;
    error_set (EIO, "not today");
    return NULL;
  }
  t->opened++;
  CHECK_EQ (++t->open, 1);
  return t;
}

static void
close_thing (void *thing)
{
  struct thing *t = thing;

  t->being_closed = true;
  while (t->slow_to_close)
    sched_yield ();
  t->being_closed = false;
  t->closed++;
  CHECK_EQ (--t->open, 0);
}

static struct registry *
start (void)
{
  struct registry *r = registry_new (close_thing);
  unsigned i;

  for (i = 0; i < KEYS; ++i) {
    things[i] = (struct thing) { .r = r };
    things[i].key.number[i % 2] = 7; /* these differ in either number */
    if (i == 2)
      things[i].key.number[1] = 7;
  }
  return r;
}

static void *
take (struct thing *t)
{
  return registry_take (t->r, &t->key, open_thing, t);
}

/* ------------------------------------------------------------------ threads */

/* Another user of a thing. */
struct user {
  pthread_t thread;
  struct thing *t;
  void *got;
  int err; /* if that is NULL */
  _Atomic bool done;
};

static void *
take_main (void *opaque)
{
  struct user *u = opaque;

  u->got = take (u->t);
  u->err = u->got == NULL ? error_errno () : 0;
  u->done = true;
  return NULL;
}

static void *
give_main (void *opaque)
{
  struct user *u = opaque;

  registry_give_back (u->t->r, u->t);
  u->done = true;
  return NULL;
}

static void
begin (struct user *u, struct thing *t, void *(*main) (void *))
{
  *u = (struct user) { .t = t };
  pthread_create (&u->thread, NULL, main, u);
}

/* A moment in which it could end, if it wrongly did not wait. */
static bool
waits (const struct user *u)
{
  const double until = seconds () + 0.05;

  while (seconds () < until && !u->done)
    sched_yield ();
  return !u->done;
}

/* Whether it ends, though others do not. */
static bool
ends (const struct user *u)
{
  const double until = seconds () + 20;

  while (seconds () < until && !u->done)
    sched_yield ();
  return u->done;
}

static void
end (struct user *u)
{
  pthread_join (u->thread, NULL);
}

/* -------------------------------------------------------------------- tests */

/* Y3: it is opened for the first, and closed after the last. */
static void
test_shared (void)
{
  struct registry *r = start ();
  struct thing *t = &things[0];

  CHECK (take (t) == t);
  CHECK (take (t) == t);
  CHECK_EQ (t->opened, 1);
  registry_give_back (r, t);
  CHECK_EQ (t->closed, 0);
  if (check_any_failed ())
    return;
  registry_give_back (r, t);
  CHECK_EQ (t->closed, 1);
  CHECK (take (t) == t);
  CHECK (take (&things[1]) == &things[1]);
  CHECK (take (&things[2]) == &things[2]);
  CHECK_EQ (t->opened, 2);
  registry_give_back (r, &things[1]); /* the one in the middle */
  CHECK_EQ (things[1].closed, 1);
  registry_free (r); /* there are users */
  CHECK_EQ (t->closed, 2);
  CHECK_EQ (things[2].closed, 1);
}

/* Y2: while one is opened others can be had, and who wants the same waits. */
static void
test_slow_to_open (void)
{
  struct registry *r = start ();
  struct thing *t = &things[0];
  struct user first, second, other;

  t->slow_to_open = true;
  begin (&first, t, take_main);
  while (!t->being_opened)
    sched_yield ();
  begin (&second, t, take_main);
  begin (&other, &things[1], take_main);
  CHECK (ends (&other));
  CHECK (waits (&second));
  t->slow_to_open = false;
  end (&first);
  end (&second);
  end (&other);
  registry_give_back (r, &things[1]);
  CHECK (first.got == t && second.got == t);
  CHECK_EQ (t->opened, 1);
  registry_give_back (r, t);
  registry_give_back (r, t);
  CHECK_EQ (t->closed, 1);
  registry_free (r);
}

/* Y1, Y2: the same while one is closed. */
static void
test_slow_to_close (void)
{
  struct registry *r = start ();
  struct thing *t = &things[0];
  struct user first, second, other;

  CHECK (take (t) == t);
  t->slow_to_close = true;
  begin (&first, t, give_main);
  while (!t->being_closed)
    sched_yield ();
  begin (&second, t, take_main);
  begin (&other, &things[1], take_main);
  CHECK (ends (&other));
  CHECK (waits (&second));
  CHECK_EQ (t->opened, 1);
  t->slow_to_close = false;
  end (&first);
  end (&second);
  end (&other);
  registry_give_back (r, &things[1]);
  CHECK (second.got == t);
  CHECK_EQ (t->opened, 2);
  registry_give_back (r, t);
  registry_free (r);
}

/* Y4: who has waited for one that could not be opened has the same error; who
 * comes later tries it. */
static void
test_failure (void)
{
  struct registry *r = start ();
  struct thing *t = &things[0];
  struct user first, other[3];
  unsigned i;

  t->fail = 1;
  CHECK (take (t) == NULL);
  CHECK_ERROR (EIO, "not today");
  t->fail = 3;
  t->slow_to_open = true;
  begin (&first, t, take_main);
  while (!t->being_opened)
    sched_yield ();
  for (i = 0; i < 3; ++i)
    begin (&other[i], t, take_main);
  for (i = 0; i < 3; ++i)
    CHECK (waits (&other[i]));
  t->slow_to_open = false;
  end (&first);
  CHECK (first.got == NULL);
  for (i = 0; i < 3; ++i) {
    end (&other[i]);
    CHECK (other[i].got == NULL);
    CHECK_EQ (other[i].err, EIO);
  }
  CHECK_EQ (t->fail, 2);
  t->fail = 0;
  CHECK (take (t) == t);
  CHECK_EQ (t->opened, 1);
  registry_give_back (r, t);
  CHECK_EQ (t->closed, 1);
  registry_free (r);
}

static double until;

static void *
random_main (void *opaque)
{
  uint64_t state = (uintptr_t) opaque;
  unsigned has[KEYS] = { 0 }, i;

  while (seconds () < until) {
    i = random_below (&state, KEYS);
    if (has[i] > 0 && random_below (&state, 2) == 0) {
      CHECK_EQ (things[i].open, 1); /* Y3 */
      registry_give_back (things[i].r, &things[i]);
      has[i]--;
    }
    else if (has[i] < 2 && take (&things[i]) != NULL)
      has[i]++;
    if (random_below (&state, 16) == 0)
      things[i].fail = 1;
  }
  for (i = 0; i < KEYS; ++i)
    while (has[i]-- > 0)
      registry_give_back (things[i].r, &things[i]);
  return NULL;
}

static void
test_random (void)
{
  struct registry *r = start ();
  pthread_t thread[THREADS];
  unsigned i;

  until = seconds () + test_seconds (0.3);
  for (i = 0; i < THREADS; ++i)
    pthread_create (&thread[i], NULL, random_main,
                    (void *) (uintptr_t) (i + 1));
  for (i = 0; i < THREADS; ++i)
    pthread_join (thread[i], NULL);
  for (i = 0; i < KEYS; ++i) {
    CHECK (things[i].opened > 1);
    CHECK_EQ (things[i].opened, things[i].closed);
  }
  registry_free (r);
}

/* Never more than there is in all, and never less than the least. */
static void
test_budget (uint64_t total, uint64_t least, unsigned nr)
{
  uint64_t part[600], sum = 0, first;
  struct budget b;
  unsigned i;

  budget_init (&b, total, least);
  for (i = 0; (part[i] = budget_take (&b)) != 0 && i < 599; ++i) {
    CHECK (part[i] >= least);
    sum += part[i];
  }
  CHECK_EQ (i, nr);
  CHECK (sum <= total);
  first = part[0];
  budget_give_back (&b, part[i / 2]);
  part[i / 2] = budget_take (&b);
  CHECK (part[i / 2] >= least);
  CHECK_EQ (budget_take (&b), 0);
  while (i > 0)
    budget_give_back (&b, part[--i]);
  CHECK_EQ (budget_take (&b), first);
  budget_destroy (&b);
}

int
main (void)
{
  static void (*const tests[]) (void) = {
    test_shared, test_slow_to_open, test_slow_to_close, test_failure,
    test_random,
  };
  unsigned i;

  check_time_limit (100);
  /* What is given back after it was closed ends the program. */
  for (i = 0; i < sizeof tests / sizeof tests[0] && !check_any_failed (); ++i)
    tests[i] ();
  test_budget (1 << 20, 1 << 16, 8);
  test_budget (256 << 20, 256 << 10, 512);
  test_budget (1 << 16, 1 << 16, 1); /* there is no more than the least */
  return check_result ();
}
