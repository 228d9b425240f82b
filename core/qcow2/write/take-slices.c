/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/l2-range.h"
#include "qcow2/write/remap.h"
#include "qcow2/write/take-parts.h"

static inline unsigned
words_of_slice (const struct take *t)
{
  return take_map (t)->slice_bytes / sizeof (uint64_t);
}

static inline uint64_t
words_of_piece (const struct take *t)
{
  return t->piece->nr * words_of_slice (t);
}

/* Where the guest has the first cluster of the piece. */
static inline struct guest_off
start_of_piece (const struct take *t, const struct take_table *table)
{
  const struct inflight_range range =
    take_range (t, table->l1_index, t->piece->first, 1);

  return (struct guest_off) {
    range.first << take_map (t)->format.cluster_bits
  };
}

/* ------------------------------------------------------------------- reading */

/* The live entries. */
static int
read_live (struct take *t, struct guest_off at)
{
  const struct map *m = take_map (t);
  struct take_piece *p = t->piece;
  struct host_off place;
  struct map_l1 l1;

  if (map_l1_entry (m, at, &l1) == -1)
    return -1;
  p->live_table = l1.table;
  if (l1.table.v == 0) {
    memset (p->live, 0, p->nr * m->slice_bytes);
    return 0;
  }
  place.v = l1.table.v + p->first * m->slice_bytes;
  return l2_range_read (m, place, p->nr, p->live);
}

/* A piece as the point has it: K2. */
static int
read_piece (struct take *t, const struct take_table *table)
{
  const struct map *m = take_map (t);
  const struct guest_off at = start_of_piece (t, table);
  const uint64_t number = map_slice_number (m, at);
  const unsigned per_slice = words_of_slice (t);
  struct take_piece *p = t->piece;
  uint64_t i;
  unsigned w;

  if (read_live (t, at) == -1)
    return -1;
  for (i = 0; i < p->nr; ++i) {
    uint64_t *words = p->words + i * per_slice;

    if (points_words (t->w->points, t->point, m, number + i, words))
      continue;
    for (w = 0; w < per_slice; ++w)
      words[w] = be64toh (p->live[i * per_slice + w]);
  }
  return 0;
}

