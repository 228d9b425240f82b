/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/advice.h"
#include "base/error.h"
#include "manage/edit.h"
#include "qcow2/check/check.h"
#include "qcow2/qcow2.h"

/* L1 and refcount tables are read through it once, from start to end. */
#define CACHE_BYTES (UINT64_C (1) << 20)

#define CHECK_TEXT 256 /* bytes of what a check says */

/* ----------------------------------------------------------------- opening */

/* What can't be followed by a change is not changed. */
static int
check_followed (struct edit *e)
{
  const struct writer_options any_bitmaps = { .invalidate_bitmaps = true };
  uint32_t i;

  if (e->header.has_data_file) {
    error_set (ENOTSUP, "%s: it has an external data file (incompatible "
               "feature bit 2), which this command does not support",
               e->storage->name);
    return -1;
  }
  if (writer_check_header (e->storage, &e->header, &any_bitmaps) == -1 ||
      snapshots_read (&e->snapshots, &e->header, e->storage) == -1)
    return -1;
  for (i = 0; i < e->snapshots.nr; ++i) {
    if (snapshot_check (&e->snapshots.snapshot[i], &e->header,
                        e->storage) == -1)
      return -1;
  }
  return 0;
}

int
edit_check_snapshot_sizes (const struct edit *e)
{
  uint32_t i;

  if (e->header.version < 3 && e->snapshots.nr > 0) {
    error_set (ENOTSUP, "%s: a version 2 image with snapshots can't be "
               "resized", e->storage->name);
    return -1;
  }
  for (i = 0; i < e->snapshots.nr; ++i) {
    const struct snapshot *sn = &e->snapshots.snapshot[i];

    if (sn->has_disk_size)
      continue;
    error_set (ENOTSUP, "%s: the entry of snapshot %.20s does not say how large "
               "its disk is: the image can't be resized", e->storage->name,
               sn->id);
    return -1;
  }
  return 0;
}

static int
open_writer (struct edit *e)
{
  const struct writer_options options = { .invalidate_bitmaps = true };
  struct layer *l = &e->disk.layer;

  e->shared.epoch = &e->epoch;
  e->shared.cache = cache_new (CACHE_BYTES);
  if (e->shared.cache == NULL)
    return -1;
  l->format = &qcow2_format;
  l->tables = l->data = l->data_file = e->storage;
  l->size = e->header.disk_size;
  l->shared = &e->shared;
  map_init (&e->disk.map, &e->header, e->storage, 0, e->shared.cache,
            e->header.l1_offset, e->header.l1_size);
  e->writer = writer_open (l, &e->header, &e->snapshots, &options);
  return e->writer == NULL ? -1 : 0;
}

int
edit_open (struct edit *e, struct storage *s)
{
  *e = (struct edit) { .storage = s };
  epoch_init (&e->epoch);
  if (qcow2_read_header (s, &e->header) == -1 ||
      storage_read (s, e->sector, sizeof e->sector,
                    (struct host_off) { 0 }) == -1 ||
      check_followed (e) == -1 || open_writer (e) == -1) {
    edit_close (e);
    return -1;
  }
  e->format = e->disk.map.format;
  return 0;
}

void
edit_close (struct edit *e)
{
  struct error_kept kept;

  /* It has begun nothing, and what has failed was told better than this tells. */
  error_keep (&kept);
  if (writer_close (e->writer) == -1)
    error_restore (&kept);
  cache_free (e->shared.cache);
  snapshots_free (&e->snapshots);
  epoch_destroy (&e->epoch);
}

/* -------------------------------------------------------------- references */

/* Leaks only cost space, and no refcount depends on COPIED flags.  A snapshot's
 * entry has been checked by snapshot_check; what is odd in its extra data hides
 * nothing.
 */
static bool
is_harmless (enum check_kind kind)
{
  return kind == CHECK_LEAK || kind == CHECK_COPIED || kind == CHECK_SNAPSHOT;
}

/* opaque: the text of the first finding that is not harmless. */
static void
note_damage (void *opaque, enum check_kind kind, const char *text)
{
  char *first = opaque;

  if (first[0] == '\0' && !is_harmless (kind))
    snprintf (first, CHECK_TEXT, "%s", text);
}

