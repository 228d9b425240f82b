/* SPDX-License-Identifier: BSD-3-Clause */

/* base/epoch.c: who is left that could have seen how things were before. */

#include <config.h>

#include <stdlib.h>

#include "base/epoch.h"
#include "check.h"
#include "random.h"
#include "seconds.h"

static void
test_alone (void)
{
  struct epoch e;
  uint64_t then;

  epoch_init (&e);
  then = epoch_now (&e);
  CHECK (!epoch_is_past (&e, then));
  epoch_advance (&e, then);
  CHECK (epoch_is_past (&e, then));
  CHECK_EQ (epoch_now (&e), then + 2);
  epoch_advance (&e, then); /* no further than is needed */
  CHECK_EQ (epoch_now (&e), then + 2);
  epoch_destroy (&e);
}

/* A request holds it up, whenever it began. */
static void
test_held_up (void)
{
  struct epoch e;
  unsigned first, second, nested;
  uint64_t then;

  epoch_init (&e);
  first = epoch_enter (&e);
  then = epoch_now (&e);
  epoch_advance (&e, then);
  CHECK_EQ (epoch_now (&e), then + 1); /* E1 */
  CHECK (!epoch_is_past (&e, then));

  second = epoch_enter (&e); /* too late to have seen it */
  nested = epoch_enter (&e);
  epoch_advance (&e, then);
  CHECK_EQ (epoch_now (&e), then + 1);
  epoch_leave (&e, first);
  epoch_advance (&e, then);
  CHECK (epoch_is_past (&e, then));

  epoch_advance (&e, then + 1); /* held up by the second */
  CHECK (!epoch_is_past (&e, then + 1));
  epoch_leave (&e, nested);
  epoch_advance (&e, then + 1);
  CHECK (!epoch_is_past (&e, then + 1));
  epoch_leave (&e, second);
  epoch_advance (&e, then + 1);
  CHECK (epoch_is_past (&e, then + 1));
  epoch_destroy (&e);
}

/* E1, with requests that come and go at random. */
#define MAX_REQUESTS 12

static void
test_random (void)
{
  struct { unsigned token; uint64_t epoch; } request[MAX_REQUESTS];
  unsigned nr = 0, i, round;
  uint64_t state = 5;
  struct epoch e;

  epoch_init (&e);
  for (round = 0; round < 20000; ++round) {
    const unsigned what = random_below (&state, 3);

    if (what == 0 && nr < MAX_REQUESTS) {
      request[nr].epoch = epoch_now (&e);
      request[nr++].token = epoch_enter (&e);
    }
    else if (what == 1 && nr > 0) {
      i = random_below (&state, nr);
      epoch_leave (&e, request[i].token);
      request[i] = request[--nr];
    }
    else {
      const uint64_t then = epoch_now (&e) - random_below (&state, 2);

      epoch_advance (&e, then);
      for (i = 0; i < nr; ++i) {
        CHECK (request[i].epoch + 1 >= epoch_now (&e));
        CHECK (!epoch_is_past (&e, then) || request[i].epoch > then);
      }
      if (nr == 0)
        CHECK (epoch_is_past (&e, then));
    }
  }
  while (nr > 0)
    epoch_leave (&e, request[--nr].token);
  epoch_destroy (&e);
}

/* Objects that readers find through a pointer, without a lock, and that are
 * spoilt once all readers which may have found them are gone.  What readers
 * look at is not atomic, so that ThreadSanitizer judges as well.
 */
#define OBJECTS 64
#define READERS 4
#define ALIVE 0x12345678

struct object {
  unsigned value;
  uint64_t epoch; /* when it went out of reach */
};

struct swap {
  struct epoch e;
  struct object object[OBJECTS];
  struct object *_Atomic current;
  double until;
  _Atomic uint64_t reads;
};

static void *
read_main (void *opaque)
{
  struct swap *s = opaque;
  uint64_t reads = 0;

  while (seconds () < s->until) {
    unsigned i, tokens[2];

    tokens[0] = epoch_enter (&s->e);
    tokens[1] = epoch_enter (&s->e);
    epoch_leave (&s->e, tokens[reads % 2]);
    for (i = 0; i < 20; ++i) {
      const struct object *o = atomic_load (&s->current);

      CHECK_EQ (o->value, ALIVE);
      CHECK_EQ (o->value, ALIVE);
    }
    epoch_leave (&s->e, tokens[(reads + 1) % 2]);
    reads++;
  }
  s->reads += reads;
  return NULL;
}

/* Objects go round; the oldest is spoilt when that is allowed. */
static uint64_t
swap_objects (struct swap *s)
{
  uint64_t oldest = 0, next = 1, spoilt = 0;

  while (seconds () < s->until) {
    struct object *o = &s->object[oldest % OBJECTS];

    if (next - oldest < OBJECTS) {
      s->object[next % OBJECTS].value = ALIVE;
      atomic_store (&s->current, &s->object[next % OBJECTS]);
      s->object[(next - 1) % OBJECTS].epoch = epoch_now (&s->e);
      next++;
    }
    if (next - oldest < 2)
      continue;
    epoch_advance (&s->e, o->epoch);
    if (epoch_is_past (&s->e, o->epoch)) {
      o->value = 0;
      oldest++;
      spoilt++;
    }
  }
  return spoilt;
}

static void
test_threads (void)
{
  static struct swap s;
  pthread_t thread[READERS];
  uint64_t spoilt;
  unsigned i;

  epoch_init (&s.e);
  s.object[0].value = ALIVE;
  atomic_store (&s.current, &s.object[0]);
  s.until = seconds () + test_seconds (1);
  for (i = 0; i < READERS; ++i)
    pthread_create (&thread[i], NULL, read_main, &s);
  spoilt = swap_objects (&s);
  for (i = 0; i < READERS; ++i)
    pthread_join (thread[i], NULL);
  printf ("%" PRIu64 " requests, %" PRIu64 " objects out of reach\n",
          s.reads, spoilt);
  CHECK (spoilt > 0);
  epoch_destroy (&s.e);
}

int
main (void)
{
  check_time_limit (100 + test_seconds (1));
  test_alone ();
  test_held_up ();
  test_random ();
  test_threads ();
  return check_result ();
}
