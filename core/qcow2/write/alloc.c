/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/entry.h"
#include "qcow2/write/alloc.h"

/* A batch is an eighth of the file, between these limits: large enough that
 * refcounts are seldom touched, small enough that a crash leaks little.  The
 * reserve, including what packing has, is one batch, and windows another.
 */
#define MIN_BATCH_BYTES (UINT64_C (1) << 20)
#define MAX_BATCH_BYTES (UINT64_C (8) << 20)
#define MIN_BATCH 4
#define MAX_BATCH 256

/* Windows grow from this up to a quarter of the largest batch. */
#define FIRST_WINDOW_BYTES (UINT64_C (256) << 10)
#define MAX_FIRST_WINDOW 4
#define MAX_WINDOW 64

/* A window that was not used while others were, this many times, is closed. */
#define STALE_WINDOW 256

static inline uint64_t
clamp (uint64_t v, uint64_t min, uint64_t max)
{
  return v < min ? min : v > max ? max : v;
}

static inline struct storage *
storage (const struct alloc *s)
{
  return s->writeback->tables;
}

static inline struct host_off
cluster_offset (const struct alloc *s, uint64_t cluster)
{
  return (struct host_off) { cluster << s->cluster_bits };
}

int
alloc_init (struct alloc *s, const struct header *h, struct writeback *writeback,
            struct overlap *overlap, bool keep_discarded)
{
  unsigned i;

  memset (s, 0, sizeof *s);
  s->writeback = writeback;
  s->overlap = overlap;
  s->cluster_bits = h->cluster_bits;
  s->keep_discarded = keep_discarded;
  s->opened_size = atomic_load (&writeback->tables->size);
  s->min_batch_size = clamp (MIN_BATCH_BYTES >> s->cluster_bits, MIN_BATCH,
                             MAX_BATCH);
  s->batch_size = s->min_batch_size;
  s->max_batch_size = clamp (MAX_BATCH_BYTES >> s->cluster_bits, MIN_BATCH,
                             MAX_BATCH);
  s->max_window = clamp (s->max_batch_size / 4, 1, MAX_WINDOW);
  s->first_window = clamp (FIRST_WINDOW_BYTES >> s->cluster_bits, 1,
                           MAX_FIRST_WINDOW);
  for (i = 0; i < ALLOC_RECENT; ++i)
    s->recent[i] = ALLOC_NO_GUEST;
  pthread_mutex_init (&s->refcounts_lock, NULL);
  pthread_mutex_init (&s->lock, NULL);
  if (refcounts_init (&s->refcounts, h, writeback, overlap) == 0)
    return 0;
  alloc_destroy (s);
  return -1;
}

void
alloc_destroy (struct alloc *s)
{
  pthread_mutex_destroy (&s->refcounts_lock);
  pthread_mutex_destroy (&s->lock);
}

/* ------------------------------------------------------------- the reserve */

/* Add to the runs.  Returns false if there are too many.  lock held. */
static bool
add_run (struct alloc *s, const struct alloc_run *r)
{
  unsigned i;

  if (r->nr == 0)
    return true;
  for (i = 0; i < s->nr_runs; ++i) {
    struct alloc_run *p = &s->run[i];

    if (p->first + p->nr == r->first && p->zero == r->zero &&
        p->batch == r->batch) {
      p->nr += r->nr;
      s->in_runs += r->nr;
      return true;
    }
  }
  if (s->nr_runs == ALLOC_MAX_RUNS)
    return false;
  s->run[s->nr_runs++] = *r;
  s->in_runs += r->nr;
  return true;
}

/* Take up to nr clusters from the oldest run that has nr, else from the
 * longest.  lock held, and runs must not be empty.
 */
static struct alloc_run
take_from_runs (struct alloc *s, uint64_t nr)
{
  struct alloc_run r;
  unsigned i, best = 0;

  for (i = 0; i < s->nr_runs && s->run[best].nr < nr; ++i) {
    if (s->run[i].nr > s->run[best].nr)
      best = i;
  }
  r = s->run[best];
  if (r.nr > nr)
    r.nr = nr;
  s->run[best].first += r.nr;
  s->run[best].nr -= r.nr;
  s->in_runs -= r.nr;
  if (s->run[best].nr == 0) {
    s->nr_runs--;
    memmove (&s->run[best], &s->run[best + 1],
             (s->nr_runs - best) * sizeof s->run[0]);
  }
  return r;
}

