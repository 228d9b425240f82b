/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/changed-disk.c: what has changed since a snapshot, for each pair of
 * entries; beside writing; and against the data of disks made at random.
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

static struct memory_disk disk[2];
static struct memory_control control[2];
static uint64_t seed = 1;

/* Of a backing file; 0: there is none. */
static uint64_t back_size;

/* Of the first snapshot's disk; 0: like the live one's. */
static uint64_t first_size;

static struct image *
open_image (struct builder *b)
{
  struct storage *s[2];

  build_finish (b);
  if (first_size > 0)
    put_be64 (b->data + get_be64 (b->data + 64) + 48, first_size);
  memory_disk_init (&disk[0], b->data, b->size);
  build_free (b);
  memset (control, 0, sizeof control);
  s[0] = memory_disk_open (&disk[0], "test", &control[0]);
  if (back_size > 0) {
    uint8_t *back = malloc (back_size);

    memset (back, 0xbb, back_size);
    memory_disk_init (&disk[1], back, back_size);
    free (back);
    s[1] = memory_disk_open (&disk[1], "back", &control[1]);
  }
  return image_open_storages (s, back_size > 0 ? 2 : 1, CACHE_MIN_BYTES);
}

static void
close_image (struct image *im)
{
  CHECK_OK (image_close (im));
  memory_disk_free (&disk[0]);
  if (back_size > 0)
    memory_disk_free (&disk[1]);
}

/* Extents as one byte of flags for each sector. */
struct painting {
  uint8_t *flags;
  uint64_t next;
};

static int
paint (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct painting *p = opaque;

  CHECK_EQ (offset, p->next);
  memset (p->flags + offset / 512, flags, length / 512);
  p->next += length;
  return 0;
}

/* The caller frees it. */
static uint8_t *
flags_of (const struct layer *l)
{
  struct painting p = { calloc (l->size / 512, 1), 0 };

  CHECK_OK (layer_extents (l, l->size, (struct guest_off) { 0 }, false, paint,
                           &p));
  CHECK_EQ (p.next, l->size);
  return p.flags;
}

/* -------------------------------------------------------- pairs of entries */

enum what {
  NOTHING, ZERO, ZERO_KEPT, DATA_1, DATA_2, COMPRESSED_1, COMPRESSED_2, BAD,
  NR_WHAT,
};

/* Entries; host clusters to refer to. */
struct hosts {
  uint64_t kept, data[2], compressed[2];
};

static void
set_entry (struct builder *b, uint64_t cluster, enum what what,
           const struct hosts *h)
{
  static const uint64_t bad = 512 + 8;
  const uint64_t word[NR_WHAT] = {
    [ZERO] = QCOW2_L2_ZERO,
    [ZERO_KEPT] = QCOW2_L2_ZERO | h->kept,
    [DATA_1] = h->data[0],
    [DATA_2] = h->data[1],
    [COMPRESSED_1] = h->compressed[0],
    [COMPRESSED_2] = h->compressed[1],
    [BAD] = bad << 8,
  };

  build_entry (b, cluster, word[what], 0);
}

static bool
is_same (enum what a, enum what b, bool below)
{
  const bool a_zero = a == ZERO || a == ZERO_KEPT || (a == NOTHING && !below);
  const bool b_zero = b == ZERO || b == ZERO_KEPT || (b == NOTHING && !below);

  return a == b || (a_zero && b_zero);
}

static uint64_t
compressed_word (struct builder *b)
{
  uint8_t plain[4096] = { 1 };

  build_compressed (b, 0, plain, 0);
  return get_be64 (b->data + build_l2_place (b, 0));
}

