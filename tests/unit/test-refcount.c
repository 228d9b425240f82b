/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/refcount.c: refcounts of all widths, and the growth of their
 * tables.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "image-check.h"
#include "qcow2/entry.h"
#include "qcow2/write/refcount.h"
#include "random.h"

#define MAX_CLUSTERS 40000

static struct memory_disk disk;
static struct memory_control control;
static struct storage *storage;
static struct cache *cache;
static struct epoch epoch;
static struct writeback writeback;
static struct overlap overlap;
static struct refcounts refcounts;
static struct header header;
static char what[64];

/* What they should be; those of the growth's own clusters are found in the
 * image.
 */
static uint64_t model[MAX_CLUSTERS];

static uint64_t
size_now (void)
{
  return atomic_load (&disk.size);
}

static void
start (unsigned bits, unsigned order, unsigned more)
{
  const uint64_t cluster_size = UINT64_C (1) << bits;
  struct builder b;
  unsigned i;

  snprintf (what, sizeof what, "clusters of 2^%u, refcounts of 2^%u bits",
            bits, order);
  build_start (&b, 3, bits, false, COMPRESSION_DEFLATE, 20 * cluster_size);
  build_order (&b, order);
  for (i = 0; i < more; ++i)
    build_entry (&b, i, build_data (&b, i + 1), 0);
  build_finish (&b);
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  CHECK_OK (header_decode ("test", disk.data, cluster_size, size_now (),
                           &header));
  storage = memory_disk_open (&disk, "test", &control);
  cache = cache_new (1 << 20);
  epoch_init (&epoch);
  CHECK_OK (writeback_init (&writeback, storage, storage, cache, 0,
                            bits < 12 ? 1U << bits : CACHE_SLOT_BYTES, bits,
                            &epoch));
  overlap_init (&overlap, bits);
  CHECK_OK (overlap_sort (&overlap, "test"));
  CHECK_OK (refcounts_init (&refcounts, &header, &writeback, &overlap));
}

static void
end (void)
{
  overlap_destroy (&overlap);
  writeback_destroy (&writeback);
  epoch_destroy (&epoch);
  cache_free (cache);
  storage_close (storage);
  memory_disk_free (&disk);
}

static uint64_t
stored (uint64_t cluster)
{
  return image_refcount (disk.data, size_now (), cluster);
}

static uint64_t
refcount_of (uint64_t cluster)
{
  uint64_t refcount = 77, nr;

  CHECK_OK (refcount_run (&refcounts, cluster, 1, &refcount, &nr));
  CHECK_EQ (nr, 1);
  return refcount;
}

/* ------------------------------------------------------------ runs and sets */

static uint64_t
some_refcount (uint64_t *state, unsigned order)
{
  const uint64_t max = entry_refcount_max (order);

  switch (random_below (state, 4)) {
  case 0: return 0;
  case 1: return max;
  case 2: return 1;
  default: return random_next (state) & max;
  }
}

/* A run: all of it has this refcount, and it lies within max. */
static void
check_run (uint64_t cluster, uint64_t max, uint64_t limit)
{
  uint64_t refcount, nr, i;

  CHECK_OK (refcount_run (&refcounts, cluster, max, &refcount, &nr));
  CHECK (nr >= 1 && nr <= max);
  for (i = 0; i < nr && cluster + i < limit; ++i)
    CHECK_EQ (model[cluster + i], refcount);
}

static void
check_first_free (uint64_t cluster, uint64_t nr)
{
  uint64_t first = 77, expected = cluster;

  while (expected < cluster + nr && model[expected] != 0)
    expected++;
  CHECK_OK (refcount_first_free (&refcounts, cluster, nr, &first));
  CHECK_EQ (first, expected);
}