/* ----------------------------------------------------------------- windows */

/* Take up to nr clusters from the window for these guest clusters; nr is 0 in
 * the result if there is none.  lock held.
 */
static struct alloc_run
take_from_window (struct alloc *s, uint64_t guest, uint64_t nr)
{
  struct alloc_run r = { 0 };
  unsigned i;

  for (i = 0; i < ALLOC_WINDOWS; ++i) {
    struct alloc_window *w = &s->window[i];
    const uint64_t at = guest - w->guest;

    if (guest < w->guest || at >= w->run.nr || w->used >> at & 1)
      continue;
    r = w->run;
    r.first += at;
    for (r.nr = 0; r.nr < nr && at + r.nr < w->run.nr &&
           !(w->used >> (at + r.nr) & 1); ++r.nr)
      w->used |= UINT64_C (1) << (at + r.nr);
    s->in_windows -= r.nr;
    w->last_use = ++s->clock;
    break;
  }
  return r;
}

/* Return the rest of a window to the runs, and give up what has no place
 * there.  lock held.
 */
static void
close_window (struct alloc *s, struct alloc_window *w)
{
  uint64_t i;

  for (i = 0; i < w->run.nr; ++i) {
    struct alloc_run r = w->run;
    const struct freed lost = {
      .host = cluster_offset (s, w->run.first + i), .nr = 1,
      .bytes = UINT64_C (1) << s->cluster_bits,
    };

    if (w->used >> i & 1)
      continue;
    s->in_windows--;
    r.first += i;
    r.nr = 1;
    if (!add_run (s, &r))
      (void) writeback_free (s->writeback, &lost, 1); /* or leaked */
  }
  w->run.nr = 0;
}

/* How many more clusters windows may hold.  lock held. */
static uint64_t
left_for_windows (const struct alloc *s)
{
  const uint64_t most = atomic_load (&s->batch_size);

  return s->in_windows < most ? most - s->in_windows : 0;
}

/* lock held */
static void
close_stale_windows (struct alloc *s)
{
  unsigned i;

  for (i = 0; i < ALLOC_WINDOWS; ++i) {
    if (s->clock - s->window[i].last_use > STALE_WINDOW)
      close_window (s, &s->window[i]);
  }
}

/* Open a window for the guest clusters from the given one on, in place of the
 * least recently used one; but not if it would be no larger than nr, which are
 * wanted now.  lock held.
 */
static void
open_window (struct alloc *s, uint64_t guest, uint64_t size, uint64_t nr)
{
  struct alloc_window *w = &s->window[0];
  unsigned i;

  if (left_for_windows (s) < size) {
    close_stale_windows (s);
    size = clamp (size, 0, left_for_windows (s));
  }
  if (size <= nr)
    return;
  for (i = 1; i < ALLOC_WINDOWS && w->run.nr > 0; ++i) {
    if (s->window[i].run.nr == 0 || s->window[i].last_use < w->last_use)
      w = &s->window[i];
  }
  close_window (s, w);
  if (s->in_runs == 0)
    return;
  *w = (struct alloc_window) {
    .guest = guest,
    .run = take_from_runs (s, size),
    .last_use = ++s->clock,
  };
  s->in_windows += w->run.nr;
}

/* The size of a window to open at this guest cluster: larger than the window
 * that ends there; small where another write ended; 0 if neither.  nr clusters
 * are wanted now.  lock held.
 */
static uint64_t
window_size (const struct alloc *s, uint64_t guest, uint64_t nr)
{
  const uint64_t first = clamp (nr * 2, s->first_window, s->max_window);
  unsigned i;

  for (i = 0; i < ALLOC_WINDOWS; ++i) {
    const struct alloc_window *w = &s->window[i];

    if (w->run.nr > 0 && w->guest + w->run.nr == guest)
      return clamp (w->run.nr * 2, 1, s->max_window);
  }
  for (i = 0; i < ALLOC_RECENT; ++i) {
    if (s->recent[i] == guest)
      return first;
  }
  return 0;
}

