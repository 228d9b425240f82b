/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdlib.h>

#include "base/epoch.h"
#include "cache/tables.h"
#include "turns.h"

struct worker {
  pthread_t thread;
  bool exists;
  sem_t go;
  void (*fn) (void *);
  void *opaque;

  enum turn state;
  const void *waits_for; /* BLOCKED: a mutex or a condition */
  uint64_t points, stop;
  const char *where;
  bool holds_points;
};

/* All of this belongs to whoever's turn it is; semaphores hand it over. */
static struct worker workers[TURNS_MAX];
static sem_t handed; /* to who called turns_run */
static bool be_polite;
static _Thread_local struct worker *self;

static void
wait_for (sem_t *s)
{
  while (sem_wait (s) != 0)
    ;
}

static void
hand_over (void)
{
  sem_post (&handed);
  wait_for (&self->go);
}

static void *
work (void *opaque)
{
  self = opaque;
  for (;;) {
    wait_for (&self->go);
    if (self->fn == NULL)
      return NULL;
    self->fn (self->opaque);
    self->state = TURN_OVER;
    sem_post (&handed);
  }
}

static void
create (struct worker *w)
{
  static bool begun;

  if (!begun)
    sem_init (&handed, 0, 0);
  begun = true;
  sem_init (&w->go, 0, 0);
  if (pthread_create (&w->thread, NULL, work, w) != 0)
    abort ();
  w->exists = true;
}

void
turns_give (unsigned t, void (*fn) (void *), void *opaque)
{
  struct worker *w = &workers[t];

  if (!w->exists)
    create (w);
  w->fn = fn;
  w->opaque = opaque;
  w->points = 0;
  w->where = "start";
  w->state = TURN_READY;
}

enum turn
turns_run (unsigned t, uint64_t stop, bool polite)
{
  struct worker *w = &workers[t];

  be_polite = polite;
  w->stop = stop;
  sem_post (&w->go);
  wait_for (&handed);
  return w->state;
}

enum turn
turns_state (unsigned t)
{
  return workers[t].state;
}

uint64_t
turns_points (unsigned t)
{
  return workers[t].points;
}

const char *
turns_where (unsigned t)
{
  return workers[t].where;
}

void
turns_end (void)
{
  unsigned t;

  for (t = 0; t < TURNS_MAX; ++t) {
    struct worker *w = &workers[t];

    if (!w->exists)
      continue;
    w->fn = NULL;
    sem_post (&w->go);
    pthread_join (w->thread, NULL);
    sem_destroy (&w->go);
    w->exists = false;
  }
}

void
turns_point (const char *name)
{
  if (self == NULL || self->holds_points)
    return;
  self->where = name;
  if (++self->points == self->stop)
    hand_over ();
}

void
turns_stop (const char *name)
{
  if (self == NULL)
    return;
  self->where = name;
  self->points++;
  hand_over ();
}

void
turns_hold (void)
{
  if (self != NULL)
    self->holds_points = true;
}

void
turns_release (void)
{
  if (self != NULL)
    self->holds_points = false;
}

/* ---------------------------------------------------- locks and conditions */

static void
block_on (const void *p)
{
  self->state = TURN_BLOCKED;
  self->waits_for = p;
  hand_over ();
}

/* Those who wait for p can go on; true if there are any. */
static bool
wake (const void *p)
{
  bool any = false;
  unsigned t;

  for (t = 0; t < TURNS_MAX; ++t) {
    struct worker *w = &workers[t];

    if (w->state != TURN_BLOCKED || w->waits_for != p)
      continue;
    w->state = TURN_READY;
    any = true;
  }
  return any;
}

extern int __real_pthread_mutex_lock (pthread_mutex_t *m);
extern int __real_pthread_mutex_trylock (pthread_mutex_t *m);
extern int __real_pthread_mutex_unlock (pthread_mutex_t *m);
extern int __real_pthread_cond_wait (pthread_cond_t *c, pthread_mutex_t *m);
extern int __real_pthread_cond_broadcast (pthread_cond_t *c);
extern int __wrap_pthread_mutex_lock (pthread_mutex_t *m);
extern int __wrap_pthread_mutex_trylock (pthread_mutex_t *m);
extern int __wrap_pthread_mutex_unlock (pthread_mutex_t *m);
extern int __wrap_pthread_cond_wait (pthread_cond_t *c, pthread_mutex_t *m);
extern int __wrap_pthread_cond_broadcast (pthread_cond_t *c);

int
__wrap_pthread_mutex_lock (pthread_mutex_t *m)
{
  if (self == NULL)
    return __real_pthread_mutex_lock (m);
  turns_point ("lock");
  while (__real_pthread_mutex_trylock (m) != 0)
    block_on (m);
  return 0;
}

int
__wrap_pthread_mutex_trylock (pthread_mutex_t *m)
{
  turns_point ("trylock");
  return __real_pthread_mutex_trylock (m);
}

int
__wrap_pthread_mutex_unlock (pthread_mutex_t *m)
{
  const int r = __real_pthread_mutex_unlock (m);

  if (wake (m) && self != NULL && be_polite)
    hand_over ();
  return r;
}

int
__wrap_pthread_cond_wait (pthread_cond_t *c, pthread_mutex_t *m)
{
  if (self == NULL)
    return __real_pthread_cond_wait (c, m);
  __real_pthread_mutex_unlock (m);
  (void) wake (m);
  block_on (c);
  while (__real_pthread_mutex_trylock (m) != 0)
    block_on (m);
  return 0;
}

int
__wrap_pthread_cond_broadcast (pthread_cond_t *c)
{
  const int r = __real_pthread_cond_broadcast (c);

  if (wake (c) && self != NULL && be_polite)
    hand_over ();
  return r;
}

/* --------------------------------------------------------- what takes none */

extern int __real_cache_get (struct cache *c, struct storage *s, unsigned id,
                             struct host_off offset, uint32_t slice_bytes,
                             uint64_t ahead, struct cache_ref *ref);
extern unsigned __real_epoch_enter (struct epoch *e);
extern void __real_epoch_leave (struct epoch *e, unsigned token);
extern int __wrap_cache_get (struct cache *c, struct storage *s, unsigned id,
                             struct host_off offset, uint32_t slice_bytes,
                             uint64_t ahead, struct cache_ref *ref);
extern unsigned __wrap_epoch_enter (struct epoch *e);
extern void __wrap_epoch_leave (struct epoch *e, unsigned token);

int
__wrap_cache_get (struct cache *c, struct storage *s, unsigned id,
                  struct host_off offset, uint32_t slice_bytes,
                  uint64_t ahead, struct cache_ref *ref)
{
  int r;

  turns_point ("cache_get");
  r = __real_cache_get (c, s, id, offset, slice_bytes, ahead, ref);
  turns_point ("cache_get done");
  return r;
}

unsigned
__wrap_epoch_enter (struct epoch *e)
{
  const unsigned token = __real_epoch_enter (e);

  turns_point ("epoch_enter done");
  return token;
}

void
__wrap_epoch_leave (struct epoch *e, unsigned token)
{
  turns_point ("epoch_leave");
  __real_epoch_leave (e, token);
}
