/* SPDX-License-Identifier: BSD-3-Clause */

/* Makes the seeds that the corpus grew from, and those regressions that were
 * made by hand: make-corpus DIRECTORY.  Both are committed, as fuzzing needs
 * the same start everywhere; this says where they are from.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bytes.h"
#include "corpus.h"
#include "qed-image.h"
#include "random.h"

/* Its header alone, as the beginning of a file of this size. */
static void
save_header (const char *name)
{
  FILE *f = corpus_create ("corpus", "header", name);
  uint8_t size[8];

  put_be64 (size, b.size);
  corpus_put (f, size, sizeof size);
  corpus_put (f, b.data, 512);
  corpus_end (f);
  build_free (&b);
}

/* ----------------------------------------------------------------- reading */

/* All kinds of entries. */
static void
fill (unsigned tables)
{
  const uint64_t per_table = b.cluster_size / (b.extended ? 16 : 8);
  unsigned i;

  for (i = 0; i < tables; ++i) {
    const uint64_t at = i * per_table;
    uint64_t host;

    build_l2_place (&b, at);
    host = build_data (&b, i + 1);
    build_data (&b, i + 50);
    build_entry (&b, at, host | QCOW2_ENTRY_COPIED, UINT32_MAX);
    build_entry (&b, at + 1, host + b.cluster_size, 0x0f0f00000000f0f0);
    corpus_compressed (at + 3, i + 100);
    corpus_compressed (at + 4, i + 101);
    if (b.version == 3) {
      build_entry (&b, at + 5, 1, UINT64_C (0xffffffff00000000));
      build_entry (&b, at + 6, host | 1, UINT64_C (0xffff00000000ffff));
    }
    build_entry (&b, at + per_table - 1, host, 1);
  }
}

static void
damaged (void)
{
  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  put_be64 (b.data + 72, 3); /* dirty and corrupt */
  build_entry (&b, 1, UINT64_C (1) << 40, 0); /* and it is */
  build_entry (&b, 2, 0x600, 0);
  build_entry (&b, 3, QCOW2_L2_COMPRESSED, 0);
  put_be64 (b.data + b.l1_offset + 8, 0xffff00);
  corpus_save ("map", "v3-512-damaged");
}

/* With refcounts of each width. */
static void
widths (void)
{
  char name[32];
  unsigned order;

  for (order = 0; order <= 6; ++order) {
    build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 20 * 512);
    build_order (&b, order);
    build_entry (&b, 3, build_data (&b, order), 0);
    build_finish (&b);
    snprintf (name, sizeof name, "v3-512-order-%u", order);
    corpus_save ("map", name);
  }
  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 20 * 512);
  build_finish (&b);
  put_be64 (b.data + get_be64 (b.data + 48) + 8, -UINT64_C (512));
  corpus_save ("map", "v3-512-refcount-block-wraps");
}

static void
readable (void)
{
  build_start (&b, 2, 9, false, COMPRESSION_DEFLATE, 100000);
  fill (2);
  corpus_save ("map", "v2-512");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 99 * 1024 + 100);
  fill (3);
  corpus_save ("map", "v3-512");

  build_start (&b, 3, 9, false, COMPRESSION_ZSTD, 1 << 20);
  fill (2);
  corpus_save ("map", "v3-512-zstd");

  build_start (&b, 3, 12, false, COMPRESSION_ZSTD, 3 << 20);
  fill (1);
  corpus_save ("map", "v3-4k-zstd");

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, UINT64_C (1) << 31);
  build_entry (&b, 7, QCOW2_L2_ZERO, 0);
  corpus_save ("map", "v3-4k-large");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  build_backing (&b, "raw");
  fill (1);
  corpus_save ("map", "v3-512-backing");

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, 20 << 20);
  /* Its data is the refcount table's cluster: nobody minds here. */
  build_entry (&b, 0, 0x4000, UINT32_MAX);
  build_entry (&b, 1, 0x4000, 0x00ff000f0000fff0);
  build_entry (&b, 2, 0, UINT64_C (0xff00ffff00000000));
  build_entry (&b, 3, 0x4000, 0);
  corpus_compressed (4, 9);
  corpus_save ("map", "v3-16k-extended");
  damaged ();
  widths ();
}

