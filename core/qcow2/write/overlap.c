/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/write/overlap.h"

/* An entry is a cluster's offset with the kind in its low bits, or: */
#define EMPTY 0
#define REMOVED 511 /* lookups go on behind it */

#define KIND_MASK UINT64_C (511)
#define FIRST_BITS 6

struct overlap_table {
  struct overlap_table *older; /* readers may still be in there */
  unsigned bits;               /* log2 of size */
  uint64_t size, used;         /* used: not EMPTY */
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
  size_t i, last = 0;

  if (o->nr_ranges > 1)
    qsort (o->range, o->nr_ranges, sizeof o->range[0], compare_ranges);
  for (i = 1; i < o->nr_ranges; ++i) {
    struct overlap_range *r = &o->range[i];

    if (r->start < o->range[last].end) {
      error_set (EINVAL, "%s: damaged: %s at offset 0x%" PRIx64 " overlaps %s",
                 name, overlap_name (r->kind), r->start,
                 overlap_name (o->range[last].kind));
      return -1;
    }
    o->range[++last] = *r;
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
  return lo < o->nr_ranges && o->range[lo].start < end
    ? o->range[lo].kind : METADATA_NONE;
}

static inline uint64_t
hash (const struct overlap *o, const struct overlap_table *t, uint64_t cluster)
{
  return hash_top (&o->key, cluster >> o->cluster_bits, t->bits);
}

/* The entry of this cluster, or the EMPTY one where looking for it ends, and
 * what was read there: an entry can change at any moment, if the lock is not
 * held.
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

static enum metadata
find_cluster (const struct overlap *o, uint64_t cluster)
{
  struct overlap_table *t = atomic_load_explicit (&o->table,
                                                  memory_order_acquire);
  uint64_t e = EMPTY;

  if (t != NULL)
    (void) find_entry (o, t, cluster, &e);
  return e & KIND_MASK;
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

/* Make room for nr more entries.  Lock held. */
static int
reserve (struct overlap *o, uint64_t nr)
{
  struct overlap_table *old = o->table, *t;
  unsigned bits = old == NULL ? FIRST_BITS : old->bits;
  uint64_t size, i;

  if (old != NULL && (old->used + nr) * 2 <= old->size)
    return 0;
  while (UINT64_C (1) << bits < (nr + (old == NULL ? 0 : old->used)) * 2)
    bits++;
  size = UINT64_C (1) << bits;
  t = calloc (1, sizeof *t + size * sizeof t->entry[0]);
  if (t == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  t->bits = bits;
  t->size = size;
  t->older = old;
  for (i = 0; old != NULL && i < old->size; ++i) {
    const uint64_t e = old->entry[i];
    uint64_t there;

    if (e == EMPTY || e == REMOVED)
      continue;
    *find_entry (o, t, e & ~KIND_MASK, &there) = e;
    t->used++;
  }
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
    for (i = 0; i < nr; ++i) {
      const uint64_t cluster = offset.v + i * cluster_size;
      uint64_t there;
      _Atomic uint64_t *e = find_entry (o, o->table, cluster, &there);

      if (there == EMPTY)
        o->table->used++;
      atomic_store_explicit (e, cluster | kind, memory_order_release);
    }
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

    if (there != EMPTY)
      atomic_store_explicit (e, REMOVED, memory_order_release);
  }
  pthread_mutex_unlock (&o->lock);
}
