/* SPDX-License-Identifier: BSD-3-Clause */

/* What a persistent bitmap calls dirty, for those that read all of it. */

#ifndef CORE_MANAGE_BITMAP_RANGES_H
#define CORE_MANAGE_BITMAP_RANGES_H

#include "qcow2/bitmaps.h"

/* Bytes of the disk; no two ranges are adjacent. */
typedef int bitmap_range_fn (void *opaque, uint64_t start, uint64_t length);

/* Call fn for each dirty range of the bitmap of this name, in their order,
 * until it returns -1; then return -1.  Otherwise returns -1 with the error
 * set: ENOENT if there is no such bitmap; EINVAL if it is in use, of an
 * unknown kind, or malformed; EIO for damage, ENOMEM.  Memory: the bitmap's
 * table, and a cluster.
 */
extern int bitmap_ranges (struct storage *s, const struct header *h,
                          const char *name, bitmap_range_fn *fn, void *opaque);

#endif /* CORE_MANAGE_BITMAP_RANGES_H */
