/* SPDX-License-Identifier: BSD-3-Clause */

/* image.c: a repair before an image is written, as readers and the writer that
 * follows see it.  What a repair does is tested by test-repair.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "disk/read.h"
#include "image.h"

#define CLUSTER 4096
#define ONE 3 /* clusters of the guest that share one of the host */
#define OTHER 5

static struct memory_disk disk;
static struct memory_control control;
static uint8_t pattern[CLUSTER], buf[CLUSTER];
static char summary[512];

/* Two entries refer to a cluster whose refcount is 1, and both say that
 * nothing else does; the image is dirty.
 */
static void
start (void)
{
  struct builder b;
  uint64_t host, block;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  host = build_data (&b, 1);
  build_entry (&b, ONE, host, 0);
  build_entry (&b, OTHER, host, 0);
  build_finish (&b);
  put_be64 (b.data + build_l2_place (&b, ONE), host | QCOW2_ENTRY_COPIED);
  put_be64 (b.data + build_l2_place (&b, OTHER), host | QCOW2_ENTRY_COPIED);
  block = get_be64 (b.data + get_be64 (b.data + 48));
  b.data[block + host / CLUSTER * 2] = 0;
  b.data[block + host / CLUSTER * 2 + 1] = 1;
  put_be64 (b.data + 72, QCOW2_INCOMPAT_DIRTY);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  build_pattern (pattern, CLUSTER, 1);
}

static struct image *
open_image (void)
{
  struct image *im;

  memset (&control, 0, sizeof control);
  im = image_open_storage (memory_disk_open (&disk, "test", &control),
                           CACHE_MIN_BYTES);
  CHECK (im != NULL);
  return im;
}

static bool
holds_pattern (struct layer *live, uint64_t cluster)
{
  const struct guest_off at = { cluster * CLUSTER };

  CHECK_OK (layer_read (live, buf, CLUSTER, at));
  return memcmp (buf, pattern, CLUSTER) == 0;
}

/* Tables that were read before are not believed after a repair: the writer
 * would write in place what has two references.
 */
