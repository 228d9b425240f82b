/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/compact-parts.h"
#include "manage/tables.h"
#include "qcow2/bitmaps.h"
#include "qcow2/entry.h"

static int
no_memory (const struct compact *c)
{
  error_set (ENOMEM, "%s: out of memory", c->e.storage->name);
  return -1;
}

void *
compact_more (const struct compact *c, void *array, size_t nr, size_t *max,
              size_t size)
{
  void *p = array;

  if (nr == *max) {
    const size_t more = *max * 2 + 64;

    p = realloc (array, more * size);
    if (p == NULL)
      (void) no_memory (c);
    else
      *max = more;
  }
  return p;
}

/* ------------------------------------------------------------------ all tables */

typedef int table_fn (struct compact *c, struct host_off at, uint64_t bytes,
                      void *opaque);

struct visit {
  struct compact *c;
  table_fn *fn;
  void *opaque;
};

static int
visit_bitmap (void *opaque, const struct bitmap_info *b)
{
  const struct visit *v = opaque;
  const uint64_t bytes = b->nr_parts * sizeof (uint64_t);

  return bytes == 0 ? 0 : v->fn (v->c, b->table, bytes, v->opaque);
}

static int
each_l1 (struct compact *c, table_fn *fn, void *opaque)
{
  const struct header *h = &c->e.header;
  uint32_t i;

  if (h->l1_size > 0 &&
      fn (c, h->l1_offset, h->l1_size * sizeof (uint64_t), opaque) == -1)
    return -1;
  for (i = 0; i < c->e.snapshots.nr; ++i) {
    const struct snapshot *sn = &c->e.snapshots.snapshot[i];

    if (sn->l1_size > 0 &&
        fn (c, sn->l1_offset, sn->l1_size * sizeof (uint64_t), opaque) == -1)
      return -1;
  }
  return 0;
}

static int
each_bitmap_table (struct compact *c, table_fn *fn, void *opaque)
{
  struct visit v = { c, fn, opaque };

  return bitmaps_list (c->e.storage, &c->e.header, visit_bitmap, &v);
}

/* --------------------------------------------------------------------- finding */

static int
add_any_row (struct compact *c, uint64_t first, uint64_t nr)
{
  struct compact_run *p = compact_more (c, c->row, c->nr_rows, &c->max_rows,
                                        sizeof *p);

  if (p == NULL)
    return -1;
  c->row = p;
  p[c->nr_rows++] = (struct compact_run) { first, nr };
  return 0;
}

static int
add_row (struct compact *c, uint64_t first, uint64_t nr)
{
  return nr < 2 ? 0 : add_any_row (c, first, nr);
}

/* The LUKS header is not moved: a copy of the key material would be left behind,
 * which later changes of passphrases would not reach.
 */
static int
pin_luks_header (struct compact *c)
{
  const struct header *h = &c->e.header;

  if (h->encryption != ENCRYPTION_LUKS)
    return 0;
  c->pinned = (struct compact_run) {
    h->crypto.v >> h->cluster_bits, edit_clusters (&c->e, h->crypto_bytes)
  };
  return add_any_row (c, c->pinned.first, c->pinned.nr);
}

static int
add_table_row (struct compact *c, struct host_off at, uint64_t bytes,
               void *opaque)
{
  (void) opaque;
  return add_row (c, at.v >> c->e.header.cluster_bits,
                  edit_clusters (&c->e, bytes));
}

static int
add_l2_tables (struct compact *c, struct host_off at, uint64_t bytes,
               void *opaque)
{
  struct tables t;
  size_t i;
  int r = tables_read (&t, c->e.storage, &c->e.format, at,
                       bytes / sizeof (uint64_t));

  (void) opaque;
  for (i = 0; r == 0 && i < t.nr_uses; ++i) {
    struct tables_use *p = compact_more (c, c->l2, c->nr_l2, &c->max_l2,
                                         sizeof *p);

    if (p == NULL)
      r = -1;
    else {
      c->l2 = p;
      p[c->nr_l2++] = t.use[i];
    }
  }
  tables_free (&t);
  return r == -1 ? -1 : add_table_row (c, at, bytes, NULL);
}