/* --------------------------------------------------------------- snapshots */

static void
snapshots (void)
{
  const uint64_t l1 = build_clusters (&b, 1);
  unsigned i;

  memcpy (b.data + l1, b.data + b.l1_offset, 8);
  put_be64 (b.data + 64, build_clusters (&b, 0));
  put_be32 (b.data + 60, 3);
  for (i = 0; i < 3; ++i) {
    const uint64_t at = build_bytes (&b, 64);
    uint8_t *p = b.data + at;

    put_be64 (p, i < 2 ? l1 : b.l1_offset);
    put_be32 (p + 8, 1);
    put_be16 (p + 12, 1);
    put_be16 (p + 14, 4);
    put_be32 (p + 16, 1700000000);
    put_be32 (p + 36, 16);
    put_be64 (p + 48, b.disk_size / (i + 1));
    memcpy (p + 56, i == 0 ? "1snap" : "2same", 5);
  }
}

static void
with_snapshots (void)
{
  uint64_t state = 1;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 99 * 1024 + 100);
  fill (3);
  snapshots ();
  corpus_save ("snapshot", "v3-512");

  build_start (&b, 2, 10, false, COMPRESSION_DEFLATE, 1 << 18);
  fill (1);
  snapshots ();
  corpus_save ("snapshot", "v2-1k");

  build_start (&b, 3, 9, false, COMPRESSION_ZSTD, 300 * 512);
  fill (1);
  build_snapshot (&b, 100, &state);
  build_entry (&b, 2, build_data (&b, 7), 0);
  build_snapshot (&b, 50, &state);
  build_finish (&b);
  corpus_save ("snapshot", "v3-512-shared");
}

/* ----------------------------------------------------------------- writing */

static void
save_sound (const char *name)
{
  build_finish (&b);
  corpus_save ("write", name);
}

/* Images with bitmaps, to be read. */
static void
with_bitmaps (void)
{
  uint64_t at;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  corpus_some_clusters ();
  corpus_bitmap ();
  b.data[get_be64 (b.data + 136) + 17] = 9;
  at = get_be64 (b.data + get_be64 (b.data + 136));
  memset (b.data + get_be64 (b.data + at), 0x0f, 20);
  build_finish (&b);
  corpus_save ("bitmap", "v3-512");

  /* A table of several entries, one of which is for ones. */
  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 5 << 20);
  corpus_some_clusters ();
  corpus_bitmap ();
  put_be32 (b.data + get_be64 (b.data + 136) + 8, 4);
  b.data[get_be64 (b.data + 136) + 17] = 9;
  put_be64 (b.data + get_be64 (b.data + get_be64 (b.data + 136)) + 8, 1);
  build_finish (&b);
  corpus_save ("bitmap", "v3-512-parts");

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, 900000);
  build_entry (&b, 0, build_data (&b, 3), 0x00ff000f0000fff0);
  corpus_bitmap ();
  build_finish (&b);
  corpus_save ("bitmap", "v3-16k-extended");
}

static void
writable (void)
{
  uint64_t state = 1;

  build_start (&b, 2, 9, false, COMPRESSION_DEFLATE, 100000);
  corpus_sound (4);
  corpus_some_clusters ();
  save_sound ("v2-512");

  build_start (&b, 3, 9, false, COMPRESSION_ZSTD, 200 * 512);
  corpus_sound (0);
  corpus_some_clusters ();
  save_sound ("v3-512-order-0");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 300 * 512 + 100);
  corpus_sound (6);
  corpus_some_clusters ();
  build_snapshot (&b, 50, &state);
  corpus_some_clusters ();
  build_snapshot (&b, 0, &state);
  save_sound ("v3-512-order-6-snapshots");

  build_start (&b, 3, 10, false, COMPRESSION_DEFLATE, UINT64_C (1) << 30);
  corpus_sound (3);
  corpus_some_clusters ();
  put_be64 (b.data + 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
  put_be64 (b.data + 88, UINT64_C (0x500));
  save_sound ("v3-1k-lazy");

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  corpus_sound (4);
  corpus_some_clusters ();
  build_snapshot (&b, 100, &state);
  save_sound ("v3-4k-snapshot");

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, 900000);
  corpus_sound (1);
  build_entry (&b, 0, build_data (&b, 3), 0x00ff000f0000fff0);
  build_entry (&b, 2, 0, UINT64_C (0xff00ffff00000000));
  save_sound ("v3-16k-extended");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 17);
  corpus_sound (2);
  build_backing (&b, "raw");
  corpus_some_clusters ();
  save_sound ("v3-512-backing");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  corpus_sound (5);
  corpus_some_clusters ();
  corpus_bitmap ();
  save_sound ("v3-512-bitmap");

  build_start (&b, 3, 11, false, COMPRESSION_ZSTD, 1 << 19);
  corpus_sound (4);
  corpus_some_clusters ();
  build_snapshot (&b, 50, &state);
  save_sound ("v3-2k-zstd");
}

