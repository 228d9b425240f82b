/* SPDX-License-Identifier: BSD-3-Clause */

/* Ranges that requests are about to map to new clusters.  Such requests take
 * turns where their ranges overlap, in the order in which they came: so a large
 * one is not overtaken by small ones for ever.  It knows nothing of qcow2.
 */

#ifndef CORE_BASE_INFLIGHT_H
#define CORE_BASE_INFLIGHT_H

#include <pthread.h>
#include <stdint.h>

struct inflight_range {
  uint64_t first, last; /* of the caller's units, both included */
  struct inflight_range *next;
};

struct inflight {
  pthread_mutex_t lock;
  pthread_cond_t left;
  unsigned waiting;
  struct inflight_range *first, **end; /* by arrival, those that wait as well */
};

extern void inflight_init (struct inflight *f);
extern void inflight_destroy (struct inflight *f); /* no range is left */

/* Wait until no range that came before overlaps this one, and enter it.  r is the
 * caller's, and stays where it is until it leaves.  A thread in one range must
 * not enter another.
 */
extern void inflight_enter (struct inflight *f, struct inflight_range *r);
extern void inflight_leave (struct inflight *f, struct inflight_range *r);

#endif /* CORE_BASE_INFLIGHT_H */