static void
test_runs (unsigned bits, unsigned order)
{
  uint64_t state = bits * 10 + order, limit, i, round;

  start (bits, order, 3);
  limit = (UINT64_C (1) << (bits + 3)) >> order; /* one block */
  if (limit > 5000)
    limit = 5000;
  for (i = 0; i < limit; ++i) {
    model[i] = refcount_of (i);
    CHECK_EQ (model[i], stored (i));
  }
  for (round = 0; round < 300; ++round) {
    const uint64_t at = random_below (&state, limit);
    const uint64_t nr = 1 + random_below (&state, limit - at);
    const uint64_t value = some_refcount (&state, order);

    switch (random_below (&state, 8)) {
    case 0:
      CHECK_OK (writeback_flush (&writeback));
      break;
    case 1: case 2: case 3: {
      const uint64_t few = nr < 70 ? nr : 70;

      CHECK_OK (refcount_set (&refcounts, at, few, value, NULL));
      for (i = at; i < at + few; ++i)
        model[i] = value;
      break;
    }
    default:
      check_run (at, nr, limit);
      check_first_free (at, nr);
    }
  }
  CHECK_OK (writeback_flush (&writeback));
  for (i = 0; i < limit; ++i) {
    CHECK_EQ (stored (i), model[i]);
    CHECK_EQ (refcount_of (i), model[i]);
  }
  /* What no block is for is 0. */
  check_run (limit * 1000, 100000, 0);
  CHECK_EQ (refcount_of (limit * 1000), 0);
  model[0] = 1;
  for (i = 1; i < limit; ++i) /* several slices */
    model[i] = i < limit - 1;
  CHECK_OK (refcount_set (&refcounts, 0, limit, 1, NULL));
  check_first_free (0, limit - 1);
  CHECK_OK (refcount_set (&refcounts, limit - 1, 1, 0, NULL));
  check_first_free (0, limit);
  if (check_any_failed ())
    fprintf (stderr, "%s\n", what);
  end ();
}

/* Which batch a change is in. */
static void
test_batch (void)
{
  uint64_t batch = 0;

  start (16, 4, 1);
  CHECK_OK (refcount_set (&refcounts, 100, 5000, 1, &batch));
  CHECK (batch > 0);
  CHECK (!writeback_is_durable (&writeback, batch));
  CHECK_EQ (stored (100), 0);
  CHECK_OK (writeback_flush (&writeback));
  CHECK (writeback_is_durable (&writeback, batch));
  CHECK_EQ (stored (100), 1);
  CHECK_EQ (stored (5099), 1);
  CHECK_EQ (stored (5100), 0);
  end ();
}

/* ------------------------------------------------------------------ growth */

/* Take free clusters, `many' at a time, and see that nobody has them.
 * Returns false if there is no space, say.
 */
static bool
take (uint64_t many, uint64_t *taken)
{
  uint64_t cluster, nr, i;

  if (refcount_find_free (&refcounts, many, &cluster, &nr) == -1)
    return false;
  CHECK (nr >= 1 && nr <= many);
  for (i = 0; i < nr; ++i) {
    CHECK_EQ (model[cluster + i], 0);
    model[cluster + i] = 1;
    CHECK_EQ (overlap_find (&overlap, (struct host_off) {
          (cluster + i) << header.cluster_bits }, 1), METADATA_NONE);
  }
  if (refcount_set (&refcounts, cluster, nr, 1, NULL) == -1) {
    for (i = 0; i < nr; ++i)
      model[cluster + i] = 0;
    return false;
  }
  *taken += nr;
  return true;
}

/* All that is taken counts as leaked, and else all is right. */
static void
check_image (uint64_t taken, uint64_t old_tables)
{
  struct image_check c;

  CHECK_OK (writeback_flush (&writeback));
  /* The taken ones may lie past the end. */
  c = image_check (what, disk.data, size_now ());
  if (c.leaks != taken + old_tables)
    check_failed (__FILE__, __LINE__, "%s: %" PRIu64 " clusters are in use "
                  "that were not taken", what, c.leaks - taken - old_tables);
}

/* The clusters of the tables that were replaced, which are given up. */
static uint64_t
count_old_tables (void)
{
  struct freed_list *l;
  uint64_t nr = 0;
  size_t i;

  while ((l = writeback_next_freed (&writeback)) != NULL) {
    for (i = 0; i < l->nr; ++i) {
      CHECK (l->freed[i].is_table);
      nr += l->freed[i].nr;
      CHECK_EQ (refcount_of (l->freed[i].host.v >> header.cluster_bits), 1);
    }
    writeback_free_list (&writeback, l);
  }
  return nr;
}

/* How many clusters the refcount table of one cluster can count. */
static uint64_t
table_reach (unsigned bits, unsigned order)
{
  return (UINT64_C (1) << (bits - 3)) * (UINT64_C (1) << (bits + 3 - order));
}

