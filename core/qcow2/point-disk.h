/* SPDX-License-Identifier: BSD-3-Clause */

/* The live disk of an image, as it is or as it was at a point in time. */

#ifndef CORE_QCOW2_POINT_DISK_H
#define CORE_QCOW2_POINT_DISK_H

#include "qcow2/disk.h"

struct point;

/* Disks that are frozen begin with this. */
struct point_disk {
  struct qcow2_disk disk; /* first: see qcow2/disk.h */
  struct format_ops ops;  /* the live disk's, but for the lookup */
  struct points *points;
  struct point *point;    /* NULL: it is the live disk */
};

/* A layer of the live disk of this open file as this point of its points has it;
 * NULL: as it is.  Once the point has failed, lookups fail with EIO.  The layer
 * has to stay where it is.
 */
extern void point_disk_init (struct point_disk *d, const struct qcow2_file *f,
                             struct point *point);

/* A new one, to be freed by free.  Returns NULL with ENOMEM set. */
extern struct layer *point_disk_new (const struct qcow2_file *f,
                                     struct point *point);

/* Whether what was found of it counts, now that it was looked up.  Returns -1 with
 * the error set to EIO if the point has failed; reported once for each point.
 */
extern int point_disk_check (const struct point_disk *d);

#endif /* CORE_QCOW2_POINT_DISK_H */