/* Compressed clusters that straddle tie the clusters together that they are in.
 */
static int
add_straddling (struct compact *c, const uint64_t *words)
{
  const unsigned bits = c->e.header.cluster_bits;
  const unsigned step = c->e.format.extended_l2 ? 2 : 1;
  const uint64_t nr = c->e.header.cluster_size / sizeof *words;
  uint64_t i;

  for (i = 0; i < nr; i += step) {
    const uint64_t word = be64toh (words[i]);
    struct l2_entry e;
    uint64_t first, last;

    if (!(word & QCOW2_L2_COMPRESSED))
      continue;
    e = entry_decode_l2 (&c->e.format, word, 0);
    if (e.kind != CLUSTER_COMPRESSED)
      continue;
    first = e.host.v >> bits;
    last = (e.host.v + e.compressed_size - 1) >> bits;
    if (add_row (c, first, last - first + 1) == -1)
      return -1;
  }
  return 0;
}

static int
compare_uses (const void *a, const void *b)
{
  const struct tables_use *x = a, *y = b;

  return (x->table > y->table) - (x->table < y->table);
}

static int
compare_rows (const void *a, const void *b)
{
  const struct compact_run *x = a, *y = b;

  return (x->first > y->first) - (x->first < y->first);
}

static int
find_l2 (struct compact *c)
{
  uint64_t *words;
  size_t i, nr = 0;
  int r = 0;

  if (each_l1 (c, add_l2_tables, NULL) == -1)
    return -1;
  if (c->nr_l2 > 1)
    qsort (c->l2, c->nr_l2, sizeof c->l2[0], compare_uses);
  for (i = 0; i < c->nr_l2; ++i)
    if (nr > 0 && c->l2[i].table == c->l2[nr - 1].table)
      c->l2[nr - 1].n += c->l2[i].n;
    else
      c->l2[nr++] = c->l2[i];
  c->nr_l2 = nr;
  words = malloc (c->e.header.cluster_size);
  if (words == NULL)
    return no_memory (c);
  for (i = 0; r == 0 && i < c->nr_l2; ++i) {
    r = storage_read (c->e.storage, words, c->e.header.cluster_size,
                      (struct host_off) { c->l2[i].table });
    if (r == 0)
      r = add_straddling (c, words);
  }
  free (words);
  return r;
}

/* Rows that have clusters in common become one. */
static void
join_rows (struct compact *c)
{
  size_t i, last = 0;

  if (c->nr_rows == 0)
    return;
  qsort (c->row, c->nr_rows, sizeof c->row[0], compare_rows);
  for (i = 1; i < c->nr_rows; ++i) {
    struct compact_run *a = &c->row[last];
    const struct compact_run *b = &c->row[i];

    if (b->first >= a->first + a->nr)
      c->row[++last] = *b;
    else if (b->first + b->nr > a->first + a->nr)
      a->nr = b->first + b->nr - a->first;
  }
  c->nr_rows = last + 1;
}

int
compact_find_tables (struct compact *c)
{
  const struct header *h = &c->e.header;
  const bool bitmaps = h->nr_bitmaps > 0;

  if (find_l2 (c) == -1 || pin_luks_header (c) == -1 ||
      add_row (c, h->refcount_table_offset.v >> h->cluster_bits,
               h->refcount_table_clusters) == -1 ||
      add_table_row (c, h->snapshots_offset, c->e.snapshots.table_bytes,
                     NULL) == -1)
    return -1;
  if (bitmaps &&
      (bitmaps_check_tables (c->e.storage, h) == -1 ||
       add_table_row (c, h->bitmap_directory, h->bitmap_directory_size,
                      NULL) == -1 ||
       each_bitmap_table (c, add_table_row, NULL) == -1))
    return -1;
  join_rows (c);
  return 0;
}

