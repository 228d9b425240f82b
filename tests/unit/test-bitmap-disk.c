/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/bitmap-disk.c: what a bitmap says of a disk, against a model. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "bitmap-rig.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "random.h"

/* Extents as one byte of flags for each unit of the disk. */
struct painting {
  uint8_t *flags;
  uint64_t unit, next;
  unsigned nr, last;
};

static int
paint (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct painting *p = opaque;

  CHECK_EQ (offset, p->next);
  CHECK (length > 0);
  CHECK (p->nr == 0 || flags != p->last);
  memset (p->flags + offset / p->unit, flags, divide_up (length, p->unit));
  p->next += length;
  p->last = flags;
  p->nr++;
  return 0;
}

/* The extents from at on must be what they are as a whole. */
static void
check_piece (const struct layer *l, const uint8_t *whole, uint64_t unit,
             uint64_t at, uint64_t count)
{
  const uint64_t units = divide_up (l->size, unit);
  struct painting p = { calloc (units, 1), unit, at, 0, 0 };

  CHECK_OK (layer_extents (l, count, (struct guest_off) { at }, false, paint,
                           &p));
  CHECK_EQ (p.next, at + count);
  CHECK (memcmp (p.flags + at / unit, whole + at / unit, count / unit) == 0);
  p.nr = 0;
  p.next = at;
  CHECK_OK (layer_extents (l, count, (struct guest_off) { at }, true, paint,
                           &p));
  CHECK_EQ (p.nr, 1);
  if (p.next < at + count)
    CHECK (whole[p.next / unit] != p.last);
  free (p.flags);
}

/* All of the disk against the bits and the live disk; then pieces of it. */
static void
compare (const struct image *im, const struct layer *l, const uint8_t *bits,
         uint64_t granularity, uint64_t unit)
{
  struct layer *live = image_open_disk (im, "");
  const uint64_t units = divide_up (l->size, unit);
  struct painting own = { calloc (units, 1), unit, 0, 0, 0 };
  struct painting changed = { calloc (units, 1), unit, 0, 0, 0 };
  const struct guest_off start = { 0 };
  unsigned i;
  uint64_t u;

  CHECK_OK (layer_extents (live, l->size, start, false, paint, &own));
  CHECK_OK (layer_extents (l, l->size, start, false, paint, &changed));
  CHECK_EQ (changed.next, l->size);
  for (u = 0; u < units; ++u) {
    const uint64_t bit = u * unit / granularity;
    const unsigned wanted = bits[bit / 8] >> bit % 8 & 1
      ? own.flags[u] & EXTENT_ZERO : EXTENT_HOLE;

    if (changed.flags[u] != wanted) {
      check_failed (__FILE__, __LINE__, "bit %" PRIu64 ": flags %u are not %u",
                    bit, changed.flags[u], wanted);
      break;
    }
  }
  for (i = 0; i < 5; ++i) {
    const uint64_t first = random_below (&bm.seed, units);
    const uint64_t n = 1 + random_below (&bm.seed, units - first);

    if ((first + n) * unit <= l->size)
      check_piece (l, changed.flags, unit, first * unit, n * unit);
  }
  free (own.flags);
  free (changed.flags);
  image_close_disk (live);
}

/* Runs of bits, of all lengths. */
static uint8_t *
random_bits (uint64_t bytes)
{
  uint8_t *bits = calloc (bytes, 1);
  uint64_t at = 0, n;

  while (at < 8 * bytes) {
    const bool set = random_below (&bm.seed, 2);

    n = UINT64_C (1) << random_below (&bm.seed, 16);
    for (; n > 0 && at < 8 * bytes; --n, ++at)
      if (set)
        bits[at / 8] |= 1 << at % 8;
  }
  return bits;
}

static void
check_matrix (unsigned cluster_bits, bool extended, unsigned granularity_bits,
              uint64_t disk_size)
{
  const uint64_t granularity = UINT64_C (1) << granularity_bits;
  const uint64_t unit = 512;
  uint64_t nr_parts, i;
  struct image *im;
  struct builder b;
  struct layer *l;
  uint8_t *bits;

  build_start (&b, 3, cluster_bits, extended, COMPRESSION_DEFLATE, disk_size);
  for (i = 0; i < disk_size >> cluster_bits && i < 50; ++i) {
    if (random_below (&bm.seed, 3) > 0)
      build_entry (&b, i, build_data (&b, i) | QCOW2_ENTRY_COPIED,
                   extended ? random_next (&bm.seed) & UINT32_MAX : 0);
    else if (!extended && random_below (&bm.seed, 2))
      build_entry (&b, i, QCOW2_L2_ZERO, 0);
  }
  nr_parts = divide_up (divide_up (disk_size, granularity),
                        8 * b.cluster_size);
  bits = random_bits (nr_parts << cluster_bits);
  bitmap_rig_build (&b, granularity_bits, bits, nr_parts);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  if (l == NULL)
    check_failed (__FILE__, __LINE__, "%s", error_message ());
  else {
    CHECK_EQ (l->size, disk_size);
    compare (im, l, bits, granularity, unit);
  }
  CHECK_EQ (bm.control.writes, 0);
  bitmap_rig_close (im, l);
  free (bits);
}

static void
test_matrix (void)
{
  check_matrix (9, false, 9, 2 << 20);
  check_matrix (9, false, 9, (3 << 20) + 512 * 77);
  check_matrix (12, false, 9, (20 << 20) + 512 * 3);
  check_matrix (14, true, 10, (60 << 20) + 512);
  check_matrix (16, false, 9, (70 << 20) + 512 * 5);
  check_matrix (16, true, 16, 64 << 20);
  check_matrix (16, false, 31, 64 << 20);
  check_matrix (18, false, 12, (100 << 20) + 512 * 9);
}

/* Reads have nothing to do with it. */
static void
test_read (void)
{
  uint8_t bits[4096] = { 0 }, data[8192], wanted[8192];
  struct image *im;
  struct builder b;
  struct layer *l, *live;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  build_entry (&b, 1, build_data (&b, 7) | QCOW2_ENTRY_COPIED, 0);
  bitmap_rig_build (&b, 16, bits, 1);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  live = image_open_disk (im, "");
  CHECK_OK (layer_read (l, data, sizeof data, (struct guest_off) { 0 }));
  CHECK_OK (layer_read (live, wanted, sizeof data, (struct guest_off) { 0 }));
  CHECK (memcmp (data, wanted, sizeof data) == 0);
  CHECK (data[5000] != 0 || data[5001] != 0);
  image_close_disk (live);
  bitmap_rig_close (im, l);
}

static int
count_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  uint32_t *nr = opaque;

  (void) offset, (void) length, (void) flags;
  ++*nr;
  return 0;
}

/* Every other sector has changed. */
static void
test_many (void)
{
  const uint64_t size = UINT64_C (2) << 30;
  uint8_t *bits = malloc (size / 512 / 8);
  struct builder b;
  struct image *im;
  struct layer *l;
  uint32_t nr = 0;

  if (bits == NULL)
    abort ();
  memset (bits, 0x55, size / 512 / 8);
  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, size);
  bitmap_rig_build (&b, 9, bits, size / 512 / 8 / 65536);
  free (bits);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (layer_extents (l, size, (struct guest_off) { 0 }, false,
                           count_extent, &nr));
  CHECK_EQ (nr, EXTENTS_MAX);
  bitmap_rig_close (im, l);
}

int
main (void)
{
  check_time_limit (100);
  test_matrix ();
  test_read ();
  test_many ();
  return check_result ();
}
