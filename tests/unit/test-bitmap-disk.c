/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/bitmap-disk.c: what a bitmap says of a disk, against a model; and
 * bitmaps that can't be used.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "build.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image.h"
#include "random.h"

#define EXTENSION 112 /* where it is in the header */
#define AUTO 2
#define AUTOCLEAR 88
#define NAME "b"

static struct memory_disk disk;
static struct memory_control control;

/* Where the parts of the image with a bitmap are. */
static uint64_t directory, table;
static uint64_t seed = 1;

static uint64_t
divide_up (uint64_t n, uint64_t by)
{
  return (n + by - 1) / by;
}

/* A part of the bitmap, from these bits (a cluster of them): as its entry says
 * if all are the same, sometimes.
 */
static uint64_t
build_part (struct builder *b, const uint8_t *bits)
{
  const uint8_t first = bits[0];
  uint64_t i, host;

  for (i = 0; i < b->cluster_size && bits[i] == first; ++i)
    ;
  if (i == b->cluster_size && (first == 0 || first == 0xff) &&
      random_below (&seed, 4) > 0)
    return first & 1;
  host = build_clusters (b, 1);
  memcpy (b->data + host, bits, b->cluster_size);
  return host;
}

/* Add a directory with a bitmap of these bits, a number of whole clusters. */
static void
build_bitmap (struct builder *b, unsigned granularity_bits, const uint8_t *bits,
              uint64_t nr_parts)
{
  uint64_t i;
  uint8_t *p;

  directory = build_clusters (b, 1);
  table = build_clusters (b, divide_up (nr_parts * 8, b->cluster_size));
  for (i = 0; i < nr_parts; ++i) {
    const uint64_t word = build_part (b, bits + i * b->cluster_size);

    put_be64 (b->data + table + 8 * i, word);
  }
  p = b->data + directory;
  put_be64 (p, table);
  put_be32 (p + 8, nr_parts);
  put_be32 (p + 12, AUTO);
  p[16] = 1;
  p[17] = granularity_bits;
  put_be16 (p + 18, strlen (NAME));
  memcpy (p + 24, NAME, strlen (NAME));
  p = b->data + EXTENSION;
  put_be32 (p, QCOW2_EXT_BITMAPS);
  put_be32 (p + 4, 24);
  put_be32 (p + 8, 1);
  put_be64 (p + 16, 32);
  put_be64 (p + 24, directory);
  put_be64 (b->data + AUTOCLEAR, QCOW2_AUTOCLEAR_BITMAPS);
}

static struct image *
open_image (struct builder *b)
{
  build_finish (b);
  memory_disk_init (&disk, b->data, b->size);
  build_free (b);
  memset (&control, 0, sizeof control);
  return image_open_storage (memory_disk_open (&disk, "test", &control),
                             CACHE_MIN_BYTES);
}

