/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/bitmap-set.h"
#include "manage/snapshots-differ.h"
#include "manage/snapshots-parts.h"

struct apply {
  struct edit *e;
  const struct snapshot *snapshot;
  struct tables sn, old;
  struct bitmap_set bitmaps;
  struct edit_space space[2]; /* the L1 table, and of bitmaps, if they change */
  unsigned nr;
};

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

/* Have enabled bitmaps call dirty what differs. */
static int
plan_bitmaps (struct apply *a)
{
  struct bitmap_set *b = &a->bitmaps;
  const uint64_t old = a->e->header.disk_size;
  const uint64_t size = a->snapshot->disk_size / EDIT_SECTOR * EDIT_SECTOR;

  if (size != old && edit_check_snapshot_sizes (a->e) == -1)
    return -1;
  if (bitmap_set_read (b, a->e) == -1 ||
      bitmap_set_follow (b, size != old) == -1 ||
      (size != old && bitmap_set_resize (b, size) == -1))
    return -1;
  if (bitmap_set_any_enabled (b) &&
      snapshots_differ (&a->old, &a->sn, size < old ? size : old,
                        bitmap_set_mark_range, b) == -1)
    return -1;
  return bitmap_set_plan (b);
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
share_snapshot (struct apply *a, struct refs *refs)
{
  if (tables_add (&a->sn, refs, 1) == -1 ||
      edit_write_refs (a->e, refs) == -1 ||
      tables_set_copied (&a->sn, refs) == -1)
    return -1;
  return storage_flush (a->e->storage);
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

static int
fill (struct apply *a)
{
  if (fill_l1 (a->e, &a->sn, &a->space[0]) == -1)
    return -1;
  return a->bitmaps.changed
    ? bitmap_set_fill (&a->bitmaps, a->space[1].at) : 0;
}

/* Take back what share_snapshot did, where it ran out of space.  Flags that it
 * has cleared are none that the live disk had.
 */
static int
unshare_snapshot (struct apply *a, struct refs *refs)
{
  return tables_add (&a->sn, refs, -1) == -1 ? -1
    : edit_write_refs (a->e, refs);
}

static void
explain_not_shared (struct apply *a, struct refs *refs)
{
  struct error_kept kept;
  bool undone;

  error_keep (&kept);
  undone = kept.errnum == ENOSPC && unshare_snapshot (a, refs) == 0;
  error_restore (&kept);
  if (undone)
    edit_give_back (a->e, a->space, a->nr);
  else
    error_append (" (the snapshot was not applied, and clusters are leaked)");
}

/* Free what the live disk had. */
static int
free_replaced (struct apply *a, struct refs *refs)
{
  if (count_replaced (a->e, &a->old, refs) == -1 ||
      (a->bitmaps.changed && bitmap_set_drop (&a->bitmaps, refs) == -1) ||
      edit_write_refs (a->e, refs) == -1)
    return -1;
  return edit_end (a->e, refs);
}

/* The new tables' clusters are taken, and filled. */
static int
apply_in (struct apply *a, struct refs *refs)
{
  if (share_snapshot (a, refs) == -1) {
    explain_not_shared (a, refs);
    return -1;
  }
  edit_set_disk (a->e, a->snapshot->disk_size,
                 a->space[0].bytes / sizeof (uint64_t), a->space[0].at);
  if (edit_switch (a->e) == -1) {
    error_append (" (the snapshot may have been applied, and clusters are "
                  "leaked)");
    return -1;
  }
  if (free_replaced (a, refs) == 0)
    return 0;
  error_append (" (the snapshot was applied, and clusters are leaked)");
  return -1;
}

static int
apply (struct apply *a)
{
  struct refs refs;
  uint64_t nr;
  int r;

  if (new_l1_entries (a->e, a->snapshot, &nr) == -1 ||
      plan_bitmaps (a) == -1 || try_to_apply (a->e, &a->sn, &a->old) == -1)
    return -1;
  a->space[0].bytes = nr * sizeof (uint64_t);
  a->space[1].bytes = bitmap_set_bytes (&a->bitmaps);
  a->nr = a->space[1].bytes > 0 ? 2 : 1;
  if (edit_take (a->e, a->space, a->nr) == -1)
    return -1;
  if (fill (a) == -1 || edit_open_refs (a->e, &refs) == -1) {
    edit_give_back (a->e, a->space, a->nr);
    return -1;
  }
  r = apply_in (a, &refs);
  refs_close (&refs);
  return r;
}

int
snapshot_apply (struct storage *s, const char *id_or_name)
{
  struct edit e;
  struct apply a = { .e = &e };
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  a.snapshot = find_by_id_or_name (&e, id_or_name);
  if (a.snapshot != NULL && snapshot_read_live (&e, &a.old) == 0 &&
      snapshot_read_tables (&e, a.snapshot, &a.sn) == 0)
    r = apply (&a);
  tables_free (&a.old);
  tables_free (&a.sn);
  bitmap_set_free (&a.bitmaps);
  edit_close (&e);
  return r;
}
