/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "findings.h"

/* Of those that don't stick. */
#define MAX_FINDINGS 64

struct finding {
  struct registry_key key;
  struct verdict verdict;
  struct finding *next;
};

static struct finding *newest;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER; /* of all */

/* Where the link to the finding with this key is, or the last link.  Lock held.
 */
static struct finding **
find (const struct registry_key *key)
{
  struct finding **p = &newest;

  while (*p != NULL && memcmp (&(*p)->key, key, sizeof *key) != 0)
    p = &(*p)->next;
  return p;
}

static void
drop (struct finding **p)
{
  struct finding *f = *p;

  *p = f->next;
  free (f);
}

/* Lock held. */
static void
drop_old_ones (void)
{
  struct finding **p = &newest;
  unsigned nr = 0;

  while (*p != NULL)
    if (!(*p)->verdict.sticks && ++nr > MAX_FINDINGS)
      drop (p);
    else
      p = &(*p)->next;
}

void
findings_keep (const struct registry_key *key, const struct verdict *v)
{
  struct finding *f = v->known ? malloc (sizeof *f) : NULL;
  struct finding **old;

  if (f == NULL)
    return;
  pthread_mutex_lock (&lock);
  old = find (key);
  if (*old != NULL)
    drop (old);
  *f = (struct finding) { *key, *v, newest };
  newest = f;
  drop_old_ones ();
  pthread_mutex_unlock (&lock);
}

void
findings_look_up (const struct registry_key *key, struct verdict *v)
{
  const struct finding *f;

  *v = (struct verdict) { .known = false };
  pthread_mutex_lock (&lock);
  f = *find (key);
  if (f != NULL)
    *v = f->verdict;
  pthread_mutex_unlock (&lock);
}

void
findings_free (void)
{
  while (newest != NULL)
    drop (&newest);
}