/* Take up to nr clusters from the reserve; nr is 0 in the result if it is
 * empty.  lock held.
 */
static struct alloc_run
take_reserved (struct alloc *s, uint64_t guest, uint64_t nr)
{
  struct alloc_run r = { 0 };
  uint64_t size = 0;

  if (guest != ALLOC_NO_GUEST) {
    r = take_from_window (s, guest, nr);
    size = window_size (s, guest, nr);
  }
  if (r.nr == 0 && size > nr) {
    open_window (s, guest, size, nr);
    r = take_from_window (s, guest, nr);
  }
  if (r.nr == 0 && s->in_runs > 0)
    r = take_from_runs (s, nr);
  if (r.nr > 0 && guest != ALLOC_NO_GUEST)
    s->recent[s->next_recent++ % ALLOC_RECENT] = guest + r.nr;
  return r;
}

/* --------------------------------------------------------------- reserving */

/* How many reserved clusters packing gets at once: a part of a batch, up to
 * this.
 */
#define PACK_CLUSTERS 16
#define PACK_PART 4

static uint64_t packing_clusters (const struct alloc *s);

/* Extend the file over as many of nr clusters as possible.  Returns how many,
 * or 0 with the error set.
 */
static uint64_t
reach (struct alloc *s, uint64_t first, uint64_t nr)
{
  const uint64_t size = atomic_load (&storage (s)->size);

  for (;;) {
    const uint64_t end = cluster_offset (s, first + nr).v;

    if (end <= size || storage_resize (storage (s), end) == 0)
      return nr;
    if (error_errno () != ENOSPC)
      return 0;
    /* A block device, or a limit on the size of files. */
    nr /= 2;
    if (nr == 0)
      return 0;
  }
}

/* Whether these clusters read as zeros; makes them so if that is cheap. */
static bool
make_zero (struct alloc *s, uint64_t first, uint64_t nr, uint64_t old_size)
{
  const struct host_off host = cluster_offset (s, first);

  if (host.v >= old_size)
    return true;
  return !s->keep_discarded &&
    storage_punch (storage (s), host, nr << s->cluster_bits);
}

/* Reserve up to max contiguous clusters.  refcounts_lock held. */
static int
reserve_run (struct alloc *s, uint64_t max, struct alloc_run *r)
{
  const uint64_t old_size = atomic_load (&storage (s)->size);
  enum metadata kind;

  if (refcount_find_free (&s->refcounts, max, &r->first, &r->nr) == -1)
    return -1;
  kind = overlap_find (s->overlap, cluster_offset (s, r->first),
                       r->nr << s->cluster_bits);
  if (kind != METADATA_NONE) { /* P1 */
    error_set (EIO, "%s: damaged: the refcount of a cluster from offset 0x%"
               PRIx64 " on is 0, but it holds %s", storage (s)->name,
               cluster_offset (s, r->first).v, overlap_name (kind));
    writeback_fail_corrupt (s->writeback);
    return -1;
  }
  r->nr = reach (s, r->first, r->nr);
  if (r->nr == 0)
    return -1;
  r->zero = make_zero (s, r->first, r->nr, old_size);
  return refcount_set (&s->refcounts, r->first, r->nr, 1, &r->batch);
}

/* Clusters that are reserved and not handed out, not counting windows.
 * refcounts_lock held.
 */
static uint64_t
count_reserved (struct alloc *s)
{
  uint64_t r = packing_clusters (s);

  pthread_mutex_lock (&s->lock);
  r += s->in_runs;
  pthread_mutex_unlock (&s->lock);
  return r;
}

/* Fill the reserve up to a batch, by at least one cluster.  Returns -1 with
 * the error set if nothing could be reserved.  refcounts_lock held.
 */
