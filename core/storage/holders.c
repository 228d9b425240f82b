/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <pthread.h>
#include <stddef.h>

#include "storage/holders.h"

/* A list: there are as many as there are open files, at most. */
static struct holder *all;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all of them */

/* Lock held. */
static bool
is_in_the_way (const struct holder *other, const struct holder *h,
               unsigned uses, unsigned denies)
{
  return other != h && other->file[0] == h->file[0] &&
    other->file[1] == h->file[1] &&
    ((other->denies & uses) != 0 || (other->uses & denies) != 0);
}

bool
holder_take (struct holder *h, unsigned uses, unsigned denies, bool alone)
{
  const struct holder *other;
  bool free = true;

  pthread_mutex_lock (&lock);
  for (other = all; !alone && other != NULL; other = other->next)
    free = free && !is_in_the_way (other, h, uses, denies);
  if (free) {
    h->uses = uses;
    h->denies = denies;
    if (!h->listed) {
      h->next = all;
      all = h;
      h->listed = true;
    }
  }
  pthread_mutex_unlock (&lock);
  return free;
}

void
holder_leave (struct holder *h)
{
  struct holder **p = &all;

  pthread_mutex_lock (&lock);
  if (h->listed) {
    while (*p != h)
      p = &(*p)->next;
    *p = h->next;
    h->listed = false;
  }
  pthread_mutex_unlock (&lock);
}
