/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/advice.h"
#include "base/error.h"
#include "manage/bitmap-set.h"
#include "manage/edit.h"
#include "manage/resize.h"
#include "manage/tables.h"

/* What a command is about to do. */
struct resize {
  struct edit *e;
  uint64_t size;      /* the new one */
  uint64_t entries;   /* that the L1 table shall have */
  struct tables live; /* as it is */
  struct tables gone; /* the part that is dropped whole */

  /* The L2 table that maps both what stays and what is dropped, if there is
   * something to be dropped in it: it is replaced by a copy without that.
   */
  uint64_t *cut;       /* the copy; NULL: there is none */
  uint64_t cut_index;  /* in the L1 table */
  uint64_t cut_first;  /* its first entry that is dropped */
  struct host_off cut_at; /* where it is */

  bool moves; /* there will be a new L1 table */
  struct bitmap_set bitmaps;
};

static int
no_memory (const struct resize *z)
{
  error_set (ENOMEM, "%s: out of memory", z->e->storage->name);
  return -1;
}

/* ------------------------------------------------------------------ refusing
 */

static int
check_limits (struct resize *z)
{
  const struct header *h = &z->e->header;
  const char *name = z->e->storage->name;
  const unsigned shift = header_l1_shift (h);

  if (z->size == 0 || z->size % EDIT_SECTOR != 0 || z->size > INT64_MAX) {
    error_set (EINVAL, "%s: the size of a disk, %" PRIu64 ", must be a positive "
               "multiple of %d", name, z->size, EDIT_SECTOR);
    return -1;
  }
  z->entries = (z->size >> shift) +
    ((z->size & ((UINT64_C (1) << shift) - 1)) != 0);
  if (z->entries <= QCOW2_MAX_L1_BYTES / sizeof (uint64_t))
    return 0;
  error_set (ENOTSUP, "%s: a disk of %" PRIu64 " bytes wants an L1 table of "
             "more than %" PRIu64 " bytes", name, z->size, QCOW2_MAX_L1_BYTES);
  return -1;
}

static int
check_backing (const struct resize *z, uint64_t backing_size)
{
  const struct header *h = &z->e->header;

  if (h->backing_name[0] == '\0' || z->size <= h->disk_size)
    return 0;
  if (backing_size == RESIZE_NO_BACKING_SIZE) {
    error_set (ENOTSUP, "%s: it has a backing file, and what that has beyond "
               "the end of the disk must not appear", z->e->storage->name);
    advise (ADVICE_FOLLOW);
    return -1;
  }
  if (backing_size <= h->disk_size)
    return 0;
  error_set (ENOTSUP, "%s: the backing file has %" PRIu64 " bytes, and what it "
             "has beyond the end of the disk, at %" PRIu64 ", would appear",
             z->e->storage->name, backing_size, h->disk_size);
  return -1;
}

/* ------------------------------------------------------------------ planning
 */

/* Find the L2 table that the end cuts, if something is mapped beyond. */
static int
find_cut (struct resize *z, uint64_t index, uint64_t first)
{
  const struct edit *e = z->e;
  const unsigned step = e->format.extended_l2 ? 2 : 1;
  const uint64_t nr = e->header.cluster_size / sizeof (uint64_t);
  uint64_t i;

  z->cut_at.v = be64toh (z->live.l1[index]) & QCOW2_ENTRY_OFFSET_MASK;
  if (z->cut_at.v == 0)
    return 0;
  z->cut = malloc (e->header.cluster_size);
  if (z->cut == NULL)
    return no_memory (z);
  if (storage_read (e->storage, z->cut, e->header.cluster_size,
                    z->cut_at) == -1)
    return -1;
  for (i = first * step; i < nr && z->cut[i] == 0; ++i)
    continue;
  if (i == nr) {
    free (z->cut);
    z->cut = NULL;
  }
  z->cut_index = index;
  z->cut_first = first;
  return 0;
}

