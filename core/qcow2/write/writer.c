/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/advice.h"
#include "base/error.h"
#include "qcow2/bitmaps.h"
#include "qcow2/write/bitmap-clusters.h"
#include "qcow2/write/writer-parts.h"

/* ----------------------------------------------------------------- opening */

/* Whether those that must follow what is written can, as far as the directory
 * tells.
 */
static int
check_bitmaps (struct storage *s, const struct header *h,
               const struct writer_options *options)
{
  bool any;

  if (options->invalidate_bitmaps)
    return bitmaps_must_follow (s, h, &any);
  if (bitmaps_check_followed (s, h) == 0)
    return 0;
  if (error_errno () == ENOTSUP)
    advise (ADVICE_BITMAPS);
  return -1;
}

int
writer_check_header (struct storage *s, const struct header *h,
                     const struct writer_options *options)
{
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
  else if (h->has_data_file && h->disk_size > QCOW2_ENTRY_OFFSET_MASK)
    error_set (ENOTSUP, "%s: a disk of %" PRIu64 " bytes has places in its "
               "external data file that no entry can name", s->name,
               h->disk_size);
  else if (h->has_data_file && options->compress_level != 0)
    error_set (ENOTSUP, "%s: it has an external data file (incompatible "
               "feature bit 2), which excludes compressed clusters", s->name);
  else if (h->encryption != ENCRYPTION_NONE && options->compress_level != 0)
    error_set (ENOTSUP, "%s: it is encrypted (crypt_method %u), and compressed "
               "clusters would be in the clear", s->name, h->encryption);
  else
    return check_bitmaps (s, h, options);
  return -1;
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
      overlap_add_range (o, h->crypto, h->crypto_bytes,
                         METADATA_LUKS) == -1 ||
      (writer_has_bitmaps (h) &&
       (overlap_add_range (o, h->bitmap_directory, h->bitmap_directory_size,
                           METADATA_BITMAPS) == -1 ||
        bitmap_clusters_add (w->disk->tables, h, o, BITMAP_CLUSTERS_MAX,
                             &w->bitmaps_shared) == -1)))
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
  overlap_destroy (&w->nothing);
  pthread_mutex_destroy (&w->tables);
  pthread_mutex_destroy (&w->begin_lock);
  free (w);
}

static void
choose_placement (struct writer *w, const struct writer_options *options)
{
  if (w->header.has_data_file) {
    identity_placement_init (&w->places.identical, w->disk->data_file,
                             w->header.cluster_bits, options->keep_discarded ||
                             !storage_holes_read_zero (w->disk->data));
    w->placement = &w->places.identical.placement;
    w->forbidden = &w->nothing;
    return;
  }
  /* While clusters are compressed most of what is written goes elsewhere. */
  alloc_placement_init (&w->places.allocated, &w->alloc, w->disk->data,
                        w->compress_level != 0);
  w->placement = &w->places.allocated.placement;
  w->forbidden = &w->overlap;
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
  w->options = *options;
  w->leaks_left = h->hint_set;
  w->raw_seen = w->raw_size = atomic_load (&disk->data_file->size);
  w->raw_whole = w->raw_seen >= disk->size;
  pthread_mutex_init (&w->tables, NULL);
  pthread_mutex_init (&w->begin_lock, NULL);
  inflight_init (&w->inflight);
  coalesce_init (&w->coalesce, h->cluster_bits);
  overlap_init (&w->overlap, h->cluster_bits);
  overlap_init (&w->nothing, h->cluster_bits);
  if (add_ranges (w, snapshots) == -1 ||
      writeback_init (&w->writeback, disk->tables, disk->data, m->cache, m->id,
                      m->slice_bytes, h->cluster_bits,
                      disk->shared->epoch) == -1)
    goto fail;
  if (alloc_init (&w->alloc, h, &w->writeback, &w->overlap,
                  options->keep_discarded) == -1)
    goto fail_alloc;
  w->writeback.max_freed = options->max_freed;
  w->alloc.clusters = disk->shared->clusters;
  w->compress_level = options->compress_level;
  w->in_turn = w->compress_level != 0 || h->encryption == ENCRYPTION_AES;
  choose_placement (w, options);
  if (bitmap_clusters_check (&w->alloc, &w->overlap) == -1 ||
      add_l2_tables (w) == -1)
    goto fail_l2;
  return w;

 fail_l2:
  alloc_destroy (&w->alloc);
 fail_alloc:
  writeback_destroy (&w->writeback);
 fail:
  error_append (" (so that it can't be written)");
  writer_free (w);
  return NULL;
}

/* -------------------------------------------------------------- requests */

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
    r = features_begin (w);
    if (r == 0)
      atomic_store_explicit (&w->begun, true, memory_order_release);
  }
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* ----------------------------------------------------------------- flushing */

/* Whoever reads a raw data file alone finds all of the disk there (D5 of
 * raw-data.h).
 */
static void
lengthen_raw_data (struct writer *w)
{
  struct storage *data = w->disk->data_file;

  if (w->begun && atomic_load (&data->size) < w->disk->size &&
      storage_extend (data, w->disk->size) == 0)
    writeback_note_data (&w->writeback);
}

int
writer_flush (struct writer *w)
{
  if (writeback_check (&w->writeback) == -1)
    return writer_failed (w);
  if (w->header.raw_data)
    lengthen_raw_data (w);
  if (writeback_flush (&w->writeback) == -1)
    return writer_failed (w);
  alloc_reclaim (&w->alloc);
  return writeback_check (&w->writeback) == -1 ? writer_failed (w) : 0;
}

/* ------------------------------------------------------------------ closing */

int
writer_close (struct writer *w)
{
  int r;

  if (w == NULL)
    return 0;
  /* The first flush may have failed, before anything else was begun. */
  r = writeback_check (&w->writeback);
  if (r == 0 && w->begun)
    r = alloc_close (&w->alloc);
  if (r == -1)
    (void) writer_failed (w);
  else if (w->begun)
    r = features_clear_dirty (w);
  if (w->begun && r == 0)
    r = features_clear_hint (w);
  alloc_destroy (&w->alloc);
  writeback_destroy (&w->writeback);
  writer_free (w);
  return r;
}
