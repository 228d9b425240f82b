/* SPDX-License-Identifier: BSD-3-Clause */

/* Bitmaps: the directory, tables and bits, as the extents of exports. */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "disk.h"
#include "disk/extents.h"
#include "image.h"
#include "memory-storage.h"
#include "mutate.h"
#include "promise.h"
#include "random.h"
#include "target.h"

#define MAX_VISITED 3
#define MAX_WINDOW (UINT64_C (1) << 20)

/* An entry of the directory.  Spec: Bitmap directory. */
struct entry {
  uint64_t table, parts;
  uint32_t flags, extra;
  unsigned type, bits;
  char name[1024];
  bool nul;      /* in the name */
  unsigned same; /* entries of this name */
};

struct input {
  const uint8_t *data;
  size_t size;
  struct header h;
};

/* Find the entry at *at, and where the next one is; false if it and what is
 * behind it can't be read.
 */
static bool
parse_entry (const struct input *in, uint64_t *at, struct entry *e)
{
  const uint64_t end = in->h.bitmap_directory.v + in->h.bitmap_directory_size;
  const uint8_t *p = in->data + *at;
  uint64_t size, name_size;

  if (*at > end || end - *at < 24)
    return false;
  *e = (struct entry) {
    .table = get_be64 (p), .parts = get_be32 (p + 8),
    .flags = get_be32 (p + 12), .type = p[16], .bits = p[17],
    .extra = get_be32 (p + 20),
  };
  name_size = get_be16 (p + 18);
  size = (24 + (uint64_t) e->extra + name_size + 7) / 8 * 8;
  if (size > end - *at || name_size > 1023 || e->bits > 63)
    return false;
  memcpy (e->name, p + 24 + e->extra, name_size);
  e->nul = strlen (e->name) < name_size;
  *at += size;
  return true;
}

static bool
directory_is_there (const struct input *in)
{
  const struct header *h = &in->h;
  const uint64_t at = h->bitmap_directory.v, bytes = h->bitmap_directory_size;

  return (h->autoclear & 1) && h->nr_bitmaps > 0 && h->nr_bitmaps <= 65535 &&
    at % h->cluster_size == 0 && (at > 0 || bytes == 0) &&
    bytes <= QCOW2_MAX_BITMAP_DIRECTORY_BYTES && at <= in->size &&
    bytes <= in->size - at;
}

/* ------------------------------------------------------------ the reference */

static bool
part_is_valid (const struct input *in, uint64_t word)
{
  return word < 2 ||
    (word % in->h.cluster_size == 0 && word >> 56 == 0 && word <= in->size &&
     in->h.cluster_size <= in->size - word);
}

static bool
is_usable (const struct input *in, const struct entry *e)
{
  const uint64_t cluster = in->h.cluster_size;
  uint64_t per_part, needed, i;

  if (e->nul || e->same > 1 || e->table > INT64_MAX)
    return false;
  if ((e->flags & ~UINT32_C (6)) != 0 || e->type != 1 || e->bits < 9 ||
      e->bits > 31 || (e->extra > 0 && !(e->flags & 4)) ||
      e->parts * cluster > UINT64_C (512) << 20 || e->table % cluster != 0)
    return false;
  per_part = 8 * cluster << e->bits;
  needed = in->h.disk_size / per_part + (in->h.disk_size % per_part != 0);
  if (e->parts != needed)
    return false;
  if (e->parts > 0 && (e->table == 0 || e->table > in->size ||
                       e->parts * 8 > in->size - e->table))
    return false;
  for (i = 0; i < needed; ++i)
    if (!part_is_valid (in, get_be64 (in->data + e->table + 8 * i)))
      return false;
  return true;
}

static bool
has_changed (const struct input *in, const struct entry *e, uint64_t offset)
{
  const uint64_t bit = offset >> e->bits, per_part = 8 * in->h.cluster_size;
  const uint64_t word =
    get_be64 (in->data + e->table + 8 * (bit / per_part));

  return word < 2 ? word
    : in->data[word + bit % per_part / 8] >> bit % 8 & 1;
}

/* ---------------------------------------------------------------- extents */

struct walk {
  const struct input *in;
  const struct entry *e;
  uint64_t next, end;
  unsigned flags;
  bool any;
};

