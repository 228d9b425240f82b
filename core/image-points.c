/* SPDX-License-Identifier: BSD-3-Clause */

/* A thread ends points: it begins with the first one, and runs until the image
 * is closed.  All of it is under the lock of struct points, which is never held
 * while the gate is closed, or is waited for.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "base/hash.h"
#include "image-parts.h"

/* So many tokens can have ended: their hashes are remembered, as none must be
 * used twice.
 */
#define MAX_ENDED 131072

#define NS_PER_S UINT64_C (1000000000)

/* A point that was taken.  Its place is free if point is NULL. */
struct token {
  struct image_points *owner;
  char *name;
  uint64_t hash; /* of it */
  struct point *point;
  unsigned users;
  uint64_t closed; /* when the last user had left, in ns; if there are none */
};

struct image_points {
  struct image *im;
  struct points *points;
  uint64_t linger; /* ns */
  struct hash_key key;
  struct token token[POINTS_MAX];
  bool taking; /* one is being taken: others wait */
  bool ending; /* some have failed, and hold memory: likewise */
  bool working; /* the thread does not wait for work */
  bool unreleased; /* some have ended since it began to release what is left */
  bool stop, running;
  pthread_t thread;
  uint64_t *ended;
  size_t nr_ended, room;
};

static uint64_t
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * NS_PER_S + t.tv_nsec;
}