/* --------------------------------------------------------------------- entries */

/* Of a big-endian word with an offset in these bits. */
static void
change_word (const struct compact *c, uint8_t *p, uint64_t mask)
{
  const unsigned bits = c->e.header.cluster_bits;
  const uint64_t word = get_be64 (p), at = word & mask;
  const uint64_t to = compact_to (c, at >> bits) << bits;

  if (at != 0 && to != at >> bits << bits)
    put_be64 (p, (word & ~mask) | to | (at & ((UINT64_C (1) << bits) - 1)));
}

static void
change_words (const struct compact *c, uint8_t *p, uint64_t bytes)
{
  uint64_t i;

  for (i = 0; i < bytes; i += sizeof (uint64_t))
    change_word (c, p + i, QCOW2_ENTRY_OFFSET_MASK);
}

static void
change_refcount_table (const struct compact *c, uint8_t *p, uint64_t bytes)
{
  uint64_t i;

  for (i = 0; i < bytes; i += sizeof (uint64_t))
    change_word (c, p + i, QCOW2_REFCOUNT_BLOCK_MASK);
}

/* The larger clusters are, the fewer bits a compressed one's offset has. */
static void
change_compressed (const struct compact *c, uint8_t *p)
{
  const uint64_t mask =
    (UINT64_C (1) << (62 - (c->e.header.cluster_bits - 8))) - 1;
  const uint64_t word = get_be64 (p);
  const struct compact_piece *piece = compact_find_piece (c, word & mask);

  if (piece != NULL)
    put_be64 (p, (word & ~mask) | piece->to);
  else
    change_word (c, p, mask);
}

static void
change_l2 (const struct compact *c, uint8_t *p, uint64_t bytes)
{
  const unsigned step = c->e.format.extended_l2 ? 16 : 8;
  uint64_t i;

  for (i = 0; i < bytes; i += step)
    if (get_be64 (p + i) & QCOW2_L2_COMPRESSED)
      change_compressed (c, p + i);
    else
      change_word (c, p + i, QCOW2_ENTRY_OFFSET_MASK);
}

static void
change_snapshots (const struct compact *c, uint8_t *p, uint64_t bytes)
{
  uint64_t at = 0, length;

  for (; at + QCOW2_SNAPSHOT_ENTRY_SIZE <= bytes; at += (length + 7) & ~7ULL) {
    uint8_t *entry = p + at;

    length = QCOW2_SNAPSHOT_ENTRY_SIZE +
      get_be32 (entry + QCOW2_SNAPSHOT_FIELD_EXTRA_SIZE) +
      get_be16 (entry + QCOW2_SNAPSHOT_FIELD_ID_SIZE) +
      get_be16 (entry + QCOW2_SNAPSHOT_FIELD_NAME_SIZE);
    change_word (c, entry + QCOW2_SNAPSHOT_FIELD_L1_OFFSET,
                 QCOW2_ENTRY_OFFSET_MASK);
  }
}

static void
change_bitmaps (const struct compact *c, uint8_t *p, uint64_t bytes)
{
  uint64_t at = 0, length;

  for (; at + QCOW2_BITMAP_ENTRY_SIZE <= bytes; at += (length + 7) & ~7ULL) {
    uint8_t *entry = p + at;

    length = QCOW2_BITMAP_ENTRY_SIZE +
      (uint64_t) get_be32 (entry + QCOW2_BITMAP_FIELD_EXTRA_SIZE) +
      get_be16 (entry + QCOW2_BITMAP_FIELD_NAME_SIZE);
    change_word (c, entry + QCOW2_BITMAP_FIELD_TABLE, QCOW2_ENTRY_OFFSET_MASK);
  }
}

