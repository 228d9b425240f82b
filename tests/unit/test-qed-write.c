/* SPDX-License-Identifier: BSD-3-Clause */

/* qed/write.c, qed/writer.c: what requests cost, what a failed one leaves, and
 * which images are not written.
 */

#include <config.h>

#include <stdlib.h>

#include "check.h"
#include "disk/read.h"
#include "image.h"
#include "memory-storage.h"
#include "qed-image.h"

#define CLUSTER 8192

static struct qed_image q;
static struct memory_disk d;
static struct memory_control control;
static struct image *im;
static struct layer *live;
static uint8_t backing[20 * CLUSTER];

static int
open_image (bool over)
{
  const struct writer_options options = { 0 };
  struct storage *s[2];
  char text[1024];

  memset (&control, 0, sizeof control);
  control.holes = true;
  memset (backing, 'b', sizeof backing);
  memory_disk_init (&d, q.bytes, q.size);
  s[0] = memory_disk_open (&d, "image", &control);
  if (over)
    s[1] = memory_storage_new ("base", backing, sizeof backing, NULL);
  im = image_open_storages (s, over ? 2 : 1, CACHE_MIN_BYTES);
  CHECK (im != NULL);
  live = image_open_disk (im, "");
  return image_repair (im, IMAGE_REPAIR_NONE, text, sizeof text) == -1
    ? -1 : image_make_writable (im, &options);
}

static void
close_image (void)
{
  struct qed_verdict v;

  image_close_disk (live);
  CHECK_OK (image_close (im));
  v = qed_image_judge (d.data, d.size);
  CHECK_EQ (v.errors, 0);
  CHECK_EQ (v.leaks, 0);
  CHECK (!v.need_check);
  memory_disk_free (&d);
  qed_image_free (&q);
}

static int
put (uint64_t offset, uint64_t count, uint8_t byte, unsigned flags)
{
  static uint8_t buf[4 * CLUSTER];

  memset (buf, byte, count);
  return image_write (im, buf, count, (struct guest_off) { offset }, flags);
}

static void
expect (uint64_t offset, uint64_t count, uint8_t byte)
{
  static uint8_t buf[4 * CLUSTER];
  uint64_t i;

  CHECK_OK (layer_read (live, buf, count, (struct guest_off) { offset }));
  for (i = 0; i < count && buf[i] == byte; ++i)
    continue;
  CHECK_EQ (i, count);
}

/* Flushes of the storage that a call costs. */
#define CHECK_FLUSHES(call, nr)                         \
  do {                                                  \
    const uint64_t before_ = control.flushes;           \
                                                        \
    CHECK_OK (call);                                    \
    CHECK_EQ (control.flushes - before_, nr);           \
  } while (0)

static void
test_costs (void)
{
  uint64_t writes;

  qed_image_start (&q, CLUSTER, 2, 1, 20 * CLUSTER, NULL);
  qed_image_data (&q, 0, 1);
  CHECK_OK (open_image (false));
  CHECK_FLUSHES (put (0, 512, 1, 0), 0);            /* in place */
  CHECK_FLUSHES (put (512, 512, 1, IMAGE_FUA), 0);  /* durably */
  CHECK_FLUSHES (put (CLUSTER, 512, 2, 0), 2);      /* the file's end */
  CHECK_FLUSHES (image_flush (im), 1);
  CHECK_FLUSHES (put (3 * CLUSTER, 512, 3, 0), 0);
  CHECK_FLUSHES (put (5 * CLUSTER, CLUSTER, 4, 0), 0);
  CHECK_FLUSHES (image_flush (im), 1);
  writes = control.writes;
  CHECK_OK (image_trim (im, 20 * CLUSTER, (struct guest_off) { 0 }, 0));
  CHECK_EQ (control.writes, writes);
  expect (0, 2 * CLUSTER, 0);
  expect (5 * CLUSTER, CLUSTER, 0);
  close_image ();

  qed_image_start (&q, CLUSTER, 2, 1, 20 * CLUSTER, "base");
  CHECK_OK (open_image (true));
  CHECK_FLUSHES (put (CLUSTER, 512, 1, 0), 2);
  CHECK_FLUSHES (image_flush (im), 2); /* the copy, and then its entry */
  expect (CLUSTER, 512, 1);
  expect (CLUSTER + 512, CLUSTER - 512, 'b');
  /* Zero clusters need no order. */
  CHECK_OK (image_zero (im, 2 * CLUSTER, (struct guest_off) { 4 * CLUSTER },
                        IMAGE_FAST));
  CHECK_FLUSHES (image_flush (im), 1);
  CHECK (image_zero (im, 512, (struct guest_off) { 8 * CLUSTER },
                     IMAGE_FAST) == -1);
  CHECK_ERROR (ENOTSUP, "zeros would have to be written");
  expect (4 * CLUSTER, 2 * CLUSTER, 0);
  expect (6 * CLUSTER, 2 * CLUSTER, 'b');
  close_image ();
}