int
image_allow_points (struct image *im, unsigned linger, uint64_t memory)
{
  struct points *points = im->kind->points (im);
  struct image_points *ip;
  unsigned i;

  if (points == NULL)
    return -1;
  if (im->chain.force_share) {
    error_set (ENOTSUP, "%s: there are no points in time of an image that "
               "another process may write", image_storage (im)->name);
    return -1;
  }
  if (points_allow (points, memory) == -1)
    return -1;
  ip = calloc (1, sizeof *ip);
  if (ip == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  ip->im = im;
  ip->points = points;
  ip->linger = linger * NS_PER_S;
  im->takes = image_takes_new (im, linger);
  if (im->takes == NULL) {
    free (ip);
    return -1;
  }
  ip->key = hash_key ();
  for (i = 0; i < POINTS_MAX; ++i)
    ip->token[i].owner = ip;
  im->points = ip;
  return 0;
}

/* ------------------------------------------------------------------- ending */

/* When a token is to be ended; UINT64_MAX: not yet known.  lock held. */
static uint64_t
end_of (const struct image_points *ip, const struct token *t)
{
  if (t->point == NULL || t->users > 0)
    return UINT64_MAX;
  return atomic_load (&t->point->failed) ? 0 : t->closed + ip->linger;
}

/* Room was made for it when its point was taken.  lock held. */
static void
note_ended (struct image_points *ip, struct token *t)
{
  ip->ended[ip->nr_ended++] = t->hash;
  t->point = NULL;
  free (t->name);
}

/* Wait until all requests have ended that run.  lock held, but not meanwhile. */
static void
wait_for_requests (struct image_points *ip)
{
  pthread_mutex_unlock (&ip->points->lock);
  epoch_wait (ip->im->shared.epoch);
  pthread_mutex_lock (&ip->points->lock);
}

/* End what has failed.  Those who look something up from now on see that, and
 * those who may have done so before are waited for first.  Then for the steps
 * that could not capture a slice, and hold its clusters for frozen: until these
 * have ended writes in place take turns with them.  lock held, but not all the
 * time.
 */
static void
end_failed (struct image_points *ip)
{
  struct points *p = ip->points;
  bool failed[POINTS_MAX];
  unsigned i;

  p->failing = false;
  ip->ending = true;
  for (i = 0; i < POINTS_MAX; ++i) /* another one may be taken meanwhile */
    failed[i] = atomic_load (&p->point[i].failed) &&
      atomic_load (&p->point[i].generation) != 0;
  wait_for_requests (ip);
  atomic_store (&p->in_turn, true); /* before newest may be 0 */
  for (i = 0; i < POINTS_MAX; ++i) {
    if (failed[i])
      points_end (p, &p->point[i]);
  }
  wait_for_requests (ip);
  atomic_store (&p->in_turn, false);
  ip->unreleased = true;
}

/* End the tokens whose time has come, or all: what they had is the thread's to
 * release.  lock held.
 */
static void
end_tokens (struct image_points *ip, bool all)
{
  const uint64_t at = now ();
  unsigned i;

  for (i = 0; i < POINTS_MAX; ++i) {
    struct token *t = &ip->token[i];
    struct point *point = t->point;

    if (point == NULL || (!all && end_of (ip, t) > at))
      continue;
    note_ended (ip, t);
    points_end (ip->points, point);
    points_leave (point);
    ip->unreleased = true;
    pthread_cond_broadcast (&ip->points->changed);
  }
}

/* Give up what no point has any more.  Without a writer nothing was changed.  lock
 * held, but not all the time.
 */
static void
release (struct image_points *ip)
{
  ip->unreleased = false;
  pthread_mutex_unlock (&ip->points->lock);
  if (atomic_load (&ip->im->writer) != NULL)
    ip->im->kind->release_points (ip->im);
  pthread_mutex_lock (&ip->points->lock);
  wait_for_requests (ip);
  if (!ip->unreleased)
    points_settle (ip->points);
}

/* Wait for something to do.  lock held. */
static void
wait_for_work (struct image_points *ip)
{
  uint64_t next = UINT64_MAX;
  struct timespec until;
  unsigned i;

  for (i = 0; i < POINTS_MAX; ++i) {
    const uint64_t end = end_of (ip, &ip->token[i]);

    if (end < next)
      next = end;
  }
  if (next == UINT64_MAX) {
    pthread_cond_wait (&ip->points->changed, &ip->points->lock);
    return;
  }
  until.tv_sec = next / NS_PER_S;
  until.tv_nsec = next % NS_PER_S;
  pthread_cond_timedwait (&ip->points->changed, &ip->points->lock, &until);
}

static void *
points_main (void *opaque)
{
  struct image_points *ip = opaque;
  struct points *p = ip->points;

  pthread_mutex_lock (&p->lock);
  while (!ip->stop) {
    ip->working = true;
    while (p->failing)
      end_failed (ip);
    end_tokens (ip, false);
    if (ip->unreleased) {
      release (ip);
      ip->ending = false;
      pthread_cond_broadcast (&p->changed); /* for threads that want to take one */
    }
    else {
      ip->working = false;
      wait_for_work (ip);
    }
  }
  pthread_mutex_unlock (&p->lock);
  return NULL;
}

bool
image_points_have_ended (struct image *im)
{
  struct image_points *ip = im->points;
  const uint64_t at = now ();
  bool ended;
  unsigned i;

  if (ip == NULL)
    return true;
  pthread_mutex_lock (&ip->points->lock);
  ended = !ip->working && !ip->unreleased && !ip->points->failing;
  for (i = 0; i < POINTS_MAX; ++i)
    ended &= end_of (ip, &ip->token[i]) > at;
  pthread_mutex_unlock (&ip->points->lock);
  return ended;
}

void
image_points_close (struct image *im)
{
  struct image_points *ip = im->points;

  if (ip == NULL)
    return;
  pthread_mutex_lock (&ip->points->lock);
  ip->stop = true;
  pthread_cond_broadcast (&ip->points->changed);
  pthread_mutex_unlock (&ip->points->lock);
  if (ip->running)
    pthread_join (ip->thread, NULL);
  pthread_mutex_lock (&ip->points->lock);
  end_tokens (ip, true);
  release (ip);
  pthread_mutex_unlock (&ip->points->lock);
  free (ip->ended);
  free (ip);
  im->points = NULL;
}

void
image_points_fail (struct image *im)
{
  if (im->points != NULL)
    points_fail (im->points->points);
}

/* ------------------------------------------------------------------- taking */

int
image_points_check (const struct image *im, const char *token)
{
  if (token[0] != '\0' && strchr (token, '/') == NULL)
    return 0;
  error_set (EINVAL, "%s: the export \"" IMAGE_POINT_PREFIX "%.256s\" is none: "
             "a token must follow, without a slash",
             image_storage (im)->name, token);
  return -1;
}

/* lock held. */
static int
check_unused (const struct image_points *ip, uint64_t hash)
{
  const char *name = image_storage (ip->im)->name;
  size_t i;

  for (i = 0; i < ip->nr_ended; ++i) {
    if (ip->ended[i] != hash)
      continue;
    error_set (ESTALE, "%s: this point in time has ended: another token will "
               "make a new one", name);
    return -1;
  }
  return 0;
}

/* Make room for all tokens to end.  lock held. */
static int
make_room (struct image_points *ip)
{
  const size_t room = 2 * ip->room + 2 * POINTS_MAX;
  uint64_t *p;

  if (ip->nr_ended >= MAX_ENDED) {
    error_set (EBUSY, "%s: there were too many points in time since the image "
               "was opened", image_storage (ip->im)->name);
    return -1;
  }
  if (ip->nr_ended + POINTS_MAX <= ip->room)
    return 0;
  p = realloc (ip->ended, room * sizeof *p);
  if (p == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  ip->ended = p;
  ip->room = room;
  return 0;
}

static int
start_thread (struct image_points *ip)
{
  if (ip->running)
    return 0;
  if (pthread_create (&ip->thread, NULL, points_main, ip) != 0) {
    error_set (ENOMEM, "a thread can't be started");
    return -1;
  }
  ip->running = true;
  return 0;
}

/* Take a point, at a moment when no request is running, nor a repair; and call fn, if
 * there is one.
 */
static struct point *
take_point (struct image_points *ip, image_quiet_fn *fn, void *opaque)
{
  struct image *im = ip->im;
  struct point *point;

  pthread_mutex_lock (&im->writer_lock);
  gate_close (&im->gate);
  point = points_take (ip->points);
  if (point != NULL && fn != NULL)
    fn (opaque, point);
  gate_open (&im->gate);
  pthread_mutex_unlock (&im->writer_lock);
  return point;
}

/* lock held. */
static struct token *
find_token (struct image_points *ip, const char *name)
{
  unsigned i;

  for (i = 0; i < POINTS_MAX; ++i) {
    if (ip->token[i].point != NULL && strcmp (ip->token[i].name, name) == 0)
      return &ip->token[i];
  }
  return NULL;
}

/* Take one, as take_point.  lock held, but not meanwhile. */
static struct point *
take_one (struct image_points *ip, image_quiet_fn *fn, void *opaque)
{
  struct point *point;

  ip->taking = true;
  pthread_mutex_unlock (&ip->points->lock);
  point = take_point (ip, fn, opaque);
  pthread_mutex_lock (&ip->points->lock);
  ip->taking = false;
  pthread_cond_broadcast (&ip->points->changed);
  if (point == NULL)
    error_set (EBUSY, "%s: there are %d points in time already",
               image_storage (ip->im)->name, POINTS_MAX);
  return point;
}

/* Take one for this token, whose name is a copy that is freed after an error.
 * lock held, but not all the time.
 */
static struct token *
take_token (struct image_points *ip, char *name, uint64_t hash)
{
  struct point *point = take_one (ip, NULL, NULL);
  unsigned i;

  if (point == NULL) {
    free (name);
    return NULL;
  }
  for (i = 0; ip->token[i].point != NULL; ++i)
    assert (i + 1 < POINTS_MAX); /* there are as many */
  ip->token[i].name = name;
  ip->token[i].hash = hash;
  ip->token[i].point = point;
  ip->token[i].users = 0;
  return &ip->token[i];
}

/* lock held, but not all the time. */
static struct token *
new_token (struct image_points *ip, const char *name)
{
  const uint64_t hash = hash_string (&ip->key, name);
  char *copy;

  if (check_unused (ip, hash) == -1 || make_room (ip) == -1 ||
      start_thread (ip) == -1)
    return NULL;
  copy = strdup (name);
  if (copy != NULL)
    return take_token (ip, copy, hash);
  error_set (ENOMEM, "out of memory");
  return NULL;
}

/* Wait until points may be taken.  lock held, but not meanwhile. */
static void
wait_to_take (struct image_points *ip)
{
  while (ip->taking || ip->ending || ip->points->failing)
    pthread_cond_wait (&ip->points->changed, &ip->points->lock);
}

/* With one more user.  lock held, but not all the time. */
static struct token *
use_token (struct image_points *ip, const char *name)
{
  struct token *t;

  wait_to_take (ip);
  end_tokens (ip, false); /* the thread may be busy with earlier ones */
  t = find_token (ip, name);
  if (t == NULL)
    t = new_token (ip, name);
  else if (atomic_load (&t->point->failed)) {
    error_set (EIO, "%s: this point in time could not be kept",
               image_storage (ip->im)->name);
    t = NULL;
  }
  if (t != NULL)
    t->users++;
  return t;
}

static void
leave_token (void *opaque)
{
  struct token *t = opaque;
  struct points *p = t->owner->points;

  pthread_mutex_lock (&p->lock);
  if (--t->users == 0) {
    t->closed = now ();
    pthread_cond_broadcast (&p->changed);
  }
  pthread_mutex_unlock (&p->lock);
}

struct layer *
image_points_open (const struct image *im, const char *token,
                   image_point_fn *make, const void *opaque)
{
  struct image_points *ip = im->points;
  struct layer *disk;
  struct token *t;

  if (image_points_check (im, token) == -1)
    return NULL;
  pthread_mutex_lock (&ip->points->lock);
  t = use_token (ip, token);
  pthread_mutex_unlock (&ip->points->lock);
  if (t == NULL)
    return NULL;
  disk = make (im, t->point, opaque);
  if (disk == NULL) {
    leave_token (t);
    return NULL;
  }
  disk->let_go = leave_token;
  disk->held = t;
  return disk;
}

/* A step is as a request: points that are taken meanwhile wait for one of them. */
void
image_points_keep_bits (const struct image *im, const struct layer *disk)
{
  struct image *own = im->points->im;
  unsigned at = 0;
  bool more;

  do {
    const unsigned token = gate_enter (&own->gate);

    more = own->kind->keep_bits (own, disk, &at);
    gate_leave (&own->gate, token);
  } while (more);
}

/* ---------------------------------------------------------- without a token */

struct point *
image_points_take (struct image *im, image_quiet_fn *fn, void *opaque)
{
  struct image_points *ip = im->points;
  struct point *point = NULL;

  pthread_mutex_lock (&ip->points->lock);
  wait_to_take (ip);
  end_tokens (ip, false);
  if (start_thread (ip) == 0)
    point = take_one (ip, fn, opaque);
  pthread_mutex_unlock (&ip->points->lock);
  return point;
}

void
image_points_end (struct image *im, struct point *point)
{
  struct image_points *ip = im->points;

  pthread_mutex_lock (&ip->points->lock);
  /* Steps that could not capture a slice for it are for the thread to wait for. */
  while (atomic_load (&point->failed) && atomic_load (&point->generation) != 0)
    pthread_cond_wait (&ip->points->changed, &ip->points->lock);
  points_end (ip->points, point);
  points_leave (point);
  ip->unreleased = true;
  pthread_cond_broadcast (&ip->points->changed);
  pthread_mutex_unlock (&ip->points->lock);
}