static void
close_image (struct image *im, struct layer *l)
{
  image_close_disk (l);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

/* ------------------------------------------------------------------ extents */

/* Extents as one byte of flags for each unit of the disk. */
struct painting {
  uint8_t *flags;
  uint64_t unit, next;
  unsigned nr, last;
};

static int
paint (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct painting *p = opaque;

  CHECK_EQ (offset, p->next);
  CHECK (length > 0);
  CHECK (p->nr == 0 || flags != p->last);
  memset (p->flags + offset / p->unit, flags, divide_up (length, p->unit));
  p->next += length;
  p->last = flags;
  p->nr++;
  return 0;
}

/* The extents from at on must be what they are as a whole. */
static void
check_piece (const struct layer *l, const uint8_t *whole, uint64_t unit,
             uint64_t at, uint64_t count)
{
  const uint64_t units = divide_up (l->size, unit);
  struct painting p = { calloc (units, 1), unit, at, 0, 0 };

  CHECK_OK (layer_extents (l, count, (struct guest_off) { at }, false, paint,
                           &p));
  CHECK_EQ (p.next, at + count);
  CHECK (memcmp (p.flags + at / unit, whole + at / unit, count / unit) == 0);
  p.nr = 0;
  p.next = at;
  CHECK_OK (layer_extents (l, count, (struct guest_off) { at }, true, paint,
                           &p));
  CHECK_EQ (p.nr, 1);
  if (p.next < at + count)
    CHECK (whole[p.next / unit] != p.last);
  free (p.flags);
}

/* All of the disk against the bits and the live disk; then pieces of it. */
static void
compare (const struct image *im, const struct layer *l, const uint8_t *bits,
         uint64_t granularity, uint64_t unit)
{
  struct layer *live = image_open_disk (im, "");
  const uint64_t units = divide_up (l->size, unit);
  struct painting own = { calloc (units, 1), unit, 0, 0, 0 };
  struct painting changed = { calloc (units, 1), unit, 0, 0, 0 };
  const struct guest_off start = { 0 };
  unsigned i;
  uint64_t u;

  CHECK_OK (layer_extents (live, l->size, start, false, paint, &own));
  CHECK_OK (layer_extents (l, l->size, start, false, paint, &changed));
  CHECK_EQ (changed.next, l->size);
  for (u = 0; u < units; ++u) {
    const uint64_t bit = u * unit / granularity;
    const unsigned wanted = bits[bit / 8] >> bit % 8 & 1
      ? own.flags[u] & EXTENT_ZERO : EXTENT_HOLE;

    if (changed.flags[u] != wanted) {
      check_failed (__FILE__, __LINE__, "bit %" PRIu64 ": flags %u are not %u",
                    bit, changed.flags[u], wanted);
      break;
    }
  }
  for (i = 0; i < 5; ++i) {
    const uint64_t first = random_below (&seed, units);
    const uint64_t n = 1 + random_below (&seed, units - first);

    if ((first + n) * unit <= l->size)
      check_piece (l, changed.flags, unit, first * unit, n * unit);
  }
  free (own.flags);
  free (changed.flags);
  image_close_disk (live);
}

/* Runs of bits, of all lengths. */
static uint8_t *
random_bits (uint64_t bytes)
{
  uint8_t *bits = calloc (bytes, 1);
  uint64_t at = 0, n;

  while (at < 8 * bytes) {
    const bool set = random_below (&seed, 2);

    n = UINT64_C (1) << random_below (&seed, 16);
    for (; n > 0 && at < 8 * bytes; --n, ++at)
      if (set)
        bits[at / 8] |= 1 << at % 8;
  }
  return bits;
}

static void
check_matrix (unsigned cluster_bits, bool extended, unsigned granularity_bits,
              uint64_t disk_size)
{
  const uint64_t granularity = UINT64_C (1) << granularity_bits;
  const uint64_t unit = 512;
  uint64_t nr_parts, i;
  struct image *im;
  struct builder b;
  struct layer *l;
  uint8_t *bits;

  build_start (&b, 3, cluster_bits, extended, COMPRESSION_DEFLATE, disk_size);
  for (i = 0; i < disk_size >> cluster_bits && i < 50; ++i) {
    if (random_below (&seed, 3) > 0)
      build_entry (&b, i, build_data (&b, i) | QCOW2_ENTRY_COPIED,
                   extended ? random_next (&seed) & UINT32_MAX : 0);
    else if (!extended && random_below (&seed, 2))
      build_entry (&b, i, QCOW2_L2_ZERO, 0);
  }
  nr_parts = divide_up (divide_up (disk_size, granularity),
                        8 * b.cluster_size);
  bits = random_bits (nr_parts << cluster_bits);
  build_bitmap (&b, granularity_bits, bits, nr_parts);
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  if (l == NULL)
    check_failed (__FILE__, __LINE__, "%s", error_message ());
  else {
    CHECK_EQ (l->size, disk_size);
    compare (im, l, bits, granularity, unit);
  }
  CHECK_EQ (control.writes, 0);
  close_image (im, l);
  free (bits);
}

static void
test_matrix (void)
{
  check_matrix (9, false, 9, 2 << 20);
  check_matrix (9, false, 9, (3 << 20) + 512 * 77);
  check_matrix (12, false, 9, (20 << 20) + 512 * 3);
  check_matrix (14, true, 10, (60 << 20) + 512);
  check_matrix (16, false, 9, (70 << 20) + 512 * 5);
  check_matrix (16, true, 16, 64 << 20);
  check_matrix (16, false, 31, 64 << 20);
  check_matrix (18, false, 12, (100 << 20) + 512 * 9);
}

/* Reads have nothing to do with it. */
static void
test_read (void)
{
  uint8_t bits[4096] = { 0 }, data[8192], wanted[8192];
  struct image *im;
  struct builder b;
  struct layer *l, *live;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  build_entry (&b, 1, build_data (&b, 7) | QCOW2_ENTRY_COPIED, 0);
  build_bitmap (&b, 16, bits, 1);
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  live = image_open_disk (im, "");
  CHECK_OK (layer_read (l, data, sizeof data, (struct guest_off) { 0 }));
  CHECK_OK (layer_read (live, wanted, sizeof data, (struct guest_off) { 0 }));
  CHECK (memcmp (data, wanted, sizeof data) == 0);
  CHECK (data[5000] != 0 || data[5001] != 0);
  image_close_disk (live);
  close_image (im, l);
}

/* -------------------------------------------------------------- not usable */

/* A bitmap of two clusters, in clusters of 4 KiB. */
static void
build_small (struct builder *b)
{
  uint8_t bits[8192];

  memset (bits, 0x55, sizeof bits);
  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, 64 << 20);
  build_bitmap (b, 10, bits, 2);
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
  im = open_image (&b);
  CHECK (im != NULL);
  CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
  CHECK_ERROR (err, why);
  CHECK (!error_repeated ());
  CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
  CHECK_EQ (error_repeated (), err != ENOENT);
  CHECK_EQ (control.writes, 0);
  close_image (im, NULL);
}

