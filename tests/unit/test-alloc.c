/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/alloc.c: host clusters that are handed out and taken back. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "alloc-rig.h"
#include "check.h"
#include "image-check.h"
#include "random.h"
#include "seconds.h"

static struct alloc_clusters
take (uint64_t guest, uint64_t nr)
{
  struct alloc_clusters c = { .nr = 0 };

  CHECK_OK (alloc_take (&space, guest, nr, &c));
  alloc_rig_check_taken (&c, nr, 1);
  return c;
}

static void
give_back (struct host_off host, uint64_t nr)
{
  uint64_t i;

  for (i = 0; i < nr; ++i) {
    CHECK (owner[(host.v >> cluster_bits) + i] != 0);
    owner[(host.v >> cluster_bits) + i] = 0;
  }
  alloc_give_back (&space, host, nr);
}

/* ------------------------------------------------------------------- alone */

static void
test_take (void)
{
  static const unsigned bits[] = { 9, 12, 16, 21 };
  uint64_t taken, i;
  unsigned b;

  for (b = 0; b < sizeof bits / sizeof bits[0]; ++b) {
    const uint64_t enough = bits[b] == 21 ? 40 : 2000;

    alloc_rig_start (bits[b], false);
    for (i = taken = 0; taken < enough; ++i)
      taken += take (i % 5 == 0 ? ALLOC_NO_GUEST : i * 1000,
                     1 + i % 7).nr;
    alloc_rig_close (taken);
  }
}

/* Refcounts are raised in batches, so that most clusters have a durable one
 * when they are handed out, and few calls are needed.
 */
static void
test_batches (void)
{
  unsigned i, durable = 0;

  alloc_rig_start (12, false);
  for (i = 0; i < 1000; ++i) {
    const struct alloc_clusters c = take (i * 100, 1);

    if (c.durable) {
      CHECK_EQ (image_refcount (disk.data, atomic_load (&disk.size),
                                c.host.v >> 12), 1);
      durable++;
    }
    if (i % 10 == 9)
      CHECK_OK (writeback_flush (&writeback));
  }
  CHECK (durable > 850);
  CHECK (control.resizes < 30);
  alloc_rig_close (1000);
}

/* A refcount said to be durable is, wherever in a reserve of several batches
 * the cluster lies.
 */
static void
test_durable (void)
{
  unsigned i, durable = 0;

  alloc_rig_start (12, false);
  for (i = 0; i < 2000; ++i) {
    const struct alloc_clusters c = take (i * 100, 1);

    if (c.durable) {
      CHECK_EQ (image_refcount (disk.data, atomic_load (&disk.size),
                                c.host.v >> 12), 1);
      durable++;
    }
    if (i % 600 == 0)
      CHECK_OK (writeback_flush (&writeback));
  }
  CHECK (durable > 400 && durable < 1900);
  alloc_rig_close (2000);
}

/* Close cuts off what is free at the end. */
static void
test_close (void)
{
  uint64_t size;
  unsigned i;

  alloc_rig_start (12, false);
  size = atomic_load (&disk.size);
  alloc_rig_close (0); /* nothing was taken */

  alloc_rig_start (12, false);
  for (i = 0; i < 5; ++i)
    take (ALLOC_NO_GUEST, 1);
  CHECK (atomic_load (&disk.size) > size);
  CHECK_OK (alloc_close (&space));
  CHECK (atomic_load (&disk.size) <= size + 5 * 4096);
  alloc_rig_end ();

  alloc_rig_start (12, false);
  for (i = 0; i < 300; ++i) {
    const struct alloc_clusters c = take (i * 10, 1);

    give_back (c.host, c.nr);
  }
  CHECK_OK (alloc_close (&space));
  CHECK_EQ (atomic_load (&disk.size), size);
  image_check_clean ("closed", disk.data, size);
  alloc_rig_end ();
}

/* ----------------------------------------------------------------- windows */

#define MAX_WRITERS 8

/* Writers take turns, each with a sequence of its own, nr clusters at a time.
 * Returns how often a writer's host clusters did not follow each other.
 */
