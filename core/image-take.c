/* SPDX-License-Identifier: BSD-3-Clause */

/* Internal snapshots that are made while the image is served, by the names of
 * their exports: one at a time, by the thread of the client that wants it.
 *
 * Lock: takes.lock, for moments, never with another one.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "image-take-parts.h"

/* An export that was opened. */
struct taken {
  struct taken *next;
  struct image_takes *owner;
  struct take_asked asked;
  unsigned users;     /* those who wait included */
  bool ended;         /* nobody waits for it any more: it was made, or not */
  int err;            /* why not; 0: it was made */
  char message[512];
  time_t closed;      /* when the last user had left */
};

struct image_takes {
  struct image *im;
  pthread_mutex_t lock;
  pthread_cond_t changed;
  time_t linger;
  bool making;        /* one is being made: others wait for their turn */
  struct taken *first;
};

struct image_takes *
image_takes_new (struct image *im, unsigned linger)
{
  struct image_takes *ts = calloc (1, sizeof *ts);

  if (ts == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  ts->im = im;
  ts->linger = linger;
  pthread_mutex_init (&ts->lock, NULL);
  pthread_cond_init (&ts->changed, NULL);
  return ts;
}

static void
taken_free (struct taken *t)
{
  image_take_forget (&t->asked);
  free (t);
}

void
image_takes_free (struct image_takes *ts)
{
  struct taken *t;

  if (ts == NULL)
    return;
  while ((t = ts->first) != NULL) {
    ts->first = t->next;
    taken_free (t);
  }
  pthread_cond_destroy (&ts->changed);
  pthread_mutex_destroy (&ts->lock);
  free (ts);
}

static time_t
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec;
}

/* --------------------------------------------------------------------- names */

bool
image_is_take (const char *export)
{
  return strncmp (export, IMAGE_TAKE_PREFIX, strlen (IMAGE_TAKE_PREFIX)) == 0;
}

/* By its name alone: labels may be IDs.  Wants snapshots_lock. */
static const struct snapshot *
find_by_name (const struct image *im, const char *name)
{
  uint32_t i;

  for (i = 0; i < im->snapshots.nr; ++i) {
    if (strcmp (im->snapshots.snapshot[i].name, name) == 0)
      return &im->snapshots.snapshot[i];
  }
  return NULL;
}

int
image_describe_take (const struct image *im, const char *encoded, char *buf,
                     size_t len)
{
  const struct snapshot *sn;
  struct take_asked a;

  if (image_take_decode (im, encoded, &a) == -1)
    return -1;
  image_lock_snapshots (im);
  sn = find_by_name (im, a.name);
  if (sn != NULL)
    image_describe_snapshot (sn, buf, len);
  image_unlock_snapshots (im);
  if (sn == NULL)
    snprintf (buf, len, "internal snapshot that is made of the live disk, size %"
              PRIu64, im->chain.layer[0]->size);
  image_take_forget (&a);
  return 0;
}

/* -------------------------------------------------------------------- making */

/* Or is the ID of another one, whose export would be the new one's from then on. */
static int
exists (const struct image *im, const char *name)
{
  bool found;

  image_lock_snapshots (im);
  found = find_by_name (im, name) != NULL ||
    snapshots_find (&im->snapshots, name) != NULL;
  image_unlock_snapshots (im);
  if (!found)
    return 0;
  error_set (EEXIST, "%s: the snapshot \"%.256s\" exists already: read \""
             IMAGE_SNAPSHOT_PREFIX "%.256s\"", image_storage (im)->name, name,
             name);
  return -1;
}

/* The point is taken, it is this one's turn, and no leaks are looked for. */
static int
make_of (struct image *im, const struct point *point, const char *name,
         const struct timespec *date, const struct bitmap_header *bitmaps)
{
  struct snapshots made, old;

  if (im->kind->take_snapshot (im, point, name, date, bitmaps, &made) == -1)
    return -1;
  pthread_rwlock_wrlock (&im->snapshots_lock);
  old = im->snapshots;
  im->snapshots = made;
  pthread_rwlock_unlock (&im->snapshots_lock);
  snapshots_free (&old);
  return 0;
}

static void
wait_for_turn (struct image_takes *ts)
{
  pthread_mutex_lock (&ts->lock);
  while (ts->making)
    pthread_cond_wait (&ts->changed, &ts->lock);
  ts->making = true;
  pthread_mutex_unlock (&ts->lock);
}

static void
end_turn (struct image_takes *ts)
{
  pthread_mutex_lock (&ts->lock);
  ts->making = false;
  pthread_cond_broadcast (&ts->changed);
  pthread_mutex_unlock (&ts->lock);
}

/* The point comes before the turn. */
static int
make_alone (struct image_takes *ts, const char *name)
{
  struct image *im = ts->im;
  struct point *point = image_points_take (im, NULL, NULL);
  struct timespec date;
  int r = -1;

  if (point == NULL)
    return -1;
  clock_gettime (CLOCK_REALTIME, &date);
  wait_for_turn (ts);
  if (exists (im, name) == 0) {
    image_suspend_leaks (im);
    r = make_of (im, point, name, &date, NULL);
    image_resume_leaks (im);
  }
  end_turn (ts);
  image_points_end (im, point);
  return r;
}

static void
begin_rotation (void *rotation, const struct point *point)
{
  rotation_begin (rotation, point);
}

