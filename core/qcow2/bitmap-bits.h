/* SPDX-License-Identifier: BSD-3-Clause */

/* Which bits of a persistent bitmap stand for a part of the disk, and what the
 * entries of its table say.  Pure: no storage, no locks, no errors set.  Spec:
 * Bitmap table, Bitmap data.
 */

#ifndef CORE_QCOW2_BITMAP_BITS_H
#define CORE_QCOW2_BITMAP_BITS_H

#include <stdbool.h>
#include <stdint.h>

#include "base/offset.h"

enum bitmap_part {
  BITMAP_PART_CLEAN,   /* no cluster: all zeroes */
  BITMAP_PART_DIRTY,   /* no cluster: all ones */
  BITMAP_PART_CLUSTER, /* the bits are in a cluster */
  BITMAP_PART_INVALID,
};

/* Decode an entry of a bitmap table.  *host is set for a cluster, which is
 * aligned, but may be beyond the end of the file.
 */
extern enum bitmap_part bitmap_decode (uint64_t word, unsigned cluster_bits,
                                       struct host_off *host);

/* The opposite.  host is looked at for a cluster only; part is not invalid. */
extern uint64_t bitmap_encode (enum bitmap_part part, struct host_off host);

/* How many bits a bitmap of a disk of this many bytes has. */
extern uint64_t bitmap_nr_bits (uint64_t disk_size, unsigned granularity_bits);

/* How many entries its table must have. */
extern uint64_t bitmap_nr_parts (uint64_t nr_bits, unsigned cluster_bits);

/* Bits [first, end). */
struct bit_range {
  uint64_t first, end;
};

/* The bits for count (> 0) bytes of the disk at offset, whose sum does not
 * overflow: all that they touch, even in part.
 */
extern struct bit_range bitmap_range (struct guest_off offset, uint64_t count,
                                      unsigned granularity_bits);

/* Set bits in buf, whose first byte has bit 0. */
extern void bitmap_set (uint8_t *buf, struct bit_range range);

/* Whether all of them are set. */
extern bool bitmap_all_set (const uint8_t *buf, struct bit_range range);

#endif /* CORE_QCOW2_BITMAP_BITS_H */