static int
refill (struct alloc *s)
{
  const uint64_t clusters = atomic_load (&storage (s)->size)
    >> s->cluster_bits;
  const uint64_t batch = clamp (clusters / 8, s->min_batch_size,
                                s->max_batch_size);
  const uint64_t reserved = count_reserved (s);
  const uint64_t wanted = reserved < batch ? batch - reserved : 1;
  uint64_t got = 0;
  unsigned tries;

  atomic_store (&s->batch_size, batch);
  for (tries = 0; tries < 16 && got < wanted; ++tries) {
    struct alloc_run r;
    bool added;

    if (reserve_run (s, wanted - got, &r) == -1)
      return got > 0 ? 0 : -1;
    pthread_mutex_lock (&s->lock);
    added = add_run (s, &r);
    pthread_mutex_unlock (&s->lock);
    if (!added) /* there are plenty, in small pieces */
      return refcount_set (&s->refcounts, r.first, r.nr, 0, NULL);
    got += r.nr;
  }
  return 0;
}

/* Enough ballast for the tables of a batch, in files of at least this size. */
#define BALLAST_BYTES (UINT64_C (1) << 20)
#define MIN_BALLASTED_BYTES (UINT64_C (64) << 20)

/* Try to provide ballast; failure does not matter.  refcounts_lock held. */
static void
keep_ballast (struct alloc *s)
{
  const uint64_t nr = clamp (BALLAST_BYTES >> s->cluster_bits, 1, MAX_BATCH);
  struct alloc_run r = s->ballast;
  bool done;

  if (atomic_load (&storage (s)->size) < MIN_BALLASTED_BYTES ||
      !storage_has_holes (storage (s)) || writeback_has_ballast (s->writeback) ||
      (r.nr == 0 && reserve_run (s, nr, &r) == -1))
    return;
  s->ballast = r;
  if (storage_allocate (storage (s), cluster_offset (s, r.first),
                        r.nr << s->cluster_bits, &done) == 0 && done)
    writeback_set_ballast (s->writeback, cluster_offset (s, r.first),
                           r.nr << s->cluster_bits);
}

/* Its clusters are needed.  refcounts_lock held. */
static void
give_up_ballast (struct alloc *s)
{
  const struct host_off host = cluster_offset (s, s->ballast.first);

  if (s->ballast.nr == 0)
    return;
  writeback_set_ballast (s->writeback, host, 0);
  if (!s->keep_discarded)
    (void) storage_punch (storage (s), host,
                          s->ballast.nr << s->cluster_bits);
  alloc_give_back (s, host, s->ballast.nr);
  s->ballast.nr = 0;
}

static bool
is_empty (struct alloc *s)
{
  bool empty;

  pthread_mutex_lock (&s->lock);
  empty = s->in_runs == 0;
  pthread_mutex_unlock (&s->lock);
  return empty;
}

/* Refill; if nothing is free, with what windows and the ballast have.
 * refcounts_lock held.
 */
static int
refill_somehow (struct alloc *s)
{
  unsigned i;

  if (refill (s) == 0)
    return 0;
  if (error_errno () == ENOSPC) {
    pthread_mutex_lock (&s->lock);
    for (i = 0; i < ALLOC_WINDOWS; ++i)
      close_window (s, &s->window[i]);
    pthread_mutex_unlock (&s->lock);
    give_up_ballast (s);
  }
  return is_empty (s) ? -1 : 0;
}

static void stop_packing (struct alloc *s);