/* With a point that is taken as the new bitmap begins. */
static int
make_rotated (struct image *im, const char *name, struct rotation *rotation)
{
  struct point *point = image_points_take (im, begin_rotation, rotation);
  struct timespec date;
  int r;

  if (point == NULL)
    return -1;
  clock_gettime (CLOCK_REALTIME, &date);
  r = make_of (im, point, name, &date, rotation_directory (rotation));
  gate_close (&im->gate);
  rotation_end (rotation, r == 0);
  gate_open (&im->gate);
  image_points_end (im, point);
  return r;
}

/* The turn comes before the point: which bitmaps there are is known then. */
static int
make_with_bitmaps (struct image_takes *ts, const struct take_asked *a)
{
  struct image *im = ts->im;
  struct rotation *rotation;
  int r = -1;

  wait_for_turn (ts);
  image_suspend_leaks (im);
  rotation = exists (im, a->name) == -1 ? NULL
    : im->kind->new_rotation (im, &a->bitmaps);
  if (rotation != NULL) {
    r = make_rotated (im, a->name, rotation);
    rotation_free (rotation);
  }
  image_resume_leaks (im);
  end_turn (ts);
  return r;
}

static int
make (struct image_takes *ts, const struct take_asked *a)
{
  struct image *im = ts->im;

  if (exists (im, a->name) == -1)
    return -1;
  if (atomic_load (&im->writer) == NULL) {
    error_set (EROFS, "%s: no snapshot can be made, since it is not writable",
               image_storage (im)->name);
    return -1;
  }
  return a->bitmaps.begins == NULL ? make_alone (ts, a->name)
    : make_with_bitmaps (ts, a);
}

/* ------------------------------------------------------------------- opening */

/* Forget those that nobody may share any more.  lock held. */
static void
forget_old (struct image_takes *ts)
{
  struct taken **at = &ts->first;

  while (*at != NULL) {
    struct taken *t = *at;

    if (t->users > 0 || (t->err == 0 && now () < t->closed + ts->linger))
      at = &t->next;
    else {
      *at = t->next;
      taken_free (t);
    }
  }
}

static void
leave (void *opaque)
{
  struct taken *t = opaque;
  struct image_takes *ts = t->owner;

  pthread_mutex_lock (&ts->lock);
  if (--t->users == 0) {
    t->closed = now ();
    forget_old (ts);
  }
  pthread_mutex_unlock (&ts->lock);
}

/* One that is new, with one user, takes what was asked for; NULL: the error is set.
 * lock held.
 */
static struct taken *
new_taken (struct image_takes *ts, struct take_asked *asked)
{
  struct taken *t = calloc (1, sizeof *t);

  if (t == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  t->owner = ts;
  t->asked = *asked;
  asked->text = NULL;
  t->users = 1;
  t->next = ts->first;
  ts->first = t;
  return t;
}

/* lock held, but not all the time. */
static void
make_taken (struct image_takes *ts, struct taken *t)
{
  int r;

  pthread_mutex_unlock (&ts->lock);
  r = make (ts, &t->asked);
  pthread_mutex_lock (&ts->lock);
  t->ended = true;
  if (r == -1) {
    t->err = error_errno ();
    snprintf (t->message, sizeof t->message, "%s", error_text ());
  }
  pthread_cond_broadcast (&ts->changed);
}

/* Whether it was made, once that is known; else the error is set, and it is left.
 * lock held, but not all the time.
 */
static bool
wait_until_made (struct image_takes *ts, struct taken *t)
{
  while (!t->ended)
    pthread_cond_wait (&ts->changed, &ts->lock);
  if (t->err == 0)
    return true;
  error_set (t->err, "%s", t->message);
  t->users--;
  forget_old (ts);
  return false;
}

/* The one of this name that was asked for in the same words; NULL: there is none, and
 * *other tells whether one has the name.  lock held.
 */
static struct taken *
find_taken (const struct image_takes *ts, const struct take_asked *asked,
            bool *other)
{
  struct taken *t = ts->first;

  while (t != NULL && strcmp (t->asked.name, asked->name) != 0)
    t = t->next;
  *other = t != NULL && !image_take_same (&t->asked, asked);
  return *other ? NULL : t;
}

/* lock held, but not all the time. */
static struct taken *
find_or_make (struct image_takes *ts, struct take_asked *asked)
{
  bool other;
  struct taken *t = find_taken (ts, asked, &other);

  if (t != NULL)
    t->users++;
  else if (other)
    error_set (EEXIST, "%s: the snapshot \"%.256s\" is made with other bitmaps",
               image_storage (ts->im)->name, asked->name);
  else {
    t = new_taken (ts, asked);
    if (t != NULL)
      make_taken (ts, t);
  }
  return t;
}

/* Takes what was asked for. */
static struct taken *
use (struct image_takes *ts, struct take_asked *asked)
{
  struct taken *t;

  pthread_mutex_lock (&ts->lock);
  forget_old (ts);
  t = find_or_make (ts, asked);
  if (t != NULL && !wait_until_made (ts, t))
    t = NULL;
  pthread_mutex_unlock (&ts->lock);
  image_take_forget (asked);
  return t;
}

struct layer *
image_take_open (const struct image *im, const char *encoded)
{
  struct layer *disk = NULL;
  const struct snapshot *sn;
  struct take_asked asked;
  struct taken *t;

  if (image_take_decode (im, encoded, &asked) == -1)
    return NULL;
  t = use (im->takes, &asked);
  if (t == NULL)
    return NULL;
  image_lock_snapshots (im);
  sn = find_by_name (im, t->asked.name);
  if (sn != NULL)
    disk = im->kind->new_disk (im, sn);
  image_unlock_snapshots (im);
  if (disk == NULL) {
    leave (t);
    return NULL;
  }
  disk->let_go = leave;
  disk->held = t;
  return disk;
}
