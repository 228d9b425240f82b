/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "base/bytes.h"
#include "check.h"
#include "follow-rig.h"

#define EXTENSION 112 /* where it is in the header */

const struct follow_kind follow_kinds[BITMAPS] = {
  { 9, QCOW2_BITMAP_AUTO }, { 10, QCOW2_BITMAP_AUTO }, { 9, 0 },
};
uint64_t follow_directory, follow_table[BITMAPS + MORE];
unsigned follow_cluster_bits;
unsigned follow_idle = BITMAP_NEVER_IDLE;

static unsigned
kind_of (unsigned bitmap)
{
  return bitmap < BITMAPS ? bitmap : DISABLED;
}

uint64_t
follow_parts (unsigned bitmap)
{
  const uint64_t bits =
    DISK_BYTES >> follow_kinds[kind_of (bitmap)].granularity_bits;

  return (bits + (8 << follow_cluster_bits) - 1) >> (follow_cluster_bits + 3);
}

/* Parts of the first are in a cluster, clean, dirty and so on; those of the
 * others are clean, and dirty.
 */
static uint64_t
part_word (struct builder *b, unsigned bitmap, uint64_t i)
{
  uint64_t cluster;

  if (bitmap != FINE)
    return bitmap == COARSE ? 0 : QCOW2_BITMAP_ALL_ONES;
  if (i % 3 != 0)
    return i % 3 == 1 ? 0 : QCOW2_BITMAP_ALL_ONES;
  cluster = build_clusters (b, 1);
  b->data[cluster + 5] = 0x81;
  return cluster;
}

static void
add_bitmap (struct builder *b, unsigned bitmap)
{
  const uint64_t nr = follow_parts (bitmap);
  const uint64_t size = b->cluster_size;
  uint64_t i;
  uint8_t *p;

  follow_table[bitmap] = build_clusters (b, (8 * nr + size - 1) / size);
  for (i = 0; i < nr; ++i) {
    const uint64_t word = part_word (b, bitmap, i);

    put_be64 (b->data + follow_table[bitmap] + 8 * i, word);
  }
  p = b->data + follow_directory + bitmap * ENTRY;
  put_be64 (p, follow_table[bitmap]);
  put_be32 (p + 8, nr);
  put_be32 (p + 12, follow_kinds[kind_of (bitmap)].flags);
  p[16] = QCOW2_BITMAP_DIRTY_TRACKING;
  p[17] = follow_kinds[kind_of (bitmap)].granularity_bits;
  put_be16 (p + 18, 1);
  p[24] = 'a' + bitmap;
}

void
follow_build_bitmaps (struct builder *b, unsigned bits, unsigned nr)
{
  unsigned i;

  follow_cluster_bits = bits;
  build_start (b, 3, bits, false, COMPRESSION_DEFLATE, DISK_BYTES);
  for (i = 0; i < 40; ++i) {
    build_l2_place (b, i);
    build_entry (b, i, build_data (b, i + 1), 0);
  }
  follow_directory = build_clusters (b, 1);
  for (i = 0; i < nr; ++i)
    add_bitmap (b, i);
  put_be32 (b->data + EXTENSION, QCOW2_EXT_BITMAPS);
  put_be32 (b->data + EXTENSION + 4, 24);
  put_be32 (b->data + EXTENSION + 8, nr);
  put_be64 (b->data + EXTENSION + 16, nr * ENTRY);
  put_be64 (b->data + EXTENSION + 24, follow_directory);
  put_be64 (b->data + 88, QCOW2_AUTOCLEAR_BITMAPS);
  build_finish (b);
}

void
follow_build (struct builder *b, unsigned bits)
{
  follow_build_bitmaps (b, bits, BITMAPS);
}

void
follow_start (unsigned bits, unsigned pages)
{
  struct builder b;

  follow_build (&b, bits);
  rig_init (&rig, "follow", &b);
  build_free (&b);
  rig.options.bitmap_pages = pages;
  rig.options.bitmap_idle = follow_idle;
  rig_open (&rig);
}

bool
follow_is_set (unsigned bitmap, uint64_t bit)
{
  const uint64_t per_part = UINT64_C (8) << follow_cluster_bits;
  const uint64_t word = get_be64 (rig.disk.data + follow_table[bitmap] +
                                  bit / per_part * 8);
  const uint64_t n = bit % per_part;

  return word == QCOW2_BITMAP_ALL_ONES ||
    (word != 0 && (rig.disk.data[word + n / 8] >> n % 8 & 1));
}

void
follow_read_bits (unsigned bitmap, uint8_t *bits)
{
  const uint64_t nr = DISK_BYTES >> follow_kinds[bitmap].granularity_bits;
  uint64_t i;

  for (i = 0; i < nr; ++i)
    bits[i] = follow_is_set (bitmap, i);
}

void
follow_check_valid (void)
{
  unsigned i;

  CHECK (get_be64 (rig.disk.data + 88) & QCOW2_AUTOCLEAR_BITMAPS);
  for (i = 0; i < BITMAPS; ++i)
    CHECK_EQ (get_be32 (rig.disk.data + follow_directory + i * ENTRY + 12),
              follow_kinds[i].flags);
  CHECK_EQ (get_be64 (rig.disk.data + follow_table[DISABLED]),
            QCOW2_BITMAP_ALL_ONES);
}
