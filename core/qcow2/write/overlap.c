/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/write/overlap.h"

/* An entry is a cluster's offset with the kind in its low bits, or: */
#define EMPTY 0
#define REMOVED 511 /* lookups go on past it; another entry may take it */

#define KIND_MASK UINT64_C (511)
#define FIRST_BITS 6

struct overlap_table {
  struct overlap_table *older; /* readers may still be in there */
  unsigned bits;               /* log2 of size */
  uint64_t size;
  uint64_t live, removed;      /* entries that are not EMPTY */
  _Atomic uint64_t entry[];
};

void
overlap_init (struct overlap *o, unsigned cluster_bits)
{
  memset (o, 0, sizeof *o);
  o->cluster_bits = cluster_bits;
  o->key = hash_key ();
  pthread_mutex_init (&o->lock, NULL);
}

void
overlap_destroy (struct overlap *o)
{
  struct overlap_table *t = o->table, *older;

  for (; t != NULL; t = older) {
    older = t->older;
    free (t);
  }
  free (o->range);
  pthread_mutex_destroy (&o->lock);
}

const char *
overlap_name (enum metadata kind)
{
  switch (kind) {
  case METADATA_NONE: return "data";
  case METADATA_HEADER: return "the header";
  case METADATA_L1: return "the L1 table";
  case METADATA_L2: return "an L2 table";
  case METADATA_SHARED_L2: return "an L2 table";
  case METADATA_REFCOUNT_TABLE: return "the refcount table";
  case METADATA_REFCOUNT_BLOCK: return "a refcount block";
  case METADATA_SNAPSHOT_TABLE: return "the snapshot table";
  case METADATA_SNAPSHOT_L1: return "the L1 table of a snapshot";
  case METADATA_BITMAPS: return "the bitmap directory";
  case METADATA_BITMAP_TABLE: return "the table of a bitmap";
  case METADATA_BITS: return "the bits of a bitmap";
  case METADATA_LUKS: return "the LUKS header";
  }
  abort ();
}

int
overlap_add_range (struct overlap *o, struct host_off offset, uint64_t bytes,
                   enum metadata kind)
{
  const uint64_t mask = (UINT64_C (1) << o->cluster_bits) - 1;

  if (bytes == 0)
    return 0;
  if (o->nr_ranges == o->max_ranges) {
    const size_t max = o->max_ranges * 2 + 8;
    struct overlap_range *p = realloc (o->range, max * sizeof *p);

    if (p == NULL) {
      error_set (ENOMEM, "out of memory");
      return -1;
    }
    o->range = p;
    o->max_ranges = max;
  }
  o->range[o->nr_ranges++] = (struct overlap_range) {
    .start = offset.v, .end = (offset.v + bytes + mask) & ~mask, .kind = kind,
  };
  return 0;
}

static int
compare_ranges (const void *a, const void *b)
{
  const struct overlap_range *x = a, *y = b;

  return x->start < y->start ? -1 : x->start > y->start;
}

int
overlap_sort (struct overlap *o, const char *name)
{
  size_t i;

  if (o->nr_ranges > 1)
    qsort (o->range, o->nr_ranges, sizeof o->range[0], compare_ranges);
  for (i = 1; i < o->nr_ranges; ++i) {
    struct overlap_range *r = &o->range[i];

    if (r->start < r[-1].end) {
      error_set (EINVAL, "%s: damaged: %s at offset 0x%" PRIx64 " overlaps %s",
                 name, overlap_name (r->kind), r->start,
                 overlap_name (r[-1].kind));
      return -1;
    }
  }
  return 0;
}

static enum metadata
find_range (const struct overlap *o, uint64_t start, uint64_t end)
{
  size_t lo = 0, hi = o->nr_ranges;

  while (lo < hi) { /* the first range that ends after start */
    const size_t mid = (lo + hi) / 2;

    if (o->range[mid].end <= start)
      lo = mid + 1;
    else
      hi = mid;
  }
  for (; lo < o->nr_ranges && o->range[lo].start < end; ++lo) {
    if (o->range[lo].kind != METADATA_NONE)
      return o->range[lo].kind;
  }
  return METADATA_NONE;
}

static inline uint64_t
hash (const struct overlap *o, const struct overlap_table *t, uint64_t cluster)
{
  return hash_top (&o->key, cluster >> o->cluster_bits, t->bits);
}

/* The entry of this cluster, or the EMPTY one at which the search ends; *e is
 * its value as read, since without the lock it can change at any moment.
 */
static _Atomic uint64_t *
find_entry (const struct overlap *o, struct overlap_table *t, uint64_t cluster,
            uint64_t *e)
{
  uint64_t i = hash (o, t, cluster);

  for (;; i = (i + 1) & (t->size - 1)) {
    *e = atomic_load_explicit (&t->entry[i], memory_order_acquire);
    if (*e == EMPTY || (*e != REMOVED && (*e & ~KIND_MASK) == cluster))
      return &t->entry[i];
  }
}

static bool
is_live (uint64_t entry)
{
  return entry != EMPTY && entry != REMOVED;
}

/* The place for a new entry of this cluster, which has none: that of a removed
 * one on the path of its lookups, if there is any.  Lock held.
 */
static _Atomic uint64_t *
find_room (const struct overlap *o, struct overlap_table *t, uint64_t cluster)
{
  uint64_t i = hash (o, t, cluster);

  while (is_live (t->entry[i]))
    i = (i + 1) & (t->size - 1);
  return &t->entry[i];
}