/* Each pair of entries, in its own cluster; then all again behind a gap. */
static void
check_pairs (uint64_t back)
{
  const uint64_t nr = 2 * NR_WHAT * NR_WHAT;
  struct hosts h;
  struct builder b;
  struct image *im;
  struct layer *l;
  uint8_t *flags;
  uint64_t i;

  back_size = back;
  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, nr << 12);
  if (back > 0)
    build_backing (&b, "raw");
  h.kept = build_clusters (&b, 1);
  h.data[0] = build_data (&b, 1);
  h.data[1] = build_data (&b, 2);
  h.compressed[0] = compressed_word (&b);
  h.compressed[1] = compressed_word (&b);
  for (i = 0; i < nr; ++i)
    set_entry (&b, i, i / NR_WHAT % NR_WHAT, &h);
  build_snapshot (&b, 100, &seed);
  for (i = 0; i < nr; ++i)
    set_entry (&b, i, i % NR_WHAT, &h);
  im = open_image (&b);
  l = image_open_disk (im, IMAGE_CHANGED_PREFIX "1");
  flags = flags_of (l);
  for (i = 0; i < 8 * nr; ++i) {
    const enum what from = i / 8 / NR_WHAT % NR_WHAT, to = i / 8 % NR_WHAT;
    const bool below = i * 512 < back;
    const bool zero = to == ZERO || to == ZERO_KEPT || (to == NOTHING && !below);
    const unsigned wanted = is_same (from, to, below) ? EXTENT_HOLE
      : zero ? EXTENT_ZERO : 0;

    if (flags[i] != wanted) {
      check_failed (__FILE__, __LINE__, "%d to %d, below %d: flags %u are not "
                    "%u", from, to, below, flags[i], wanted);
      break;
    }
  }
  free (flags);
  image_close_disk (l);
  close_image (im);
}

static void
test_pairs (void)
{
  check_pairs (0);
  check_pairs (4096 * NR_WHAT * NR_WHAT + 512 * 3);
  check_pairs (4096 * 2 * NR_WHAT * NR_WHAT);
}

/* ---------------------------------------------------------------- at random */

static void
random_entries (struct builder *b, uint64_t nr, unsigned percent)
{
  uint64_t i;

  for (i = 0; i < nr; ++i) {
    uint64_t word = 0, bitmap = 0;

    if (random_below (&seed, 100) >= percent)
      continue;
    if (random_below (&seed, 4) > 0)
      word = build_data (b, random_next (&seed));
    if (b->extended) {
      const uint32_t zero = random_next (&seed);

      bitmap = (uint64_t) zero << 32;
      if (word != 0)
        bitmap |= random_next (&seed) & ~zero & UINT32_MAX;
    }
    else if (random_below (&seed, 5) == 0)
      word |= QCOW2_L2_ZERO;
    build_entry (b, i, word, bitmap);
  }
}

/* What differs has changed, and what reads as zeros is right. */
static void
check_data (const struct image *im, const char *from, const char *to,
            const char *changed)
{
  struct layer *a = image_open_disk (im, from), *b = image_open_disk (im, to);
  struct layer *l = image_open_disk (im, changed);
  uint8_t *flags, x[512], y[512];
  const uint8_t none[512] = { 0 };
  uint64_t at;

  CHECK (l != NULL);
  if (l == NULL)
    return;
  flags = flags_of (l);
  CHECK_EQ (l->size, b->size);
  for (at = 0; at < b->size; at += 512) {
    const struct guest_off offset = { at };
    const unsigned f = flags[at / 512];

    CHECK_OK (layer_read (b, y, sizeof y, offset));
    if (at < a->size)
      CHECK_OK (layer_read (a, x, sizeof x, offset));
    if (at >= a->size || memcmp (x, y, sizeof x) != 0)
      CHECK (f != EXTENT_HOLE);
    if (f & EXTENT_ZERO)
      CHECK (memcmp (y, none, sizeof y) == 0);
  }
  free (flags);
  image_close_disk (l);
  image_close_disk (b);
  image_close_disk (a);
}

static void
check_random (unsigned cluster_bits, bool extended, unsigned copied,
              uint64_t back)
{
  const uint64_t size = (UINT64_C (3) << 20) + 512 * 5;
  const uint64_t nr = size >> cluster_bits;
  struct builder b;
  struct image *im;

  back_size = back;
  build_start (&b, 3, cluster_bits, extended, COMPRESSION_DEFLATE, size);
  if (back > 0)
    build_backing (&b, "raw");
  random_entries (&b, nr, 40);
  build_snapshot (&b, copied, &seed);
  if (copied == 100)
    random_entries (&b, nr, 20);
  build_snapshot (&b, 100, &seed);
  random_entries (&b, nr, 5);
  im = open_image (&b);
  check_data (im, "snapshot/1", "", "changed/1");
  check_data (im, "snapshot/2", "", "changed/b");
  check_data (im, "snapshot/1", "snapshot/2", "changed/a/2");
  check_data (im, "snapshot/2", "snapshot/1", "changed/2/1");
  close_image (im);
}

