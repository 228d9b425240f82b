/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/overlap.c: which parts of an image hold metadata (I7). */

#include <config.h>

#include <stdlib.h>

#include "check.h"
#include "qcow2/write/overlap.h"
#include "random.h"
#include "seconds.h"

#define AT(x) ((struct host_off) { x })

static void
test_ranges (void)
{
  struct overlap o;

  overlap_init (&o, 16);
  CHECK_OK (overlap_add_range (&o, AT (0x50000), 24, METADATA_SNAPSHOT_L1));
  CHECK_OK (overlap_add_range (&o, AT (0), 65536, METADATA_HEADER));
  CHECK_OK (overlap_add_range (&o, AT (0x30000), 0x20000, METADATA_L1));
  CHECK_OK (overlap_add_range (&o, AT (0x90000), 0, METADATA_L1));
  CHECK_OK (overlap_sort (&o, "test"));

  CHECK_EQ (overlap_find (&o, AT (0), 1), METADATA_HEADER);
  CHECK_EQ (overlap_find (&o, AT (65535), 1), METADATA_HEADER);
  CHECK_EQ (overlap_find (&o, AT (65536), 0x20000), METADATA_NONE);
  CHECK_EQ (overlap_find (&o, AT (65536), 0x20001), METADATA_L1);
  CHECK_EQ (overlap_find (&o, AT (0x4ffff), 1), METADATA_L1);
  CHECK_EQ (overlap_find (&o, AT (0x50017), 1), METADATA_SNAPSHOT_L1);
  CHECK_EQ (overlap_find (&o, AT (0x5ffff), 1), METADATA_SNAPSHOT_L1);
  CHECK_EQ (overlap_find (&o, AT (0x60000), 1 << 30), METADATA_NONE);
  CHECK_EQ (overlap_find (&o, AT (0x90000), 65536), METADATA_NONE);
  CHECK (overlap_find (&o, AT (0x20000), 0x40000) != METADATA_NONE);
  CHECK_EQ (overlap_find (&o, AT (UINT64_C (1) << 55), 1), METADATA_NONE);
  overlap_destroy (&o);
}

static void
test_ranges_collide (void)
{
  struct overlap o;

  overlap_init (&o, 9);
  CHECK_OK (overlap_add_range (&o, AT (0x1000), 0x1000, METADATA_L1));
  CHECK_OK (overlap_add_range (&o, AT (0x1ff8), 8, METADATA_SNAPSHOT_TABLE));
  CHECK_EQ (overlap_sort (&o, "name"), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "name: damaged: ");
  CHECK_HAS (error_message (), "the snapshot table");
  CHECK_HAS (error_message (), "the L1 table");
  overlap_destroy (&o);
}

