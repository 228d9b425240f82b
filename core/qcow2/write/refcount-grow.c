/* SPDX-License-Identifier: BSD-3-Clause */

/* New refcount blocks and tables. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "cache/tables.h"
#include "qcow2/entry.h"
#include "qcow2/write/refcount-parts.h"

/* Extend the file to the end of this cluster. */
static int
reach (struct refcounts *r, uint64_t cluster)
{
  const uint64_t size = atomic_load (&refcounts_storage (r)->size);
  const uint64_t end = refcounts_offset (r, cluster + 1).v;

  return end <= size ? 0 : storage_resize (refcounts_storage (r), end);
}

/* Flush, since what follows must come after it.  A failure sticks. */
static int
barrier (struct refcounts *r)
{
  if (storage_flush (refcounts_storage (r)) == 0)
    return 0;
  writeback_fail (r->writeback);
  return -1;
}

/* Clusters become metadata.  If they are metadata already, the refcounts that
 * call them free are wrong.
 */
static int
add_metadata (struct refcounts *r, uint64_t cluster, uint64_t nr,
              enum metadata kind)
{
  if (overlap_add (r->overlap, refcounts_storage (r)->name,
                   refcounts_offset (r, cluster), nr, kind) == 0) {
    /* It may be a snapshot's table, if a damaged image calls that free, and
     * so be in the cache.
     */
    cache_forget (r->writeback->cache, r->writeback->id,
                  refcounts_offset (r, cluster), nr << r->cluster_bits,
                  r->writeback->slice_bytes);
    return 0;
  }
  if (error_errno () != ENOMEM)
    writeback_fail_corrupt (r->writeback);
  return -1;
}

/* Write a refcount block to the cluster `at', in which nr clusters from first
 * on, all of which it describes, have a refcount of 1.
 */
static int
write_block (struct refcounts *r, uint64_t at, uint64_t first, uint64_t nr)
{
  const uint64_t in_block = (UINT64_C (1) << r->block_bits) - 1;
  uint64_t *words = calloc (1, refcounts_cluster_size (r)), i;
  int ret;

  if (words == NULL) {
    error_set (ENOMEM, "%s: out of memory", refcounts_storage (r)->name);
    return -1;
  }
  for (i = first & in_block; i < (first & in_block) + nr; ++i) {
    uint64_t *word = &words[(i << r->order) / 64];

    *word = htobe64 (entry_put_refcount (r->order, be64toh (*word), i, 1));
  }
  ret = storage_write (refcounts_storage (r), words, refcounts_cluster_size (r),
                       refcounts_offset (r, at));
  free (words);
  return ret;
}

/* Have the table refer to this block, which is durable. */
static int
set_block (struct refcounts *r, uint64_t index, struct host_off block)
{
  const struct host_off place = { r->table.v + index * sizeof (uint64_t) };
  const unsigned slice_bytes = r->writeback->slice_bytes;
  const struct change ch = {
    .slice.v = place.v / slice_bytes * slice_bytes,
    .first = place.v % slice_bytes / sizeof (uint64_t),
    .nr = 1,
    .words = &block.v,
    .order = CACHE_FIRST,
  };

  return writeback_change (r->writeback, &ch, NULL);
}

/* Make a refcount block for this cluster, which is free and has none.  The
 * block is put into the cluster itself, and so depends on no other refcounts.
 */
static int
add_block (struct refcounts *r, uint64_t cluster)
{
  const struct host_off block = refcounts_offset (r, cluster);

  if (reach (r, cluster) == -1 ||
      add_metadata (r, cluster, 1, METADATA_REFCOUNT_BLOCK) == -1)
    return -1;
  if (write_block (r, cluster, cluster, 1) == -1 || barrier (r) == -1 ||
      set_block (r, cluster >> r->block_bits, block) == -1) {
    overlap_remove (r->overlap, block, 1);
    return -1;
  }
  return 0;
}

/* A new refcount table and the blocks that describe both, contiguous: blocks,
 * then table.
 */
struct growth {
  uint64_t start; /* cluster */
  uint64_t blocks, first_index;
  uint64_t table_clusters;
};

/* Plan a table that covers its own clusters.  They are the first that the old
 * one has no entries for, where nothing can be in use.
 */
