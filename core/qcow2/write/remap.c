/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/write/frozen.h"
#include "qcow2/write/remap.h"

static inline const struct map *
remapped_map (const struct remap *r)
{
  return qcow2_map (r->w->disk);
}

/* ----------------------------------------------------- entering and leaving */

/* R5 */
static uint64_t
clip_step (const struct map *m, struct guest_off from, uint64_t to)
{
  const uint64_t slice_end = map_slice_end (m, from);
  const uint64_t step_end = (from.v + WRITER_MAX_STEP) & -m->cluster_size;

  if (to > slice_end)
    to = slice_end;
  return to < step_end ? to : step_end;
}

/* R1 */
void
remap_enter (struct remap *r, struct writer *w, struct guest_off from,
             uint64_t to)
{
  const unsigned cluster_bits = qcow2_map (w->disk)->format.cluster_bits;

  r->w = w;
  r->from = from;
  r->to = clip_step (qcow2_map (w->disk), from, to);
  r->range.first = from.v >> cluster_bits;
  r->range.last = (r->to - 1) >> cluster_bits;
  r->cluster = r->range.first << cluster_bits;
  r->nr = r->range.last - r->range.first + 1;
  r->nr_set = r->nr_freed = 0;
  r->taken_clusters = r->taken_bytes = r->bytes_freed = 0;
  r->token = epoch_enter (w->disk->shared->epoch);
  inflight_enter (&w->inflight, &r->range);
}

static void
leave_step (struct remap *r)
{
  inflight_leave (&r->w->inflight, &r->range);
  epoch_leave (r->w->disk->shared->epoch, r->token);
}

int
remap_find (struct remap *r)
{
  struct host_off table;

  if (writer_table (r->w, r->from, &table) == -1 ||
      (points_are_held (r->w->points) &&
       frozen_capture (r->w, table, r->from) == -1)) /* R7 */
    return -1;
  return map_l2_entries (remapped_map (r), table,
                         (struct guest_off) { r->cluster }, r->nr, &r->l2);
}

int
remap_begin (struct remap *r, struct writer *w, struct guest_off from,
             uint64_t to)
{
  remap_enter (r, w, from, to);
  if (remap_find (r) == 0)
    return 0;
  remap_abort (r);
  return -1;
}

/* ------------------------------------------------------------------- places */

int
remap_take (struct remap *r, unsigned i, uint64_t nr, struct placed *out)
{
  assert (r->taken_clusters == 0 && r->taken_bytes == 0);
  if (writer_place (r->w, r->range.first + i, nr, out) == -1)
    return -1;
  r->taken = out->host;
  r->taken_clusters = out->nr;
  return 0;
}

int
remap_take_bytes (struct remap *r, uint64_t bytes, struct host_off *host)
{
  assert (r->taken_clusters == 0 && r->taken_bytes == 0);
  if (writer_take_bytes (r->w, bytes, host) == -1)
    return -1;
  r->taken = *host;
  r->taken_bytes = bytes;
  return 0;
}

/* The references that a mapping to these bytes has: to each cluster that they
 * touch.  shared: others refer to them, too.  copied: the entry's flag.
 */
static struct freed
references_to (const struct map *m, struct host_off host, uint64_t bytes,
               bool shared, bool copied)
{
  const uint64_t first = host.v & -m->cluster_size;

  return (struct freed) {
    .host.v = first,
    .nr = ((host.v + bytes - 1 - first) >> m->format.cluster_bits) + 1,
    .copied = copied,
    .bytes = shared ? 0 : bytes,
  };
}

struct freed
remap_references (const struct map *m, const struct l2_entry *e)
{
  return e->kind == CLUSTER_COMPRESSED
    ? references_to (m, e->host, e->compressed_size, false, false)
    : references_to (m, e->host, m->cluster_size,
                     !e->copied && !m->format.data_file, e->copied);
}

/* R6 */
static void
give_back_taken (struct remap *r)
{
  if (r->taken_clusters > 0)
    r->w->placement->give_back (r->w->placement, r->taken, r->taken_clusters);
  if (r->taken_bytes > 0) {
    const struct freed lost =
      references_to (remapped_map (r), r->taken, r->taken_bytes, false, false);

    (void) writeback_free (&r->w->writeback, &lost, 1); /* or lost */
  }
}

void
remap_abort (struct remap *r)
{
  give_back_taken (r);
  leave_step (r);
}

/* ------------------------------------------------------------------ entries */

int
remap_entry (const struct remap *r, unsigned i, struct l2_entry *e)
{
  assert (i >= r->nr_set);
  return map_l2_decode (remapped_map (r), &r->l2, i, e);
}

/* R2; the i-th entry's first word is this. */
static void
free_old (struct remap *r, unsigned i, uint64_t word,
          const struct l2_entry *old)
{
  const struct map *m = remapped_map (r);
  const struct guest_off at = { r->cluster + i * m->cluster_size };
  const struct freed f = remap_references (m, old);
  struct freed *last = r->nr_freed > 0 ? &r->freed[r->nr_freed - 1] : NULL;

  if (last != NULL && m->format.data_file &&
      last->host.v + last->bytes == f.host.v) { /* one hole */
    last->nr++;
    last->bytes += m->cluster_size;
    r->bytes_freed += m->cluster_size;
    return;
  }
  r->held[r->nr_freed] = frozen_reference (r->w, at, word); /* R7 */
  if (!r->held[r->nr_freed])
    r->bytes_freed += f.bytes;
  r->freed[r->nr_freed++] = f;
}

