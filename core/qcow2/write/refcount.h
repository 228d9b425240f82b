/* SPDX-License-Identifier: BSD-3-Clause */

/* The refcounts of an image's host clusters.  Spec: Host cluster management.
 *
 * Refcounts are changed in the cache, in CACHE_FIRST order.  What makes them
 * larger is written at once, and synced: new refcount blocks, and a new
 * refcount table.
 *
 * All functions want the lock of who owns this (qcow2/write/alloc.c), and that it is held
 * around all of them: it may be held around I/O of metadata.
 */

#ifndef CORE_QCOW2_WRITE_REFCOUNT_H
#define CORE_QCOW2_WRITE_REFCOUNT_H

#include <stdint.h>

#include "qcow2/header.h"
#include "qcow2/write/overlap.h"
#include "qcow2/write/writeback.h"

struct refcounts {
  struct writeback *writeback;
  struct overlap *overlap;
  unsigned cluster_bits;
  unsigned order;          /* log2 of the bits of a refcount */
  unsigned block_bits;     /* log2 of the refcounts in a block */
  uint64_t ones;           /* a word of refcounts of 1 */
  struct host_off table;
  uint64_t table_clusters;
  uint64_t first_free;     /* number of a cluster: all before are in use */
};

/* Set up from a checked header, and tell overlap of the table and of its
 * blocks.  Returns -1 with the error set: EIO for damage.
 */
extern int refcounts_init (struct refcounts *r, const struct header *h,
                           struct writeback *writeback, struct overlap *overlap);

/* Clusters are numbered from the start of the file.  Find the refcount of
 * this one, and how many from it on, of max at most, have the same.  Returns
 * -1 with the error set.
 */
extern int refcount_run (struct refcounts *r, uint64_t cluster, uint64_t max,
                         uint64_t *refcount, uint64_t *nr);

/* Set the refcount of nr clusters, for all of which there is a refcount
 * block; *batch is the number of the last batch that this is part of.
 * Returns -1 with the error set; some may have been set.
 */
extern int refcount_set (struct refcounts *r, uint64_t cluster, uint64_t nr,
                         uint64_t refcount, uint64_t *batch);

/* The next refcount block, and the first cluster that it describes, from that
 * of *cluster on.  Returns 1, 0 if there is none, or -1 with the error set.
 */
extern int refcount_next_block (struct refcounts *r, uint64_t *cluster,
                                struct host_off *block);

/* Find up to max contiguous clusters that are not in use, and see to it that
 * there is a refcount block for them.  They may lie beyond the end of the
 * file.  Returns -1 with the error set: ENOSPC, EIO.
 */
extern int refcount_find_free (struct refcounts *r, uint64_t max,
                               uint64_t *cluster, uint64_t *nr);

#endif /* CORE_QCOW2_WRITE_REFCOUNT_H */
