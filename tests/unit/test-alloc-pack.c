/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/pack.c: bytes of compressed data, side by side in host clusters.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "alloc-rig.h"
#include "check.h"
#include "random.h"

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
  alloc_rig_start (bits, order % 2);
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
  alloc_rig_close (nr_referenced ());
  refcount_order = 4;
}

/* The largest refcount is not exceeded. */
static void
test_pack_limit (void)
{
  unsigned i;

  refcount_order = 1;
  alloc_rig_start (16, false);
  nr_ranges = 0;
  memset (references, 0, sizeof references);
  for (i = 0; i < 7; ++i)
    take_range (100);
  CHECK_EQ (nr_referenced (), 3);
  alloc_rig_close (3);
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

  alloc_rig_start (16, false);
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
    alloc_rig_check_taken (&c, 1, 1);
    taken++;
  }
  take_range (100);
  CHECK (clusters_of (&range[0]).host.v != f.host.v);
  alloc_rig_close (taken + 1);
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
    alloc_rig_start (16, false);
    size = atomic_load (&disk.size) + (600 << 16);
    control.limit = size;
    if (round == 1) {
      CHECK_OK (alloc_take_bytes (&space, 100, &host));
      packed++;
    }
    while (alloc_take (&space, taken % 8 * 100000 + taken / 8, 1, &c) == 0) {
      alloc_rig_check_taken (&c, 1, 1);
      if (++taken == 300 && round == 0)
        break;
    }
    while (alloc_take_bytes (&space, 65536, &host) == 0)
      packed++;
    CHECK_ERROR (ENOSPC, "");
    CHECK (taken + packed >= 595);
    CHECK_OK (writeback_check (&writeback));
    alloc_rig_close (taken + packed);
  }
}

int
main (void)
{
  unsigned order;

  check_time_limit (200);
  test_pack_no_space ();
  test_pack_freed ();
  for (order = 0; order <= 6; ++order) {
    test_pack (9, order);
    test_pack (12, order);
    test_pack (16, order);
  }
  test_pack_limit ();
  return check_result ();
}
