/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/alloc.c: host clusters that are handed out and taken back. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "build.h"
#include "check.h"
#include "image-check.h"
#include "qcow2/write/alloc.h"
#include "random.h"
#include "seconds.h"

#define MAX_CLUSTERS (MEMORY_DISK_MAX >> 9)

static struct memory_disk disk;
static struct memory_control control;
static struct storage *storage;
static struct cache *cache;
static struct epoch epoch;
static struct writeback writeback;
static struct overlap overlap;
static struct alloc space;
static struct header header;
static unsigned cluster_bits;
static unsigned refcount_order = 4;

/* Who has a host cluster: 0 for nobody.  Not atomic, so that ThreadSanitizer
 * judges as well.
 */
static uint8_t owner[MAX_CLUSTERS];

/* Garbage in a free cluster. */
static uint64_t
free_garbage (struct builder *b)
{
  return build_data (b, 0x77);
}

/* An image with some clusters in use, and free ones with garbage in them. */
static void
start (unsigned bits, bool keep_discarded)
{
  const uint64_t cluster_size = UINT64_C (1) << bits;
  struct builder b;
  unsigned i;

  cluster_bits = bits;
  build_start (&b, 3, bits, false, COMPRESSION_DEFLATE, 40 * cluster_size);
  build_order (&b, refcount_order);
  for (i = 0; i < 10; ++i) {
    build_entry (&b, i, build_data (&b, i + 1), 0);
    if (i % 3 == 0)
      free_garbage (&b);
  }
  build_finish (&b);
  memset (&control, 0, sizeof control);
  memset (owner, 0, sizeof owner);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  CHECK_OK (header_decode ("test", disk.data, cluster_size,
                           atomic_load (&disk.size), &header));
  storage = memory_disk_open (&disk, "test", &control);
  cache = cache_new (1 << 20);
  epoch_init (&epoch);
  CHECK_OK (writeback_init (&writeback, storage, storage, cache, 0,
                            bits < 12 ? 1U << bits : CACHE_SLOT_BYTES, bits,
                            &epoch));
  overlap_init (&overlap, bits);
  CHECK_OK (overlap_add_range (&overlap, (struct host_off) { 0 },
                               cluster_size, METADATA_HEADER));
  CHECK_OK (overlap_sort (&overlap, "test"));
  CHECK_OK (alloc_init (&space, &header, &writeback, &overlap, keep_discarded));
}

static void
end (void)
{
  alloc_destroy (&space);
  overlap_destroy (&overlap);
  writeback_destroy (&writeback);
  epoch_destroy (&epoch);
  cache_free (cache);
  storage_close (storage);
  memory_disk_free (&disk);
}

/* Close; so many clusters were taken and never mapped: they are leaked, and
 * nothing else is.
 */
static void
close_and_end (uint64_t leaks)
{
  struct image_check c;

  CHECK_OK (alloc_close (&space));
  c = image_check ("after closing", disk.data, atomic_load (&disk.size));
  CHECK_EQ (c.leaks, leaks);
  end ();
}

static bool
is_zero (uint64_t offset, uint64_t count)
{
  static const uint8_t zeros[65536];
  uint8_t buf[65536];

  while (count > 0) {
    const size_t n = count < sizeof buf ? count : sizeof buf;

    CHECK_OK (storage_read (storage, buf, n, (struct host_off) { offset }));
    if (memcmp (buf, zeros, n) != 0)
      return false;
    offset += n;
    count -= n;
  }
  return true;
}

/* P1, P2 of what was handed out; `me' has it now. */
static void
check_taken (const struct alloc_clusters *c, uint64_t max, unsigned me)
{
  const uint64_t first = c->host.v >> cluster_bits;
  uint64_t i, refcount = 0;

  CHECK (c->nr >= 1 && c->nr <= max);
  CHECK_EQ (c->host.v & ((UINT64_C (1) << cluster_bits) - 1), 0);
  CHECK (c->host.v + (c->nr << cluster_bits) <= atomic_load (&disk.size));
  CHECK (first + c->nr <= MAX_CLUSTERS);
  CHECK_EQ (overlap_find (&overlap, c->host, c->nr << cluster_bits),
            METADATA_NONE);
  for (i = 0; i < c->nr; ++i) {
    CHECK_EQ (owner[first + i], 0);
    owner[first + i] = me;
  }
  if (c->zero)
    CHECK (is_zero (c->host.v, c->nr << cluster_bits));
  CHECK_OK (alloc_refcount (&space, c->host, &refcount));
  CHECK_EQ (refcount, 1);
}