/* --------------------------------------------------------------------- writing */

typedef void change_fn (const struct compact *c, uint8_t *p, uint64_t bytes);

struct rewrite {
  change_fn *change;
  enum compact_pass pass;
};

/* One table: all of its copy, or what has changed in it. */
static int
rewrite (struct compact *c, struct host_off at, uint64_t bytes, void *opaque)
{
  const struct rewrite *w = opaque;
  const unsigned bits = c->e.header.cluster_bits;
  const uint64_t whole = edit_clusters (&c->e, bytes) << bits;
  const struct host_off to = { compact_to (c, at.v >> bits) << bits };
  uint8_t *old, *now;
  int r;

  if (bytes == 0 || (to.v != at.v) != (w->pass == COMPACT_COPY))
    return 0;
  old = malloc (2 * whole);
  if (old == NULL)
    return no_memory (c);
  now = old + whole;
  r = storage_read (c->e.storage, old, whole, at);
  if (r == 0) {
    memcpy (now, old, whole);
    w->change (c, now, bytes);
    r = w->pass == COMPACT_COPY
      ? storage_write (c->e.storage, now, whole, to)
      : tables_write_changed (c->e.storage, at, old, now, bytes);
  }
  free (old);
  return r;
}

static int
rewrite_l2 (struct compact *c, enum compact_pass pass)
{
  struct rewrite w = { change_l2, pass };
  size_t i;

  for (i = 0; i < c->nr_l2; ++i)
    if (rewrite (c, (struct host_off) { c->l2[i].table },
                 c->e.header.cluster_size, &w) == -1)
      return -1;
  return 0;
}

static int
rewrite_rest (struct compact *c, enum compact_pass pass)
{
  const struct header *h = &c->e.header;
  struct rewrite words = { change_words, pass };
  struct rewrite table = { change_refcount_table, pass };
  struct rewrite snapshots = { change_snapshots, pass };
  struct rewrite bitmaps = { change_bitmaps, pass };

  if (each_l1 (c, rewrite, &words) == -1 ||
      rewrite (c, h->refcount_table_offset,
               h->refcount_table_clusters << h->cluster_bits, &table) == -1 ||
      rewrite (c, h->snapshots_offset, c->e.snapshots.table_bytes,
               &snapshots) == -1)
    return -1;
  return h->nr_bitmaps == 0 ? 0
    : each_bitmap_table (c, rewrite, &words) == -1 ? -1
    : rewrite (c, h->bitmap_directory, h->bitmap_directory_size, &bitmaps);
}

/* All fields but perhaps one are in the first sector. */
static int
change_header (struct compact *c)
{
  const struct header *h = &c->e.header;
  uint8_t *p = c->e.sector, field[8];

  change_word (c, p + HEADER_L1_TABLE_OFFSET, QCOW2_ENTRY_OFFSET_MASK);
  change_word (c, p + HEADER_REFCOUNT_TABLE_OFFSET, QCOW2_ENTRY_OFFSET_MASK);
  change_word (c, p + HEADER_SNAPSHOTS_OFFSET, QCOW2_ENTRY_OFFSET_MASK);
  if (h->nr_bitmaps == 0)
    return 0;
  if (h->bitmaps_field + sizeof field <= EDIT_SECTOR) {
    change_word (c, p + h->bitmaps_field, QCOW2_ENTRY_OFFSET_MASK);
    return 0;
  }
  put_be64 (field, h->bitmap_directory.v);
  change_word (c, field, QCOW2_ENTRY_OFFSET_MASK);
  return storage_write (c->e.storage, field, sizeof field,
                        (struct host_off) { h->bitmaps_field });
}

int
compact_tables (struct compact *c, enum compact_pass pass)
{
  if (rewrite_l2 (c, pass) == -1 || rewrite_rest (c, pass) == -1)
    return -1;
  return pass == COMPACT_COPY ? 0 : change_header (c);
}
