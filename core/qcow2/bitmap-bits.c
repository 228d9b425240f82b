/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "qcow2/bitmap-bits.h"

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

/* Pass over words of bits that are all the same; returns where that ends. */
static uint64_t
skip_words (const uint8_t *buf, uint64_t at, uint64_t end, unsigned bit)
{
  const uint64_t all = bit ? UINT64_MAX : 0;
  uint64_t word;

  while (end - at >= 64) {
    memcpy (&word, buf + at / 8, sizeof word);
    if (word != all)
      break;
    at += 64;
  }
  return at;
}

uint64_t
bitmap_same (const uint8_t *buf, uint64_t first, uint64_t end)
{
  const unsigned bit = bitmap_bit (buf, first);
  uint64_t at = first + 1;

  while (at < end && bitmap_bit (buf, at) == bit) {
    const uint64_t next = at % 8 == 0 ? skip_words (buf, at, end, bit) : at;

    at = next > at ? next : at + 1;
  }
  return at - first;
}
