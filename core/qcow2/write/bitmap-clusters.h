/* SPDX-License-Identifier: BSD-3-Clause */

/* Where persistent bitmaps are in the file, so that nothing is written there,
 * and nothing of it is handed out (I7).  Disabled bitmaps stay valid while the
 * disk is written; and whoever removes one, in use or not, lowers the refcounts
 * of its clusters, which must not be anything else by then.
 */

#ifndef CORE_QCOW2_WRITE_BITMAP_CLUSTERS_H
#define CORE_QCOW2_WRITE_BITMAP_CLUSTERS_H

#include "qcow2/header.h"
#include "qcow2/write/alloc.h"
#include "qcow2/write/overlap.h"
#include "storage/storage.h"

/* The most ranges of adjacent clusters: they take 16 bytes each while they are
 * looked for, twice that at most, and as much as overlap.h says later.
 */
#define BITMAP_CLUSTERS_MAX ((size_t) 1 << 20)

/* Add the tables and the bits of all bitmaps, if they are to be believed, as
 * ranges that don't overlap (max at most of each); the directory is not added.
 * Tables with several uses are read once.  *shared: whether a cluster has more
 * than one use among them, whatever its refcount.  Returns -1 with the error set:
 * EINVAL, EIO for damage, bits that the file's end has cut off included;
 * ENOTSUP if there are more; ENOMEM.
 */
extern int bitmap_clusters_add (struct storage *s, const struct header *h,
                                struct overlap *o, size_t max, bool *shared);

/* Check that none of those has a refcount of 0.  Returns -1 with the error set:
 * EIO.
 */
extern int bitmap_clusters_check (struct alloc *a, const struct overlap *o);

#endif /* CORE_QCOW2_WRITE_BITMAP_CLUSTERS_H */