static void
test_random (void)
{
  check_random (9, false, 100, 0);
  check_random (12, false, 100, 1 << 20);
  check_random (12, false, 0, 0);
  check_random (16, false, 100, 5 << 20);
  check_random (14, true, 100, 1 << 20);
  check_random (16, true, 0, 0);
  first_size = (2 << 20) + 512 * 7;
  check_random (12, false, 100, 0);
  check_random (16, false, 0, 1 << 20);
  check_random (16, true, 100, 5 << 20);
  first_size = (4 << 20) + 512;
  check_random (12, false, 100, 0);
  first_size = 0;
}

/* ------------------------------------------------------------ L2 tables */

static void
check_table_flags (const struct image *im, const char *name,
                   const unsigned *wanted, unsigned nr)
{
  struct layer *l = image_open_disk (im, name);
  uint8_t *flags = flags_of (l);
  unsigned i;

  for (i = 0; i < nr; ++i)
    if (flags[i * 4096] != wanted[i])
      check_failed (__FILE__, __LINE__, "%s, table %u: flags %u are not %u",
                    name, i, flags[i * 4096], wanted[i]);
  free (flags);
  image_close_disk (l);
}

/* Tables that only one of both has: with data; with nothing in it; with zeros.
 * Then one that both have, and one that none has.
 */
static void
check_tables (uint64_t back)
{
  enum { PER_TABLE = 512, NR = 8 };
  const unsigned zeros = back > 0 ? EXTENT_ZERO : EXTENT_HOLE;
  const unsigned gone = back > 0 ? 0 : EXTENT_ZERO;
  const unsigned forth[NR] = {
    0, gone, EXTENT_HOLE, EXTENT_HOLE, zeros, back > 0 ? 0 : EXTENT_HOLE,
    EXTENT_HOLE, EXTENT_HOLE,
  };
  struct builder b;
  struct image *im;
  unsigned i;

  back_size = back;
  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE,
               (uint64_t) NR * PER_TABLE << 12);
  if (back > 0)
    build_backing (&b, "raw");
  build_entry (&b, 1 * PER_TABLE, build_data (&b, 1), 0);
  build_l2_place (&b, 3 * PER_TABLE);
  build_entry (&b, 5 * PER_TABLE, QCOW2_L2_ZERO, 0);
  build_entry (&b, 6 * PER_TABLE, build_data (&b, 6), 0);
  build_snapshot (&b, 0, &seed);
  for (i = 1; i < 6; i += 2) /* which only the snapshot has now */
    put_be64 (b.data + b.l1_offset + 8 * i, 0);
  build_entry (&b, 0 * PER_TABLE, build_data (&b, 2), 0);
  build_l2_place (&b, 2 * PER_TABLE);
  build_entry (&b, 4 * PER_TABLE, QCOW2_L2_ZERO, 0);
  im = open_image (&b);
  check_table_flags (im, "changed/1", forth, NR);
  check_data (im, "snapshot/1", "", "changed/1");
  close_image (im);
}

static void
test_tables (void)
{
  check_tables (0);
  check_tables (UINT64_C (1) << 24);
}

/* ------------------------------------------------------------ beside writing */

static void
check_has (const struct layer *l, uint64_t at, uint64_t count)
{
  uint8_t *flags = flags_of (l);
  uint64_t i;

  for (i = at / 512; i < (at + count) / 512; ++i)
    CHECK (flags[i] != EXTENT_HOLE);
  free (flags);
}

/* What was answered is there, whether it was written back or not: with one slice
 * for each table, and with several.
 */
static void
check_writing (unsigned cluster_bits, uint64_t size)
{
  static const uint8_t data[65536] = { 1 };
  const struct writer_options options = { 0 };
  struct builder b;
  struct image *im;
  struct layer *l;
  unsigned i;

  back_size = 0;
  build_start (&b, 3, cluster_bits, false, COMPRESSION_DEFLATE, size);
  random_entries (&b, 1 << 10, 70);
  build_snapshot (&b, 0, &seed);
  im = open_image (&b);
  CHECK_OK (image_make_writable (im, &options));
  l = image_open_disk (im, "changed/a");
  for (i = 0; i < 60; ++i) {
    const uint64_t at = random_below (&seed, size / 512 - 128) * 512;
    const uint64_t count = 512 * (1 + random_below (&seed, 128));

    CHECK_OK (image_write (im, data, count, (struct guest_off) { at }, 0));
    check_has (l, at, count);
    if (i % 16 == 0)
      CHECK_OK (image_flush (im));
  }
  image_close_disk (l);
  close_image (im);
}

