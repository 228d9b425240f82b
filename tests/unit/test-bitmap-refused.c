/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/bitmap-disk.c: bitmaps that can't be used, or not any more. */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "bitmap-rig.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"

/* A bitmap of two clusters, in clusters of 4 KiB. */
static void
build_small (struct builder *b)
{
  uint8_t bits[8192];

  memset (bits, 0x55, sizeof bits);
  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, 64 << 20);
  bitmap_rig_build (b, 10, bits, 2);
}

/* With a value of this many bytes at this offset of the file it can't be
 * opened, which is said once.
 */
static void
check_refused (uint64_t at, unsigned width, uint64_t value, int err,
               const char *why)
{
  struct builder b;
  struct image *im;

  build_small (&b);
  if (width == 8)
    put_be64 (b.data + at, value);
  else if (width == 4)
    put_be32 (b.data + at, value);
  else
    b.data[at] = value;
  im = bitmap_rig_open (&b);
  CHECK (im != NULL);
  CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
  CHECK_ERROR (err, why);
  CHECK (!error_repeated ());
  CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
  CHECK_EQ (error_repeated (), err != ENOENT);
  CHECK_EQ (bm.control.writes, 0);
  bitmap_rig_close (im, NULL);
}

static void
test_refused (void)
{
  struct builder b;

  build_small (&b); /* to know where things are */
  build_free (&b);
  check_refused (bm.directory + 12, 4, 1, EINVAL, "in use");
  check_refused (bm.directory + 12, 4, AUTO | 1, EINVAL, "in use");
  check_refused (bm.directory + 12, 4, AUTO | 8, EINVAL, "not known here");
  check_refused (bm.directory + 12, 4, UINT32_C (1) << 31, EINVAL, "not known");
  check_refused (bm.directory + 16, 1, 0, EINVAL, "not known here");
  check_refused (bm.directory + 16, 1, 2, EINVAL, "not known here");
  check_refused (bm.directory + 8, 4, UINT32_MAX, EINVAL, "not known here");
  check_refused (bm.directory + 8, 4, 1, EINVAL, "1 entries, where the disk "
                 "needs 2");
  check_refused (bm.directory + 8, 4, 3, EINVAL, "3 entries, where the disk "
                 "needs 2");
  check_refused (bm.directory, 8, UINT64_C (1) << 40, EINVAL,
                 "outside the file");
  check_refused (bm.directory, 8, 0, EINVAL, "bitmap table");
  check_refused (bm.directory, 8, 4096 + 512, EINVAL, "bitmap table");
  check_refused (bm.directory, 8, UINT64_MAX << 12, EINVAL, "bitmap table");
  check_refused (bm.directory + 17, 1, 64, EINVAL, "too large");
  check_refused (bm.directory + 17, 1, 8, EINVAL, "not known here");
  check_refused (bm.directory + 17, 1, 32, EINVAL, "not known here");
  check_refused (bm.table, 8, 2, EIO, "is not valid");
  check_refused (bm.table + 8, 8, 4096 + 1, EIO, "is not valid");
  check_refused (bm.table + 8, 8, UINT64_C (1) << 40, EIO, "end of the file");
  check_refused (bm.table + 8, 8, UINT64_C (0x00fffffffffff000), EIO,
                 "end of the file");
  check_refused (AUTOCLEAR, 8, 0, ENOENT, "no bitmap");
  check_refused (EXTENSION + 8, 4, 0, ENOENT, "no bitmap");
  check_refused (EXTENSION + 24, 8, 512, EINVAL, "bitmap directory offset");
}

/* Extra data that does no harm is passed over; other is not. */
static void
check_extra (uint32_t flags, bool usable)
{
  struct builder b;
  struct image *im;
  struct layer *l;

  build_small (&b);
  put_be32 (b.data + bm.directory + 12, flags);
  put_be32 (b.data + bm.directory + 20, 5);
  memcpy (b.data + bm.directory + 24, "extra" NAME, 5 + strlen (NAME));
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_EQ (l != NULL, usable);
  bitmap_rig_close (im, l);
}

/* What a list has is found by its name, and says what it is.  What can't be
 * opened is not in it, but has a description, too.
 */
