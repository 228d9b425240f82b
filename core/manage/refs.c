/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/refs.h"
#include "qcow2/entry.h"

#define SECTOR_BITS 9

struct refs_block {
  struct host_off at;
  bool any_changed;
  uint8_t *bytes;    /* one cluster */
  uint8_t changed[]; /* for each sector of it: it is to be written */
};

static inline uint64_t
cluster_size (const struct refs *r)
{
  return UINT64_C (1) << r->cluster_bits;
}

static int
no_memory (const struct refs *r)
{
  error_set (ENOMEM, "%s: out of memory", r->storage->name);
  return -1;
}

int
refs_open (struct refs *r, struct storage *s, const struct header *h)
{
  const uint64_t bytes = h->refcount_table_clusters << h->cluster_bits;

  *r = (struct refs) {
    .storage = s,
    .at = h->refcount_table_offset,
    .order = h->refcount_order,
    .cluster_bits = h->cluster_bits,
    .block_bits = h->cluster_bits + 3 - h->refcount_order,
    .entries = bytes / sizeof (uint64_t),
    .table = malloc (bytes + 1),
    .block = calloc (bytes / sizeof (uint64_t) + 1, sizeof *r->block),
    .is_hole = calloc (bytes / sizeof (uint64_t) + 1, sizeof *r->is_hole),
  };
  if (r->table == NULL || r->block == NULL || r->is_hole == NULL) {
    refs_close (r);
    return no_memory (r);
  }
  if (storage_read (s, r->table, bytes, r->at) == 0)
    return 0;
  refs_close (r);
  return -1;
}

static void
free_block (struct refs_block *b)
{
  if (b != NULL)
    free (b->bytes);
  free (b);
}

void
refs_close (struct refs *r)
{
  uint64_t i;

  for (i = 0; r->block != NULL && i < r->entries; ++i)
    free_block (r->block[i]);
  free (r->block);
  free (r->is_hole);
  free (r->table);
  free (r->freed);
  r->block = NULL;
  r->is_hole = NULL;
  r->table = NULL;
  r->freed = NULL;
  r->nr_freed = 0;
}

static int
damaged (const struct refs *r, uint64_t cluster, const char *why)
{
  error_set (EIO, "%s: damaged: the refcount of the cluster at offset 0x%"
             PRIx64 ": %s", r->storage->name, cluster << r->cluster_bits, why);
  return -1;
}

/* ------------------------------------------------------------------ blocks */

static int
read_block (struct refs *r, uint64_t index)
{
  const struct host_off at = {
    be64toh (r->table[index]) & QCOW2_REFCOUNT_BLOCK_MASK
  };
  struct refs_block *b;

  if (at.v % cluster_size (r) != 0 ||
      at.v >= atomic_load (&r->storage->size))
    return damaged (r, index << r->block_bits,
                    "its block is not at the start of a cluster of the file");
  b = calloc (1, sizeof *b + (cluster_size (r) >> SECTOR_BITS));
  if (b == NULL)
    return no_memory (r);
  b->at = at;
  b->bytes = malloc (cluster_size (r));
  if (b->bytes == NULL || storage_read (r->storage, b->bytes,
                                        cluster_size (r), at) == -1) {
    const bool memory = b->bytes == NULL;

    free_block (b);
    return memory ? no_memory (r) : -1;
  }
  r->block[index] = b;
  return 0;
}

/* The block of a cluster that is in use. */
static struct refs_block *
find_block (struct refs *r, uint64_t cluster)
{
  const uint64_t index = cluster >> r->block_bits;

  if (index >= r->entries || r->table[index] == 0) {
    (void) damaged (r, cluster, "there is none, although it is in use");
    return NULL;
  }
  if (r->block[index] == NULL && read_block (r, index) == -1)
    return NULL;
  return r->block[index];
}

/* The block with this index; *b is NULL if there is none. */
static int
look_at (struct refs *r, uint64_t index, struct refs_block **b)
{
  *b = NULL;
  if (index >= r->entries || r->table[index] == 0)
    return 0;
  if (r->block[index] == NULL && read_block (r, index) == -1)
    return -1;
  *b = r->block[index];
  return 0;
}

/* The same for whoever looks for clusters in use: *b is NULL as well if the block is
 * a hole, of which a small file can have very many.
 */
