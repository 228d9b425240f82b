/* SPDX-License-Identifier: BSD-3-Clause */

/* A gate that requests pass, and that can be closed for a moment in which none is
 * beyond it.
 *
 * It stands above epochs, which nest and of which one request has many: a request
 * enters the gate once, before anything else, and is beyond it until it has
 * ended, with all its retries and waits.
 *
 * Invariants:
 *
 *  G1  Between gate_close and gate_open nobody is beyond the gate.
 *  G2  While it is open, entering and leaving take no lock and write memory that
 *      other threads mostly don't (base/stripe.h).
 *  G3  It is closed by one thread at a time.  Those that wait to enter are let in
 *      when it opens, before it can be closed again.
 */

#ifndef CORE_BASE_GATE_H
#define CORE_BASE_GATE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "base/stripe.h"

struct gate_stripe {
  _Atomic uint32_t beyond; /* requests */
  char pad[STRIPE_BYTES - sizeof (uint32_t)];
};

struct gate {
  struct gate_stripe stripe[STRIPES];
  _Atomic bool closed;      /* changes under the lock */
  pthread_mutex_t lock;
  pthread_cond_t changed;   /* it was opened, or somebody has left or entered */
  unsigned waiting;         /* lock; to enter */
};

extern void gate_init (struct gate *g);
extern void gate_destroy (struct gate *g); /* nobody is beyond it, or waits */

/* Pass the gate, once it is open.  A thread must not enter again before it has
 * left, nor hold a lock that whoever closes the gate takes meanwhile.  Returns
 * what gate_leave wants.
 */
extern unsigned gate_enter (struct gate *g);
extern void gate_leave (struct gate *g, unsigned token);

/* Close the gate, and wait until nobody is beyond it.  Not for a thread that has
 * entered it.
 */
extern void gate_close (struct gate *g);
extern void gate_open (struct gate *g);

#endif /* CORE_BASE_GATE_H */
