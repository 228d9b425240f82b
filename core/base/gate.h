/* SPDX-License-Identifier: BSD-3-Clause */

/* A gate that every request passes.  Closing it gives a moment at which no
 * request is running.
 *
 * It stands above epochs, which nest and which one request enters many times:
 * a request enters the gate once, before anything else, and is beyond it until
 * it has ended, through all its retries and waits.
 *
 * What does not come in by a request does not pass it, such as the search for
 * leaks: whoever closes the gate must stop that by other means.
 *
 * Invariants:
 *
 *  G1  Between gate_close and gate_open no request is beyond the gate.
 *  G2  While it is open, entering and leaving take no lock, and threads mostly
 *      write different cache lines (base/stripe.h).
 *  G3  One thread at a time closes it.  Threads that wait to enter are let in
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
  pthread_cond_t changed;   /* opened, or a thread has left or entered */
  unsigned waiting;         /* lock; threads that wait to enter */
};

extern void gate_init (struct gate *g);
extern void gate_destroy (struct gate *g); /* no thread is beyond or waits */

/* Pass the gate, once it is open.  Returns the token for gate_leave.  A thread
 * must not enter twice, nor hold a lock that is taken while the gate is
 * closed.
 */
extern unsigned gate_enter (struct gate *g);
extern void gate_leave (struct gate *g, unsigned token);

/* Close the gate, and wait until no thread is beyond it.  Not for a thread
 * that has entered it.
 */
extern void gate_close (struct gate *g);
extern void gate_open (struct gate *g);

#endif /* CORE_BASE_GATE_H */
