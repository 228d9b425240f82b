/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "bitmap-rig.h"
#include "check.h"
#include "random.h"

struct bitmap_rig bm = { .seed = 1 };

/* A part of the bitmap, from these bits (a cluster of them): as its entry says
 * if all are the same, sometimes.
 */
static uint64_t
build_part (struct builder *b, const uint8_t *bits)
{
  const uint8_t first = bits[0];
  uint64_t i, host;

  for (i = 0; i < b->cluster_size && bits[i] == first; ++i)
    ;
  if (i == b->cluster_size && (first == 0 || first == 0xff) &&
      random_below (&bm.seed, 4) > 0)
    return first & 1;
  host = build_clusters (b, 1);
  memcpy (b->data + host, bits, b->cluster_size);
  return host;
}

void
bitmap_rig_build (struct builder *b, unsigned granularity_bits,
                  const uint8_t *bits, uint64_t nr_parts)
{
  uint64_t i;
  uint8_t *p;

  bm.directory = build_clusters (b, 1);
  bm.table = build_clusters (b, divide_up (nr_parts * 8, b->cluster_size));
  for (i = 0; i < nr_parts; ++i) {
    const uint64_t word = build_part (b, bits + i * b->cluster_size);

    put_be64 (b->data + bm.table + 8 * i, word);
  }
  p = b->data + bm.directory;
  put_be64 (p, bm.table);
  put_be32 (p + 8, nr_parts);
  put_be32 (p + 12, AUTO);
  p[16] = 1;
  p[17] = granularity_bits;
  put_be16 (p + 18, strlen (NAME));
  memcpy (p + 24, NAME, strlen (NAME));
  p = b->data + EXTENSION;
  put_be32 (p, QCOW2_EXT_BITMAPS);
  put_be32 (p + 4, 24);
  put_be32 (p + 8, 1);
  put_be64 (p + 16, 32);
  put_be64 (p + 24, bm.directory);
  put_be64 (b->data + AUTOCLEAR, QCOW2_AUTOCLEAR_BITMAPS);
}

struct image *
bitmap_rig_open (struct builder *b)
{
  build_finish (b);
  memory_disk_init (&bm.disk, b->data, b->size);
  build_free (b);
  memset (&bm.control, 0, sizeof bm.control);
  return image_open_storage (memory_disk_open (&bm.disk, "test", &bm.control),
                             CACHE_MIN_BYTES);
}

void
bitmap_rig_close (struct image *im, struct layer *l)
{
  image_close_disk (l);
  CHECK_OK (image_close (im));
  memory_disk_free (&bm.disk);
}
