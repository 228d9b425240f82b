/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stddef.h>

#include "storage/reports.h"

void
reports_init (struct reports *r)
{
  *r = (struct reports) { .first = NULL };
  pthread_mutex_init (&r->lock, NULL);
  pthread_cond_init (&r->ended, NULL);
}

void
reports_destroy (struct reports *r)
{
  pthread_cond_destroy (&r->ended);
  pthread_mutex_destroy (&r->lock);
}

void
reports_begin (struct reports *r, struct report_wait *w)
{
  pthread_mutex_lock (&r->lock);
  *w = (struct report_wait) { .number = r->begun++ };
  if (r->first == NULL)
    r->first = w;
  else
    r->last->next = w;
  r->last = w;
  pthread_mutex_unlock (&r->lock);
}

/* lock held. */
static void
remove_wait (struct reports *r, struct report_wait *w)
{
  struct report_wait **p = &r->first, *before = NULL;

  for (; *p != w; p = &(*p)->next)
    before = *p;
  *p = w->next;
  if (r->last == w)
    r->last = before;
}

int
reports_end (struct reports *r, struct report_wait *w, int result)
{
  const int err = errno;
  uint64_t until;
  bool lost;

  pthread_mutex_lock (&r->lock);
  remove_wait (r, w);
  r->lost |= result == -1;
  pthread_cond_broadcast (&r->ended);
  until = r->begun;
  while (!r->lost && r->first != NULL && r->first->number < until)
    pthread_cond_wait (&r->ended, &r->lock);
  lost = r->lost;
  pthread_mutex_unlock (&r->lock);
  errno = result == -1 ? err : EIO;
  return lost ? -1 : 0;
}

int
reports_end_alone (struct reports *r, struct report_wait *w)
{
  const int err = errno;

  if (reports_end (r, w, 0) == 0)
    errno = err;
  return -1;
}
