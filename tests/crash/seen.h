/* SPDX-License-Identifier: BSD-3-Clause */

/* Which states of a disk have been judged.  Power cuts beside each other leave
 * the same ones again and again, and a verdict that depends on nothing but the
 * state need not be found twice.
 */

#ifndef CRASH_SEEN_H
#define CRASH_SEEN_H

#include <stdbool.h>
#include <stdint.h>

/* Of each state 128 bits are kept that follow from all of its bytes: two states
 * that differ have the same ones by a chance that can be left out of account.
 */
struct seen_state {
  uint64_t word[2]; /* both 0: none */
};

struct seen {
  struct seen_state *state; /* a hash table; at first all is 0 */
  uint64_t nr, allocated;
};

/* Returns whether this state was seen before; it has been from now on. */
extern bool seen_before (struct seen *s, const uint8_t *bytes, uint64_t size);

/* None has been, as the verdicts are about something else from now on. */
extern void seen_forget (struct seen *s);

#endif /* CRASH_SEEN_H */
