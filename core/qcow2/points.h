/* SPDX-License-Identifier: BSD-3-Clause */

/* Points in time: the live disk as it was at a moment, for those who read it,
 * while it is written.
 *
 * No table is changed for that.  Taking a point notes a generation, at a moment
 * when no request runs (base/gate.h).  Before the entries of a slice of an L2
 * table change for the first time after that, they are copied to a shadow, in
 * memory.  Shadows are kept by the slice of the guest's disk that they map, so
 * that it doesn't matter where the table is.
 *
 * Invariants:
 *
 *  S1  A point of generation p has in a slice what the first shadow of it
 *      captured in a generation >= p has; if there is none, the live entries.
 *  S2  A shadow can be found before the change that it is for can be seen.
 *  S3  Nothing that an entry of a shadow refers to is written or given up while
 *      the shadow exists.  Each reference (entry_reference) that shadows and the
 *      live table have at the same place of a slice, one after the other, is one
 *      reference on the disk: it is given up, once, when none has it any more.
 *  S4  A shadow exists as long as some point needs it (S1).
 *  S5  Memory is bounded (I11).  What doesn't fit makes points fail, not the
 *      change: they have to be believed to be wrong from then on, and nothing
 *      is captured for them any more: it may have changed, and been given up.
 *  S6  A point of generation p has in a page of a bitmap's bits what the first
 *      copy of it kept in a generation >= p has; if there is none, the bits on
 *      the disk.  A copy is kept before the page gets bits of what changes after
 *      the point.  It may have more bits than the point's, and so may the disk,
 *      but never fewer: so copies are for whatever memory shadows leave, and are
 *      given up for shadows.
 *
 * The locks are held for moments: points.lock, points.stripe and points.bits_lock,
 * never two of these.  What is written is in qcow2/write/frozen.h, and of bits in
 * qcow2/write/bit-slots.h.
 */

#ifndef CORE_QCOW2_POINTS_H
#define CORE_QCOW2_POINTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "qcow2/bitmap-lives.h"
#include "qcow2/map.h"

#define POINTS_MAX 8 /* at one time */
#define POINTS_STRIPES 64

/* A point: its place in struct points is its owner's until points_leave. */
struct point {
  bool taken;           /* points.lock; the place is not free */
  _Atomic uint64_t generation; /* points.lock to change it; 0: it has ended */
  _Atomic bool failed;  /* what is read of it must not be believed */
  _Atomic bool told;    /* a reader has reported that */
};

struct shadow;
struct kept_bits;

struct points {
  _Atomic bool held;       /* there are points or shadows */
  _Atomic uint64_t newest; /* the last generation that a point has; or 0 */

  /* Also of what image-points.c has of points. */
  pthread_mutex_t lock;
  pthread_cond_t changed;     /* for whoever waits for points (lock) */
  struct point point[POINTS_MAX];
  uint64_t generation;        /* lock; the last that was given to one */
  _Atomic uint64_t failed;    /* all up to this one have failed, or ended */
  bool failing;               /* lock; some have failed, and have not ended */

  /* Points that failed have just ended.  Steps that had no memory for a shadow may
   * still be copying clusters: what is written in place meanwhile, other than in
   * turn with them, would be lost.
   */
  _Atomic bool in_turn;

  struct hash_key key;
  unsigned bucket_bits;
  struct shadow **bucket;     /* NULL: points are not allowed */
  pthread_mutex_t stripe[POINTS_STRIPES]; /* of every 64th bucket */
  uint64_t max_bytes;
  _Atomic uint64_t bytes;     /* of shadows, and of bits that are kept */

  pthread_mutex_t bits_lock;
  struct kept_bits **bits;    /* of all bitmaps, in as many buckets; NULL likewise */
  uint64_t nr_bits;           /* bits_lock */
  _Atomic uint64_t bits_given_up; /* none are kept for points up to this one */

  struct bitmap_lives lives;  /* of the disk's bitmaps */
};

/* Returns NULL with ENOMEM set. */
extern struct points *points_new (void);
extern void points_free (struct points *p); /* no point is left; or NULL */

/* Points may be taken, whose shadows have this many bytes at most.  Returns -1
 * with the error set: ENOMEM.
 */
extern int points_allow (struct points *p, uint64_t max_bytes);

/* Whether there may be shadows, or points that want some: not if p is NULL.  It
 * becomes true while no request runs.
 */
static inline bool
points_are_held (const struct points *p)
{
  return p != NULL && atomic_load_explicit (&p->held, memory_order_relaxed);
}

/* Whether little of the memory is in use. */
static inline bool
points_have_much_room (const struct points *p)
{
  return atomic_load_explicit (&p->bytes, memory_order_relaxed) <=
    p->max_bytes / 16;
}

/* ------------------------------------------------------------- their owner */

/* Take a point: no request is running that changes something, nor begins before
 * this has returned.  NULL: there are POINTS_MAX already.
 */
extern struct point *points_take (struct points *p);

