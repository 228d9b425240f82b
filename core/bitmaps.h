/* SPDX-License-Identifier: BSD-3-Clause */

/* Persistent bitmaps.  They are not kept up to date here: but an image that
 * has some can be written if they are marked as "in use", which is how a
 * writer that has crashed leaves them.  Everybody then knows better than to
 * believe them, and they can still be removed.  Spec: Bitmaps extension.
 */

#ifndef QCOW2_BITMAPS_H
#define QCOW2_BITMAPS_H

#include <stdbool.h>

#include "header.h"
#include "storage.h"

/* Whether the image has bitmaps that can be believed.  Returns -1 with the
 * error set: EINVAL if their directory is malformed, EIO.
 */
extern int bitmaps_are_consistent (struct storage *s, const struct header *h,
                                   bool *consistent);

/* Mark all as in use, durably.  Returns -1 with the error set; *written tells
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

#endif /* QCOW2_BITMAPS_H */
