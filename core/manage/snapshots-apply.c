/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/snapshots-parts.h"

/* An ID goes before a name, as in QEMU. */
static const struct snapshot *
find_by_id_or_name (const struct edit *e, const char *what)
{
  uint32_t i;

  for (i = 0; i < e->snapshots.nr; ++i) {
    if (strcmp (e->snapshots.snapshot[i].id, what) == 0)
      return &e->snapshots.snapshot[i];
  }
  return snapshot_find_by_name (e, what);
}

static int
check_size (const struct edit *e, const struct snapshot *sn)
{
  const bool resized = sn->disk_size / EDIT_SECTOR !=
    e->header.disk_size / EDIT_SECTOR;

  if (edit_check_bitmaps (e, true, resized) == -1)
    return -1;
  return resized ? edit_check_snapshot_sizes (e) : 0;
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
  if (tables_add (old, refs, -1) == -1)
    return -1;
  return old->nr == 0 ? 0
    : edit_drop (e, refs, old->at, old->nr * sizeof old->l1[0]);
}

static int
try_to_apply (struct edit *e, const struct tables *sn,
              const struct tables *old)
{
  struct refs refs;
  int r;

  if (edit_open_refs (e, &refs) == -1)
    return -1;
  r = tables_add (sn, &refs, 1);
  if (r == 0)
    r = count_replaced (e, old, &refs);
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

/* Take back what share_snapshot did, where it ran out of space.  Flags that it
 * has cleared are none that the live disk had.
 */
static int
unshare_snapshot (struct edit *e, const struct tables *sn, struct refs *refs)
{
  return tables_add (sn, refs, -1) == -1 ? -1 : edit_write_refs (e, refs);
}

static void
explain_not_shared (struct edit *e, const struct tables *sn,
                    const struct edit_space *space, struct refs *refs)
{
  struct edit_error kept;
  bool undone;

  edit_keep_error (&kept);
  undone = kept.err == ENOSPC && unshare_snapshot (e, sn, refs) == 0;
  edit_set_error (&kept);
  if (undone)
    edit_give_back (e, space, 1);
  else
    error_append (" (the snapshot was not applied, and clusters are leaked)");
}

/* The clusters for the L1 table are taken, and filled. */
static int
apply_in (struct edit *e, uint64_t disk_size, struct tables *sn,
          const struct tables *old, const struct edit_space *space,
          struct refs *refs)
{
  if (share_snapshot (e, sn, refs) == -1) {
    explain_not_shared (e, sn, space, refs);
    return -1;
  }
  edit_set_disk (e, disk_size, space->bytes / sizeof (uint64_t), space->at);
  if (edit_switch (e) == -1) {
    error_append (" (the snapshot may have been applied, and clusters are "
                  "leaked)");
    return -1;
  }
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
  if (fill_l1 (e, sn, &space) == -1 || edit_open_refs (e, &refs) == -1) {
    edit_give_back (e, &space, 1);
    return -1;
  }
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
  if (snapshot != NULL && snapshot_read_live (&e, &old) == 0 &&
      snapshot_read_tables (&e, snapshot, &sn) == 0)
    r = apply (&e, snapshot, &sn, &old);
  tables_free (&old);
  tables_free (&sn);
  edit_close (&e);
  return r;
}
