/* SPDX-License-Identifier: BSD-3-Clause */

/* The invariants R1 to R6 of qcow2/write/remap.h. */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>

#include "bare-writer.h"
#include "build.h"
#include "check.h"
#include "image-check.h"
#include "qcow2/write/remap.h"

#define MIB (UINT64_C (1) << 20)

static struct memory_disk disk;
static struct memory_control control;
static struct bare_writer bare;
static unsigned bits;
static uint64_t data_host; /* of the guest's clusters 0 to 3 */

static uint64_t
cluster (uint64_t nr)
{
  return nr << bits;
}

/* Four clusters of data; of a damaged image the fifth is in the L1 table. */
static void
start (unsigned cluster_bits, bool damaged)
{
  static const struct writer_options options;
  struct builder b;
  unsigned i;

  bits = cluster_bits;
  build_start (&b, 3, bits, false, COMPRESSION_DEFLATE, cluster (1000));
  build_l2_place (&b, 0);
  data_host = build_clusters (&b, 4);
  for (i = 0; i < 4; ++i)
    build_entry (&b, i, data_host + cluster (i), 0);
  build_finish (&b);
  if (damaged)
    build_entry (&b, 4, b.l1_offset | QCOW2_ENTRY_COPIED, 0);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  bare_open (&bare, memory_disk_open (&disk, "test", &control), NULL, NULL);
  bare_write (&bare, &options);
  CHECK_OK (writer_begin (bare.writer, (struct guest_off) { 0 },
                          cluster (1000)));
}

static void
end (void)
{
  CHECK_OK (bare_close (&bare));
  image_check_clean ("remap", disk.data, atomic_load (&disk.size));
  memory_disk_free (&disk);
}

static void
begin (struct remap *r, uint64_t first, uint64_t nr)
{
  CHECK_OK (remap_begin (r, bare.writer,
                         (struct guest_off) { cluster (first) },
                         cluster (first + nr)));
}

static uint64_t
bytes_freed (void)
{
  return atomic_load (&bare.writer->writeback.bytes_freed);
}

static struct run
look_up (uint64_t nr)
{
  struct run run = { .kind = RUN_DAMAGED };

  CHECK_OK (map_lookup (qcow2_map (bare.disk),
                        (struct guest_off) { cluster (nr) }, 1, &run));
  return run;
}

/* ----------------------------------------------------------------------- R1 */

static _Atomic bool entered;

static void *
enter_main (void *opaque)
{
  struct remap r;

  (void) opaque;
  remap_enter (&r, bare.writer, (struct guest_off) { cluster (3) + 1 },
               cluster (3) + 2);
  atomic_store (&entered, true);
  remap_abort (&r);
  return NULL;
}

/* Until the other thread waits for its range, or has not waited for it. */
static void
wait_for_waiter (void)
{
  struct inflight *f = &bare.writer->inflight;
  unsigned waiting;

  do {
    pthread_mutex_lock (&f->lock);
    waiting = f->waiting;
    pthread_mutex_unlock (&f->lock);
    sched_yield ();
  } while (waiting == 0 && !atomic_load (&entered));
}

static void
test_one_at_a_time (void)
{
  struct remap r;
  pthread_t thread;

  start (16, false);
  begin (&r, 2, 2);
  pthread_create (&thread, NULL, enter_main, NULL);
  wait_for_waiter ();
  CHECK (!atomic_load (&entered));
  CHECK_OK (remap_end (&r, false));
  pthread_join (thread, NULL);
  CHECK (atomic_load (&entered));
  end ();
}

/* ----------------------------------------------------------------------- R2 */

/* One is unmapped, one is kept as zeros, and one moves. */
static void
test_freed (void)
{
  struct placed p;
  struct remap r;
  struct l2_entry e;
  uint64_t i;

  start (16, false);
  begin (&r, 0, 3);
  for (i = 0; i < 3; ++i) {
    CHECK_OK (remap_entry (&r, i, &e));
    CHECK_EQ (e.host.v, data_host + cluster (i));
  }
  CHECK_OK (remap_take (&r, 2, 1, &p));
  remap_set (&r, 0, HOST_NONE, false, 0, 0);
  remap_set (&r, 1, (struct host_off) { data_host + cluster (1) }, true, 0, 1);
  remap_set (&r, 2, p.host, true, 1, 0);
  CHECK_EQ (bytes_freed (), 0);
  CHECK_EQ (look_up (0).host.v, data_host);
  CHECK_OK (remap_end (&r, true));
  CHECK_EQ (bytes_freed (), 2 * cluster (1));
  CHECK_EQ (look_up (0).kind, RUN_UNALLOCATED);
  CHECK_EQ (look_up (1).kind, RUN_ZERO_ALLOC);
  CHECK_EQ (look_up (2).host.v, p.host.v);
  end ();
}

static void
set_zero (uint64_t nr)
{
  struct remap r;

  begin (&r, nr, 1);
  remap_set (&r, 0, HOST_NONE, false, 0, 1);
  CHECK_OK (remap_end (&r, false));
}

/* ------------------------------------------------------------------- R3, R6 */

/* The last entry points to the L1 table: then no other is changed, either. */
static void
test_metadata (void)
{
  struct remap r;
  uint64_t i;

  start (16, true);
  begin (&r, 3, 2);
  for (i = 0; i < 2; ++i)
    remap_set (&r, i, HOST_NONE, false, 0, 1);
  CHECK_EQ (remap_end (&r, false), (uint64_t) -1);
  CHECK_ERROR (EIO, "data would be taken away that is");
  CHECK_EQ (look_up (3).host.v, data_host + cluster (3));
  CHECK_EQ (bytes_freed (), 0);
  CHECK_EQ (bare_close (&bare), (uint64_t) -1);
  memory_disk_free (&disk);
}

