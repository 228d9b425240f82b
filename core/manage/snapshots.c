/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/edit.h"
#include "manage/snapshot-table.h"
#include "manage/snapshots.h"
#include "manage/tables.h"
#include "qcow2/bitmaps.h"
#include "qcow2/qcow2.h"

static int
read_live (const struct edit *e, struct tables *t)
{
  return tables_read (t, e->storage, &e->format, e->header.l1_offset,
                      e->header.l1_size);
}

static int
read_snapshot (const struct edit *e, const struct snapshot *sn,
               struct tables *t)
{
  return tables_read (t, e->storage, &e->format, sn->l1_offset, sn->l1_size);
}

/* The refcounts as they are on the disk now.  After edit_take the table may be
 * in another place.
 */
static int
open_refs (const struct edit *e, struct refs *refs)
{
  struct header h;

  return qcow2_read_header (e->storage, &h) == -1 ? -1
    : refs_open (refs, e->storage, &h);
}

static int
drop_clusters (const struct edit *e, struct refs *refs, struct host_off at,
               uint64_t bytes)
{
  return refs_change (refs, at.v >> e->header.cluster_bits,
                      edit_clusters (e, bytes), -1);
}

/* What is told of a failure when the image has changed already. */
static void
say_what_is_left (const struct edit *e, const char *done)
{
  error_append (" (%s; %s: check --repair=all completes it)", done,
                e->header.version >= 3 ? "it is marked as dirty"
                : "its COPIED flags may be wrong");
}

/* ------------------------------------------------------------------ creating */

static int
next_id (const struct edit *e, char *id, size_t size)
{
  uint64_t max = 0;
  uint32_t i;

  for (i = 0; i < e->snapshots.nr; ++i) {
    const uint64_t n = strtoull (e->snapshots.snapshot[i].id, NULL, 10);

    if (n > max)
      max = n;
  }
  if (max == UINT64_MAX) {
    error_set (ENOTSUP, "%s: there is no ID greater than that of all "
               "snapshots, %" PRIu64, e->storage->name, max);
    return -1;
  }
  snprintf (id, size, "%" PRIu64, max + 1);
  return 0;
}

static int
check_new_name (const struct edit *e, const char *name)
{
  if (strlen (name) > SNAPSHOT_MAX_NAME)
    error_set (ENOTSUP, "%s: the name of a snapshot must have at most %d "
               "bytes", e->storage->name, SNAPSHOT_MAX_NAME);
  else if (e->snapshots.nr >= QCOW2_MAX_SNAPSHOTS)
    error_set (ENOTSUP, "%s: it has %d snapshots, and can't have more",
               e->storage->name, QCOW2_MAX_SNAPSHOTS);
  else
    return 0;
  return -1;
}

/* Whether each refcount can be one more. */
static int
try_to_create (struct edit *e, const struct tables *live)
{
  struct refs refs;
  int r;

  if (open_refs (e, &refs) == -1)
    return -1;
  r = tables_add (live, &refs, 1);
  refs_close (&refs);
  return r;
}

/* Write the new tables, which nothing refers to yet.  space: the snapshot table,
 * and the L1 table if it has entries.
 */
static int
fill_new (struct edit *e, const struct tables *live,
          struct snapshot_table *table, const struct edit_space *space)
{
  uint64_t *l1 = malloc (live->nr * sizeof l1[0] + 1), i;
  int r = 0;

  if (l1 == NULL) {
    error_set (ENOMEM, "%s: out of memory", e->storage->name);
    return -1;
  }
  for (i = 0; i < live->nr; ++i)
    l1[i] = live->l1[i] & ~htobe64 (QCOW2_ENTRY_COPIED);
  if (live->nr > 0) {
    snapshot_table_set_l1 (table, space[1].at);
    r = edit_fill (e, &space[1], l1);
  }
  free (l1);
  if (r == 0)
    r = edit_fill (e, &space[0], table->bytes);
  return r == -1 ? -1 : storage_flush (e->storage);
}

/* Take back what share_all did, where it ran out of space: nothing refers to
 * the new tables.
 */
static int
unshare_all (struct edit *e, struct tables *live, struct refs *refs)
{
  if (tables_add (live, refs, -1) == -1 || edit_write_refs (e, refs) == -1 ||
      tables_set_copied (live, refs) == -1)
    return -1;
  edit_set_dirty (e, false);
  return edit_switch (e);
}

/* All that the live disk has gets a second user.  The flags are cleared after
 * the refcounts are durable, and before there is that user.
 */
static int
share_all (struct edit *e, struct tables *live, struct refs *refs)
{
  if (tables_add (live, refs, 1) == -1)
    return -1;
  edit_set_dirty (e, true);
  if (e->header.version >= 3 && edit_switch (e) == -1)
    return -1;
  if (edit_write_refs (e, refs) == -1 || tables_set_copied (live, refs) == -1)
    return -1;
  return storage_flush (e->storage);
}