static unsigned
count_breaks (unsigned writers, unsigned steps, uint64_t nr, bool shuffled)
{
  uint64_t next_guest[MAX_WRITERS], next_host[MAX_WRITERS] = { 0 };
  uint64_t state = writers * 100 + nr, i;
  unsigned breaks = 0, w;

  for (w = 0; w < writers; ++w)
    next_guest[w] = w * 1000000;
  for (i = 0; i < (uint64_t) writers * steps; ++i) {
    uint64_t left = nr;

    w = shuffled ? random_below (&state, writers) : i % writers;
    while (left > 0) {
      const struct alloc_clusters c = take (next_guest[w], left);

      breaks += c.host.v != next_host[w];
      next_host[w] = c.host.v + (c.nr << cluster_bits);
      next_guest[w] += c.nr;
      left -= c.nr;
    }
  }
  return breaks;
}

static void
test_sequential (void)
{
  static const struct {
    unsigned bits, writers, steps;
    uint64_t nr;
    unsigned most; /* breaks */
  } run[] = {
    { 16, 1, 2000, 1, 40 },
    { 16, 1, 500, 4, 40 },
    { 16, 1, 100, 32, 60 },
    { 12, 1, 4000, 1, 60 },
    { 9, 1, 4000, 1, 100 },
    { 16, 2, 1000, 1, 100 },
    { 16, 4, 800, 1, 200 },
    { 16, 8, 400, 1, 300 },
    { 16, 4, 300, 4, 300 },
    { 12, 8, 1000, 2, 500 },
  };
  unsigned i, breaks;

  for (i = 0; i < sizeof run / sizeof run[0]; ++i) {
    const unsigned total = run[i].writers * run[i].steps;

    alloc_rig_start (run[i].bits, false);
    breaks = count_breaks (run[i].writers, run[i].steps, run[i].nr,
                           i % 2 == 1);
    printf ("clusters of 2^%u: %u writers, %u times %" PRIu64
            " clusters: %u breaks\n", run[i].bits, run[i].writers, total,
            run[i].nr, breaks);
    CHECK (breaks <= run[i].most);
    alloc_rig_close (total * run[i].nr);
  }
}

/* What a kill leaves of the reserve: two batches at most, whoever writes. */
static void
test_leaks (unsigned bits)
{
  uint64_t next_guest[24], state = 5, taken = 0, batch;
  struct image_check c;
  unsigned i, w;

  alloc_rig_start (bits, false);
  for (w = 0; w < 24; ++w)
    next_guest[w] = w * UINT64_C (100000);
  for (i = 0; i < 1500; ++i) {
    w = random_below (&state, i % 500 < 250 ? 24 : 3);
    if (random_below (&state, 10) == 0)
      next_guest[w] += 1000; /* another stream */
    taken += take (next_guest[w]++, 1).nr;
    if (i % 50 != 0)
      continue;
    CHECK_OK (writeback_flush (&writeback));
    c = image_check ("killed", disk.data, atomic_load (&disk.size));
    batch = (atomic_load (&disk.size) >> bits) / 8;
    batch = batch < 4 ? 4 : batch;
    if (batch < (UINT64_C (1) << 20) >> bits)
      batch = (UINT64_C (1) << 20) >> bits;
    if (batch > (UINT64_C (8) << 20) >> bits)
      batch = (UINT64_C (8) << 20) >> bits;
    batch = batch > 256 ? 256 : batch;
    CHECK (c.leaks - taken <= 2 * batch);
  }
  alloc_rig_close (taken);
}

/* Several writers share one sequence, so that they come to its clusters in
 * another order: the host clusters still follow each other.
 */
static void
test_shared_sequence (void)
{
  static uint64_t host[4000];
  uint64_t state = 8;
  unsigned i, j, breaks = 0;

  alloc_rig_start (16, false);
  for (i = 0; i < 4000; i += 8) {
    unsigned order[8] = { 0, 1, 2, 3, 4, 5, 6, 7 };

    for (j = 7; j > 0; --j) {
      const unsigned k = random_below (&state, j + 1), t = order[j];

      order[j] = order[k];
      order[k] = t;
    }
    for (j = 0; j < 8; ++j)
      host[i + order[j]] = take (i + order[j], 1).host.v;
  }
  for (i = 1; i < 4000; ++i)
    breaks += host[i] != host[i - 1] + 65536;
  printf ("a shared sequence of 4000 clusters: %u breaks\n", breaks);
  CHECK (breaks < 800);
  alloc_rig_close (4000);
}

