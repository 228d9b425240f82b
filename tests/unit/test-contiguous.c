/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/alloc.h: alloc_take_contiguous.  Runs of clusters that are longer
 * than a refcount block describes, at every cluster size and refcount width; a
 * power cut after each storage call leaves leaks at most (I3), and a call that
 * fails takes nothing that is used.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "bare-writer.h"
#include "base/bytes.h"
#include "base/error.h"
#include "build.h"
#include "check.h"
#include "image-check.h"
#include "power-cut.h"
#include "qcow2/format.h"

static struct bare_writer bare;
static struct crash_disk disk;
static uint8_t *first_bytes;
static uint64_t first_size;
static char what[80];

static bool free_l2_table; /* says its refcount */

static uint64_t
l2_table (const uint8_t *bytes)
{
  return get_be64 (bytes + get_be64 (bytes + 40)) &
    QCOW2_ENTRY_OFFSET_MASK;
}

/* The refcount of a cluster of 512 bytes, where it has 64 bits. */
static uint8_t *
refcount_of (uint8_t *bytes, uint64_t cluster)
{
  const uint64_t table = get_be64 (bytes + 48);

  return bytes + get_be64 (bytes + table + cluster / 64 * 8) + cluster % 64 * 8;
}

/* An image with some clusters in use and some free ones between. */
static void
start (unsigned bits, unsigned order)
{
  const uint64_t cluster_size = UINT64_C (1) << bits;
  struct builder b;
  unsigned i;

  snprintf (what, sizeof what, "clusters of 2^%u, refcounts of 2^%u bits",
            bits, order);
  build_start (&b, 3, bits, false, COMPRESSION_DEFLATE, 40 * cluster_size);
  build_order (&b, order);
  for (i = 0; i < 10; ++i) {
    build_entry (&b, i, build_data (&b, i + 1), 0);
    if (i % 3 == 0)
      build_data (&b, 0x77);
  }
  build_finish (&b);
  if (free_l2_table)
    put_be64 (refcount_of (b.data, l2_table (b.data) >> bits), 0);
  first_size = b.size;
  first_bytes = malloc (b.size);
  CHECK (first_bytes != NULL);
  memcpy (first_bytes, b.data, b.size);
  crash_disk_init (&disk, b.data, b.size);
  build_free (&b);
  bare_open (&bare, crash_storage_open (&disk, "test"), NULL, NULL);
  bare_write (&bare, &(struct writer_options) { 0 });
  CHECK_OK (writer_begin (bare.writer, (struct guest_off) { 0 }, 1));
}

static void
end (void)
{
  crash_disk_free (&disk);
  free (first_bytes);
}

/* What each power cut during the calls from `from' to `to' leaves. */
static void
check_cuts (uint64_t from, uint64_t to)
{
  struct cut *cut = cut_new (first_bytes, first_size, disk.op, disk.nr);
  struct disk_state state = { 0 };
  uint64_t k;
  unsigned i;

  for (k = from; k <= to; ++k) {
    cut_advance (cut, k);
    for (i = 0; i < 8 + cut_pending (cut); ++i) {
      const struct landed l =
        i == 0 ? (struct landed) { .kind = LANDED_NONE }
        : i == 1 ? (struct landed) { .kind = LANDED_ALL }
        : i < 8 ? (struct landed) { LANDED_TORN, k * 8 + i }
        : (struct landed) { LANDED_ONLY, i - 8 };

      cut_state (cut, l, &state);
      (void) image_check (what, state.bytes, state.size);
    }
  }
  disk_state_free (&state);
  cut_free (cut);
}

static uint64_t
refcount_on_disk (uint64_t cluster)
{
  return image_refcount (disk.bytes, disk.size, cluster);
}

/* All of it is counted once, and nothing that was in use is in it. */
static void
check_taken (const struct alloc_clusters *c, uint64_t nr, unsigned bits)
{
  struct image_refs refs;
  uint64_t i;

  CHECK_EQ (c->nr, nr);
  CHECK (c->host.v + (nr << bits) <= disk.size);
  image_refs_count (&refs, disk.bytes, disk.size);
  for (i = 0; i < nr; ++i) {
    CHECK_EQ (refcount_on_disk ((c->host.v >> bits) + i), 1);
    CHECK_EQ (refs.count[(c->host.v >> bits) + i], 0);
  }
  image_refs_free (&refs);
}

/* They come back as what is given up does. */
static void
give_up (const struct alloc_clusters *c, unsigned bits)
{
  const struct freed old = {
    .host = c->host, .nr = c->nr, .bytes = c->nr << bits,
  };

  CHECK_OK (writeback_free (&bare.writer->writeback, &old, 1));
}

static void
test_run (unsigned bits, unsigned order, uint64_t nr)
{
  struct alloc_clusters c, second;
  uint64_t from;

  start (bits, order);
  from = crash_disk_now (&disk);
  CHECK_OK (alloc_take_contiguous (&bare.writer->alloc, nr, &c));
  CHECK_OK (alloc_take_contiguous (&bare.writer->alloc, 3, &second));
  CHECK (second.host.v + (second.nr << bits) <= c.host.v ||
         c.host.v + (c.nr << bits) <= second.host.v);
  CHECK_OK (writeback_flush (&bare.writer->writeback));
  check_taken (&c, nr, bits);
  check_taken (&second, 3, bits);
  check_cuts (from, crash_disk_now (&disk));
  give_up (&c, bits);
  give_up (&second, bits);
  CHECK_OK (bare_close (&bare));
  image_check_clean (what, disk.bytes, disk.size);
  end ();
}

