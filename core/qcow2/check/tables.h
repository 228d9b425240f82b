/* SPDX-License-Identifier: BSD-3-Clause */

/* What the header leads to besides the active L1 table: the snapshot table and
 * persistent bitmaps, and the LUKS header.  Spec: Snapshots, Bitmaps, Full disk
 * encryption header pointer.
 */

#ifndef CORE_QCOW2_CHECK_TABLES_H
#define CORE_QCOW2_CHECK_TABLES_H

#include "qcow2/check/state.h"

/* Find the L1 tables of the disk and of all readable snapshots (65537 at
 * most), and count the references to them and to the snapshot table.  The
 * caller frees l.  Returns -1 with the error set: EINVAL if the snapshot table
 * can't be understood, as it is unknown then what belongs to snapshots.
 */
extern int check_find_l1s (struct check *c, struct check_ranges *l);

/* Count the references to the bitmap directory and everything below it, if
 * there are bitmaps that can be trusted.  Returns -1 with the error set.
 */
extern int check_bitmaps (struct check *c);

/* Count the references to the LUKS header, if there is one.  Returns -1 with
 * the error set.
 */
extern int check_luks_header (struct check *c);

#endif /* CORE_QCOW2_CHECK_TABLES_H */
