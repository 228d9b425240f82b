/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "cache/tables.h"
#include "qcow2/entry.h"
#include "qcow2/write/refcount.h"

static inline uint64_t
cluster_size (const struct refcounts *r)
{
  return UINT64_C (1) << r->cluster_bits;
}

static inline struct host_off
cluster_offset (const struct refcounts *r, uint64_t cluster)
{
  return (struct host_off) { cluster << r->cluster_bits };
}

static inline uint64_t
table_entries (const struct refcounts *r)
{
  return r->table_clusters << (r->cluster_bits - 3);
}

static inline struct storage *
storage (const struct refcounts *r)
{
  return r->writeback->tables;
}

/* ------------------------------------------------------------------ tables */

/* Words of the slice that holds the word at offset. */
#define SLICE_WORDS (CACHE_SLOT_BYTES / 8)

struct slice {
  struct host_off at;
  unsigned nr;
  uint64_t word[SLICE_WORDS];
};

/* Read the slice of a table that contains this offset.  The copy stays valid,
 * since only the holder of the lock changes refcounts.
 */
static int
read_slice (struct refcounts *r, struct host_off offset, struct slice *s)
{
  struct writeback *c = r->writeback;
  struct cache_ref ref;
  unsigned i;

  s->at.v = offset.v / c->slice_bytes * c->slice_bytes;
  s->nr = c->slice_bytes / sizeof s->word[0];
  do {
    if (cache_get (c->cache, c->tables, c->id, s->at, c->slice_bytes, 1,
                   &ref) == -1)
      return -1;
    for (i = 0; i < s->nr; ++i)
      s->word[i] = cache_word (&ref, i);
  } while (!cache_still_valid (&ref));
  return 0;
}

/* Check an entry of the refcount table, at this index. */
static int
check_block (const struct refcounts *r, uint64_t index, uint64_t word)
{
  const uint64_t block = word & QCOW2_REFCOUNT_BLOCK_MASK;
  const char *why = NULL;

  if (block % cluster_size (r) != 0)
    why = "the block's offset is not a multiple of the cluster size";
  else if (block >= atomic_load (&storage (r)->size))
    why = "the block is beyond the end of the file";
  if (why == NULL)
    return 0;
  error_set (EIO, "%s: damaged: refcount table entry 0x%016" PRIx64
             " at offset 0x%" PRIx64 ": %s", storage (r)->name, word,
             r->table.v + index * sizeof word, why);
  return -1;
}

/* Find the block of this cluster's refcount; 0: there is none. */
static int
find_block (struct refcounts *r, uint64_t cluster, struct host_off *block)
{
  const uint64_t index = cluster >> r->block_bits;
  const struct host_off place = { r->table.v + index * sizeof (uint64_t) };
  struct writeback *c = r->writeback;
  struct cache_ref ref;
  uint64_t word;

  block->v = 0;
  if (index >= table_entries (r))
    return 0;
  do {
    const struct host_off slice = { place.v / c->slice_bytes * c->slice_bytes };

    if (cache_get (c->cache, c->tables, c->id, slice, c->slice_bytes, 1,
                   &ref) == -1)
      return -1;
    word = cache_word (&ref, (place.v - slice.v) / sizeof word);
  } while (!cache_still_valid (&ref));
  if (check_block (r, index, word) == -1)
    return -1;
  block->v = word & QCOW2_REFCOUNT_BLOCK_MASK;
  return 0;
}

int
refcounts_init (struct refcounts *r, const struct header *h,
                struct writeback *writeback, struct overlap *overlap)
{
  const uint64_t per_slice = writeback->slice_bytes / sizeof (uint64_t);
  struct slice s;
  uint64_t index = 0, ask_from = 0;
  bool empty = false; /* the slice before was: a hole may follow */
  unsigned i;