static int
find_export (void *opaque, const char *name, const char *description)
{
  if (strcmp (name, IMAGE_BITMAP_PREFIX NAME) == 0) {
    CHECK_STR (description, opaque);
    return -1;
  }
  return 0;
}

static void
check_listed (uint32_t flags, bool listed, char *description)
{
  char text[256] = "";
  struct builder b;
  struct image *im;

  build_small (&b);
  put_be32 (b.data + bm.directory + 12, flags);
  im = bitmap_rig_open (&b);
  CHECK_EQ (image_list (im, find_export, description), listed ? -1 : 0);
  CHECK_OK (image_describe (im, IMAGE_BITMAP_PREFIX NAME, text, sizeof text));
  CHECK_STR (text, description);
  CHECK_EQ (image_describe (im, IMAGE_BITMAP_PREFIX "c", text, sizeof text),
            (uint64_t) -1);
  CHECK_ERROR (ENOENT, "no export");
  bitmap_rig_close (im, NULL);
}

/* A table that opening would refuse, although the state says nothing. */
static void
check_not_listed (uint64_t at, uint64_t value)
{
  static char any[] = "";
  struct builder b;
  struct image *im;

  build_small (&b);
  if (at == bm.directory)
    put_be64 (b.data + at, value);
  else
    put_be32 (b.data + at, value);
  im = bitmap_rig_open (&b);
  CHECK_EQ (image_list (im, find_export, any), 0);
  bitmap_rig_close (im, NULL);
}

static void
test_listed (void)
{
  static char enabled[] = "bitmap of changes, granularity 1024, enabled";
  static char disabled[] = "bitmap of changes, granularity 1024, disabled";
  static char in_use[] =
    "bitmap of changes, granularity 1024, in use: not to be trusted";
  static char unknown[] =
    "bitmap of changes, granularity 1024, of an unknown kind";

  check_extra (4, true);
  check_extra (AUTO | 4, true);
  check_extra (AUTO, false);
  check_listed (AUTO, true, enabled);
  check_listed (0, true, disabled);
  check_listed (AUTO | 1, false, in_use);
  check_listed (8, false, unknown);
  check_not_listed (bm.directory + 8, 1);
  check_not_listed (bm.directory + 8, 3);
  check_not_listed (bm.directory, UINT64_C (1) << 40);
}

/* Another entry after the first, with a name of this size. */
static void
build_second (struct builder *b, const char *name, unsigned size)
{
  uint8_t *p = b->data + bm.directory + 32;

  memcpy (p, b->data + bm.directory, 24);
  put_be16 (p + 18, size);
  memcpy (p + 24, name, size);
  put_be32 (b->data + EXTENSION + 8, 2);
  put_be64 (b->data + EXTENSION + 16, 64);
}

static void
check_names (const char *second, unsigned size, bool usable)
{
  static char listed[] = "bitmap of changes, granularity 1024, enabled";
  struct builder b;
  struct image *im;
  struct layer *l;

  build_small (&b);
  build_second (&b, second, size);
  im = bitmap_rig_open (&b);
  CHECK_EQ (image_list (im, find_export, listed), usable ? -1 : 0);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_EQ (l != NULL, usable);
  if (!usable) {
    CHECK_ERROR (EINVAL, "2 bitmaps have the name \"" NAME "\"");
    CHECK (!error_repeated ());
    CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
    CHECK (error_repeated ());
  }
  bitmap_rig_close (im, l);
}

/* A name that ends before its last byte is none; nor is one of two. */
static void
test_names (void)
{
  struct builder b;
  struct image *im;

  check_names ("c", 1, true);
  check_names (NAME NAME, 2, true);
  check_names (NAME, 1, false);
  check_names (NAME "\0x", 3, false);
  build_small (&b);
  put_be16 (b.data + bm.directory + 18, 3);
  memcpy (b.data + bm.directory + 24, NAME "\0x", 3);
  im = bitmap_rig_open (&b);
  CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
  CHECK_ERROR (EINVAL, "not known here");
  bitmap_rig_close (im, NULL);
}