static int
take_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct walk *w = opaque;
  uint64_t at = offset;

  expect (offset == w->next, "an extent does not begin where the last ends");
  expect (length > 0 && length <= w->end - offset,
          "an extent's length is out of range");
  expect (!w->any || flags != w->flags, "two extents are alike");
  expect (flags == 0 || flags == EXTENT_HOLE || flags == EXTENT_ZERO,
          "a hole is called zeros");
  w->any = true;
  w->flags = flags;
  w->next += length;
  for (; at < w->next; at = (at / 512 + 1) * 512)
    expect (has_changed (w->in, w->e, at) == (flags != EXTENT_HOLE),
            "what has changed is another part");
  return 0;
}

static void
visit_at (const struct layer *disk, const struct input *in,
          const struct entry *e, uint64_t offset)
{
  const struct guest_off at = { offset };
  uint64_t count = disk->size - offset;
  struct walk w = { .in = in, .e = e, .next = offset }, first;

  if (count > MAX_WINDOW)
    count = MAX_WINDOW;
  w.end = offset + count;
  first = w;
  if (layer_extents (disk, count, at, false, take_extent, &w) == -1 ||
      layer_extents (disk, count, at, true, take_extent, &first) == -1)
    broken ("extents fail");
  expect (w.next == w.end, "extents don't cover the range");
  expect (first.any && first.next > offset, "no first extent");
}

/* whole: all entries of the directory are valid. */
static void
visit_bitmap (struct image *im, const struct input *in, const struct entry *e,
              bool whole, uint64_t *state)
{
  char name[1100], text[256];
  struct layer *disk;
  unsigned i;

  snprintf (name, sizeof name, IMAGE_BITMAP_PREFIX "%s", e->name);
  expect (image_describe (im, name, text, sizeof text) == 0,
          "an export has no description");
  disk = image_open_disk (im, name);
  expect (disk != NULL ? is_usable (in, e) : !whole || !is_usable (in, e),
          "a bitmap is refused, or accepted, and should not be");
  if (disk == NULL) {
    expect_error ();
    return;
  }
  expect (disk->size == in->h.disk_size, "the disk's size");
  for (i = 0; i < 6 && disk->size > 0; ++i)
    visit_at (disk, in, e, i == 0 ? 0 : random_below (state, disk->size));
  image_close_disk (disk);
}

/* -------------------------------------------------------------- the target */

static int
take_name (void *opaque, const char *name, const char *description)
{
  (void) opaque;
  expect (name != NULL && description[0] != '\0', "an export without a name");
  return 0;
}

/* Count the entries that have the names of the first nr.  Returns whether all
 * are valid.
 */
static bool
count_names (const struct input *in, struct entry *first, unsigned nr)
{
  uint64_t at = in->h.bitmap_directory.v;
  struct entry e;
  unsigned i, j;

  for (i = 0; i < in->h.nr_bitmaps; ++i) {
    if (!parse_entry (in, &at, &e))
      return false;
    for (j = 0; j < nr; ++j)
      first[j].same += strcmp (first[j].name, e.name) == 0;
  }
  return true;
}

static void
visit_bitmaps (struct image *im, const struct input *in)
{
  uint64_t state = disk_seed (in->data, in->size);
  uint64_t at = in->h.bitmap_directory.v;
  struct entry e[MAX_VISITED];
  unsigned i, nr = 0;
  bool whole;

  while (nr < MAX_VISITED && nr < in->h.nr_bitmaps &&
         parse_entry (in, &at, &e[nr]))
    nr++;
  whole = count_names (in, e, nr);
  for (i = 0; i < nr; ++i)
    visit_bitmap (im, in, &e[i], whole, &state);
}

static void
test_bitmap (const uint8_t *data, size_t size)
{
  struct input in = { .data = data, .size = size };
  struct image *im;

  if (disk_is_qed (data, size))
    return;
  error_set (0, "%s", "");
  im = disk_open_image (memory_storage_new ("input", data, size, NULL), data,
                        size);
  if (im == NULL) {
    expect_error ();
    return;
  }
  expect (image_list (im, take_name, NULL) == 0, "exports can't be listed");
  expect (disk_header (data, size, &in.h),
          "a header is accepted once, and then refused");
  if (directory_is_there (&in))
    visit_bitmaps (im, &in);
  expect (image_close (im) == 0, "an image that was read can't be closed");
}

static size_t
mutate_bitmap (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  return mutate_image (data, size, max, seed, MUTATE_BITMAP);
}

const struct target target_bitmap = {
  .name = "bitmap",
  .max_size = 64 << 10,
  .test = test_bitmap,
  .mutate = mutate_bitmap,
};
