/* SPDX-License-Identifier: BSD-3-Clause */

/* Which clusters were written as a whole, by requests that are smaller: so
 * that they can be compressed once they are complete.  Knows nothing of qcow2.
 *
 * It remembers a few clusters only, and the least recently written one makes
 * room: enough for clients that write in order, on several connections.
 */

#ifndef CORE_BASE_COALESCE_H
#define CORE_BASE_COALESCE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define GATHER_SLOTS 32

struct coalesce_slot {
  uint64_t cluster;
  uint64_t written; /* bit i: the i-th 64th of it */
  uint64_t last_use; /* 0: the slot is empty */
};

struct coalesce {
  pthread_mutex_t lock;
  unsigned cluster_bits;
  uint64_t clock;
  struct coalesce_slot slot[GATHER_SLOTS];
};

extern void coalesce_init (struct coalesce *g, unsigned cluster_bits);
extern void coalesce_destroy (struct coalesce *g);

/* Bytes from, up to but without to, of one cluster have been written.  True
 * if that completes it; it is then forgotten.  Takes its lock for a moment.
 */
extern bool coalesce_note (struct coalesce *g, uint64_t from, uint64_t to);

#endif /* CORE_BASE_COALESCE_H */
