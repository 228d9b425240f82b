/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing where something goes wrong: full disks, failing calls; and the header's
 * feature bits.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "errors-rig.h"
#include "failures.h"
#include "image-check.h"
#include "random.h"
#include "rig-step.h"
#include "seconds.h"

/* ------------------------------------------------------------ feature bits */

static void
test_autoclear (void)
{
  struct builder b;

  errors_build (&b, NO_SNAPSHOT, false);
  put_be64 (b.data + 88, UINT64_C (0x8000000000000100)); /* not known */
  errors_start_built (&b, false);
  CHECK_EQ (rig.control.writes, 0); /* I8: not by opening it */
  CHECK_OK (image_flush (rig.im));
  rig_close (&rig);
  CHECK_EQ (rig.control.writes, 0);
  CHECK_EQ (errors_on_disk (88), UINT64_C (0x8000000000000100));

  rig_open (&rig);
  rig_zero (&rig, 24 * CLUSTER, CLUSTER, IMAGE_MAY_TRIM | IMAGE_FAST);
  rig_write (&rig, 0, 1, 1);
  CHECK_EQ (errors_on_disk (88), 0);
  CHECK (rig.control.flushes >= 1); /* durably, before anything else */
  errors_end ();
}

static struct memory_log call_log = MEMORY_LOG_INIT;

static void
test_lazy_refcounts (void)
{
  struct builder b;
  size_t last, i;

  errors_build (&b, NO_SNAPSHOT, false);
  put_be64 (b.data + 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
  errors_start_built (&b, false);
  rig_close (&rig);
  CHECK_EQ (rig.control.writes, 0);

  rig_open (&rig);
  rig.control.log = &call_log;
  rig_write (&rig, 50 * CLUSTER, 1, 1);
  rig.control.log = NULL;
  CHECK_EQ (errors_on_disk (72), QCOW2_INCOMPAT_DIRTY);
  CHECK_EQ (call_log.call[0].kind, MEMORY_WRITE); /* the header ... */
  CHECK (call_log.call[0].offset < 512);
  CHECK_EQ (call_log.call[1].kind, MEMORY_FLUSH); /* ... durably */
  errors_check_refused ("marked as dirty");

  /* It is cleared when all else is durable. */
  memory_log_clear (&call_log);
  rig.control.log = &call_log;
  errors_end (); /* which wants it to be cleared */
  last = call_log.nr - 1;
  CHECK_EQ (call_log.call[last].kind, MEMORY_FLUSH);
  CHECK_EQ (call_log.call[last - 1].kind, MEMORY_WRITE);
  CHECK (call_log.call[last - 1].offset < 512);
  for (i = last - 1; i > 0 && call_log.call[i - 1].kind != MEMORY_FLUSH; --i)
    CHECK (call_log.call[i - 1].kind != MEMORY_WRITE);
  CHECK (i > 0);
  memory_log_free (&call_log);
}

static void
test_version_2 (void)
{
  struct builder b;

  build_start (&b, 2, 12, false, COMPRESSION_DEFLATE, DISK_BYTES);
  build_finish (&b);
  put_be64 (b.data + 72, UINT64_C (0xdeadbeef00000008)); /* an extension */
  rig_init (&rig, "v2", &b);
  rig_open (&rig);
  rig_write (&rig, 50 * CLUSTER, 1, 1);
  rig_flush (&rig);
  CHECK (memcmp (rig.disk.data, b.data, 40) == 0);
  CHECK (memcmp (rig.disk.data + 72, b.data + 72, 440) == 0);
  build_free (&b);
  errors_end ();
}

/* -------------------------------------------------------------- no space */

/* A full file system: what was written stays, requests fail with ENOSPC, and
 * once something is given up writing goes on.
 */
static void
test_full (bool backing)
{
  uint64_t i, failed = 0;

  errors_start (NO_SNAPSHOT, backing);
  rig.control.room = rig.disk.blocks + 20;
  for (i = 28; i < CLUSTERS; ++i) {
    if (rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0) == -1) {
      CHECK_ERROR (ENOSPC, "No space left");
      failed++;
    }
    if (i % 7 == 0 && image_flush (rig.im) == -1)
      CHECK_ERROR (ENOSPC, "No space left");
  }
  CHECK (failed > 10 && failed < 70);
  rig_compare (&rig);

  /* Overwriting still goes well. */
  rig_write (&rig, 0, 10 * CLUSTER, 99);
  rig_compare (&rig);

  /* Room is made by trimming; the next write finds it, even without a
   * flush.
   */
  rig_trim (&rig, 0, 16 * CLUSTER);
  for (i = 60; i < 70; ++i)
    rig_write (&rig, i * CLUSTER, CLUSTER, i + 1000);
  rig_flush (&rig);
  rig_compare (&rig);

  /* Or from outside. */
  while (i < CLUSTERS && rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0) == 0)
    i++;
  rig.control.room = 0;
  for (i = 0; i < CLUSTERS; ++i)
    rig_write (&rig, i * CLUSTER, CLUSTER, i + 2000);
  rig_flush (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  errors_end ();
}

