/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/write/remap.h"
#include "qcow2/write/take-parts.h"

/* Compressed data is overstated by at most a cluster, and may begin anywhere. */
#define MAX_TOUCHED 3

/* The clusters that entries of a slice refer to, in ascending order. */
struct references {
  size_t nr;
  uint64_t cluster[MAP_MAX_WORDS * MAX_TOUCHED];
};

/* ------------------------------------------------------------------- reading */

/* A slice as the point has it: K2. */
static int
read_words (struct take *t, struct guest_off at, uint64_t *words)
{
  const struct map *m = take_map (t);
  struct map_l1 l1;
  struct map_l2 l2;

  if (points_words (t->w->points, t->point, m, map_slice_number (m, at), words))
    return 0;
  memset (words, 0, m->slice_bytes);
  if (map_l1_entry (m, at, &l1) == -1)
    return -1;
  if (l1.table.v == 0)
    return 0;
  if (map_l2_entries (m, l1.table, at, map_slice_clusters (m), &l2) == -1)
    return -1;
  memcpy (words, l2.words, m->slice_bytes);
  return 0;
}

static bool
are_zeros (const struct map *m, const uint64_t *words)
{
  unsigned i = 0;

  while (i < m->slice_bytes / sizeof words[0] && words[i] == 0)
    i++;
  return i == m->slice_bytes / sizeof words[0];
}

static int
damaged (const struct take *t, uint64_t guest, uint64_t word, const char *why)
{
  error_set (EIO, "%s: damaged: L2 entry 0x%016" PRIx64 " of the disk's offset "
             "0x%" PRIx64 ": %s", writer_name (t->w), word, guest, why);
  return -1;
}