int
edit_check_references (struct storage *s)
{
  char first[CHECK_TEXT] = "";
  const struct check_options options = {
    .messages = CHECK_MAX_MESSAGES, .found = note_damage, .opaque = first,
  };
  struct check_report report;
  bool damaged;
  int kind;

  if (check_storage (s, &options, &report) == -1)
    return -1;
  damaged = report.blind;
  for (kind = 0; kind < CHECK_KINDS; ++kind)
    damaged |= report.found[kind] > 0 && !is_harmless (kind);
  if (!damaged)
    return 0;
  error_set (EIO, "%s: damaged: %s", s->name, first[0] != '\0' ? first
             : "refcounts are lower than the references");
  advise (ADVICE_REPAIR);
  return -1;
}

/* -------------------------------------------------------------- the header */

static int
write_hint (struct edit *e, uint8_t value)
{
  return e->header.hint.v == 0 ? 0
    : storage_write (e->storage, &value, sizeof value, e->header.hint);
}

int
edit_switch (struct edit *e)
{
  if (storage_flush (e->storage) == -1 ||
      storage_write (e->storage, e->sector, sizeof e->sector,
                     (struct host_off) { 0 }) == -1 ||
      storage_flush (e->storage) == -1)
    return -1;
  if (e->hint.v != 0)
    e->header.hint = e->hint;
  return 0;
}

int
edit_begin (struct edit *e)
{
  struct header *h = &e->header;

  if (e->begun)
    return 0;
  if (edit_check_references (e->storage) == -1)
    return -1;
  if (write_hint (e, HEADER_HINT_SET) == -1)
    return -1;
  /* The hint may be in the same sector. */
  if (h->hint.v != 0 && h->hint.v < sizeof e->sector)
    e->sector[h->hint.v] = HEADER_HINT_SET;
  if (h->version >= 3) {
    struct header known = *h;

    known.autoclear &= writer_has_bitmaps (h) ? QCOW2_AUTOCLEAR_BITMAPS : 0;
    header_encode_features (&known, e->sector + HEADER_FEATURES_OFFSET);
  }
  e->begun = true;
  return edit_switch (e);
}

void
edit_set_disk (struct edit *e, uint64_t size, uint32_t l1_entries,
               struct host_off l1)
{
  put_be64 (e->sector + HEADER_DISK_SIZE_OFFSET, size);
  put_be32 (e->sector + HEADER_L1_SIZE_OFFSET, l1_entries);
  put_be64 (e->sector + HEADER_L1_TABLE_OFFSET, l1.v);
}

void
edit_set_snapshots (struct edit *e, uint32_t nr, struct host_off table)
{
  put_be32 (e->sector + HEADER_NR_SNAPSHOTS_OFFSET, nr);
  put_be64 (e->sector + HEADER_SNAPSHOTS_OFFSET, table.v);
}

void
edit_set_refcounts (struct edit *e, unsigned order, struct host_off table,
                    uint32_t clusters)
{
  put_be32 (e->sector + HEADER_REFCOUNT_ORDER_OFFSET, order);
  header_encode_refcount_table (table, clusters,
                                e->sector + HEADER_REFCOUNT_TABLE_OFFSET);
}

void
edit_set_dirty (struct edit *e, bool dirty)
{
  uint8_t *p = e->sector + HEADER_FEATURES_OFFSET;

  if (e->header.version < 3)
    return;
  put_be64 (p, (get_be64 (p) & ~QCOW2_INCOMPAT_DIRTY) |
            (dirty ? QCOW2_INCOMPAT_DIRTY : 0));
}

/* ---------------------------------------------------------------- clusters */

static const char are_leaked[] = " (clusters may be leaked)";

/* Give up what was taken, through the allocator that took it: the error that is
 * set stays.  After one of the storage the allocator may give up nothing more.
 */
static void
take_back (struct edit *e, const struct edit_space *space, unsigned nr)
{
  struct error_kept kept;
  unsigned i;
  int r;

  error_keep (&kept);
  for (i = 0; i < nr; ++i) {
    const struct freed f = {
      .host = space[i].at, .nr = edit_clusters (e, space[i].bytes),
      .is_table = true, .bytes = space[i].bytes,
    };

    (void) writeback_free (&e->writer->writeback, &f, 1);
  }
  r = alloc_close (&e->writer->alloc);
  error_restore (&kept);
  if (r == -1 || kept.errnum == EIO)
    error_append ("%s", are_leaked);
}

/* The allocator may have switched to a larger refcount table, whose place is in
 * the same sector.
 */
static int
read_refcount_table (struct edit *e)
{
  const struct host_off at = { HEADER_REFCOUNT_TABLE_OFFSET };

  return storage_read (e->storage, e->sector + at.v,
                       HEADER_REFCOUNT_TABLE_BYTES, at);
}