static void
test_growth (unsigned bits, unsigned order)
{
  uint64_t taken = 0, enough = 2 * table_reach (bits, order) + 100, round = 0;

  if (enough > MAX_CLUSTERS / 2)
    enough = MAX_CLUSTERS / 2;
  if (enough > MEMORY_DISK_MAX / 2 >> bits)
    enough = MEMORY_DISK_MAX / 2 >> bits;
  memset (model, 0, sizeof model);
  start (bits, order, 5);
  for (uint64_t i = 0; i < size_now () >> bits; ++i)
    model[i] = stored (i);
  while (taken < enough && round++ < MAX_CLUSTERS) {
    if (!take (1 + round % 50, &taken)) {
      check_failed (__FILE__, __LINE__, "%s: %s", what, error_message ());
      break;
    }
  }
  CHECK (refcounts.table_clusters > 1 ||
         enough < table_reach (bits, order));
  CHECK_OK (writeback_flush (&writeback));
  check_image (taken, count_old_tables ());
  if (check_any_failed ())
    fprintf (stderr, "%s\n", what);
  end ();
}

/* What points to something new is written after that is durable: the entry of
 * a block, and the header's of a table.
 */
static struct memory_log call_log = MEMORY_LOG_INIT;

static bool
is_call (size_t i, unsigned kind, uint64_t count)
{
  return i < call_log.nr && call_log.call[i].kind == kind &&
    (kind != MEMORY_WRITE || call_log.call[i].count == count);
}

static void
check_barriers (uint64_t cluster_size, unsigned *blocks, unsigned *tables)
{
  size_t i, flushed = 0;

  for (i = 0; i < call_log.nr; ++i) {
    const struct memory_call *c = &call_log.call[i];

    if (c->kind == MEMORY_FLUSH)
      flushed = i + 1;
    else if (is_call (i, MEMORY_WRITE, HEADER_REFCOUNT_TABLE_BYTES)) {
      CHECK_EQ (flushed, i); /* all before it is durable ... */
      CHECK (is_call (i + 1, MEMORY_FLUSH, 0)); /* ... and then it is */
      ++*tables;
    }
    else if (is_call (i, MEMORY_WRITE, cluster_size) && cluster_size > 512 &&
             is_call (i + 1, MEMORY_FLUSH, 0))
      ++*blocks;
  }
}

static void
test_barriers (void)
{
  const unsigned bits = 10, order = 6;
  uint64_t taken = 0, before;
  unsigned blocks = 0, tables = 0, added = 0;

  memset (model, 0, sizeof model);
  start (bits, order, 5);
  for (uint64_t i = 0; i < size_now () >> bits; ++i)
    model[i] = stored (i);
  control.log = &call_log;
  while (taken < table_reach (bits, order) + 2000) {
    before = control.writes;
    memory_log_clear (&call_log);
    CHECK (take (100, &taken));
    check_barriers (UINT64_C (1) << bits, &blocks, &tables);
    added += control.writes != before;
  }
  CHECK_EQ (tables, 1);
  CHECK (added > 100);
  CHECK (blocks >= added - tables);
  memory_log_free (&call_log);
  control.log = NULL;
  end ();
}

/* Those that are given back are found again, the first one first. */
static void
test_first_free (void)
{
  uint64_t taken = 0, cluster, nr, size;

  memset (model, 0, sizeof model);
  start (9, 4, 5);
  for (uint64_t i = 0; i < size_now () >> 9; ++i)
    model[i] = stored (i);
  while (taken < 2000)
    CHECK (take (100, &taken));
  size = size_now ();
  CHECK_OK (refcount_set (&refcounts, 1500, 10, 0, NULL));
  CHECK_OK (refcount_set (&refcounts, 100, 2, 0, NULL));
  CHECK_OK (refcount_find_free (&refcounts, 5, &cluster, &nr));
  CHECK_EQ (cluster, 100);
  CHECK_EQ (nr, 2);
  CHECK_OK (refcount_set (&refcounts, 100, 2, 1, NULL));
  CHECK_OK (refcount_find_free (&refcounts, 5, &cluster, &nr));
  CHECK_EQ (cluster, 1500);
  CHECK_EQ (nr, 5);
  CHECK_EQ (size_now (), size);
  end ();
}

/* Each call that changes the storage fails in turn, for want of space: then
 * all goes on as if nothing had been, once there is some; nothing is lost but
 * leaks.  Or with EIO: what is on the disk is sound.
 */
