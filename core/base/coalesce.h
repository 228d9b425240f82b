/* SPDX-License-Identifier: BSD-3-Clause */

/* Tracks clusters that are written piecemeal by requests smaller than a
 * cluster, so that they can be compressed once complete.  Knows nothing of
 * qcow2.
 *
 * Only a few clusters are tracked, and the least recently written one makes
 * room: enough for clients that write in order, on several connections.
 */

#ifndef CORE_BASE_COALESCE_H
#define CORE_BASE_COALESCE_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#define COALESCE_SLOTS 32

struct coalesce_slot {
  uint64_t cluster;
  uint64_t written; /* bit i: the i-th 64th of the cluster */
  uint64_t last_use; /* 0: the slot is empty */
};

struct coalesce {
  pthread_mutex_t lock;
  unsigned cluster_bits;
  uint64_t clock;
  struct coalesce_slot slot[COALESCE_SLOTS];
};

extern void coalesce_init (struct coalesce *g, unsigned cluster_bits);
extern void coalesce_destroy (struct coalesce *g);

/* The bytes [from, to) of one cluster have been written.  Returns true, and
 * forgets the cluster, if that completes it.  Takes the lock briefly.
 */
extern bool coalesce_note (struct coalesce *g, uint64_t from, uint64_t to);

#endif /* CORE_BASE_COALESCE_H */
