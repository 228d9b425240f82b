/* SPDX-License-Identifier: BSD-3-Clause */

/* A walk over all L1 tables, and all L2 tables that they refer to.
 *
 * Snapshots share most of their tables.  A table that n entries refer to is
 * read once and its contents count n times; overlapping L1 tables are combined
 * likewise.  So the time depends on the size of the tables on the disk, not on
 * the number of paths to them, which can be huge even in a small file.  L2
 * tables are read in the order of the file, adjacent ones at once.
 *
 * Unaligned tables are followed, since `qemu-img check' does so; but no more
 * than 1000 of them, nor 16 MiB, since they may overlap.
 */

#ifndef CORE_QCOW2_CHECK_WALK_H
#define CORE_QCOW2_CHECK_WALK_H

#include "qcow2/check/tables.h"

/* A visitor is told how many paths lead to an entry, and how many of them
 * begin in the active L1 table.
 */
struct check_visitor {
  /* A piece of L1 tables: words as in check_words_fn.  l1 may change them;
   * those that are not 0 after that are followed.
   */
  int (*l1) (struct check *c, void *opaque, struct host_off place,
             uint8_t *words, size_t bytes, struct check_paths paths);

  /* A piece of the L2 table at this offset: whole entries.  Holes are left
   * out.
   */
  int (*l2) (struct check *c, void *opaque, struct host_off table,
             struct host_off place, uint8_t *words, size_t bytes,
             struct check_paths paths);
  void *opaque;
};

/* Returns -1 with the error set, as the visitor did. */
extern int check_walk (struct check *c, const struct check_ranges *l,
                       const struct check_visitor *v);

#endif /* CORE_QCOW2_CHECK_WALK_H */
