/* SPDX-License-Identifier: BSD-3-Clause */

/* A disk of an image with extents that tell where it differs from an internal
 * snapshot: found by comparing tables, not data.
 *
 * The same entry in both means the same data, since the same place is read:
 * what a snapshot has is written by nobody, so that what was changed is
 * elsewhere.  Other entries count as a difference, but where both read as zeros,
 * or both leave it to the backing file.  So does what can't be compared for
 * damage, and what lies beyond the end of the snapshot's disk.
 *
 * The live disk may be written meanwhile.  Its tables are looked up, in the
 * cache, after the extents were asked for: a change that was answered before is
 * in them.
 */

#ifndef CORE_QCOW2_CHANGED_DISK_H
#define CORE_QCOW2_CHANGED_DISK_H

#include "qcow2/disk.h"

/* A new layer of the disk `to', to be freed by free, with the extents of what
 * has changed since the snapshot that `from' is the disk of.  Both are disks of
 * one file, and copied.  Returns NULL with the error set: ENOTSUP if data is in an
 * external data file, which snapshots can't keep; ENOMEM.
 */
extern struct layer *changed_disk_new (const struct qcow2_disk *from,
                                       const struct qcow2_disk *to);

struct point;

/* The same of the live disk of an open file as a point in time has it.  Once the
 * point has failed, extents fail with EIO.
 */
extern struct layer *changed_disk_frozen (const struct qcow2_disk *from,
                                          const struct qcow2_file *to,
                                          struct point *point);

#endif /* CORE_QCOW2_CHANGED_DISK_H */
