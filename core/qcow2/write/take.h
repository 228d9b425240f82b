/* SPDX-License-Identifier: BSD-3-Clause */

/* An internal snapshot of the live disk, made while the guest writes.  Spec:
 * Snapshots.
 *
 * A point in time (qcow2/points.h) holds what the disk was.  Slice by slice of its
 * tables the snapshot gets references of its own to that, and copies of the
 * tables; then the header is switched.
 *
 * Invariants:
 *
 *  K1  What nothing refers to yet is taken before anything is changed: clusters
 *      for all tables.  Each refcount is raised before the snapshot has it.
 *  K2  With the range of some slices entered their entries are read, as the point
 *      has them; what they refer to is raised; and the live entries that refer to
 *      the same lose COPIED.  From then on nothing that the snapshot has there is
 *      written in place, whatever becomes of the point.
 *  K3  The header is switched, by one sector, after all of that is durable, and if
 *      the point has not failed before.  What the guest had written before the
 *      point is durable then, too.
 *  K4  While refcounts and COPIED flags may disagree, an image that has a dirty
 *      bit is dirty: durably, before the first is raised.
 *  K5  The old snapshot table is given up after the switch is durable.
 *  K6  A take that fails, other than by what sticks (I10), gives up all that it has
 *      raised and taken; when that is done, sets those COPIED flags again that it
 *      cleared, where the refcount is 1; and then the image is not dirty any
 *      more.  Where there is no space that is tried again, but for the last flush.
 *      If it can't be done the image stays dirty: until the writer's end, if that
 *      can lower refcounts or write flags and nothing else is missing, or until a
 *      repair.
 */

#ifndef CORE_QCOW2_WRITE_TAKE_H
#define CORE_QCOW2_WRITE_TAKE_H

#include <time.h>

#include "qcow2/bitmap-header.h"
#include "qcow2/points.h"
#include "qcow2/snapshot.h"
#include "qcow2/write/writer.h"

/* Make a snapshot of this name of the disk as the point has it, which exists until
 * this has returned.  snapshots are those that the image has; made is set to
 * them and the new one, which is the caller's.  One at a time; no search for leaks
 * is running (qcow2/write/leaks.h).  With it the header leads to a directory of
 * bitmaps, unless bitmaps is NULL (qcow2/write/rotate.h).  The caller holds nothing,
 * and is in no epoch.
 *
 * Returns -1 with the error set.  ENOTSUP: a limit; ENOSPC; ENOMEM; EIO: the point
 * could not be kept, damage, or a failure that sticks.  All but the last leave
 * the image as it was.
 */
extern int take_snapshot (struct writer *w, const struct point *point,
                          const char *name, const struct timespec *date,
                          const struct snapshots *snapshots,
                          const struct bitmap_header *bitmaps,
                          struct snapshots *made);

#endif /* CORE_QCOW2_WRITE_TAKE_H */
