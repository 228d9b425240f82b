/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/check/repair-refcounts.h"

static inline uint64_t
refcount_max (const struct check *c)
{
  return entry_refcount_max (c->h.refcount_order);
}

/* What the refcount should be, limited to its width. */
static inline uint64_t
wanted (const struct check *c, const struct check_span *span,
        uint64_t cluster)
{
  const uint64_t counted = check_span_counted (span, cluster);
  const uint64_t max = refcount_max (c);

  return counted < max ? counted : max;
}

/* The value that a refcount which is too high is lowered to. */
static inline uint64_t
lowered (const struct repair *r, uint64_t stored, uint64_t want)
{
  return r->keep_one && want == 0 && stored > 0 ? 1 : want;
}

/* ------------------------------------------------------------------ survey */

static int
add_shared (struct repair *r, uint64_t cluster)
{
  if (r->shared == NULL) {
    r->shared = malloc (REPAIR_MAX_SHARED * sizeof *r->shared);
    if (r->shared == NULL) {
      error_set (ENOMEM, "out of memory");
      return -1;
    }
  }
  if (r->nr_shared < REPAIR_MAX_SHARED)
    r->shared[r->nr_shared++] = cluster;
  r->all_shared++;
  return 0;
}

static bool
is_shared (const struct check_span *span, uint64_t cluster)
{
  const struct counts_chunk *k = span->chunk;
  const bool meta = counts_flag (k, COUNTS_META, cluster);
  const bool table = counts_flag (k, COUNTS_L2, cluster);

  return (meta && check_span_counted (span, cluster) > 1) ||
    (table && (meta || counts_flag (k, COUNTS_DATA, cluster)));
}

/* Limits for new refcounts: in all, plus for each cluster with references.
 * References that are far apart need a block each.  In ordinary images the new
 * blocks stay within this; images made to fill the disk, or to keep a processor
 * busy with small blocks, get no more.
 */
#define MAX_NEW_BYTES (UINT64_C (64) << 20)
#define MAX_BYTES_EACH 16
#define MAX_NEW_BLOCKS 32768
#define MIN_REFERRED_EACH 8 /* clusters for each block beyond these */

/* Check these limits, before anything is written. */
static int
check_size (const struct repair *r)
{
  const uint64_t bytes = r->blocks << r->c.h.cluster_bits;

  if (!r->rebuild ||
      (bytes <= MAX_NEW_BYTES + r->referred * MAX_BYTES_EACH &&
       r->blocks <= MAX_NEW_BLOCKS + r->referred / MIN_REFERRED_EACH))
    return 0;
  error_set (EIO, "%s: the clusters in use are so far apart that new refcounts "
             "of them would take %" PRIu64 " bytes, in %" PRIu64 " blocks",
             r->c.storage->name, bytes, r->blocks);
  return -1;
}

static void
count_referred (struct repair *r, uint64_t cluster)
{
  const uint64_t block = (cluster >> r->c.refcounts.block_bits) + 1;

  r->referred++;
  r->blocks += block != r->last_block;
  r->last_block = block;
}

static int
survey_span (struct check *c, void *opaque, const struct check_span *span)
{
  struct repair *r = opaque;
  const uint64_t base = check_span_base (span);
  uint64_t i;

  for (i = span->first; (i = check_span_next (span, i)) < span->end; ++i) {
    const uint64_t stored = check_refcount_at (c->h.refcount_order,
                                               span->refcounts, i - base);
    const uint64_t want = wanted (c, span, i);

    if (stored == 0 && want == 0)
      continue;
    if (want > 0 || i < c->nr) /* others beyond the end are stale */
      r->highest = i + 1;
    if (want > 0)
      count_referred (r, i);
    r->raise |= stored < want;
    r->lower |= stored > lowered (r, stored, want);
    if (want > 0 &&
        check_block_offset (&c->refcounts, i >> c->refcounts.block_bits) == 0)
      r->rebuild = true;
    if (want > 0 && is_shared (span, i) && add_shared (r, i) == -1)
      return -1;
  }
  return 0;
}

/* The end of all clusters that have refcounts.  Those beyond the end of the
 * file would be leaks as soon as it grows; new refcounts leave them out.
 */
static uint64_t
refcounts_end (const struct repair *r, uint64_t next)
{
  const struct check *c = &r->c;
  const uint64_t end = c->refcounts.entries << c->refcounts.block_bits;

  return r->rebuild || next < c->nr || end < next ? next : end;
}