static int
plan_growth (const struct refcounts *r, struct growth *g)
{
  const unsigned entry_bits = r->cluster_bits - 3;
  const uint64_t max = QCOW2_MAX_REFCOUNT_TABLE_BYTES >> r->cluster_bits;
  uint64_t last_index;

  g->start = refcounts_entries (r) << r->block_bits;
  g->first_index = g->start >> r->block_bits;
  g->blocks = 1;
  g->table_clusters = r->table_clusters + r->table_clusters / 2 + 1;
  if (g->table_clusters > max && r->table_clusters < max)
    g->table_clusters = max;
  for (;;) {
    last_index = (g->start + g->blocks + g->table_clusters - 1)
      >> r->block_bits;
    if (last_index - g->first_index + 1 > g->blocks)
      g->blocks = last_index - g->first_index + 1;
    else if (last_index >> entry_bits >= g->table_clusters)
      g->table_clusters = (last_index >> entry_bits) + 1;
    else
      break;
  }
  if (g->table_clusters > max ||
      g->start + g->blocks + g->table_clusters >
      QCOW2_MAX_HOST_SIZE >> r->cluster_bits) {
    error_set (ENOSPC, "%s: the refcount table can't grow beyond %" PRIu64
               " bytes", refcounts_storage (r)->name,
               QCOW2_MAX_REFCOUNT_TABLE_BYTES);
    return -1;
  }
  return 0;
}

/* Write the blocks; each counts those of the new clusters that it describes.
 */
static int
write_new_blocks (struct refcounts *r, const struct growth *g)
{
  const uint64_t per_block = UINT64_C (1) << r->block_bits;
  const uint64_t end = g->start + g->blocks + g->table_clusters;
  uint64_t i;

  for (i = 0; i < g->blocks; ++i) {
    const uint64_t described = (g->first_index + i) * per_block;
    const uint64_t from = described > g->start ? described : g->start;
    const uint64_t to = described + per_block < end
      ? described + per_block : end;

    if (write_block (r, g->start + i, from, to - from) == -1)
      return -1;
  }
  return 0;
}

static int
write_new_table (struct refcounts *r, const struct growth *g)
{
  const uint64_t bytes = g->table_clusters << r->cluster_bits;
  uint64_t *words = calloc (1, bytes), i;
  int ret;

  if (words == NULL) {
    error_set (ENOMEM, "%s: out of memory", refcounts_storage (r)->name);
    return -1;
  }
  ret = storage_read (refcounts_storage (r), words,
                      r->table_clusters << r->cluster_bits, r->table);
  for (i = 0; i < g->blocks; ++i)
    words[g->first_index + i] =
      htobe64 (refcounts_offset (r, g->start + i).v);
  if (ret == 0)
    ret = storage_write (refcounts_storage (r), words, bytes,
                         refcounts_offset (r, g->start + g->blocks));
  free (words);
  return ret;
}

/* Make the header point to the new table.  A failure leaves it unknown which
 * of the two tables is in use.
 */
static int
switch_table (struct refcounts *r, struct host_off table, uint64_t clusters)
{
  uint8_t buf[HEADER_REFCOUNT_TABLE_BYTES];
  const struct host_off at = { HEADER_REFCOUNT_TABLE_OFFSET };
  int ret;

  header_encode_refcount_table (table, clusters, buf);
  pthread_mutex_lock (&r->writeback->header_lock);
  ret = storage_write (refcounts_storage (r), buf, sizeof buf, at);
  pthread_mutex_unlock (&r->writeback->header_lock);
  if (ret == -1) {
    writeback_fail (r->writeback);
    return -1;
  }
  return barrier (r);
}

/* Switch to the new table, and give up the old one. */
static int
replace_table (struct refcounts *r, const struct growth *g)
{
  const struct host_off table = refcounts_offset (r, g->start + g->blocks);
  const struct freed old = {
    .host = r->table, .nr = r->table_clusters, .is_table = true,
    .bytes = r->table_clusters << r->cluster_bits,
  };

  if (switch_table (r, table, g->table_clusters) == -1)
    return -1;
  r->table = table;
  r->table_clusters = g->table_clusters;
  /* If memory is short the old table is lost. */
  (void) writeback_free (r->writeback, &old, 1);
  return 0;
}

static int
grow_table (struct refcounts *r)
{
  struct growth g;

  /* So that the old table is complete on the disk, to be copied. */
  if (writeback_flush (r->writeback) == -1 || plan_growth (r, &g) == -1 ||
      reach (r, g.start + g.blocks + g.table_clusters - 1) == -1 ||
      add_metadata (r, g.start, g.blocks, METADATA_REFCOUNT_BLOCK) == -1)
    return -1;
  if (add_metadata (r, g.start + g.blocks, g.table_clusters,
                    METADATA_REFCOUNT_TABLE) == -1) {
    overlap_remove (r->overlap, refcounts_offset (r, g.start), g.blocks);
    return -1;
  }
  if (write_new_blocks (r, &g) == -1 || write_new_table (r, &g) == -1 ||
      barrier (r) == -1 || replace_table (r, &g) == -1) {
    overlap_remove (r->overlap, refcounts_offset (r, g.start),
                    g.blocks + g.table_clusters);
    return -1;
  }
  return 0;
}

int
refcount_ensure_block (struct refcounts *r, uint64_t cluster, bool *taken)
{
  struct host_off block;

  *taken = true;
  if (cluster >> r->block_bits >= refcounts_entries (r))
    return grow_table (r);
  if (refcount_find_block (r, cluster, &block) == -1)
    return -1;
  if (block.v == 0)
    return add_block (r, cluster);
  *taken = false;
  return 0;
}


