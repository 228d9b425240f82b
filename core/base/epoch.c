/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>
#include <time.h>

#include "base/epoch.h"

void
epoch_init (struct epoch *e)
{
  memset (e, 0, sizeof *e);
  atomic_store (&e->now, 1); /* there is an epoch before the first */
  pthread_mutex_init (&e->lock, NULL);
}

void
epoch_destroy (struct epoch *e)
{
  pthread_mutex_destroy (&e->lock);
}

unsigned
epoch_enter (struct epoch *e)
{
  const unsigned stripe = stripe_of_thread (); /* E2 */

  for (;;) {
    const uint64_t now = atomic_load (&e->now);
    _Atomic uint32_t *requests = &e->stripe[stripe].requests[now % 4];

    atomic_fetch_add (requests, 1);
    /* If the epoch is still the same, a thread that advances it will see this
     * request: all of this is sequentially consistent.
     */
    if (atomic_load (&e->now) == now)
      return stripe * 4 + now % 4;
    atomic_fetch_sub (requests, 1);
  }
}

void
epoch_leave (struct epoch *e, unsigned token)
{
  atomic_fetch_sub (&e->stripe[token / 4].requests[token % 4], 1);
}

static bool
has_requests (const struct epoch *e, uint64_t of)
{
  unsigned i;

  for (i = 0; i < STRIPES; ++i) {
    if (atomic_load (&e->stripe[i].requests[of % 4]) != 0)
      return true;
  }
  return false;
}

void
epoch_advance (struct epoch *e, uint64_t then)
{
  pthread_mutex_lock (&e->lock);
  while (!epoch_is_past (e, then) &&
         !has_requests (e, epoch_now (e) - 1)) /* E1 */
    atomic_fetch_add (&e->now, 1);
  pthread_mutex_unlock (&e->lock);
}

void
epoch_wait (struct epoch *e)
{
  const struct timespec pause = { .tv_nsec = 1000000 };
  const uint64_t then = epoch_now (e);

  for (;;) {
    epoch_advance (e, then);
    if (epoch_is_past (e, then))
      return;
    nanosleep (&pause, NULL);
  }
}
