/* SPDX-License-Identifier: BSD-3-Clause */

/* Which bits of a persistent bitmap stand for what of the disk.  Pure: no
 * storage, no locks, no errors set.  Spec: Bitmap data.
 */

#ifndef CORE_QCOW2_BITMAP_BITS_H
#define CORE_QCOW2_BITMAP_BITS_H

#include <stdint.h>

/* How many bits a bitmap of a disk of this many bytes has. */
extern uint64_t bitmap_nr_bits (uint64_t disk_size, unsigned granularity_bits);

/* How many entries its table must have. */
extern uint64_t bitmap_nr_parts (uint64_t nr_bits, unsigned cluster_bits);

/* How many bits, from the first-th to the end-th (exclusive, > first), are the
 * same as the first of them.  Bit 0 is the least significant one of buf[0].
 */
extern uint64_t bitmap_same (const uint8_t *buf, uint64_t first, uint64_t end);

static inline unsigned
bitmap_bit (const uint8_t *buf, uint64_t i)
{
  return buf[i / 8] >> i % 8 & 1;
}

#endif /* CORE_QCOW2_BITMAP_BITS_H */