  *r = (struct refcounts) {
    .writeback = writeback,
    .overlap = overlap,
    .cluster_bits = h->cluster_bits,
    .order = h->refcount_order,
    .block_bits = h->cluster_bits + 3 - h->refcount_order,
    .ones = h->refcount_order == 6 ? 1
      : UINT64_MAX / ((UINT64_C (1) << (1U << h->refcount_order)) - 1),
    .table = h->refcount_table_offset,
    .table_clusters = h->refcount_table_clusters,
  };
  if (overlap_add (overlap, storage (r)->name, r->table, r->table_clusters,
                   METADATA_REFCOUNT_TABLE) == -1)
    return -1;
  while (index < table_entries (r)) {
    const struct host_off at = { r->table.v + index * sizeof (uint64_t) };
    /* Nothing is in the cache yet that is not in the storage. */
    const bool ask = empty && index >= ask_from;
    const uint64_t hole = ask ? storage_hole (storage (r), at) : 0;

    if (hole >= writeback->slice_bytes) {
      index += hole / writeback->slice_bytes * per_slice;
      continue;
    }
    if (ask)
      ask_from = index + 16 * per_slice;
    if (read_slice (r, at, &s) == -1)
      return -1;
    empty = true;
    for (i = 0; i < s.nr; ++i, ++index) {
      const struct host_off block = {
        s.word[i] & QCOW2_REFCOUNT_BLOCK_MASK
      };

      if (block.v == 0)
        continue;
      empty = false;
      if (check_block (r, index, s.word[i]) == -1 ||
          overlap_add (overlap, storage (r)->name, block, 1,
                       METADATA_REFCOUNT_BLOCK) == -1)
        return -1;
    }
  }
  return 0;
}

/* --------------------------------------------------------------- refcounts */

/* The i-th refcount of a slice of a block. */
static inline uint64_t
get (const struct refcounts *r, const struct slice *s, uint64_t i)
{
  return entry_get_refcount (r->order, s->word[(i << r->order) / 64], i);
}

/* Read the slice with the refcount of this cluster: *i is its index there,
 * *in_slice the number of refcounts in a slice.
 */
static int
read_refcounts (struct refcounts *r, struct host_off block, uint64_t cluster,
                struct slice *s, uint64_t *i, uint64_t *in_slice)
{
  const uint64_t in_block = cluster & ((UINT64_C (1) << r->block_bits) - 1);
  const struct host_off at = {
    block.v + (in_block << r->order) / 64 * sizeof (uint64_t)
  };

  *in_slice = (uint64_t) r->writeback->slice_bytes * 8 >> r->order;
  *i = in_block % *in_slice;
  return read_slice (r, at, s);
}

int
refcount_run (struct refcounts *r, uint64_t cluster, uint64_t max,
              uint64_t *refcount, uint64_t *nr)
{
  const uint64_t per_block = UINT64_C (1) << r->block_bits;
  struct host_off block;
  struct slice s;
  uint64_t i, n, in_slice;

  if (find_block (r, cluster, &block) == -1)
    return -1;
  if (block.v == 0) {
    n = per_block - cluster % per_block;
    *refcount = 0;
    *nr = n < max ? n : max;
    return 0;
  }
  if (read_refcounts (r, block, cluster, &s, &i, &in_slice) == -1)
    return -1;
  *refcount = get (r, &s, i);
  for (n = 1; n < max && i + n < in_slice; ++n) {
    if (get (r, &s, i + n) != *refcount)
      break;
  }
  *nr = n;
  return 0;
}

int
refcount_next_block (struct refcounts *r, uint64_t *cluster,
                     struct host_off *block)
{
  uint64_t index;

  for (index = *cluster >> r->block_bits; index < table_entries (r);
       ++index) {
    *cluster = index << r->block_bits;
    if (find_block (r, *cluster, block) == -1)
      return -1;
    if (block->v != 0)
      return 1;
  }
  return 0;
}

/* Whether one of the refcounts in a word is 0, whatever their width. */
static inline bool
has_zero (const struct refcounts *r, uint64_t word)
{
  unsigned bits;

  for (bits = 1; bits < 1U << r->order; bits *= 2)
    word |= word >> bits;
  /* The lowest bit of each refcount is now set if any of its bits was. */
  return (word & r->ones) != r->ones;
}

/* Find the first free cluster from this one on, or else the first one of the
 * next slice of refcounts.  Skips whole words at once, since an image can have
 * enormous numbers of nonzero refcounts.
 */
