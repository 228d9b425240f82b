/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/write/take-parts.h"
#include "qcow2/write/writer-parts.h"

static int
no_memory (const struct take *t)
{
  error_set (ENOMEM, "%s: out of memory", writer_name (t->w));
  return -1;
}

/* ------------------------------------------------------------------ checking */

static int
check_new (const struct writer *w, const char *name,
           const struct snapshots *snapshots)
{
  char printable[1024];
  uint32_t i;

  for (i = 0; i < snapshots->nr; ++i) {
    if (strcmp (snapshots->snapshot[i].name, name) != 0)
      continue;
    error_set (EEXIST, "%s: the snapshot '%s' exists already", writer_name (w),
               error_printable (printable, sizeof printable, name));
    return -1;
  }
  if (w->header.refcount_order == 0) {
    error_set (ENOTSUP, "%s: its refcounts have one bit, so that there can be no "
               "snapshots", writer_name (w));
    return -1;
  }
  return snapshot_table_check_name (writer_name (w), snapshots, name);
}

/* The snapshot table as it will be, but for the place of the new L1 table. */
static int
make_snapshot_table (struct take *t, const char *name,
                     const struct timespec *date,
                     const struct snapshots *snapshots)
{
  const struct header h = writer_get_header (t->w);
  struct storage *s = t->w->disk->tables;
  char id[SNAPSHOT_ID_BYTES];
  const struct snapshot_new sn = {
    .l1_entries = take_map (t)->l1_size, .id = id, .name = name, .date = *date,
    .disk_size = h.disk_size,
  };

  if (snapshot_table_next_id (s->name, snapshots, id) == -1 ||
      snapshot_table_read (&t->snapshot_table, s, &h, snapshots) == -1)
    return -1;
  return snapshot_table_append (&t->snapshot_table, s->name, &sn);
}

/* -------------------------------------------------------------------- taking */

/* The live disk's tables: those of the point, or more. */
static int
count_tables (const struct take *t, uint64_t *nr)
{
  const struct map *m = take_map (t);
  uint64_t i;

  *nr = 0;
  for (i = 0; i < m->l1_size; ++i) {
    struct map_l1 l1;

    if (map_l1_entry (m, (struct guest_off) { i << m->l1_shift }, &l1) == -1)
      return -1;
    *nr += l1.table.v != 0;
  }
  return 0;
}

static inline uint64_t
clusters (const struct take *t, uint64_t bytes)
{
  const struct map *m = take_map (t);

  return (bytes + m->cluster_size - 1) >> m->format.cluster_bits;
}

/* One more table: take_fill_tables looks at some for which there is no cluster. */
static int
have_memory (struct take *t, uint64_t tables)
{
  const struct map *m = take_map (t);
  const uint64_t l1_bytes = m->l1_size * sizeof t->l1[0];

  t->copy = malloc (m->cluster_size);
  t->l1 = calloc (clusters (t, l1_bytes) + 1, m->cluster_size);
  t->table = calloc (tables + 1, sizeof t->table[0]);
  t->piece = malloc (sizeof *t->piece);
  return t->copy == NULL || t->l1 == NULL || t->table == NULL ||
    t->piece == NULL ? no_memory (t) : 0;
}

static int
take_space (struct take *t, uint64_t bytes, struct alloc_clusters *space)
{
  if (bytes == 0 ||
      alloc_take_contiguous (&t->w->alloc, clusters (t, bytes), space) == 0)
    return 0;
  space->nr = 0;
  return writer_failed (t->w);
}

/* K1 */
static int
take_clusters (struct take *t, uint64_t tables)
{
  const unsigned bits = take_map (t)->format.cluster_bits;
  struct alloc_clusters got;
  uint64_t i;

  while (t->nr_tables < tables) {
    if (writer_take (t->w, ALLOC_NO_GUEST, tables - t->nr_tables, &got) == -1)
      return -1;
    for (i = 0; i < got.nr; ++i)
      t->table[t->nr_tables++].host.v = got.host.v + (i << bits);
  }
  if (take_space (t, take_map (t)->l1_size * sizeof t->l1[0],
                  &t->l1_space) == -1)
    return -1;
  return take_space (t, t->snapshot_table.size, &t->table_space);
}

/* ------------------------------------------------------------------- filling */

