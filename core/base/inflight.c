/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdbool.h>
#include <stddef.h>

#include "base/inflight.h"

void
inflight_init (struct inflight *f)
{
  pthread_mutex_init (&f->lock, NULL);
  pthread_cond_init (&f->left, NULL);
  f->waiting = 0;
  f->first = NULL;
  f->end = &f->first;
}

void
inflight_destroy (struct inflight *f)
{
  pthread_cond_destroy (&f->left);
  pthread_mutex_destroy (&f->lock);
}

/* Whether an earlier range overlaps this one.  There are few ranges for
 * each thread: a list will do.  Lock held.
 */
static bool
must_wait (const struct inflight *f, const struct inflight_range *r)
{
  const struct inflight_range *p;

  for (p = f->first; p != NULL && p != r; p = p->next) {
    if (p->first <= r->last && r->first <= p->last)
      return true;
  }
  return false;
}

/* All arrive at the same moment, so that no two threads wait for each other. */
void
inflight_enter_all (struct inflight *f, struct inflight_range *r, unsigned nr)
{
  unsigned i;

  pthread_mutex_lock (&f->lock);
  for (i = 0; i < nr; ++i) {
    r[i].next = NULL;
    *f->end = &r[i];
    f->end = &r[i].next;
  }
  f->waiting++;
  for (i = 0; i < nr; ++i) {
    while (must_wait (f, &r[i]))
      pthread_cond_wait (&f->left, &f->lock);
  }
  f->waiting--;
  pthread_mutex_unlock (&f->lock);
}

void
inflight_enter (struct inflight *f, struct inflight_range *r)
{
  inflight_enter_all (f, r, 1);
}

void
inflight_leave (struct inflight *f, struct inflight_range *r)
{
  struct inflight_range **p;

  pthread_mutex_lock (&f->lock);
  for (p = &f->first; *p != r; p = &(*p)->next)
    ;
  *p = r->next;
  if (f->end == &r->next)
    f->end = p;
  if (f->waiting > 0)
    pthread_cond_broadcast (&f->left);
  pthread_mutex_unlock (&f->lock);
}