/* Refill if the reserve is empty; if nothing is free, with what packing has. */
static int
refill_empty (struct alloc *s)
{
  int r = 0;

  pthread_mutex_lock (&s->refcounts_lock);
  if (is_empty (s)) { /* another thread may have refilled it */
    r = refill_somehow (s);
    if (r == -1 && error_errno () == ENOSPC) {
      stop_packing (s);
      r = is_empty (s) ? -1 : 0;
    }
  }
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

int
alloc_take (struct alloc *s, uint64_t guest, uint64_t nr,
            struct alloc_clusters *out)
{
  struct alloc_run r;
  bool low;

  for (;;) {
    pthread_mutex_lock (&s->lock);
    r = take_reserved (s, guest, nr);
    low = s->in_runs < atomic_load (&s->batch_size) / 2;
    pthread_mutex_unlock (&s->lock);
    if (r.nr > 0)
      break;
    if (refill_empty (s) == -1)
      return -1;
  }
  /* Ahead of need, so that clusters are durable when they are needed. */
  if (low && pthread_mutex_trylock (&s->refcounts_lock) == 0) {
    (void) refill (s);
    keep_ballast (s);
    pthread_mutex_unlock (&s->refcounts_lock);
  }
  *out = (struct alloc_clusters) {
    .host = cluster_offset (s, r.first),
    .nr = r.nr,
    .zero = r.zero,
    .durable = writeback_is_durable (s->writeback, r.batch),
  };
  return 0;
}

void
alloc_give_back (struct alloc *s, struct host_off host, uint64_t nr)
{
  const struct alloc_run r = {
    .first = host.v >> s->cluster_bits,
    .nr = nr,
    .batch = UINT64_MAX, /* no longer known */
  };
  const struct freed lost = {
    .host = host, .nr = nr, .bytes = nr << s->cluster_bits,
  };
  bool added;

  pthread_mutex_lock (&s->lock);
  writeback_not_leaked (s->writeback, host, nr); /* others may have it now */
  added = add_run (s, &r);
  pthread_mutex_unlock (&s->lock);
  if (!added)
    (void) writeback_free (s->writeback, &lost, 1);
}

/* --------------------------------------------------------- compressed data */

static inline uint64_t
cluster_start (const struct alloc *s, uint64_t byte)
{
  return byte >> s->cluster_bits << s->cluster_bits;
}

static inline uint64_t
next_cluster (const struct alloc *s, uint64_t byte)
{
  return cluster_start (s, byte + (UINT64_C (1) << s->cluster_bits) - 1);
}

/* Clusters for packing that have no data yet.  refcounts_lock held. */
static uint64_t
packing_clusters (const struct alloc *s)
{
  const uint64_t from = next_cluster (s, s->pack_at);

  return from < s->pack_end ? (s->pack_end - from) >> s->cluster_bits : 0;
}

/* Return the unused clusters for packing to the reserve.  refcounts_lock
 * held.
 */
static void
stop_packing (struct alloc *s)
{
  const uint64_t from = next_cluster (s, s->pack_at);
  const struct host_off host = { from };

  if (packing_clusters (s) > 0)
    alloc_give_back (s, host, packing_clusters (s));
  s->pack_at = s->pack_end = 0;
}

/* Get more clusters for packing, if possible those that follow.
 * refcounts_lock held.
 */
static int
extend_packing (struct alloc *s)
{
  struct alloc_run r;
  uint64_t first;

  pthread_mutex_lock (&s->lock);
  if (s->in_runs > 0)
    r = take_from_runs (s, clamp (atomic_load (&s->batch_size) / PACK_PART, 1,
                                  PACK_CLUSTERS));
  else
    r.nr = 0;
  pthread_mutex_unlock (&s->lock);
  if (r.nr == 0)
    return refill_somehow (s); /* then try again */
  first = cluster_offset (s, r.first).v;
  if (first != s->pack_end) {
    stop_packing (s);
    s->pack_at = first;
  }
  s->pack_end = first + (r.nr << s->cluster_bits);
  return 0;
}

/* Add a reference to the cluster in which the last data ended.  *shared is
 * false if it can't have one: packing then continues in another cluster.
 */
static int
share_cluster (struct alloc *s, bool *shared)
{
  const uint64_t cluster = s->pack_at >> s->cluster_bits;
  uint64_t refcount, nr;

  *shared = false;
  if (refcount_run (&s->refcounts, cluster, 1, &refcount, &nr) == -1)
    return -1;
  if (refcount == 0 || refcount == entry_refcount_max (s->refcounts.order))
    return 0;
  *shared = true;
  return refcount_set (&s->refcounts, cluster, 1, refcount + 1, NULL);
}

/* refcounts_lock held. */
static int
take_bytes (struct alloc *s, uint64_t bytes, struct host_off *host)
{
  bool shared = true;

  while (s->pack_end - s->pack_at < bytes) {
    if (extend_packing (s) == -1)
      return -1;
  }
  if (s->pack_at != cluster_start (s, s->pack_at) &&
      share_cluster (s, &shared) == -1)
    return -1;
  if (!shared) {
    s->pack_at = next_cluster (s, s->pack_at);
    return take_bytes (s, bytes, host);
  }
  host->v = s->pack_at;
  s->pack_at += bytes;
  return 0;
}

int
alloc_take_bytes (struct alloc *s, uint64_t bytes, struct host_off *host)
{
  int r;

  pthread_mutex_lock (&s->refcounts_lock);
  r = take_bytes (s, bytes, host);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

/* Packing must not continue in clusters that have just become free.
 * refcounts_lock held.
 */
static void
leave_freed (struct alloc *s, uint64_t first, uint64_t nr)
{
  const uint64_t from = cluster_offset (s, first).v;

  if (s->pack_at > from && s->pack_at < from + (nr << s->cluster_bits))
    stop_packing (s);
}

/* -------------------------------------------------------------- taking back */

static int
compare_freed (const void *a, const void *b)
{
  const struct freed *x = a, *y = b;

  return x->host.v < y->host.v ? -1 : x->host.v > y->host.v;
}

/* A freed table is metadata no longer; freed data must not be metadata. */
static int
forget_contents (struct alloc *s, struct host_off host, uint64_t nr,
                 bool is_table)
{
  const uint64_t bytes = nr << s->cluster_bits;
  enum metadata kind;

  if (is_table) {
    overlap_remove (s->overlap, host, nr);
    cache_forget (s->writeback->cache, s->writeback->id, host, bytes,
                  s->writeback->slice_bytes);
    return 0;
  }
  kind = overlap_find (s->overlap, host, bytes);
  if (kind == METADATA_NONE) {
    if (s->clusters != NULL)
      cluster_cache_forget (s->clusters, s->writeback->id, host.v, bytes);
    return 0;
  }
  error_set (EIO, "%s: damaged: %s was given up, within %" PRIu64 " bytes at "
             "offset 0x%" PRIx64, storage (s)->name, overlap_name (kind),
             bytes, host.v);
  writeback_fail_corrupt (s->writeback);
  return -1;
}

/* The last reference to these clusters is gone (P3).  refcounts_lock held. */
static int
free_clusters (struct alloc *s, uint64_t first, uint64_t nr, bool is_table)
{
  const struct host_off host = cluster_offset (s, first);

  if (forget_contents (s, host, nr, is_table) == -1)
    return -1;
  leave_freed (s, first, nr);
  if (!s->keep_discarded)
    (void) storage_punch (storage (s), host, nr << s->cluster_bits);
  return refcount_set (&s->refcounts, first, nr, 0, NULL);
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
                   PRIx64 " was 0 while it was in use", storage (s)->name,
                   cluster_offset (s, first).v);
    return 0;
  case 1:
    return free_clusters (s, first, *done, is_table);
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
      (void) writeback_free (s->writeback, &f, 1); /* or leaked */
      (void) writeback_free (s->writeback, l->freed + j, l->nr - j);
      return -1;
    }
  }
  return 0;
}

