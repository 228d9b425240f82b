/* SPDX-License-Identifier: BSD-3-Clause */

/* The refcounts of an image's host clusters.  Spec: Host cluster management.
 *
 * Refcounts are changed in the cache, in CACHE_FIRST order.  New refcount
 * blocks, and a new refcount table, are written and synced at once.
 *
 * The owner (qcow2/write/alloc.c) holds its refcounts_lock around every call;
 * that lock may be held around I/O of metadata.
 */

#ifndef CORE_QCOW2_WRITE_REFCOUNT_H
#define CORE_QCOW2_WRITE_REFCOUNT_H

#include <stddef.h>
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
  uint64_t ones;           /* a word full of refcounts of 1 */
  struct host_off table;
  uint64_t table_clusters;
  uint64_t first_free;     /* cluster number: all before it are in use */
};

/* Set up from a checked header, and add the table and its blocks to overlap.
 * Returns -1 with the error set: EIO for damage.
 */
extern int refcounts_init (struct refcounts *r, const struct header *h,
                           struct writeback *writeback,
                           struct overlap *overlap);

/* Get the refcount of a cluster, numbered from the start of the file, and how
 * many clusters from it on, at most max, are known to have the same.  Returns
 * -1 with the error set.
 */
extern int refcount_run (struct refcounts *r, uint64_t cluster, uint64_t max,
                         uint64_t *refcount, uint64_t *nr);

/* Set the refcount of nr clusters, all of which have a refcount block.  *batch
 * is the number of the last batch with part of the change.  Returns -1 with
 * the error set; some refcounts may be set then.
 */
extern int refcount_set (struct refcounts *r, uint64_t cluster, uint64_t nr,
                         uint64_t refcount, uint64_t *batch);

/* Add one to the refcounts of those of these clusters (at least one, in ascending
 * order, in which one may occur several times) that are in the same slice as the
 * first one's: all or none.  Returns how many they are, or 0 with the error set:
 * EIO for damage, such as a refcount of 0; ENOTSUP if one is at its maximum.
 */
extern size_t refcount_raise (struct refcounts *r, const uint64_t *cluster,
                              size_t nr);

/* Find the first refcount block from that of *cluster on, and set *cluster to
 * the first cluster that it describes.  Returns 1, 0 if there is none, or -1
 * with the error set.
 */
extern int refcount_next_block (struct refcounts *r, uint64_t *cluster,
                                struct host_off *block);

/* Find the first free one of nr clusters; *first is the cluster after them if
 * there is none.  Returns -1 with the error set.
 */
extern int refcount_first_free (struct refcounts *r, uint64_t cluster,
                                uint64_t nr, uint64_t *first);

/* Find up to max contiguous free clusters, and make sure that they have a
 * refcount block.  They may lie beyond the end of the file.  Returns -1 with
 * the error set: ENOSPC, EIO.
 */
extern int refcount_find_free (struct refcounts *r, uint64_t max,
                               uint64_t *cluster, uint64_t *nr);

/* Find exactly nr (> 0) contiguous free clusters, and make sure that they have
 * refcount blocks, wherever those have to lie.  They may lie beyond the end of
 * the file.  May write back and flush.  Returns -1 with the error set: ENOSPC,
 * EIO, ENOMEM.
 */
extern int refcount_find_contiguous (struct refcounts *r, uint64_t nr,
                                     uint64_t *cluster);

#endif /* CORE_QCOW2_WRITE_REFCOUNT_H */