static struct alloc_clusters
take (uint64_t guest, uint64_t nr)
{
  struct alloc_clusters c = { .nr = 0 };

  CHECK_OK (alloc_take (&space, guest, nr, &c));
  check_taken (&c, nr, 1);
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

    start (bits[b], false);
    for (i = taken = 0; taken < enough; ++i)
      taken += take (i % 5 == 0 ? ALLOC_NO_GUEST : i * 1000,
                     1 + i % 7).nr;
    close_and_end (taken);
  }
}

/* Refcounts are raised in batches, so that most clusters have a durable one
 * when they are handed out, and few calls are needed.
 */
static void
test_batches (void)
{
  unsigned i, durable = 0;

  start (12, false);
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
  close_and_end (1000);
}

/* A refcount said to be durable is, wherever in a reserve of several batches
 * the cluster lies.
 */
static void
test_durable (void)
{
  unsigned i, durable = 0;

  start (12, false);
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
  close_and_end (2000);
}

/* Close cuts off what is free at the end. */
static void
test_close (void)
{
  uint64_t size;
  unsigned i;

  start (12, false);
  size = atomic_load (&disk.size);
  close_and_end (0); /* nothing was taken */

  start (12, false);
  for (i = 0; i < 5; ++i)
    take (ALLOC_NO_GUEST, 1);
  CHECK (atomic_load (&disk.size) > size);
  CHECK_OK (alloc_close (&space));
  CHECK (atomic_load (&disk.size) <= size + 5 * 4096);
  end ();

  start (12, false);
  for (i = 0; i < 300; ++i) {
    const struct alloc_clusters c = take (i * 10, 1);

    give_back (c.host, c.nr);
  }
  CHECK_OK (alloc_close (&space));
  CHECK_EQ (atomic_load (&disk.size), size);
  image_check_clean ("closed", disk.data, size);
  end ();
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

    start (run[i].bits, false);
    breaks = count_breaks (run[i].writers, run[i].steps, run[i].nr,
                           i % 2 == 1);
    printf ("clusters of 2^%u: %u writers, %u times %" PRIu64
            " clusters: %u breaks\n", run[i].bits, run[i].writers, total,
            run[i].nr, breaks);
    CHECK (breaks <= run[i].most);
    close_and_end (total * run[i].nr);
  }
}

/* What a kill leaves of the reserve: two batches at most, whoever writes. */
static void
test_leaks (unsigned bits)
{
  uint64_t next_guest[24], state = 5, taken = 0, batch;
  struct image_check c;
  unsigned i, w;

  start (bits, false);
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
  close_and_end (taken);
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

  start (16, false);
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
  close_and_end (4000);
}

/* ------------------------------------------------------------- taking back */

static void
test_give_back (void)
{
  struct alloc_clusters c;
  uint64_t host, i;

  start (16, false);
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
  close_and_end (i);
}

/* So many pieces come back that they can't all be kept. */
static void
test_give_back_many (void)
{
  static struct alloc_clusters c[3000];
  unsigned i;

  start (12, false);
  for (i = 0; i < 3000; ++i)
    c[i] = take (ALLOC_NO_GUEST, 1);
  for (i = 0; i < 3000; i += 2)
    give_back (c[i].host, 1);
  CHECK (space.nr_runs <= ALLOC_MAX_RUNS);
  for (i = 0; i < 1000; ++i)
    take (ALLOC_NO_GUEST, 1);
  close_and_end (1500 + 1000);
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

  start (16, keep_discarded);
  CHECK (!is_zero (f.host.v, 65536));
  token = epoch_enter (&epoch);
  CHECK_OK (writeback_free (&writeback, &f, 1));
  alloc_reclaim (&space);
  CHECK_OK (alloc_refcount (&space, f.host, &refcount));
  CHECK_EQ (refcount, 1); /* not durable yet */
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  CHECK_OK (alloc_refcount (&space, f.host, &refcount));
  CHECK_EQ (refcount, 1); /* somebody may still be reading it */
  CHECK (!is_zero (f.host.v, 65536));
  epoch_leave (&epoch, token);
  control.punches = 0;
  alloc_reclaim (&space);
  CHECK_OK (alloc_refcount (&space, f.host, &refcount));
  CHECK_EQ (refcount, 0);
  CHECK_EQ (is_zero (f.host.v, 65536), !keep_discarded);
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
  end ();
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

  start (16, false);
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
  CHECK (!is_zero (6 << 16, 65536));
  CHECK (is_zero (7 << 16, 65536));
  CHECK_EQ (control.punches, 1);
  end ();
}

/* A table that is freed is metadata no more, nor in the cache: its cluster may
 * be the next table's.
 */
static void
test_reclaim_table (void)
{
  const struct freed table = { .host.v = 6 << 16, .nr = 1, .is_table = true };
  struct cache_ref ref;

  start (16, false);
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
  end ();
}