/* refcounts_lock held. */
static int
reclaim (struct alloc *s)
{
  struct freed_list *l;
  int r = 0;

  while (r == 0 && (l = writeback_next_freed (s->writeback)) != NULL) {
    r = lower_list (s, l);
    writeback_free_list (s->writeback, l);
    atomic_store (&s->stuck, r == -1);
  }
  return r;
}

void
alloc_reclaim (struct alloc *s)
{
  if (atomic_load (&s->writeback->nr_freed) == 0 ||
      pthread_mutex_trylock (&s->refcounts_lock) != 0)
    return;
  if (reclaim (s) == -1)
    debug_message ("%s", error_message ());
  pthread_mutex_unlock (&s->refcounts_lock);
}

bool
alloc_has_reclaimed (struct alloc *s, uint64_t batch)
{
  bool done;

  pthread_mutex_lock (&s->refcounts_lock);
  if (reclaim (s) == -1)
    debug_message ("%s", error_message ());
  done = !writeback_has_freed (s->writeback, batch);
  pthread_mutex_unlock (&s->refcounts_lock);
  return done;
}

/* ------------------------------------------------------------------- leaks */

void
alloc_not_leaked (struct alloc *s)
{
  uint64_t pack;
  unsigned i;

  pthread_mutex_lock (&s->refcounts_lock);
  pthread_mutex_lock (&s->lock);
  for (i = 0; i < s->nr_runs; ++i)
    writeback_not_leaked (s->writeback, cluster_offset (s, s->run[i].first),
                          s->run[i].nr);
  for (i = 0; i < ALLOC_WINDOWS; ++i)
    writeback_not_leaked (s->writeback, cluster_offset (s, s->window[i].run.first),
                          s->window[i].run.nr);
  pthread_mutex_unlock (&s->lock);
  writeback_not_leaked (s->writeback, cluster_offset (s, s->ballast.first),
                        s->ballast.nr);
  /* The cluster in which packing continues may soon have more references. */
  pack = cluster_start (s, s->pack_at);
  writeback_not_leaked (s->writeback, (struct host_off) { pack },
                        (next_cluster (s, s->pack_end) - pack)
                        >> s->cluster_bits);
  pthread_mutex_unlock (&s->refcounts_lock);
}

