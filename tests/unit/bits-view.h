/* SPDX-License-Identifier: BSD-3-Clause */

/* The persistent bitmaps of an image in memory: read by themselves, sharing nothing
 * with core/ but the masks in qcow2/format.h.
 */

#ifndef UNIT_BITS_VIEW_H
#define UNIT_BITS_VIEW_H

#include <stdbool.h>
#include <stdint.h>

struct bits_view {
  const uint8_t *data; /* of the image */
  uint64_t size;
  unsigned cluster_bits;
  uint32_t flags;
  unsigned granularity_bits;
  uint64_t table, nr_parts;
};

/* How many there are: 0 if the header says that they can't be believed. */
extern unsigned bits_view_count (const uint8_t *data, uint64_t size);

/* False: there is none of this name. */
extern bool bits_view_find (struct bits_view *v, const uint8_t *data,
                            uint64_t size, const char *name);

/* Whether it is valid and enabled, or valid and disabled. */
extern bool bits_view_is_enabled (const struct bits_view *v);
extern bool bits_view_is_disabled (const struct bits_view *v);

/* Whether the granule with this offset of the disk is dirty. */
extern bool bits_view_has (const struct bits_view *v, uint64_t offset);

#endif /* UNIT_BITS_VIEW_H */