static void
test_clusters (void)
{
  struct overlap o;

  overlap_init (&o, 12);
  CHECK_OK (overlap_add_range (&o, AT (0), 4096, METADATA_HEADER));
  CHECK_OK (overlap_sort (&o, "test"));
  CHECK_EQ (overlap_find (&o, AT (4096), 1 << 20), METADATA_NONE);
  overlap_remove (&o, AT (4096), 3); /* nothing is there */
  CHECK_OK (overlap_add (&o, "test", AT (0x5000), 3, METADATA_L2));
  CHECK_EQ (overlap_find (&o, AT (0x4000), 4096), METADATA_NONE);
  CHECK_EQ (overlap_find (&o, AT (0x4000), 4097), METADATA_L2);
  CHECK_EQ (overlap_find (&o, AT (0x4fff), 1), METADATA_NONE);
  CHECK_EQ (overlap_find (&o, AT (0x4fff), 2), METADATA_L2);
  CHECK_EQ (overlap_find (&o, AT (0x7fff), 1), METADATA_L2);
  CHECK_EQ (overlap_find (&o, AT (0x8000), 1 << 20), METADATA_NONE);

  /* All or none. */
  CHECK_EQ (overlap_add (&o, "test", AT (0x3000), 3, METADATA_REFCOUNT_BLOCK),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: a refcount block");
  CHECK_HAS (error_message (), "an L2 table");
  CHECK_EQ (overlap_find (&o, AT (0x3000), 0x2000), METADATA_NONE);
  CHECK_EQ (overlap_add (&o, "test", AT (0), 1, METADATA_L2), (uint64_t) -1);
  CHECK_ERROR (EIO, "the header");

  CHECK_EQ (overlap_add (&o, "test", AT (0x7000), 1, METADATA_L2),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "an L2 table"); /* not even the same kind */
  overlap_remove (&o, AT (0x6000), 1);
  CHECK_EQ (overlap_find (&o, AT (0x6000), 4096), METADATA_NONE);
  CHECK_EQ (overlap_find (&o, AT (0x5fff), 2), METADATA_L2);
  CHECK_OK (overlap_add (&o, "test", AT (0x6000), 1,
                         METADATA_REFCOUNT_BLOCK));
  CHECK_EQ (overlap_find (&o, AT (0x6000), 1), METADATA_REFCOUNT_BLOCK);
  overlap_destroy (&o);
}

/* Clusters of which a multiplication by the golden ratio makes small numbers,
 * which collide in each table that takes the top bits of that: which take no
 * longer than others, since the hash has a key.
 */
#define FLOOD 30000
#define GOLDEN UINT64_C (0x9e3779b97f4a7c15)

static double
seconds_to_add (bool hostile)
{
  uint64_t inverse = GOLDEN, i, nr = 0;
  struct timespec start, end;
  struct overlap o;

  for (i = 0; i < 6; ++i)
    inverse *= 2 - GOLDEN * inverse;
  overlap_init (&o, 9);
  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &start);
  for (i = 1; nr < FLOOD; ++i) {
    const uint64_t cluster = hostile ? i * inverse : mix (i) >> 9;

    if (cluster >> 55 != 0) /* no such offset */
      continue;
    CHECK_OK (overlap_add (&o, "test", AT (cluster << 9), 1, METADATA_L2));
    nr++;
  }
  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &end);
  overlap_destroy (&o);
  return end.tv_sec - start.tv_sec + (end.tv_nsec - start.tv_nsec) / 1e9;
}

static void
test_flood (void)
{
  const double usual = seconds_to_add (false);
  const double hostile = seconds_to_add (true);

  if (hostile > 10 * usual + 0.05)
    check_failed (__FILE__, __LINE__, "clusters that were chosen take %g s, "
                  "others %g s", hostile, usual);
}

static void
test_names (void)
{
  enum metadata kind;

  for (kind = METADATA_NONE; kind <= METADATA_SNAPSHOT_L1; ++kind)
    CHECK (overlap_name (kind)[0] != '\0');
}

/* Clusters that come and go, against a plain array. */
#define CLUSTERS 700

static void
test_random (void)
{
  enum metadata kind[CLUSTERS] = { 0 };
  uint64_t state = 3;
  struct overlap o;
  unsigned round, i;

  overlap_init (&o, 21);
  for (round = 0; round < 30000; ++round) {
    const uint64_t c = random_below (&state, CLUSTERS);
    const uint64_t n = 1 + random_below (&state, 4);
    const uint64_t nr = n < CLUSTERS - c ? n : CLUSTERS - c;
    const enum metadata new = random_below (&state, 2) ? METADATA_L2
      : METADATA_REFCOUNT_BLOCK;
    enum metadata expected = METADATA_NONE;

    for (i = 0; i < nr; ++i) {
      if (expected == METADATA_NONE)
        expected = kind[c + i];
    }
    CHECK_EQ (overlap_find (&o, AT (c << 21), nr << 21), expected);
    if (random_below (&state, 2)) {
      CHECK_EQ (overlap_add (&o, "test", AT (c << 21), nr, new),
                expected != METADATA_NONE ? (uint64_t) -1 : 0);
      for (i = 0; i < nr && expected == METADATA_NONE; ++i)
        kind[c + i] = new;
    }
    else {
      overlap_remove (&o, AT (c << 21), nr);
      for (i = 0; i < nr; ++i)
        kind[c + i] = METADATA_NONE;
    }
  }
  overlap_destroy (&o);
}

/* Lookups take no lock: what is there all the time is found, and what was
 * never there is not, while others come and go and the table grows.
 */
struct race {
  struct overlap o;
  _Atomic bool stop;
  _Atomic uint64_t finds;
};

#define STEADY UINT64_C (0x100)   /* and each 256th that follows */
#define NEVER UINT64_C (0x101)
#define CHANGING UINT64_C (0x102)

