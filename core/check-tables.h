/* SPDX-License-Identifier: BSD-3-Clause */

/* What else than the active L1 table the header leads to: the snapshot table,
 * and persistent bitmaps.  Spec: Snapshots, Bitmaps.
 */

#ifndef QCOW2_CHECK_TABLES_H
#define QCOW2_CHECK_TABLES_H

#include "check-state.h"

struct check_l1 {
  uint64_t offset;
  uint64_t entries;
  bool active;
};

/* The L1 tables of the disk and of all snapshots: 65537 at most. */
struct check_l1s {
  struct check_l1 *l1;
  size_t nr;
};

/* Find the L1 tables that can be read, and refer to them and to the snapshot
 * table.  Returns -1 with the error set, EINVAL if the snapshot table can't be
 * understood: nobody knows then what belongs to snapshots.
 */
extern int check_find_l1s (struct check *c, struct check_l1s *l);
extern void check_free_l1s (struct check_l1s *l);

/* Refer to the bitmap directory and all that is below it, if there are
 * bitmaps that may be believed.  Returns -1 with the error set.
 */
extern int check_bitmaps (struct check *c);

#endif /* QCOW2_CHECK_TABLES_H */
