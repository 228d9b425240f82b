/* SPDX-License-Identifier: BSD-3-Clause */

/* Refcounts that are changed in bulk: in memory first, so that nothing is
 * written if one of them can't have its new value.  Spec: Host cluster
 * management.
 *
 * Memory: the refcount table, and the blocks of the clusters that were asked
 * for, each as large as in the file.
 *
 * One thread, no locks.
 */

#ifndef CORE_MANAGE_REFS_H
#define CORE_MANAGE_REFS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/header.h"
#include "storage/storage.h"

struct refs_block; /* see manage/refs.c */

struct refs_run {
  uint64_t first, nr; /* clusters, numbered from the file's start */
};

struct refs {
  struct storage *storage;
  struct host_off at;  /* of the table */
  unsigned order;      /* log2 of the bits of a refcount */
  unsigned cluster_bits;
  unsigned block_bits; /* log2 of the refcounts in a block */
  uint64_t entries;
  uint64_t *table;     /* as it is on the disk */
  struct refs_block **block; /* NULL: not read yet */
  bool *is_hole;       /* that counts while it was not read */

  /* Clusters whose refcount has become 0. */
  struct refs_run *freed;
  size_t nr_freed, max_freed;
};

/* Read the table.  Returns -1 with the error set. */
extern int refs_open (struct refs *r, struct storage *s,
                      const struct header *h);
extern void refs_close (struct refs *r); /* that refs_open has failed for, too */

/* Get the refcount of a cluster.  Returns -1 with the error set: EIO if it has
 * none, ENOMEM.
 */
extern int refs_get (struct refs *r, uint64_t cluster, uint64_t *refcount);

/* The same where it may have none, which is 0. */
extern int refs_look (struct refs *r, uint64_t cluster, uint64_t *refcount);

/* Add n, which is not 0, to the refcounts of nr clusters that are in use.
 * Returns -1 with the error set, and some are changed: EIO if one is 0 before or
 * less than 0 after that; ENOTSUP if one has too few bits; ENOMEM.
 */
extern int refs_change (struct refs *r, uint64_t cluster, uint64_t nr,
                        int64_t n);

/* Tell whether a cluster is free and has a refcount that can be raised: not where
 * there is no block.  Returns -1 with the error set.
 */
extern int refs_is_free (struct refs *r, uint64_t cluster, bool *free);

/* Give a free cluster this refcount, which another one has.  Returns -1 with the
 * error set.
 */
extern int refs_claim (struct refs *r, uint64_t cluster, uint64_t refcount);

/* The last cluster below this one that is in use, or 0.  Returns -1 with the
 * error set.
 */
extern int refs_last_used (struct refs *r, uint64_t below, uint64_t *cluster);

/* Find the first cluster that is in use from *cluster on, below end, and its
 * refcount.  *cluster is end if there is none.  Returns -1 with the error set.
 */
extern int refs_next_used (struct refs *r, uint64_t end, uint64_t *cluster,
                           uint64_t *refcount);

/* Tell in *nr how many clusters from this one on are in use.  Returns -1 with the
 * error set.
 */
extern int refs_count_used (struct refs *r, uint64_t first, uint64_t *nr);

/* Write the blocks for whose clusters `to' gives other places there, as a whole:
 * changes are written there from now on, too.  Returns -1 with the error set.
 */
typedef uint64_t refs_moved_fn (const void *opaque, uint64_t cluster);
extern int refs_move_blocks (struct refs *r, refs_moved_fn *to,
                             const void *opaque);

/* Find a block without refcounts but for its own, if it has that, from *index in
 * the table on: r->entries if there is none.  *own: it has.  Returns -1 with the
 * error set.
 */
extern int refs_find_empty (struct refs *r, uint64_t *index, bool *own);

/* Write the changed sectors.  Returns -1 with the error set. */
extern int refs_write (struct refs *r);

#endif /* CORE_MANAGE_REFS_H */
