/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/edit.h"
#include "manage/refcount-width.h"
#include "qcow2/entry.h"

#define PIECE_BYTES (UINT64_C (256) << 10) /* of blocks, are written at once */

struct width {
  struct edit e;
  struct refs old; /* in memory, without references to itself */
  unsigned order;      /* log2 of the new width in bits */
  unsigned block_bits; /* log2 of the refcounts in a new block */

  uint64_t end;   /* no cluster from here on is in use: the new table's first */
  uint64_t table; /* clusters of it */
  uint64_t blocks;
  uint64_t entries; /* of the table, up to the last block */
  uint8_t *needed;  /* for each entry, up to max_entries: there is a block */
  uint64_t max_entries;
};

static int
no_memory (const struct width *w)
{
  error_set (ENOMEM, "%s: out of memory", w->e.storage->name);
  return -1;
}

/* ------------------------------------------------------------------- planning */

/* The old table and blocks lose their references. */
static int
drop_old (struct width *w)
{
  const struct header *h = &w->e.header;
  struct refs *old = &w->old;
  uint64_t i;

  if (edit_drop (&w->e, old, h->refcount_table_offset,
                 h->refcount_table_clusters << h->cluster_bits) == -1)
    return -1;
  for (i = 0; i < old->entries; ++i) {
    const struct host_off block = {
      be64toh (old->table[i]) & QCOW2_REFCOUNT_BLOCK_MASK
    };

    if (block.v != 0 && edit_drop (&w->e, old, block, h->cluster_size) == -1)
      return -1;
  }
  return 0;
}

/* Find the blocks that the clusters want which are in use, if their refcounts have
 * room there.
 */
static int
find_needed (struct width *w)
{
  const uint64_t max = entry_refcount_max (w->order);
  uint64_t i = 0, refcount;

  for (;; ++i) {
    if (refs_next_used (&w->old, w->end, &i, &refcount) == -1)
      return -1;
    if (i == w->end)
      return 0;
    if (refcount > max) {
      error_set (ENOTSUP, "%s: the cluster at offset 0x%" PRIx64 " has %" PRIu64
                 " references, and refcounts of %u bits can count %" PRIu64
                 " at most", w->e.storage->name,
                 i << w->e.header.cluster_bits, refcount, 1U << w->order, max);
      return -1;
    }
    w->needed[i >> w->block_bits] = 1;
  }
}

/* The table and the blocks want refcounts, too, for which they may want more of
 * themselves.  Returns whether they do.
 */
static bool
grow (struct width *w)
{
  const struct header *h = &w->e.header;
  const uint64_t total = w->table + w->blocks;
  uint64_t i, end = (w->end + total + (UINT64_C (1) << w->block_bits) - 1)
    >> w->block_bits;

  if (end > w->max_entries)
    end = w->max_entries;
  for (i = w->end >> w->block_bits; i < end; ++i)
    w->needed[i] = 1;
  w->blocks = w->entries = 0;
  for (i = 0; i < end; ++i)
    if (w->needed[i]) {
      w->blocks++;
      w->entries = i + 1;
    }
  w->table = (w->entries * sizeof (uint64_t) + h->cluster_size - 1)
    >> h->cluster_bits;
  return w->table + w->blocks != total;
}

static int
check_limits (const struct width *w)
{
  const struct header *h = &w->e.header;
  const uint64_t end = w->end + w->table + w->blocks;

  if (w->table << h->cluster_bits <= QCOW2_MAX_REFCOUNT_TABLE_BYTES &&
      (end - 1) >> w->block_bits < w->max_entries &&
      end <= QCOW2_MAX_HOST_SIZE >> h->cluster_bits)
    return 0;
  error_set (ENOTSUP, "%s: refcounts of %u bits for a file as large as this want "
             "a table of more than %" PRIu64 " bytes", w->e.storage->name,
             1U << w->order, QCOW2_MAX_REFCOUNT_TABLE_BYTES);
  return -1;
}

static int
plan (struct width *w)
{
  const struct header *h = &w->e.header;
  uint64_t last;

  w->block_bits = h->cluster_bits + 3 - w->order;
  w->max_entries = QCOW2_MAX_REFCOUNT_TABLE_BYTES / sizeof (uint64_t);
  w->needed = calloc (w->max_entries, 1);
  if (w->needed == NULL)
    return no_memory (w);
  if (edit_open_refs (&w->e, &w->old) == -1 ||
      refs_last_used (&w->old, UINT64_MAX, &last) == -1)
    return -1;
  w->end = last + 1;
  if (last >> w->block_bits >= w->max_entries) {
    w->table = QCOW2_MAX_REFCOUNT_TABLE_BYTES; /* more than there can be */
    return check_limits (w);
  }
  if (drop_old (w) == -1 || find_needed (w) == -1)
    return -1;
  while (grow (w))
    continue;
  return check_limits (w);
}