static void
test_writing (void)
{
  check_writing (12, UINT64_C (1) << 22);
  check_writing (14, UINT64_C (128) << 20);
}

/* --------------------------------------------------------------- unreadable */

#define BAD_SLICE 5

/* Reads of what includes this slice of the snapshot's table fail. */
static void
fail_slice (void *opaque, const struct memory_call *call)
{
  const uint64_t bad = *(const uint64_t *) opaque;

  control[0].fail_call = 0;
  if (call->kind == MEMORY_READ && call->offset < bad + 4096 &&
      call->offset + call->count > bad)
    memory_fail (&control[0], MEMORY_READ, 1, EIO);
}

/* What can't be compared has changed: that slice, and no other one. */
static void
test_unreadable (void)
{
  const uint64_t slice = UINT64_C (512) << 16;
  struct builder b;
  struct image *im;
  struct layer *l;
  uint64_t bad, i;
  uint8_t *flags;

  back_size = 0;
  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, 16 * slice);
  build_entry (&b, 0, QCOW2_L2_ZERO, 0);
  bad = build_l2_place (&b, 0) + BAD_SLICE * 4096;
  build_snapshot (&b, 100, &seed);
  im = open_image (&b);
  l = image_open_disk (im, "changed/1");
  control[0].opaque = &bad;
  control[0].hook = fail_slice;
  flags = flags_of (l);
  control[0].hook = NULL;
  memory_fail_no_more (&control[0]);
  for (i = 0; i < 16; ++i) {
    CHECK ((flags[i * slice / 512] == EXTENT_HOLE) == (i != BAD_SLICE));
    CHECK ((flags[(i + 1) * slice / 512 - 1] == EXTENT_HOLE) ==
           (i != BAD_SLICE));
  }
  free (flags);
  image_close_disk (l);
  close_image (im);
}

/* ------------------------------------------------------------ several at once */

/* A request that is made while another one is under way: from its callback, at the
 * first extent.
 */
struct nested {
  const struct layer *disk;
  struct painting outer, inner;
};

static int
paint_nested (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct nested *n = opaque;

  if (offset == 0)
    CHECK_OK (layer_extents (n->disk, n->disk->size, (struct guest_off) { 0 },
                             false, paint, &n->inner));
  return paint (&n->outer, offset, length, flags);
}

static void
test_nested (void)
{
  const uint64_t nr = 512;
  struct nested n = { 0 };
  struct builder b;
  struct image *im;
  struct layer *l;
  uint64_t i;

  back_size = 0;
  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 4 * nr << 12);
  build_l2_place (&b, 0);
  build_snapshot (&b, 100, &seed);
  for (i = 0; i < 4 * nr; i += 5) /* other places in each table */
    build_entry (&b, i, build_data (&b, i), 0);
  im = open_image (&b);
  n.disk = l = image_open_disk (im, "changed/1");
  n.outer.flags = flags_of (l);
  n.inner.flags = calloc (l->size / 512, 1);
  CHECK_OK (layer_extents (l, l->size, (struct guest_off) { 0 }, false,
                           paint_nested, &n));
  for (i = 0; i < 4 * nr; ++i) {
    const unsigned wanted = i % 5 == 0 ? 0 : EXTENT_HOLE;

    if (n.outer.flags[i * 8] != wanted || n.inner.flags[i * 8] != wanted) {
      check_failed (__FILE__, __LINE__, "cluster %u: flags %u, within that %u",
                    (unsigned) i, n.outer.flags[i * 8], n.inner.flags[i * 8]);
      break;
    }
  }
  free (n.inner.flags);
  free (n.outer.flags);
  image_close_disk (l);
  close_image (im);
}

int
main (void)
{
  test_nested ();
  test_pairs ();
  test_random ();
  test_tables ();
  test_writing ();
  test_unreadable ();
  return check_result ();
}
