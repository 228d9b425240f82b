/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "cache/tables.h"
#include "qcow2/entry.h"
#include "qcow2/write/refcount-parts.h"

/* ------------------------------------------------------------------ tables */

/* Words of the slice that holds the word at offset. */
#define SLICE_WORDS (CACHE_SLOT_BYTES / 8)

struct slice {
  struct host_off at;
  unsigned nr;
  uint64_t word[SLICE_WORDS];
};

/* Read the slice of a table that contains this offset.  The copy stays valid,
 * since only the holder of the lock changes refcounts.  ahead: see cache_get.
 */
static int
read_slice (struct refcounts *r, struct host_off offset, uint64_t ahead,
            struct slice *s)
{
  struct writeback *c = r->writeback;
  struct cache_ref ref;
  unsigned i;

  s->at.v = offset.v / c->slice_bytes * c->slice_bytes;
  s->nr = c->slice_bytes / sizeof s->word[0];
  do {
    if (cache_get (c->cache, c->tables, c->id, s->at, c->slice_bytes,
                   ahead, &ref) == -1)
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

  if (block % refcounts_cluster_size (r) != 0)
    why = "the block's offset is not a multiple of the cluster size";
  else if (block >= atomic_load (&refcounts_storage (r)->size))
    why = "the block is beyond the end of the file";
  if (why == NULL)
    return 0;
  error_set (EIO, "%s: damaged: refcount table entry 0x%016" PRIx64
             " at offset 0x%" PRIx64 ": %s", refcounts_storage (r)->name, word,
             r->table.v + index * sizeof word, why);
  return -1;
}

int
refcount_find_block (struct refcounts *r, uint64_t cluster,
                     struct host_off *block)
{
  const uint64_t index = cluster >> r->block_bits;
  const struct host_off place = { r->table.v + index * sizeof (uint64_t) };
  struct writeback *c = r->writeback;
  struct cache_ref ref;
  uint64_t word;

