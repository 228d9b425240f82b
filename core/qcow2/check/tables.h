/* SPDX-License-Identifier: BSD-3-Clause */

/* What else than the active L1 table the header leads to: the snapshot table,
 * and persistent bitmaps.  Spec: Snapshots, Bitmaps.
 */

#ifndef CORE_QCOW2_CHECK_TABLES_H
#define CORE_QCOW2_CHECK_TABLES_H

#include "qcow2/check/state.h"

/* Find the L1 tables of the disk and of all snapshots that can be read (65537 at
 * most), and refer to them and to the snapshot table.  l is to be freed.  Returns
 * -1 with the error set, EINVAL if the snapshot table can't be understood: nobody
 * knows then what belongs to snapshots.
 */
extern int check_find_l1s (struct check *c, struct check_ranges *l);

/* Refer to the bitmap directory and all that is below it, if there are
 * bitmaps that may be believed.  Returns -1 with the error set.
 */
extern int check_bitmaps (struct check *c);

#endif /* CORE_QCOW2_CHECK_TABLES_H */
