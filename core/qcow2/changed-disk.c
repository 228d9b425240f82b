/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/extents.h"
#include "qcow2/changed-disk.h"
#include "qcow2/l2-range.h"
#include "qcow2/point-disk.h"
#include "qcow2/points.h"

static inline uint64_t
lesser (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* So much of a table is compared at once, at most. */
#define MAX_BYTES 65536

/* One side of the comparison: the words of slices of an L2 table, in the order
 * of the disk.
 */
struct side {
  const struct map *map;
  struct host_off table; /* 0: there is none */
  uint64_t words[MAX_BYTES / sizeof (uint64_t)];
};

/* What is compared. */
struct piece {
  uint64_t start;  /* the guest's, of the first slice */
  uint64_t slices; /* of each side */
  uint64_t most;   /* that are to be loaded the next time */
  struct side a, b;
};

struct changed_disk {
  struct point_disk to; /* first: see qcow2/disk.h */
  struct map from;
  uint64_t from_size; /* bytes */
  atomic_flag in_use; /* of piece, by a request */
  struct piece piece;
};

static inline struct changed_disk *
changed_disk (const struct layer *layer)
{
  return (struct changed_disk *) layer;
}

/* Most clients have one such request at a time, which one after another of the
 * server's threads is given: so all have the same memory, which a CPU has in its
 * caches.  NULL: the error is set.
 */
static struct piece *
borrow_piece (struct changed_disk *d)
{
  struct piece *p = &d->piece;

  if (atomic_flag_test_and_set (&d->in_use))
    p = malloc (sizeof *p);
  if (p == NULL)
    error_set (ENOMEM, "out of memory");
  return p;
}

static void
return_piece (struct changed_disk *d, struct piece *p)
{
  if (p == &d->piece)
    atomic_flag_clear (&d->in_use);
  else
    free (p);
}

/* Returns -1 with the error set if the L1 entry is damaged or can't be read. */
static int
find_table (struct side *s, struct guest_off at)
{
  struct map_l1 l1;

  s->table.v = 0;
  if (at.v >> s->map->l1_shift >= s->map->l1_size)
    return 0;
  if (map_l1_entry (s->map, at, &l1) == -1)
    return -1;
  s->table = l1.table;
  return 0;
}

/* Load the words of p->slices slices.  ahead: how many will be wanted. */
static int
load_words (const struct piece *p, struct side *s, uint64_t ahead)
{
  const struct map *m = s->map;
  const uint64_t mask = (UINT64_C (1) << m->l1_shift) - 1;
  const struct host_off place = {
    s->table.v + ((p->start & mask) >> m->format.cluster_bits
                  << (3 + m->l2_word_bits))
  };

  if (s->table.v == 0) {
    memset (s->words, 0, p->slices * m->slice_bytes);
    return 0;
  }
  return p->slices > 1 ? l2_range_read (m, place, p->slices, s->words)
    : l2_range_get (m, place, ahead, s->words);
}

/* What is compared of one place. */
struct content {
  enum cluster_kind kind;
  struct host_off host; /* of STANDARD */
};

/* The i-th entry.  Returns -1 with the error set if it is damaged. */
static int
decode (const struct piece *p, const struct side *s, uint64_t i,
        struct l2_entry *e)
{
  const struct map *m = s->map;
  const uint64_t w = i << m->l2_word_bits;
  struct map_l2 one;

  one.cluster = p->start + (i << m->format.cluster_bits);
  one.slice = s->table;
  one.first_word = w;
  one.nr_words = 1U << m->l2_word_bits;
  one.words[0] = be64toh (s->words[w]);
  one.words[1] = m->format.extended_l2 ? be64toh (s->words[w + 1]) : 0;
  return map_l2_decode (m, &one, 0, e);
}

/* Of the i-th entry, at byte `in' of its cluster. */
static struct content
content_of (const struct piece *p, const struct side *s, uint64_t i,
            uint64_t in, bool below)
{
  struct content c = { .kind = CLUSTER_INVALID, .host = HOST_NONE };
  struct l2_entry e;

  if (decode (p, s, i, &e) == -1)
    return c;
  c.kind = e.kind == CLUSTER_SUBCLUSTERS
    ? entry_subcluster (&e, in >> s->map->subcluster_bits) : e.kind;
  if (c.kind == CLUSTER_ZERO_ALLOC ||
      (c.kind == CLUSTER_UNALLOCATED && !below))
    c.kind = CLUSTER_ZERO_PLAIN;
  if (c.kind == CLUSTER_STANDARD)
    c.host = e.host;
  return c;
}

/* The words differ, so that compressed clusters do. */
static bool
is_same_content (const struct content *x, const struct content *y)
{
  if (x->kind != y->kind)
    return false;
  switch (x->kind) {
  case CLUSTER_UNALLOCATED:
  case CLUSTER_ZERO_PLAIN:
    return true;
  case CLUSTER_STANDARD:
    return x->host.v == y->host.v;
  case CLUSTER_ZERO_ALLOC:
  case CLUSTER_SUBCLUSTERS:
  case CLUSTER_COMPRESSED:
  case CLUSTER_INVALID:
    return false;
  }
  abort ();
}

/* below: a backing file has this place. */
static enum extent_change
compare_content (const struct piece *p, uint64_t i, uint64_t in, bool below)
{
  const struct content x = content_of (p, &p->a, i, in, below);
  const struct content y = content_of (p, &p->b, i, in, below);

  if (is_same_content (&x, &y))
    return CHANGE_NONE;
  switch (y.kind) {
  case CLUSTER_STANDARD:
  case CLUSTER_COMPRESSED:
    return CHANGE_DATA;
  case CLUSTER_ZERO_PLAIN:
    return CHANGE_ZERO;
  case CLUSTER_UNALLOCATED:
  case CLUSTER_ZERO_ALLOC:
  case CLUSTER_SUBCLUSTERS:
  case CLUSTER_INVALID:
    return CHANGE_LOOK;
  }
  abort ();
}

/* Most words are the same, to the bit: these are compared together. */
#define BLOCK_WORDS 64

/* How many entries from the i-th on are the same, but for COPIED, which does not
 * change what is read.
 */
static uint64_t
count_same (const struct piece *p, uint64_t i)
{
  const struct map *m = p->a.map;
  const uint64_t nr = p->slices * m->slice_bytes / sizeof (uint64_t);
  const uint64_t mask[2] = {
    ~htobe64 (QCOW2_ENTRY_COPIED),
    m->format.extended_l2 ? UINT64_MAX : ~htobe64 (QCOW2_ENTRY_COPIED),
  };
  const uint64_t first = i << m->l2_word_bits;
  uint64_t w = first, end;

  do {
    while (nr - w >= BLOCK_WORDS &&
           memcmp (p->a.words + w, p->b.words + w, 8 * BLOCK_WORDS) == 0)
      w += BLOCK_WORDS;
    end = lesser (w + BLOCK_WORDS, nr);
    while (w < end && ((p->a.words[w] ^ p->b.words[w]) & mask[w % 2]) == 0)
      w++;
  } while (w == end && w < nr);
  return (w - first) >> m->l2_word_bits;
}

/* Whether it has changed at this place, and where the next one is that may
 * differ in that.
 */
static enum extent_change
find_change (const struct piece *p, uint64_t at, bool below, uint64_t *next)
{
  const struct map *m = p->a.map;
  const uint64_t in = at & (m->cluster_size - 1);
  const uint64_t i = (at - p->start) >> m->format.cluster_bits;
  const uint64_t unit = UINT64_C (1) << m->subcluster_bits;
  const uint64_t same = count_same (p, i);

  if (same > 0) {
    *next = at - in + same * m->cluster_size;
    return CHANGE_NONE;
  }
  *next = (at & -unit) + unit;
  return compare_content (p, i, in, below);
}

/* Add what a piece says, from `at' to end.  Returns as extents_add does. */
static int
add_entries (struct extents *e, const struct piece *p, uint64_t at,
             uint64_t end, bool below)
{
  uint64_t next, start = at;
  enum extent_change change = find_change (p, at, below, &next);
  int r = 0;

  while (r == 0 && next < end) {
    uint64_t then;
    const enum extent_change c = find_change (p, next, below, &then);

    if (c != change) {
      r = extents_add (e, next - start, change);
      start = next;
      change = c;
    }
    next = then;
  }
  return r != 0 ? r : extents_add (e, end - start, change);
}

/* Have the words of b be those that the point has, where these are in shadows.
 * The live ones were loaded before (S2).
 */
static void
load_shadows (struct piece *p, const struct point_disk *to)
{
  const struct map *m = p->b.map;
  const uint64_t first = map_slice_number (m, (struct guest_off) { p->start });
  const unsigned per_slice = m->slice_bytes / sizeof (uint64_t);
  uint64_t i;
  unsigned k;

  for (i = 0; to->point != NULL && i < p->slices; ++i) {
    uint64_t *words = p->b.words + i * per_slice;

    if (points_words (to->points, to->point, m, first + i, words))
      for (k = 0; k < per_slice; ++k)
        words[k] = htobe64 (words[k]);
  }
}

/* How many slices to load, where `wanted' are of use.  For one extent twice as many
 * are taken each time, so that not much more is read than that needs.  From afar
 * they are read ahead instead.
 */
static uint64_t
slices_to_load (struct piece *p, uint64_t wanted)
{
  const struct map *m = p->a.map;
  const uint64_t nr = lesser (p->most, wanted);

  if (!storage_reads_together (m->tables))
    p->most = lesser (2 * p->most, MAX_BYTES / m->slice_bytes);
  return nr;
}

static int
load_both (struct piece *p, uint64_t ahead)
{
  return load_words (p, &p->a, ahead) == -1 ? -1
    : load_words (p, &p->b, ahead);
}

/* Load what both sides have from `at' on, and lower *end to where that ends.
 * Returns true unless there is nothing to compare: then *changed is so up to
 * there.  A live table that is still the snapshot's has not changed since that,
 * nor has what a point has of it: such a table is copied first, and for good.
 */
static bool
load_piece (struct piece *p, const struct point_disk *to, struct guest_off at,
            uint64_t *end, bool *changed)
{
  const struct map *m = p->a.map;
  const uint64_t slice = map_slice_clusters (m) << m->format.cluster_bits;
  uint64_t wanted;
  bool loaded;

  *end = lesser (*end, ((at.v >> m->l1_shift) + 1) << m->l1_shift);
  *changed = true;
  if (find_table (&p->a, at) == -1 || find_table (&p->b, at) == -1)
    return false;
  *changed = p->a.table.v != p->b.table.v;
  if (!*changed)
    return false;
  p->start = at.v / slice * slice;
  wanted = (*end - p->start + slice - 1) / slice;
  p->slices = slices_to_load (p, wanted);
  loaded = load_both (p, storage_reads_together (m->tables) ? wanted : 1) == 0;
  if (!loaded && p->slices > 1) { /* one that can't be read counts alone */
    p->slices = 1;
    loaded = load_both (p, 1) == 0;
  }
  load_shadows (p, to);
  *end = lesser (*end, p->start + p->slices * slice);
  return loaded;
}

/* Compare from *at on, where both disks and, if below is set, a backing file
 * are as far as end.  Returns as extents_add does.
 */
static int
add_piece (struct extents *e, const struct changed_disk *d, struct piece *p,
           uint64_t *at, uint64_t end, bool below)
{
  struct epoch *epoch = d->to.disk.layer.shared->epoch;
  const uint64_t start = *at;
  bool changed, loaded;
  unsigned token;

  /* Tables that the live disk gives up meanwhile have no other use yet. */
  token = epoch_enter (epoch);
  loaded = load_piece (p, &d->to, (struct guest_off) { start }, &end,
                       &changed);
  epoch_leave (epoch, token);
  *at = end;
  return loaded ? add_entries (e, p, start, end, below)
    : extents_add (e, end - start, changed ? CHANGE_LOOK : CHANGE_NONE);
}

/* Compare what both disks have.  Returns as extents_add does. */
static int
compare (struct changed_disk *d, struct extents *e, uint64_t at, uint64_t end)
{
  const struct layer *const backing = d->to.disk.layer.backing;
  const uint64_t backed = backing == NULL ? 0 : backing->size;
  struct piece *p = borrow_piece (d);
  int r = 0;

  if (p == NULL)
    return -1;
  p->most = extents_want_one (e) || storage_reads_together (d->from.tables)
    ? 1 : MAX_BYTES / d->from.slice_bytes;
  p->a.map = &d->from;
  p->b.map = &d->to.disk.map;
  while (r == 0 && at < end) {
    const bool below = at < backed;

    r = add_piece (e, d, p, &at, below ? lesser (end, backed) : end, below);
  }
  return_piece (d, p);
  return r;
}

/* See layer.find_changes. */
static int
find_changes (const struct layer *layer, uint64_t count,
              struct guest_off offset, struct extents *e)
{
  struct changed_disk *d = changed_disk (layer);
  const uint64_t end = offset.v + count;
  const uint64_t both = lesser (end, d->from_size);
  uint64_t at = offset.v;
  int r = 0;

  if (at < both) {
    r = compare (d, e, at, both);
    at = both;
  }
  if (r == 0 && at < end)
    r = extents_add (e, end - at, CHANGE_LOOK);
  return r != -1 && point_disk_check (&d->to) == -1 ? -1 : r;
}

static struct changed_disk *
allocate (const struct qcow2_disk *from)
{
  struct changed_disk *d;

  if (from->map.format.data_file) {
    error_set (ENOTSUP, "%s: what has changed since a snapshot can't be told: "
               "data is in an external data file, which no snapshot keeps",
               from->layer.tables->name);
    return NULL;
  }
  d = malloc (sizeof *d);
  if (d == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  d->from = from->map;
  d->from_size = from->layer.size;
  atomic_flag_clear (&d->in_use);
  return d;
}

struct layer *
changed_disk_new (const struct qcow2_disk *from, const struct qcow2_disk *to)
{
  struct changed_disk *d = allocate (from);

  if (d == NULL)
    return NULL;
  d->to.disk = *to;
  d->to.point = NULL;
  d->to.disk.layer.find_changes = find_changes;
  return &d->to.disk.layer;
}

struct layer *
changed_disk_frozen (const struct qcow2_disk *from, const struct qcow2_file *to,
                     struct point *point)
{
  struct changed_disk *d = allocate (from);

  if (d == NULL)
    return NULL;
  point_disk_init (&d->to, to, point);
  d->to.disk.layer.find_changes = find_changes;
  return &d->to.disk.layer;
}
