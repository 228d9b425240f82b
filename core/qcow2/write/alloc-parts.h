/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of the allocator have in common: alloc.c, which reserves
 * clusters and hands them out, and
 *
 *   reserve.c   the reserve, and windows that are set apart from it
 *   pack.c      where compressed data goes
 *   reclaim.c   what is taken back
 */

#ifndef CORE_QCOW2_WRITE_ALLOC_PARTS_H
#define CORE_QCOW2_WRITE_ALLOC_PARTS_H

#include "qcow2/write/alloc.h"

static inline uint64_t
clamp (uint64_t v, uint64_t min, uint64_t max)
{
  return v < min ? min : v > max ? max : v;
}

static inline struct storage *
alloc_storage (const struct alloc *s)
{
  return s->writeback->tables;
}

static inline struct host_off
alloc_offset (const struct alloc *s, uint64_t cluster)
{
  return (struct host_off) { cluster << s->cluster_bits };
}

/* Take refcounts_lock, in turn. */
static inline void
alloc_lock_refcounts (struct alloc *s)
{
  pthread_mutex_lock (&s->refcounts_turn);
  pthread_mutex_lock (&s->refcounts_lock);
  pthread_mutex_unlock (&s->refcounts_turn);
}

/* The following want alloc.lock. */

/* Add to the reserve.  False if it has too many runs already. */
extern bool reserve_add (struct alloc *s, const struct alloc_run *r);

/* Take up to nr clusters from the oldest run of the reserve that has so many,
 * else from the longest.  There must be some.
 */
extern struct alloc_run reserve_take_run (struct alloc *s, uint64_t nr);

/* Take up to nr clusters for these of the guest, from a window or the reserve;
 * nr is 0 if there are none.
 */
extern struct alloc_run reserve_take (struct alloc *s, uint64_t guest,
                                      uint64_t nr);

/* What is left of a window goes back to the reserve. */
extern void reserve_close_window (struct alloc *s, struct alloc_window *w);

/* The following want alloc.refcounts_lock. */

/* Have something in the reserve.  Returns -1 with the error set. */
extern int alloc_refill (struct alloc *s);

/* How many clusters are reserved for compressed data, and have none yet. */
extern uint64_t pack_unused (const struct alloc *s);

/* They return to the reserve. */
extern void pack_stop (struct alloc *s);

/* Nothing may be added to these clusters, since nothing is in them any more. */
extern void pack_leave (struct alloc *s, uint64_t first, uint64_t nr);

/* See alloc_not_leaked. */
extern void pack_not_leaked (struct alloc *s);

/* Lower the refcounts of what was given up, as far as P3 allows by now.
 * Returns -1 with the error set.
 */
extern int reclaim_freed (struct alloc *s);

#endif /* CORE_QCOW2_WRITE_ALLOC_PARTS_H */