/* I10: after a failure nothing is written, not even that the image is corrupt.
 */
static void
test_corrupt_after_failure (void)
{
  const struct host_off header = { 0 };
  uint64_t calls;

  start (16, false);
  set_zero (0);
  control.fail_errno = EIO;
  control.fail_call = control.calls + 1;
  CHECK_EQ (writer_flush (bare.writer), (uint64_t) -1);
  control.fail_call = 0;
  calls = control.calls;
  CHECK_EQ (writer_check_overlap (bare.writer, header, 1), (uint64_t) -1);
  CHECK_ERROR (EIO, "data would be written over the header");
  CHECK_HAS (error_message (), "nothing is written any more");
  CHECK_EQ (control.calls, calls);
  CHECK_EQ (bare_close (&bare), (uint64_t) -1);
  memory_disk_free (&disk);
  memset (&control, 0, sizeof control);
}

/* ----------------------------------------------------------------------- R5 */

static void
check_range (uint64_t from, uint64_t to, uint64_t end)
{
  struct remap r;

  remap_enter (&r, bare.writer, (struct guest_off) { from }, to);
  CHECK_EQ (r.from.v, from);
  CHECK_EQ (r.to, end);
  CHECK_EQ (r.cluster, from >> bits << bits);
  CHECK_EQ (r.nr, ((end - 1) >> bits) - (from >> bits) + 1);
  remap_abort (&r);
}

static void
test_bounds (void)
{
  start (12, false);
  check_range (0, 1, 1);
  check_range (cluster (511), cluster (600), cluster (512)); /* a table */
  end ();
  start (16, false);
  check_range (0, cluster (900), 16 * MIB);
  check_range (100, cluster (900), 16 * MIB);
  check_range (cluster (500), cluster (900), cluster (512)); /* a slice */
  check_range (cluster (3) + 5, cluster (4) - 5, cluster (4) - 5);
  end ();
  start (21, false);
  check_range (0, cluster (900), 16 * MIB);
  check_range (5, cluster (900), 16 * MIB);
  check_range (cluster (1) - 1, cluster (900), 16 * MIB);
  end ();
}

/* ----------------------------------------------------------------------- R6 */

/* What was taken returns, after a step that is aborted, and after one that has
 * set nothing: the end finds no leak.
 */
static void
test_given_back (void)
{
  struct placed p[3];
  struct host_off host;
  struct remap r;
  unsigned i;

  start (16, false);
  for (i = 0; i < 3; ++i) {
    begin (&r, 5, 1);
    CHECK_OK (remap_take (&r, 0, 1, &p[i]));
    if (i == 1)
      CHECK_OK (remap_end (&r, true));
    else
      remap_abort (&r);
  }
  begin (&r, 6, 1);
  CHECK_OK (remap_take_bytes (&r, 1000, &host));
  remap_abort (&r);
  CHECK_EQ (look_up (5).kind, RUN_UNALLOCATED);
  CHECK_OK (writer_flush (bare.writer));
  end ();
}

/* ------------------------------------------------------ tables to be copied */

/* Have the L1 entry look as if a snapshot had the table as well. */
static void
share_table (void)
{
  const struct map *m = qcow2_map (bare.disk);
  struct map_l1 l1;
  struct change ch = { .nr = 1, .order = CACHE_SECOND };
  uint64_t word;

  CHECK_OK (map_l1_entry (m, (struct guest_off) { 0 }, &l1));
  word = l1.word & ~QCOW2_ENTRY_COPIED;
  ch.slice.v = l1.place.v / m->slice_bytes * m->slice_bytes;
  ch.first = l1.place.v % m->slice_bytes / sizeof word;
  ch.words = &word;
  CHECK_OK (writeback_change (&bare.writer->writeback, &ch, NULL));
}

/* A table is copied as it is now, with changes that are not on the disk yet,
 * and slices that are not in the cache.
 */
static void
test_table_copied (void)
{
  const struct map *m;
  struct map_l1 before, after;

  start (16, false);
  m = qcow2_map (bare.disk);
  set_zero (700);
  CHECK_OK (writer_flush (bare.writer));
  cache_forget_storage (m->cache, m->id);
  set_zero (2);
  share_table ();
  CHECK_OK (map_l1_entry (m, (struct guest_off) { 0 }, &before));
  set_zero (600);
  CHECK_OK (map_l1_entry (m, (struct guest_off) { 0 }, &after));
  CHECK (after.copied && after.table.v != before.table.v);
  CHECK_EQ (look_up (0).host.v, data_host);
  CHECK_EQ (look_up (2).kind, RUN_ZERO_PLAIN);
  CHECK_EQ (look_up (3).host.v, data_host + cluster (3));
  CHECK_EQ (look_up (600).kind, RUN_ZERO_PLAIN);
  CHECK_EQ (look_up (700).kind, RUN_ZERO_PLAIN);
  end ();
}

int
main (void)
{
  check_time_limit (100);
  test_one_at_a_time ();
  test_freed ();
  test_bounds ();
  test_given_back ();
  test_table_copied ();
  test_metadata ();
  test_corrupt_after_failure ();
  return check_result ();
}
