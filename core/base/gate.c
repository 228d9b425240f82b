/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "base/gate.h"

void
gate_init (struct gate *g)
{
  memset (g, 0, sizeof *g);
  pthread_mutex_init (&g->lock, NULL);
  pthread_cond_init (&g->changed, NULL);
}

void
gate_destroy (struct gate *g)
{
  pthread_cond_destroy (&g->changed);
  pthread_mutex_destroy (&g->lock);
}

/* Wake the threads that wait for a change. */
static void
tell (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->lock);
}

/* The gate is closed: wait until it opens, and enter before it can be closed
 * again (G3).
 */
static void
enter_late (struct gate *g, _Atomic uint32_t *beyond)
{
  pthread_mutex_lock (&g->lock);
  g->waiting++;
  while (g->closed)
    pthread_cond_wait (&g->changed, &g->lock);
  atomic_fetch_add (beyond, 1);
  g->waiting--;
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->lock);
}

unsigned
gate_enter (struct gate *g)
{
  const unsigned token = stripe_of_thread ();
  _Atomic uint32_t *beyond = &g->stripe[token].beyond;

  /* Either the closing thread sees this, or this thread sees that the gate is
   * closed: all of it is sequentially consistent.
   */
  atomic_fetch_add (beyond, 1);
  if (!atomic_load (&g->closed))
    return token;
  gate_leave (g, token);
  enter_late (g, beyond);
  return token;
}

void
gate_leave (struct gate *g, unsigned token)
{
  atomic_fetch_sub (&g->stripe[token].beyond, 1);
  if (atomic_load (&g->closed))
    tell (g);
}

static bool
is_anybody_beyond (const struct gate *g)
{
  unsigned i;

  for (i = 0; i < STRIPES; ++i) {
    if (atomic_load (&g->stripe[i].beyond) != 0)
      return true;
  }
  return false;
}

void
gate_close (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  while (g->closed || g->waiting > 0)
    pthread_cond_wait (&g->changed, &g->lock);
  atomic_store (&g->closed, true);
  while (is_anybody_beyond (g))
    pthread_cond_wait (&g->changed, &g->lock);
  pthread_mutex_unlock (&g->lock);
}

void
gate_open (struct gate *g)
{
  pthread_mutex_lock (&g->lock);
  atomic_store (&g->closed, false);
  pthread_cond_broadcast (&g->changed);
  pthread_mutex_unlock (&g->lock);
}
