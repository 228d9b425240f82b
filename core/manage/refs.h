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

/* Add n, which is not 0, to the refcounts of nr clusters that are in use.
 * Returns -1 with the error set, and some are changed: EIO if one is 0 before or
 * less than 0 after that; ENOTSUP if one has too few bits; ENOMEM.
 */
extern int refs_change (struct refs *r, uint64_t cluster, uint64_t nr,
                        int64_t n);

/* Write the changed sectors.  Returns -1 with the error set. */
extern int refs_write (struct refs *r);

#endif /* CORE_MANAGE_REFS_H */
