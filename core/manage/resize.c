/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/resize-parts.h"

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
  const uint64_t size = z->o->size;

  if (size == 0 || size % EDIT_SECTOR != 0 || size > INT64_MAX) {
    error_set (EINVAL, "%s: the size of a disk, %" PRIu64 ", must be a positive "
               "multiple of %d", name, size, EDIT_SECTOR);
    return -1;
  }
  z->entries = (size >> shift) + ((size & ((UINT64_C (1) << shift) - 1)) != 0);
  if (z->entries <= QCOW2_MAX_L1_BYTES / sizeof (uint64_t))
    return 0;
  error_set (ENOTSUP, "%s: a disk of %" PRIu64 " bytes wants an L1 table of "
             "more than %" PRIu64 " bytes", name, size, QCOW2_MAX_L1_BYTES);
  return -1;
}

/* ------------------------------------------------------------------ planning
 */

/* Find the L2 table that maps both what stays and what does not, if something is
 * mapped beyond, or shall be.
 */
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
  if (i == nr && z->nr_tables == 0) {
    free (z->cut);
    z->cut = NULL;
  }
  z->cut_first = first;
  return 0;
}

/* The L2 tables that are new, from the one of this number on, which has the first
 * cluster that is dropped, or new.
 */
static void
count_tables (struct resize *z, uint64_t index)
{
  const uint64_t per_table = resize_per_table (z);

  z->first_table = index;
  if (z->new.end > z->new.first)
    z->nr_tables = (z->new.end - 1) / per_table - index + 1;
}

/* Everything from the first whole cluster beyond both ends on is dropped: what
 * the disk had there, a VM state, and what an interrupted command has left.  So
 * is a cluster that the old end cuts if it becomes another one.
 */
static int
plan (struct resize *z)
{
  const struct edit *e = z->e;
  const struct header *h = &e->header;
  const uint64_t end = z->o->size < h->disk_size ? z->o->size : h->disk_size;
  const uint64_t cluster = (end >> h->cluster_bits) +
    ((end & (h->cluster_size - 1)) != 0) - z->new.is_edge;
  const uint64_t per_table = resize_per_table (z);
  const uint64_t first = cluster % per_table;
  uint64_t index = cluster / per_table;

  count_tables (z, index);
  if (tables_read (&z->live, e->storage, &e->format, h->l1_offset,
                   h->l1_size) == -1)
    return -1;
  if (first > 0 && index < h->l1_size && find_cut (z, index, first) == -1)
    return -1;
  if (z->cut != NULL && z->nr_tables == 0)
    z->nr_tables = 1;
  if (index > h->l1_size)
    index = h->l1_size;
  if (first > 0 && index < h->l1_size)
    index++;
  if (tables_read (&z->gone, e->storage, &e->format,
                   (struct host_off) { h->l1_offset.v +
                                       index * sizeof (uint64_t) },
                   h->l1_size - index) == -1)
    return -1;
  z->moves = z->gone.nr_uses > 0 || z->nr_tables > 0 ||
    z->entries > h->l1_size;
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

/* The spaces of a command: NULL where it needs none. */
struct spaces {
  struct edit_space space[4];
  unsigned nr;
  struct edit_space *l1, *tables, *data, *bitmaps;
};

static struct edit_space *
add_space (struct spaces *s, uint64_t bytes)
{
  if (bytes == 0)
    return NULL;
  s->space[s->nr].bytes = bytes;
  return &s->space[s->nr++];
}

static void
plan_spaces (const struct resize *z, struct spaces *s)
{
  const unsigned bits = z->e->header.cluster_bits;

  *s = (struct spaces) { .nr = 0 };
  s->l1 = add_space (s, z->moves ? z->entries * sizeof (uint64_t) : 0);
  s->tables = add_space (s, z->nr_tables << bits);
  s->bitmaps = add_space (s, bitmap_set_bytes (&z->bitmaps));
  /* It can be the largest, behind which nothing should have to go. */
  s->data = add_space (s, z->new.mapped << bits);
}

static void
make_l1 (const struct resize *z, const struct edit_space *tables, uint64_t *l1)
{
  const unsigned bits = z->e->header.cluster_bits;
  const uint64_t kept = z->live.nr - z->gone.nr;
  uint64_t i;

  for (i = 0; i < kept && i < z->entries; ++i)
    l1[i] = z->live.l1[i];
  for (i = 0; i < z->nr_tables; ++i)
    l1[z->first_table + i] = htobe64 ((tables->at.v + (i << bits)) |
                                      QCOW2_ENTRY_COPIED);
}

static int
fill_l1 (const struct resize *z, const struct spaces *s)
{
  uint64_t *l1 = calloc (1, s->l1->bytes);
  int r;

  if (l1 == NULL)
    return no_memory (z);
  make_l1 (z, s->tables, l1);
  r = edit_fill (z->e, s->l1, l1);
  free (l1);
  return r;
}

/* The header leads to all of them. */
static int
fill (struct resize *z, const struct spaces *s, bool alone)
{
  struct edit *e = z->e;
  const struct host_off data = s->data != NULL ? s->data->at : HOST_NONE;

  if ((s->data != NULL && resize_fill_data (z, data) == -1) ||
      (s->tables != NULL &&
       resize_fill_tables (z, s->tables->at, data, alone) == -1) ||
      (s->l1 != NULL && (fill_l1 (z, s) == -1 ||
                         storage_flush (e->storage) == -1)))
    return -1;
  edit_set_disk (e, z->o->size, s->l1 != NULL ? z->entries : e->header.l1_size,
                 s->l1 != NULL ? s->l1->at : e->header.l1_offset);
  return z->bitmaps.changed
    ? bitmap_set_fill (&z->bitmaps, s->bitmaps != NULL ? s->bitmaps->at
                       : HOST_NONE) : 0;
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
  struct spaces s;
  bool alone;

  plan_spaces (z, &s);
  if (try_to_drop (z, &alone) == -1 || edit_take (e, s.space, s.nr) == -1)
    return -1;
  if (fill (z, &s, alone) == -1) {
    edit_give_back (e, s.space, s.nr);
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
    bitmap_set_resize (&z->bitmaps, z->o->size) == -1 ? -1
    : bitmap_set_plan (&z->bitmaps);
}

int
resize_disk (struct storage *s, const struct resize_options *o)
{
  struct edit e;
  struct resize z = { .o = o, .e = &e };
  int r = -1;

  if (edit_open (&e, s) == -1)
    return -1;
  if (o->size == e.header.disk_size && o->preallocation == PREALLOCATION_OFF)
    r = 0;
  else if (check_limits (&z) == 0 && edit_check_snapshot_sizes (&e) == 0 &&
           resize_plan_new (&z) == 0 && plan (&z) == 0 &&
           plan_bitmaps (&z) == 0)
    r = resize_in (&z);
  tables_free (&z.live);
  tables_free (&z.gone);
  free (z.cut);
  free (z.new.edge);
  bitmap_set_free (&z.bitmaps);
  edit_close (&e);
  return r;
}
