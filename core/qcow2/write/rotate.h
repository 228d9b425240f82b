/* SPDX-License-Identifier: BSD-3-Clause */

/* A bitmap that begins at the very point of a snapshot which is made (qcow2/write/
 * take.h), and another one that ends there: so that a chain of increments by
 * bitmaps has no gap.
 *
 * Invariants:
 *
 *  B1  From the point on each change is marked in the new bitmap before it happens
 *      (I14), in clusters to which nothing leads yet; and in the old one, too, until
 *      that is disabled on the disk.
 *  B2  One write of a sector has the header lead to the snapshot and to a directory
 *      with the new bitmap, in which the old one is disabled (K3).  All that the
 *      new bitmap has is durable by then.
 *  B3  What is exact of the old one stays what it was at the point, or more, and is
 *      written after that switch only; if the snapshot is not made it is what the
 *      disk says, which has all changes (S4 of qcow2/write/bit-slots.h).
 *  B4  Before that, reading an earlier point by the new bitmap, or a later one by
 *      the old bitmap, is refused from then on (qcow2/bitmap-lives.h).
 *  B5  The old directory is given up after the switch is durable.  If the snapshot
 *      is not made, what the new bitmap has is given up, once no request marks it.
 */

#ifndef CORE_QCOW2_WRITE_ROTATE_H
#define CORE_QCOW2_WRITE_ROTATE_H

#include "qcow2/bitmap-header.h"
#include "qcow2/write/writer.h"

struct rotation_wanted {
  const char *begins;   /* the new bitmap's name */
  const char *ends;     /* the old one's; NULL: none */
  uint64_t granularity; /* of the new one, in bytes; 0: as QEMU chooses it */
};

struct rotation;

/* Before the point: find out whether it can be done, and have space and memory for
 * all of it.  One at a time; no search for leaks is running, until rotation_free.
 * Requests may be.  Returns NULL with the error set: EEXIST, ENOENT by the names;
 * EINVAL for what can't be, or an old one that is not enabled; ENOTSUP for a limit;
 * ENOSPC, ENOMEM; EIO or EINVAL for damage.  Nothing has changed then, other than by
 * failures that stick.
 */
extern struct rotation *rotation_new (struct writer *w,
                                      const struct rotation_wanted *wanted);

/* With the point, while no request is running: B1 holds from here on. */
extern void rotation_begin (struct rotation *r, const struct point *point);

/* What the header is to lead to, with the snapshot: durable by the next flush. */
extern const struct bitmap_header *
rotation_directory (const struct rotation *r);

/* The snapshot was made, or not.  Again no request is running. */
extern void rotation_end (struct rotation *r, bool made);

/* After that, or if it has not begun: write what is exact of the old bitmap, and
 * give up what is not in use any more.  Requests may be running.  The error that is
 * set stays.
 */
extern void rotation_free (struct rotation *r);

#endif /* CORE_QCOW2_WRITE_ROTATE_H */
