/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>

#include "base/bytes.h"
#include "corpus.h"

static uint64_t
refcount_table (void)
{
  return get_be64 (b.data + 48);
}

static uint64_t
refcount_block (void)
{
  return get_be64 (b.data + refcount_table ());
}

/* Of 16 bits, in the first block. */
static void
refcount (uint64_t cluster, uint16_t value)
{
  put_be16 (b.data + refcount_block () + 2 * cluster, value);
}

static void
start_repair (unsigned version, unsigned order)
{
  build_start (&b, version, 9, false, COMPRESSION_DEFLATE, 100 * 512);
  corpus_sound (order);
  corpus_some_clusters ();
}

/* Leaks, refcounts that are too low, and flags that are wrong. */
static void
wrong_refcounts (void)
{
  start_repair (3, 4);
  build_finish (&b);
  build_clusters (&b, 2);
  refcount (b.size / 512 - 1, 1);
  refcount (b.size / 512 - 2, 3);
  refcount (b.size / 512 + 2, 1); /* behind the file's end */
  corpus_save ("check", "leaks");

  start_repair (3, 4);
  build_finish (&b);
  refcount (b.l1_offset / 512, 0);
  refcount (build_l2_place (&b, 0) / 512, 0);
  put_be64 (b.data + 72, QCOW2_INCOMPAT_DIRTY);
  put_be64 (b.data + 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
  corpus_save ("check", "refcounts-too-low");

  start_repair (2, 4);
  build_finish (&b);
  b.data[b.l1_offset] ^= 0x80;
  b.data[build_l2_place (&b, 0)] ^= 0x80;
  corpus_save ("check", "flags");

  start_repair (3, 0); /* a refcount can't say more than 1 */
  build_finish (&b);
  build_entry (&b, 20, get_be64 (b.data + build_l2_place (&b, 0)), 0);
  corpus_save ("check", "refcounts-too-narrow");
}

/* All refcounts have to be written again. */
static void
no_refcounts (void)
{
  start_repair (3, 4);
  build_finish (&b);
  put_be64 (b.data + refcount_table (), 0);
  corpus_save ("check", "no-refcount-block");

  start_repair (3, 5);
  build_finish (&b);
  put_be64 (b.data + refcount_table (), b.l1_offset);
  corpus_save ("check", "refcount-block-is-l1");

  start_repair (3, 3);
  build_finish (&b);
  put_be64 (b.data + refcount_table () + 8, 0x123);
  put_be64 (b.data + 72, QCOW2_INCOMPAT_CORRUPT);
  corpus_save ("check", "refcount-block-unaligned");

  start_repair (2, 4);
  build_finish (&b);
  put_be32 (b.data + 56, 0);
  corpus_save ("check", "no-refcount-table");
}

static void
wrong_entries (void)
{
  start_repair (3, 4);
  build_finish (&b);
  build_entry (&b, 10, 0x1234, 0);
  build_entry (&b, 11, UINT64_C (1) << 40, 0);
  build_entry (&b, 12, 0x7e, 0);
  build_entry (&b, 13, QCOW2_L2_COMPRESSED, 0);
  put_be64 (b.data + b.l1_offset + 8, 0xffff00);
  corpus_save ("check", "entries");

  start_repair (2, 4);
  build_entry (&b, 12, 1, 0); /* the zero flag */
  build_finish (&b);
  corpus_save ("check", "v2-zero-flag");

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, 900000);
  build_entry (&b, 0, build_data (&b, 3), 0x00ff000f0000fff0);
  build_entry (&b, 1, 0, UINT32_MAX);
  build_entry (&b, 2, 0, UINT64_C (0xff0000ff000000ff));
  build_finish (&b);
  b.data[build_l2_place (&b, 0) + 8] = 0xff; /* both zero and allocated */
  corpus_save ("check", "subclusters");
}

/* Metadata that is something else as well. */
static void
overlaps (void)
{
  start_repair (3, 4);
  build_entry (&b, 14, b.l1_offset, 0);
  build_finish (&b);
  corpus_save ("check", "l1-is-data");

  start_repair (3, 4);
  put_be64 (b.data + b.l1_offset + 8, build_l2_place (&b, 0));
  build_entry (&b, 2, build_l2_place (&b, 0), 0);
  build_finish (&b);
  b.data[build_l2_place (&b, 4)] ^= 0x80; /* COPIED */
  corpus_save ("check", "l2-is-data-twice");

  start_repair (3, 4);
  build_finish (&b);
  put_be32 (b.data + 56, 8); /* the refcount table reaches into others */
  corpus_save ("check", "refcount-table-too-long");
}

static void
wrong_tables (void)
{
  uint64_t state = 1, at;

  start_repair (3, 4);
  build_snapshot (&b, 100, &state);
  build_entry (&b, 16, build_data (&b, 2), 0);
  build_snapshot (&b, 0, &state);
  build_finish (&b);
  put_be64 (b.data + build_l2_place (&b, 5), 0x1200);
  corpus_save ("check", "snapshots");

  start_repair (3, 4);
  build_snapshot (&b, 0, &state);
  build_finish (&b);
  at = get_be64 (b.data + 64);
  put_be64 (b.data + at, UINT64_C (1) << 30); /* of its L1 table */
  corpus_save ("check", "snapshot-beyond-the-end");

  start_repair (3, 4);
  corpus_bitmap ();
  build_finish (&b);
  put_be64 (b.data + 88, 0xff);
  at = get_be64 (b.data + 136);
  put_be64 (b.data + at, 0x123); /* of the bitmap's table */
  corpus_save ("check", "bitmap");
}

void
corpus_repairable (void)
{
  start_repair (3, 4);
  build_finish (&b);
  corpus_save ("check", "sound");
  wrong_refcounts ();
  no_refcounts ();
  wrong_entries ();
  overlaps ();
  wrong_tables ();
}

/* A repair took as long as all the refcounts that this says there are. */
void
corpus_one_block_for_all (void)
{
  unsigned i;

  build_start (&b, 3, 14, false, COMPRESSION_DEFLATE, 1 << 20);
  build_order (&b, 0);
  build_finish (&b);
  for (i = 1; i < b.cluster_size / 8; ++i)
    put_be64 (b.data + refcount_table () + 8 * i, refcount_block ());
  corpus_save_in ("regressions", "check", "one-refcount-block-for-all");
}
