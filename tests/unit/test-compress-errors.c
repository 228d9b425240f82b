/* SPDX-License-Identifier: BSD-3-Clause */

/* Compressing while each call of the storage fails in turn: a failed request
 * has left what was there or what it was given, nothing that was answered is
 * lost, and clusters are neither leaked nor lost by a storage that works
 * again.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "disk/read.h"
#include "failures.h"
#include "image-check.h"
#include "random.h"
#include "rig.h"
#include "rig-step.h"
#include "seconds.h"

#define CLUSTER UINT64_C (4096)
#define CLUSTERS 64
#define DISK_BYTES (CLUSTERS * CLUSTER)

static struct rig rig;

/* Ordinary clusters, and compressed ones that share host clusters; a snapshot
 * has them, too.
 */
static void
start (bool snapshot)
{
  uint8_t plain[CLUSTER];
  uint64_t state = 1, i;
  struct builder b;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, DISK_BYTES);
  build_l2_place (&b, 0);
  for (i = 0; i < 8; ++i)
    build_entry (&b, i, build_data (&b, i + 1), 0);
  for (; i < 16; ++i) {
    build_pattern (plain, sizeof plain, i);
    build_compressed (&b, i, plain, 10);
  }
  if (snapshot)
    build_snapshot (&b, 100, &state);
  build_finish (&b);
  rig_init (&rig, "failing", &b);
  rig.options.compress_level = 1;
  build_free (&b);
  rig_open (&rig);
  image_detect_zeroes (rig.im, DETECT_ZEROES_ON);
}

static const struct step steps[] = {
  { WRITE, 20 * CLUSTER, 6 * CLUSTER }, /* compressed */
  { FLUSH, 0, 0 },
  { WRITE, 0, 3 * CLUSTER },
  { WRITE, 10 * CLUSTER, 2 * CLUSTER },
  { WRITE, 30 * CLUSTER, CLUSTER / 2 }, /* gathered */
  { WRITE, 30 * CLUSTER + CLUSTER / 2, CLUSTER / 2 },
  { FLUSH, 0, 0 },
  { WRITE, 31 * CLUSTER, CLUSTER / 2 },
  { ZERO, 31 * CLUSTER + CLUSTER / 2, CLUSTER / 2 },
  { TRIM, 20 * CLUSTER, 4 * CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 24 * CLUSTER + 100, 1000 }, /* a part of a compressed one */
  { FUA, 25 * CLUSTER, 2 * CLUSTER },
  { ZERO, 10 * CLUSTER, CLUSTER },
  { WRITE, 40 * CLUSTER, 20 * CLUSTER },
  { FUA, 32 * CLUSTER, CLUSTER / 2 },
  { FUA, 32 * CLUSTER + CLUSTER / 2, CLUSTER / 2 },
  { FLUSH, 0, 0 },
};
#define NR_STEPS (sizeof steps / sizeof steps[0])

/* A sector of a failed request holds what it held, or what it should. */
static void
settle (const struct step *s, uint64_t seed)
{
  uint8_t *wanted = calloc (1, s->count + 1), *is = malloc (s->count + 1);
  uint64_t i;

  if (s->what == WRITE || s->what == FUA)
    build_pattern (wanted, s->count, seed);
  CHECK_OK (layer_read (rig.live, is, s->count,
                        (struct guest_off) { s->offset }));
  for (i = 0; i < s->count; ++i) {
    if (is[i] == rig.content[s->offset + i] || is[i] == wanted[i])
      continue;
    check_failed (__FILE__, __LINE__, "after a failed request byte 0x%" PRIx64
                  " is neither old nor new", s->offset + i);
    break;
  }
  memcpy (rig.content + s->offset, is, s->count);
  free (wanted);
  free (is);
}

static bool
is_stuck_error (void)
{
  return strstr (error_message (), "nothing is written any more") != NULL;
}

static bool
is_stuck (void)
{
  return image_flush (rig.im) == -1 && is_stuck_error ();
}

/* Returns false if the call was never made. */
static bool
run (const struct failure *f, unsigned call, bool snapshot)
{
  bool failed = false, stuck = false;
  unsigned i;

  start (snapshot);
  failure_arm (&rig.control, f, call);
  for (i = 0; i < NR_STEPS; ++i) {
    const int r = rig_try_step (&rig, &steps[i], i + 500);

    if (rig.control.failed > 0) {
      failed = true;
      if (!f->ever_after || i % 4 == 3)
        memory_fail_no_more (&rig.control);
    }
    if (stuck)
      CHECK_EQ (r, -1); /* I10 */
    if (r == 0)
      continue;
    CHECK (error_errno () == EIO || error_errno () == ENOSPC);
    stuck |= is_stuck_error ();
    settle (&steps[i], i + 500);
  }
  memory_fail_no_more (&rig.control);
  rig_compare (&rig);
  if (is_stuck ()) { /* what is on the disk is sound */
    CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
    image_check ("stuck", rig.disk.data, atomic_load (&rig.disk.size));
  }
  else {
    rig_close (&rig); /* without a leak */
    rig_open (&rig);
    rig_compare (&rig);
    rig_close (&rig);
  }
  rig_free (&rig);
  return failed;
}

static void
test_failing_calls (void)
{
  unsigned f, snapshot, call, nr;

  for (f = 0; f < NR_FAILURES; ++f) {
    nr = 0;
    for (snapshot = 0; snapshot < 2; ++snapshot) {
      for (call = 1; run (&failures[f], call, snapshot);
           call += TEST_EACH (7)) {
        nr++;
        if (check_any_failed ()) {
          fprintf (stderr, "kinds 0x%x, errno %d, ever after %d, call %u, "
                   "snapshot %u\n", failures[f].kinds, failures[f].err,
                   failures[f].ever_after, call, snapshot);
          return;
        }
      }
    }
    printf ("kinds 0x%x failed with %s at %u calls\n", failures[f].kinds,
            strerror (failures[f].err), nr);
  }
}

/* Short reads and writes, and interrupted reads, are no failures. */
static void
test_short (void)
{
  unsigned i;

  start (true);
  rig.control.short_writes = 700;
  rig.control.short_reads = 900;
  rig.control.interrupt = 3;
  for (i = 0; i < NR_STEPS; ++i)
    CHECK_OK (rig_try_step (&rig, &steps[i], i + 500));
  CHECK_EQ (rig_kind (&rig, 30 * CLUSTER), RUN_COMPRESSED);
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

/* A full file system: its space ends at each block in turn, while data is
 * written, gathered, and rewritten.  No request that was answered is lost, and
 * once there is room again all goes well.
 */
static void
test_full (void)
{
  uint64_t room;
  unsigned i, failed = 0;

  for (room = 0; room < 40; ++room) {
    start (room % 2 != 0);
    rig.control.room = rig.disk.blocks + room;
    for (i = 0; i < NR_STEPS; ++i) {
      if (rig_try_step (&rig, &steps[i], i + 500) == 0)
        continue;
      CHECK_ERROR (ENOSPC, "No space left");
      settle (&steps[i], i + 500);
      failed++;
    }
    rig_compare (&rig);
    rig.control.room = 0;
    for (i = 0; i < NR_STEPS; ++i)
      CHECK_OK (rig_try_step (&rig, &steps[i], i + 900));
    rig_compare (&rig);
    rig_close (&rig);
    rig_free (&rig);
  }
  CHECK (failed > 40);
}

int
main (void)
{
  check_time_limit (200);
  test_failing_calls ();
  test_short ();
  test_full ();
  return check_result ();
}