/* All clusters that the refcount table has entries for are in use, or leaked:
 * so that it must grow.
 */
static void
full (void)
{
  const unsigned nr_blocks = 512 / 8, per_block = 512 / 8;
  uint64_t blocks;
  unsigned i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 18);
  build_order (&b, 6);
  build_entry (&b, 0, build_data (&b, 1) | QCOW2_ENTRY_COPIED, 0);
  blocks = build_clusters (&b, nr_blocks);
  for (i = 0; i < nr_blocks; ++i)
    put_be64 (b.data + get_be64 (b.data + 48) + 8 * i, blocks + 512 * i);
  for (i = 0; i < nr_blocks * per_block; ++i)
    put_be64 (b.data + blocks + 8 * i, 1);
  corpus_save ("write", "v3-512-full-refcount-table");
}

/* ----------------------------------------------------------------- headers */

static void
headers (void)
{
  build_start (&b, 2, 9, false, COMPRESSION_DEFLATE, 100000);
  save_header ("v2");

  build_start (&b, 3, 9, false, COMPRESSION_ZSTD, 100000);
  save_header ("v3-zstd");

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, 100000);
  save_header ("v3-extended");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  snapshots ();
  save_header ("v3-snapshots");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  build_backing (&b, "raw");
  corpus_extension (128, 0x12345678, 9, "123456789");
  corpus_extension (152, QCOW2_EXT_BITMAPS, 24, "\0\0\0\1\0\0\0\0\0\0\0\0\0\0\0\40"
                    "\0\0\0\0\0\0\2");
  save_header ("v3-backing");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  put_be64 (b.data + 72, 0x60);
  put_be32 (b.data + 112, QCOW2_EXT_FEATURE_NAMES);
  put_be32 (b.data + 116, 96);
  memcpy (b.data + 120, "\0\5name of it", 12);
  memcpy (b.data + 168, "\0\6another", 9);
  save_header ("v3-features");
}

/* ---------------------------------------------------------- compressed data */

/* See target-codec.c. */
static void
save_data (const char *name, enum compression type, unsigned bits,
           const uint8_t *data, size_t size)
{
  FILE *f = corpus_create ("corpus", "codec", name);
  uint8_t plan[8] = { type, bits - 9 };

  put_be16 (plan + 4, (size + 511) / 512 - 1);
  corpus_put (f, plan, sizeof plan);
  corpus_put (f, data, size);
  corpus_end (f);
}

static void
data (void)
{
  static uint8_t plain[1 << 16], packed[2 * BUILD_BOUND (1 << 16)];
  uint64_t state = 1;
  size_t n;

  build_pattern (plain, sizeof plain, 1);
  n = build_deflate (plain, 512, packed, -12, 6, true);
  save_data ("deflate-512", COMPRESSION_DEFLATE, 9, packed, n);
  n = build_deflate (plain, sizeof plain, packed, -15, 9, true);
  save_data ("deflate-64k-window-15", COMPRESSION_DEFLATE, 16, packed, n);
  n = build_deflate (plain, 4096, packed, -12, 1, false);
  save_data ("deflate-4k-not-ended", COMPRESSION_DEFLATE, 12, packed, n);
  n = build_zstd (plain, 512, packed, 3, false);
  save_data ("zstd-512", COMPRESSION_ZSTD, 9, packed, n);
  n = build_zstd (plain, sizeof plain, packed, 19, true);
  save_data ("zstd-64k-checksum", COMPRESSION_ZSTD, 16, packed, n);
  n = build_zstd (plain, 1024, packed, 1, false);
  n += build_zstd (plain + 1024, 3072, packed + n, 9, true);
  save_data ("zstd-4k-two-frames", COMPRESSION_ZSTD, 12, packed, n);

  random_fill (&state, plain, 4096);
  n = build_deflate (plain, 4096, packed, -12, 0, true);
  save_data ("deflate-4k-stored", COMPRESSION_DEFLATE, 12, packed, n);
  n = build_zstd (plain, 4096, packed, 1, false);
  save_data ("zstd-4k-raw", COMPRESSION_ZSTD, 12, packed, n);
  memset (plain, 0, sizeof plain);
  n = build_deflate (plain, sizeof plain, packed, -12, 9, true);
  save_data ("deflate-2m-too-short", COMPRESSION_DEFLATE, 21, packed, n);
  n = build_zstd (plain, sizeof plain, packed, 3, false);
  save_data ("zstd-64k-zeros", COMPRESSION_ZSTD, 16, packed, n);
}