static int
look_for_used (struct refs *r, uint64_t index, struct refs_block **b)
{
  const uint64_t bytes = cluster_size (r);

  *b = NULL;
  if (index >= r->entries || r->table[index] == 0)
    return 0;
  if (r->block[index] == NULL && !r->is_hole[index]) {
    const struct host_off at = {
      be64toh (r->table[index]) & QCOW2_REFCOUNT_BLOCK_MASK
    };

    r->is_hole[index] = at.v % bytes == 0 && storage_hole (r->storage, at) >= bytes;
  }
  return r->block[index] == NULL && r->is_hole[index] ? 0
    : look_at (r, index, b);
}

/* The i-th refcount of a block. */
static inline uint64_t
get (const struct refs *r, const uint8_t *bytes, uint64_t i)
{
  return r->order == 4 ? get_be16 (bytes + 2 * i)
    : entry_get_refcount (r->order,
                          get_be64 (bytes + ((i << r->order) / 64 * 8)), i);
}

static inline void
put (const struct refs *r, struct refs_block *b, uint64_t i, uint64_t refcount)
{
  uint8_t *p = b->bytes + ((i << r->order) / 64 * 8);

  put_be64 (p, entry_put_refcount (r->order, get_be64 (p), i, refcount));
  b->changed[(i << r->order) / 8 >> SECTOR_BITS] = 1;
  b->any_changed = true;
}

/* --------------------------------------------------------------- refcounts */

int
refs_get (struct refs *r, uint64_t cluster, uint64_t *refcount)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  const struct refs_block *b = find_block (r, cluster);

  if (b == NULL)
    return -1;
  *refcount = get (r, b->bytes, cluster & mask);
  return 0;
}

int
refs_look (struct refs *r, uint64_t cluster, uint64_t *refcount)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  struct refs_block *b;

  if (look_for_used (r, cluster >> r->block_bits, &b) == -1)
    return -1;
  *refcount = b == NULL ? 0 : get (r, b->bytes, cluster & mask);
  return 0;
}

static int
note_freed (struct refs *r, uint64_t cluster)
{
  struct refs_run *last = r->nr_freed > 0 ? &r->freed[r->nr_freed - 1] : NULL;

  if (last != NULL && last->first + last->nr == cluster) {
    last->nr++;
    return 0;
  }
  if (r->nr_freed == r->max_freed) {
    const size_t max = r->max_freed * 2 + 16;
    struct refs_run *p = realloc (r->freed, max * sizeof *p);

    if (p == NULL)
      return no_memory (r);
    r->freed = p;
    r->max_freed = max;
  }
  r->freed[r->nr_freed++] = (struct refs_run) { cluster, 1 };
  return 0;
}

static int
too_few_bits (const struct refs *r, uint64_t cluster)
{
  error_set (ENOTSUP, "%s: the cluster at offset 0x%" PRIx64 " would have more "
             "references than refcounts of %u bits can count (at most %" PRIu64
             ")", r->storage->name, cluster << r->cluster_bits, 1U << r->order,
             entry_refcount_max (r->order));
  return -1;
}

/* Change the refcount of one cluster, the i-th of a block. */
static inline int
change (struct refs *r, struct refs_block *b, uint64_t cluster, uint64_t i,
        int64_t n)
{
  const uint64_t old = get (r, b->bytes, i);

  if (old == 0)
    return damaged (r, cluster, "it is 0, although the cluster is in use");
  if (n > 0 && (uint64_t) n > entry_refcount_max (r->order) - old)
    return too_few_bits (r, cluster);
  if (n < 0 && (uint64_t) -n > old)
    return damaged (r, cluster, "it is less than the references to it");
  put (r, b, i, old + n);
  return n < 0 && (uint64_t) -n == old ? note_freed (r, cluster) : 0;
}

int
refs_change (struct refs *r, uint64_t cluster, uint64_t nr, int64_t n)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;

  while (nr > 0) {
    struct refs_block *b = find_block (r, cluster);
    uint64_t i = cluster & mask;

    if (b == NULL)
      return -1;
    for (; nr > 0 && i <= mask; ++i, ++cluster, --nr) {
      if (change (r, b, cluster, i, n) == -1)
        return -1;
    }
  }
  return 0;
}

/* ------------------------------------------------------------ free and in use */

int
refs_is_free (struct refs *r, uint64_t cluster, bool *free)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  struct refs_block *b;

  if (look_at (r, cluster >> r->block_bits, &b) == -1)
    return -1;
  *free = b != NULL && get (r, b->bytes, cluster & mask) == 0;
  return 0;
}