static int
compare_clusters (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* They mostly are in order. */
static void
sort_references (struct references *r)
{
  size_t i = 1;

  while (i < r->nr && r->cluster[i - 1] <= r->cluster[i])
    i++;
  if (i < r->nr)
    qsort (r->cluster, r->nr, sizeof r->cluster[0], compare_clusters);
}

/* What these words, of the slice at this place of the disk, refer to. */
static int
find_references (const struct take *t, struct guest_off at,
                 const uint64_t *words, struct references *r)
{
  const struct map *m = take_map (t);
  const unsigned step = 1U << m->l2_word_bits;
  const uint64_t size = atomic_load (&m->tables->size);
  unsigned i;

  r->nr = 0;
  for (i = 0; i < m->slice_bytes / sizeof words[0]; i += step) {
    const uint64_t bits = step == 2 ? words[i + 1] : 0;
    const uint64_t guest = at.v + i / step * m->cluster_size;
    struct l2_entry e;
    struct freed f;
    uint64_t n;

    if ((words[i] | bits) == 0)
      continue;
    e = entry_decode_l2 (&m->format, words[i], bits);
    if (e.kind == CLUSTER_INVALID)
      return damaged (t, guest, words[i],
                      entry_why (&m->format, words[i], bits));
    if (host_is_none (e.host))
      continue;
    if (e.host.v >= size)
      return damaged (t, guest, words[i], "the cluster is beyond the end of "
                      "the file");
    f = remap_references (m, &e);
    for (n = 0; n < f.nr && n < MAX_TOUCHED; ++n)
      r->cluster[r->nr++] = (f.host.v >> m->format.cluster_bits) + n;
  }
  sort_references (r);
  return 0;
}

/* ------------------------------------------------------------------ changing */

static int
raise_references (struct take *t, const struct references *r)
{
  const unsigned bits = take_map (t)->format.cluster_bits;
  struct writeback *c = &t->w->writeback;
  size_t done, i;

  if (alloc_raise (&t->w->alloc, r->cluster, r->nr, &done) == 0)
    return 0;
  for (i = 0; i < done; ++i) { /* K6 */
    const struct freed f = { .host.v = r->cluster[i] << bits, .nr = 1 };
    struct error_kept kept;

    error_keep (&kept);
    if (writeback_free (c, &f, 1) == -1)
      atomic_store (&t->w->leaked, true);
    error_restore (&kept);
  }
  return writer_failed (t->w);
}

/* Nobody else makes or copies the table meanwhile: it may be shared. */
static int
change_live (struct take *t, struct take_table *table, uint64_t slice,
             const uint64_t *words, take_change_fn *fn)
{
  const struct map *m = take_map (t);
  const unsigned step = 1U << m->l2_word_bits;
  const struct inflight_range range = take_range (t, table->l1_index, slice);
  const struct guest_off at = { range.first << m->format.cluster_bits };
  struct change ch = { .order = CACHE_SECOND };
  unsigned i, first = MAP_MAX_WORDS, end = 0;
  struct map_l1 l1;
  struct map_l2 l2;

  if (map_l1_entry (m, at, &l1) == -1)
    return -1;
  if (l1.table.v == 0)
    return 0;
  if (map_l2_slice (m, l1.table, at, &l2) == -1)
    return -1;
  for (i = 0; i < l2.nr_words; i += step) {
    const uint64_t number = slice * map_slice_clusters (m) + i / step;

    if (entry_reference (l2.words[i]) == 0 ||
        (l2.words[i] & QCOW2_L2_COMPRESSED) ||
        !fn (t, table, number,
             words == NULL ? 0 : entry_reference (words[i]), &l2.words[i]))
      continue;
    if (first > i)
      first = i;
    end = i + 1;
  }
  if (end == 0)
    return 0;
  ch.slice = l2.slice;
  ch.first = first;
  ch.nr = end - first;
  ch.words = l2.words + first;
  return writeback_change (&t->w->writeback, &ch, NULL);
}

int
take_change_live (struct take *t, struct take_table *table, uint64_t slice,
                  const uint64_t *words, take_change_fn *fn)
{
  int r;

  pthread_mutex_lock (&t->w->tables);
  r = change_live (t, table, slice, words, fn);
  pthread_mutex_unlock (&t->w->tables);
  return r;
}

static bool
clear_copied (struct take *t, struct take_table *table, uint64_t number,
              uint64_t reference, uint64_t *word)
{
  (void) t;
  if (!(*word & QCOW2_ENTRY_COPIED) || entry_reference (*word) != reference)
    return false;
  *word &= ~QCOW2_ENTRY_COPIED;
  table->cleared[number / 8] |= 1U << number % 8;
  return true;
}

/* Into the copy of the table. */
static void
copy_words (struct take *t, uint64_t slice, const uint64_t *words)
{
  const struct map *m = take_map (t);
  const unsigned nr = m->slice_bytes / sizeof words[0];
  const unsigned step = 1U << m->l2_word_bits;
  unsigned i;

  for (i = 0; i < nr; ++i) {
    uint64_t word = words[i];

    if (i % step == 0 && !(word & QCOW2_L2_COMPRESSED))
      word &= ~QCOW2_ENTRY_COPIED;
    t->copy[slice * nr + i] = htobe64 (word);
  }
}

static int
not_kept (const struct take *t)
{
  error_set (EIO, "%s: no snapshot was made: there is no memory for more of what "
             "was changed meanwhile", writer_name (t->w));
  return -1;
}

/* The range of the slice, and the epoch, are entered. */
static int
take_words (struct take *t, struct take_table *table, uint64_t slice,
            bool *mapped)
{
  const struct map *m = take_map (t);
  const struct inflight_range range = take_range (t, table->l1_index, slice);
  const struct guest_off at = { range.first << m->format.cluster_bits };
  uint64_t words[MAP_MAX_WORDS];
  struct references r;

  if (read_words (t, at, words) == -1)
    return -1;
  copy_words (t, slice, words);
  if (are_zeros (m, words))
    return 0;
  /* Those are all tables that there were, or more, unless the point has failed. */
  if (t->nr_filled == t->nr_tables)
    return not_kept (t);
  *mapped = true;
  if (find_references (t, at, words, &r) == -1 || raise_references (t, &r) == -1)
    return -1;
  t->nr_raised = slice + 1;
  return r.nr == 0 ? 0
    : take_change_live (t, table, slice, words, clear_copied);
}

static int
take_slice (struct take *t, struct take_table *table, uint64_t slice,
            bool *mapped)
{
  struct writer *w = t->w;
  struct inflight_range range = take_range (t, table->l1_index, slice);
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  int r;

  inflight_enter (&w->inflight, &range);
  r = take_words (t, table, slice, mapped);
  inflight_leave (&w->inflight, &range);
  epoch_leave (w->disk->shared->epoch, token);
  if (r == 0 && atomic_load (&t->point->failed))
    return not_kept (t);
  /* Else what changes tables would do it, with its locks held. */
  return r == 0 && writeback_is_wanted (&w->writeback) ? writer_flush (w) : r;
}

/* ------------------------------------------------------------------- tables */

/* As in l2-table.c, an earlier table may be in the cache. */
static int
write_copy (struct take *t, struct take_table *table)
{
  const struct map *m = take_map (t);

  cache_forget (m->cache, m->id, table->host, m->cluster_size, m->slice_bytes);
  if (overlap_add (&t->w->overlap, writer_name (t->w), table->host, 1,
                   METADATA_SHARED_L2) == -1 ||
      storage_write (m->tables, t->copy, m->cluster_size, table->host) == -1)
    return -1;
  writeback_note_data (&t->w->writeback);
  t->l1[table->l1_index] = htobe64 (table->host.v);
  t->nr_filled++;
  t->nr_raised = 0;
  return 0;
}

/* That of an L1 entry, if something is mapped by it. */
static int
fill_table (struct take *t, uint64_t l1_index)
{
  const struct map *m = take_map (t);
  struct take_table *table = &t->table[t->nr_filled];
  bool mapped = false;
  uint64_t slice;

  table->l1_index = l1_index;
  if (table->cleared == NULL)
    table->cleared = calloc ((map_slice_clusters (m) * take_slices (t) + 7) / 8,
                             1);
  if (table->cleared == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  for (slice = 0; slice < take_slices (t); ++slice) {
    if (take_slice (t, table, slice, &mapped) == -1)
      return -1;
  }
  return mapped ? write_copy (t, table) : 0;
}

int
take_fill_tables (struct take *t)
{
  const struct map *m = take_map (t);
  uint64_t i;

  for (i = 0; i < m->l1_size; ++i) {
    struct map_l1 l1;

    if (map_l1_entry (m, (struct guest_off) { i << m->l1_shift }, &l1) == -1 ||
        (l1.table.v != 0 && fill_table (t, i) == -1))
      return -1;
  }
  return 0;
}