/* The point has ended: nobody reads it, or it has failed, and all requests that may
 * have read it before that have ended.  What only it needed is released by
 * unfreeze.  Wants points.lock.
 */
extern void points_end (struct points *p, struct point *point);

/* The place of a point that has ended may be taken.  Wants points.lock. */
extern void points_leave (struct point *point);

/* All points fail: they have to be ended by whoever waits for points.changed. */
extern void points_fail (struct points *p);

/* ------------------------------------------------------------- reading one */

/* Find the run at offset of the disk as a point has it, in a shadow; max must be
 * within its slice.  False: there is none, and the live table counts, as long
 * as there is none after it was looked up (S2).
 */
extern bool points_lookup (struct points *p, const struct point *point,
                           const struct map *m, struct guest_off offset,
                           uint64_t max, struct run *run);

/* The words of a slice as a point has it, from a shadow, in the host's byte
 * order.  False: there is none, and words are as they were: the live ones count,
 * as with points_lookup.
 */
extern bool points_words (struct points *p, const struct point *point,
                          const struct map *m, uint64_t slice,
                          uint64_t *words);

/* ----------------------------------------------------------------- writing */

/* Slices are numbered by map_slice_number, words within them from 0.  A
 * reference is what entry_reference makes of an entry's first word.
 */

/* Whether the entries of a slice must be captured before they change. */
extern bool points_want (struct points *p, uint64_t slice);

/* Capture them: words are those of the whole slice, in the host's byte order,
 * place is where it is.  If there is no memory for that all points fail.  The
 * caller sees to it that nobody changes the slice before.  Returns whether there
 * is a new shadow.
 */
extern bool points_capture (struct points *p, const struct map *m,
                            uint64_t slice, struct host_off place,
                            const uint64_t *words);

/* Whether what the live entry at this word of a slice refers to belongs to a
 * point, too (S3).
 */
extern bool points_have (struct points *p, uint64_t slice, unsigned word,
                         uint64_t reference);

/* Whether a shadow has that reference: it must not be given up. */
extern bool points_keep (struct points *p, uint64_t slice, unsigned word,
                         uint64_t reference);

/* --------------------------------------------------------------- releasing */

/* Find a slice with a shadow that no point needs, from *bucket on, which is
 * moved on.  False: there is none.
 */
extern bool points_next_unneeded (struct points *p, uint64_t *bucket,
                                  uint64_t *slice);

/* Remove one such shadow of a slice.  live are its live entries, which nobody
 * changes meanwhile.  Fills in lost, in the host's byte order and as long as the
 * slice, with the entries whose references nothing has any more, 0 elsewhere.
 * False: there is none.
 */
extern bool points_remove (struct points *p, const struct map *m,
                           uint64_t slice, const uint64_t *live,
                           uint64_t *lost);

/* held becomes false if there are no points.  What all that have ended had was
 * released since, and all requests have ended that ran then: they may have
 * looked something up that was frozen, and was replaced.  Wants points.lock.
 */
extern void points_settle (struct points *p);

/* Call fn for the words of each shadow, in the order of the disk, which it may
 * not keep; NULL is not passed.  A stripe is locked.
 */
typedef void points_fn (void *opaque, const uint64_t *words, uint64_t nr);
extern void points_each (struct points *p, const struct map *m, points_fn *fn,
                         void *opaque);

/* ------------------------------------------- bits of bitmaps (points-bits.c)
 *
 * A page of them is known by the place of its bitmap's table, which no other bitmap
 * in whose life a point is has had (qcow2/bitmap-lives.h), and by its number there.
 * Pages of one image have the same size.
 */

/* Have memory for buckets.  Returns -1 with ENOMEM set. */
extern int points_allow_bits (struct points *p);

/* Whether a page has to be kept before it gets more bits, where that was done for
 * points up to this generation: not if p is NULL.
 */
static inline bool
points_want_bits (const struct points *p, uint64_t kept)
{
  return p != NULL &&
    atomic_load_explicit (&p->newest, memory_order_relaxed) > kept;
}

/* Keep a page of nr bytes, if the newest point has none since it was taken and
 * there is memory.
 */
extern void points_keep_bits (struct points *p, struct host_off table,
                              uint64_t page, const uint8_t *bytes, size_t nr);

/* What a point has of a page, where a copy is kept.  False: bytes are as they were,
 * and what the disk has counts, if it was read before.
 */
extern bool points_get_bits (struct points *p, const struct point *point,
                             struct host_off table, uint64_t page,
                             uint8_t *bytes, size_t nr);

/* Give up the copies that no point needs; or all, so that shadows have memory, and
 * keep none for the points that there are.
 */
extern void points_release_bits (struct points *p);
extern void points_give_up_bits (struct points *p);

/* For both files: whether a point needs what was captured in this generation, where
 * the next older one of the same is from that generation (0: there is none); and
 * have so many bytes more.  False: there are none.
 */
extern bool points_need (const struct points *p, uint64_t generation,
                         uint64_t older);
extern bool points_reserve (struct points *p, uint64_t bytes);

#endif /* CORE_QCOW2_POINTS_H */