/* Neighbours are punched as one. */
static void
test_reclaim_joined (void)
{
  unsigned i;

  start (16, false);
  for (i = 0; i < 6; ++i) { /* backwards, and around a free one */
    const struct freed f = {
      .host.v = (uint64_t) (12 - i - (i > 3)) << 16, .nr = 1,
    };

    CHECK_OK (writeback_free (&writeback, &f, 1));
  }
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  CHECK (control.punches <= 3);
  end ();
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
    start (bits[b], false);
    size = atomic_load (&disk.size) + ((uint64_t) 900 << bits[b]);
    atomic_store (&disk.size, size);
    storage->size = size;
    control.fixed = true;
    taken = 0;
    while (alloc_take (&space, taken, 1, &c) == 0) {
      check_taken (&c, 1, 1);
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
    close_and_end (taken);
  }
}

/* What several writers have set apart does not hinder the last one. */
static void
test_windows_no_space (void)
{
  struct alloc_clusters c = { .nr = 0 };
  uint64_t taken = 0, size;

  start (16, false);
  size = atomic_load (&disk.size) + (600 << 16);
  control.limit = size;
  while (alloc_take (&space, taken % 8 * 100000 + taken / 8, 1, &c) == 0) {
    check_taken (&c, 1, 1);
    taken++;
  }
  CHECK_ERROR (ENOSPC, "");
  CHECK (taken >= 595);
  close_and_end (taken);
}

/* What was set apart for compressed data serves other data, and what windows
 * have set apart serves compressed data.
 */
static void
test_pack_no_space (void)
{
  struct alloc_clusters c = { .nr = 0 };
  uint64_t taken = 0, packed = 0, size;
  struct host_off host;
  unsigned round;

  for (round = 0; round < 2; ++round) {
    taken = packed = 0;
    start (16, false);
    size = atomic_load (&disk.size) + (600 << 16);
    control.limit = size;
    if (round == 1) {
      CHECK_OK (alloc_take_bytes (&space, 100, &host));
      packed++;
    }
    while (alloc_take (&space, taken % 8 * 100000 + taken / 8, 1, &c) == 0) {
      check_taken (&c, 1, 1);
      if (++taken == 300 && round == 0)
        break;
    }
    while (alloc_take_bytes (&space, 65536, &host) == 0)
      packed++;
    CHECK_ERROR (ENOSPC, "");
    CHECK (taken + packed >= 595);
    CHECK_OK (writeback_check (&writeback));
    close_and_end (taken + packed);
  }
}

/* -------------------------------------------------------- compressed data */

/* Ranges of bytes that were handed out. */
#define MAX_RANGES 3000

static struct range {
  uint64_t from, to;
} range[MAX_RANGES];
static unsigned nr_ranges;
static uint32_t references[MAX_CLUSTERS];

static struct freed
clusters_of (const struct range *r)
{
  const uint64_t first = r->from >> cluster_bits;
  const uint64_t last = (r->to - 1) >> cluster_bits;

  return (struct freed) {
    .host.v = first << cluster_bits, .nr = last - first + 1,
  };
}

static void
count_references (const struct range *r, int n)
{
  const struct freed f = clusters_of (r);
  uint64_t i, refcount;

  for (i = f.host.v >> cluster_bits; i < (f.host.v >> cluster_bits) + f.nr;
       ++i) {
    references[i] += n;
    if (n < 0)
      continue;
    CHECK_OK (alloc_refcount (&space, (struct host_off) { i << cluster_bits },
                              &refcount));
    CHECK (refcount >= references[i]); /* more, until it is lowered */
  }
}

/* It overlaps nothing, is within the file, and is counted. */
static void
take_range (uint64_t bytes)
{
  struct range *r = &range[nr_ranges];
  struct host_off host = { 0 };
  unsigned i;

  CHECK_OK (alloc_take_bytes (&space, bytes, &host));
  r->from = host.v;
  r->to = host.v + bytes;
  CHECK (r->to <= atomic_load (&disk.size));
  CHECK_EQ (overlap_find (&overlap, host, bytes), METADATA_NONE);
  for (i = 0; i < nr_ranges; ++i)
    CHECK (range[i].to <= r->from || r->to <= range[i].from);
  count_references (r, 1);
  nr_ranges++;
}

static void
free_range (unsigned i)
{
  const struct freed f = clusters_of (&range[i]);

  CHECK_OK (writeback_free (&writeback, &f, 1));
  count_references (&range[i], -1);
  range[i] = range[--nr_ranges];
}

static uint64_t
nr_referenced (void)
{
  uint64_t i, n = 0;

  for (i = 0; i < MAX_CLUSTERS; ++i)
    n += references[i] != 0;
  return n;
}

