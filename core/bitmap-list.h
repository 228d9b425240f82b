/* SPDX-License-Identifier: BSD-3-Clause */

/* The names of an image's persistent bitmaps.  Spec: Bitmap directory. */

#ifndef QCOW2_BITMAP_LIST_H
#define QCOW2_BITMAP_LIST_H

#include <stdbool.h>

#include "header.h"
#include "storage.h"

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
typedef int bitmap_list_fn (void *opaque, const struct bitmap_info *b);
extern int bitmap_list (struct storage *s, const struct header *h,
                        bitmap_list_fn *fn, void *opaque);

#endif /* QCOW2_BITMAP_LIST_H */