/* ------------------------------------------------------ contiguous clusters */

/* The first nr contiguous free clusters, with or without refcount blocks. */
static int
find_run (struct refcounts *r, uint64_t nr, uint64_t *first)
{
  const uint64_t end = QCOW2_MAX_HOST_SIZE >> r->cluster_bits;
  uint64_t at = r->first_free, found = 0;

  while (at < end) {
    if (refcount_count_free (r, &at, nr, &found) == -1)
      return -1;
    if (found == nr) {
      *first = at - nr;
      return at <= end ? 0 : refcount_none_free (r);
    }
  }
  return refcount_none_free (r);
}

/* Find the first block that is missing for these clusters, from *index on.
 * Returns 1, 0 if there is none, or -1 with the error set.
 */
static int
find_missing (struct refcounts *r, uint64_t *index, uint64_t last)
{
  struct host_off block;

  for (; *index <= last; ++*index) {
    if (refcount_find_block (r, *index << r->block_bits, &block) == -1)
      return -1;
    if (block.v == 0)
      return 1;
  }
  return 0;
}

/* Write empty blocks for clusters whose block is missing, to nr clusters whose
 * refcounts are durable, as far as there are such blocks.  Returns how many
 * there were, or -1 with the error set.
 */
static int
write_empty_blocks (struct refcounts *r, uint64_t at, uint64_t nr,
                    uint64_t index, uint64_t last)
{
  uint64_t n;
  int missing = 0;

  for (n = 0; n < nr; ++n, ++index) {
    missing = find_missing (r, &index, last);
    if (missing != 1)
      break;
    if (write_block (r, at + n, 0, 0) == -1)
      return -1;
  }
  return missing == -1 || barrier (r) == -1 ? -1 : (int) n;
}

/* Have the table refer to nr such blocks.  *set is how many it refers to then, also
 * after a failure.
 */
static int
set_blocks (struct refcounts *r, uint64_t at, uint64_t nr, uint64_t index,
            uint64_t last, uint64_t *set)
{
  for (*set = 0; *set < nr; ++*set, ++index) {
    if (find_missing (r, &index, last) != 1 ||
        set_block (r, index, refcounts_offset (r, at + *set)) == -1)
      return -1;
  }
  return 0;
}

/* Count nr clusters, durably, since a table must not refer to a block before; write
 * blocks there, as many as are missing; and have the table refer to these.
 */
static int
count_and_set_blocks (struct refcounts *r, uint64_t at, uint64_t nr,
                      uint64_t index, uint64_t last, uint64_t *set)
{
  int used;

  *set = 0;
  if (refcount_set (r, at, nr, 1, NULL) == -1 ||
      writeback_flush (r->writeback) == -1)
    return -1;
  used = write_empty_blocks (r, at, nr, index, last);
  return used == -1 ? -1 : set_blocks (r, at, used, index, last, set);
}

/* Nothing refers to these clusters. */
static int
give_up_blocks (struct refcounts *r, uint64_t at, uint64_t nr)
{
  if (nr == 0)
    return 0;
  overlap_remove (r->overlap, refcounts_offset (r, at), nr);
  if (refcount_set (r, at, nr, 0, NULL) == 0)
    return 0;
  writeback_lost (r->writeback);
  return -1;
}

/* Make blocks that are missing for the clusters that these indices describe,
 * some or all, in free clusters of any place: a block in a cluster that it
 * describes would interrupt the run.  Finding clusters for them may make some of the
 * blocks: so all of them are needed, or some, or none.
 */
static int
add_blocks (struct refcounts *r, uint64_t index, uint64_t last)
{
  struct error_kept kept;
  uint64_t at, nr, set;

  if (refcount_find_free (r, last - index + 1, &at, &nr) == -1 ||
      reach (r, at + nr - 1) == -1 ||
      add_metadata (r, at, nr, METADATA_REFCOUNT_BLOCK) == -1)
    return -1;
  if (count_and_set_blocks (r, at, nr, index, last, &set) == 0)
    return give_up_blocks (r, at + set, nr - set);
  error_keep (&kept);
  (void) give_up_blocks (r, at + set, nr - set); /* or lost */
  error_restore (&kept);
  return -1;
}

int
refcount_find_contiguous (struct refcounts *r, uint64_t nr, uint64_t *cluster)
{
  for (;;) {
    uint64_t index, last;
    int missing;

    if (find_run (r, nr, cluster) == -1)
      return -1;
    last = (*cluster + nr - 1) >> r->block_bits;
    if (last >= refcounts_entries (r)) {
      if (grow_table (r) == -1)
        return -1;
      continue;
    }
    index = *cluster >> r->block_bits;
    missing = find_missing (r, &index, last);
    if (missing != 1)
      return missing;
    if (add_blocks (r, index, last) == -1)
      return -1;
  }
}