int
repair_find_beyond (struct check *c, bool *any)
{
  struct check_refcounts *rc = &c->refcounts;
  const uint64_t end = rc->entries << rc->block_bits;
  uint8_t buf[COUNTS_CHUNK * 8];
  uint64_t i = c->nr;

  for (*any = false; (i = check_refcounts_next (rc, i)) < end;) {
    const uint64_t base = i & ~(COUNTS_CHUNK - 1);
    const int r = check_refcounts_read (rc, base, COUNTS_CHUNK, buf);

    if (r == -1)
      return -1;
    for (; r > 0 && i < base + COUNTS_CHUNK; ++i)
      if (check_refcount_at (rc->order, buf, i - base) != 0) {
        *any = true;
        return 0;
      }
    i = base + COUNTS_CHUNK;
  }
  return 0;
}

static int
survey_window (struct repair *r, uint64_t next, void *opaque)
{
  (void) opaque;
  return check_each_span (&r->c, refcounts_end (r, next), survey_span, r);
}

/* Whether a block's offset is impossible. */
static bool
is_odd_block (const struct repair *r, uint64_t word)
{
  const struct check *c = &r->c;

  return word != 0 &&
    (word % c->h.cluster_size != 0 || word >> c->h.cluster_bits >= c->nr ||
     word >= c->file_size);
}

/* A block that has another use as well must not be written, either. */
static bool
is_bad_block (const struct repair *r, uint64_t index)
{
  const uint64_t word = r->c.refcounts.table[index];

  return is_odd_block (r, word) ||
    (word != 0 && !repair_may_write (r, (struct host_off) { word }));
}

static bool
is_bad_table (const struct repair *r)
{
  const struct check *c = &r->c;
  const uint64_t bytes = 8 * c->refcounts.entries;
  uint64_t at;

  if (bytes == 0 || c->refcounts.offset.v + bytes > c->nr * c->h.cluster_size)
    return true;
  for (at = 0; at < bytes; at += c->h.cluster_size)
    if (!repair_may_write (r, (struct host_off) { c->refcounts.offset.v +
                                                  at }))
      return true;
  return false;
}

int
repair_survey (struct repair *r)
{
  const struct check_refcounts *rc = &r->c.refcounts;
  size_t i;

  r->nr_shared = r->all_shared = 0;
  r->referred = r->blocks = r->last_block = 0;
  r->raise = r->lower = false;
  /* Two entries share a block. */
  r->rebuild = rc->twice;
  for (i = 0; i < rc->nr_used; ++i)
    if (is_odd_block (r, rc->table[rc->used[i]]))
      r->rebuild = true;
  if (repair_each_window (r, survey_window, NULL) == -1)
    return -1;
  if (is_bad_table (r))
    r->rebuild = true;
  for (i = 0; i < rc->nr_used; ++i)
    if (is_bad_block (r, rc->used[i]))
      r->rebuild = true;
  return check_size (r);
}

/* --------------------------------------------------------------- in place */

struct change {
  struct repair *repair;
  bool up;
  uint8_t buf[COUNTS_CHUNK * 8];
};

static int
change_span (struct check *c, void *opaque, const struct check_span *span)
{
  const unsigned order = c->h.refcount_order;
  const uint64_t base = check_span_base (span);
  struct change *x = opaque;
  bool any = false;
  uint64_t i;

  memcpy (x->buf, span->refcounts,
          check_refcounts_bytes (&c->refcounts, COUNTS_CHUNK));
  for (i = span->first; (i = check_span_next (span, i)) < span->end; ++i) {
    const uint64_t stored = check_refcount_at (order, span->refcounts,
                                               i - base);
    uint64_t want = wanted (c, span, i);

    if (!x->up)
      want = lowered (x->repair, stored, want);
    if (x->up ? stored < want : stored > want) {
      check_put_refcount (order, x->buf, i - base, want);
      any = true;
    }
  }
  if (!any)
    return 0;
  x->repair->changed = true;
  return check_refcounts_write (&c->refcounts, base, COUNTS_CHUNK,
                                span->refcounts, x->buf);
}

/* up points to a bool. */
static int
change_window (struct repair *r, uint64_t next, void *up)
{
  struct change x = { .repair = r, .up = *(const bool *) up };

  return check_each_span (&r->c, refcounts_end (r, next), change_span, &x);
}