/* It is closed while it is full. */
static void
test_close_full (void)
{
  uint64_t i, room;

  for (room = 0; room < 12; ++room) {
    errors_start (NO_SNAPSHOT, false);
    rig.control.room = rig.disk.blocks + room;
    for (i = 28; i < CLUSTERS; ++i)
      (void) rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0);
    rig_trim (&rig, 3 * CLUSTER, 2 * CLUSTER);
    (void) rig_close_only (&rig); /* it can't always do all */
    image_check ("closed while full", rig.disk.data,
                 atomic_load (&rig.disk.size));
    rig.control.room = 0;
    rig_open (&rig);
    rig_compare (&rig);
    (void) rig_close_only (&rig);
    rig_free (&rig);
  }
}

/* A block device of the image's size. */
static void
test_fixed_size (void)
{
  struct builder b;
  uint64_t i, failed = 0, size;

  errors_build (&b, NO_SNAPSHOT, false);
  errors_start_built (&b, false);
  (void) rig_close_only (&rig);
  size = atomic_load (&rig.disk.size) + 30 * CLUSTER;
  atomic_store (&rig.disk.size, size);
  rig.control.fixed = true;
  rig_open (&rig);
  for (i = 28; i < CLUSTERS; ++i) {
    if (rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0) == -1) {
      CHECK_ERROR (ENOSPC, "");
      failed++;
    }
  }
  CHECK (failed > 35 && failed < 50);
  rig_flush (&rig);
  rig_compare (&rig);
  rig_trim (&rig, 0, 20 * CLUSTER);
  for (i = 0; i < 15; ++i)
    rig_write (&rig, i * CLUSTER, CLUSTER, i + 50);
  rig_compare (&rig);
  CHECK_EQ (atomic_load (&rig.disk.size), size);
  errors_end ();
}

/* ------------------------------------------------------------ failing calls */

/* A sector of a failed request holds what it held, or what it should. */
static void
settle (uint64_t offset, uint64_t count, const uint8_t *wanted)
{
  uint8_t *is = malloc (count);
  uint64_t i, n;

  CHECK_OK (layer_read (rig.live, is, count, (struct guest_off) { offset }));
  for (i = 0; i < count; i += n) {
    n = 512 - (offset + i) % 512;
    if (n > count - i)
      n = count - i;
    if (memcmp (is + i, rig.content + offset + i, n) != 0 &&
        memcmp (is + i, wanted + i, n) != 0) {
      check_failed (__FILE__, __LINE__, "after a failed request byte 0x%"
                    PRIx64 " is neither old nor new", offset + i);
      break;
    }
  }
  memcpy (rig.content + offset, is, count);
  free (is);
}

static const struct step steps[] = {
  { WRITE, 0, CLUSTER },
  { WRITE, 30 * CLUSTER + 100, 700 },
  { WRITE, 40 * CLUSTER, 3 * CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 20 * CLUSTER + 5, 10 },
  { ZERO, 3 * CLUSTER + 10, 5 * CLUSTER },
  { TRIM, 10 * CLUSTER, 2 * CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 22 * CLUSTER, 40 * CLUSTER },
  { ZERO_TRIM, 13 * CLUSTER + 1, 3 * CLUSTER },
  { FUA, 3 * CLUSTER + 100, 100 },
  { FUA, 60 * CLUSTER, CLUSTER + 1 },
  { FLUSH, 0, 0 },
  { TRIM, 35 * CLUSTER, 20 * CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 64 * CLUSTER, 36 * CLUSTER },
  { FLUSH, 0, 0 },
};