static bool
nobody_is_kept_out (const struct storage *s)
{
  (void) s;
  return false;
}

/* Without a lock another program may write it: none is right then. */
static void
test_not_locked (void)
{
  static char any[] = "";
  struct storage_ops ops;
  struct storage *s;
  struct builder b;
  struct image *im;
  unsigned i;

  build_small (&b);
  build_finish (&b);
  memory_disk_init (&bm.disk, b.data, b.size);
  build_free (&b);
  memset (&bm.control, 0, sizeof bm.control);
  s = memory_disk_open (&bm.disk, "test", &bm.control);
  ops = *s->ops;
  ops.keeps_writers_out = nobody_is_kept_out;
  s->ops = &ops;
  im = image_open_storage (s, CACHE_MIN_BYTES);
  CHECK_EQ (image_list (im, find_export, any), 0);
  for (i = 0; i < 2; ++i) {
    CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
    CHECK_ERROR (ENOTSUP, "another process may write the image (no lock");
    CHECK_EQ (error_repeated (), i);
  }
  bitmap_rig_close (im, NULL);
}

/* ----------------------------------------------------------- given up, late */

static int
ignore_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  (void) opaque, (void) offset, (void) length, (void) flags;
  return 0;
}

static int
extents_of (const struct layer *l)
{
  return layer_extents (l, l->size, (struct guest_off) { 0 }, false,
                        ignore_extent, NULL);
}

/* It is valid until the first change, not only until the image is writable. */
static void
test_given_up (void)
{
  static const struct writer_options invalidate = {
    .invalidate_bitmaps = true,
  };
  struct builder b;
  struct image *im;
  struct layer *l;

  build_small (&b);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (image_make_writable (im, &invalidate));
  CHECK_OK (extents_of (l));
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_EQ (extents_of (l), (uint64_t) -1);
  CHECK_ERROR (EIO, "not valid any more");
  CHECK (!error_repeated ());
  CHECK_EQ (extents_of (l), (uint64_t) -1);
  CHECK (error_repeated ());
  CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
  CHECK_ERROR (EINVAL, "in use");
  bitmap_rig_close (im, l);
}

/* A disabled one stays. */
static void
test_disabled (void)
{
  static const struct writer_options careful = { 0 };
  struct builder b;
  struct image *im;
  struct layer *l;

  build_small (&b);
  put_be32 (b.data + bm.directory + 12, 0);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (image_make_writable (im, &careful));
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_OK (extents_of (l));
  bitmap_rig_close (im, l);
}

/* A repair that gives bitmaps up clears the header's bit. */
static void
test_cleared (void)
{
  struct builder b;
  struct image *im;
  struct layer *l;

  build_small (&b);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (extents_of (l));
  put_be64 (bm.disk.data + AUTOCLEAR, 0);
  CHECK_EQ (extents_of (l), (uint64_t) -1);
  CHECK_ERROR (EIO, "not valid any more");
  put_be64 (bm.disk.data + AUTOCLEAR, QCOW2_AUTOCLEAR_BITMAPS);
  put_be64 (bm.disk.data + bm.table, 2);
  CHECK_EQ (extents_of (l), (uint64_t) -1);
  CHECK_ERROR (EIO, "is not valid");
  bitmap_rig_close (im, l);
}

/* There is a new directory, and the old one is as it was: only what the new one has
 * counts, with the same table.
 */
static void
test_moved (void)
{
  static const struct {
    unsigned at; /* in the new entry; 0: it is the same */
    uint8_t byte;
    bool valid;
  } changed[] = {
    { .valid = true },
    { 15, 0, false },                      /* disabled */
    { 15, QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE, false },
    { 5, 7, false },                       /* another table */
    { 17, 11, false },                     /* another granularity */
    { 24, 'x', false },                    /* another name */
  };
  struct builder b;
  struct image *im;
  struct layer *l;
  unsigned i;

  for (i = 0; i < sizeof changed / sizeof changed[0]; ++i) {
    uint64_t other;

    build_small (&b);
    other = build_clusters (&b, 1);
    memcpy (b.data + other, b.data + bm.directory, b.cluster_size);
    if (changed[i].at != 0)
      b.data[other + changed[i].at] = changed[i].byte;
    im = bitmap_rig_open (&b);
    l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
    CHECK_OK (extents_of (l));
    put_be64 (bm.disk.data + EXTENSION + 24, other);
    CHECK_EQ (extents_of (l), changed[i].valid ? 0 : (uint64_t) -1);
    if (!changed[i].valid)
      CHECK_ERROR (EIO, "not valid any more");
    if (check_any_failed ())
      fprintf (stderr, "change %u\n", i);
    bitmap_rig_close (im, l);
  }
}