  block->v = 0;
  if (index >= refcounts_entries (r))
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
  uint64_t index = 0, ask_from;
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
  if (overlap_add (overlap, refcounts_storage (r)->name, r->table,
                   r->table_clusters, METADATA_REFCOUNT_TABLE) == -1)
    return -1;
  ask_from = CACHE_MAX_AHEAD * per_slice; /* those are read together */
  while (index < refcounts_entries (r)) {
    const struct host_off at = { r->table.v + index * sizeof (uint64_t) };
    /* Nothing is in the cache yet that is not in the storage. */
    const bool ask = empty && index >= ask_from;
    const uint64_t hole = ask ? storage_hole (refcounts_storage (r), at) : 0;

    if (hole >= writeback->slice_bytes) {
      index += hole / writeback->slice_bytes * per_slice;
      continue;
    }
    if (ask)
      ask_from = index + CACHE_MAX_AHEAD * per_slice;
    if (read_slice (r, at, (refcounts_entries (r) - index) / per_slice,
                    &s) == -1)
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
          overlap_add (overlap, refcounts_storage (r)->name, block, 1,
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
  return read_slice (r, at, 1, s);
}

int
refcount_run (struct refcounts *r, uint64_t cluster, uint64_t max,
              uint64_t *refcount, uint64_t *nr)
{
  const uint64_t per_block = UINT64_C (1) << r->block_bits;
  struct host_off block;
  struct slice s;
  uint64_t i, n, in_slice;

  if (refcount_find_block (r, cluster, &block) == -1)
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

  for (index = *cluster >> r->block_bits; index < refcounts_entries (r);
       ++index) {
    *cluster = index << r->block_bits;
    if (refcount_find_block (r, *cluster, block) == -1)
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
  if (refcount_find_block (r, cluster, &block) == -1)
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

int
refcount_first_free (struct refcounts *r, uint64_t cluster, uint64_t nr,
                     uint64_t *first)
{
  const uint64_t end = cluster + nr;
  uint64_t next;

  for (*first = cluster; *first < end; *first = next) {
    if (skip_used (r, *first, &next) == -1)
      return -1;
    if (next == *first) /* else that may just begin another slice */
      return 0;
  }
  *first = end;
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

  if (refcount_find_block (r, cluster, &block) == -1)
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

static int
check_can_be_raised (const struct refcounts *r, uint64_t cluster,
                     uint64_t refcount)
{
  const char *name = refcounts_storage (r)->name;
  const uint64_t host = refcounts_offset (r, cluster).v;

  if (refcount == 0)
    error_set (EIO, "%s: damaged: the refcount of the cluster at offset 0x%"
               PRIx64 " is 0, but it is in use", name, host);
  else if (refcount == entry_refcount_max (r->order))
    error_set (ENOTSUP, "%s: the refcount of the cluster at offset 0x%" PRIx64
               " is %" PRIu64 ", the most that %u bits can hold", name, host,
               refcount, 1U << r->order);
  else
    return 0;
  return -1;
}

size_t
refcount_raise (struct refcounts *r, const uint64_t *cluster, size_t nr)
{
  struct change ch = { .order = CACHE_FIRST };
  struct host_off block;
  struct slice s;
  uint64_t i, in_slice, first;
  size_t n;

  if (refcount_find_block (r, cluster[0], &block) == -1)
    return 0;
  if (block.v == 0) {
    (void) check_can_be_raised (r, cluster[0], 0);
    return 0;
  }
  if (read_refcounts (r, block, cluster[0], &s, &i, &in_slice) == -1)
    return 0;
  first = cluster[0] - i;
  for (n = 0; n < nr && (i = cluster[n] - first) < in_slice; ++n) {
    uint64_t *word = &s.word[(i << r->order) / 64];
    const uint64_t refcount = get (r, &s, i);

    if (check_can_be_raised (r, cluster[n], refcount) == -1)
      return 0;
    *word = entry_put_refcount (r->order, *word, i, refcount + 1);
  }
  ch.slice = s.at;
  ch.first = ((cluster[0] - first) << r->order) / 64;
  ch.nr = ((cluster[n - 1] - first) << r->order) / 64 - ch.first + 1;
  ch.words = &s.word[ch.first];
  return writeback_change (r->writeback, &ch, NULL) == -1 ? 0 : n;
}

/* Whether any refcount in a word is 0. */
static inline bool
has_free (unsigned order, uint64_t word)
{
  const uint64_t low = UINT64_MAX / entry_refcount_max (order);

  return ((word - low) & ~word & low << ((1U << order) - 1)) != 0;
}

int
refcount_count_free (struct refcounts *r, uint64_t *cluster, uint64_t max,
                     uint64_t *found)
{
  const uint64_t per_block = UINT64_C (1) << r->block_bits;
  uint64_t i, in_slice, n;
  struct host_off block;
  struct slice s;

  if (refcount_find_block (r, *cluster, &block) == -1)
    return -1;
  if (block.v == 0) {
    n = per_block - *cluster % per_block;
    if (n > max - *found)
      n = max - *found;
    *found += n;
    *cluster += n;
    return 0;
  }
  if (read_refcounts (r, block, *cluster, &s, &i, &in_slice) == -1)
    return -1;
  for (; i < in_slice && *found < max; i += n, *cluster += n) {
    const uint64_t in_word = 64 >> r->order;

    n = 1;
    if (i % in_word == 0 && !has_free (r->order, s.word[i / in_word])) {
      n = in_word;
      *found = 0;
    }
    else
      *found = get (r, &s, i) == 0 ? *found + 1 : 0;
  }
  return 0;
}

int
refcount_none_free (const struct refcounts *r)
{
  error_set (ENOSPC, "%s: no cluster is free", refcounts_storage (r)->name);
  return -1;
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
      if (refcount_ensure_block (r, at, &taken) == -1)
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
  return refcount_none_free (r);
}