static void *
find_main (void *opaque)
{
  struct race *r = opaque;
  uint64_t i = 0;

  for (; !r->stop; ++i) {
    const uint64_t base = i % 50 * 256;

    CHECK_EQ (overlap_find (&r->o, AT ((base + STEADY) << 9), 512),
              METADATA_L2);
    CHECK_EQ (overlap_find (&r->o, AT ((base + NEVER) << 9), 512),
              METADATA_NONE);
    overlap_find (&r->o, AT ((base + CHANGING) << 9), 40 << 9);
  }
  r->finds += i;
  return NULL;
}

static void
test_threads (void)
{
  const double until = seconds () + test_seconds (1);
  static struct race r;
  pthread_t thread[3];
  uint64_t i, more = 0;

  overlap_init (&r.o, 9);
  for (i = 0; i < 50; ++i)
    CHECK_OK (overlap_add (&r.o, "test", AT ((i * 256 + STEADY) << 9), 1,
                           METADATA_L2));
  for (i = 0; i < 3; ++i)
    pthread_create (&thread[i], NULL, find_main, &r);
  for (i = 0; seconds () < until; ++i) {
    const uint64_t c = i % 2000 + CHANGING + i % 2000 / 200 * 56;

    if (c % 256 < 2)
      continue;
    CHECK_OK (overlap_add (&r.o, "test", AT (c << 9), 1,
                           METADATA_REFCOUNT_BLOCK));
    if (i % 3 == 0 && more < 3000) /* stays, so that the table grows */
      CHECK_OK (overlap_add (&r.o, "test", AT ((100000 + ++more) << 9), 1,
                             METADATA_L2));
    overlap_remove (&r.o, AT (c << 9), 1);
  }
  r.stop = true;
  for (i = 0; i < 3; ++i)
    pthread_join (thread[i], NULL);
  printf ("%" PRIu64 " lookups\n", r.finds);
  overlap_destroy (&r.o);
}

/* A range that is removed is data like any other, and what follows it stays. */
static void
test_remove_range (void)
{
  struct overlap o;

  overlap_init (&o, 9);
  CHECK_OK (overlap_add_range (&o, AT (0x1000), 0x400, METADATA_SNAPSHOT_L1));
  CHECK_OK (overlap_add_range (&o, AT (0x1400), 0x200, METADATA_L1));
  CHECK_OK (overlap_sort (&o, "test"));
  CHECK_EQ (overlap_add (&o, "test", AT (0x1200), 1, METADATA_L2),
            (uint64_t) -1);
  overlap_remove_range (&o, AT (0x1000));
  CHECK_EQ (overlap_find (&o, AT (0x1000), 0x400), METADATA_NONE);
  CHECK_EQ (overlap_find (&o, AT (0x1000), 0x401), METADATA_L1);
  CHECK_OK (overlap_add (&o, "test", AT (0x1200), 1, METADATA_L2));
  CHECK_EQ (overlap_find (&o, AT (0x1000), 0x400), METADATA_L2);
  overlap_destroy (&o);
}

/* What comes and goes leaves nothing behind: the table does not grow by it. */
static void
test_come_and_go (void)
{
  struct overlap o;
  uint64_t live[16] = { 0 }, i;
  const struct overlap_table *table = NULL;
  unsigned tables = 0;

  overlap_init (&o, 9);
  CHECK_OK (overlap_add (&o, "test", AT (512), 1, METADATA_L2));
  for (i = 0; i < 200000; ++i) {
    uint64_t *l = &live[i % 16];

    if (*l != 0)
      overlap_remove (&o, AT (*l), 1);
    *l = (2 + i) << 9;
    CHECK_OK (overlap_add (&o, "test", AT (*l), 1, METADATA_L2));
    tables += o.table != table;
    table = o.table;
  }
  CHECK (tables <= 2);
  for (i = 0; i < 16; ++i)
    CHECK_EQ (overlap_find (&o, AT (live[i]), 1), METADATA_L2);
  overlap_destroy (&o);
}

int
main (void)
{
  check_time_limit (100 + test_seconds (1));
  test_ranges ();
  test_ranges_collide ();
  test_clusters ();
  test_flood ();
  test_remove_range ();
  test_come_and_go ();
  test_names ();
  test_random ();
  test_threads ();
  return check_result ();
}
