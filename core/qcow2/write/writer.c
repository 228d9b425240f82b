/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/advice.h"
#include "base/error.h"
#include "qcow2/bitmaps.h"
#include "qcow2/write/writer.h"

static const char *
writer_name (const struct writer *w)
{
  return w->disk->tables->name;
}

/* ----------------------------------------------------------------- opening */

int
writer_check_header (struct storage *s, const struct header *h,
                     const struct writer_options *options)
{
  bool must_follow;

  if (bitmaps_must_follow (s, h, &must_follow) == -1)
    return -1;
  if (h->l1_missing > 0) {
    error_set (ENOTSUP, "%s: the L1 table at offset 0x%" PRIx64 " ends %" PRIu64
               " bytes beyond the end of the file", s->name, h->l1_offset.v,
               h->l1_missing);
    advise (ADVICE_REPAIR);
  }
  else if (h->incompatible & QCOW2_INCOMPAT_CORRUPT) {
    error_set (ENOTSUP, "%s: it is marked as corrupt (incompatible feature "
               "bit 1)", s->name);
    advise (ADVICE_REPAIR);
  }
  else if (h->incompatible & QCOW2_INCOMPAT_DIRTY) {
    error_set (ENOTSUP, "%s: it is marked as dirty (incompatible feature "
               "bit 0), so that its refcounts may be wrong", s->name);
    advise (ADVICE_REPAIR);
  }
  else if (must_follow && !options->invalidate_bitmaps) {
    error_set (ENOTSUP, "%s: it has persistent bitmaps that are enabled, which "
               "writing would make wrong", s->name);
    advise (ADVICE_BITMAPS);
  }
  else
    return 0;
  return -1;
}

static inline bool
has_bitmaps (const struct header *h)
{
  return (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS) && h->nr_bitmaps > 0;
}

/* I7: what stays where it is. */
static int
add_ranges (struct writer *w, const struct snapshots *snapshots)
{
  const struct header *h = &w->header;
  struct overlap *o = &w->overlap;
  uint32_t i;

  if (overlap_add_range (o, (struct host_off) { 0 }, h->cluster_size,
                         METADATA_HEADER) == -1 ||
      overlap_add_range (o, h->l1_offset, h->l1_size * sizeof (uint64_t),
                         METADATA_L1) == -1 ||
      overlap_add_range (o, h->snapshots_offset, snapshots->table_bytes,
                         METADATA_SNAPSHOT_TABLE) == -1 ||
      (has_bitmaps (h) &&
       overlap_add_range (o, h->bitmap_directory, h->bitmap_directory_size,
                          METADATA_BITMAPS) == -1))
    return -1;
  for (i = 0; i < snapshots->nr; ++i) {
    const struct snapshot *sn = &snapshots->snapshot[i];

    /* One that can't be used has nothing that could be protected. */
    if (snapshot_check (sn, h, w->disk->tables) == 0 &&
        overlap_add_range (o, sn->l1_offset, sn->l1_size * sizeof (uint64_t),
                           METADATA_SNAPSHOT_L1) == -1)
      return -1;
  }
  return overlap_sort (o, writer_name (w));
}

/* The tables of L1 entries that are not the first with their table. */
struct again {
  uint64_t *table;
  size_t nr, max;
};

static int
note_again (struct writer *w, struct again *again, struct host_off table)
{
  if (again->nr == again->max) {
    const size_t max = again->max * 2 + 8;
    uint64_t *p = realloc (again->table, max * sizeof *p);

    if (p == NULL) {
      error_set (ENOMEM, "%s: out of memory", writer_name (w));
      return -1;
    }
    again->table = p;
    again->max = max;
  }
  again->table[again->nr++] = table.v;
  return 0;
}