static void
test_refused (void)
{
  struct builder b;

  build_small (&b); /* to know where things are */
  build_free (&b);
  check_refused (directory + 12, 4, 1, EINVAL, "in use");
  check_refused (directory + 12, 4, AUTO | 1, EINVAL, "in use");
  check_refused (directory + 12, 4, AUTO | 8, EINVAL, "not known here");
  check_refused (directory + 12, 4, UINT32_C (1) << 31, EINVAL, "not known");
  check_refused (directory + 16, 1, 0, EINVAL, "not known here");
  check_refused (directory + 16, 1, 2, EINVAL, "not known here");
  check_refused (directory + 8, 4, UINT32_MAX, EINVAL, "not known here");
  check_refused (directory + 8, 4, 1, EINVAL, "1 entries, where the disk "
                 "needs 2");
  check_refused (directory + 8, 4, 3, EINVAL, "3 entries, where the disk "
                 "needs 2");
  check_refused (directory, 8, UINT64_C (1) << 40, EINVAL, "outside the file");
  check_refused (directory, 8, 0, EINVAL, "bitmap table");
  check_refused (directory, 8, 4096 + 512, EINVAL, "bitmap table");
  check_refused (directory, 8, UINT64_MAX << 12, EINVAL, "bitmap table");
  check_refused (directory + 17, 1, 64, EINVAL, "too large");
  check_refused (directory + 17, 1, 8, EINVAL, "not known here");
  check_refused (directory + 17, 1, 32, EINVAL, "not known here");
  check_refused (table, 8, 2, EIO, "is not valid");
  check_refused (table + 8, 8, 4096 + 1, EIO, "is not valid");
  check_refused (table + 8, 8, UINT64_C (1) << 40, EIO, "end of the file");
  check_refused (table + 8, 8, UINT64_C (0x00fffffffffff000), EIO,
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
  put_be32 (b.data + directory + 12, flags);
  put_be32 (b.data + directory + 20, 5);
  memcpy (b.data + directory + 24, "extra" NAME, 5 + strlen (NAME));
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_EQ (l != NULL, usable);
  close_image (im, l);
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
  put_be32 (b.data + directory + 12, flags);
  im = open_image (&b);
  CHECK_EQ (image_list (im, find_export, description), listed ? -1 : 0);
  CHECK_OK (image_describe (im, IMAGE_BITMAP_PREFIX NAME, text, sizeof text));
  CHECK_STR (text, description);
  CHECK_EQ (image_describe (im, IMAGE_BITMAP_PREFIX "c", text, sizeof text),
            (uint64_t) -1);
  CHECK_ERROR (ENOENT, "no export");
  close_image (im, NULL);
}

/* A table that opening would refuse, although the state says nothing. */
static void
check_not_listed (uint64_t at, uint64_t value)
{
  static char any[] = "";
  struct builder b;
  struct image *im;

  build_small (&b);
  if (at == directory)
    put_be64 (b.data + at, value);
  else
    put_be32 (b.data + at, value);
  im = open_image (&b);
  CHECK_EQ (image_list (im, find_export, any), 0);
  close_image (im, NULL);
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
  check_not_listed (directory + 8, 1);
  check_not_listed (directory + 8, 3);
  check_not_listed (directory, UINT64_C (1) << 40);
}

/* Another entry after the first, with a name of this size. */
static void
build_second (struct builder *b, const char *name, unsigned size)
{
  uint8_t *p = b->data + directory + 32;

  memcpy (p, b->data + directory, 24);
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
  im = open_image (&b);
  CHECK_EQ (image_list (im, find_export, listed), usable ? -1 : 0);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_EQ (l != NULL, usable);
  if (!usable) {
    CHECK_ERROR (EINVAL, "2 bitmaps have the name \"" NAME "\"");
    CHECK (!error_repeated ());
    CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
    CHECK (error_repeated ());
  }
  close_image (im, l);
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
  put_be16 (b.data + directory + 18, 3);
  memcpy (b.data + directory + 24, NAME "\0x", 3);
  im = open_image (&b);
  CHECK (image_open_disk (im, IMAGE_BITMAP_PREFIX NAME) == NULL);
  CHECK_ERROR (EINVAL, "not known here");
  close_image (im, NULL);
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
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  memset (&control, 0, sizeof control);
  s = memory_disk_open (&disk, "test", &control);
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
  close_image (im, NULL);
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
  im = open_image (&b);
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
  close_image (im, l);
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
  put_be32 (b.data + directory + 12, 0);
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (image_make_writable (im, &careful));
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_OK (extents_of (l));
  close_image (im, l);
}

/* A repair that gives bitmaps up clears the header's bit. */
static void
test_cleared (void)
{
  struct builder b;
  struct image *im;
  struct layer *l;

  build_small (&b);
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (extents_of (l));
  put_be64 (disk.data + AUTOCLEAR, 0);
  CHECK_EQ (extents_of (l), (uint64_t) -1);
  CHECK_ERROR (EIO, "not valid any more");
  put_be64 (disk.data + AUTOCLEAR, QCOW2_AUTOCLEAR_BITMAPS);
  put_be64 (disk.data + table, 2);
  CHECK_EQ (extents_of (l), (uint64_t) -1);
  CHECK_ERROR (EIO, "is not valid");
  close_image (im, l);
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
    memcpy (b.data + other, b.data + directory, b.cluster_size);
    if (changed[i].at != 0)
      b.data[other + changed[i].at] = changed[i].byte;
    im = open_image (&b);
    l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
    CHECK_OK (extents_of (l));
    put_be64 (disk.data + EXTENSION + 24, other);
    CHECK_EQ (extents_of (l), changed[i].valid ? 0 : (uint64_t) -1);
    if (!changed[i].valid)
      CHECK_ERROR (EIO, "not valid any more");
    if (check_any_failed ())
      fprintf (stderr, "change %u\n", i);
    close_image (im, l);
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
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  whole = disk.size;
  last = get_be64 (disk.data + table + 8);
  CHECK_EQ (last, get_be64 (disk.data + table) + 4096);
  for (i = 0; i < 5; ++i) {
    const uint64_t cut[] = { last + 4095, last + 1, last, last - 1, table + 8 };

    disk.size = cut[i];
    CHECK_EQ (extents_of (l), (uint64_t) -1);
    CHECK_ERROR (EIO, "the file ends there");
  }
  disk.size = last + 4096;
  CHECK_OK (extents_of (l));
  disk.size = whole;
  close_image (im, l);
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
  memcpy (bytes + b.size, b.data + table, 16);
  put_be64 (bytes + directory, b.size);
  memory_disk_init (&disk, bytes, b.size + 16);
  free (bytes);
  build_free (&b);
  memset (&control, 0, sizeof control);
  im = image_open_storage (memory_disk_open (&disk, "test", &control),
                           CACHE_MIN_BYTES);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK (l != NULL);
  if (l != NULL)
    CHECK_OK (extents_of (l));
  close_image (im, l);
}

static int
count_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  uint32_t *nr = opaque;

  (void) offset, (void) length, (void) flags;
  ++*nr;
  return 0;
}

