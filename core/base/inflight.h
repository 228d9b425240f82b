/* SPDX-License-Identifier: BSD-3-Clause */

/* Ranges that requests are about to map to new clusters.  Requests whose
 * ranges overlap take turns, first come, first served, so that small ones
 * can't starve a large one.  Knows nothing of qcow2.
 */

#ifndef CORE_BASE_INFLIGHT_H
#define CORE_BASE_INFLIGHT_H

#include <pthread.h>
#include <stdint.h>

struct inflight_range {
  uint64_t first, last; /* inclusive, in units of the caller's choice */
  struct inflight_range *next;
};

struct inflight {
  pthread_mutex_t lock;
  pthread_cond_t left;
  unsigned waiting;
  struct inflight_range *first, **end; /* by arrival, including waiting ones */
};

extern void inflight_init (struct inflight *f);
extern void inflight_destroy (struct inflight *f); /* no range is left */

/* Enter a range, once no earlier one overlaps it.  The caller owns r, which
 * must not move until it leaves.  A thread in one range must not enter
 * another.
 */
extern void inflight_enter (struct inflight *f, struct inflight_range *r);

/* The same with nr ranges at once, which don't overlap each other.  They leave
 * one by one.
 */
extern void inflight_enter_all (struct inflight *f, struct inflight_range *r,
                                unsigned nr);

extern void inflight_leave (struct inflight *f, struct inflight_range *r);

#endif /* CORE_BASE_INFLIGHT_H */
