/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of snapshot table entries whose extra data is longer than QEMU reads
 * or, in version 3, too short for the disk's size: a corrected copy of the
 * table replaces it.  Of extra data that is too long the first 1024 bytes are
 * kept, as in QEMU, which knows none that is longer; a missing size becomes
 * the one that all readers assume.
 */

#ifndef CORE_QCOW2_CHECK_REPAIR_SNAPSHOTS_H
#define CORE_QCOW2_CHECK_REPAIR_SNAPSHOTS_H

#include "qcow2/check/repair-state.h"

/* Raise the refcounts of free clusters, write the table there, and then make
 * the header point to it.  All of that is durable on return, and the old table
 * is leaked.  Everything else must have been repaired before.  Returns -1 with
 * the error set; at worst, what was written is leaked then.
 */
extern int repair_snapshots (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_SNAPSHOTS_H */
