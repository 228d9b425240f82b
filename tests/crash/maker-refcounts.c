/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>

#include "base/bytes.h"
#include "content.h"
#include "maker-image.h"
#include "must-have.h"

/* Refcounts: a count of the references that all tables make, written once
 * everything has its place.
 */
struct counts {
  uint64_t *n;
  uint64_t nr;
};

static void
count (const struct maker *k, struct counts *c, uint64_t offset,
       uint64_t bytes)
{
  uint64_t i;

  for (i = offset >> k->b.cluster_bits;
       bytes > 0 && i <= (offset + bytes - 1) >> k->b.cluster_bits; ++i)
    c->n[i]++;
}

static void
count_entry (const struct maker *k, struct counts *c, uint64_t word)
{
  const unsigned x = 62 - (k->b.cluster_bits - 8);
  const uint64_t offset = word & ((UINT64_C (1) << x) - 1);

  if (word & QCOW2_L2_COMPRESSED)
    count (k, c, offset, ((word & ~QCOW2_L2_COMPRESSED) >> x) * 512 + 512 -
           offset % 512);
  else if (word & QCOW2_ENTRY_OFFSET_MASK)
    count (k, c, word & QCOW2_ENTRY_OFFSET_MASK, k->b.cluster_size);
}

static void
count_tables (const struct maker *k, struct counts *c, uint64_t l1)
{
  const uint64_t clusters = k->per_table;
  uint64_t i, j;

  count (k, c, l1, k->b.l1_size * 8);
  for (i = 0; i < k->b.l1_size; ++i) {
    const uint64_t table =
      get_be64 (k->b.data + l1 + 8 * i) & QCOW2_ENTRY_OFFSET_MASK;

    if (table == 0)
      continue;
    count (k, c, table, k->b.cluster_size);
    for (j = 0; j < clusters; ++j)
      count_entry (k, c, get_be64 (k->b.data + table + (j << k->entry_bits)));
  }
}

static void
count_all (const struct maker *k, struct counts *c)
{
  const uint64_t cluster_size = k->b.cluster_size;
  unsigned i;

  count (k, c, 0, cluster_size);
  count (k, c, k->luks, k->luks_bytes);
  count_tables (k, c, k->b.l1_offset);
  for (i = 0; i < k->m->nr_snapshots; ++i)
    count_tables (k, c, k->snapshot_l1[i]);
  if (k->m->nr_snapshots > 0)
    count (k, c, get_be64 (k->b.data + 64), cluster_size);
  if (k->bitmap) {
    count (k, c, k->bitmap_directory, cluster_size);
    for (i = 0; i < MADE_BITMAPS; ++i)
      count (k, c, k->bitmap_table[i], cluster_size);
    count (k, c, k->bitmap_data, k->bitmap_parts * cluster_size);
  }
}

static void
set_copied_word (const struct maker *k, const struct counts *c,
                 uint64_t place)
{
  const uint64_t word = get_be64 (k->b.data + place);
  const uint64_t host = word & QCOW2_ENTRY_OFFSET_MASK;

  if (host != 0 && !(word & QCOW2_L2_COMPRESSED) &&
      c->n[host >> k->b.cluster_bits] == 1)
    put_be64 (k->b.data + place, word | QCOW2_ENTRY_COPIED);
}

/* In the live disk's tables. */
static void
set_copied (const struct maker *k, const struct counts *c)
{
  uint64_t i, j;

  for (i = 0; i < k->b.l1_size; ++i) {
    const uint64_t place = k->b.l1_offset + 8 * i;
    const uint64_t table =
      get_be64 (k->b.data + place) & QCOW2_ENTRY_OFFSET_MASK;

    set_copied_word (k, c, place);
    for (j = 0; table != 0 && j < k->per_table; ++j)
      set_copied_word (k, c, table + (j << k->entry_bits));
  }
}

static void
put_refcount (struct maker *k, uint64_t table, uint64_t cluster,
              uint64_t refcount)
{
  const unsigned order = k->m->refcount_order;
  const unsigned block_bits = k->b.cluster_bits + 3 - order;
  const uint64_t block = get_be64 (k->b.data + table +
                                   8 * (cluster >> block_bits));
  const uint64_t i = cluster & ((UINT64_C (1) << block_bits) - 1);
  const unsigned bits = 1U << order;
  uint8_t *p = k->b.data + block + (i << order) / 8;
  unsigned n;

  if (bits < 8)
    *p |= refcount << (i << order) % 8;
  else
    for (n = 0; n < bits / 8; ++n)
      p[n] = refcount >> (bits - 8 * (n + 1));
}

/* How many refcount blocks it takes for so many clusters and themselves. */
static uint64_t
blocks_for (const struct maker *k, uint64_t clusters)
{
  const uint64_t per_block =
    k->b.cluster_size * 8 >> k->m->refcount_order;
  uint64_t blocks = 0;

  while (blocks * per_block < clusters + blocks)
    blocks++;
  return blocks;
}

/* Clusters that lead up to the end of the last block, or of the table, but
 * for a few, or all.
 */
static uint64_t
padding_for (const struct maker *k)
{
  const uint64_t per_block = k->b.cluster_size * 8 >> k->m->refcount_order;
  const uint64_t nr = k->b.size >> k->b.cluster_bits;
  const uint64_t used = nr + blocks_for (k, nr);
  uint64_t limit, blocks;

  if (k->brim)
    return k->b.cluster_size / 8 * (per_block - 1) - nr;
  if (k->table_full) /* the last place in it is free */
    limit = (k->b.cluster_size / 8 - 1) * per_block;
  else if (k->full)
    limit = (used + 5 + per_block - 1) / per_block * per_block;
  else
    return 0;
  blocks = limit / per_block;
  return limit - 5 - nr - blocks;
}

/* The padding has no owner: these are leaks from the start. */
static void
make_padding (struct maker *k)
{
  uint64_t at;

  (void) build_clusters (&k->b, 0);
  k->padding = padding_for (k);
  at = build_clusters (&k->b, k->padding);
  content_fill_many (k->b.data + at, k->padding << k->b.cluster_bits,
                     CONTENT_GARBAGE, 2, at / SECTOR);
  k->m->leaks = k->padding;
}

void
maker_refcounts (struct maker *k)
{
  const uint64_t table = get_be64 (k->b.data + 48);
  struct counts c;
  uint64_t nr, blocks, at, i;

  make_padding (k);
  nr = k->b.size >> k->b.cluster_bits;
  blocks = blocks_for (k, nr);
  at = build_clusters (&k->b, blocks);
  if (blocks > k->b.cluster_size / 8)
    abort ();
  c.nr = nr + blocks;
  c.n = must_have (calloc (c.nr, sizeof *c.n));
  count_all (k, &c);
  count (k, &c, table, k->b.cluster_size);
  count (k, &c, at, blocks << k->b.cluster_bits);
  count (k, &c, at - (k->padding << k->b.cluster_bits),
         k->padding << k->b.cluster_bits);
  for (i = 0; i < blocks; ++i)
    put_be64 (k->b.data + table + 8 * i, at + (i << k->b.cluster_bits));
  for (i = 0; i < c.nr; ++i)
    put_refcount (k, table, i, c.n[i]);
  set_copied (k, &c);
  free (c.n);
}
