/* SPDX-License-Identifier: BSD-3-Clause */

/* The bits of bitmaps as points in time have them, read as clients do: in the image
 * of follow-rig.h.
 */

#ifndef UNIT_POINT_BITS_H
#define UNIT_POINT_BITS_H

#include "follow-rig.h"

/* Of FINE and COARSE, by granules; 0 or 1. */
struct bits {
  uint8_t of[2][SECTORS];
};

/* The bits of a range are set. */
extern void bits_touch (struct bits *b, uint64_t offset, uint64_t count);

/* What the disk has of both bitmaps: the image has just been made. */
extern void bits_at_first (struct bits *b);

/* The extents of an open export with the bits of FINE or COARSE: one byte for each
 * granule.  Returns -1 with the error set.
 */
extern int bits_read (const struct layer *l, unsigned bitmap, uint8_t *bits);

/* They are these, to the bit; or at least these.  name is for messages. */
extern void bits_check (const struct layer *l, unsigned bitmap,
                        const struct bits *want, bool exactly,
                        const char *name);

/* The same of an export that is opened for it, now/TOKEN/bitmap/NAME: of both. */
extern void bits_check_point (const char *token, const struct bits *want,
                              bool exactly);

#endif /* UNIT_POINT_BITS_H */
