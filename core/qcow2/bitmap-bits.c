/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "qcow2/bitmap-bits.h"

/* Spec: Bitmap table: bits 9 to 55 of an entry.  All others are reserved, but
 * for bit 0 where these are 0.
 */
#define PART_OFFSET_MASK UINT64_C (0x00fffffffffffe00)
#define PART_ALL_ONES UINT64_C (1)

enum bitmap_part
bitmap_decode (uint64_t word, unsigned cluster_bits, struct host_off *host)
{
  const uint64_t within = (UINT64_C (1) << cluster_bits) - 1;

  if (word == 0)
    return BITMAP_PART_CLEAN;
  if (word == PART_ALL_ONES)
    return BITMAP_PART_DIRTY;
  if ((word & ~PART_OFFSET_MASK) != 0 || (word & within) != 0)
    return BITMAP_PART_INVALID;
  host->v = word;
  return BITMAP_PART_CLUSTER;
}

uint64_t
bitmap_encode (enum bitmap_part part, struct host_off host)
{
  if (part == BITMAP_PART_CLUSTER)
    return host.v;
  return part == BITMAP_PART_DIRTY ? PART_ALL_ONES : 0;
}

/* Without the overflow of adding first. */
static uint64_t
shift_up (uint64_t n, unsigned bits)
{
  return (n >> bits) + ((n & ((UINT64_C (1) << bits) - 1)) != 0);
}

uint64_t
bitmap_nr_bits (uint64_t disk_size, unsigned granularity_bits)
{
  return shift_up (disk_size, granularity_bits);
}

uint64_t
bitmap_nr_parts (uint64_t nr_bits, unsigned cluster_bits)
{
  return shift_up (nr_bits, cluster_bits + 3);
}

struct bit_range
bitmap_range (struct guest_off offset, uint64_t count,
              unsigned granularity_bits)
{
  return (struct bit_range) {
    .first = offset.v >> granularity_bits,
    .end = ((offset.v + count - 1) >> granularity_bits) + 1,
  };
}

/* The bits of a range that are in its first byte. */
static uint8_t
first_bits (struct bit_range r)
{
  const unsigned low = r.first % 8;
  const uint64_t n = r.end - r.first;

  return (n >= 8 - low ? 0xff : (1u << (low + n)) - 1) & ~((1u << low) - 1);
}

void
bitmap_set (uint8_t *buf, struct bit_range r)
{
  while (r.first < r.end) {
    if (r.first % 8 == 0 && r.end - r.first >= 8) {
      const uint64_t bytes = (r.end - r.first) / 8;

      memset (buf + r.first / 8, 0xff, bytes);
      r.first += bytes * 8;
    }
    else {
      buf[r.first / 8] |= first_bits (r);
      r.first = (r.first / 8 + 1) * 8;
    }
  }
}

bool
bitmap_all_set (const uint8_t *buf, struct bit_range r)
{
  for (; r.first < r.end; r.first = (r.first / 8 + 1) * 8) {
    const uint8_t wanted = first_bits (r);

    if ((buf[r.first / 8] & wanted) != wanted)
      return false;
  }
  return true;
}
