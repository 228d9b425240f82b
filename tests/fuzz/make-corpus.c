/* SPDX-License-Identifier: BSD-3-Clause */

/* Makes the seed corpus: make-corpus DIRECTORY.  The corpus is committed,
 * as fuzzing needs the same start everywhere; this says where it is from.
 */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "build.h"

static struct builder b;

static void
save (const char *name)
{
  FILE *f = fopen (name, "w");

  if (f == NULL || fwrite (b.data, 1, b.size, f) != b.size ||
      fclose (f) != 0) {
    perror (name);
    exit (1);
  }
  build_free (&b);
}

static void
compressed (uint64_t cluster, uint64_t seed)
{
  uint8_t *plain = malloc (b.cluster_size);

  if (plain == NULL)
    abort ();
  build_pattern (plain, b.cluster_size, seed);
  build_compressed (&b, cluster, plain, 20);
  free (plain);
}

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
    compressed (at + 3, i + 100);
    compressed (at + 4, i + 101);
    if (b.version == 3) {
      build_entry (&b, at + 5, 1, UINT64_C (0xffffffff00000000));
      build_entry (&b, at + 6, host | 1, UINT64_C (0xffff00000000ffff));
    }
    build_entry (&b, at + per_table - 1, host, 1);
  }
}

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
extension (uint64_t at, uint32_t type, uint32_t len, const char *data)
{
  put_be32 (b.data + at, type);
  put_be32 (b.data + at + 4, len);
  memcpy (b.data + at + 8, data, len);
}

/* Images whose refcounts are right, so that they can be written. */
static void
sound (unsigned order)
{
  if (b.version == 3)
    build_order (&b, order);
  if (order < 2)
    b.max_sharing = 1;
}

static void
save_sound (const char *name)
{
  build_finish (&b);
  save (name);
}

static void
some_clusters (void)
{
  unsigned i;

  build_l2_place (&b, 0);
  for (i = 0; i < 4; ++i)
    build_entry (&b, 2 * i, build_data (&b, i + 1),
                 b.extended ? UINT32_MAX >> i : 0);
  compressed (1, 5);
  compressed (3, 6);
  if (b.version == 3 && !b.extended) {
    build_entry (&b, 5, 1, 0);
    build_entry (&b, 7, build_data (&b, 9) | 1, 0);
  }
  else if (b.extended)
    build_entry (&b, 5, 0, UINT64_C (0xf0f0f00000000000));
}

static void
writable (void)
{
  uint64_t state = 1;

  build_start (&b, 2, 9, false, COMPRESSION_DEFLATE, 100000);
  sound (4);
  some_clusters ();
  save_sound ("write-v2-512.qcow2");

  build_start (&b, 3, 9, false, COMPRESSION_ZSTD, 200 * 512);
  sound (0);
  some_clusters ();
  save_sound ("write-v3-512-order-0.qcow2");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 300 * 512 + 100);
  sound (6);
  some_clusters ();
  build_snapshot (&b, 50, &state);
  some_clusters ();
  build_snapshot (&b, 0, &state);
  save_sound ("write-v3-512-order-6-snapshots.qcow2");

  build_start (&b, 3, 10, false, COMPRESSION_DEFLATE, UINT64_C (1) << 30);
  sound (3);
  some_clusters ();
  put_be64 (b.data + 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
  put_be64 (b.data + 88, UINT64_C (0x500));
  save_sound ("write-v3-1k-lazy.qcow2");

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  sound (4);
  some_clusters ();
  build_snapshot (&b, 100, &state);
  save_sound ("write-v3-4k-snapshot.qcow2");

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, 900000);
  sound (1);
  build_entry (&b, 0, build_data (&b, 3), 0x00ff000f0000fff0);
  build_entry (&b, 2, 0, UINT64_C (0xff00ffff00000000));
  save_sound ("write-v3-16k-extended.qcow2");
}

int
main (int argc, char *argv[])
{
  if (argc != 2 || chdir (argv[1]) == -1) {
    fprintf (stderr, "usage: make-corpus DIRECTORY\n");
    return 2;
  }
  build_start (&b, 2, 9, false, COMPRESSION_DEFLATE, 100000);
  fill (2);
  save ("v2-512.qcow2");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 99 * 1024 + 100);
  fill (3);
  snapshots ();
  save ("v3-512-snapshots.qcow2");

  build_start (&b, 3, 9, false, COMPRESSION_ZSTD, 1 << 20);
  fill (2);
  save ("v3-512-zstd.qcow2");

  build_start (&b, 2, 10, false, COMPRESSION_DEFLATE, 1 << 18);
  fill (1);
  snapshots ();
  save ("v2-1k-snapshots.qcow2");

  build_start (&b, 3, 12, false, COMPRESSION_ZSTD, 3 << 20);
  fill (1);
  save ("v3-4k-zstd.qcow2");

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, UINT64_C (1) << 31);
  build_entry (&b, 7, QCOW2_L2_ZERO, 0);
  save ("v3-4k-large.qcow2");

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, 20 << 20);
  /* Its data is the refcount table's cluster: nobody minds here. */
  build_entry (&b, 0, 0x4000, UINT32_MAX);
  build_entry (&b, 1, 0x4000, 0x00ff000f0000fff0);
  build_entry (&b, 2, 0, UINT64_C (0xff00ffff00000000));
  build_entry (&b, 3, 0x4000, 0);
  compressed (4, 9);
  save ("v3-16k-extended.qcow2");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  put_be64 (b.data + 72, 3); /* dirty and corrupt */
  build_entry (&b, 1, UINT64_C (1) << 40, 0); /* and it is */
  build_entry (&b, 2, 0x600, 0);
  build_entry (&b, 3, QCOW2_L2_COMPRESSED, 0);
  put_be64 (b.data + b.l1_offset + 8, 0xffff00);
  save ("v3-512-damaged.qcow2");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  extension (112, QCOW2_EXT_BACKING_FORMAT, 3, "raw");
  extension (128, 0x23852875, 9, "123456789");
  put_be64 (b.data + 8, 200);
  put_be32 (b.data + 16, 8);
  memcpy (b.data + 200, "base.raw", 8);
  save ("v3-512-backing.qcow2");

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 16);
  put_be64 (b.data + 72, 0x60);
  put_be32 (b.data + 112, QCOW2_EXT_FEATURE_NAMES);
  put_be32 (b.data + 116, 96);
  memcpy (b.data + 120, "\0\5name of it", 12);
  memcpy (b.data + 168, "\0\6another", 9);
  save ("v3-512-features.qcow2");
  writable ();
  return 0;
}