static int
skip_used (struct refcounts *r, uint64_t cluster, uint64_t *next)
{
  const unsigned per_word_bits = 6 - r->order;
  struct host_off block;
  uint64_t i, in_slice, start;
  struct slice s;

  *next = cluster;
  if (find_block (r, cluster, &block) == -1)
    return -1;
  if (block.v == 0)
    return 0;
  if (read_refcounts (r, block, cluster, &s, &i, &in_slice) == -1)
    return -1;
  start = cluster - i;
  while (i < in_slice && get (r, &s, i) != 0) {
    i++;
    while (i % (UINT64_C (1) << per_word_bits) == 0 && i < in_slice &&
           !has_zero (r, s.word[i >> per_word_bits]))
      i += UINT64_C (1) << per_word_bits;
  }
  *next = start + i;
  return 0;
}

/* Set those refcounts that are in the first slice.  Returns how many, or 0
 * with the error set.
 */
static uint64_t
set_in_slice (struct refcounts *r, uint64_t cluster, uint64_t nr,
              uint64_t refcount, uint64_t *batch)
{
  struct change ch = { .order = CACHE_FIRST };
  struct host_off block;
  struct slice s;
  uint64_t i, n, in_slice, last_word;

  if (find_block (r, cluster, &block) == -1)
    return 0;
  assert (block.v != 0);
  if (read_refcounts (r, block, cluster, &s, &i, &in_slice) == -1)
    return 0;
  if (nr > in_slice - i)
    nr = in_slice - i;
  for (n = 0; n < nr; ++n) {
    uint64_t *word = &s.word[((i + n) << r->order) / 64];

    *word = entry_put_refcount (r->order, *word, i + n, refcount);
  }
  ch.slice = s.at;
  ch.first = (i << r->order) / 64;
  last_word = ((i + nr - 1) << r->order) / 64;
  ch.nr = last_word - ch.first + 1;
  ch.words = &s.word[ch.first];
  return writeback_change (r->writeback, &ch, batch) == -1 ? 0 : nr;
}

int
refcount_set (struct refcounts *r, uint64_t cluster, uint64_t nr,
              uint64_t refcount, uint64_t *batch)
{
  assert (refcount <= entry_refcount_max (r->order));
  while (nr > 0) {
    const uint64_t done = set_in_slice (r, cluster, nr, refcount, batch);

    if (done == 0)
      return -1;
    if (refcount == 0 && cluster < r->first_free)
      r->first_free = cluster;
    cluster += done;
    nr -= done;
  }
  return 0;
}

/* ------------------------------------------------------------------ growth */

/* Extend the file to the end of this cluster. */
static int
reach (struct refcounts *r, uint64_t cluster)
{
  const uint64_t size = atomic_load (&storage (r)->size);
  const uint64_t end = cluster_offset (r, cluster + 1).v;

  return end <= size ? 0 : storage_resize (storage (r), end);
}

/* Flush, since what follows must come after it.  A failure sticks. */
static int
barrier (struct refcounts *r)
{
  if (storage_flush (storage (r)) == 0)
    return 0;
  writeback_fail (r->writeback);
  return -1;
}

/* Clusters become metadata.  If they are metadata already, the refcounts that
 * call them free are wrong.
 */
static int
add_metadata (struct refcounts *r, uint64_t cluster, uint64_t nr,
              enum metadata kind)
{
  if (overlap_add (r->overlap, storage (r)->name, cluster_offset (r, cluster),
                   nr, kind) == 0) {
    /* It may be a snapshot's table, if a damaged image calls that free, and
     * so be in the cache.
     */
    cache_forget (r->writeback->cache, r->writeback->id,
                  cluster_offset (r, cluster), nr << r->cluster_bits,
                  r->writeback->slice_bytes);
    return 0;
  }
  if (error_errno () != ENOMEM)
    writeback_fail_corrupt (r->writeback);
  return -1;
}

/* Write a refcount block to the cluster `at', in which nr clusters from first
 * on, all of which it describes, have a refcount of 1.
 */