/* --------------------------------------------------------------------- QED */

static struct qed_image q;

static void
save_qed (const char *name)
{
  FILE *f = corpus_create ("corpus", "qed", name);

  corpus_put (f, q.bytes, q.size);
  corpus_end (f);
  qed_image_free (&q);
}

static void
qed_clusters (void)
{
  unsigned i;

  for (i = 0; i < 3; ++i)
    qed_image_data (&q, 2 * i, i + 1);
  qed_image_zero (&q, 1);
}

static void
qed_images (void)
{
  qed_image_start (&q, 4096, 1, 1, 65536, NULL);
  save_qed ("empty");

  qed_image_start (&q, 4096, 1, 1, 65536, NULL);
  qed_clusters ();
  save_qed ("data");

  qed_image_start (&q, 4096, 2, 2, 60000 / 512 * 512, "base");
  qed_clusters ();
  save_qed ("over-raw");

  qed_image_start (&q, 8192, 1, 1, 1 << 20, NULL);
  qed_clusters ();
  qed_image_data (&q, 100, 9);
  qed_image_put (&q, 16, 8, 2);
  (void) qed_image_grow (&q, 1);
  save_qed ("to-be-checked");

  qed_image_start (&q, 4096, 1, 1, 4 << 20, NULL);
  qed_clusters ();
  qed_image_data (&q, 512, 7); /* mapped by a second table */
  qed_image_put (&q, 24, 8, 1);
  qed_image_put (&q, 32, 8, 5);
  save_qed ("unknown-bits");

  qed_image_start (&q, 4096, 1, 1, 65536, NULL);
  qed_clusters ();
  qed_image_put (&q, qed_image_place (&q, 3), 8, q.size);
  qed_image_put (&q, qed_image_place (&q, 5), 8,
                 qed_image_get (q.bytes, qed_image_place (&q, 0), 8));
  qed_image_cut (&q, 700);
  save_qed ("damaged");
}

/* ------------------------------------------------------------- regressions */

/* The check of the write target added to offsets like these, and wrapped. */
static void
near_the_end_of_offsets (void)
{
  uint64_t state = 1, table;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  corpus_some_clusters ();
  build_snapshot (&b, 100, &state);
  build_finish (&b);
  table = get_be64 (b.data + 64);
  put_be64 (b.data + table, UINT64_MAX - 7);
  corpus_save_in ("regressions", "write", "snapshot-l1-offset-wraps");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  corpus_some_clusters ();
  corpus_bitmap ();
  build_finish (&b);
  table = get_be64 (b.data + 136); /* the directory */
  put_be64 (b.data + table, UINT64_MAX - 3);
  corpus_save_in ("regressions", "write", "bitmap-table-offset-wraps");
}

int
main (int argc, char *argv[])
{
  if (argc != 2 || chdir (argv[1]) == -1) {
    fprintf (stderr, "usage: make-corpus DIRECTORY\n");
    return 2;
  }
  headers ();
  readable ();
  with_snapshots ();
  with_bitmaps ();
  writable ();
  full ();
  corpus_repairable ();
  data ();
  qed_images ();
  near_the_end_of_offsets ();
  corpus_one_block_for_all ();
  return 0;
}