int
alloc_next_block (struct alloc *s, uint64_t *cluster, struct host_off *block)
{
  int r;

  pthread_mutex_lock (&s->refcounts_lock);
  r = refcount_next_block (&s->refcounts, cluster, block);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

/* ----------------------------------------------------------------- closing */

/* Give up the reserve.  refcounts_lock held. */
static int
return_reserve (struct alloc *s)
{
  unsigned i;

  stop_packing (s);
  give_up_ballast (s);
  for (i = 0; i < ALLOC_WINDOWS; ++i)
    close_window (s, &s->window[i]);
  while (s->nr_runs > 0) {
    const struct alloc_run r = take_from_runs (s, UINT64_MAX);

    if (refcount_set (&s->refcounts, r.first, r.nr, 0, NULL) == -1)
      return -1;
  }
  return 0;
}

/* The file has grown for the reserve: cut off what is free at its end.  All
 * refcounts are durable.  refcounts_lock held.
 */
static int
cut_end (struct alloc *s)
{
  const uint64_t size = atomic_load (&storage (s)->size);
  uint64_t end = size >> s->cluster_bits, refcount, nr;

  if (size % (UINT64_C (1) << s->cluster_bits) != 0)
    return 0; /* nothing was added */
  while (end > 0 && cluster_offset (s, end - 1).v >= s->opened_size) {
    if (refcount_run (&s->refcounts, end - 1, 1, &refcount, &nr) == -1)
      return -1;
    if (refcount != 0)
      break;
    end--;
  }
  if (end == size >> s->cluster_bits)
    return 0;
  return storage_resize (storage (s), cluster_offset (s, end).v);
}

int
alloc_refcount (struct alloc *s, struct host_off host, uint64_t *refcount)
{
  uint64_t nr;
  int r;

  pthread_mutex_lock (&s->refcounts_lock);
  r = refcount_run (&s->refcounts, host.v >> s->cluster_bits, 1, refcount, &nr);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

int
alloc_close (struct alloc *s)
{
  int r;

  pthread_mutex_lock (&s->refcounts_lock);
  /* Requests that were answered come first: a failure after that only leaks. */
  r = writeback_flush (s->writeback);
  if (r == 0)
    r = return_reserve (s);
  /* Lowering refcounts changes tables, but gives up nothing more. */
  while (r == 0 && atomic_load (&s->writeback->nr_freed) > 0) {
    r = writeback_flush (s->writeback);
    if (r == 0)
      r = reclaim (s);
  }
  if (r == 0)
    r = writeback_flush (s->writeback);
  if (r == 0 && atomic_load (&storage (s)->size) > s->opened_size)
    r = cut_end (s);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}