static int
write_block (struct refcounts *r, uint64_t at, uint64_t first, uint64_t nr)
{
  const uint64_t in_block = (UINT64_C (1) << r->block_bits) - 1;
  uint64_t *words = calloc (1, cluster_size (r)), i;
  int ret;

  if (words == NULL) {
    error_set (ENOMEM, "%s: out of memory", storage (r)->name);
    return -1;
  }
  for (i = first & in_block; i < (first & in_block) + nr; ++i) {
    uint64_t *word = &words[(i << r->order) / 64];

    *word = htobe64 (entry_put_refcount (r->order, be64toh (*word), i, 1));
  }
  ret = storage_write (storage (r), words, cluster_size (r),
                       cluster_offset (r, at));
  free (words);
  return ret;
}

/* Make a refcount block for this cluster, which is free and has none.  The
 * block is put into the cluster itself, and so depends on no other refcounts.
 */
static int
add_block (struct refcounts *r, uint64_t cluster)
{
  const uint64_t index = cluster >> r->block_bits;
  const struct host_off block = cluster_offset (r, cluster);
  const struct host_off place = { r->table.v + index * sizeof (uint64_t) };
  const unsigned slice_bytes = r->writeback->slice_bytes;
  struct change ch = {
    .slice.v = place.v / slice_bytes * slice_bytes,
    .first = place.v % slice_bytes / sizeof (uint64_t),
    .nr = 1,
    .words = &block.v,
    .order = CACHE_FIRST,
  };

  if (reach (r, cluster) == -1 ||
      add_metadata (r, cluster, 1, METADATA_REFCOUNT_BLOCK) == -1)
    return -1;
  if (write_block (r, cluster, cluster, 1) == -1 || barrier (r) == -1 ||
      writeback_change (r->writeback, &ch, NULL) == -1) {
    overlap_remove (r->overlap, block, 1);
    return -1;
  }
  return 0;
}

/* A new refcount table and the blocks that describe both, contiguous: blocks,
 * then table.
 */
struct growth {
  uint64_t start; /* cluster */
  uint64_t blocks, first_index;
  uint64_t table_clusters;
};

/* Plan a table that covers its own clusters.  They are the first that the old
 * one has no entries for, where nothing can be in use.
 */
static int
plan_growth (const struct refcounts *r, struct growth *g)
{
  const unsigned entry_bits = r->cluster_bits - 3;
  const uint64_t max = QCOW2_MAX_REFCOUNT_TABLE_BYTES >> r->cluster_bits;
  uint64_t last_index;

  g->start = table_entries (r) << r->block_bits;
  g->first_index = g->start >> r->block_bits;
  g->blocks = 1;
  g->table_clusters = r->table_clusters + r->table_clusters / 2 + 1;
  if (g->table_clusters > max && r->table_clusters < max)
    g->table_clusters = max;
  for (;;) {
    last_index = (g->start + g->blocks + g->table_clusters - 1)
      >> r->block_bits;
    if (last_index - g->first_index + 1 > g->blocks)
      g->blocks = last_index - g->first_index + 1;
    else if (last_index >> entry_bits >= g->table_clusters)
      g->table_clusters = (last_index >> entry_bits) + 1;
    else
      break;
  }
  if (g->table_clusters > max ||
      g->start + g->blocks + g->table_clusters >
      QCOW2_MAX_HOST_SIZE >> r->cluster_bits) {
    error_set (ENOSPC, "%s: the refcount table can't grow beyond %" PRIu64
               " bytes", storage (r)->name, QCOW2_MAX_REFCOUNT_TABLE_BYTES);
    return -1;
  }
  return 0;
}

/* Write the blocks; each counts those of the new clusters that it describes.
 */
static int
write_new_blocks (struct refcounts *r, const struct growth *g)
{
  const uint64_t per_block = UINT64_C (1) << r->block_bits;
  const uint64_t end = g->start + g->blocks + g->table_clusters;
  uint64_t i;

  for (i = 0; i < g->blocks; ++i) {
    const uint64_t described = (g->first_index + i) * per_block;
    const uint64_t from = described > g->start ? described : g->start;
    const uint64_t to = described + per_block < end
      ? described + per_block : end;

    if (write_block (r, g->start + i, from, to - from) == -1)
      return -1;
  }
  return 0;
}