static void
check_failed_step (const struct step *s, uint64_t seed)
{
  uint8_t *wanted = calloc (1, s->count + 1);

  CHECK (error_errno () == EIO || error_errno () == ENOSPC);
  CHECK (error_message ()[0] != '\0');
  if (s->what == WRITE || s->what == FUA)
    build_pattern (wanted, s->count, seed);
  settle (s->offset, s->count, wanted);
  free (wanted);
}

/* Returns false if the call was never made. */
static bool
run (const struct failure *f, unsigned call, enum sharing snapshot,
     bool backing)
{
  bool failed = false, stuck = false;
  unsigned i;
  int r;

  errors_start (snapshot, backing);
  failure_arm (&rig.control, f, call);
  for (i = 0; i < sizeof steps / sizeof steps[0]; ++i) {
    r = rig_try_step (&rig, &steps[i], i + 500);
    if (rig.control.failed > 0) {
      failed = true;
      if (!f->ever_after || i % 4 == 3)
        memory_fail_no_more (&rig.control);
    }
    if (r == -1)
      check_failed_step (&steps[i], i + 500);
    if (stuck)
      CHECK_EQ (r, -1); /* I10 */
    stuck |= r == -1 && error_errno () == EIO &&
      strstr (error_message (), "nothing is written any more") != NULL;
  }
  failed |= rig.control.failed > 0;
  memory_fail_no_more (&rig.control);
  rig_compare (&rig);
  r = rig_close_only (&rig);
  if (stuck)
    CHECK_EQ (r, -1);
  if (image_check ("a call failed", rig.disk.data,
                   atomic_load (&rig.disk.size)).leaks > 0)
    CHECK (failed);
  rig_open (&rig);
  if (!stuck)
    rig_compare (&rig);
  else { /* the snapshot, and what is read at all */
    free (rig.content);
    rig.content = malloc (rig.size);
    CHECK_OK (layer_read (rig.live, rig.content, rig.size,
                          (struct guest_off) { 0 }));
    rig_compare (&rig);
  }
  (void) rig_close_only (&rig);
  image_check ("and closed again", rig.disk.data,
               atomic_load (&rig.disk.size));
  rig_free (&rig);
  return failed;
}

static void
test_failing_calls (void)
{
  unsigned f, i, call, nr;

  for (f = 0; f < NR_FAILURES; ++f) {
    nr = 0;
    for (i = 0; i < 6; ++i) {
      for (call = 1; run (&failures[f], call, i % 3, i / 3);
           call += TEST_EACH (7)) {
        if (check_any_failed ()) {
          fprintf (stderr, "kinds 0x%x, errno %d, ever after %d, call %u, "
                   "snapshot %d, backing %d\n", failures[f].kinds,
                   failures[f].err, failures[f].ever_after, call, i % 3,
                   i / 3);
          return;
        }
        nr++;
      }
    }
    printf ("kinds 0x%x failed with %s at %u calls\n", failures[f].kinds,
            strerror (failures[f].err), nr);
  }
}

/* I10: a durable write in place that fails sticks, as a flush would, unless it
 * was for want of space.
 */
static void
test_fua_fails (void)
{
  errors_start (NO_SNAPSHOT, false);
  memory_fail_ever_after (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA), (uint64_t) -1);
  CHECK_ERROR (ENOSPC, "No space left");
  memory_fail_no_more (&rig.control);
  CHECK_OK (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA));

  /* Space that is found by the next write is no failure at all. */
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_OK (rig_try_write (&rig, 0, 512, 4, IMAGE_FUA));
  CHECK_EQ (rig.control.failed, 1);
  memory_fail_no_more (&rig.control);
  CHECK_OK (image_flush (rig.im));

  memory_fail (&rig.control, MEMORY_WRITE, 1, EIO);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 2, IMAGE_FUA), (uint64_t) -1);
  memory_fail_no_more (&rig.control);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 3, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