/* What the file has lost since it was opened is not clean. */
static void
test_truncated (void)
{
  struct builder b;
  struct image *im;
  struct layer *l;
  uint64_t whole, last;
  unsigned i;

  build_small (&b);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  whole = bm.disk.size;
  last = get_be64 (bm.disk.data + bm.table + 8);
  CHECK_EQ (last, get_be64 (bm.disk.data + bm.table) + 4096);
  for (i = 0; i < 5; ++i) {
    const uint64_t cut[] = {
      last + 4095, last + 1, last, last - 1, bm.table + 8
    };

    bm.disk.size = cut[i];
    CHECK_EQ (extents_of (l), (uint64_t) -1);
    CHECK_ERROR (EIO, "the file ends there");
  }
  bm.disk.size = last + 4096;
  CHECK_OK (extents_of (l));
  bm.disk.size = whole;
  bitmap_rig_close (im, l);
}

/* A table that ends where the file does, within a page. */
static void
test_table_at_end (void)
{
  struct builder b;
  struct image *im;
  struct layer *l;
  uint8_t *bytes;

  build_small (&b);
  build_finish (&b);
  bytes = malloc (b.size + 16);
  if (bytes == NULL)
    abort ();
  memcpy (bytes, b.data, b.size);
  memcpy (bytes + b.size, b.data + bm.table, 16);
  put_be64 (bytes + bm.directory, b.size);
  memory_disk_init (&bm.disk, bytes, b.size + 16);
  free (bytes);
  build_free (&b);
  memset (&bm.control, 0, sizeof bm.control);
  im = image_open_storage (memory_disk_open (&bm.disk, "test", &bm.control),
                           CACHE_MIN_BYTES);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK (l != NULL);
  if (l != NULL)
    CHECK_OK (extents_of (l));
  bitmap_rig_close (im, l);
}

/* Each read that fails fails the whole, but for those which only save others. */
static void
test_unreadable (void)
{
  unsigned call, failed = 0, right = 0;
  struct builder b;
  struct image *im;
  struct layer *l;

  build_small (&b);
  im = bitmap_rig_open (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (extents_of (l)); /* the disk's tables are in the cache then */
  for (call = 1; call < 100; ++call) {
    memory_fail (&bm.control, MEMORY_READ, call, EIO);
    if (extents_of (l) == 0)
      right++;
    else {
      CHECK_ERROR (EIO, "");
      failed++;
    }
    if (bm.control.failed == 0)
      break;
  }
  /* Where it was last seen is looked at by three reads; if one fails it is looked
   * for in the directory.
   */
  CHECK (failed >= 2 && failed < 5);
  CHECK_EQ (right, 4);
  memset (&bm.control, 0, sizeof bm.control);
  /* The header twice, and the table; a page of the directory that can't be read
   * is read in part.
   */
  for (call = 1, failed = 0; call < 20; ++call) {
    struct layer *other;

    memory_fail (&bm.control, MEMORY_READ, call, EIO);
    other = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
    if (other == NULL)
      CHECK_ERROR (EIO, "");
    failed += other == NULL;
    image_close_disk (other);
  }
  CHECK_EQ (failed, 3);
  memset (&bm.control, 0, sizeof bm.control);
  bitmap_rig_close (im, l);
}

int
main (void)
{
  check_time_limit (100);
  test_refused ();
  test_listed ();
  test_names ();
  test_not_locked ();
  test_given_up ();
  test_disabled ();
  test_cleared ();
  test_moved ();
  test_truncated ();
  test_table_at_end ();
  test_unreadable ();
  return check_result ();
}
