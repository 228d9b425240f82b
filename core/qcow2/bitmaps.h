/* SPDX-License-Identifier: BSD-3-Clause */

/* Persistent bitmaps.  They are not kept up to date here: but an image that
 * has some can be written if they are marked as "in use", which is how a
 * writer that has crashed leaves them.  Everybody then knows better than to
 * believe them, and they can still be removed.
 *
 * One that is disabled (its `auto' flag is clear) tells what had changed up to
 * some moment, and stays right whatever is written: it is left alone.  Spec:
 * Bitmaps extension, Bitmap directory.
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

/* Mark all of those as in use, durably.  Returns -1 with the error set; *written tells
 * whether that came to writing something, which may be on the disk or not.
 */
extern int bitmaps_mark_in_use (struct storage *s, const struct header *h,
                                bool *written);

struct bitmap_info {
  char name[1024];
  uint64_t granularity; /* bytes of the disk for each bit */
  bool in_use;          /* a writer has crashed: not to be believed */
  bool automatic;       /* enabled whenever the image is used */
};

/* Call fn for each bitmap, if the directory may be believed.  Stops when fn
 * returns -1, with -1.  Returns -1 with the error set: EINVAL if the directory
 * is malformed, EIO.
 */
typedef int bitmaps_list_fn (void *opaque, const struct bitmap_info *b);
extern int bitmaps_list (struct storage *s, const struct header *h,
                         bitmaps_list_fn *fn, void *opaque);

#endif /* CORE_QCOW2_BITMAPS_H */
