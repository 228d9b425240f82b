/* SPDX-License-Identifier: BSD-3-Clause */

/* Persistent bitmaps.  They are not updated here, but an image that has some
 * can be written once they are marked as "in use", as a crashed writer leaves
 * them.  Readers then know not to trust them, and they can still be removed.
 *
 * A disabled one (whose `auto' flag is clear) records the changes up to some
 * moment, so writing can't make it wrong: it is left alone.  Spec: Bitmaps
 * extension, Bitmap directory.
 */

#ifndef CORE_QCOW2_BITMAPS_H
#define CORE_QCOW2_BITMAPS_H

#include <stdbool.h>

#include "qcow2/header.h"
#include "storage/storage.h"

/* Whether the image has bitmaps that writing would make wrong: enabled, and
 * not in use.  Returns -1 with the error set: EINVAL if their directory is
 * malformed, EIO.
 */
extern int bitmaps_must_follow (struct storage *s, const struct header *h,
                                bool *any);

/* Check that all tables are within the file.  Returns -1 with the error set:
 * EINVAL, EIO.
 */
extern int bitmaps_check_tables (struct storage *s, const struct header *h);

/* Mark those as in use, durably.  Returns -1 with the error set.  *written,
 * even then, tells whether anything was written, durably or not.
 */
extern int bitmaps_mark_in_use (struct storage *s, const struct header *h,
                                bool *written);

struct bitmap_info {
  char name[1024];
  uint64_t granularity; /* bytes of the disk for each bit */
  bool in_use;          /* left so by a crashed writer: not to be trusted */
  bool automatic;       /* enabled whenever the image is used */
};

/* Call fn for each bitmap, if the directory can be trusted.  Stops when fn
 * returns -1, and returns -1.  Otherwise returns -1 with the error set: EINVAL
 * if the directory is malformed, EIO.
 */
typedef int bitmaps_list_fn (void *opaque, const struct bitmap_info *b);
extern int bitmaps_list (struct storage *s, const struct header *h,
                         bitmaps_list_fn *fn, void *opaque);

#endif /* CORE_QCOW2_BITMAPS_H */
