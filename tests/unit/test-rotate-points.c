/* SPDX-License-Identifier: BSD-3-Clause */

/* Who reads a point by a bitmap finds at least what has changed from the bitmap's
 * beginning to the point, though the bitmap ends at an earlier point meanwhile, or
 * has begun at a later one: or is told that it can't be.
 */

#include <config.h>

#include <stdio.h>
#include <string.h>

#include "check.h"
#include "disk/extents.h"
#include "follow-rig.h"
#include "qcow2/write/writer-parts.h"

#define AT (UINT64_C (3) << 20)

int __real_features_switch_snapshots (struct writer *w, uint32_t nr,
                                      struct host_off table,
                                      const struct bitmap_header *bitmaps);
int __wrap_features_switch_snapshots (struct writer *w, uint32_t nr,
                                      struct host_off table,
                                      const struct bitmap_header *bitmaps);

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

static bool clean;

static int
note_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  (void) opaque;
  if (offset <= AT && AT < offset + length)
    clean = flags == EXTENT_HOLE;
  return 0;
}

/* Clean: wrong data.  An error is no lie. */
static void
check_not_clean (struct layer *l, const char *what)
{
  clean = false;
  if (layer_extents (l, DISK_BYTES, (struct guest_off) { 0 }, 0, note_extent,
                     NULL) == -1)
    printf ("%s: %s\n", what, error_message ());
  else if (clean)
    check_failed (__FILE__, __LINE__, "%s: has changed, and is clean", what);
}

int
main (void)
{
  struct layer *x, *before, *l;

  follow_start (12, 0);
  CHECK_OK (image_allow_points (rig.im, 60, UINT64_C (16) << 20));
  rig_write (&rig, 0, 4096, 1);
  x = image_open_disk (rig.im, "take/x?bitmap=n&disable=a");
  CHECK (x != NULL);
  check_not_clean (frozen, "now/T/bitmap/a, a ends at an earlier point");
  check_not_clean (live, "bitmap/a, opened before it ended");
  image_close_disk (x);
  image_close_disk (frozen);
  image_close_disk (live);

  before = image_open_disk (rig.im, "now/B");
  rig_write (&rig, AT, 4096, 100);
  x = image_open_disk (rig.im, "take/y?bitmap=m");
  l = image_open_disk (rig.im, "now/B/bitmap/m");
  if (l != NULL)
    check_not_clean (l, "now/B/bitmap/m, m began at a later point");
  image_close_disk (l);
  image_close_disk (before);
  image_close_disk (x);
  rig_close (&rig);
  rig_free (&rig);
  return check_result ();
}