/* ------------------------------------------------------------- taking back */

static void
test_give_back (void)
{
  struct alloc_clusters c;
  uint64_t host, i;

  alloc_rig_start (16, false);
  c = take (0, 1);
  CHECK (c.zero);
  CHECK_OK (storage_write (storage, "x", 1, c.host));
  host = c.host.v;
  give_back (c.host, c.nr);
  for (i = 1; i < 2000; ++i) { /* it comes back, and not as zeros */
    if (i % 50 == 0)
      CHECK_OK (writeback_flush (&writeback));
    c = take (ALLOC_NO_GUEST, 1);
    if (c.host.v == host)
      break;
  }
  CHECK_EQ (c.host.v, host);
  CHECK (!c.zero);
  CHECK (!c.durable);
  alloc_rig_close (i);
}

/* So many pieces come back that they can't all be kept. */
static void
test_give_back_many (void)
{
  static struct alloc_clusters c[3000];
  unsigned i;

  alloc_rig_start (12, false);
  for (i = 0; i < 3000; ++i)
    c[i] = take (ALLOC_NO_GUEST, 1);
  for (i = 0; i < 3000; i += 2)
    give_back (c[i].host, 1);
  CHECK (space.nr_runs <= ALLOC_MAX_RUNS);
  for (i = 0; i < 1000; ++i)
    take (ALLOC_NO_GUEST, 1);
  alloc_rig_close (1500 + 1000);
}

/* I4, P3: what a change gave up is handed out again when that is durable, no
 * older request is left, and its hole was punched.
 */
static void
check_reclaim (bool keep_discarded)
{
  const struct freed f = { .host.v = 6 << 16, .nr = 1 }; /* in use */
  uint64_t refcount;
  unsigned token, i;
  bool found = false;

  alloc_rig_start (16, keep_discarded);
  CHECK (!alloc_rig_is_zero (f.host.v, 65536));
  token = epoch_enter (&epoch);
  CHECK_OK (writeback_free (&writeback, &f, 1));
  alloc_reclaim (&space);
  CHECK_OK (alloc_refcount (&space, f.host, &refcount));
  CHECK_EQ (refcount, 1); /* not durable yet */
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  CHECK_OK (alloc_refcount (&space, f.host, &refcount));
  CHECK_EQ (refcount, 1); /* somebody may still be reading it */
  CHECK (!alloc_rig_is_zero (f.host.v, 65536));
  epoch_leave (&epoch, token);
  control.punches = 0;
  alloc_reclaim (&space);
  CHECK_OK (alloc_refcount (&space, f.host, &refcount));
  CHECK_EQ (refcount, 0);
  CHECK_EQ (alloc_rig_is_zero (f.host.v, 65536), !keep_discarded);
  CHECK_EQ (control.punches, !keep_discarded);
  CHECK_EQ (image_refcount (disk.data, atomic_load (&disk.size), 6), 1);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_EQ (image_refcount (disk.data, atomic_load (&disk.size), 6), 0);
  for (i = 0; i < 10 && !found; ++i) {
    const struct alloc_clusters c = take (ALLOC_NO_GUEST, 1);

    if (c.host.v == f.host.v) {
      found = true;
      CHECK_EQ (c.zero, !keep_discarded);
    }
  }
  CHECK (found);
  alloc_rig_end ();
}

static void
test_reclaim (void)
{
  check_reclaim (false);
  check_reclaim (true);
}

/* One reference of several is gone: nothing is punched. */
static void
test_reclaim_shared (void)
{
  const struct freed many[] = {
    { .host.v = 7 << 16, .nr = 1 },
    { .host.v = 6 << 16, .nr = 2 },
    { .host.v = 6 << 16, .nr = 1 },
  };
  uint64_t refcount;

  alloc_rig_start (16, false);
  pthread_mutex_lock (&space.refcounts_lock);
  CHECK_OK (refcount_set (&space.refcounts, 6, 1, 4, NULL));
  CHECK_OK (refcount_set (&space.refcounts, 7, 1, 2, NULL));
  pthread_mutex_unlock (&space.refcounts_lock);
  CHECK_OK (writeback_free (&writeback, many, 3));
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  CHECK_OK (alloc_refcount (&space, many[1].host, &refcount));
  CHECK_EQ (refcount, 2);
  CHECK_OK (alloc_refcount (&space, many[0].host, &refcount));
  CHECK_EQ (refcount, 0);
  CHECK (!alloc_rig_is_zero (6 << 16, 65536));
  CHECK (alloc_rig_is_zero (7 << 16, 65536));
  CHECK_EQ (control.punches, 1);
  alloc_rig_end ();
}

