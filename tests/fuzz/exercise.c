/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exercise.h"
#include "extents.h"
#include "image.h"
#include "memory-storage.h"
#include "random.h"
#include "read.h"

#define MAX_DISKS 4
#define MAX_ZEROS 16
#define MAX_READ 65536
#define MAX_WINDOW (UINT64_C (2) << 20)

static void __attribute__ ((__noreturn__))
broken (const char *what)
{
  fprintf (stderr, "broken promise: %s (last error: %s)\n", what,
           error_message ());
  abort ();
}

static void
expect (bool ok, const char *what)
{
  if (!ok)
    broken (what);
}

/* A call failed: it must have said why. */
static void
expect_error (void)
{
  expect (error_errno () != 0, "a failure without an errno");
  expect (error_message ()[0] != '\0', "a failure without a message");
}

struct names {
  unsigned nr;
  char *name[MAX_DISKS];
};

static int
take_name (void *opaque, const char *name, const char *description)
{
  struct names *n = opaque;

  expect (strlen (name) <= 4096, "an export's name is too long");
  if (n->nr < MAX_DISKS)
    n->name[n->nr++] = strdup (name);
  return 0;
}

/* The extents of a range, and some of those that are zero. */
struct walk {
  uint64_t next, end;
  bool any;
  unsigned flags;
  unsigned nr_zeros;
  uint64_t zero[MAX_ZEROS], zero_length[MAX_ZEROS];
};

static int
take_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct walk *w = opaque;

  expect (offset == w->next, "an extent does not begin where the last ends");
  expect (length > 0 && length <= w->end - offset,
          "an extent's length is out of range");
  expect (!w->any || flags != w->flags, "two extents are alike");
  expect ((flags & ~(EXTENT_HOLE | EXTENT_ZERO)) == 0, "unknown flags");
  w->any = true;
  w->next += length;
  w->flags = flags;
  if ((flags & EXTENT_ZERO) && w->nr_zeros < MAX_ZEROS) {
    w->zero[w->nr_zeros] = offset;
    w->zero_length[w->nr_zeros++] = length;
  }
  return 0;
}

static uint8_t buffer[MAX_READ], again[MAX_READ];

static void
check_zero (const struct layer *disk, uint64_t offset, uint64_t length)
{
  const size_t count = length < 4096 ? length : 4096;
  size_t i;

  memset (buffer, 0xdd, count);
  if (layer_read (disk, buffer, count, (struct guest_off) { offset }) == -1)
    broken ("what extents call zero can't be read");
  for (i = 0; i < count; ++i)
    expect (buffer[i] == 0, "what extents call zero is not");
}

static void
walk_extents (const struct layer *disk, uint64_t offset, uint64_t count)
{
  const struct guest_off at = { offset };
  struct walk w = { .next = offset, .end = offset + count };
  struct walk first = w;
  unsigned i;

  if (layer_extents (disk, count, at, false, take_extent, &w) == -1) {
    expect_error ();
    return;
  }
  expect (w.next == w.end, "extents don't cover the range");
  if (layer_extents (disk, count, at, true, take_extent, &first) == -1)
    broken ("one extent fails where many do not");
  expect (first.any && first.next > offset, "no first extent");
  for (i = 0; i < w.nr_zeros; ++i) {
    check_zero (disk, w.zero[i], w.zero_length[i]);
    if (w.zero_length[i] > 4096)
      check_zero (disk, w.zero[i] + w.zero_length[i] - 4096, 4096);
  }
}

/* A range at once and in two parts must be the same. */
static void
read_range (const struct layer *disk, uint64_t offset, size_t count,
            size_t split)
{
  const int whole = layer_read (disk, buffer, count,
                                (struct guest_off) { offset });
  int parts;

  if (whole == -1)
    expect_error ();
  parts = layer_read (disk, again, split, (struct guest_off) { offset });
  if (parts == 0 && split < count)
    parts = layer_read (disk, again + split, count - split,
                        (struct guest_off) { offset + split });
  expect (whole == parts, "a read fails, its parts do not (or the reverse)");
  expect (whole == -1 || memcmp (buffer, again, count) == 0,
          "a read and its parts differ");
}

static void
visit (const struct layer *disk, uint64_t offset, uint64_t *state)
{
  const uint64_t left = disk->size - offset;
  uint64_t count = 1 + random_below (state, MAX_READ);

  if (offset >= disk->size)
    return;
  if (count > left)
    count = left;
  read_range (disk, offset, count, 1 + random_below (state, count));
  walk_extents (disk, offset, left < MAX_WINDOW ? left : MAX_WINDOW);
  layer_prefetch (disk, count, (struct guest_off) { offset });
}

static void
visit_disk (const struct layer *disk, uint64_t *state)
{
  const uint64_t table = UINT64_C (1) << disk->map.l1_shift;
  const uint64_t cluster = disk->map.cluster_size;
  unsigned i;

  expect (disk->size % 512 == 0 && disk->size <= INT64_MAX, "the disk's size");
  if (disk->size == 0)
    return;
  visit (disk, 0, state);
  visit (disk, disk->size - 1, state);
  visit (disk, disk->size > MAX_WINDOW ? disk->size - MAX_WINDOW : 0, state);
  for (i = 1; i < 4; ++i) { /* over the ends of L2 tables and clusters */
    if (i * table < disk->size)
      visit (disk, i * table - random_below (state, 2 * cluster), state);
    if (i * cluster < disk->size)
      visit (disk, i * cluster - 1, state);
  }
  for (i = 0; i < 4; ++i)
    visit (disk, random_below (state, disk->size), state);
}

unsigned
exercise (const uint8_t *data, size_t size)
{
  struct memory_control control = { 0 };
  struct names names = { 0 };
  uint64_t state = size;
  unsigned i, disks = 0;
  char text[256];
  struct image *im;

  for (i = 0; i < size && i < 128; ++i)
    state = mix (state + data[i]);
  error_set (0, "%s", "");
  im = image_open_storage (memory_storage_new ("input", data, size, &control),
                           CACHE_MIN_BYTES);
  if (im == NULL) {
    expect_error ();
    expect (control.closes == 1, "the storage is not closed");
    return 0;
  }
  expect (image_list (im, take_name, &names) == 0, "exports can't be listed");
  for (i = 0; i < names.nr; ++i) {
    struct layer *disk;

    expect (image_describe (im, names.name[i], text, sizeof text) == 0,
            "a listed export has no description");
    disk = image_open_disk (im, names.name[i]);
    if (disk != NULL) {
      disks++;
      visit_disk (disk, &state);
      image_close_disk (disk);
    }
    else
      expect_error ();
    free (names.name[i]);
  }
  image_close (im);
  expect (control.closes == 1, "the storage is not closed");
  return disks;
}