/* The switch to the new table, and what may be freed then. */
static int
switch_table (struct edit *e, const struct snapshot_table *table,
              const struct edit_space *space, bool dirty)
{
  edit_set_dirty (e, dirty);
  edit_set_snapshots (e, table->nr,
                      table->nr > 0 ? space->at : (struct host_off) { 0 });
  return edit_switch (e);
}

static int
free_old_table (struct edit *e, struct refs *refs)
{
  if (e->snapshots.table_bytes > 0 &&
      drop_clusters (e, refs, e->header.snapshots_offset,
                     e->snapshots.table_bytes) == -1)
    return -1;
  return edit_write_refs (e, refs);
}

/* The clusters are taken, and filled. */
static int
create_in (struct edit *e, struct tables *live,
           const struct snapshot_table *table, const struct edit_space *space,
           unsigned nr, struct refs *refs)
{
  if (share_all (e, live, refs) == -1) {
    struct edit_error kept;

    edit_keep_error (&kept);
    if (kept.err == ENOSPC && unshare_all (e, live, refs) == 0) {
      edit_set_error (&kept);
      edit_give_back (e, space, nr);
      return -1;
    }
    edit_set_error (&kept);
    say_what_is_left (e, "no snapshot was made");
    return -1;
  }
  if (switch_table (e, table, &space[0], false) == -1) {
    say_what_is_left (e, "the snapshot may have been made");
    return -1;
  }
  if (free_old_table (e, refs) == 0 && edit_end (e, refs) == 0)
    return 0;
  error_append (" (the snapshot was made, and clusters are leaked)");
  return -1;
}

static int
create (struct edit *e, struct tables *live, struct snapshot_table *table)
{
  struct edit_space space[2] = {
    { .bytes = table->size },
    { .bytes = live->nr * sizeof live->l1[0] },
  };
  const unsigned nr = live->nr > 0 ? 2 : 1;
  struct refs refs;
  int r;

  if (try_to_create (e, live) == -1 || edit_take (e, space, nr) == -1)
    return -1;
  if (fill_new (e, live, table, space) == -1) {
    if (error_errno () == ENOSPC)
      edit_give_back (e, space, nr);
    return -1;
  }
  if (open_refs (e, &refs) == -1)
    return -1;
  r = create_in (e, live, table, space, nr, &refs);
  refs_close (&refs);
  return r;
}

int
snapshot_create (struct storage *s, const char *name,
                 const struct timespec *date)
{
  struct snapshot_table table = { 0 };
  struct tables live = { 0 };
  struct snapshot_new sn = { .name = name, .date = *date };
  struct edit e;
  char id[32];
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  sn.id = id;
  sn.l1_entries = e.header.l1_size;
  sn.disk_size = e.header.disk_size;
  if (check_new_name (&e, name) == 0 && next_id (&e, id, sizeof id) == 0 &&
      read_live (&e, &live) == 0 &&
      snapshot_table_read (&table, s, &e.header, &e.snapshots) == 0 &&
      snapshot_table_append (&table, s->name, &sn) == 0)
    r = create (&e, &live, &table);
  snapshot_table_free (&table);
  tables_free (&live);
  edit_close (&e);
  return r;
}

/* ------------------------------------------------------------------ deleting */

/* What becomes of the refcounts.  What is free then must not be in use by the
 * live disk.
 */
static int
count_deleted (struct edit *e, const struct tables *gone,
               const struct tables *live, struct refs *refs)
{
  if (tables_add (gone, refs, -1) == -1 || tables_check (live, refs, 1) == -1 ||
      edit_check_freed (e, refs, false) == -1)
    return -1;
  return gone->nr == 0 ? 0
    : drop_clusters (e, refs, gone->at, gone->nr * sizeof gone->l1[0]);
}

static int
try_to_delete (struct edit *e, const struct tables *gone,
               const struct tables *live)
{
  struct refs refs;
  int r;

  if (open_refs (e, &refs) == -1)
    return -1;
  r = count_deleted (e, gone, live, &refs);
  refs_close (&refs);
  return r;
}

/* The snapshot is gone, and its clusters are leaked: free them. */
static int
free_deleted (struct edit *e, const struct tables *gone, struct tables *live)
{
  struct refs refs;
  int r;

  if (open_refs (e, &refs) == -1)
    return -1;
  r = count_deleted (e, gone, live, &refs);
  if (r == 0)
    r = free_old_table (e, &refs);
  /* Only now: what has the flag must not have a second user. */
  if (r == 0)
    r = tables_set_copied (live, &refs);
  if (r == 0 && e->header.version >= 3) {
    edit_set_dirty (e, false);
    r = edit_switch (e);
  }
  if (r == 0)
    r = edit_end (e, &refs);
  refs_close (&refs);
  return r;
}