/* A table of whole clusters. */
static int
write_table (struct take *t, const void *bytes,
             const struct alloc_clusters *space, enum metadata kind)
{
  struct writer *w = t->w;

  if (overlap_add (&w->overlap, writer_name (w), space->host, space->nr,
                   kind) == -1 ||
      storage_write (w->disk->tables, bytes,
                     space->nr << take_map (t)->format.cluster_bits,
                     space->host) == -1)
    return -1;
  writeback_note_data (&w->writeback);
  return 0;
}

static int
write_snapshot_table (struct take *t)
{
  const uint64_t size = t->snapshot_table.size;
  uint8_t *bytes = calloc (clusters (t, size), take_map (t)->cluster_size);
  int r;

  if (bytes == NULL)
    return no_memory (t);
  memcpy (bytes, t->snapshot_table.bytes, size);
  r = write_table (t, bytes, &t->table_space, METADATA_SNAPSHOT_TABLE);
  free (bytes);
  return r;
}

/* All that the header will lead to, durably; made is read from it. */
static int
fill (struct take *t, struct snapshots *made)
{
  struct header h;

  if (take_fill_tables (t) == -1)
    return -1;
  if (t->l1_space.nr > 0) {
    snapshot_table_set_l1 (&t->snapshot_table, t->l1_space.host);
    if (write_table (t, t->l1, &t->l1_space, METADATA_SNAPSHOT_L1) == -1)
      return -1;
  }
  if (write_snapshot_table (t) == -1 || writer_flush (t->w) == -1)
    return -1;
  h = writer_get_header (t->w);
  h.nr_snapshots = t->snapshot_table.nr;
  h.snapshots_offset = t->table_space.host;
  return snapshots_read (made, &h, t->w->disk->tables);
}

/* ---------------------------------------------------------------- the switch */

/* K5.  Of the old table's place the overlap table knows by a range, if it was there
 * when the image was opened.
 */
static void
give_up_old (struct take *t, struct host_off old, uint64_t bytes)
{
  struct writer *w = t->w;
  const struct freed f = {
    .host = old, .nr = clusters (t, bytes), .is_table = true,
    .bytes = clusters (t, bytes) << take_map (t)->format.cluster_bits,
  };

  if (bytes == 0)
    return;
  overlap_remove_range (&w->overlap, old);
  (void) writeback_free (&w->writeback, &f, 1); /* or lost */
}

/* K3 */
static int
switch_to (struct take *t, const struct snapshots *snapshots)
{
  const struct host_off old = writer_get_header (t->w).snapshots_offset;

  if (features_switch_snapshots (t->w, t->snapshot_table.nr,
                                 t->table_space.host, t->bitmaps) == -1) {
    if (writeback_has_failed (&t->w->writeback))
      error_append (" (the snapshot may have been made)");
    return -1;
  }
  give_up_old (t, old, snapshots->table_bytes);
  for (; t->nr_filled < t->nr_tables; ++t->nr_filled)
    alloc_give_back (&t->w->alloc, t->table[t->nr_filled].host, 1);
  return 0;
}

/* All is in memory. */
static int
make (struct take *t, uint64_t tables, const struct snapshots *snapshots,
      struct snapshots *made)
{
  if (take_clusters (t, tables) == 0) {
    t->dirty = true;
    if (features_begin_take (t->w) == 0 && fill (t, made) == 0) {
      if (switch_to (t, snapshots) == 0)
        return 0;
      snapshots_free (made);
    }
  }
  take_undo (t);
  return -1;
}

static void
take_free (struct take *t)
{
  uint64_t i;

  for (i = 0; t->table != NULL && i <= t->nr_tables; ++i)
    free (t->table[i].cleared);
  free (t->table);
  free (t->l1);
  free (t->copy);
  free (t->piece);
  snapshot_table_free (&t->snapshot_table);
}

int
take_snapshot (struct writer *w, const struct point *point, const char *name,
               const struct timespec *date, const struct snapshots *snapshots,
               const struct bitmap_header *bitmaps, struct snapshots *made)
{
  struct take t = {
    .w = w, .point = point, .bitmaps = bitmaps,
    .lost = atomic_load (&w->writeback.lost),
  };
  uint64_t tables;
  int r = -1;

  if (check_new (w, name, snapshots) == 0 &&
      writer_begin (w, (struct guest_off) { 0 }, 0) == 0 &&
      make_snapshot_table (&t, name, date, snapshots) == 0 &&
      count_tables (&t, &tables) == 0 && have_memory (&t, tables) == 0)
    r = make (&t, tables, snapshots, made);
  take_free (&t);
  return r;
}