static void
test_pack (unsigned bits, unsigned order)
{
  const uint64_t cluster_size = UINT64_C (1) << bits;
  const uint64_t max = cluster_size - cluster_size / 128;
  uint64_t state = bits * 10 + order, bytes = 0, size;
  unsigned i;

  refcount_order = order;
  start (bits, order % 2);
  nr_ranges = 0;
  memset (references, 0, sizeof references);
  size = atomic_load (&disk.size);
  for (i = 0; i < 300; ++i) {
    const uint64_t n = 1 + random_below (&state, max >> random_below (&state,
                                                                      6));

    take_range (n);
    bytes += n;
  }
  if (order >= 3) /* nothing is left between them */
    CHECK (nr_referenced () <= bytes / cluster_size + 20);
  for (i = 0; i < 1500; ++i) {
    if (random_below (&state, 2) && nr_ranges > 0)
      free_range (random_below (&state, nr_ranges));
    else
      take_range (1 + random_below (&state, max >> random_below (&state, 6)));
    if (random_below (&state, 50) == 0) {
      CHECK_OK (writeback_flush (&writeback));
      alloc_reclaim (&space);
    }
  }
  /* The last ones, which the next go behind of. */
  while (nr_ranges > 0)
    free_range (nr_ranges - 1);
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  take_range (1);
  take_range (max);
  if (order > 0 && bits < 16)
    CHECK (atomic_load (&disk.size) <= size + 3 * bytes +
           2 * (space.max_batch_size << bits));
  close_and_end (nr_referenced ());
  refcount_order = 4;
}

/* The largest refcount is not exceeded. */
static void
test_pack_limit (void)
{
  unsigned i;

  refcount_order = 1;
  start (16, false);
  nr_ranges = 0;
  memset (references, 0, sizeof references);
  for (i = 0; i < 7; ++i)
    take_range (100);
  CHECK_EQ (nr_referenced (), 3);
  close_and_end (3);
  refcount_order = 4;
}

/* All in a cluster was given up, and somebody else has it: nothing goes behind
 * what was there.
 */
static void
test_pack_freed (void)
{
  struct alloc_clusters c = { .nr = 0 };
  uint64_t taken = 0;
  struct freed f;

  start (16, false);
  nr_ranges = 0;
  memset (references, 0, sizeof references);
  take_range (100);
  f = clusters_of (&range[0]);
  free_range (0);
  CHECK_OK (writeback_flush (&writeback));
  alloc_reclaim (&space);
  while (c.nr == 0 || c.host.v != f.host.v) {
    if (taken == 1000 ||
        alloc_take (&space, ALLOC_NO_GUEST, 1, &c) == -1) {
      CHECK (!"it is handed out again");
      break;
    }
    check_taken (&c, 1, 1);
    taken++;
  }
  take_range (100);
  CHECK (clusters_of (&range[0]).host.v != f.host.v);
  close_and_end (taken + 1);
}

/* ------------------------------------------------------------------ damage */

/* The refcount of a metadata cluster is 0: it is not handed out (I7). */
static void
test_damage (void)
{
  const struct host_off table = { 65536 };
  struct alloc_clusters c;

  start (16, false);
  pthread_mutex_lock (&space.refcounts_lock);
  CHECK_OK (refcount_set (&space.refcounts, 1, 1, 0, NULL));
  pthread_mutex_unlock (&space.refcounts_lock);
  CHECK_EQ (overlap_find (&overlap, table, 1), METADATA_REFCOUNT_TABLE);
  CHECK_EQ (alloc_take (&space, 0, 1, &c), (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: the refcount of a cluster");
  CHECK_HAS (error_message (), "the refcount table");
  CHECK_EQ (writeback_check (&writeback), (uint64_t) -1);
  end ();
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
    check_taken (c, max, me);
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

  start (bits, false);
  for (i = 0; i < THREADS; ++i)
    pthread_create (&thread[i], NULL, race_main, &r);
  for (i = 0; i < THREADS; ++i)
    pthread_join (thread[i], NULL);
  printf ("%" PRIu64 " clusters taken, %" PRIu64 " given up, the file has %"
          PRIu64 "\n", r.taken, r.freed, atomic_load (&disk.size) >> bits);
  close_and_end (r.taken - r.freed);
}

int
main (void)
{
  unsigned order;

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
  test_pack_no_space ();
  test_pack_freed ();
  for (order = 0; order <= 6; ++order) {
    test_pack (9, order);
    test_pack (12, order);
    test_pack (16, order);
  }
  test_pack_limit ();
  test_damage ();
  test_threads (16);
  test_threads (9);
  return check_result ();
}