static enum metadata
find_cluster (struct overlap *o, uint64_t cluster)
{
  for (;;) {
    const uint64_t version = atomic_load_explicit (&o->version,
                                                   memory_order_acquire);
    struct overlap_table *t = atomic_load_explicit (&o->table,
                                                    memory_order_acquire);
    uint64_t e = EMPTY;

    if (t != NULL)
      (void) find_entry (o, t, cluster, &e);
    /* The entry's load, an acquire, comes before this one. */
    if (!(version & 1) &&
        atomic_load_explicit (&o->version, memory_order_relaxed) == version)
      return e & KIND_MASK;
    pthread_mutex_lock (&o->lock); /* until it has been cleaned */
    pthread_mutex_unlock (&o->lock);
  }
}

enum metadata
overlap_find (struct overlap *o, struct host_off offset, uint64_t bytes)
{
  const uint64_t cluster_size = UINT64_C (1) << o->cluster_bits;
  enum metadata kind = find_range (o, offset.v, offset.v + bytes);
  uint64_t cluster;

  for (cluster = offset.v & -cluster_size;
       kind == METADATA_NONE && cluster < offset.v + bytes;
       cluster += cluster_size)
    kind = find_cluster (o, cluster);
  return kind;
}

/* Put an entry into a table that has room for it.  Lock held. */
static void
put (const struct overlap *o, struct overlap_table *t, uint64_t entry)
{
  _Atomic uint64_t *to = find_room (o, t, entry & ~KIND_MASK);

  t->removed -= *to == REMOVED;
  t->live++;
  atomic_store_explicit (to, entry, memory_order_release);
}

/* Put all live entries of a table into another one.  Lock held. */
static void
put_all (const struct overlap *o, const struct overlap_table *from,
         struct overlap_table *to)
{
  uint64_t i;

  for (i = 0; i < from->size; ++i) {
    if (is_live (from->entry[i]))
      put (o, to, from->entry[i]);
  }
}

static struct overlap_table *
new_table (unsigned bits)
{
  const uint64_t size = UINT64_C (1) << bits;
  struct overlap_table *t = calloc (1, sizeof *t + size * sizeof t->entry[0]);

  if (t == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  t->bits = bits;
  t->size = size;
  return t;
}

/* Clean a table of removed entries, in place, since lookups may be using it.
 * Lock held.
 */
static int
clean (struct overlap *o, struct overlap_table *t)
{
  struct overlap_table *copy = new_table (t->bits);
  uint64_t i;

  if (copy == NULL)
    return -1;
  put_all (o, t, copy);
  atomic_fetch_add (&o->version, 1);
  for (i = 0; i < t->size; ++i)
    atomic_store_explicit (&t->entry[i], copy->entry[i], memory_order_release);
  atomic_fetch_add (&o->version, 1);
  t->removed = 0;
  free (copy);
  return 0;
}

/* Make room for nr more entries: at most half of a table is used.  Lock
 * held.
 */
static int
reserve (struct overlap *o, uint64_t nr)
{
  struct overlap_table *old = o->table, *t;
  const uint64_t live = old == NULL ? 0 : old->live;
  unsigned bits = old == NULL ? FIRST_BITS : old->bits + 1;

  if (old != NULL && (live + old->removed + nr) * 2 <= old->size)
    return 0;
  if (old != NULL && (live + nr) * 8 <= old->size * 3)
    return clean (o, old);
  while (UINT64_C (1) << bits < (live + nr) * 2)
    bits++;
  t = new_table (bits);
  if (t == NULL)
    return -1;
  t->older = old;
  if (old != NULL)
    put_all (o, old, t);
  atomic_store_explicit (&o->table, t, memory_order_release);
  return 0;
}

int
overlap_add (struct overlap *o, const char *name, struct host_off offset,
             uint64_t nr, enum metadata kind)
{
  const uint64_t cluster_size = UINT64_C (1) << o->cluster_bits;
  enum metadata found = find_range (o, offset.v, offset.v + nr * cluster_size);
  uint64_t i;
  int r = -1;

  pthread_mutex_lock (&o->lock);
  for (i = 0; i < nr && found == METADATA_NONE; ++i)
    found = find_cluster (o, offset.v + i * cluster_size);
  if (found != METADATA_NONE)
    error_set (EIO, "%s: damaged: %s at offset 0x%" PRIx64 " overlaps %s",
               name, overlap_name (kind), offset.v, overlap_name (found));
  else if (reserve (o, nr) == 0) {
    for (i = 0; i < nr; ++i)
      put (o, o->table, (offset.v + i * cluster_size) | kind);
    r = 0;
  }
  pthread_mutex_unlock (&o->lock);
  return r;
}

void
overlap_remove (struct overlap *o, struct host_off offset, uint64_t nr)
{
  const uint64_t cluster_size = UINT64_C (1) << o->cluster_bits;
  uint64_t i;

  pthread_mutex_lock (&o->lock);
  for (i = 0; i < nr && o->table != NULL; ++i) {
    uint64_t there;
    _Atomic uint64_t *e = find_entry (o, o->table, offset.v + i * cluster_size,
                                      &there);

    if (there == EMPTY)
      continue;
    atomic_store_explicit (e, REMOVED, memory_order_release);
    o->table->live--;
    o->table->removed++;
  }
  pthread_mutex_unlock (&o->lock);
}

void
overlap_remove_range (struct overlap *o, struct host_off offset)
{
  size_t i;

  for (i = 0; i < o->nr_ranges; ++i) {
    if (o->range[i].start == offset.v)
      o->range[i].kind = METADATA_NONE;
  }
}
