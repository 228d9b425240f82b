/* SPDX-License-Identifier: BSD-3-Clause */

/* The live disk of an image, or a snapshot, with extents that tell what has changed
 * as one of its persistent bitmaps has it.
 *
 * Bits are read when they are asked for: a page of them and one of the table
 * at a time, so that memory does not depend on the bitmap.  That the bitmap is
 * still valid, and its directory where it was, is looked up in the file after
 * its bits were read: writing with writer_options.invalidate_bitmaps marks it
 * as in use before anything changes, and a repair of damaged bitmaps clears the
 * header's bit before their clusters have another use.
 *
 * That is all that can change under it, but that a bitmap which follows what is
 * written gets more bits, loses those that were marked ahead, and may end; and that
 * the directory moves as others begin (qcow2/write/rotate.h).  The disk's own
 * tables are cached, so the caller must be sure that no other process has written
 * the image since it was opened (storage_keeps_writers_out): what that process has
 * changed would be stale, and its bits not.
 */

#ifndef CORE_QCOW2_BITMAP_DISK_H
#define CORE_QCOW2_BITMAP_DISK_H

#include "qcow2/disk.h"

struct point;

/* A new layer of the live disk of this open file, or of a snapshot of it (NULL: none;
 * it is not kept), to be freed by free, with the extents of the bitmap of this name:
 * what the bitmap has, whenever the snapshot was made.  With a point (or NULL) the
 * disk is as that has it, and so are its bits where they were kept (S6 of
 * qcow2/points.h); elsewhere they are those of the moment when extents are asked
 * for, which include all of the point: while a writer follows, no bit of what has
 * changed is ever taken away.  Once the bitmap has ended that fails, other than with
 * a snapshot, or a point before that.  Its table is read and checked, and everything
 * that it needs of the directory.
 *
 * Returns NULL with the error set: ENOENT if there is no such bitmap;
 * EINVAL if the snapshot has another size than the disk, if the point is not in the
 * bitmap's life (qcow2/bitmap-lives.h), or if the bitmap is in use, of an unknown kind,
 * or malformed (marked as repeated if that was reported before); EIO, ENOMEM.
 */
extern struct layer *bitmap_disk_new (const struct qcow2_file *f,
                                      const char *name,
                                      const struct qcow2_disk *snapshot,
                                      struct point *point);

/* Where the table of its bitmap is. */
extern struct host_off bitmap_disk_table (const struct layer *layer);

#endif /* CORE_QCOW2_BITMAP_DISK_H */