/* Everything from the first whole cluster beyond both ends on is dropped: what
 * the disk had there, a VM state, and what an interrupted command has left.
 */
static int
plan (struct resize *z)
{
  const struct edit *e = z->e;
  const struct header *h = &e->header;
  const unsigned shift = header_l1_shift (h);
  const uint64_t end = z->size < h->disk_size ? z->size : h->disk_size;
  const uint64_t cluster = (end >> h->cluster_bits) +
    ((end & (h->cluster_size - 1)) != 0);
  const uint64_t per_table = UINT64_C (1) << (shift - h->cluster_bits);
  const uint64_t first = cluster % per_table;
  uint64_t index = cluster / per_table;

  if (tables_read (&z->live, e->storage, &e->format, h->l1_offset,
                   h->l1_size) == -1)
    return -1;
  if (first > 0 && index < h->l1_size && find_cut (z, index, first) == -1)
    return -1;
  if (index > h->l1_size)
    index = h->l1_size;
  if (first > 0 && index < h->l1_size)
    index++;
  if (tables_read (&z->gone, e->storage, &e->format,
                   (struct host_off) { h->l1_offset.v +
                                       index * sizeof (uint64_t) },
                   h->l1_size - index) == -1)
    return -1;
  z->moves = z->gone.nr_uses > 0 || z->cut != NULL || z->entries > h->l1_size;
  return 0;
}

/* What is dropped loses a user. */
static int
count_dropped (struct resize *z, struct refs *refs)
{
  struct edit *e = z->e;

  if (!z->moves)
    return 0;
  if (tables_add (&z->gone, refs, -1) == -1 ||
      (z->cut != NULL &&
       (tables_add_entries (&z->live, refs, z->cut_at, z->cut, z->cut_first,
                            -1) == -1 ||
        edit_drop (e, refs, z->cut_at, e->header.cluster_size) == -1)))
    return -1;
  return z->live.nr == 0 ? 0
    : edit_drop (e, refs, e->header.l1_offset,
                 z->live.nr * sizeof z->live.l1[0]);
}

/* Whether all that is dropped can be, and whether the L2 table that is cut has
 * no other user.
 */
static int
try_to_drop (struct resize *z, bool *alone)
{
  struct refs refs;
  uint64_t refcount = 1;
  int r = 0;

  if (edit_open_refs (z->e, &refs) == -1)
    return -1;
  if (z->cut != NULL)
    r = refs_get (&refs, z->cut_at.v >> z->e->header.cluster_bits, &refcount);
  *alone = refcount == 1;
  if (r == 0)
    r = count_dropped (z, &refs);
  refs_close (&refs);
  return r;
}

/* ------------------------------------------------------------------- doing it
 */

/* The copy lacks what is dropped.  Where a snapshot has the table as well, it
 * has a second reference to each cluster.
 */
static void
make_copy (const struct resize *z, bool alone, uint64_t *words)
{
  const struct edit *e = z->e;
  const unsigned step = e->format.extended_l2 ? 2 : 1;
  uint64_t i;

  memset (words, 0, e->header.cluster_size);
  memcpy (words, z->cut, z->cut_first * step * sizeof *words);
  for (i = 0; !alone && i < z->cut_first * step; i += step)
    if (!(words[i] & htobe64 (QCOW2_L2_COMPRESSED)))
      words[i] &= ~htobe64 (QCOW2_ENTRY_COPIED);
}

static void
make_l1 (const struct resize *z, struct host_off copy, uint64_t *l1)
{
  const uint64_t kept = z->live.nr - z->gone.nr;
  uint64_t i;

  for (i = 0; i < kept && i < z->entries; ++i)
    l1[i] = z->live.l1[i];
  if (z->cut != NULL)
    l1[z->cut_index] = htobe64 (copy.v | QCOW2_ENTRY_COPIED);
}

