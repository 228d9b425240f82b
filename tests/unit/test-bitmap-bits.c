/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/bitmap-bits.c: sizes, and runs of bits against a model that goes bit by
 * bit.
 */

#include <config.h>

#include <string.h>

#include "check.h"
#include "qcow2/bitmap-bits.h"
#include "random.h"

#define BITS 400

static void
test_sizes (void)
{
  const uint64_t tib = UINT64_C (1) << 40;

  CHECK_EQ (bitmap_nr_bits (0, 16), 0);
  CHECK_EQ (bitmap_nr_bits (65536, 16), 1);
  CHECK_EQ (bitmap_nr_bits (65537, 16), 2);
  CHECK_EQ (bitmap_nr_bits (tib, 9) / 8, 256 << 20);
  CHECK_EQ (bitmap_nr_bits (tib, 0), tib);
  CHECK_EQ (bitmap_nr_bits (tib, 63), 1);
  CHECK_EQ (bitmap_nr_bits (UINT64_MAX, 31), UINT64_C (1) << 33);
  CHECK_EQ (bitmap_nr_parts (0, 16), 0);
  CHECK_EQ (bitmap_nr_parts (8 * 65536, 16), 1);
  CHECK_EQ (bitmap_nr_parts (8 * 65536 + 1, 16), 2);
  CHECK_EQ (bitmap_nr_parts (UINT64_MAX, 9), UINT64_C (1) << 52);
}

static uint64_t
count_same (const uint8_t *buf, uint64_t first, uint64_t end)
{
  uint64_t at = first;

  while (at < end && (buf[at / 8] >> at % 8 & 1) ==
         (buf[first / 8] >> first % 8 & 1))
    at++;
  return at - first;
}

static void
test_runs (void)
{
  uint64_t seed = 1;
  unsigned round;

  for (round = 0; round < 20000; ++round) {
    uint8_t buf[BITS / 8];
    uint64_t first = random_below (&seed, BITS), at;
    const uint64_t end = first + 1 + random_below (&seed, BITS - first);
    unsigned flips = random_below (&seed, 4);

    memset (buf, round % 2 ? 0xff : 0, sizeof buf);
    while (flips-- > 0) {
      at = random_below (&seed, BITS);
      buf[at / 8] ^= 1 << at % 8;
    }
    CHECK_EQ (bitmap_bit (buf, first), buf[first / 8] >> first % 8 & 1);
    CHECK_EQ (bitmap_same (buf, first, end), count_same (buf, first, end));
  }
}

int
main (void)
{
  check_time_limit (60);
  test_sizes ();
  test_runs ();
  return check_result ();
}