static int
delete_in (struct edit *e, struct snapshot_table *table,
           const struct tables *gone, struct tables *live)
{
  struct edit_space space = { .bytes = table->size };
  const unsigned nr = table->nr > 0;

  if (try_to_delete (e, gone, live) == -1 || edit_take (e, &space, nr) == -1)
    return -1;
  if (nr > 0 && (edit_fill (e, &space, table->bytes) == -1 ||
                 storage_flush (e->storage) == -1)) {
    if (error_errno () == ENOSPC)
      edit_give_back (e, &space, nr);
    return -1;
  }
  if (switch_table (e, table, &space, true) == -1)
    return -1;
  if (free_deleted (e, gone, live) == 0)
    return 0;
  say_what_is_left (e, "the snapshot is deleted, and clusters are leaked");
  return -1;
}

static const struct snapshot *
none_such (const struct edit *e, const char *name)
{
  char printable[1024];

  error_set (ENOENT, "%s: there is no snapshot '%s'", e->storage->name,
             error_printable (printable, sizeof printable, name));
  return NULL;
}

static const struct snapshot *
find_by_name (const struct edit *e, const char *name)
{
  uint32_t i;

  for (i = 0; i < e->snapshots.nr; ++i) {
    if (strcmp (e->snapshots.snapshot[i].name, name) == 0)
      return &e->snapshots.snapshot[i];
  }
  return none_such (e, name);
}

static const struct snapshot *
find_by_id_or_name (const struct edit *e, const char *what)
{
  uint32_t i;

  for (i = 0; i < e->snapshots.nr; ++i) {
    if (strcmp (e->snapshots.snapshot[i].id, what) == 0)
      return &e->snapshots.snapshot[i];
  }
  return find_by_name (e, what);
}

int
snapshot_delete (struct storage *s, const char *name)
{
  struct snapshot_table table = { 0 };
  struct tables live = { 0 }, gone = { 0 };
  const struct snapshot *sn;
  struct edit e;
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  sn = find_by_name (&e, name);
  if (sn != NULL && read_live (&e, &live) == 0 &&
      read_snapshot (&e, sn, &gone) == 0 &&
      snapshot_table_read (&table, s, &e.header, &e.snapshots) == 0 &&
      snapshot_table_remove (&table, s->name,
                             sn - e.snapshots.snapshot) == 0)
    r = delete_in (&e, &table, &gone, &live);
  snapshot_table_free (&table);
  tables_free (&live);
  tables_free (&gone);
  edit_close (&e);
  return r;
}

/* ------------------------------------------------------------------ applying */

/* Bitmaps tell what has changed since some moment: everything may have.  And
 * they are for a disk of one size.
 */
static int
check_bitmaps (const struct edit *e, bool resized)
{
  bool follow;

  if (bitmaps_must_follow (e->storage, &e->header, &follow) == -1)
    return -1;
  if (follow)
    error_set (ENOTSUP, "%s: it has persistent bitmaps that are enabled, which "
               "this would make wrong", e->storage->name);
  else if (resized && writer_has_bitmaps (&e->header))
    error_set (ENOTSUP, "%s: it has persistent bitmaps, which would be for a "
               "disk of another size", e->storage->name);
  else
    return 0;
  return -1;
}

static int
check_size (const struct edit *e, const struct snapshot *sn)
{
  const bool resized = sn->disk_size / EDIT_SECTOR !=
    e->header.disk_size / EDIT_SECTOR;

  if (check_bitmaps (e, resized) == -1)
    return -1;
  if (!resized || e->header.version >= 3)
    return 0;
  error_set (ENOTSUP, "%s: the snapshot's disk has %" PRIu64 " bytes, and a "
             "version 2 image with snapshots can't be resized",
             e->storage->name, sn->disk_size);
  return -1;
}

/* As many entries as both the disk and the snapshot's table have. */
static int
new_l1_entries (const struct edit *e, const struct snapshot *sn, uint64_t *nr)
{
  const unsigned shift = header_l1_shift (&e->header);

  *nr = sn->disk_size >> shift;
  *nr += (*nr << shift) < sn->disk_size;
  if (*nr < sn->l1_size)
    *nr = sn->l1_size;
  if (*nr == 0)
    *nr = 1;
  if (*nr <= QCOW2_MAX_L1_BYTES / sizeof (uint64_t))
    return 0;
  error_set (ENOTSUP, "%s: a disk of %" PRIu64 " bytes wants an L1 table of "
             "more than %" PRIu64 " bytes", e->storage->name, sn->disk_size,
             QCOW2_MAX_L1_BYTES);
  return -1;
}

