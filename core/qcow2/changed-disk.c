/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "disk/extents.h"
#include "qcow2/changed-disk.h"

struct changed_disk {
  struct qcow2_disk disk; /* first: see qcow2/disk.h */
  struct map from;
  uint64_t from_size; /* bytes */
};

static inline const struct changed_disk *
changed_disk (const struct layer *layer)
{
  return (const struct changed_disk *) layer;
}

/* One side of the comparison: entries within one slice of its L2 table. */
struct side {
  const struct map *map;
  struct host_off table; /* 0: there is none */
  struct map_l2 l2;      /* of all zeros then */
};

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

static int
load_entries (struct side *s, struct guest_off at, uint64_t nr, bool ahead)
{
  const struct map *m = s->map;

  if (s->table.v != 0)
    return map_l2_entries (m, s->table, at, nr, ahead, &s->l2);
  s->l2 = (struct map_l2) {
    .cluster = at.v & -m->cluster_size, .nr_words = nr << m->l2_word_bits,
  };
  return 0;
}

/* What is compared of one place. */
struct content {
  enum cluster_kind kind;
  struct host_off host; /* of STANDARD */
};

/* Of the i-th entry, at byte `in' of its cluster. */
static struct content
content_of (const struct side *s, unsigned i, uint64_t in, bool below)
{
  struct content c = { .kind = CLUSTER_INVALID, .host = HOST_NONE };
  struct l2_entry e;

  if (map_l2_decode (s->map, &s->l2, i, &e) == -1)
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

/* below: a backing file has this place.  The words differ, so that compressed
 * clusters do.
 */
static bool
is_same_content (const struct side *a, const struct side *b, unsigned i,
                 uint64_t in, bool below)
{
  const struct content x = content_of (a, i, in, below);
  const struct content y = content_of (b, i, in, below);

  if (x.kind != y.kind)
    return false;
  switch (x.kind) {
  case CLUSTER_UNALLOCATED:
  case CLUSTER_ZERO_PLAIN:
    return true;
  case CLUSTER_STANDARD:
    return x.host.v == y.host.v;
  case CLUSTER_ZERO_ALLOC:
  case CLUSTER_SUBCLUSTERS:
  case CLUSTER_COMPRESSED:
  case CLUSTER_INVALID:
    return false;
  }
  abort ();
}

/* Whether the i-th entries are the same but for COPIED, which does not change
 * what is read.
 */
static inline bool
is_same_entry (const struct side *a, const struct side *b, unsigned i)
{
  const unsigned w = i << a->map->l2_word_bits;

  return ((a->l2.words[w] ^ b->l2.words[w]) & ~QCOW2_ENTRY_COPIED) == 0 &&
    (!a->map->format.extended_l2 || a->l2.words[w + 1] == b->l2.words[w + 1]);
}

/* How many entries from the i-th on are the same: most are. */
static inline unsigned
count_same (const struct side *a, const struct side *b, unsigned i)
{
  const unsigned nr = a->l2.nr_words >> a->map->l2_word_bits;
  const unsigned first = i;

  while (i < nr && is_same_entry (a, b, i))
    i++;
  return i - first;
}

/* Whether it has changed at this place, and where the next one is that may
 * differ in that.
 */
static bool
has_changed (const struct side *a, const struct side *b, uint64_t at,
             bool below, uint64_t *next)
{
  const struct map *m = a->map;
  const uint64_t in = at & (m->cluster_size - 1);
  const unsigned i = (at - a->l2.cluster) >> m->format.cluster_bits;
  const uint64_t piece = UINT64_C (1) << m->subcluster_bits;
  const unsigned same = count_same (a, b, i);

  if (same > 0) {
    *next = at - in + same * m->cluster_size;
    return false;
  }
  *next = (at & -piece) + piece;
  return !is_same_content (a, b, i, in, below);
}

/* Add what the loaded entries say, from `at' to end.  Returns as extents_add
 * does.
 */
static int
add_entries (struct extents *e, const struct side *a, const struct side *b,
             uint64_t at, uint64_t end, bool below)
{
  uint64_t next, start = at;
  bool changed = has_changed (a, b, at, below, &next);
  int r = 0;

  while (r == 0 && next < end) {
    uint64_t then;
    const bool c = has_changed (a, b, next, below, &then);

    if (c != changed) {
      r = extents_add (e, next - start, changed);
      start = next;
      changed = c;
    }
    next = then;
  }
  return r != 0 ? r : extents_add (e, end - start, changed);
}

static inline uint64_t
lesser (uint64_t a, uint64_t b)
{
  return a < b ? a : b;
}

/* Load both sides' entries from `at' on, and lower *end to where they do.
 * Returns true unless there is nothing to compare: then *changed is so up to
 * there.
 */
static bool
load_sides (struct side *a, struct side *b, struct guest_off at, uint64_t *end,
            bool *changed)
{
  const struct map *m = a->map;
  const uint64_t slice = map_slice_end (m, at);
  const bool ahead = *end > slice;
  uint64_t nr;

  *end = lesser (*end, ((at.v >> m->l1_shift) + 1) << m->l1_shift);
  *changed = true;
  if (find_table (a, at) == -1 || find_table (b, at) == -1)
    return false;
  *changed = false;
  if (a->table.v == b->table.v)
    return false;
  *end = lesser (*end, slice);
  nr = ((*end - 1) >> m->format.cluster_bits) -
    (at.v >> m->format.cluster_bits) + 1;
  *changed = true;
  return load_entries (a, at, nr, ahead) == 0 &&
    load_entries (b, at, nr, ahead) == 0;
}

/* Compare from *at on, where both disks and, if below is set, a backing file
 * are as far as end.  Returns as extents_add does.
 */
static int
add_slice (struct extents *e, const struct changed_disk *d, uint64_t *at,
           uint64_t end, bool below)
{
  struct epoch *epoch = d->disk.layer.shared->epoch;
  struct side a = { .map = &d->from }, b = { .map = &d->disk.map };
  const uint64_t start = *at;
  bool changed, loaded;
  unsigned token;

  /* Tables that the live disk gives up meanwhile have no other use yet. */
  token = epoch_enter (epoch);
  loaded = load_sides (&a, &b, (struct guest_off) { start }, &end, &changed);
  epoch_leave (epoch, token);
  *at = end;
  return loaded ? add_entries (e, &a, &b, start, end, below)
    : extents_add (e, end - start, changed);
}

/* See layer.find_changes. */
static int
find_changes (const struct layer *layer, uint64_t count,
              struct guest_off offset, struct extents *e)
{
  const struct changed_disk *d = changed_disk (layer);
  const uint64_t end = offset.v + count;
  const uint64_t both = lesser (end, d->from_size);
  const uint64_t backing = layer->backing == NULL ? 0 : layer->backing->size;
  uint64_t at = offset.v;
  int r = 0;

  while (r == 0 && at < both) {
    const bool below = at < backing;

    r = add_slice (e, d, &at, below ? lesser (both, backing) : both, below);
  }
  return r != 0 || at >= end ? r : extents_add (e, end - at, true);
}

struct layer *
changed_disk_new (const struct qcow2_disk *from, const struct qcow2_disk *to)
{
  struct changed_disk *d;

  if (to->map.format.data_file) {
    error_set (ENOTSUP, "%s: what has changed since a snapshot can't be told: "
               "data is in an external data file, which no snapshot keeps",
               to->layer.tables->name);
    return NULL;
  }
  d = malloc (sizeof *d);
  if (d == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  d->disk = *to;
  d->from = from->map;
  d->from_size = from->layer.size;
  d->disk.layer.find_changes = find_changes;
  return &d->disk.layer;
}
