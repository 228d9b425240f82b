/* SPDX-License-Identifier: BSD-3-Clause */

/* An image in memory with one bitmap, open for reading.  One at a time. */

#ifndef UNIT_BITMAP_RIG_H
#define UNIT_BITMAP_RIG_H

#include "build.h"
#include "image.h"

#define EXTENSION 112 /* where it is in the header */
#define AUTO 2
#define AUTOCLEAR 88
#define NAME "b"

struct bitmap_rig {
  struct memory_disk disk;
  struct memory_control control;
  uint64_t directory, table; /* where they are */
  uint64_t seed;             /* of what is chosen at random */
};
extern struct bitmap_rig bm;

static inline uint64_t
divide_up (uint64_t n, uint64_t by)
{
  return (n + by - 1) / by;
}

/* Add a directory with a bitmap of these bits, a number of whole clusters. */
extern void bitmap_rig_build (struct builder *b, unsigned granularity_bits,
                              const uint8_t *bits, uint64_t nr_parts);

/* Finish what was built, free it, and open it. */
extern struct image *bitmap_rig_open (struct builder *b);

/* Close both; either may be NULL. */
extern void bitmap_rig_close (struct image *im, struct layer *l);

#endif /* UNIT_BITMAP_RIG_H */