/* The first flush of all, for the dirty bit, fails: closing says so. */
static void
test_first_flush_fails (void)
{
  struct builder b;

  errors_build (&b, NO_SNAPSHOT, false);
  put_be64 (b.data + 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
  errors_start_built (&b, false);
  memory_fail (&rig.control, MEMORY_FLUSH, 1, EIO);
  CHECK_EQ (rig_try_write (&rig, 0, CLUSTER, 1, 0), (uint64_t) -1);
  memory_fail_no_more (&rig.control);
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  rig_free (&rig);
}

/* The next flush fails, once something was written that was not durable. */
static void
fail_flush_then (void *opaque, const struct memory_call *call)
{
  if (call->kind == MEMORY_WRITE && !call->durable)
    memory_fail (opaque, MEMORY_FLUSH, 1, EIO);
}

/* Where the write finds space after all, and what makes it durable fails, the
 * lack of space may have been met by other data: that sticks.
 */
static void
test_fua_flush_fails (void)
{
  errors_start (NO_SNAPSHOT, false);
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  rig.control.opaque = &rig.control;
  rig.control.hook = fail_flush_then;
  CHECK_EQ (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA), (uint64_t) -1);
  rig.control.hook = NULL;
  CHECK_EQ (rig_try_write (&rig, 0, 512, 3, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

static void
count_durable (void *opaque, const struct memory_call *call)
{
  unsigned *nr = opaque;

  *nr += call->kind == MEMORY_WRITE && call->durable;
}

/* Where a durable write could be told of other data that was lost, and a flush
 * then is not, there is none: only a flush is told, and that sticks.
 */
static void
test_fua_one_report (void)
{
  unsigned nr = 0;

  errors_start (NO_SNAPSHOT, false);
  rig.live->tables->one_report = true;
  rig.control.opaque = &nr;
  rig.control.hook = count_durable;
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA), (uint64_t) -1);
  CHECK_ERROR (ENOSPC, "No space left");
  memory_fail_no_more (&rig.control);
  CHECK_OK (rig_try_write (&rig, 0, 512, 2, IMAGE_FUA));
  CHECK_EQ (nr, 0);

  memory_fail (&rig.control, MEMORY_FLUSH, 1, ENOSPC);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 3, IMAGE_FUA), (uint64_t) -1);
  memory_fail_no_more (&rig.control);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 4, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  rig.control.hook = NULL;
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

/* Short writes, and interrupted reads, are no failures. */
static void
test_short (void)
{
  unsigned i;

  errors_start (SHARED_TABLES, true);
  rig.control.short_writes = 700;
  rig.control.short_reads = 900;
  rig.control.interrupt = 3;
  for (i = 0; i < sizeof steps / sizeof steps[0]; ++i)
    CHECK_OK (rig_try_step (&rig, &steps[i], i));
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  errors_end ();
}

/* The backing file can't be read where a cluster has to be filled: the write
 * fails, nothing has changed, and a later one goes well.
 */
static void
test_fill_fails (void)
{
  uint64_t size;
  unsigned i;

  errors_start (NO_SNAPSHOT, true);
  rig_write (&rig, 30 * CLUSTER, 1, 1);
  size = atomic_load (&rig.disk.size);
  for (i = 0; i < 100; ++i) {
    memory_fail_ever_after (&rig.base_control, MEMORY_READ, 1, EIO);
    CHECK_EQ (rig_try_write (&rig, 50 * CLUSTER + 10, 10, 1, 0),
              (uint64_t) -1);
    CHECK_ERROR (EIO, "base: reading");
  }
  memory_fail_no_more (&rig.base_control);
  rig_compare (&rig);
  CHECK (atomic_load (&rig.disk.size) <= size + 300 * CLUSTER);
  rig_write (&rig, 50 * CLUSTER + 10, 10, 1);
  rig_compare (&rig);
  errors_end ();
}
int
main (void)
{
  check_time_limit (200);
  test_autoclear ();
  test_lazy_refcounts ();
  test_version_2 ();
  test_full (false);
  test_full (true);
  test_close_full ();
  test_fixed_size ();
  test_fua_fails ();
  test_fua_flush_fails ();
  test_fua_one_report ();
  test_first_flush_fails ();
  test_short ();
  test_fill_fails ();
  test_failing_calls ();
  return check_result ();
}
