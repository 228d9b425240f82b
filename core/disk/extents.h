/* SPDX-License-Identifier: BSD-3-Clause */

/* What of a disk is allocated and what reads as zeros, through its chain
 * of layers; or what of it has changed.
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

/* Callers have no use for more than nbdkit passes on. */
#define EXTENTS_MAX (UINT32_C (1) << 20)

/* Call fn for the extents from offset on, in order and without gaps, until
 * count bytes are covered; they must be within the layer.  Neighbours
 * differ in their flags, and the last ends where count does, unless there are
 * more than EXTENTS_MAX, of which the first are found.  With `one' only the
 * first is.  A damaged range counts as data, since reading
 * is what tells of the damage.  Returns -1 if fn did, or with the error set
 * if a table can't be read.
 */
extern int layer_extents (const struct layer *layer, uint64_t count,
                          struct guest_off offset, bool one,
                          extent_fn fn, void *opaque);

/* A layer whose find_changes is set has extents that tell where it has changed
 * since some moment.  Where it has not they are holes without being zeros.
 * Where it has they are none, and zeros if it reads as these.  So a client that
 * copies what it finds over an older copy (qemu-img convert -B) leaves out what
 * has not changed; and one that copies the disk to somewhere else reads all but
 * zeros that are really there.  A hole that is zeros would have the first write
 * zeros over what its older copy has.  Clients that take any hole for nothing
 * (qemu-img compare and measure) must be given the live disk.
 */

/* The extents that are being found. */
struct extents;

/* Whether it has changed, and what is read there if find_changes knows. */
enum extent_change {
  CHANGE_NONE,
  CHANGE_DATA,
  CHANGE_ZERO,
  CHANGE_LOOK, /* the layer is looked up for that */
};

/* What find_changes calls, from the first byte wanted on and without gaps, for
 * count (> 0) bytes.  Returns 0 to go on; 1 when no more is wanted; -1 with the
 * error set, or fn's reported.
 */
extern int extents_add (struct extents *e, uint64_t count,
                        enum extent_change change);

/* Whether just the first extent is wanted. */
extern bool extents_want_one (const struct extents *e);

#endif /* CORE_DISK_EXTENTS_H */
