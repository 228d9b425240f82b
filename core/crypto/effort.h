/* SPDX-License-Identifier: BSD-3-Clause */

/* How long it takes to try a passphrase.  A LUKS header says how many iterations
 * of PBKDF2 that is, up to 2^32 for each slot, and comes from a stranger; but
 * there is no number that every honest header keeps to, since it is made for a
 * time on the machine that made it.  So what counts is the time on this one.
 */

#ifndef CORE_CRYPTO_EFFORT_H
#define CORE_CRYPTO_EFFORT_H

#include "crypto/luks.h"

/* The most that trying all slots may take, of one processor.  QEMU makes a slot
 * for two seconds and a quarter: eight of those, on a machine that is two and a
 * half times as fast, fit.
 */
#define EFFORT_MAX_SECONDS 45

struct effort {
  uint64_t per_second;      /* iterations, each for one block of output */
  uint64_t left;            /* milliseconds */
  int skipped;              /* the first slot that takes longer; -1: none */
  uint64_t skipped_seconds; /* how long */
};

/* Find out how fast this machine is, in some milliseconds.  Returns -1 with the
 * error set.
 */
extern int effort_measure (struct effort *e, enum crypto_hash hash);

/* Take the time that trying this slot needs.  False if it is longer than what is
 * left: then it must not be tried.
 */
extern bool effort_take (struct effort *e, const struct luks *luks,
                         unsigned slot);

#endif /* CORE_CRYPTO_EFFORT_H */
