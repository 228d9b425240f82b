/* SPDX-License-Identifier: BSD-3-Clause */

/* What of a disk is allocated and what reads as zeros, through its chain
 * of layers.
 */

#ifndef CORE_DISK_EXTENTS_H
#define CORE_DISK_EXTENTS_H

#include <stdbool.h>

#include "disk/layer.h"

#define EXTENT_HOLE (1U << 0) /* no layer has space for it */
#define EXTENT_ZERO (1U << 1) /* it reads as zeros */

/* Take one extent; returns -1 (with its own error reported) to stop. */
typedef int (*extent_fn) (void *opaque, uint64_t offset, uint64_t length,
                          unsigned flags);

/* Call fn for the extents from offset on, in order and without gaps, until
 * count bytes are covered; they must be within the layer.  Neighbours
 * differ in their flags, and the last ends where count does.  With `one'
 * only the first is found.  A damaged range counts as data, since reading
 * is what tells of the damage.  Returns -1 if fn did, or with the error set
 * if a table can't be read.
 */
extern int layer_extents (const struct layer *layer, uint64_t count,
                          struct guest_off offset, bool one,
                          extent_fn fn, void *opaque);

#endif /* CORE_DISK_EXTENTS_H */
