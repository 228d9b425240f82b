/* SPDX-License-Identifier: BSD-3-Clause */

/* What the name of an export asks for that makes a snapshot. */

#ifndef CORE_IMAGE_TAKE_PARTS_H
#define CORE_IMAGE_TAKE_PARTS_H

#include "image-parts.h"

struct take_asked {
  char *text;       /* owned: what the others point into */
  const char *name; /* of the snapshot */
  struct rotation_wanted bitmaps; /* begins is NULL: no bitmap begins or ends */
};

/* Decode NAME?bitmap=NEW&disable=OLD&granularity=BYTES: see IMAGE_TAKE_PREFIX.
 * Only a name that can be opened as IMAGE_SNAPSHOT_PREFIX afterwards.  Returns -1
 * with the error set: EINVAL, ENOMEM.
 */
extern int image_take_decode (const struct image *im, const char *encoded,
                              struct take_asked *a);
extern void image_take_forget (struct take_asked *a);

/* Whether both ask for the same. */
extern bool image_take_same (const struct take_asked *a,
                             const struct take_asked *b);

#endif /* CORE_IMAGE_TAKE_PARTS_H */
