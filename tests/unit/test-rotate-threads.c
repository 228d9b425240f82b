/* SPDX-License-Identifier: BSD-3-Clause */

/* A chain of bitmaps, each of which begins where the one before ends, at the points of
 * snapshots, beside threads that write: what differs between two snapshots is in the
 * bitmap between.  For ThreadSanitizer, too (TEST_SECONDS says for how long).
 */

#include <config.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "follow-rig.h"
#include "image-check.h"
#include "random.h"
#include "seconds.h"

#define MEMORY (UINT64_C (16) << 20)

static uint8_t is[DISK_BYTES]; /* what was read */

/* An image without bitmaps; what is marked is settled all the time. */
static void
start (unsigned bits, unsigned pages)
{
  struct builder b;
  unsigned i;

  build_start (&b, 3, bits, false, COMPRESSION_DEFLATE, DISK_BYTES);
  for (i = 0; i < 40; ++i) {
    build_l2_place (&b, i);
    build_entry (&b, i, build_data (&b, i + 1), 0);
  }
  build_finish (&b);
  rig_init (&rig, "rotate", &b);
  build_free (&b);
  rig.options.bitmap_pages = pages;
  rig.options.bitmap_idle = 1;
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 0, MEMORY));
}

static void
wait_for_end (void)
{
  while (!image_points_have_ended (rig.im))
    sched_yield ();
}

static struct layer *
try_take (const char *asked)
{
  char export[300];

  snprintf (export, sizeof export, IMAGE_TAKE_PREFIX "%s", asked);
  return image_open_disk (rig.im, export);
}

#define WRITERS 3
#define TAKEN 12

#define AT_LEAST 3 /* however slow it is */

static atomic_bool enough;

static void *
writer_main (void *opaque)
{
  uint64_t state = (uintptr_t) opaque + 7;
  uint8_t buf[3000];
  unsigned i;

  for (i = 0; !atomic_load (&enough) && !check_any_failed (); ++i) {
    const uint64_t count = 1 + random_below (&state, sizeof buf);
    const struct guest_off at = { random_below (&state, DISK_BYTES - count) };

    memset (buf, random_next (&state), count);
    CHECK_OK (i % 7 == 6 ? image_trim (rig.im, count, at, 0)
              : image_write (rig.im, buf, count, at, 0));
  }
  return NULL;
}

/* What differs between two snapshots is in the bitmap that was there between, as a
 * client reads it: by the later one's export.
 */
static int
note_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  bool *clean = opaque;
  uint64_t s;

  for (s = offset / SECTOR; s < (offset + length) / SECTOR; ++s)
    clean[s] = flags == EXTENT_HOLE;
  return 0;
}

static void
check_between (unsigned i, const uint8_t *from, const uint8_t *to)
{
  static bool clean[SECTORS];
  struct layer *disk;
  char name[80];
  uint64_t s;

  snprintf (name, sizeof name, IMAGE_SNAPSHOT_PREFIX "t%u/" IMAGE_BITMAP_PREFIX
            "n%u", i, i - 1);
  disk = image_open_disk (rig.im, name);
  if (disk == NULL) {
    check_failed (__FILE__, __LINE__, "%s: %s", name, error_message ());
    return;
  }
  CHECK_OK (layer_read (disk, is, DISK_BYTES, (struct guest_off) { 0 }));
  CHECK (memcmp (is, to, DISK_BYTES) == 0);
  memset (clean, 1, sizeof clean);
  CHECK_OK (layer_extents (disk, DISK_BYTES, (struct guest_off) { 0 }, 0,
                           note_extent, clean));
  image_close_disk (disk);
  for (s = 0; s < SECTORS; ++s) {
    if (!clean[s] || memcmp (from + s * SECTOR, to + s * SECTOR, SECTOR) == 0)
      continue;
    check_failed (__FILE__, __LINE__, "%s: sector %u has changed, and is clean",
                  name, (unsigned) s);
    return;
  }
}

static void
test_threads (unsigned bits, unsigned pages, double length)
{
  static uint8_t content[TAKEN][DISK_BYTES];
  const double until = seconds () + length;
  pthread_t thread[WRITERS];
  char asked[80];
  unsigned nr, k;

  start (bits, pages);
  atomic_store (&enough, false);
  for (k = 0; k < WRITERS; ++k)
    pthread_create (&thread[k], NULL, writer_main, (void *) (uintptr_t) k);
  for (nr = 0; (nr < AT_LEAST || seconds () < until) && nr < TAKEN &&
         !check_any_failed (); ++nr) {
    struct layer *disk;

    if (nr == 0)
      snprintf (asked, sizeof asked, "t0?bitmap=n0&granularity=512");
    else
      snprintf (asked, sizeof asked, "t%u?bitmap=n%u&disable=n%u&granularity=%u",
                nr, nr, nr - 1, 512 << nr % 4);
    disk = try_take (asked);
    if (disk == NULL) {
      check_failed (__FILE__, __LINE__, "%s: %s", asked, error_message ());
      break;
    }
    CHECK_OK (layer_read (disk, content[nr], DISK_BYTES,
                          (struct guest_off) { 0 }));
    image_close_disk (disk);
    if (nr > 0)
      check_between (nr, content[nr - 1], content[nr]);
  }
  atomic_store (&enough, true);
  for (k = 0; k < WRITERS; ++k)
    pthread_join (thread[k], NULL);
  wait_for_end ();
  for (k = 1; k < nr; ++k)
    check_between (k, content[k - 1], content[k]);
  CHECK_OK (rig_close_only (&rig));
  image_check_clean ("threads", rig.disk.data, atomic_load (&rig.disk.size));
  printf ("clusters of 2^%u, %u pages: %u snapshots\n", bits, pages, nr);
  CHECK (nr >= AT_LEAST);
  rig_free (&rig);
}

int
main (void)
{
  const double length = test_seconds (3) / 3;

  check_time_limit (600);
  test_threads (9, 0, length);
  test_threads (9, 3, length);
  test_threads (12, 0, length);
  return check_result ();
}
