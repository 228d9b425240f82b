/* SPDX-License-Identifier: BSD-3-Clause */

/* base/gate.c: nobody is beyond a gate that is closed. */

#include <config.h>

#include <stdlib.h>

#include "base/gate.h"
#include "check.h"
#include "random.h"
#include "seconds.h"

struct visitor {
  pthread_t thread;
  struct gate *g;
  unsigned token;
  _Atomic bool entered, closed;
};

static void *
enter_main (void *opaque)
{
  struct visitor *v = opaque;

  v->token = gate_enter (v->g);
  v->entered = true;
  return NULL;
}

static void *
close_main (void *opaque)
{
  struct visitor *v = opaque;

  gate_close (v->g);
  v->closed = true;
  return NULL;
}

static void
start (struct visitor *v, struct gate *g, void *(*main) (void *))
{
  *v = (struct visitor) { .g = g };
  pthread_create (&v->thread, NULL, main, v);
}

/* Wait until so many threads wait to enter. */
static void
wait_for_waiters (struct gate *g, unsigned nr)
{
  unsigned waiting;

  do {
    pthread_mutex_lock (&g->lock);
    waiting = g->waiting;
    pthread_mutex_unlock (&g->lock);
    sched_yield ();
  } while (waiting < nr);
}

/* G1: closing waits for all that are beyond, and holds up those that come. */
static void
test_turns (void)
{
  struct visitor closer, late[3];
  struct gate g;
  unsigned token, other, i;

  gate_init (&g);
  token = gate_enter (&g);
  other = gate_enter (&g); /* of another request, on the same stripe */
  start (&closer, &g, close_main);
  while (!g.closed)
    sched_yield ();
  for (i = 0; i < 3; ++i)
    start (&late[i], &g, enter_main);
  wait_for_waiters (&g, 3);
  CHECK (!closer.closed);
  gate_leave (&g, token);
  wait_for_waiters (&g, 3);
  CHECK (!closer.closed);
  gate_leave (&g, other);
  pthread_join (closer.thread, NULL);
  for (i = 0; i < 3; ++i)
    CHECK (!late[i].entered);
  gate_open (&g);
  for (i = 0; i < 3; ++i) {
    pthread_join (late[i].thread, NULL);
    gate_leave (&g, late[i].token);
  }
  gate_close (&g); /* nobody has been forgotten */
  gate_open (&g);
  gate_destroy (&g);
}

/* Requests and closings by several threads.  What is done beyond the gate is
 * not atomic, so that ThreadSanitizer judges as well.
 */
#define VISITORS 4
#define CLOSERS 2

struct many {
  struct gate g;
  double until;
  _Atomic uint64_t entered, closed;
  _Atomic int beyond; /* requests */
  uint64_t plain;     /* changed while it is closed, read beyond it */
};

static void *
visit_main (void *opaque)
{
  struct many *m = opaque;
  uint64_t nr = 0, seen = 0;

  while (seconds () < m->until) {
    const unsigned token = gate_enter (&m->g);

    m->beyond++;
    CHECK (m->plain >= seen);
    seen = m->plain;
    if (nr % 5 == 0)
      sched_yield ();
    CHECK_EQ (m->plain, seen);
    m->beyond--;
    gate_leave (&m->g, token);
    nr++;
  }
  m->entered += nr;
  return NULL;
}

static void *
closings_main (void *opaque)
{
  struct many *m = opaque;

  while (seconds () < m->until) {
    gate_close (&m->g);
    CHECK_EQ (m->beyond, 0);
    m->plain++;
    CHECK_EQ (m->beyond, 0);
    gate_open (&m->g);
    m->closed++;
  }
  return NULL;
}

static void
test_threads (void)
{
  static struct many m;
  pthread_t thread[VISITORS + CLOSERS];
  unsigned i;

  gate_init (&m.g);
  m.until = seconds () + test_seconds (1);
  for (i = 0; i < VISITORS + CLOSERS; ++i)
    pthread_create (&thread[i], NULL,
                    i < VISITORS ? visit_main : closings_main, &m);
  for (i = 0; i < VISITORS + CLOSERS; ++i)
    pthread_join (thread[i], NULL);
  CHECK_EQ (m.plain, m.closed);
  CHECK (m.entered > 0 && m.closed > 0);
  printf ("%" PRIu64 " entered, %" PRIu64 " times closed\n", m.entered,
          m.closed);
  gate_destroy (&m.g);
}

int
main (void)
{
  check_time_limit (100 + test_seconds (1));
  test_turns ();
  test_threads ();
  return check_result ();
}