static int
compare_l2_tables (const void *a, const void *b)
{
  const uint64_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* One table for several parts of the disk is fine if its refcount says so:
 * else it would be free while some of them still use it.
 */
static int
check_again (struct writer *w, const struct again *again)
{
  size_t i, n;

  if (again->nr > 1)
    qsort (again->table, again->nr, sizeof again->table[0], compare_l2_tables);
  for (i = 0; i < again->nr; i += n) {
    const struct host_off table = { again->table[i] };
    uint64_t refcount;

    for (n = 1; i + n < again->nr && again->table[i + n] == table.v; ++n)
      continue;
    if (alloc_refcount (&w->alloc, table, &refcount) == -1)
      return -1;
    if (refcount < n + 1) /* which says what is wrong */
      return overlap_add (&w->overlap, writer_name (w), table, 1,
                          METADATA_SHARED_L2);
  }
  return 0;
}

/* I7: the L2 tables of the live disk.  All entries must be right: one that
 * points beyond the end of the file would point at whatever is put there when
 * the file has grown.
 */
static int
add_l2_table (struct writer *w, const struct map_l1 *l1, struct again *again)
{
  const enum metadata kind = l1->copied ? METADATA_L2 : METADATA_SHARED_L2;

  if (l1->table.v == 0)
    return 0;
  if (kind == METADATA_SHARED_L2 &&
      overlap_find (&w->overlap, l1->table, 1) == METADATA_SHARED_L2)
    return note_again (w, again, l1->table);
  return overlap_add (&w->overlap, writer_name (w), l1->table, 1, kind);
}

/* Holes of the L1 table are skipped: nothing is in the cache yet that is not in
 * the storage.
 */
static int
add_l2_tables (struct writer *w)
{
  const struct map *m = qcow2_map (w->disk);
  const uint64_t per_slice = m->slice_bytes / sizeof (uint64_t);
  struct again again = { 0 };
  uint64_t i, empty = 0; /* entries in a row */
  int r = 0;

  for (i = 0; r == 0 && i < m->l1_size; ++i) {
    struct map_l1 l1;

    if (i % per_slice == 0 && empty >= per_slice) {
      const struct host_off at = { m->l1_offset.v + i * sizeof (uint64_t) };
      const uint64_t hole = storage_hole (m->tables, at) / sizeof (uint64_t);

      if (hole >= m->l1_size - i)
        break;
      i += hole;
    }
    if (map_l1_entry (m, (struct guest_off) { i << m->l1_shift }, &l1) == -1 ||
        add_l2_table (w, &l1, &again) == -1)
      r = -1;
    else
      empty = l1.table.v == 0 ? empty + 1 : 0;
  }
  if (r == 0)
    r = check_again (w, &again);
  free (again.table);
  return r;
}

static void
writer_free (struct writer *w)
{
  coalesce_destroy (&w->coalesce);
  inflight_destroy (&w->inflight);
  overlap_destroy (&w->overlap);
  pthread_mutex_destroy (&w->tables);
  pthread_mutex_destroy (&w->begin_lock);
  free (w);
}

struct writer *
writer_open (const struct layer *disk, const struct header *h,
             const struct snapshots *snapshots,
             const struct writer_options *options)
{
  const struct map *m = qcow2_map (disk);
  struct writer *w;

  w = calloc (1, sizeof *w);
  if (w == NULL) {
    error_set (ENOMEM, "%s: out of memory", disk->tables->name);
    return NULL;
  }
  w->disk = disk;
  w->header = *h;
  w->leaks_left = h->hint_set;
  pthread_mutex_init (&w->tables, NULL);
  pthread_mutex_init (&w->begin_lock, NULL);
  inflight_init (&w->inflight);
  coalesce_init (&w->coalesce, h->cluster_bits);
  overlap_init (&w->overlap, h->cluster_bits);
  if (add_ranges (w, snapshots) == -1 ||
      writeback_init (&w->writeback, disk->tables, disk->data, m->cache, m->id,
                      m->slice_bytes, h->cluster_bits,
                      disk->shared->epoch) == -1)
    goto fail;
  if (alloc_init (&w->alloc, h, &w->writeback, &w->overlap,
                  options->keep_discarded) == -1)
    goto fail_space;
  w->writeback.max_freed = options->max_freed;
  w->alloc.clusters = disk->shared->clusters;
  w->compress_level = options->compress_level;
  /* While clusters are compressed most of what is written goes elsewhere. */
  alloc_placement_init (&w->alloc_placement, &w->alloc, disk->data,
                        w->compress_level != 0);
  w->placement = &w->alloc_placement.placement;
  if (add_l2_tables (w) == -1)
    goto fail_l2;
  return w;

 fail_l2:
  alloc_destroy (&w->alloc);
 fail_space:
  writeback_destroy (&w->writeback);
 fail:
  error_append (" (so that it can't be written)");
  writer_free (w);
  return NULL;
}

/* ------------------------------------------------------------ feature bits */

/* Write the header's feature bits, durably.  begin_lock held. */
static int
write_feature_bits (struct writer *w)
{
  const struct host_off at = { HEADER_FEATURES_OFFSET };
  uint8_t buf[HEADER_FEATURES_BYTES];

  header_encode_features (&w->header, buf);
  if (storage_write (w->disk->tables, buf, sizeof buf, at) == -1 ||
      storage_flush (w->disk->tables) == -1) {
    writeback_fail (&w->writeback);
    return -1;
  }
  return 0;
}

/* Write the hint that a writer has not ended.  It becomes durable by the flush
 * that makes the first leak so: no fdatasync is spent on it.
 */
static int
write_hint (struct writer *w, uint8_t value)
{
  if (w->header.hint.v == 0)
    return 0;
  if (storage_write (w->disk->tables, &value, sizeof value,
                     w->header.hint) == -1) {
    writeback_fail (&w->writeback);
    return -1;
  }
  writeback_note_data (&w->writeback);
  return 0;
}

/* What became of a corrupt image: v2 has no bit to mark it by. */
static const char *
consequence (const struct writer *w)
{
  return w->header.version >= 3 ? "it is marked as corrupt"
    : "nothing is written any more";
}

static void
mark_corrupt (struct writer *w)
{
  pthread_mutex_lock (&w->begin_lock);
  if (w->header.version >= 3 &&
      !(w->header.incompatible & QCOW2_INCOMPAT_CORRUPT)) {
    w->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
    (void) write_feature_bits (w); /* the error will be about the overlap */
  }
  pthread_mutex_unlock (&w->begin_lock);
}

/* An error, which may be that the image was found to be corrupt: the first
 * request that learns of it says so.
 */
int
writer_failed (struct writer *w)
{
  if (atomic_load (&w->writeback.corrupt) &&
      !atomic_exchange (&w->found_corrupt, true)) {
    mark_corrupt (w);
    error_set (EIO, "%s: %s", w->writeback.message, consequence (w));
  }
  return -1;
}

/* What must be true before anything is changed: what nobody keeps up to date
 * from here on is not to be believed (I8), and with lazy refcounts the image
 * is dirty.  The bitmaps' own bit stays: they remain well-formed, and those
 * that are disabled right.  begin_lock held.
 */
static int
begin_writing (struct writer *w)
{
  struct header *h = &w->header;
  const bool lazy = h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
  const uint64_t autoclear = has_bitmaps (h) ? QCOW2_AUTOCLEAR_BITMAPS : 0;
  bool written;

  if (write_hint (w, HEADER_HINT_SET) == -1)
    return -1;
  if (h->version < 3)
    return 0;
  if (bitmaps_mark_in_use (w->disk->tables, h, &written) == -1) {
    if (written)
      writeback_fail (&w->writeback);
    return -1;
  }
  if (h->autoclear == autoclear && !lazy)
    return 0;
  h->autoclear = autoclear;
  if (lazy)
    h->incompatible |= QCOW2_INCOMPAT_DIRTY;
  w->dirty = lazy;
  return write_feature_bits (w);
}

int
writer_begin (struct writer *w, struct guest_off offset, uint64_t count)
{
  int r = 0;

  (void) offset;
  (void) count;
  if (writeback_check (&w->writeback) == -1)
    return writer_failed (w);
  if (atomic_load_explicit (&w->begun, memory_order_acquire))
    return 0;
  pthread_mutex_lock (&w->begin_lock);
  if (!w->begun) {
    r = begin_writing (w);
    if (r == 0)
      atomic_store_explicit (&w->begun, true, memory_order_release);
  }
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* Nothing may be written any more, and everybody shall know.  what was about
 * to happen to metadata of this kind.
 */
int
writer_found_corrupt (struct writer *w, const char *what, enum metadata kind,
                      struct host_off offset, uint64_t bytes)
{
  atomic_store (&w->found_corrupt, true);
  mark_corrupt (w);
  error_set (EIO, "%s: damaged: %s %s, within %" PRIu64 " bytes at offset "
             "0x%" PRIx64 ": %s", writer_name (w), what, overlap_name (kind),
             bytes, offset.v, consequence (w));
  writeback_fail_corrupt (&w->writeback);
  return -1;
}

int
writer_check_overlap (struct writer *w, struct host_off offset, uint64_t bytes)
{
  const enum metadata kind = overlap_find (&w->overlap, offset, bytes);

  if (kind == METADATA_NONE)
    return 0;
  return writer_found_corrupt (w, "data would be written over", kind, offset,
                               bytes);
}

int
writer_take (struct writer *w, uint64_t guest, uint64_t nr,
             struct alloc_clusters *out)
{
  if (alloc_take (&w->alloc, guest, nr, out) == -1)
    return writer_failed (w);
  atomic_fetch_add_explicit (&w->taken, 1, memory_order_relaxed);
  return 0;
}

int
writer_place (struct writer *w, uint64_t guest, uint64_t nr,
              struct placed *out)
{
  if (w->placement->take (w->placement, guest, nr, out) == -1)
    return writer_failed (w);
  atomic_fetch_add_explicit (&w->taken, 1, memory_order_relaxed);
  return 0;
}

int
writer_take_bytes (struct writer *w, uint64_t bytes, struct host_off *host)
{
  if (alloc_take_bytes (&w->alloc, bytes, host) == -1)
    return writer_failed (w);
  atomic_fetch_add_explicit (&w->taken, 1, memory_order_relaxed);
  return 0;
}

/* --------------------------------------------------------------- L2 tables */

/* Have the L1 entry point to this table.  ordered: see struct change. */
static int
set_l1 (struct writer *w, const struct map_l1 *l1, struct host_off table,
        bool ordered, const struct freed *old)
{
  const uint32_t slice_bytes = qcow2_map (w->disk)->slice_bytes;
  const uint64_t word = table.v | QCOW2_ENTRY_COPIED;
  const struct change ch = {
    .slice.v = l1->place.v / slice_bytes * slice_bytes,
    .first = l1->place.v % slice_bytes / sizeof word,
    .nr = 1,
    .words = &word,
    .order = CACHE_SECOND,
    .ordered = ordered,
    .freed = old,
    .nr_freed = old != NULL,
  };

  /* If a damaged image said that a snapshot's table is free, then it may be
   * that, and in the cache.
   */
  cache_forget (qcow2_map (w->disk)->cache, qcow2_map (w->disk)->id, table,
                qcow2_map (w->disk)->cluster_size, slice_bytes);
  return writeback_change (&w->writeback, &ch, NULL);
}

/* A cluster that shall be zeros (P2): a damaged image may have the disk write
 * to it as well, and what was written is not to be taken for entries.
 */
static int
check_zero (struct writer *w, struct host_off table)
{
  const uint32_t bytes = qcow2_map (w->disk)->cluster_size;
  bool zero;

  if (storage_is_zero (w->disk->tables, table, bytes, &zero) == -1)
    return -1;
  return zero ? 0 : writer_found_corrupt (w, "data would be taken for",
                                          METADATA_L2, table, bytes);
}

/* An L2 table that maps nothing.  In clusters that are durably zero it needs
 * no order: without its entries it is still a table that maps nothing.
 */
static int
new_table (struct writer *w, const struct map_l1 *l1,
           const struct alloc_clusters *to)
{
  const int r = to->zero ? check_zero (w, to->host)
    : storage_zero (w->disk->tables, to->host,
                    qcow2_map (w->disk)->cluster_size, false);

  if (r == -1)
    return -1;
  return set_l1 (w, l1, to->host, !to->zero || !to->durable, NULL);
}

/* Clear COPIED where the entries of a table are: two tables have them now. */
static void
clear_copied (const struct map *m, uint64_t *words)
{
  const uint64_t nr = m->cluster_size / sizeof *words;
  uint64_t i;

  for (i = 0; i < nr; i += UINT64_C (1) << m->l2_word_bits) {
    if (!(words[i] & htobe64 (QCOW2_L2_COMPRESSED)))
      words[i] &= ~htobe64 (QCOW2_ENTRY_COPIED);
  }
}

/* A copy of a table that a snapshot has as well.  The old one was never
 * changed since the image was opened, so that it is on the disk as it is.
 */
static int
copy_l2_table (struct writer *w, const struct map_l1 *l1,
            const struct alloc_clusters *to)
{
  const struct map *m = qcow2_map (w->disk);
  struct freed old = { .host = l1->table, .nr = 1, .is_table = true };
  uint64_t *words = malloc (m->cluster_size);
  uint64_t refcount;
  int r = -1;

  if (words == NULL) {
    error_set (ENOMEM, "%s: out of memory", writer_name (w));
    return -1;
  }
  if (alloc_refcount (&w->alloc, l1->table, &refcount) == 0 &&
      storage_read (m->tables, words, m->cluster_size, l1->table) == 0) {
    if (refcount != 1)
      clear_copied (m, words);
    else
      old.bytes = m->cluster_size;
    r = storage_write (m->tables, words, m->cluster_size, to->host);
    /* Who looks for references in the old table may come too late. */
    writeback_table_not_leaked (&w->writeback, &m->format, words,
                             m->cluster_size / sizeof *words);
  }
  free (words);
  return r == -1 ? -1 : set_l1 (w, l1, to->host, true, &old);
}

/* tables is held. */
static int
make_l2_table (struct writer *w, const struct map_l1 *l1,
               struct host_off *table)
{
  struct alloc_clusters to;
  int r;

  if (writer_take (w, ALLOC_NO_GUEST, 1, &to) == -1)
    return -1;
  r = writeback_allocate_table (&w->writeback, to.host);
  if (r == 0)
    r = overlap_add (&w->overlap, writer_name (w), to.host, 1,
                     METADATA_L2); /* P1 */
  if (r == 0) {
    r = l1->table.v == 0 ? new_table (w, l1, &to) : copy_l2_table (w, l1, &to);
    if (r == -1)
      overlap_remove (&w->overlap, to.host, 1);
  }
  if (r == -1)
    alloc_give_back (&w->alloc, to.host, 1);
  *table = to.host;
  return r;
}

int
writer_table (struct writer *w, struct guest_off offset,
              struct host_off *table)
{
  struct map_l1 l1;
  int r;

  if (map_l1_entry (qcow2_map (w->disk), offset, &l1) == -1)
    return -1;
  *table = l1.table;
  if (l1.copied && l1.table.v != 0)
    return 0;
  pthread_mutex_lock (&w->tables);
  r = map_l1_entry (qcow2_map (w->disk), offset, &l1);
  if (r == 0) {
    *table = l1.table;
    if (!l1.copied || l1.table.v == 0)
      r = make_l2_table (w, &l1, table);
  }
  pthread_mutex_unlock (&w->tables);
  return r;
}

/* ----------------------------------------------------------------- flushing */

int
writer_flush (struct writer *w)
{
  if (writeback_check (&w->writeback) == -1 ||
      writeback_flush (&w->writeback) == -1)
    return writer_failed (w);
  alloc_reclaim (&w->alloc);
  return writeback_check (&w->writeback) == -1 ? writer_failed (w) : 0;
}

/* ------------------------------------------------------------------ closing */

/* Nothing is pending any more. */
static int
clear_dirty (struct writer *w)
{
  int r;

  if (!w->dirty)
    return 0;
  pthread_mutex_lock (&w->begin_lock);
  w->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
  r = write_feature_bits (w);
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* All else is durable.  Leaks that are left are to be looked for, still. */
static int
clear_hint (struct writer *w)
{
  if (w->header.hint.v == 0 || w->leaks_left)
    return 0;
  return write_hint (w, HEADER_HINT_ENDED) == -1 ? -1
    : writeback_flush (&w->writeback);
}

int
writer_close (struct writer *w)
{
  int r = 0;

  if (w == NULL)
    return 0;
  if (w->begun) {
    r = writeback_check (&w->writeback);
    if (r == 0)
      r = alloc_close (&w->alloc);
    r = r == 0 ? clear_dirty (w) : writer_failed (w);
  }
  if (w->begun && r == 0)
    r = clear_hint (w);
  alloc_destroy (&w->alloc);
  writeback_destroy (&w->writeback);
  writer_free (w);
  return r;
}