/* Every other sector has changed. */
static void
test_many (void)
{
  const uint64_t size = UINT64_C (2) << 30;
  uint8_t *bits = malloc (size / 512 / 8);
  struct builder b;
  struct image *im;
  struct layer *l;
  uint32_t nr = 0;

  if (bits == NULL)
    abort ();
  memset (bits, 0x55, size / 512 / 8);
  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, size);
  build_bitmap (&b, 9, bits, size / 512 / 8 / 65536);
  free (bits);
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (layer_extents (l, size, (struct guest_off) { 0 }, false,
                           count_extent, &nr));
  CHECK_EQ (nr, EXTENTS_MAX);
  close_image (im, l);
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
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
  CHECK_OK (extents_of (l)); /* the disk's tables are in the cache then */
  for (call = 1; call < 100; ++call) {
    memory_fail (&control, MEMORY_READ, call, EIO);
    if (extents_of (l) == 0)
      right++;
    else {
      CHECK_ERROR (EIO, "");
      failed++;
    }
    if (control.failed == 0)
      break;
  }
  /* Where it was last seen is looked at by three reads; if one fails it is looked
   * for in the directory.
   */
  CHECK (failed >= 2 && failed < 5);
  CHECK_EQ (right, 4);
  memset (&control, 0, sizeof control);
  /* The header twice, and the table; a page of the directory that can't be read
   * is read in part.
   */
  for (call = 1, failed = 0; call < 20; ++call) {
    struct layer *other;

    memory_fail (&control, MEMORY_READ, call, EIO);
    other = image_open_disk (im, IMAGE_BITMAP_PREFIX NAME);
    if (other == NULL)
      CHECK_ERROR (EIO, "");
    failed += other == NULL;
    image_close_disk (other);
  }
  CHECK_EQ (failed, 3);
  memset (&control, 0, sizeof control);
  close_image (im, l);
}

int
main (void)
{
  check_time_limit (100);
  test_matrix ();
  test_read ();
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
  test_many ();
  test_unreadable ();
  return check_result ();
}
