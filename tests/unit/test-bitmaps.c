/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/bitmaps.c: the directory of persistent bitmaps, some of which writing
 * makes useless.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "image-check.h"
#include "image.h"
#include "qcow2/bitmaps.h"

#define EXTENSION 112 /* where it is in the header */
#define IN_USE 1
#define AUTO 2 /* enabled */

/* An image with bitmaps that have these flags; no bit is set in any. */
static uint64_t
build_bitmaps (struct builder *b, unsigned nr, const uint32_t *flags)
{
  uint64_t directory, tables, size;
  unsigned i;

  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  directory = build_clusters (b, 1);
  tables = build_clusters (b, nr);
  for (i = 0, size = 0; i < nr; ++i) {
    uint8_t *p = b->data + directory + size;
    const unsigned name = 3 + i, extra = i % 2 ? 0 : 5;

    put_be64 (p, tables + i * 4096);
    put_be32 (p + 8, 1);
    put_be32 (p + 12, flags[i]);
    p[16] = 1; /* dirty tracking */
    p[17] = 16;
    put_be16 (p + 18, name);
    put_be32 (p + 20, extra);
    memset (p + 24 + extra, 'a', name);
    size += (24 + extra + name + 7) / 8 * 8;
  }
  put_be32 (b->data + EXTENSION, QCOW2_EXT_BITMAPS);
  put_be32 (b->data + EXTENSION + 4, 24);
  put_be32 (b->data + EXTENSION + 8, nr);
  put_be64 (b->data + EXTENSION + 16, size);
  put_be64 (b->data + EXTENSION + 24, directory);
  put_be64 (b->data + 88, QCOW2_AUTOCLEAR_BITMAPS | 0x100);
  build_finish (b);
  return directory;
}

static struct memory_disk disk;
static struct memory_control control;

static struct image *
open_image (void)
{
  memset (&control, 0, sizeof control);
  return image_open_storage (memory_disk_open (&disk, "test", &control),
                             CACHE_MIN_BYTES);
}

static void
start (struct builder *b)
{
  memory_disk_init (&disk, b->data, b->size);
  build_free (b);
}

static const struct writer_options careful = { 0 };
static const struct writer_options invalidate = {
  .invalidate_bitmaps = true,
};

/* Refused unless they may be lost, where one can't follow; then those that are
 * enabled are marked before anything is written, durably, and their autoclear
 * bit stays, others don't.
 */
