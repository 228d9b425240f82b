/* SPDX-License-Identifier: BSD-3-Clause */

/* Threads take pieces of the disk in order, each one of a kind and within an
 * aligned range, so that no two of them are in one cluster of the base, as long
 * as that is not larger than MAX_PIECE.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "commit-parts.h"
#include "disk/read.h"
#include "image-parts.h"
#include "manage/edit.h"

#define THREADS 4
#define MIN_PIECE (UINT64_C (1) << 20) /* is still in the processor's cache when
                                        * it is written */
#define MAX_PIECE (UINT64_C (2) << 20)
#define BUFFER_ALIGNMENT 4096
#define ZERO_PIECE (UINT64_C (1) << 30)
#define RAW_ZEROS (UINT64_C (64) << 10) /* what is looked at as a whole */

struct piece {
  uint64_t at, length;
  bool zero;
};

struct copying {
  const struct layer *top, *base;
  struct image *image; /* that the base is; NULL: its storage is raw */
  const struct commit_options *options;
  uint64_t piece; /* bytes of data, at most */

  pthread_mutex_t lock; /* of what follows */
  uint64_t next;        /* where the next piece is looked for */
  bool failed;          /* and why */
  struct error_kept why;
};

static uint64_t
least (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* ------------------------------------------------------------------- pieces */

/* The run at this place in those above the base: UNALLOCATED if it is the
 * base's.
 */
static int
look_up (const struct copying *c, uint64_t at, uint64_t max, struct run *run,
         const struct layer **owner)
{
  const struct layer *l;

  for (l = c->top; l != c->base; l = l->backing) {
    *owner = l;
    if (at >= l->size) { /* of a short one: nothing below shows there */
      *run = (struct run) { .kind = RUN_ZERO_PLAIN, .length = max };
      return 0;
    }
    if (l->format->lookup (l, (struct guest_off) { at },
                           least (max, l->size - at), run) == -1)
      return -1;
    if (run->kind != RUN_UNALLOCATED)
      return 0;
    max = run->length;
  }
  return 0;
}

/* Whether the run reads as zeros; it may be shortened for that. */
static int
is_zero_run (const struct layer *l, struct run *run, bool *zero)
{
  *zero = run->kind == RUN_ZERO_PLAIN || run->kind == RUN_ZERO_ALLOC;
  if (run->kind != RUN_DATA || l->format->find_hole == NULL ||
      !storage_holes_read_zero (l->data))
    return 0;
  return l->format->find_hole (l, run, zero);
}

static int
find_run (const struct copying *c, uint64_t at, struct run *run, bool *zero)
{
  struct epoch *epoch = c->top->shared->epoch;
  const unsigned token = epoch_enter (epoch);
  const struct layer *owner = c->top;
  int r;

  r = look_up (c, at, c->top->size - at, run, &owner);
  if (r == 0 && run->kind != RUN_UNALLOCATED)
    r = is_zero_run (owner, run, zero);
  epoch_leave (epoch, token);
  return r;
}

/* The next piece; of length 0 if there is none any more.  lock held. */
static int
find_piece (struct copying *c, struct piece *p)
{
  struct run run = { .length = 0 };
  uint64_t limit = 0;
  bool zero = false;

  *p = (struct piece) { .at = c->next };
  while (c->next < c->top->size) {
    if (find_run (c, c->next, &run, &zero) == -1)
      return -1;
    if (run.kind == RUN_UNALLOCATED && p->length == 0) {
      c->next += run.length;
      continue;
    }
    if (p->length == 0) {
      *p = (struct piece) { .at = c->next, .zero = zero };
      limit = zero ? ZERO_PIECE : c->piece - c->next % c->piece;
    }
    if (run.kind == RUN_UNALLOCATED || zero != p->zero)
      break;
    run.length = least (run.length, limit - p->length);
    p->length += run.length;
    c->next += run.length;
    if (p->length == limit)
      break;
  }
  return 0;
}

/* ------------------------------------------------------------------ writing */

static bool
is_zero (const uint8_t *p, uint64_t count)
{
  return p[0] == 0 && memcmp (p, p + 1, count - 1) == 0;
}

static int
write_raw (struct storage *s, const uint8_t *p, uint64_t count, uint64_t at)
{
  uint64_t n, part;
  int r = 0;

  for (; r == 0 && count > 0; p += n, at += n, count -= n) {
    const bool zero = is_zero (p, least (count, RAW_ZEROS));

    for (n = 0; n < count; n += part) {
      part = least (count - n, RAW_ZEROS);
      if (is_zero (p + n, part) != zero)
        break;
    }
    r = zero ? storage_zero (s, (struct host_off) { at }, n, true)
      : storage_write (s, p, n, (struct host_off) { at });
  }
  return r;
}

static int
zero_piece (const struct copying *c, const struct piece *p)
{
  return c->image != NULL
    ? image_zero (c->image, p->length, (struct guest_off) { p->at },
                  IMAGE_MAY_TRIM)
    : storage_zero (c->base->tables, (struct host_off) { p->at }, p->length,
                    true);
}

static int
copy_piece (const struct copying *c, const struct piece *p, void *buf)
{
  const struct guest_off at = { p->at };

  if (p->zero)
    return zero_piece (c, p);
  if (layer_read (c->top, buf, p->length, at) == -1)
    return -1;
  return c->image != NULL ? image_write (c->image, buf, p->length, at, 0)
    : write_raw (c->base->tables, buf, p->length, p->at);
}

/* ------------------------------------------------------------------ threads */

/* lock held. */
static void
fail (struct copying *c)
{
  if (!c->failed)
    error_keep (&c->why);
  c->failed = true;
}

/* The next piece for a thread; false: there is none, or something has failed. */
static bool
take_piece (struct copying *c, struct piece *p)
{
  const struct commit_options *o = c->options;

  pthread_mutex_lock (&c->lock);
  p->length = 0;
  if (!c->failed && find_piece (c, p) == -1) {
    fail (c);
    p->length = 0;
  }
  if (!c->failed && o->progress != NULL &&
      !o->progress (o->opaque, c->next, c->top->size)) {
    error_set (EINTR, "interrupted");
    fail (c);
    p->length = 0;
  }
  pthread_mutex_unlock (&c->lock);
  return p->length > 0;
}

static void *
work (void *opaque)
{
  struct copying *c = opaque;
  void *buf = aligned_alloc (BUFFER_ALIGNMENT, c->piece);
  struct piece p;
  int r = 0;

  if (buf == NULL) {
    error_set (ENOMEM, "out of memory");
    r = -1;
  }
  while (r == 0 && take_piece (c, &p))
    r = copy_piece (c, &p, buf);
  free (buf);
  if (r == -1) {
    pthread_mutex_lock (&c->lock);
    fail (c);
    pthread_mutex_unlock (&c->lock);
  }
  return NULL;
}

int
commit_copy (struct image *im, unsigned above, struct image *base,
             const struct commit_options *o)
{
  struct copying c = {
    .top = im->chain.layer[0], .base = im->chain.layer[above],
    .image = base, .options = o, .piece = MIN_PIECE,
  };
  pthread_t thread[THREADS - 1];
  unsigned nr = 0;

  if (base != NULL && base->cluster_size > c.piece)
    c.piece = least (base->cluster_size, MAX_PIECE);
  pthread_mutex_init (&c.lock, NULL);
  /* With fewer of them it takes longer. */
  while (nr < THREADS - 1 && pthread_create (&thread[nr], NULL, work, &c) == 0)
    nr++;
  work (&c);
  while (nr > 0)
    pthread_join (thread[--nr], NULL);
  pthread_mutex_destroy (&c.lock);
  if (!c.failed)
    return 0;
  error_restore (&c.why);
  error_append (" (%s may have a part of what %s has, which is as it was)",
                c.base->tables->name, c.top->tables->name);
  return -1;
}
