/* SPDX-License-Identifier: BSD-3-Clause */

/* Quiescence: when is nobody left who could have seen how things were before?
 * Each request enters the present epoch and leaves it.  What became
 * unreachable in epoch e is out of everyone's sight once epoch e + 2 has come.
 *
 * Invariants:
 *
 *  E1  The epoch goes from e to e + 1 only when no request of e - 1 is left:
 *      requests are of two epochs at most.
 *  E2  Entering and leaving take no lock, and threads mostly write different
 *      lines of memory (base/stripe.h).
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
  pthread_mutex_t lock; /* of who moves it on */
  struct epoch_stripe stripe[STRIPES];
};

extern void epoch_init (struct epoch *e);
extern void epoch_destroy (struct epoch *e);

/* A request begins: returns what epoch_leave wants.  May be nested. */
extern unsigned epoch_enter (struct epoch *e);
extern void epoch_leave (struct epoch *e, unsigned token);

/* The epoch that what becomes unreachable now is of. */
static inline uint64_t
epoch_now (const struct epoch *e)
{
  return atomic_load (&e->now);
}

/* Move on as far as is possible without waiting, but no further than is
 * needed for is_past (e, then).  Takes the epoch's lock.
 */
extern void epoch_advance (struct epoch *e, uint64_t then);

/* Whether nobody is left who saw what became unreachable in epoch then. */
static inline bool
epoch_is_past (const struct epoch *e, uint64_t then)
{
  return epoch_now (e) >= then + 2;
}

#endif /* CORE_BASE_EPOCH_H */
