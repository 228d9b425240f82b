/* SPDX-License-Identifier: BSD-3-Clause */

/* Where two disks of an image, live or snapshots, have different content. */

#ifndef CORE_MANAGE_SNAPSHOTS_DIFFER_H
#define CORE_MANAGE_SNAPSHOTS_DIFFER_H

#include "manage/tables.h"

typedef int snapshots_differ_fn (void *opaque, uint64_t start,
                                 uint64_t length);

/* Call fn for ranges, in bytes of the disk up to size, outside of which two
 * disks of the same file, and at least as large, read the same: they have the
 * same clusters there.  Returns -1 if fn does, or with the error set: EIO,
 * ENOMEM. Memory: two L2 tables.
 */
extern int snapshots_differ (const struct tables *a, const struct tables *b,
                             uint64_t size, snapshots_differ_fn *fn,
                             void *opaque);

#endif /* CORE_MANAGE_SNAPSHOTS_DIFFER_H */
