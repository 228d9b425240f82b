/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/entry.h"
#include "qcow2/write/alloc-parts.h"

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

int
alloc_init (struct alloc *s, const struct header *h,
            struct writeback *writeback, struct overlap *overlap,
            bool keep_discarded)
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
  pthread_mutex_init (&s->refcounts_turn, NULL);
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
  pthread_mutex_destroy (&s->refcounts_turn);
  pthread_mutex_destroy (&s->lock);
}

/* --------------------------------------------------------------- reserving */

/* Extend the file over as many of nr clusters as possible.  Returns how many,
 * or 0 with the error set.
 */
static uint64_t
reach (struct alloc *s, uint64_t first, uint64_t nr)
{
  const uint64_t size = atomic_load (&alloc_storage (s)->size);

  for (;;) {
    const uint64_t end = alloc_offset (s, first + nr).v;

    if (end <= size || storage_resize (alloc_storage (s), end) == 0)
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
  const struct host_off host = alloc_offset (s, first);

  if (host.v >= old_size)
    return true;
  return !s->keep_discarded &&
    storage_punch (alloc_storage (s), host, nr << s->cluster_bits);
}

/* P1: metadata with a refcount of 0 is damage. */
static int
check_free (struct alloc *s, const struct alloc_run *r)
{
  const struct host_off host = alloc_offset (s, r->first);
  const enum metadata kind = overlap_find (s->overlap, host,
                                           r->nr << s->cluster_bits);

  if (kind == METADATA_NONE)
    return 0;
  error_set (EIO, "%s: damaged: the refcount of a cluster from offset 0x%"
             PRIx64 " on is 0, but it holds %s", alloc_storage (s)->name,
             host.v, overlap_name (kind));
  writeback_fail_corrupt (s->writeback);
  return -1;
}

/* Lower the refcounts of a run that nothing refers to; or it is lost, with the error
 * set.  refcounts_lock held.
 */
static int
uncount_run (struct alloc *s, const struct alloc_run *r)
{
  if (refcount_set (&s->refcounts, r->first, r->nr, 0, NULL) == 0)
    return 0;
  writeback_lost (s->writeback);
  return -1;
}

/* Raise the refcounts of a run, of all or of none: where one of several blocks has no
 * space on the host, those before it would be leaked, which they are if that fails,
 * too.  refcounts_lock held.
 */
static int
count_run (struct alloc *s, struct alloc_run *r)
{
  struct error_kept kept;

  if (refcount_set (&s->refcounts, r->first, r->nr, 1, &r->batch) == 0)
    return 0;
  error_keep (&kept);
  (void) uncount_run (s, r);
  error_restore (&kept);
  return -1;
}

/* Reserve up to max contiguous clusters.  refcounts_lock held. */
static int
reserve_run (struct alloc *s, uint64_t max, struct alloc_run *r)
{
  const uint64_t old_size = atomic_load (&alloc_storage (s)->size);

  if (refcount_find_free (&s->refcounts, max, &r->first, &r->nr) == -1 ||
      check_free (s, r) == -1)
    return -1;
  r->nr = reach (s, r->first, r->nr);
  if (r->nr == 0)
    return -1;
  r->zero = make_zero (s, r->first, r->nr, old_size);
  return count_run (s, r);
}

/* Clusters that are reserved and not handed out, not counting windows.
 * refcounts_lock held.
 */
static uint64_t
count_reserved (struct alloc *s)
{
  uint64_t r = pack_unused (s);

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
  const uint64_t clusters = atomic_load (&alloc_storage (s)->size)
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
    added = reserve_add (s, &r);
    pthread_mutex_unlock (&s->lock);
    if (!added) /* there are plenty, in small pieces */
      return uncount_run (s, &r);
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

  if (atomic_load (&alloc_storage (s)->size) < MIN_BALLASTED_BYTES ||
      !storage_has_holes (alloc_storage (s)) ||
      writeback_has_ballast (s->writeback) ||
      (r.nr == 0 && reserve_run (s, nr, &r) == -1))
    return;
  s->ballast = r;
  if (storage_allocate (alloc_storage (s), alloc_offset (s, r.first),
                        r.nr << s->cluster_bits, &done) == 0 && done)
    writeback_set_ballast (s->writeback, alloc_offset (s, r.first),
                           r.nr << s->cluster_bits);
}

/* Its clusters are needed.  refcounts_lock held. */
static void
give_up_ballast (struct alloc *s)
{
  const struct host_off host = alloc_offset (s, s->ballast.first);

  if (s->ballast.nr == 0)
    return;
  writeback_set_ballast (s->writeback, host, 0);
  if (!s->keep_discarded)
    (void) storage_punch (alloc_storage (s), host,
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

static void
close_windows (struct alloc *s)
{
  unsigned i;

  pthread_mutex_lock (&s->lock);
  for (i = 0; i < ALLOC_WINDOWS; ++i)
    reserve_close_window (s, &s->window[i]);
  pthread_mutex_unlock (&s->lock);
}

/* Refill; if nothing is free, with what windows and the ballast have.
 * refcounts_lock held.
 */
int
alloc_refill (struct alloc *s)
{
  if (refill (s) == 0)
    return 0;
  if (error_errno () == ENOSPC) {
    close_windows (s);
    give_up_ballast (s);
  }
  return is_empty (s) ? -1 : 0;
}

/* Refill if the reserve is empty; if nothing is free, with what packing has. */
static int
refill_empty (struct alloc *s)
{
  int r = 0;

  alloc_lock_refcounts (s);
  if (is_empty (s)) { /* another thread may have refilled it */
    r = alloc_refill (s);
    if (r == -1 && error_errno () == ENOSPC) {
      pack_stop (s);
      r = is_empty (s) ? -1 : 0;
    }
  }
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

static void
describe (const struct alloc *s, const struct alloc_run *r,
          struct alloc_clusters *out)
{
  *out = (struct alloc_clusters) {
    .host = alloc_offset (s, r->first),
    .nr = r->nr,
    .zero = r->zero,
    .durable = writeback_is_durable (s->writeback, r->batch),
  };
}

int
alloc_take (struct alloc *s, uint64_t guest, uint64_t nr,
            struct alloc_clusters *out)
{
  struct alloc_run r;
  bool low;

  for (;;) {
    pthread_mutex_lock (&s->lock);
    r = reserve_take (s, guest, nr);
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
  describe (s, &r, out);
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
  added = reserve_add (s, &r);
  pthread_mutex_unlock (&s->lock);
  if (!added)
    (void) writeback_free (s->writeback, &lost, 1);
}

/* -------------------------------------------------------------- contiguous */

/* A run of the reserve; nr is 0 if that is empty. */
static struct alloc_run
take_any_run (struct alloc *s)
{
  struct alloc_run r = { 0 };

  pthread_mutex_lock (&s->lock);
  if (s->nr_runs > 0)
    r = reserve_take_run (s, UINT64_MAX);
  pthread_mutex_unlock (&s->lock);
  return r;
}

/* Give up the reserve.  refcounts_lock held. */
static int
return_reserve (struct alloc *s)
{
  struct alloc_run r;

  pack_stop (s);
  give_up_ballast (s);
  close_windows (s);
  while ((r = take_any_run (s)).nr > 0) {
    if (uncount_run (s, &r) == -1)
      return -1;
  }
  return 0;
}

/* Reserve exactly nr contiguous clusters.  refcounts_lock held. */
static int
reserve_contiguous (struct alloc *s, uint64_t nr, struct alloc_run *r)
{
  const uint64_t old_size = atomic_load (&alloc_storage (s)->size);

  r->nr = nr;
  if (refcount_find_contiguous (&s->refcounts, nr, &r->first) == -1 ||
      check_free (s, r) == -1)
    return -1;
  if (alloc_offset (s, r->first + nr).v > old_size &&
      storage_resize (alloc_storage (s),
                      alloc_offset (s, r->first + nr).v) == -1)
    return -1;
  r->zero = make_zero (s, r->first, nr, old_size);
  return count_run (s, r);
}

int
alloc_take_contiguous (struct alloc *s, uint64_t nr,
                       struct alloc_clusters *out)
{
  struct alloc_run run;
  int r;

  alloc_lock_refcounts (s);
  r = reserve_contiguous (s, nr, &run);
  /* What is in reserve may lie where they would fit. */
  if (r == -1 && error_errno () == ENOSPC && return_reserve (s) == 0)
    r = reserve_contiguous (s, nr, &run);
  pthread_mutex_unlock (&s->refcounts_lock);
  if (r == 0)
    describe (s, &run, out);
  return r;
}

/* ------------------------------------------------------------------- leaks */

void
alloc_not_leaked (struct alloc *s)
{
  unsigned i;

  alloc_lock_refcounts (s);
  pthread_mutex_lock (&s->lock);
  for (i = 0; i < s->nr_runs; ++i)
    writeback_not_leaked (s->writeback, alloc_offset (s, s->run[i].first),
                          s->run[i].nr);
  for (i = 0; i < ALLOC_WINDOWS; ++i)
    writeback_not_leaked (s->writeback,
                          alloc_offset (s, s->window[i].run.first),
                          s->window[i].run.nr);
  pthread_mutex_unlock (&s->lock);
  writeback_not_leaked (s->writeback, alloc_offset (s, s->ballast.first),
                        s->ballast.nr);
  pack_not_leaked (s);
  pthread_mutex_unlock (&s->refcounts_lock);
}

int
alloc_next_block (struct alloc *s, uint64_t *cluster, struct host_off *block)
{
  int r;

  alloc_lock_refcounts (s);
  r = refcount_next_block (&s->refcounts, cluster, block);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

/* ----------------------------------------------------------------- closing */

/* The file has grown for the reserve: cut off what is free at its end.  All
 * refcounts are durable.  refcounts_lock held.
 */
static int
cut_end (struct alloc *s)
{
  const uint64_t size = atomic_load (&alloc_storage (s)->size);
  uint64_t end = size >> s->cluster_bits, refcount, nr;

  if (size % (UINT64_C (1) << s->cluster_bits) != 0)
    return 0; /* nothing was added */
  while (end > 0 && alloc_offset (s, end - 1).v >= s->opened_size) {
    if (refcount_run (&s->refcounts, end - 1, 1, &refcount, &nr) == -1)
      return -1;
    if (refcount != 0)
      break;
    end--;
  }
  if (end == size >> s->cluster_bits)
    return 0;
  return storage_resize (alloc_storage (s), alloc_offset (s, end).v);
}

int
alloc_refcount (struct alloc *s, struct host_off host, uint64_t *refcount)
{
  uint64_t nr;
  int r;

  alloc_lock_refcounts (s);
  r = refcount_run (&s->refcounts, host.v >> s->cluster_bits, 1, refcount, &nr);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}

int
alloc_raise (struct alloc *s, const uint64_t *cluster, size_t nr, size_t *done)
{
  size_t n;

  for (*done = 0; *done < nr; *done += n) {
    alloc_lock_refcounts (s);
    n = refcount_raise (&s->refcounts, cluster + *done, nr - *done);
    pthread_mutex_unlock (&s->refcounts_lock);
    if (n == 0)
      return -1;
  }
  return 0;
}

int
alloc_find_free (struct alloc *s, struct host_off host, uint64_t bytes,
                 struct host_off *free)
{
  const uint64_t cluster = host.v >> s->cluster_bits;
  const uint64_t end = (host.v + bytes - 1) / (UINT64_C (1) << s->cluster_bits)
    + 1;
  uint64_t first;
  int r;

  alloc_lock_refcounts (s);
  r = refcount_first_free (&s->refcounts, cluster, end - cluster, &first);
  pthread_mutex_unlock (&s->refcounts_lock);
  *free = first < end ? alloc_offset (s, first) : HOST_NONE;
  return r;
}

int
alloc_close (struct alloc *s)
{
  int r;

  alloc_lock_refcounts (s);
  /* Requests that were answered come first: a failure after that only leaks. */
  r = writeback_flush (s->writeback);
  if (r == 0)
    r = return_reserve (s);
  /* Lowering refcounts changes tables, but gives up nothing more. */
  while (r == 0 && atomic_load (&s->writeback->nr_freed) > 0) {
    r = writeback_flush (s->writeback);
    if (r == 0)
      r = reclaim_freed (s);
  }
  if (r == 0)
    r = writeback_flush (s->writeback);
  if (r == 0 && atomic_load (&alloc_storage (s)->size) > s->opened_size)
    r = cut_end (s);
  pthread_mutex_unlock (&s->refcounts_lock);
  return r;
}
