/* SPDX-License-Identifier: BSD-3-Clause */

/* Where clusters of the guest go in the storage of data.  Tables and compressed
 * clusters are not asked for here: they are always in the storage of tables,
 * where qcow2/write/alloc.h puts them.
 */

#ifndef CORE_QCOW2_WRITE_PLACEMENT_H
#define CORE_QCOW2_WRITE_PLACEMENT_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/write/alloc.h"
#include "storage/storage.h"

/* Host clusters that follow each other. */
struct placed {
  struct host_off host;
  uint64_t nr;
  bool zero;    /* they read as zeros, through the layer's data */
  bool durable; /* so do they after a crash, and no refcount is to be written */
};

/* What is said to be zero is not filled, and what is durable as well needs no
 * order (R4): a placement that can't tell says neither.
 */
struct placement {
  /* Have up to nr (> 0) clusters, at least one, for the guest's clusters from
   * that number on.  Nobody else has them until they are mapped, or given back.
   * The caller is in an epoch, and holds no lock.  Returns -1 with the error
   * set: ENOSPC, EIO, ENOMEM.
   */
  int (*take) (struct placement *p, uint64_t guest, uint64_t nr,
               struct placed *out);

  /* They were not mapped; they may have been written.  The caller is still in
   * the epoch in which it took them.
   */
  void (*give_back) (struct placement *p, struct host_off host, uint64_t nr);

  /* Clusters of the guest are not mapped any more, by a change that was made
   * but may not be durable.  The caller has entered their range.  NULL: they
   * are given up by the change itself (qcow2/write/writeback.h).
   */
  void (*release) (struct placement *p, struct host_off host, uint64_t nr);
};

/* By the allocator.  What that knows to be holes of the storage of tables must
 * be holes of that of data: they are one, or one stands on the other.
 */
struct alloc_placement {
  struct placement placement;
  struct alloc *alloc;
  const struct storage *data;
  bool scattered; /* the clusters that follow one are mostly not asked for */
};

extern void alloc_placement_init (struct alloc_placement *p,
                                  struct alloc *alloc,
                                  const struct storage *data, bool scattered);

/* Where the guest has them, in a file of their own.  That has no refcounts, and
 * no cluster there is anybody else's.  It may hold anything where nothing is
 * mapped, and what is put there is not durable.
 *
 * What is released is punched at once: until the change is durable a crash has
 * it mapped again, and so does whoever had looked it up before; both read zeros
 * from the hole, as by the change.  Where holes don't read as zeros nothing is
 * punched, since they would read garbage.  Later would be too late: the next
 * request maps the same place.
 */
struct identity_placement {
  struct placement placement;
  struct storage *data;
  unsigned cluster_bits;
  bool keep_discarded; /* punch no holes: the data is wanted so, or encrypted */
};

extern void identity_placement_init (struct identity_placement *p,
                                     struct storage *data,
                                     unsigned cluster_bits,
                                     bool keep_discarded);

#endif /* CORE_QCOW2_WRITE_PLACEMENT_H */