static bool
run_failing (unsigned kinds, unsigned call, int err)
{
  const unsigned bits = 9, order = 6;
  uint64_t taken = 0, tables;
  bool failed = false, done;
  struct image_check c;

  memset (model, 0, sizeof model);
  start (bits, order, 5);
  for (uint64_t i = 0; i < size_now () >> bits; ++i)
    model[i] = stored (i);
  while (taken < table_reach (bits, order) - 150)
    CHECK (take (100, &taken));
  CHECK_OK (writeback_flush (&writeback));
  memory_fail (&control, kinds, call, err);
  while (taken < table_reach (bits, order) + 200) {
    done = take (100, &taken);
    failed |= !done;
    if (!done && writeback_check (&writeback) == -1)
      break;
    if (!done && err == ENOSPC) {
      CHECK_EQ (error_errno (), ENOSPC);
      memory_fail_no_more (&control);
    }
  }
  failed |= writeback_flush (&writeback) == -1;
  memory_fail_no_more (&control);
  if (writeback_check (&writeback) == 0) {
    CHECK_OK (writeback_flush (&writeback));
    tables = count_old_tables ();
    c = image_check (what, disk.data, size_now ());
    CHECK (c.leaks >= taken + tables);
    CHECK (c.leaks <= taken + tables + 20);
  }
  else {
    CHECK_ERROR (EIO, "nothing is written any more");
    image_check (what, disk.data, size_now ());
  }
  end ();
  return failed;
}

static void
test_failures (void)
{
  static const struct { unsigned kinds; int err; } failure[] = {
    { MEMORY_WRITE, ENOSPC },
    { MEMORY_WRITE, EIO },
    { MEMORY_FLUSH, EIO },
    { MEMORY_RESIZE, ENOSPC },
    { MEMORY_RESIZE, EIO },
    { MEMORY_ALLOCATE, ENOSPC },
    { MEMORY_READ, EIO },
  };
  unsigned i, call;

  for (i = 0; i < sizeof failure / sizeof failure[0]; ++i) {
    for (call = 1; run_failing (failure[i].kinds, call, failure[i].err);
         ++call) {
      if (check_any_failed ()) {
        fprintf (stderr, "kinds 0x%x, call %u, %s\n", failure[i].kinds, call,
                 strerror (failure[i].err));
        return;
      }
    }
    printf ("kinds 0x%x: %u calls failed with %s\n", failure[i].kinds,
            call - 1, strerror (failure[i].err));
  }
}

/* Entries of the table that can't be. */
static void
test_damage (void)
{
  static const struct { uint64_t word; const char *why; } damage[] = {
    { 0x10200, "not a multiple of the cluster size" },
    { UINT64_C (1) << 60, "beyond the end of the file" },
  };
  struct refcounts r;
  struct overlap o;
  unsigned i;

  for (i = 0; i < 2; ++i) {
    start (12, 4, 5);
    cache_forget (cache, 0, header.refcount_table_offset, 4096, 4096);
    put_be64 (disk.data + header.refcount_table_offset.v + 800,
              damage[i].word);
    overlap_init (&o, 12);
    CHECK_OK (overlap_sort (&o, "test"));
    CHECK_EQ (refcounts_init (&r, &header, &writeback, &o), (uint64_t) -1);
    CHECK_ERROR (EIO, damage[i].why);
    CHECK_HAS (error_message (), "refcount table entry");
    overlap_destroy (&o);
    end ();
  }
  /* A block that is where the refcount table is. */
  start (12, 4, 5);
  cache_forget (cache, 0, header.refcount_table_offset, 4096, 4096);
  put_be64 (disk.data + header.refcount_table_offset.v + 800,
            header.refcount_table_offset.v);
  overlap_init (&o, 12);
  CHECK_OK (overlap_sort (&o, "test"));
  CHECK_EQ (refcounts_init (&r, &header, &writeback, &o), (uint64_t) -1);
  CHECK_ERROR (EIO, "overlaps the refcount table");
  overlap_destroy (&o);
  end ();
}

int
main (void)
{
  static const unsigned cluster_bits[] = { 9, 10, 12, 16 };
  unsigned i, order;

  check_time_limit (200);
  for (i = 0; i < sizeof cluster_bits / sizeof cluster_bits[0]; ++i) {
    for (order = 0; order <= QCOW2_MAX_REFCOUNT_ORDER; ++order) {
      test_runs (cluster_bits[i], order);
      test_growth (cluster_bits[i], order);
    }
  }
  test_runs (21, 4);
  test_batch ();
  test_barriers ();
  test_first_free ();
  test_failures ();
  test_damage ();
  return check_result ();
}