static bool
are_zeros (const uint64_t *words, uint64_t nr)
{
  uint64_t i = 0;

  while (i < nr && words[i] == 0)
    i++;
  return i == nr;
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
sort_references (struct take_piece *p)
{
  size_t i = 1;

  while (i < p->nr_references && p->cluster[i - 1] <= p->cluster[i])
    i++;
  if (i < p->nr_references)
    qsort (p->cluster, p->nr_references, sizeof p->cluster[0],
           compare_clusters);
}

static void
add_references (const struct map *m, struct take_piece *p,
                const struct l2_entry *e)
{
  const uint64_t cluster = e->host.v >> m->format.cluster_bits;
  struct freed f;
  uint64_t n;

  if (e->kind != CLUSTER_COMPRESSED) { /* nearly all */
    p->cluster[p->nr_references++] = cluster;
    return;
  }
  f = remap_references (m, e);
  for (n = 0; n < f.nr && n < TAKE_MAX_TOUCHED; ++n)
    p->cluster[p->nr_references++] = cluster + n;
}

/* What the piece, from this place of the disk on, refers to. */
static int
find_references (const struct take *t, struct guest_off at)
{
  const struct map *m = take_map (t);
  const unsigned step = 1U << m->l2_word_bits;
  const uint64_t size = atomic_load (&m->tables->size);
  const uint64_t nr = words_of_piece (t);
  struct take_piece *p = t->piece;
  uint64_t i;

  p->nr_references = 0;
  for (i = 0; i < nr; i += step) {
    const uint64_t word = p->words[i];
    const uint64_t bits = step == 2 ? p->words[i + 1] : 0;
    const uint64_t guest = at.v + i / step * m->cluster_size;
    struct l2_entry e;

    if ((word | bits) == 0)
      continue;
    e = entry_decode_l2 (&m->format, word, bits);
    if (e.kind == CLUSTER_INVALID)
      return damaged (t, guest, word, entry_why (&m->format, word, bits));
    if (host_is_none (e.host))
      continue;
    if (e.host.v >= size)
      return damaged (t, guest, word, "the cluster is beyond the end of the "
                      "file");
    add_references (m, p, &e);
  }
  sort_references (p);
  return 0;
}

/* ------------------------------------------------------------------ changing */

static int
raise_references (struct take *t)
{
  const struct take_piece *p = t->piece;
  const unsigned bits = take_map (t)->format.cluster_bits;
  struct writeback *c = &t->w->writeback;
  size_t done, i;

  if (alloc_raise (&t->w->alloc, p->cluster, p->nr_references, &done) == 0)
    return 0;
  t->given_up |= done > 0;
  for (i = 0; i < done; ++i) { /* K6 */
    const struct freed f = { .host.v = p->cluster[i] << bits, .nr = 1 };
    struct error_kept kept;

    error_keep (&kept);
    (void) writeback_free (c, &f, 1); /* or lost */
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
  const struct inflight_range range = take_range (t, table->l1_index, slice, 1);
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

/* The same for the live words of a piece, before they are written.  *changed: bit i
 * is slice i.
 */
static void
clear_live (struct take *t, struct take_table *table, uint32_t *changed)
{
  const unsigned step = 1U << take_map (t)->l2_word_bits;
  const uint64_t number = t->piece->first * words_of_slice (t) / step;
  struct take_piece *p = t->piece;
  uint64_t i;

  *changed = 0;
  for (i = 0; i < words_of_piece (t); i += step) {
    uint64_t word = be64toh (p->live[i]);

    if (!(word & QCOW2_ENTRY_COPIED) || (word & QCOW2_L2_COMPRESSED) ||
        entry_reference (word) == 0 ||
        !clear_copied (t, table, number + i / step,
                       entry_reference (p->words[i]), &word))
      continue;
    p->live[i] = htobe64 (word);
    *changed |= UINT32_C (1) << i / words_of_slice (t);
  }
}

/* Write slices of the live table past the batches, which would be full of them
 * again and again.  Returns how many, or -1 with the error set, which sticks (I10).
 */
static int
write_live (struct take *t, unsigned first, unsigned nr)
{
  const struct map *m = take_map (t);
  struct writeback *c = &t->w->writeback;
  const struct take_piece *p = t->piece;
  const struct host_off place = {
    p->live_table.v + (p->first + first) * m->slice_bytes
  };
  unsigned done;
  int r;

  if (writeback_check (c) == -1)
    return -1;
  r = cache_write_through (m->cache, m->tables, m->id, place, m->slice_bytes,
                           nr, p->live + first * words_of_slice (t), &done);
  writeback_note_data (c);
  if (r == 0)
    return done;
  if (error_errno () == ENOSPC) /* batches have space for their sectors */
    return 0;
  writeback_fail (c);
  return -1;
}

/* Those of these slices; one that has other changes, which may have an order to
 * keep, has this one with them.
 */
static int
change_slices (struct take *t, struct take_table *table, uint32_t changed)
{
  const struct take_piece *p = t->piece;
  unsigned i, n;

  for (i = 0; i < p->nr; i += n) {
    int done;

    for (n = 0; changed >> i >> n & 1; ++n)
      continue;
    if (n == 0) {
      n = 1;
      continue;
    }
    done = write_live (t, i, n);
    if (done == -1)
      return -1;
    if (done > 0)
      n = done;
    else {
      n = 1;
      if (change_live (t, table, p->first + i,
                       p->words + i * words_of_slice (t), clear_copied) == -1)
        return -1;
    }
  }
  return 0;
}

/* Clear COPIED in the live entries.  They are read again, since somebody else may have
 * copied the table meanwhile, if it is shared; and of a damaged image what was raised
 * could be in the table itself.
 */
static int
clear_piece (struct take *t, struct take_table *table)
{
  const struct guest_off at = start_of_piece (t, table);
  uint32_t changed;
  int r;

  pthread_mutex_lock (&t->w->tables);
  r = read_live (t, at);
  if (r == 0 && t->piece->live_table.v != 0) {
    clear_live (t, table, &changed);
    r = change_slices (t, table, changed);
  }
  pthread_mutex_unlock (&t->w->tables);
  return r;
}

/* Into the copy of the table. */
static void
copy_words (struct take *t)
{
  const unsigned step = 1U << take_map (t)->l2_word_bits;
  const uint64_t at = t->piece->first * words_of_slice (t);
  uint64_t i;

  for (i = 0; i < words_of_piece (t); ++i) {
    uint64_t word = t->piece->words[i];

    if (i % step == 0 && !(word & QCOW2_L2_COMPRESSED))
      word &= ~QCOW2_ENTRY_COPIED;
    t->copy[at + i] = htobe64 (word);
  }
}

static int
not_kept (const struct take *t)
{
  error_set (EIO, "%s: no snapshot was made: there is no memory for more of what "
             "was changed meanwhile", writer_name (t->w));
  return -1;
}

/* The range of the piece, and the epoch, are entered. */
static int
take_words (struct take *t, struct take_table *table, bool *mapped)
{
  if (read_piece (t, table) == -1)
    return -1;
  copy_words (t);
  if (are_zeros (t->piece->words, words_of_piece (t)))
    return 0;
  /* Those are all tables that there were, or more, unless the point has failed. */
  if (t->nr_filled == t->nr_tables)
    return not_kept (t);
  *mapped = true;
  if (find_references (t, start_of_piece (t, table)) == -1 ||
      raise_references (t) == -1)
    return -1;
  t->nr_raised = t->piece->first + t->piece->nr;
  return t->piece->nr_references == 0 ? 0 : clear_piece (t, table);
}

static int
take_piece (struct take *t, struct take_table *table, bool *mapped)
{
  struct writer *w = t->w;
  struct inflight_range range =
    take_range (t, table->l1_index, t->piece->first, t->piece->nr);
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  int r;

  inflight_enter (&w->inflight, &range);
  r = take_words (t, table, mapped);
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

/* Between pieces, for the guest's sake: but not where it changes the mapping all over
 * the disk, since all that lasts longer then, and the shadows need more memory.
 */
static void
rest (struct take *t)
{
  if (points_have_much_room (t->w->points))
    pace_rest (&t->pace);
  else
    pace_begin (&t->pace);
}

/* That of an L1 entry, if something is mapped by it. */
static int
fill_table (struct take *t, uint64_t l1_index)
{
  const struct map *m = take_map (t);
  struct take_table *table = &t->table[t->nr_filled];
  bool mapped = false;
  uint64_t slice, n;

  table->l1_index = l1_index;
  if (table->cleared == NULL)
    table->cleared = calloc ((map_slice_clusters (m) * take_slices (t) + 7) / 8,
                             1);
  if (table->cleared == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  for (slice = 0; slice < take_slices (t); slice += n) {
    n = take_slices (t) - slice < TAKE_PIECE ? take_slices (t) - slice
      : TAKE_PIECE;
    t->piece->first = slice;
    t->piece->nr = n;
    if (take_piece (t, table, &mapped) == -1)
      return -1;
    rest (t);
  }
  return mapped ? write_copy (t, table) : 0;
}

int
take_fill_tables (struct take *t)
{
  const struct map *m = take_map (t);
  uint64_t i;

  pace_begin (&t->pace);
  for (i = 0; i < m->l1_size; ++i) {
    struct map_l1 l1;

    if (map_l1_entry (m, (struct guest_off) { i << m->l1_shift }, &l1) == -1 ||
        (l1.table.v != 0 && fill_table (t, i) == -1))
      return -1;
  }
  return 0;
}
