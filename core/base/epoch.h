/* SPDX-License-Identifier: BSD-3-Clause */

/* Quiescence: tells when no request is left that could still see an old state.
 * Each request enters the current epoch and leaves it.  What became
 * unreachable in epoch e is visible to no request once epoch e + 2 begins.
 *
 * Invariants:
 *
 *  E1  The epoch goes from e to e + 1 only when no request of e - 1 is left:
 *      at any time, requests belong to two epochs at most.
 *  E2  Entering and leaving take no lock, and threads mostly write different
 *      cache lines (base/stripe.h).
 */

#ifndef CORE_BASE_EPOCH_H
#define CORE_BASE_EPOCH_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/stripe.h"

struct epoch_stripe {
  _Atomic uint32_t requests[4]; /* of epoch e in e % 4 */
  char pad[STRIPE_BYTES - 4 * sizeof (uint32_t)];
};

struct epoch {
  _Atomic uint64_t now;
  pthread_mutex_t lock; /* for advancing */
  struct epoch_stripe stripe[STRIPES];
};

extern void epoch_init (struct epoch *e);
extern void epoch_destroy (struct epoch *e);

/* A request begins.  Returns the token for epoch_leave.  May be nested. */
extern unsigned epoch_enter (struct epoch *e);
extern void epoch_leave (struct epoch *e, unsigned token);

/* The current epoch: that of what becomes unreachable now. */
static inline uint64_t
epoch_now (const struct epoch *e)
{
  return atomic_load (&e->now);
}

/* Advance as far as is possible without waiting, but no further than
 * epoch_is_past (e, then) needs.  Takes the epoch's lock.
 */
extern void epoch_advance (struct epoch *e, uint64_t then);

/* Whether no request is left that can see what became unreachable in epoch
 * then.
 */
static inline bool
epoch_is_past (const struct epoch *e, uint64_t then)
{
  return epoch_now (e) >= then + 2;
}

/* Wait until no request is left that has entered before.  Not for one that has.
 * Takes the epoch's lock.
 */
extern void epoch_wait (struct epoch *e);

#endif /* CORE_BASE_EPOCH_H */