/* host is what the new entry, of these words, refers to. */
static void
replace_entry (struct remap *r, unsigned i, struct host_off host,
               const uint64_t new[2])
{
  const struct map *m = remapped_map (r);
  uint64_t *words = &r->l2.words[i << m->l2_word_bits];
  const struct l2_entry old =
    entry_decode_l2 (&m->format, words[0],
                     m->format.extended_l2 ? words[1] : 0);

  assert (i == r->nr_set && i < r->nr);
  if (!host_is_none (old.host) && old.host.v != host.v)
    free_old (r, i, words[0], &old);
  memcpy (words, new, sizeof *words << m->l2_word_bits);
  r->nr_set++;
}

void
remap_set (struct remap *r, unsigned i, struct host_off host, bool copied,
           uint32_t allocated, uint32_t zero)
{
  uint64_t words[2];

  entry_encode_l2 (&remapped_map (r)->format, host, copied, allocated, zero,
                   words);
  replace_entry (r, i, host, words);
}

void
remap_set_compressed (struct remap *r, unsigned i, struct host_off host,
                      uint32_t bytes)
{
  uint64_t words[2];

  entry_encode_compressed (&remapped_map (r)->format, host, bytes, words);
  replace_entry (r, i, host, words);
}

/* --------------------------------------------------------------- the change */

/* A reference to metadata, which goes if what is there belongs to a bitmap and
 * keeps another one.
 */
static int
check_metadata (struct remap *r, struct host_off host, bool copied,
                enum metadata kind)
{
  uint64_t refcount;

  if (copied || !overlap_is_bitmap (kind))
    return writer_found_corrupt (r->w, "data would be taken away that is", kind,
                                 host, remapped_map (r)->cluster_size);
  if (alloc_refcount (&r->w->alloc, host, &refcount) == -1)
    return -1;
  if (refcount >= 2)
    return 0;
  error_set (EIO, "%s: damaged: the refcount of the cluster at offset 0x%"
             PRIx64 " is %" PRIu64 ", but it holds both data and %s",
             writer_name (r->w), host.v, refcount, overlap_name (kind));
  return -1;
}

/* R3 */
static int
check_freed (struct remap *r)
{
  const unsigned bits = remapped_map (r)->format.cluster_bits;
  unsigned i;

  for (i = 0; i < r->nr_freed; ++i) {
    const struct freed *f = &r->freed[i];
    uint64_t n;

    if (overlap_find (r->w->forbidden, f->host, f->nr << bits) == METADATA_NONE)
      continue;
    for (n = 0; n < f->nr; ++n) {
      const struct host_off host = { f->host.v + (n << bits) };
      const enum metadata kind = overlap_find (r->w->forbidden, host, 1);

      if (kind != METADATA_NONE &&
          check_metadata (r, host, f->copied, kind) == -1)
        return -1;
    }
  }
  return 0;
}

/* R7 */
static void
keep_held (struct remap *r)
{
  unsigned i, nr = 0;

  for (i = 0; i < r->nr_freed; ++i) {
    if (!r->held[i])
      r->freed[nr++] = r->freed[i];
  }
  r->nr_freed = nr;
}

static int
change_entries (struct remap *r, bool ordered)
{
  const bool by_change = r->w->placement->release == NULL;
  struct change ch = {
    .slice = r->l2.slice,
    .first = r->l2.first_word,
    .nr = r->nr_set << remapped_map (r)->l2_word_bits,
    .words = r->l2.words,
    .order = CACHE_SECOND,
    .ordered = ordered,
    .freed = r->freed,
  };

  if (by_change) {
    keep_held (r);
    ch.nr_freed = r->nr_freed;
  }
  return writeback_change (&r->w->writeback, &ch, NULL);
}

static void
release_freed (struct remap *r)
{
  struct placement *p = r->w->placement;
  unsigned i;

  for (i = 0; p->release != NULL && i < r->nr_freed; ++i)
    p->release (p, r->freed[i].host, r->freed[i].nr);
}

int
remap_end (struct remap *r, bool ordered)
{
  const bool nothing = r->nr_set == 0;

  if (nothing || check_freed (r) == -1 || change_entries (r, ordered) == -1) {
    remap_abort (r);
    return nothing ? 0 : -1;
  }
  release_freed (r);
  leave_step (r);
  return 0;
}

int
remap_end_durably (struct remap *r)
{
  int ret;

  if (check_freed (r) == -1 || change_entries (r, true) == -1) {
    remap_abort (r);
    return -1;
  }
  /* It must not be used before it is durable, and can be seen already. */
  ret = writeback_flush (&r->w->writeback);
  if (ret == -1)
    writeback_fail (&r->w->writeback);
  leave_step (r);
  return ret;
}