/* An entry can't be changed after the data was written: another request is
 * given the clusters, which are not zeros any more.
 */
static void
test_given_back (void)
{
  qed_image_start (&q, CLUSTER, 2, 1, 20 * CLUSTER, NULL);
  CHECK_OK (open_image (false));
  /* Space for a sector of the L1 table, and then of the new L2 table. */
  memory_fail (&control, MEMORY_ALLOCATE, 2, ENOSPC);
  CHECK (put (5 * CLUSTER, CLUSTER, 'x', 0) == -1);
  CHECK_EQ (control.failed, 1);
  memory_fail_no_more (&control);
  expect (5 * CLUSTER, CLUSTER, 0);
  CHECK_OK (put (9 * CLUSTER, 512, 'y', 0));
  expect (9 * CLUSTER, 512, 'y');
  expect (9 * CLUSTER + 512, CLUSTER - 512, 0);
  close_image ();
}

/* A storage that can't grow, as a block device: what has a place is written, and
 * NEED_CHECK is not left behind.
 */
static void
test_fixed (void)
{
  uint64_t writes, flushes;
  unsigned i;

  qed_image_start (&q, CLUSTER, 2, 1, 20 * CLUSTER, "base");
  qed_image_data (&q, 0, 1);
  CHECK_OK (open_image (true));
  memory_fail_ever_after (&control, MEMORY_RESIZE, 1, ENOSPC);
  CHECK (put (5 * CLUSTER, 512, 'x', 0) == -1);
  CHECK_ERROR (ENOSPC, "resizing");
  CHECK (!qed_image_judge (d.data, d.size).need_check);
  expect (5 * CLUSTER, CLUSTER, 'b');
  CHECK_OK (put (512, 512, 'y', IMAGE_FUA));
  expect (512, 512, 'y');
  /* A table is there, so that zero clusters need no space. */
  CHECK_OK (image_zero (im, CLUSTER, (struct guest_off) { 7 * CLUSTER }, 0));
  CHECK_OK (image_flush (im));
  expect (7 * CLUSTER, CLUSTER, 0);
  CHECK_EQ (d.size, q.size);
  /* A guest that tries again has the header written at most once more. */
  CHECK (put (5 * CLUSTER, 512, 'x', 0) == -1);
  writes = control.writes;
  flushes = control.flushes;
  for (i = 0; i < 3; ++i)
    CHECK (put (5 * CLUSTER, 512, 'x', 0) == -1);
  CHECK_EQ (control.writes, writes);
  CHECK_EQ (control.flushes, flushes);
  close_image ();
}

/* A file system that is full even for what closing changes (I13): what was
 * written is there, and NEED_CHECK tells of the rest.
 */
static void
test_full_at_the_end (unsigned kind)
{
  struct qed_verdict v;

  qed_image_start (&q, CLUSTER, 2, 1, 20 * CLUSTER, NULL);
  CHECK_OK (open_image (false));
  CHECK_OK (put (5 * CLUSTER, 512, 'x', 0));
  CHECK_OK (image_flush (im));
  memory_fail_ever_after (&control, kind, 1, ENOSPC);
  image_close_disk (live);
  CHECK_OK (image_close (im));
  v = qed_image_judge (d.data, d.size);
  CHECK_EQ (v.errors, 0);
  CHECK (v.need_check);
  memory_disk_free (&d);
  qed_image_free (&q);
}

static void
test_refused (void)
{
  qed_image_start (&q, CLUSTER, 2, 1, 20 * CLUSTER, NULL);
  qed_image_put (&q, 16, 8, 2);
  CHECK (open_image (false) == -1);
  CHECK_ERROR (ENOTSUP, "it was not closed, and is to be checked");
  image_close_disk (live);
  CHECK_OK (image_close (im));
  CHECK_EQ (control.writes, 0);
  memory_disk_free (&d);
  qed_image_free (&q);

  /* W1: it would lead into what the file grows by. */
  qed_image_start (&q, CLUSTER, 2, 1, 20 * CLUSTER, NULL);
  qed_image_data (&q, 0, 1);
  qed_image_put (&q, qed_image_place (&q, 1), 8, q.size);
  CHECK (open_image (false) == -1);
  CHECK_ERROR (EIO, "its tables have 1 errors (so that it can't be written)");
  image_close_disk (live);
  CHECK_OK (image_close (im));
  CHECK_EQ (control.writes, 0);
  memory_disk_free (&d);
  qed_image_free (&q);
}

int
main (void)
{
  check_time_limit (60);
  test_costs ();
  test_given_back ();
  test_fixed ();
  test_full_at_the_end (MEMORY_RESIZE);
  test_full_at_the_end (MEMORY_WRITE);
  test_refused ();
  return check_result ();
}
