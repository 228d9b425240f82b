/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of the refcounts have in common: refcount.c, which finds and
 * sets them, and
 *
 *   refcount-grow.c   new refcount blocks and tables
 *
 * All of it wants what qcow2/write/refcount.h wants.
 */

#ifndef CORE_QCOW2_WRITE_REFCOUNT_PARTS_H
#define CORE_QCOW2_WRITE_REFCOUNT_PARTS_H

#include <stdbool.h>

#include "qcow2/write/refcount.h"

static inline uint64_t
refcounts_cluster_size (const struct refcounts *r)
{
  return UINT64_C (1) << r->cluster_bits;
}

static inline struct host_off
refcounts_offset (const struct refcounts *r, uint64_t cluster)
{
  return (struct host_off) { cluster << r->cluster_bits };
}

static inline uint64_t
refcounts_entries (const struct refcounts *r)
{
  return r->table_clusters << (r->cluster_bits - 3);
}

static inline struct storage *
refcounts_storage (const struct refcounts *r)
{
  return r->writeback->tables;
}

/* Find the block of this cluster's refcount; 0: there is none.  Returns -1 with
 * the error set.
 */
extern int refcount_find_block (struct refcounts *r, uint64_t cluster,
                                struct host_off *block);

/* Count free clusters from this one on, to the end of its slice of refcounts or
 * until *found, which is 0 again after each one that is in use, is max (it was
 * less).  *cluster is moved to the next one to look at.  Returns -1 with the
 * error set.
 */
extern int refcount_count_free (struct refcounts *r, uint64_t *cluster,
                                uint64_t max, uint64_t *found);

/* Returns -1 with the error set: ENOSPC. */
extern int refcount_none_free (const struct refcounts *r);

/* Make sure that this free cluster has a refcount block.  *taken: the block
 * may have taken the cluster.  Returns -1 with the error set.
 */
extern int refcount_ensure_block (struct refcounts *r, uint64_t cluster,
                                  bool *taken);

#endif /* CORE_QCOW2_WRITE_REFCOUNT_PARTS_H */