static void
test_read_before (void)
{
  static const struct writer_options options = { 0 };
  struct image *im;
  struct layer *live;

  start ();
  im = open_image ();
  live = image_open_disk (im, "");
  CHECK (live != NULL);
  CHECK (holds_pattern (live, ONE) && holds_pattern (live, OTHER));
  CHECK_OK (image_repair (im, IMAGE_REPAIR_DIRTY, summary, sizeof summary));
  CHECK_HAS (summary, "test: repaired: ");
  CHECK_EQ (get_be64 (disk.data + 72), 0);
  CHECK_OK (image_make_writable (im, &options));
  CHECK_OK (image_write (im, "new", 3, (struct guest_off) { ONE * CLUSTER },
                         0));
  CHECK (holds_pattern (live, OTHER));
  CHECK (!holds_pattern (live, ONE));
  CHECK (memcmp (buf, "new", 3) == 0);
  image_close_disk (live);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

static struct image *
open_again (const struct verdict *verdict)
{
  const struct image_options options = {
    .chain.file = "test",
    .chain.opened = memory_disk_open (&disk, "test", &control),
    .cache_size = IMAGE_DEFAULT_CACHE_SIZE,
    .verdict = verdict,
  };
  struct image *im = image_open (&options);

  if (im == NULL) {
    fprintf (stderr, "%s\n", error_message ());
    abort ();
  }
  return im;
}

/* Nor by who opens it again, and knows. */
static void
check_sticks_elsewhere (const struct verdict *verdict)
{
  static const struct writer_options options = { 0 };
  struct image *im = open_again (verdict);
  const uint64_t writes = control.writes;

  CHECK_EQ (image_repair (im, IMAGE_REPAIR_ALL, summary, sizeof summary),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "a repair failed");
  CHECK_EQ (image_make_writable (im, &options), (uint64_t) -1);
  CHECK_ERROR (EIO, "a repair failed");
  CHECK_OK (image_close (im));
  CHECK_EQ (control.writes, writes);
}

/* A file that was made later has nothing to do with it, whose inode it may have:
 * but if one of both can't tell when it was made it is taken for the same.
 */
static void
check_of_another (const struct verdict *verdict)
{
  static const struct writer_options options = { 0 };
  struct verdict told = *verdict;
  struct image *im;

  told.stamp.born.tv_sec = 5;
  check_sticks_elsewhere (&told);
  control.born = 5;
  check_sticks_elsewhere (&told);
  control.born = 6;
  check_sticks_elsewhere (verdict);
  im = open_again (&told);
  CHECK_OK (image_repair (im, IMAGE_REPAIR_ALL, summary, sizeof summary));
  CHECK_OK (image_make_writable (im, &options));
  image_verdict (im, &told);
  CHECK (!told.known && !told.sticks);
  CHECK_EQ (told.stamp.born.tv_sec, 6);
  CHECK_OK (image_close (im));
  control.born = 0;
}

/* I10: once a call fails that writes, what is read back may not be on the
 * disk, so that no second try may find that all is well.
 */
static bool
check_failure_sticks (uint64_t call)
{
  static const struct writer_options options = { 0 };
  struct verdict verdict;
  struct image *im;
  uint64_t writes;
  bool failed;

  start ();
  im = open_image ();
  memory_fail (&control, MEMORY_WRITE | MEMORY_FLUSH, call, EIO);
  failed = image_repair (im, IMAGE_REPAIR_DIRTY, summary,
                         sizeof summary) == -1;
  CHECK_EQ (failed, control.failed > 0);
  memory_fail_no_more (&control);
  writes = control.writes;
  if (failed) {
    CHECK_EQ (image_repair (im, IMAGE_REPAIR_DIRTY, summary,
                            sizeof summary), (uint64_t) -1);
    CHECK_ERROR (EIO, "a repair failed");
    CHECK_EQ (image_make_writable (im, &options), (uint64_t) -1);
    CHECK_ERROR (EIO, "a repair failed");
    CHECK_EQ (control.writes, writes);
  }
  image_verdict (im, &verdict);
  CHECK_EQ (verdict.sticks, failed);
  CHECK_OK (image_close (im));
  if (failed) {
    check_sticks_elsewhere (&verdict);
    check_of_another (&verdict);
  }

  /* Opened anew it goes well. */
  im = open_image ();
  CHECK_OK (image_repair (im, IMAGE_REPAIR_ALL, summary, sizeof summary));
  CHECK_OK (image_make_writable (im, &options));
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
  return failed;
}

static void
test_failures (void)
{
  uint64_t call = 1;

  while (check_failure_sticks (call))
    call++;
  CHECK (call > 5); /* refcounts, flags, dirty bit, and flushes */
}

/* What a check has found is not found again for the next client, until the file
 * is another.  Two references are more than a refcount of one bit can tell.
 */
static void
test_verdict (void)
{
  struct builder b;
  struct verdict verdict;
  struct image *im;
  uint64_t reads;

  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, 64 * CLUSTER);
  build_order (&b, 0);
  build_entry (&b, 0, build_data (&b, 1), 0);
  build_entry (&b, 1, build_data (&b, 1), 0);
  build_finish (&b);
  put_be64 (b.data + build_l2_place (&b, 1),
            get_be64 (b.data + build_l2_place (&b, 0)));
  put_be64 (b.data + 72, get_be64 (b.data + 72) | QCOW2_INCOMPAT_DIRTY);
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, b.data, b.size);
  im = image_open_storage (memory_disk_open (&disk, "test", &control),
                           IMAGE_DEFAULT_CACHE_SIZE);
  CHECK_EQ (image_repair (im, IMAGE_REPAIR_DIRTY, summary, sizeof summary),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "errors are left");
  CHECK (summary[0] != '\0');
  reads = control.preads;
  CHECK_EQ (image_repair (im, IMAGE_REPAIR_DIRTY, summary, sizeof summary),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "errors are left");
  CHECK_EQ (control.preads, reads);
  image_verdict (im, &verdict);
  CHECK (verdict.known && !verdict.sticks);
  CHECK_OK (image_close (im));

  /* Nor when it is opened again, as long as it is the same. */
  im = open_again (&verdict);
  reads = control.preads;
  CHECK_EQ (image_repair (im, IMAGE_REPAIR_DIRTY, summary, sizeof summary),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "errors are left");
  CHECK_EQ (control.preads, reads);
  CHECK_OK (image_close (im));
  verdict.stamp.modified.tv_nsec++;
  im = open_again (&verdict);
  reads = control.preads;
  CHECK_EQ (image_repair (im, IMAGE_REPAIR_DIRTY, summary, sizeof summary),
            (uint64_t) -1);
  CHECK (control.preads > reads);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
  build_free (&b);
}

int
main (void)
{
  check_time_limit (60);
  test_read_before ();
  test_failures ();
  test_verdict ();
  return check_result ();
}