/* space: the L1 table, and the copy of an L2 table. */
static int
fill (struct resize *z, const struct edit_space *space, bool alone)
{
  struct edit *e = z->e;
  uint64_t *l1 = calloc (1, space[0].bytes);
  uint64_t *words = malloc (e->header.cluster_size);
  int r = 0;

  if (l1 == NULL || words == NULL)
    r = no_memory (z);
  if (r == 0 && z->cut != NULL) {
    make_copy (z, alone, words);
    r = edit_fill (e, &space[1], words);
  }
  if (r == 0) {
    make_l1 (z, space[1].at, l1);
    r = edit_fill (e, &space[0], l1);
  }
  free (l1);
  free (words);
  return r == -1 ? -1 : storage_flush (e->storage);
}

/* The same of bitmaps, in a space of their own, which leads to the header. */
static int
fill_all (struct resize *z, const struct edit_space *space, bool alone,
          const struct edit_space *bitmaps)
{
  if (z->moves && fill (z, space, alone) == -1)
    return -1;
  edit_set_disk (z->e, z->size, z->moves ? z->entries : z->e->header.l1_size,
                 z->moves ? space[0].at : z->e->header.l1_offset);
  return z->bitmaps.changed ? bitmap_set_fill (&z->bitmaps, bitmaps->at) : 0;
}

/* The new size is there: what is left is to free what was dropped. */
static int
free_dropped (struct resize *z)
{
  struct refs refs;
  int r;

  if (edit_open_refs (z->e, &refs) == -1)
    return -1;
  r = count_dropped (z, &refs);
  if (r == 0 && z->bitmaps.changed)
    r = bitmap_set_drop (&z->bitmaps, &refs);
  if (r == 0)
    r = edit_write_refs (z->e, &refs);
  if (r == 0)
    r = edit_end (z->e, &refs);
  refs_close (&refs);
  return r;
}

static int
resize_in (struct resize *z)
{
  struct edit *e = z->e;
  struct edit_space space[3] = {
    { .bytes = z->entries * sizeof (uint64_t) },
    { .bytes = e->header.cluster_size },
  };
  unsigned nr = !z->moves ? 0 : z->cut != NULL ? 2 : 1;
  struct edit_space *bitmaps = &space[nr];
  bool alone;

  bitmaps->bytes = bitmap_set_bytes (&z->bitmaps);
  nr += bitmaps->bytes > 0;
  if (try_to_drop (z, &alone) == -1 || edit_take (e, space, nr) == -1)
    return -1;
  if (fill_all (z, space, alone, bitmaps) == -1) {
    edit_give_back (e, space, nr);
    return -1;
  }
  if (edit_switch (e) == -1) {
    error_append (" (the disk may have its new size, and clusters may be "
                  "leaked)");
    return -1;
  }
  if (free_dropped (z) == 0)
    return 0;
  error_append (" (the disk has its new size, and clusters are leaked)");
  return -1;
}

/* What becomes of them: see bitmap_set_resize. */
static int
plan_bitmaps (struct resize *z)
{
  return bitmap_set_read (&z->bitmaps, z->e) == -1 ||
    bitmap_set_follow (&z->bitmaps, true) == -1 ||
    bitmap_set_resize (&z->bitmaps, z->size) == -1 ? -1
    : bitmap_set_plan (&z->bitmaps);
}

int
resize_disk (struct storage *s, uint64_t size, uint64_t backing_size)
{
  struct edit e;
  struct resize z = { .e = &e, .size = size };
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  if (size == e.header.disk_size)
    r = 0;
  else if (check_limits (&z) == 0 && edit_check_snapshot_sizes (&e) == 0 &&
           check_backing (&z, backing_size) == 0 && plan (&z) == 0 &&
           plan_bitmaps (&z) == 0)
    r = resize_in (&z);
  tables_free (&z.live);
  tables_free (&z.gone);
  free (z.cut);
  bitmap_set_free (&z.bitmaps);
  edit_close (&e);
  return r;
}
