/* SPDX-License-Identifier: BSD-3-Clause */

/* Who reads a point by a bitmap finds at least what has changed from the bitmap's
 * beginning to the point, though the bitmap ends at an earlier point meanwhile, or
 * has begun at a later one: or is told that it can't be.
 */

#include <config.h>

#include <errno.h>

#include "bits-view.h"
#include "check.h"
#include "disk/extents.h"
#include "follow-rig.h"
#include "qcow2/write/writer-parts.h"
#include "take-wrap.h"

#define AT (UINT64_C (3) << 20)

static struct layer *frozen, *live;

int
__wrap_features_switch_snapshots (struct writer *w, uint32_t nr,
                                  struct host_off table,
                                  const struct bitmap_header *bitmaps)
{
  if (frozen == NULL) {
    rig_write (&rig, AT, 4096, 99);
    frozen = image_open_disk (rig.im, "now/T/bitmap/a");
    live = image_open_disk (rig.im, "bitmap/a");
    CHECK (frozen != NULL && live != NULL);
  }
  return __real_features_switch_snapshots (w, nr, table, bitmaps);
}

static int
note_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  (void) opaque, (void) offset, (void) length, (void) flags;
  return 0;
}

static int
extents_of (struct layer *l)
{
  return layer_extents (l, DISK_BYTES, (struct guest_off) { 0 }, 0, note_extent,
                        NULL);
}

/* Its extents would call clean what has changed. */
static void
check_ended (struct layer *l)
{
  CHECK_EQ (extents_of (l), (uint64_t) -1);
  CHECK_ERROR (EIO, "the bitmap has ended");
  image_close_disk (l);
}

static void
check_refused (const char *name)
{
  CHECK (image_open_disk (rig.im, name) == NULL);
  CHECK_ERROR (EINVAL, "began after that point in time, or ended before it");
}

static void
check_good (const char *name)
{
  struct layer *l = image_open_disk (rig.im, name);

  CHECK (l != NULL);
  if (l != NULL)
    CHECK_OK (extents_of (l));
  image_close_disk (l);
}

/* Bitmaps that end and begin, one after the other. */
static void
test_lives (void)
{
  struct layer *x, *before, *of_before;

  follow_start (12, 0);
  CHECK_OK (image_allow_points (rig.im, 60, UINT64_C (16) << 20));
  before = image_open_disk (rig.im, "now/B");
  of_before = image_open_disk (rig.im, "now/B/bitmap/a");
  rig_write (&rig, 0, 4096, 1);
  x = image_open_disk (rig.im, "take/x?bitmap=n&disable=a");
  CHECK (x != NULL);
  check_ended (frozen); /* at an earlier point */
  check_ended (live);
  CHECK_OK (extents_of (of_before));
  image_close_disk (of_before);
  check_good ("now/B/bitmap/a");
  check_refused ("now/B/bitmap/n");
  rig_write (&rig, AT, 4096, 100);
  check_refused ("now/C/bitmap/a");
  check_good ("now/C/bitmap/n");
  check_good ("snapshot/x/bitmap/a");

  /* The next one. */
  image_close_disk (x);
  x = image_open_disk (rig.im, "take/y?bitmap=m&disable=n");
  CHECK (x != NULL);
  check_good ("now/C/bitmap/n");
  check_refused ("now/B/bitmap/n");
  check_refused ("now/C/bitmap/m");
  check_refused ("now/D/bitmap/n");
  check_good ("now/D/bitmap/m");
  image_close_disk (x);
  image_close_disk (before);
  rig_close (&rig);
  rig_free (&rig);
}

static bool
has_bitmap (const char *name)
{
  struct bits_view v;

  return bits_view_find (&v, rig.disk.data, atomic_load (&rig.disk.size), name);
}

/* A flush of the take fails, maybe that of the header, which leads to the new bitmap
 * then.  Returns false if it was never made.
 */
static bool
fail_flush (uint64_t call, unsigned *found)
{
  struct layer *early;
  bool failed;

  follow_start (12, 0);
  CHECK_OK (image_allow_points (rig.im, 0, UINT64_C (16) << 20));
  early = image_open_disk (rig.im, "now/E");
  CHECK (early != NULL);
  rig_write (&rig, AT, 4096, 1);
  memory_fail (&rig.control, MEMORY_FLUSH, call, EIO);
  image_close_disk (image_open_disk (rig.im, "take/x?bitmap=n"));
  failed = rig.control.failed > 0;
  memory_fail_no_more (&rig.control);
  if (has_bitmap ("n")) {
    check_refused ("now/E/bitmap/n");
    *found += failed;
  }
  image_close_disk (early);
  (void) rig_close_only (&rig);
  rig_free (&rig);
  return failed;
}

static void
test_life_of_failed (void)
{
  uint64_t call = 1;
  unsigned found = 0;

  while (fail_flush (call, &found) && !check_any_failed ())
    call++;
  CHECK (call > 2);
  CHECK (found > 0);
}

int
main (void)
{
  test_lives ();
  test_life_of_failed ();
  return check_result ();
}
