/* SPDX-License-Identifier: BSD-3-Clause */

/* The allocator of an image in memory, without a writer.  One at a time. */

#ifndef UNIT_ALLOC_RIG_H
#define UNIT_ALLOC_RIG_H

#include "build.h"
#include "qcow2/write/alloc.h"

#define MAX_CLUSTERS (MEMORY_DISK_MAX >> 9)

extern struct memory_disk disk;
extern struct memory_control control;
extern struct storage *storage;
extern struct cache *cache;
extern struct epoch epoch;
extern struct writeback writeback;
extern struct overlap overlap;
extern struct alloc space;
extern unsigned cluster_bits;
extern unsigned refcount_order; /* of the next image */

/* Who has a host cluster: 0 for nobody.  Not atomic, so that ThreadSanitizer
 * judges as well.
 */
extern uint8_t owner[MAX_CLUSTERS];

/* An image with some clusters in use, and free ones with garbage in them. */
extern void alloc_rig_start (unsigned bits, bool keep_discarded);
extern void alloc_rig_end (void);

/* Close; so many clusters were taken and never mapped: they are leaked, and
 * nothing else is.
 */
extern void alloc_rig_close (uint64_t leaks);

/* Whether this range of the file is zeros. */
extern bool alloc_rig_is_zero (uint64_t offset, uint64_t count);

/* P1, P2 of what was handed out; `me' has it now. */
extern void alloc_rig_check_taken (const struct alloc_clusters *c,
                                   uint64_t max, unsigned me);

#endif /* UNIT_ALLOC_RIG_H */
