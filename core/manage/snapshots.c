/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/snapshots-parts.h"
#include "qcow2/snapshot-table.h"

int
snapshot_read_live (const struct edit *e, struct tables *t)
{
  return tables_read (t, e->storage, &e->format, e->header.l1_offset,
                      e->header.l1_size);
}

int
snapshot_read_tables (const struct edit *e, const struct snapshot *sn,
                      struct tables *t)
{
  return tables_read (t, e->storage, &e->format, sn->l1_offset, sn->l1_size);
}

/* What is told of a failure when the image may have changed already. */
static void
say_what_is_left (const struct edit *e, const char *done)
{
  error_append (" (%s; %s: check --repair=all completes it)", done,
                e->header.version >= 3 ? "it may be marked as dirty"
                : "its COPIED flags may be wrong");
}

/* ------------------------------------------------------------------ creating */

/* Whether each refcount can be one more. */
static int
try_to_create (struct edit *e, const struct tables *live)
{
  struct refs refs;
  int r;

  if (edit_open_refs (e, &refs) == -1)
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
      edit_drop (e, refs, e->header.snapshots_offset,
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
    struct error_kept kept;

    error_keep (&kept);
    if (kept.errnum == ENOSPC && unshare_all (e, live, refs) == 0) {
      error_restore (&kept);
      edit_give_back (e, space, nr);
      return -1;
    }
    error_restore (&kept);
    say_what_is_left (e, "no snapshot was made, and clusters are leaked");
    return -1;
  }
  if (switch_table (e, table, &space[0], false) == -1) {
    say_what_is_left (e, "the snapshot may have been made, and clusters are "
                      "leaked");
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
  if (fill_new (e, live, table, space) == -1 ||
      edit_open_refs (e, &refs) == -1) {
    edit_give_back (e, space, nr);
    return -1;
  }
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
  char id[SNAPSHOT_ID_BYTES];
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  sn.id = id;
  sn.l1_entries = e.header.l1_size;
  sn.disk_size = e.header.disk_size;
  if (snapshot_table_check_name (s->name, &e.snapshots, name) == 0 &&
      snapshot_table_next_id (s->name, &e.snapshots, id) == 0 &&
      snapshot_read_live (&e, &live) == 0 &&
      snapshot_table_read (&table, s, &e.header, &e.snapshots) == 0 &&
      snapshot_table_append (&table, s->name, &sn) == 0)
    r = create (&e, &live, &table);
  snapshot_table_free (&table);
  tables_free (&live);
  edit_close (&e);
  return r;
}

/* ------------------------------------------------------------------ deleting */

/* What becomes of the refcounts. */
static int
count_deleted (struct edit *e, const struct tables *gone, struct refs *refs)
{
  if (tables_add (gone, refs, -1) == -1)
    return -1;
  return gone->nr == 0 ? 0
    : edit_drop (e, refs, gone->at, gone->nr * sizeof gone->l1[0]);
}

static int
try_to_delete (struct edit *e, const struct tables *gone)
{
  struct refs refs;
  int r;

  if (edit_open_refs (e, &refs) == -1)
    return -1;
  r = count_deleted (e, gone, &refs);
  refs_close (&refs);
  return r;
}

/* The snapshot is gone, and its clusters are leaked: free them. */
static int
free_deleted (struct edit *e, const struct tables *gone, struct tables *live)
{
  struct refs refs;
  int r;

  if (edit_open_refs (e, &refs) == -1)
    return -1;
  r = count_deleted (e, gone, &refs);
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

  if (try_to_delete (e, gone) == -1 || edit_take (e, &space, nr) == -1)
    return -1;
  if (nr > 0 && (edit_fill (e, &space, table->bytes) == -1 ||
                 storage_flush (e->storage) == -1)) {
    edit_give_back (e, &space, nr);
    return -1;
  }
  if (switch_table (e, table, &space, true) == -1) {
    say_what_is_left (e, "the snapshot may have been deleted, and clusters are "
                      "leaked");
    return -1;
  }
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

const struct snapshot *
snapshot_find_by_name (const struct edit *e, const char *name)
{
  uint32_t i;

  for (i = 0; i < e->snapshots.nr; ++i) {
    if (strcmp (e->snapshots.snapshot[i].name, name) == 0)
      return &e->snapshots.snapshot[i];
  }
  return none_such (e, name);
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
  sn = snapshot_find_by_name (&e, name);
  if (sn != NULL && snapshot_read_live (&e, &live) == 0 &&
      snapshot_read_tables (&e, sn, &gone) == 0 &&
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