/* Each call fails in turn: with an error, and the image is sound; where it can
 * go on, nothing is lost but what may leak.
 */
static void
test_failures (unsigned bits, unsigned order, uint64_t nr, int err)
{
  struct alloc_clusters c;
  uint64_t call, leaks;
  bool lost, closed, failed = true;
  int r;

  for (call = 1; failed; ++call) {
    start (bits, order);
    disk.calls = 0;
    disk.failures = 0;
    disk.fault = (struct crash_fault) { .call = call, .err = err };
    r = alloc_take_contiguous (&bare.writer->alloc, nr, &c);
    failed = disk.failures > 0;
    if (r == -1) {
      CHECK (failed);
      CHECK (error_errno () == err || error_errno () == EIO);
    }
    if (r == 0)
      give_up (&c, bits);
    lost = atomic_load (&bare.writer->writeback.lost) > 0;
    closed = bare_close (&bare) == 0;
    leaks = image_check (what, disk.bytes, disk.size).leaks;
    CHECK (err != ENOSPC || !closed || leaks == 0 || lost);
    end ();
  }
  CHECK (call > 3);
}

/* A cluster of metadata is free, says its refcount, and would be a block of those that
 * the run needs: it stays as it is.
 */
static void
test_damaged (void)
{
  struct alloc_clusters c;
  uint64_t table;

  free_l2_table = true;
  start (9, 6);
  free_l2_table = false;
  table = l2_table (first_bytes);
  CHECK_EQ (refcount_on_disk (table >> 9), 0);
  CHECK_EQ (alloc_take_contiguous (&bare.writer->alloc, 200, &c), -1);
  CHECK_ERROR (EIO, "damaged");
  (void) bare_close (&bare);
  CHECK (memcmp (disk.bytes + table, first_bytes + table, 512) == 0);
  end ();
}

/* Reads fail from one on: of what was counted already, too, which has left the cache.
 * Nothing is leaked unnoticed.
 */
static void
test_lost (void)
{
  struct alloc_clusters c;
  unsigned leaked = 0;
  uint64_t call;
  bool lost, failed = true;

  for (call = 1; failed; call += 3) {
    start (9, 6);
    disk.calls = 0;
    disk.failures = 0;
    disk.fault = (struct crash_fault) {
      .call = call, .kinds = FAULT_READ, .forever = true, .err = EIO,
    };
    if (alloc_take_contiguous (&bare.writer->alloc, 40 * 64, &c) == 0)
      give_up (&c, 9);
    failed = disk.failures > 0;
    disk.fault = (struct crash_fault) { 0 };
    lost = atomic_load (&bare.writer->writeback.lost) > 0;
    CHECK_OK (bare_close (&bare));
    if (image_check (what, disk.bytes, disk.size).leaks > 0) {
      CHECK (lost);
      leaked++;
    }
    end ();
  }
  CHECK (leaked > 0);
}

/* How many clusters at the end of the file have no reference. */
static uint64_t
count_unused_tail (void)
{
  struct image_refs refs;
  uint64_t nr = 0;

  image_refs_count (&refs, disk.bytes, disk.size);
  while (nr < refs.nr && refs.count[refs.nr - 1 - nr] == 0)
    nr++;
  image_refs_free (&refs);
  return nr;
}

/* A file that can't grow: what is in reserve is used. */
static void
test_full (void)
{
  struct alloc_clusters c, other;
  uint64_t nr;

  start (12, 4);
  CHECK_OK (alloc_take (&bare.writer->alloc, ALLOC_NO_GUEST, 1, &other));
  CHECK_OK (writeback_flush (&bare.writer->writeback));
  disk.fault = (struct crash_fault) {
    .call = 1, .kinds = FAULT_RESIZE, .forever = true, .err = ENOSPC,
  };
  nr = count_unused_tail ();
  CHECK (nr >= 4 && other.host.v < disk.size - (nr << 12));
  CHECK_EQ (alloc_take_contiguous (&bare.writer->alloc, nr + 1, &c), -1);
  CHECK_EQ (error_errno (), ENOSPC);
  CHECK_OK (alloc_take_contiguous (&bare.writer->alloc, nr, &c));
  disk.fault = (struct crash_fault) { 0 };
  give_up (&c, 12);
  give_up (&other, 12);
  CHECK_OK (bare_close (&bare));
  image_check_clean (what, disk.bytes, disk.size);
  end ();
}

int
main (void)
{
  static const unsigned bits[] = { 9, 10, 12, 16 };
  unsigned i, order;

  for (i = 0; i < sizeof bits / sizeof bits[0]; ++i) {
    for (order = 0; order <= 6; ++order) {
      const uint64_t per_block = UINT64_C (1) << (bits[i] + 3 - order);

      test_run (bits[i], order, 1);
      test_run (bits[i], order, 100);
      /* As long as the run may be in a disk of memory. */
      if (per_block << bits[i] <= 1 << 20) {
        test_run (bits[i], order, per_block);
        test_run (bits[i], order, 5 * per_block / 2 + 7);
      }
    }
  }
  test_run (9, 6, 64 * 64); /* needs a larger refcount table */
  test_failures (9, 6, 200, EIO);
  test_failures (9, 6, 200, ENOSPC);
  test_failures (12, 4, 5, EIO);
  test_damaged ();
  test_lost ();
  test_full ();
  return check_result ();
}
