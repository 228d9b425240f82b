/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/write.c and qcow2/write/zero.c: each kind of request on each
 * kind of cluster.
 */

#include <config.h>

#include <stdlib.h>

#include "check.h"
#include "kinds-rig.h"
#include "seconds.h"

enum request {
  WRITE,
  WRITE_FUA,
  ZERO_ALLOCATED,
  ZERO_TRIM,
  ZERO_FUA,
  TRIM,
  NR_REQUESTS,
};

static void
do_request (enum request request, uint64_t offset, uint64_t count)
{
  int r = 0;

  switch (request) {
  case WRITE:
    rig_write (&rig, offset, count, offset + 17);
    return;
  case WRITE_FUA:
    r = rig_try_write (&rig, offset, count, offset + 17, IMAGE_FUA);
    break;
  case ZERO_ALLOCATED:
    rig_zero (&rig, offset, count, 0);
    return;
  case ZERO_TRIM:
    rig_zero (&rig, offset, count, IMAGE_MAY_TRIM);
    return;
  case ZERO_FUA:
    r = rig_try_zero (&rig, offset, count, IMAGE_MAY_TRIM | IMAGE_FUA);
    break;
  case TRIM:
    rig_trim (&rig, offset, count);
    return;
  case NR_REQUESTS:
    abort ();
  }
  CHECK_OK (r);
}

/* Parts of a cluster, and more, from its start; of one of 64 KiB. */
static const struct { int64_t from, to; } parts[] = {
  { 0, 65536 },              /* all of it */
  { 0, 512 }, { 0, 30000 },  /* its head */
  { 65024, 65536 }, { 1, 65536 }, /* its tail */
  { 32768, 36864 },          /* a subcluster, or two */
  { 32769, 36863 }, { 777, 64000 }, /* nothing whole */
  { 40000, 40001 },
  { -32768, 65536 }, { -65536, 98304 }, { -1, 65537 }, /* more */
  { -65536, 131072 },
};
#define NR_PARTS (sizeof parts / sizeof parts[0])

static int64_t
scale (int64_t x)
{
  /* What is one byte off stays so. */
  const int64_t odd = x % 512 < 0 ? x % 512 + 512 : x % 512;
  const int64_t scaled = (x - odd) * (int64_t) cluster_size / 65536;

  return cluster_size == 512 ? scaled + odd / 2 : scaled + odd;
}

static void
test_part (enum request request, unsigned part)
{
  const int64_t from = scale (parts[part].from), to = scale (parts[part].to);
  enum kind kind;

  if (to <= from) { /* clusters are too small */
    rig_close (&rig);
    return;
  }
  for (kind = 0; kind < NR_KINDS; ++kind) {
    do_request (request, kinds_at (kind) + from, to - from);
    if (kind % 3 == 0)
      rig_flush (&rig);
  }
  rig_compare (&rig);
  /* And once more, on what has become of them. */
  for (kind = 0; kind < NR_KINDS; ++kind)
    do_request ((request + 2) % NR_REQUESTS, kinds_at (kind) + from, to - from);
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig); /* compares what is on disk to the model */
  rig_compare (&rig);
  rig_close (&rig);
}

static void
test_all (void)
{
  enum request request;
  unsigned f, part, nr = 0;

  for (f = 0; f < KINDS_FORMS; ++f) {
    for (request = 0; request < NR_REQUESTS; ++request) {
      for (part = 0; part < NR_PARTS && !check_any_failed (); ++part) {
        if (nr++ % TEST_EACH (11) != 0)
          continue;
        kinds_make (&kinds_forms[f], false);
        test_part (request, part);
        if (check_any_failed ())
          fprintf (stderr, "request %d, part %u (%" PRId64 " to %" PRId64
                   ")\n", request, part, scale (parts[part].from),
                   scale (parts[part].to));
        kinds_unmake ();
      }
    }
  }
}

/* The last cluster of the disk, which is not whole, and all of the disk. */
static void
test_tail_by (enum request request)
{
  const uint64_t count[] = { 512, 1, cluster_size, 2 * cluster_size - 1 };
  unsigned i;

  for (i = 0; i < 4; ++i) {
    do_request (request, disk_size - count[i], count[i]);
    do_request ((request + 1) % NR_REQUESTS, disk_size - count[i], count[i]);
    rig_compare_range (&rig, disk_size - 3 * cluster_size, 3 * cluster_size);
  }
  do_request (request, 0, disk_size);
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  rig_close (&rig);
}

static void
test_tail (void)
{
  enum request request;
  unsigned f;

  for (f = 0; f < KINDS_FORMS; ++f) {
    for (request = 0; request < NR_REQUESTS; ++request) {
      kinds_make (&kinds_forms[f], true);
      test_tail_by (request);
      kinds_unmake ();
    }
  }
}

/* What the last host cluster holds past the end of the disk is zeros, not what
 * was in memory.
 */
static void
test_past_end (void)
{
  uint64_t past, host, i;
  unsigned f;

  for (f = 0; f < KINDS_FORMS; ++f) {
    kinds_make (&kinds_forms[f], true);
    past = disk_size % cluster_size;
    rig_write (&rig, disk_size - 5, 5, 1);
    host = rig_host (&rig, disk_size - 1) + 1;
    for (i = host; past != 0 && i < host + cluster_size - past; ++i)
      CHECK_EQ (rig.disk.data[i], 0);
    rig_close (&rig);
    kinds_unmake ();
  }
}

int
main (void)
{
  check_time_limit (300);
  test_past_end ();
  test_tail ();
  test_all ();
  return check_result ();
}