int
edit_take (struct edit *e, struct edit_space *space, unsigned nr)
{
  struct writer *w = e->writer;
  struct alloc_clusters out;
  unsigned i;
  int r;

  if (edit_begin (e) == -1)
    return -1;
  for (i = 0; i < nr; ++i) {
    r = alloc_take_contiguous (&w->alloc, edit_clusters (e, space[i].bytes),
                               &out);
    space[i].at = out.host;
    if (r == -1) {
      take_back (e, space, i);
      return writer_failed (w);
    }
  }
  r = alloc_close (&w->alloc) == -1 ? writer_failed (w)
    : read_refcount_table (e);
  if (r == -1)
    error_append ("%s", are_leaked);
  return r;
}

int
edit_fill (struct edit *e, const struct edit_space *space, const void *table)
{
  const uint64_t end = edit_clusters (e, space->bytes)
    << e->header.cluster_bits;
  const struct host_off rest = { space->at.v + space->bytes };

  if (storage_write (e->storage, table, space->bytes, space->at) == -1)
    return -1;
  return end == space->bytes ? 0
    : storage_zero (e->storage, rest, end - space->bytes, false);
}

/* Nothing refers to them: a failure leaves leaks. */
static int
give_back (struct edit *e, const struct edit_space *space, unsigned nr)
{
  struct refs refs;
  unsigned i;
  int r = 0;

  if (edit_open_refs (e, &refs) == -1)
    return -1;
  for (i = 0; r == 0 && i < nr; ++i)
    r = edit_drop (e, &refs, space[i].at, space[i].bytes);
  if (r == 0)
    r = edit_write_refs (e, &refs);
  if (r == 0)
    r = edit_end (e, &refs);
  refs_close (&refs);
  return r;
}

void
edit_give_back (struct edit *e, const struct edit_space *space, unsigned nr)
{
  struct error_kept kept;

  error_keep (&kept);
  if (kept.errnum == ENOSPC && give_back (e, space, nr) == 0)
    error_restore (&kept);
  else {
    error_restore (&kept);
    error_append ("%s", are_leaked);
  }
}

/* --------------------------------------------------------------- refcounts */

int
edit_open_refs (const struct edit *e, struct refs *refs)
{
  struct header h;

  return qcow2_read_header (e->storage, &h) == -1 ? -1
    : refs_open (refs, e->storage, &h);
}

int
edit_drop (const struct edit *e, struct refs *refs, struct host_off at,
           uint64_t bytes)
{
  return refs_change (refs, at.v >> e->header.cluster_bits,
                      edit_clusters (e, bytes), -1);
}

int
edit_write_refs (struct edit *e, struct refs *refs)
{
  return refs_write (refs) == -1 ? -1 : storage_flush (e->storage);
}

static int
compare_runs (const void *a, const void *b)
{
  const struct refs_run *x = a, *y = b;

  return (x->first > y->first) - (x->first < y->first);
}

/* Sort the runs that were freed, and join those that follow each other: of
 * clusters smaller than its blocks a file system frees what a hole covers.
 */
static void
join_freed (struct refs *refs)
{
  size_t i, nr = 0;

  if (refs->nr_freed > 1)
    qsort (refs->freed, refs->nr_freed, sizeof refs->freed[0], compare_runs);
  for (i = 0; i < refs->nr_freed; ++i) {
    const struct refs_run run = refs->freed[i];

    if (nr > 0 &&
        refs->freed[nr - 1].first + refs->freed[nr - 1].nr == run.first)
      refs->freed[nr - 1].nr += run.nr;
    else
      refs->freed[nr++] = run;
  }
  refs->nr_freed = nr;
}

/* Nothing is in there any more, and it need not succeed. */
static void
give_to_host (struct edit *e, struct refs *refs)
{
  const unsigned bits = e->header.cluster_bits;
  const uint64_t end = edit_clusters (e, atomic_load (&e->storage->size));
  uint64_t last = end;
  size_t i;

  join_freed (refs);
  for (i = refs->nr_freed; i > 0; --i) {
    const struct refs_run *run = &refs->freed[i - 1];

    if (run->first + run->nr == last)
      last = run->first;
    else
      (void) storage_punch (e->storage,
                            (struct host_off) { run->first << bits },
                            run->nr << bits);
  }
  if (last < end && !e->storage->fixed_size)
    (void) storage_resize (e->storage, last << bits);
}

int
edit_end (struct edit *e, struct refs *refs)
{
  give_to_host (e, refs);
  /* Leaks from before are still to be looked for. */
  if (!e->header.hint_set && write_hint (e, HEADER_HINT_ENDED) == -1)
    return -1;
  return storage_flush (e->storage);
}
