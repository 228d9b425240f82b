/* SPDX-License-Identifier: BSD-3-Clause */

/* The live disk of an image as it was at a point in time. */

#ifndef CORE_QCOW2_POINT_DISK_H
#define CORE_QCOW2_POINT_DISK_H

#include "qcow2/disk.h"

struct point;

/* A new layer of the live disk of this open file as this point of its points has
 * it, to be freed by free.  Once the point has failed, lookups fail with EIO.
 * Returns NULL with ENOMEM set.
 */
extern struct layer *point_disk_new (const struct qcow2_file *f,
                                     struct point *point);

#endif /* CORE_QCOW2_POINT_DISK_H */