/* A table that is freed is metadata no more, nor in the cache: its cluster may
 * be the next table's.
 */
static void
test_reclaim_table (void)
{
  const struct freed table = { .host.v = 6 << 16, .nr = 1, .is_table = true };
  struct cache_ref ref;

  alloc_rig_start (16, false);
  CHECK_OK (overlap_add (&overlap, "test", table.host, 1, METADATA_L2));
  CHECK_OK (cache_get (cache, storage, 0, table.host, CACHE_SLOT_BYTES, 1,
                       &ref));
  CHECK (cache_word (&ref, 0) != 0);
  CHECK_OK (writeback_free (&writeback, &table, 1));
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  CHECK_EQ (overlap_find (&overlap, table.host, 1), METADATA_NONE);
  CHECK_OK (cache_get (cache, storage, 0, table.host, CACHE_SLOT_BYTES, 1,
                       &ref));
  CHECK_EQ (cache_word (&ref, 0), 0); /* it was punched */
  alloc_rig_end ();
}

/* Neighbours are punched as one. */
static void
test_reclaim_joined (void)
{
  unsigned i;

  alloc_rig_start (16, false);
  for (i = 0; i < 6; ++i) { /* backwards, and around a free one */
    const struct freed f = {
      .host.v = (uint64_t) (12 - i - (i > 3)) << 16, .nr = 1,
    };

    CHECK_OK (writeback_free (&writeback, &f, 1));
  }
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  CHECK (control.punches <= 3);
  alloc_rig_end ();
}

/* ---------------------------------------------------------------- no space */

/* A block device: all of it is handed out, and then ENOSPC; and what is given
 * up can be had again.
 */
static void
test_fixed_size (void)
{
  static const unsigned bits[] = { 9, 12, 16 };
  struct alloc_clusters c = { .nr = 0 }, last = c;
  uint64_t size, taken;
  unsigned b;

  for (b = 0; b < sizeof bits / sizeof bits[0]; ++b) {
    alloc_rig_start (bits[b], false);
    size = atomic_load (&disk.size) + ((uint64_t) 900 << bits[b]);
    atomic_store (&disk.size, size);
    storage->size = size;
    control.fixed = true;
    taken = 0;
    while (alloc_take (&space, taken, 1, &c) == 0) {
      alloc_rig_check_taken (&c, 1, 1);
      last = c;
      taken++;
    }
    CHECK_ERROR (ENOSPC, "");
    CHECK_OK (writeback_check (&writeback));
    CHECK (taken > 880 && taken < 910);
    CHECK_EQ (alloc_take (&space, ALLOC_NO_GUEST, 1, &c), (uint64_t) -1);
    CHECK_ERROR (ENOSPC, "");
    give_back (last.host, 1);
    c = take (7, 3);
    CHECK_EQ (c.host.v, last.host.v);
    CHECK_EQ (c.nr, 1);
    CHECK_OK (writeback_flush (&writeback));
    CHECK_EQ (atomic_load (&disk.size), size);
    alloc_rig_close (taken);
  }
}

/* What several writers have set apart does not hinder the last one. */
static void
test_windows_no_space (void)
{
  struct alloc_clusters c = { .nr = 0 };
  uint64_t taken = 0, size;

  alloc_rig_start (16, false);
  size = atomic_load (&disk.size) + (600 << 16);
  control.limit = size;
  while (alloc_take (&space, taken % 8 * 100000 + taken / 8, 1, &c) == 0) {
    alloc_rig_check_taken (&c, 1, 1);
    taken++;
  }
  CHECK_ERROR (ENOSPC, "");
  CHECK (taken >= 595);
  alloc_rig_close (taken);
}