int
repair_raise (struct repair *r)
{
  bool up = true;

  return repair_each_window (r, change_window, &up);
}

int
repair_lower (struct repair *r)
{
  bool up = false;

  return repair_each_window (r, change_window, &up);
}

/* ------------------------------------------------------------ rebuilding */

#define MAX_ENTRIES (QCOW2_MAX_REFCOUNT_TABLE_BYTES / 8)

/* The new blocks, followed by the new table. */
struct plan {
  struct repair *repair;
  uint64_t *table;  /* MAX_ENTRIES; nonzero where a block is needed */
  uint64_t entries; /* up to the last block */
  uint64_t nr_blocks;
  uint64_t first, clusters; /* of all of it */
  uint64_t table_clusters;
};

static int
want_block (struct plan *p, uint64_t cluster)
{
  const uint64_t index = cluster >> p->repair->c.refcounts.block_bits;

  if (index >= MAX_ENTRIES) {
    error_set (EIO, "%s: cluster 0x%" PRIx64 " is too far for any refcount "
               "table", p->repair->c.storage->name, cluster);
    return -1;
  }
  if (p->table[index] == 0)
    p->nr_blocks++;
  p->table[index] = 1;
  if (index >= p->entries)
    p->entries = index + 1;
  return 0;
}

static int
plan_span (struct check *c, void *opaque, const struct check_span *span)
{
  struct plan *p = opaque;
  uint64_t i;

  (void) c;
  for (i = span->first; (i = check_span_next (span, i)) < span->end; ++i)
    if (check_span_counted (span, i) > 0 && want_block (p, i) == -1)
      return -1;
  return 0;
}

/* Find a place for the table and blocks, which cover themselves, too. */
static int
place (struct plan *p, uint64_t first)
{
  const struct check *c = &p->repair->c;
  uint64_t clusters = 0, i, at;

  p->first = first;
  do {
    for (i = first + clusters; i-- > first;)
      if (want_block (p, i) == -1)
        return -1;
    p->table_clusters =
      (8 * p->entries + c->h.cluster_size - 1) >> c->h.cluster_bits;
    p->clusters = clusters;
    clusters = p->nr_blocks + p->table_clusters;
  } while (clusters != p->clusters);
  at = first;
  for (i = 0; i < p->entries; ++i)
    if (p->table[i] != 0)
      p->table[i] = at++ << c->h.cluster_bits;
  return 0;
}

/* Write zeros to the planned place: after the end of the file, or inside if it
 * can't grow and has room.
 */
static int
make_space (struct plan *p, uint64_t old_size)
{
  const struct check *c = &p->repair->c;
  const struct host_off at = { p->first << c->h.cluster_bits };
  struct error_kept kept;

  if (storage_zero (c->storage, at, p->clusters << c->h.cluster_bits,
                    false) == 0)
    return 0;
  /* The file may have grown by part of that. */
  error_keep (&kept);
  (void) storage_resize (c->storage, old_size);
  error_restore (&kept);
  error_append (" (%" PRIu64 " clusters for new refcounts)", p->clusters);
  return -1;
}

/* Write the refcounts of a chunk to the planned blocks. */
static int
write_chunk (struct plan *p, uint64_t base)
{
  struct check *c = &p->repair->c;
  const struct check_refcounts *rc = &c->refcounts;
  const struct check_span span = {
    .counts = &c->counts,
    .chunk = counts_in_window (&c->counts, base)
      ? counts_find (&c->counts, base) : NULL,
  };
  uint8_t buf[COUNTS_CHUNK * 8] = { 0 };
  uint64_t i, n;

  for (i = base; i < base + COUNTS_CHUNK; ++i) {
    const bool new = i >= p->first && i < p->first + p->clusters;

    check_put_refcount (c->h.refcount_order, buf, i - base,
                        new ? 1 : wanted (c, &span, i));
  }
  for (i = base; i < base + COUNTS_CHUNK; i += n) {
    const uint64_t index = i >> rc->block_bits;
    const uint64_t in_block = i & ((UINT64_C (1) << rc->block_bits) - 1);
    struct host_off at;

    n = check_block_rest (rc, i);
    if (n > base + COUNTS_CHUNK - i)
      n = base + COUNTS_CHUNK - i;
    if (index >= p->entries || p->table[index] == 0)
      continue;
    at.v = p->table[index] + check_refcounts_bytes (rc, in_block);
    if (storage_write (c->storage, buf + check_refcounts_bytes (rc, i - base),
                       check_refcounts_bytes (rc, n), at) == -1)
      return -1;
  }
  return 0;
}

