/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/write/alloc-parts.h"

static int
compare_freed (const void *a, const void *b)
{
  const struct freed *x = a, *y = b;

  return x->host.v < y->host.v ? -1 : x->host.v > y->host.v;
}

/* What is in the first of these clusters, of which *nr is lowered to a number
 * that has no bitmaps, or to 1.
 */
static enum metadata
find_metadata (struct alloc *s, struct host_off host, uint64_t *nr)
{
  enum metadata kind;

  while (overlap_is_bitmap (kind = overlap_find (s->overlap, host, *nr <<
                                                 s->cluster_bits)) && *nr > 1)
    *nr /= 2;
  return kind;
}

/* A freed table is metadata no longer. */
static void
forget_table (struct alloc *s, struct host_off host, uint64_t nr)
{
  overlap_remove (s->overlap, host, nr);
  cache_forget (s->writeback->cache, s->writeback->id, host,
                nr << s->cluster_bits, s->writeback->slice_bytes);
}

/* Freed data must not be metadata of any kind. */
static int
forget_data (struct alloc *s, struct host_off host, uint64_t nr,
             enum metadata kind)
{
  const uint64_t bytes = nr << s->cluster_bits;

  if (kind == METADATA_NONE) {
    if (s->clusters != NULL)
      cluster_cache_forget (s->clusters, s->writeback->id, host.v, bytes);
    return 0;
  }
  error_set (EIO, "%s: damaged: %s was given up, within %" PRIu64 " bytes at "
             "offset 0x%" PRIx64, alloc_storage (s)->name, overlap_name (kind),
             bytes, host.v);
  writeback_fail_corrupt (s->writeback);
  return -1;
}

/* The last reference to up to *nr clusters is gone (P3), as far as refcounts
 * tell: a bitmap is still there if several entries that shared its cluster were
 * given up one after the other, more than refcounts said, and it keeps that.
 * *nr is how many were looked at.  refcounts_lock held.
 */
static int
free_clusters (struct alloc *s, uint64_t first, uint64_t *nr, bool is_table)
{
  const struct host_off host = alloc_offset (s, first);
  const enum metadata kind = is_table ? METADATA_NONE
    : find_metadata (s, host, nr);

  if (overlap_is_bitmap (kind))
    return 0;
  if (is_table)
    forget_table (s, host, *nr);
  else if (forget_data (s, host, *nr, kind) == -1)
    return -1;
  pack_leave (s, first, *nr);
  if (!s->keep_discarded)
    (void) storage_punch (alloc_storage (s), host, *nr << s->cluster_bits);
  return refcount_set (&s->refcounts, first, *nr, 0, NULL);
}

/* Remove one reference to each of up to nr clusters whose refcounts are in one
 * slice, so that a failure changes none; *done is how many.  refcounts_lock
 * held.
 */
static int
lower_some (struct alloc *s, uint64_t first, uint64_t nr, bool is_table,
            uint64_t *done)
{
  uint64_t refcount;

  if (refcount_run (&s->refcounts, first, nr, &refcount, done) == -1)
    return -1;
  switch (refcount) {
  case 0:
    debug_message ("%s: damaged: the refcount of the cluster at offset 0x%"
                   PRIx64 " was 0 while it was in use", alloc_storage (s)->name,
                   alloc_offset (s, first).v);
    return 0;
  case 1:
    return free_clusters (s, first, done, is_table);
  default:
    return refcount_set (&s->refcounts, first, *done, refcount - 1, NULL);
  }
}

/* Remove one reference to each of these clusters; after an error *f is what is
 * left to do.  refcounts_lock held.
 */
static int
lower (struct alloc *s, struct freed *f)
{
  while (f->nr > 0) {
    uint64_t done;

    if (lower_some (s, f->host.v >> s->cluster_bits, f->nr, f->is_table,
                    &done) == -1)
      return -1;
    f->host.v += done << s->cluster_bits;
    f->nr -= done;
  }
  return 0;
}

/* Contiguous clusters are freed together, so that one hole is punched; a
 * cluster may occur several times.  What could not be done is given up again.
 * refcounts_lock held.
 */
static int
lower_list (struct alloc *s, struct freed_list *l)
{
  size_t i, j;

  if (l->nr > 1)
    qsort (l->freed, l->nr, sizeof l->freed[0], compare_freed);
  for (i = 0; i < l->nr; i = j) {
    struct freed f = l->freed[i];

    for (j = i + 1; j < l->nr; ++j) {
      if (l->freed[j].host.v != f.host.v + (f.nr << s->cluster_bits) ||
          l->freed[j].is_table != f.is_table)
        break;
      f.nr += l->freed[j].nr;
      f.bytes += l->freed[j].bytes;
    }
    if (lower (s, &f) == -1) {
      (void) writeback_free (s->writeback, &f, 1); /* or lost */
      (void) writeback_free (s->writeback, l->freed + j, l->nr - j);
      return -1;
    }
  }
  return 0;
}

/* refcounts_lock held. */
int
reclaim_freed (struct alloc *s)
{
  struct freed_list *l;
  int r = 0;

  while (r == 0 && (l = writeback_next_freed (s->writeback)) != NULL) {
    r = lower_list (s, l);
    writeback_free_list (s->writeback, l);
    atomic_store (&s->stuck, r == -1);
    if (r == -1)
      atomic_fetch_add (&s->failures, 1);
  }
  return r;
}

/* refcounts_lock held. */
static void
reclaim (struct alloc *s)
{
  if (reclaim_freed (s) == -1)
    debug_message ("%s", error_message ());
}

void
alloc_reclaim (struct alloc *s)
{
  if (atomic_load (&s->writeback->nr_freed) == 0 ||
      pthread_mutex_trylock (&s->refcounts_lock) != 0)
    return;
  reclaim (s);
  pthread_mutex_unlock (&s->refcounts_lock);
}

void
alloc_reclaim_in_turn (struct alloc *s)
{
  alloc_lock_refcounts (s);
  reclaim (s);
  pthread_mutex_unlock (&s->refcounts_lock);
}

bool
alloc_has_reclaimed (struct alloc *s, uint64_t batch)
{
  bool done;

  alloc_lock_refcounts (s);
  reclaim (s);
  done = !writeback_has_freed (s->writeback, batch);
  pthread_mutex_unlock (&s->refcounts_lock);
  return done;
}
