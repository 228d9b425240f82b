/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of snapshot table entries whose extra data is longer than QEMU reads,
 * or in version 3 too short to tell the disk's size: the table is written anew
 * as it should be.  Of extra data that is too long the first 1024 bytes stay,
 * as with QEMU, which has none that are longer; a size that is missing becomes
 * what all readers take it for.
 */

#ifndef CORE_QCOW2_CHECK_REPAIR_SNAPSHOTS_H
#define CORE_QCOW2_CHECK_REPAIR_SNAPSHOTS_H

#include "qcow2/check/repair-state.h"

/* Write the table to free clusters, which get their refcounts before, and have
 * the header point to it after that; all of it is durable then, and the old
 * table is leaked.  All else must have been repaired before.  Returns -1 with
 * the error set; what was written is leaked, at most.
 */
extern int repair_snapshots (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_SNAPSHOTS_H */