/* The next cluster that needs a refcount; the blocks are still zeros. */
static uint64_t
next_wanted (const struct plan *p, uint64_t cluster)
{
  const uint64_t end = p->first + p->clusters;
  uint64_t next = counts_next (&p->repair->c.counts, cluster);

  if (cluster < end && next > p->first)
    next = cluster > p->first ? cluster : p->first;
  return next;
}

static int
write_blocks (struct plan *p, uint64_t first, uint64_t end)
{
  for (;;) {
    first = next_wanted (p, first);
    if (first >= end)
      return 0;
    first &= ~(COUNTS_CHUNK - 1);
    if (write_chunk (p, first) == -1)
      return -1;
    first += COUNTS_CHUNK;
  }
}

static int
write_table (struct plan *p)
{
  const struct check *c = &p->repair->c;
  const uint64_t at = p->first + p->nr_blocks;
  uint64_t i;

  for (i = 0; i < p->entries; ++i)
    p->table[i] = htobe64 (p->table[i]);
  return storage_write (c->storage, p->table, 8 * p->entries,
                        (struct host_off) { at << c->h.cluster_bits });
}

/* Switch the header over in one write, once everything that it will point to is
 * durable.
 */
static int
switch_header (struct plan *p)
{
  struct check *c = &p->repair->c;
  uint8_t buf[HEADER_REFCOUNT_TABLE_BYTES];
  const struct host_off table = {
    (p->first + p->nr_blocks) << c->h.cluster_bits
  };
  const struct host_off field = { HEADER_REFCOUNT_TABLE_OFFSET };

  header_encode_refcount_table (table, p->table_clusters, buf);
  if (storage_flush (c->storage) == -1 ||
      storage_write (c->storage, buf, sizeof buf, field) == -1 ||
      storage_flush (c->storage) == -1)
    return -1;
  c->h.refcount_table_offset = table;
  c->h.refcount_table_clusters = p->table_clusters;
  return 0;
}

static int
plan_window (struct repair *r, uint64_t next, void *plan)
{
  return check_each_span (&r->c, next, plan_span, plan);
}

static int
write_window (struct repair *r, uint64_t next, void *plan)
{
  const struct plan *p = plan;
  const uint64_t new_end = p->first + p->clusters;

  return write_blocks (plan, r->c.counts.first,
                       next < r->c.nr || next > new_end ? next : new_end);
}

/* Choose a place, and make the space. */
static int
find_space (struct repair *r, struct plan *p)
{
  const uint64_t size = r->c.storage->size;
  const uint64_t clusters = size >> r->c.h.cluster_bits;

  if (place (p, r->c.nr) == -1)
    return -1;
  if (make_space (p, size) == 0)
    return 0;
  /* A block device can't grow, but may have clusters without references. */
  if (error_errno () != ENOSPC || r->highest >= clusters ||
      p->clusters + 1 > clusters - r->highest)
    return -1;
  if (place (p, r->highest) == -1)
    return -1;
  return make_space (p, size);
}

static int
write_plan (struct repair *r, struct plan *p)
{
  struct check *c = &r->c;

  c->no_refcounts = true;
  repair_recount (r);
  if (repair_each_window (r, plan_window, p) == -1 ||
      find_space (r, p) == -1 ||
      repair_each_window (r, write_window, p) == -1 ||
      write_table (p) == -1 ||
      switch_header (p) == -1)
    return -1;
  c->no_refcounts = false;
  repair_recount (r);
  check_refcounts_close (&c->refcounts);
  c->nr = p->first + p->clusters > c->nr ? p->first + p->clusters : c->nr;
  c->file_size = (c->storage->size + 511) & ~UINT64_C (511);
  return check_refcounts_open (&c->refcounts, c->storage, &c->h);
}

int
repair_rebuild (struct repair *r)
{
  struct plan p = { .repair = r };
  int ret;

  p.table = calloc (MAX_ENTRIES, sizeof *p.table);
  if (p.table == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  ret = write_plan (r, &p);
  free (p.table);
  return ret;
}