/* ------------------------------------------------------------------ damage */

/* The refcount of a metadata cluster is 0: it is not handed out (I7). */
static void
test_damage (void)
{
  const struct host_off table = { 65536 };
  struct alloc_clusters c;

  alloc_rig_start (16, false);
  pthread_mutex_lock (&space.refcounts_lock);
  CHECK_OK (refcount_set (&space.refcounts, 1, 1, 0, NULL));
  pthread_mutex_unlock (&space.refcounts_lock);
  CHECK_EQ (overlap_find (&overlap, table, 1), METADATA_REFCOUNT_TABLE);
  CHECK_EQ (alloc_take (&space, 0, 1, &c), (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: the refcount of a cluster");
  CHECK_HAS (error_message (), "the refcount table");
  CHECK_EQ (writeback_check (&writeback), (uint64_t) -1);
  alloc_rig_end ();
}

/* ----------------------------------------------------------------- threads */

#define THREADS 4

struct race {
  double until;
  _Atomic uint64_t seed, taken, freed;
};

static bool
race_step (struct race *r, unsigned me, uint64_t *state,
           struct alloc_clusters *have, unsigned *nr)
{
  struct alloc_clusters *c = &have[*nr];

  if (*nr < 40 && random_below (state, 2)) {
    const uint64_t guest = random_below (state, 3) == 0 ? ALLOC_NO_GUEST
      : me * 100000 + r->taken;
    const uint64_t max = 1 + random_below (state, 4);

    if (alloc_take (&space, guest, max, c) == -1)
      return false;
    alloc_rig_check_taken (c, max, me);
    r->taken += c->nr;
    ++*nr;
  }
  else if (*nr > 0) {
    const unsigned i = random_below (state, *nr);
    const struct freed f = { .host = have[i].host, .nr = have[i].nr };
    uint64_t j;

    /* The owner must be gone before anybody else can be it. */
    for (j = 0; j < f.nr; ++j)
      owner[(f.host.v >> cluster_bits) + j] = 0;
    if (random_below (state, 2))
      alloc_give_back (&space, f.host, f.nr);
    else
      CHECK_OK (writeback_free (&writeback, &f, 1));
    have[i] = have[--*nr];
    r->freed += f.nr;
  }
  return true;
}

static void *
race_main (void *opaque)
{
  struct race *r = opaque;
  const unsigned me = ++r->seed;
  struct alloc_clusters have[41];
  uint64_t state = mix (me);
  unsigned nr = 0, n = 0;

  while (seconds () < r->until) {
    const unsigned token = epoch_enter (&epoch);
    const bool ok = race_step (r, me, &state, have, &nr);

    epoch_leave (&epoch, token);
    if (!ok) /* what was given up comes back late if a thread is held up */
      CHECK_EQ (error_errno (), ENOSPC);
    if (++n % 16 == 0 || !ok) {
      CHECK_OK (writeback_flush (&writeback));
      alloc_reclaim (&space);
    }
  }
  return NULL;
}

static void
test_threads (unsigned bits)
{
  struct race r = { .until = seconds () + test_seconds (1) };
  pthread_t thread[THREADS];
  unsigned i;

  alloc_rig_start (bits, false);
  for (i = 0; i < THREADS; ++i)
    pthread_create (&thread[i], NULL, race_main, &r);
  for (i = 0; i < THREADS; ++i)
    pthread_join (thread[i], NULL);
  printf ("%" PRIu64 " clusters taken, %" PRIu64 " given up, the file has %"
          PRIu64 "\n", r.taken, r.freed, atomic_load (&disk.size) >> bits);
  alloc_rig_close (r.taken - r.freed);
}

int
main (void)
{
  check_time_limit (200 + 2 * test_seconds (1));
  test_take ();
  test_batches ();
  test_durable ();
  test_close ();
  test_sequential ();
  test_leaks (16);
  test_leaks (12);
  test_leaks (18);
  test_shared_sequence ();
  test_give_back ();
  test_give_back_many ();
  test_reclaim ();
  test_reclaim_shared ();
  test_reclaim_table ();
  test_reclaim_joined ();
  test_fixed_size ();
  test_windows_no_space ();
  test_damage ();
  test_threads (16);
  test_threads (9);
  return check_result ();
}