/* -------------------------------------------------------------------- writing */

static int
new_refcount (struct width *w, uint64_t cluster, uint64_t *refcount)
{
  if (cluster >= w->end) {
    *refcount = cluster < w->end + w->table + w->blocks;
    return 0;
  }
  return refs_look (&w->old, cluster, refcount);
}

/* The block of this number in the table. */
static int
make_block (struct width *w, uint64_t index, uint8_t *bytes)
{
  const uint64_t in_word = 64 >> w->order;
  uint64_t cluster = index << w->block_bits, word, refcount;
  uint64_t i, j;

  for (i = 0; i < w->e.header.cluster_size; i += sizeof word) {
    for (j = 0, word = 0; j < in_word; ++j, ++cluster) {
      if (new_refcount (w, cluster, &refcount) == -1)
        return -1;
      word = entry_put_refcount (w->order, word, j, refcount);
    }
    put_be64 (bytes + i, word);
  }
  return 0;
}

static int
write_blocks (struct width *w)
{
  const unsigned bits = w->e.header.cluster_bits;
  const uint64_t max = PIECE_BYTES >> bits > 0 ? PIECE_BYTES >> bits : 1;
  struct host_off at = { (w->end + w->table) << bits };
  uint8_t *buf = malloc (max << bits);
  uint64_t i, n = 0;
  int r = 0;

  if (buf == NULL)
    return no_memory (w);
  for (i = 0; r == 0 && i < w->entries; ++i) {
    if (w->needed[i])
      r = make_block (w, i, buf + (n++ << bits));
    if (r == 0 && n > 0 && (n == max || i + 1 == w->entries)) {
      r = storage_write (w->e.storage, buf, n << bits, at);
      at.v += n << bits;
      n = 0;
    }
  }
  free (buf);
  return r;
}

static int
write_table (struct width *w)
{
  const unsigned bits = w->e.header.cluster_bits;
  const struct edit_space space = {
    .bytes = w->table << bits, .at = { w->end << bits },
  };
  uint64_t *words = calloc (1, space.bytes), i, n = 0;
  int r;

  if (words == NULL)
    return no_memory (w);
  for (i = 0; i < w->entries; ++i)
    if (w->needed[i])
      words[i] = htobe64 ((w->end + w->table + n++) << bits);
  r = edit_fill (&w->e, &space, words);
  free (words);
  return r;
}

/* What was written counts nowhere: after a lack of space it is cut off. */
static void
give_back (struct width *w, uint64_t size)
{
  struct storage *s = w->e.storage;
  struct error_kept kept;

  error_keep (&kept);
  w->old.nr_freed = 0; /* it is in use */
  if (kept.errnum == ENOSPC && !s->fixed_size &&
      atomic_load (&s->size) > size)
    (void) storage_resize (s, size);
  if (kept.errnum == ENOSPC)
    (void) edit_end (&w->e, &w->old);
  error_restore (&kept);
}

static int
change (struct width *w)
{
  struct edit *e = &w->e;
  const uint64_t size = atomic_load (&e->storage->size);
  const struct host_off table = { w->end << e->header.cluster_bits };

  if (edit_begin (e) == -1)
    return -1;
  if (write_blocks (w) == -1 || write_table (w) == -1 ||
      storage_flush (e->storage) == -1) {
    give_back (w, size);
    return -1;
  }
  edit_set_refcounts (e, w->order, table, w->table);
  if (edit_switch (e) == -1) {
    error_append (" (the refcounts may have their new width)");
    return -1;
  }
  if (edit_end (e, &w->old) == 0)
    return 0;
  error_append (" (the refcounts have their new width)");
  return -1;
}

static int
set (struct storage *s, unsigned order, bool only_check)
{
  struct width w = { .order = order };
  int r;

  if (edit_open (&w.e, s) == -1)
    return -1;
  r = order == w.e.header.refcount_order ? 0
    : plan (&w) == -1 ? -1 : only_check ? 0 : change (&w);
  refs_close (&w.old);
  free (w.needed);
  edit_close (&w.e);
  return r;
}

int
refcount_width_check (struct storage *s, unsigned order)
{
  return set (s, order, true);
}

int
refcount_width_set (struct storage *s, unsigned order)
{
  return set (s, order, false);
}
