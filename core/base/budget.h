/* SPDX-License-Identifier: BSD-3-Clause */

/* Memory that many share: how much each of them may take.
 *
 * Half of it is set apart, so that each gets the least at least, as long as
 * there is one left; and on top of that a sixteenth of what is left of the other
 * half: so the first ones get most, and never more than there is in all.
 */

#ifndef CORE_BASE_BUDGET_H
#define CORE_BASE_BUDGET_H

#include <pthread.h>
#include <stdint.h>

struct budget {
  pthread_mutex_t lock; /* of what follows */
  uint64_t least;       /* bytes */
  uint64_t set_apart;   /* bytes that are left */
  uint64_t more;        /* likewise, on top */
};

/* least: at most total; so many there can be is total / least / 2, or 1. */
extern void budget_init (struct budget *b, uint64_t total, uint64_t least);
extern void budget_destroy (struct budget *b);

/* A part, in bytes, which budget_give_back takes.  0: there is none left. */
extern uint64_t budget_take (struct budget *b);
extern void budget_give_back (struct budget *b, uint64_t bytes);

#endif /* CORE_BASE_BUDGET_H */
