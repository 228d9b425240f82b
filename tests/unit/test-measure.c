/* SPDX-License-Identifier: BSD-3-Clause */

/* manage/measure.c: disks of random runs, copied into images of every kind of
 * clusters; what they need is counted sector by sector.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "manage/measure.h"
#include "random.h"

#define SECTOR 512
#define MAX_SECTORS 20000
#define ROUNDS 2000

static enum run_kind sectors[MAX_SECTORS];
static uint64_t nr_sectors;

static int
lookup (const struct layer *layer, struct guest_off offset, uint64_t max,
        struct run *run)
{
  const uint64_t first = offset.v / SECTOR;
  uint64_t end = first + 1;

  (void) layer;
  while (end < nr_sectors && sectors[end] == sectors[first])
    end++;
  *run = (struct run) { .kind = sectors[first],
                        .length = end * SECTOR - offset.v };
  if (run->length > max)
    run->length = max;
  return 0;
}

static const struct format_ops format = { .name = "runs", .lookup = lookup };
static struct epoch epoch;
static struct shared shared = { .epoch = &epoch };

static void
make_disk (uint64_t *r)
{
  static const enum run_kind kinds[] = {
    RUN_UNALLOCATED, RUN_ZERO_PLAIN, RUN_ZERO_ALLOC, RUN_DATA, RUN_COMPRESSED,
    RUN_DAMAGED,
  };
  const uint64_t longest = UINT64_C (1) << random_below (r, 14);
  uint64_t i, end;

  nr_sectors = 1 + random_below (r, MAX_SECTORS);
  for (i = 0; i < nr_sectors;) {
    const enum run_kind kind =
      kinds[random_below (r, sizeof kinds / sizeof kinds[0])];

    end = i + 1 + random_below (r, longest);
    for (; i < end && i < nr_sectors; ++i)
      sectors[i] = kind;
  }
}

static bool
is_data (uint64_t i)
{
  return sectors[i] == RUN_DATA || sectors[i] == RUN_COMPRESSED ||
    sectors[i] == RUN_DAMAGED;
}

static uint64_t
count_data (uint64_t cluster_size)
{
  const uint64_t per_cluster = cluster_size / SECTOR;
  uint64_t i, nr = 0, last = UINT64_MAX;

  for (i = 0; i < nr_sectors; ++i) {
    if (is_data (i) && i / per_cluster != last) {
      last = i / per_cluster;
      nr++;
    }
  }
  return nr;
}

static uint64_t
divide_up (uint64_t a, uint64_t b)
{
  return (a + b - 1) / b;
}

/* Whether so many clusters are all that the disk and its tables need, and
 * refcounts of all of them.
 */
static void
check_full (const struct create_options *o, uint64_t nr)
{
  const uint64_t guest = divide_up (o->size, o->cluster_size);
  const uint64_t l2 = divide_up (guest * (o->extended_l2 ? 16 : 8),
                                 o->cluster_size);
  const uint64_t blocks = divide_up (nr * o->refcount_bits,
                                     o->cluster_size * 8);

  CHECK_EQ (nr, 1 + guest + l2 + divide_up (l2 * 8, o->cluster_size) +
               blocks + divide_up (blocks * 8, o->cluster_size));
}

static void
measure (uint64_t *r)
{
  struct create_options o = CREATE_DEFAULTS;
  const struct layer disk = { .format = &format, .shared = &shared,
                              .size = nr_sectors * SECTOR };
  struct measure m;

  o.size = disk.size;
  o.cluster_size = UINT64_C (512) << random_below (r, 13);
  o.refcount_bits = 1 << random_below (r, 7);
  o.extended_l2 = o.cluster_size >= 16384 && random_below (r, 2) == 0;
  o.backing = random_below (r, 8) == 0 ? "below" : NULL;
  CHECK_OK (measure_begin (&m, &o));
  CHECK_OK (measure_disk (&m, &disk));
  CHECK_EQ (m.data, o.backing != NULL
               ? divide_up (o.size, o.cluster_size)
               : count_data (o.cluster_size));
  CHECK_EQ (measure_full (&m) - measure_required (&m),
               (divide_up (o.size, o.cluster_size) - m.data) *
               o.cluster_size);
  check_full (&o, measure_full (&m) / o.cluster_size);
  CHECK (!m.has_bitmaps);
}

static void
refuse (struct create_options o, const char *message)
{
  struct measure m;

  CHECK (measure_begin (&m, &o) == -1);
  CHECK_ERROR (EINVAL, message);
}

int
main (void)
{
  struct create_options o = CREATE_DEFAULTS;
  uint64_t r = 17;
  struct measure m;
  unsigned i;

  check_time_limit (100);
  epoch_init (&epoch);
  for (i = 0; i < ROUNDS && !check_any_failed (); ++i) {
    make_disk (&r);
    measure (&r);
  }
  epoch_destroy (&epoch);

  /* The largest that there can be, and beyond. */
  o.size = UINT64_C (1) << 51;
  CHECK_OK (measure_begin (&m, &o));
  check_full (&o, measure_full (&m) / o.cluster_size);
  o.size++;
  refuse (o, "L1 table would be larger");
  o.size = UINT64_MAX;
  refuse (o, "L1 table would be larger");
  o.size = 0;
  o.cluster_size = 3000;
  refuse (o, "cluster size 3000");
  return check_result ();
}
