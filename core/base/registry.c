/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "base/registry.h"

enum state {
  OPENING, /* by one thread */
  OPEN,
  FAILED,  /* to be opened: it isn't in the list */
  CLOSING, /* by one thread; it has no users */
};

struct entry {
  enum state state;
  struct registry_key key;
  void *thing; /* NULL until it is open */
  unsigned users; /* with the threads that wait for it to be opened */
  int err;           /* FAILED: why */
  char message[512]; /* likewise, unescaped */
  struct entry *previous, *next;
};

/* A list: there are as many as there are open files, at most. */
struct registry {
  registry_close_fn *close;
  pthread_mutex_t lock;   /* of what follows, and of all entries */
  pthread_cond_t changed; /* an entry's state, or it is gone */
  struct entry *first;
};

struct registry *
registry_new (registry_close_fn *close)
{
  struct registry *r = calloc (1, sizeof *r);

  if (r == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  r->close = close;
  pthread_mutex_init (&r->lock, NULL);
  pthread_cond_init (&r->changed, NULL);
  return r;
}

void
registry_free (struct registry *r)
{
  if (r == NULL)
    return;
  while (r->first != NULL) {
    struct entry *e = r->first;

    r->first = e->next;
    r->close (e->thing);
    free (e);
  }
  pthread_cond_destroy (&r->changed);
  pthread_mutex_destroy (&r->lock);
  free (r);
}

/* Lock held. */
static struct entry *
find (const struct registry *r, const struct registry_key *key)
{
  struct entry *e;

  for (e = r->first; e != NULL; e = e->next)
    if (e->key.number[0] == key->number[0] &&
        e->key.number[1] == key->number[1])
      return e;
  return NULL;
}

/* One to be opened, of one user.  Lock held. */
static struct entry *
add (struct registry *r, const struct registry_key *key)
{
  struct entry *e = calloc (1, sizeof *e);

  if (e == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  e->key = *key;
  e->users = 1;
  e->state = OPENING;
  e->next = r->first;
  if (e->next != NULL)
    e->next->previous = e;
  r->first = e;
  return e;
}

/* Take it off the list.  Lock held. */
static void
unlink_entry (struct registry *r, struct entry *e)
{
  if (e->previous != NULL)
    e->previous->next = e->next;
  else
    r->first = e->next;
  if (e->next != NULL)
    e->next->previous = e->previous;
  pthread_cond_broadcast (&r->changed);
}

/* It could not be opened, and one has taken note.  Lock held. */
static void
leave_failed (struct entry *e)
{
  if (--e->users == 0)
    free (e);
}

/* It could not be opened.  All threads that have waited for it fail with that: else
 * each of them in turn would find out the same, however long that takes.  The
 * error is set.  Lock held.
 */
static void
set_failed (struct registry *r, struct entry *e)
{
  e->state = FAILED;
  e->err = error_errno ();
  snprintf (e->message, sizeof e->message, "%s", error_text ());
  unlink_entry (r, e);
  leave_failed (e);
}

/* Be one of its users once it is open.  Returns NULL with the error set.  Lock
 * held.
 */
static struct entry *
join (struct registry *r, struct entry *e)
{
  e->users++;
  while (e->state == OPENING)
    pthread_cond_wait (&r->changed, &r->lock);
  if (e->state == OPEN)
    return e;
  error_set (e->err, "%s", e->message);
  leave_failed (e);
  return NULL;
}

/* The entry with this key, which is in use by one more, or a new one that is
 * *added and to be opened.  Returns NULL with the error set.
 */
static struct entry *
find_or_add (struct registry *r, const struct registry_key *key, bool *added)
{
  struct entry *e;

  pthread_mutex_lock (&r->lock);
  while ((e = find (r, key)) != NULL && e->state == CLOSING)
    pthread_cond_wait (&r->changed, &r->lock);
  *added = e == NULL;
  e = e != NULL ? join (r, e) : add (r, key);
  pthread_mutex_unlock (&r->lock);
  return e;
}

void *
registry_take (struct registry *r, const struct registry_key *key,
               registry_open_fn *open, void *opaque)
{
  bool added;
  struct entry *e = find_or_add (r, key, &added);
  void *thing;

  if (e == NULL || !added)
    return e == NULL ? NULL : e->thing;
  thing = open (opaque); /* Y2 */
  pthread_mutex_lock (&r->lock);
  if (thing != NULL) {
    e->thing = thing;
    e->state = OPEN;
    pthread_cond_broadcast (&r->changed);
  }
  else
    set_failed (r, e);
  pthread_mutex_unlock (&r->lock);
  return thing;
}

void
registry_give_back (struct registry *r, void *thing)
{
  struct entry *e;

  pthread_mutex_lock (&r->lock);
  for (e = r->first; e->thing != thing; e = e->next)
    ;
  if (--e->users == 0) {
    e->state = CLOSING; /* Y1: until it is closed */
    pthread_mutex_unlock (&r->lock);
    r->close (thing); /* Y2 */
    pthread_mutex_lock (&r->lock);
    unlink_entry (r, e);
    free (e);
  }
  pthread_mutex_unlock (&r->lock);
}
