/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/bitmap-bits.c: entries of bitmap tables, sizes, and ranges of bits
 * against a model that goes bit by bit.
 */

#include <config.h>

#include <stdbool.h>
#include <string.h>

#include "check.h"
#include "qcow2/bitmap-bits.h"
#include "random.h"

#define BITS 96

static void
test_entries (void)
{
  static const uint64_t invalid[] = {
    2, 0x100, 0x10001, 0x10002, 0x10100, 0x10200, 0x18000,
    UINT64_C (1) << 56, UINT64_C (1) << 63, (UINT64_C (1) << 63) | 0x10000,
    (UINT64_C (1) << 63) | 1, UINT64_MAX,
  };
  const uint64_t last = UINT64_C (0x00ffffffffff0000);
  struct host_off host = HOST_NONE;
  size_t i;

  CHECK_EQ (bitmap_decode (0, 16, &host), BITMAP_PART_CLEAN);
  CHECK_EQ (bitmap_decode (1, 16, &host), BITMAP_PART_DIRTY);
  for (i = 0; i < sizeof invalid / sizeof invalid[0]; ++i)
    CHECK_EQ (bitmap_decode (invalid[i], 16, &host), BITMAP_PART_INVALID);
  CHECK (host_is_none (host));
  CHECK_EQ (bitmap_decode (last, 16, &host), BITMAP_PART_CLUSTER);
  CHECK_EQ (host.v, last);
  CHECK_EQ (bitmap_decode (0x200, 9, &host), BITMAP_PART_CLUSTER);
  CHECK_EQ (host.v, 0x200);
  CHECK_EQ (bitmap_encode (BITMAP_PART_CLEAN, host), 0);
  CHECK_EQ (bitmap_encode (BITMAP_PART_DIRTY, host), 1);
  CHECK_EQ (bitmap_encode (BITMAP_PART_CLUSTER, host), 0x200);
}

static void
test_sizes (void)
{
  const uint64_t tib = UINT64_C (1) << 40;

  CHECK_EQ (bitmap_nr_bits (0, 16), 0);
  CHECK_EQ (bitmap_nr_bits (65536, 16), 1);
  CHECK_EQ (bitmap_nr_bits (65537, 16), 2);
  CHECK_EQ (bitmap_nr_bits (tib, 9) / 8, 256 << 20);
  CHECK_EQ (bitmap_nr_bits (UINT64_MAX, 31), UINT64_C (1) << 33);
  CHECK_EQ (bitmap_nr_parts (0, 16), 0);
  CHECK_EQ (bitmap_nr_parts (8 * 65536, 16), 1);
  CHECK_EQ (bitmap_nr_parts (8 * 65536 + 1, 16), 2);
  CHECK_EQ (bitmap_nr_parts (UINT64_MAX, 9), UINT64_C (1) << 52);
}

static void
check_range (uint64_t offset, uint64_t count, uint64_t first, uint64_t end)
{
  const struct bit_range r =
    bitmap_range ((struct guest_off) { offset }, count, 9);

  CHECK_EQ (r.first, first);
  CHECK_EQ (r.end, end);
}

static void
test_ranges (void)
{
  check_range (0, 1, 0, 1);
  check_range (511, 1, 0, 1);
  check_range (511, 2, 0, 2);
  check_range (512, 512, 1, 2);
  check_range (512, 513, 1, 3);
  check_range (UINT64_MAX, 1, (UINT64_C (1) << 55) - 1, UINT64_C (1) << 55);
}

static bool
is_set (const uint8_t *buf, unsigned bit)
{
  return buf[bit / 8] >> bit % 8 & 1;
}

/* Each range, of none to all bits, on bits that are random. */
static void
test_bits (void)
{
  uint64_t seed = 1;
  unsigned first, end, i;

  for (first = 0; first <= BITS; ++first) {
    for (end = first; end <= BITS; ++end) {
      const struct bit_range r = { first, end };
      uint8_t old[BITS / 8], new[BITS / 8];

      random_fill (&seed, old, sizeof old);
      memcpy (new, old, sizeof new);
      bitmap_set (new, r);
      for (i = 0; i < BITS; ++i)
        CHECK_EQ (is_set (new, i), is_set (old, i) || (i >= first && i < end));
      CHECK (bitmap_all_set (new, r));
      if (end > first) {
        i = first + random_below (&seed, end - first);
        new[i / 8] &= ~(1u << i % 8);
        CHECK (!bitmap_all_set (new, r));
      }
    }
  }
}

int
main (void)
{
  check_time_limit (60);
  test_entries ();
  test_sizes ();
  test_ranges ();
  test_bits ();
  return check_result ();
}