static int
write_new_table (struct refcounts *r, const struct growth *g)
{
  const uint64_t bytes = g->table_clusters << r->cluster_bits;
  uint64_t *words = calloc (1, bytes), i;
  int ret;

  if (words == NULL) {
    error_set (ENOMEM, "%s: out of memory", storage (r)->name);
    return -1;
  }
  ret = storage_read (storage (r), words, r->table_clusters << r->cluster_bits,
                      r->table);
  for (i = 0; i < g->blocks; ++i)
    words[g->first_index + i] =
      htobe64 (cluster_offset (r, g->start + i).v);
  if (ret == 0)
    ret = storage_write (storage (r), words, bytes,
                         cluster_offset (r, g->start + g->blocks));
  free (words);
  return ret;
}

/* Make the header point to the new table.  A failure leaves it unknown which
 * of the two tables is in use.
 */
static int
switch_table (struct refcounts *r, struct host_off table, uint64_t clusters)
{
  uint8_t buf[HEADER_REFCOUNT_TABLE_BYTES];
  const struct host_off at = { HEADER_REFCOUNT_TABLE_OFFSET };

  header_encode_refcount_table (table, clusters, buf);
  if (storage_write (storage (r), buf, sizeof buf, at) == -1) {
    writeback_fail (r->writeback);
    return -1;
  }
  return barrier (r);
}

/* Switch to the new table, and give up the old one. */
static int
replace_table (struct refcounts *r, const struct growth *g)
{
  const struct host_off table = cluster_offset (r, g->start + g->blocks);
  const struct freed old = {
    .host = r->table, .nr = r->table_clusters, .is_table = true,
    .bytes = r->table_clusters << r->cluster_bits,
  };

  if (switch_table (r, table, g->table_clusters) == -1)
    return -1;
  r->table = table;
  r->table_clusters = g->table_clusters;
  /* If memory is short the old table is leaked. */
  (void) writeback_free (r->writeback, &old, 1);
  return 0;
}

static int
grow_table (struct refcounts *r)
{
  struct growth g;

  /* So that the old table is complete on the disk, to be copied. */
  if (writeback_flush (r->writeback) == -1 || plan_growth (r, &g) == -1 ||
      reach (r, g.start + g.blocks + g.table_clusters - 1) == -1 ||
      add_metadata (r, g.start, g.blocks, METADATA_REFCOUNT_BLOCK) == -1)
    return -1;
  if (add_metadata (r, g.start + g.blocks, g.table_clusters,
                    METADATA_REFCOUNT_TABLE) == -1) {
    overlap_remove (r->overlap, cluster_offset (r, g.start), g.blocks);
    return -1;
  }
  if (write_new_blocks (r, &g) == -1 || write_new_table (r, &g) == -1 ||
      barrier (r) == -1 || replace_table (r, &g) == -1) {
    overlap_remove (r->overlap, cluster_offset (r, g.start),
                    g.blocks + g.table_clusters);
    return -1;
  }
  return 0;
}

/* Make sure that this free cluster has a refcount block.  *taken: the block
 * may have taken the cluster.
 */
static int
ensure_block (struct refcounts *r, uint64_t cluster, bool *taken)
{
  struct host_off block;

  *taken = true;
  if (cluster >> r->block_bits >= table_entries (r))
    return grow_table (r);
  if (find_block (r, cluster, &block) == -1)
    return -1;
  if (block.v == 0)
    return add_block (r, cluster);
  *taken = false;
  return 0;
}

int
refcount_find_free (struct refcounts *r, uint64_t max, uint64_t *cluster,
                    uint64_t *nr)
{
  const uint64_t end = QCOW2_MAX_HOST_SIZE >> r->cluster_bits;
  uint64_t at = r->first_free, refcount;
  bool taken;

  while (at < end) {
    if (skip_used (r, at, &at) == -1 ||
        refcount_run (r, at, max, &refcount, nr) == -1)
      return -1;
    if (refcount == 0) {
      if (ensure_block (r, at, &taken) == -1)
        return -1;
      if (!taken) {
        *cluster = at;
        r->first_free = at;
        return 0;
      }
      continue; /* look again */
    }
    at += *nr;
  }
  error_set (ENOSPC, "%s: no cluster is free", storage (r)->name);
  return -1;
}