int
refs_claim (struct refs *r, uint64_t cluster, uint64_t refcount)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  struct refs_block *b = find_block (r, cluster);

  if (b == NULL)
    return -1;
  put (r, b, cluster & mask, refcount);
  return 0;
}

int
refs_next_used (struct refs *r, uint64_t end, uint64_t *cluster,
                uint64_t *refcount)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  struct refs_block *b = NULL;
  uint64_t c;

  for (c = *cluster; c < end; ++c) {
    if ((b == NULL || (c & mask) == 0) &&
        look_for_used (r, c >> r->block_bits, &b) == -1)
      return -1;
    if (b == NULL)
      c |= mask;
    else {
      *refcount = get (r, b->bytes, c & mask);
      if (*refcount != 0)
        break;
    }
  }
  *cluster = c < end ? c : end;
  return 0;
}

int
refs_last_used (struct refs *r, uint64_t below, uint64_t *cluster)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  const uint64_t all = r->entries << r->block_bits;
  uint64_t c = below < all ? below : all;
  struct refs_block *b = NULL;

  for (; c > 0; --c) {
    if ((b == NULL || (c & mask) == 0) &&
        look_for_used (r, (c - 1) >> r->block_bits, &b) == -1)
      return -1;
    if (b == NULL)
      c = ((c - 1) & ~mask) + 1;
    else if (get (r, b->bytes, (c - 1) & mask) != 0)
      break;
  }
  *cluster = c > 0 ? c - 1 : 0;
  return 0;
}

/* From the first-th on. */
static uint64_t
count_used (const struct refs *r, const struct refs_block *b, uint64_t first)
{
  const uint64_t nr = UINT64_C (1) << r->block_bits;
  uint64_t i, n = 0;

  for (i = first; i < nr; ++i)
    n += get (r, b->bytes, i) != 0;
  return n;
}

int
refs_count_used (struct refs *r, uint64_t first, uint64_t *nr)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  struct refs_block *b;
  uint64_t i;

  *nr = 0;
  for (i = first >> r->block_bits; i < r->entries; ++i) {
    if (look_for_used (r, i, &b) == -1)
      return -1;
    if (b != NULL)
      *nr += count_used (r, b, i == first >> r->block_bits ? first & mask : 0);
  }
  return 0;
}

int
refs_find_empty (struct refs *r, uint64_t *index, bool *own)
{
  const uint64_t mask = (UINT64_C (1) << r->block_bits) - 1;
  struct refs_block *b;
  uint64_t i;

  for (i = *index; i < r->entries; ++i) {
    uint64_t cluster;

    if (look_at (r, i, &b) == -1)
      return -1;
    if (b == NULL)
      continue;
    cluster = b->at.v >> r->cluster_bits;
    *own = cluster >> r->block_bits == i &&
      get (r, b->bytes, cluster & mask) != 0;
    if (count_used (r, b, 0) == *own)
      break;
  }
  *index = i;
  return 0;
}

int
refs_move_blocks (struct refs *r, refs_moved_fn *to, const void *opaque)
{
  uint64_t i;

  for (i = 0; i < r->entries; ++i) {
    struct refs_block *b;
    uint64_t place;

    if (r->table[i] == 0)
      continue;
    if (look_at (r, i, &b) == -1)
      return -1;
    place = to (opaque, b->at.v >> r->cluster_bits) << r->cluster_bits;
    if (place == b->at.v)
      continue;
    b->at.v = place;
    if (storage_write (r->storage, b->bytes, cluster_size (r), b->at) == -1)
      return -1;
  }
  return 0;
}

/* ----------------------------------------------------------------- writing */

static int
write_block (struct refs *r, struct refs_block *b)
{
  const uint64_t nr = cluster_size (r) >> SECTOR_BITS;
  uint64_t i, n;

  for (i = 0; i < nr; i += n) {
    const struct host_off at = { b->at.v + (i << SECTOR_BITS) };

    for (n = 1; i + n < nr && b->changed[i + n] == b->changed[i]; ++n)
      continue;
    if (b->changed[i] &&
        storage_write (r->storage, b->bytes + (i << SECTOR_BITS),
                       n << SECTOR_BITS, at) == -1)
      return -1;
  }
  memset (b->changed, 0, nr);
  b->any_changed = false;
  return 0;
}

int
refs_write (struct refs *r)
{
  uint64_t i;

  for (i = 0; i < r->entries; ++i) {
    if (r->block[i] != NULL && r->block[i]->any_changed &&
        write_block (r, r->block[i]) == -1)
      return -1;
  }
  return 0;
}