static void
test_consistent (void)
{
  static const uint32_t flags[] = { AUTO, IN_USE | 4, AUTO | 4, 0 };
  struct memory_log log = MEMORY_LOG_INIT;
  uint64_t directory;
  struct builder b;
  struct image *im;
  size_t i;

  directory = build_bitmaps (&b, 4, flags);
  start (&b);
  im = open_image ();
  CHECK_EQ (image_make_writable (im, &careful), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "is enabled, but has a type");
  CHECK_OK (image_make_writable (im, &invalidate));
  CHECK_EQ (control.writes, 0);
  control.log = &log;
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_EQ (get_be32 (disk.data + directory + 12), AUTO | IN_USE);
  CHECK_EQ (get_be32 (disk.data + directory + 32 + 12), IN_USE | 4);
  CHECK_EQ (get_be32 (disk.data + directory + 64 + 12), AUTO | IN_USE | 4);
  CHECK_EQ (get_be32 (disk.data + directory + 104 + 12), 0);
  CHECK_EQ (get_be64 (disk.data + 88), QCOW2_AUTOCLEAR_BITMAPS);
  for (i = 0; i < log.nr && log.call[i].kind == MEMORY_WRITE; ++i)
    CHECK_EQ (log.call[i].offset / 4096, directory / 4096);
  CHECK_EQ (i, 2);
  CHECK_EQ (log.call[i].kind, MEMORY_FLUSH);
  control.log = NULL;
  CHECK_OK (image_close (im));
  memory_log_free (&log);
  image_check_clean ("bitmaps", disk.data, disk.size);

  im = open_image (); /* nobody believes them any more */
  CHECK_OK (image_make_writable (im, &careful));
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

/* Disabled ones stay right whatever is written: nothing is asked, they are not
 * changed, and their autoclear bit stays, so that they go on being believed.
 */
static void
test_disabled (void)
{
  static const uint32_t flags[] = { 0, AUTO | IN_USE, 4, IN_USE };
  uint8_t before[4096];
  uint64_t directory;
  struct builder b;
  struct image *im;

  directory = build_bitmaps (&b, 4, flags);
  start (&b);
  memcpy (before, disk.data + directory, sizeof before);
  im = open_image ();
  CHECK_OK (image_make_writable (im, &careful));
  CHECK_OK (image_close (im));
  im = open_image ();
  CHECK_OK (image_make_writable (im, &invalidate));
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_OK (image_close (im));
  CHECK (memcmp (before, disk.data + directory, sizeof before) == 0);
  CHECK_EQ (get_be64 (disk.data + 88), QCOW2_AUTOCLEAR_BITMAPS);
  image_check_clean ("disabled bitmaps", disk.data, disk.size);
  memory_disk_free (&disk);
}

/* Without the autoclear bit the extension means nothing. */
static void
test_stale (void)
{
  static const uint32_t flags[] = { 0 };
  uint64_t directory;
  struct builder b;
  struct image *im;

  directory = build_bitmaps (&b, 1, flags);
  put_be64 (b.data + 88, 0);
  put_be64 (b.data + EXTENSION + 24, 12345); /* not even aligned */
  start (&b);
  im = open_image ();
  CHECK_OK (image_make_writable (im, &careful));
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_OK (image_close (im));
  CHECK_EQ (get_be32 (disk.data + directory + 12), 0);
  memory_disk_free (&disk);
}

/* Directories that can't be: reading goes on, writing is refused. */
static void
check_malformed (uint64_t at, unsigned width, uint64_t value, const char *why)
{
  static const uint32_t flags[] = { 0, 0 };
  struct builder b;
  struct image *im;
  uint64_t directory;

  directory = build_bitmaps (&b, 2, flags);
  if (at >= EXTENSION && at < 512)
    directory = 0;
  if (width == 8)
    put_be64 (b.data + directory + at, value);
  else if (width == 4)
    put_be32 (b.data + directory + at, value);
  else
    put_be16 (b.data + directory + at, value);
  start (&b);
  im = open_image ();
  CHECK (im != NULL);
  CHECK_EQ (image_make_writable (im, &invalidate), (uint64_t) -1);
  CHECK_ERROR (EINVAL, why);
  CHECK_EQ (control.writes, 0);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

static void
test_malformed (void)
{
  check_malformed (EXTENSION + 24, 8, 513, "bitmap directory offset");
  check_malformed (EXTENSION + 24, 8, UINT64_C (1) << 40, "outside the file");
  check_malformed (EXTENSION + 16, 8, UINT64_C (1) << 60, "limit");
  check_malformed (EXTENSION + 16, 8, 40, "beyond the directory's end");
  check_malformed (EXTENSION + 8, 4, 3, "beyond the directory's end");
  check_malformed (EXTENSION + 8, 4, UINT32_MAX, "are more than 65535");
  check_malformed (EXTENSION + 8, 4, 65535, "beyond the directory's end");
  check_malformed (20, 4, UINT32_MAX, "beyond the directory's end");
  check_malformed (32 + 18, 2, UINT16_MAX, "beyond the directory's end");
}

/* The header says more than the extension has. */
static void
test_short_extension (void)
{
  static const uint32_t flags[] = { 0 };
  struct builder b;
  struct image *im;

  (void) build_bitmaps (&b, 1, flags);
  put_be32 (b.data + EXTENSION + 4, 23);
  start (&b);
  im = open_image ();
  CHECK (im != NULL); /* it can be read ... */
  if (im != NULL)
    CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

/* I10: what can't be marked is not written to. */
static void
test_marking_fails (void)
{
  static const uint32_t flags[] = { AUTO, AUTO };
  static const unsigned kinds[] = { MEMORY_WRITE, MEMORY_FLUSH };
  struct builder b;
  struct image *im;
  unsigned k, call;

  for (k = 0; k < 2; ++k) {
    for (call = 1; call <= 2; ++call) {
      (void) build_bitmaps (&b, 2, flags);
      start (&b);
      im = open_image ();
      CHECK_OK (image_make_writable (im, &invalidate));
      memory_fail (&control, kinds[k], call, EIO);
      CHECK_EQ (image_write (im, "x", 1, (struct guest_off) { 0 }, 0),
                (uint64_t) -1);
      CHECK_ERROR (EIO, "");
      CHECK_EQ (image_write (im, "x", 1, (struct guest_off) { 0 }, 0),
                (uint64_t) -1);
      CHECK_ERROR (EIO, "nothing is written any more");
      (void) image_close (im);
      memory_disk_free (&disk);
    }
  }
}

int
main (void)
{
  check_time_limit (100);
  test_consistent ();
  test_disabled ();
  test_stale ();
  test_malformed ();
  test_short_extension ();
  test_marking_fails ();
  return check_result ();
}