/* The live disk's clusters lose a user, its L1 table its only one. */
static int
count_replaced (struct edit *e, const struct tables *old, struct refs *refs)
{
  if (tables_add (old, refs, -1) == -1 ||
      edit_check_freed (e, refs, true) == -1)
    return -1;
  return old->nr == 0 ? 0
    : drop_clusters (e, refs, old->at, old->nr * sizeof old->l1[0]);
}

/* The COPIED flags of the snapshot's tables may be cleared: see below. */
static int
check_l2_tables (struct edit *e, const struct tables *sn)
{
  size_t i;

  for (i = 0; i < sn->nr_uses; ++i) {
    const struct host_off at = { sn->use[i].table };
    const enum metadata kind = overlap_find (&e->writer->overlap, at, 1);

    if (kind == METADATA_NONE || kind == METADATA_SHARED_L2 ||
        kind == METADATA_L2)
      continue;
    error_set (EIO, "%s: damaged: the L2 table of a snapshot at offset 0x%"
               PRIx64 " overlaps %s", e->storage->name, at.v,
               overlap_name (kind));
    return -1;
  }
  return 0;
}

static int
try_to_apply (struct edit *e, const struct tables *sn,
              const struct tables *old)
{
  struct refs refs;
  int r;

  if (check_l2_tables (e, sn) == -1 || open_refs (e, &refs) == -1)
    return -1;
  r = tables_add (sn, &refs, 1);
  if (r == 0)
    r = count_replaced (e, old, &refs);
  if (r == 0)
    r = tables_check (sn, &refs, 2);
  refs_close (&refs);
  return r;
}

/* What the snapshot has gets the live disk as another user, which must find no
 * COPIED flags there: other programs may have left some.
 */
static int
share_snapshot (struct edit *e, struct tables *sn, struct refs *refs)
{
  if (tables_add (sn, refs, 1) == -1 || edit_write_refs (e, refs) == -1 ||
      tables_set_copied (sn, refs) == -1)
    return -1;
  return storage_flush (e->storage);
}

static int
fill_l1 (struct edit *e, const struct tables *sn,
         const struct edit_space *space)
{
  uint64_t *l1 = calloc (1, space->bytes), i;
  int r;

  if (l1 == NULL) {
    error_set (ENOMEM, "%s: out of memory", e->storage->name);
    return -1;
  }
  for (i = 0; i < sn->nr; ++i)
    l1[i] = sn->l1[i] & ~htobe64 (QCOW2_ENTRY_COPIED);
  r = edit_fill (e, space, l1);
  free (l1);
  return r == -1 ? -1 : storage_flush (e->storage);
}

/* The clusters for the L1 table are taken, and filled. */
static int
apply_in (struct edit *e, uint64_t disk_size, struct tables *sn,
          const struct tables *old, const struct edit_space *space,
          struct refs *refs)
{
  if (share_snapshot (e, sn, refs) == -1) {
    error_append (" (the snapshot was not applied, and clusters are leaked)");
    return -1;
  }
  edit_set_disk (e, disk_size, space->bytes / sizeof (uint64_t), space->at);
  if (edit_switch (e) == -1)
    return -1;
  if (count_replaced (e, old, refs) == 0 && edit_write_refs (e, refs) == 0 &&
      edit_end (e, refs) == 0)
    return 0;
  error_append (" (the snapshot was applied, and clusters are leaked)");
  return -1;
}

static int
apply (struct edit *e, const struct snapshot *snapshot, struct tables *sn,
       const struct tables *old)
{
  struct edit_space space;
  struct refs refs;
  uint64_t nr;
  int r;

  if (check_size (e, snapshot) == -1 ||
      new_l1_entries (e, snapshot, &nr) == -1 ||
      try_to_apply (e, sn, old) == -1)
    return -1;
  space.bytes = nr * sizeof (uint64_t);
  if (edit_take (e, &space, 1) == -1)
    return -1;
  if (fill_l1 (e, sn, &space) == -1) {
    if (error_errno () == ENOSPC)
      edit_give_back (e, &space, 1);
    return -1;
  }
  if (open_refs (e, &refs) == -1)
    return -1;
  r = apply_in (e, snapshot->disk_size, sn, old, &space, &refs);
  refs_close (&refs);
  return r;
}

int
snapshot_apply (struct storage *s, const char *id_or_name)
{
  struct tables old = { 0 }, sn = { 0 };
  const struct snapshot *snapshot;
  struct edit e;
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  snapshot = find_by_id_or_name (&e, id_or_name);
  if (snapshot != NULL && read_live (&e, &old) == 0 &&
      read_snapshot (&e, snapshot, &sn) == 0)
    r = apply (&e, snapshot, &sn, &old);
  tables_free (&old);
  tables_free (&sn);
  edit_close (&e);
  return r;
}
