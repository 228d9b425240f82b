/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "disk.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image.h"
#include "memory-storage.h"
#include "promise.h"
#include "qed-image.h"
#include "random.h"

#define MAX_READ 65536
#define MAX_WINDOW (UINT64_C (2) << 20)
#define SECTOR 512
#define QED_HEADER_BYTES 64

static uint8_t buffer[MAX_READ], again[MAX_READ];

/* ----------------------------------------------------------------- opening */

static const uint8_t *
base (void)
{
  static uint8_t bytes[DISK_BASE_BYTES];
  uint64_t state = 1;

  if (bytes[0] == 0) {
    random_fill (&state, bytes, sizeof bytes);
    bytes[0] = 1;
  }
  return bytes;
}

bool
disk_is_qed (const uint8_t *data, uint64_t size)
{
  return size >= 4 && memcmp (data, "QED", 4) == 0;
}

static bool
names_backing (const uint8_t *data, uint64_t size)
{
  if (disk_is_qed (data, size))
    return size >= QED_HEADER_BYTES && (qed_image_get (data, 16, 8) & 1) &&
      qed_image_get (data, 60, 4) != 0;
  return size >= QCOW2_HEADER_LENGTH_V2 && get_be64 (data + 8) != 0 &&
    get_be32 (data + 16) != 0;
}

/* An image which names a backing file gets ours, whatever the name. */
struct image *
disk_open_image (struct storage *image, const uint8_t *data, uint64_t size)
{
  struct storage *storages[2] = { image };

  if (!names_backing (data, size))
    return image_open_storage (image, CACHE_MIN_BYTES);
  storages[1] = memory_storage_new ("base", base (), DISK_BASE_BYTES, NULL);
  return image_open_storages (storages, 2, CACHE_MIN_BYTES);
}

void
disk_set_base (struct reference *r)
{
  if (names_backing (r->data, r->size)) {
    r->base = base ();
    r->base_size = DISK_BASE_BYTES;
  }
}

bool
disk_header (const uint8_t *data, size_t size, struct header *h)
{
  uint8_t start[QCOW2_HEADER_LENGTH_V2] = { 0 };
  uint8_t *cluster;
  size_t len;
  int r;

  memcpy (start, data, size < sizeof start ? size : sizeof start);
  len = header_want ("input", start, size);
  if (len == 0)
    return false;
  cluster = calloc (1, len);
  if (cluster == NULL)
    abort ();
  memcpy (cluster, data, size < len ? size : len);
  r = header_decode ("input", cluster, len, size, h);
  free (cluster);
  return r == 0;
}

uint64_t
disk_seed (const uint8_t *data, uint64_t size)
{
  uint64_t state = size, i;

  for (i = 0; i < size && i < 128; ++i)
    state = mix (state + data[i]);
  return state;
}

/* ----------------------------------------------------------------- reading */

/* Bytes that were read, from offset on, in the sectors that are whole. */
static void
compare (const struct reference *r, uint64_t offset, uint64_t count)
{
  const uint64_t end = (offset + count) / SECTOR * SECTOR;
  uint64_t at = (offset + SECTOR - 1) / SECTOR * SECTOR;
  uint8_t sector[SECTOR];

  for (; at < end; at += SECTOR) {
    const struct reference_place p = reference_find (r, at);

    expect (p.kind != REFERENCE_DAMAGED, "what is damaged can be read");
    if (reference_read (r, &p, at, sector))
      expect (memcmp (sector, buffer + (at - offset), SECTOR) == 0,
              "a sector reads as something else");
  }
}

/* A read failed: only damage, or data that can't be decoded, is a reason. */
static void
excuse (const struct reference *r, uint64_t offset, uint64_t count)
{
  const uint64_t end = offset + count;

  for (; offset < end; offset = (offset / SECTOR + 1) * SECTOR) {
    const enum reference_kind kind = reference_find (r, offset).kind;

    if (kind == REFERENCE_DAMAGED || kind == REFERENCE_COMPRESSED)
      return;
  }
  broken ("a read fails where nothing is damaged");
}

/* A range at once and in two parts must be the same. */
static void
read_range (const struct layer *disk, const struct reference *r,
            uint64_t offset, size_t count, size_t split)
{
  const int whole = layer_read (disk, buffer, count,
                                (struct guest_off) { offset });
  int parts;

  if (whole == -1) {
    expect_error ();
    excuse (r, offset, count);
  }
  else
    compare (r, offset, count);
  parts = layer_read (disk, again, split, (struct guest_off) { offset });
  if (parts == 0 && split < count)
    parts = layer_read (disk, again + split, count - split,
                        (struct guest_off) { offset + split });
  expect (whole == parts, "a read fails, its parts do not (or the reverse)");
  expect (whole == -1 || memcmp (buffer, again, count) == 0,
          "a read and its parts differ");
}

/* ----------------------------------------------------------------- extents */

struct walk {
  const struct reference *r;
  uint64_t next, end;
  bool any;
  unsigned flags;
};

/* The flags by the reference.  In a backing file all is data: the one here
 * has no holes.
 */
static unsigned
flags_at (const struct reference *r, uint64_t offset)
{
  const struct reference_place p = reference_find (r, offset);

  switch (p.kind) {
  case REFERENCE_UNALLOCATED:
    return r->base != NULL && offset < r->base_size
      ? 0 : EXTENT_HOLE | EXTENT_ZERO;
  case REFERENCE_ZERO:
    return EXTENT_HOLE | EXTENT_ZERO;
  case REFERENCE_ZERO_ALLOC:
    return EXTENT_ZERO;
  case REFERENCE_DATA: /* QED looks for holes, as there is one past the end */
    if (r->qed && p.host >= r->size)
      return EXTENT_HOLE | EXTENT_ZERO;
    break;
  case REFERENCE_COMPRESSED:
  case REFERENCE_DAMAGED:
    break;
  }
  return 0;
}

/* An extent is compared at each granule that begins in it: that is where the
 * reference can change, and where a backing file ends.
 */
static int
take_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct walk *w = opaque;
  uint64_t at = offset;

  expect (offset == w->next, "an extent does not begin where the last ends");
  expect (length > 0 && length <= w->end - offset,
          "an extent's length is out of range");
  expect (!w->any || flags != w->flags, "two extents are alike");
  w->any = true;
  w->next += length;
  w->flags = flags;
  for (; at < w->next; at = (at / w->r->granule + 1) * w->r->granule)
    expect (flags_at (w->r, at) == flags, "an extent's flags are wrong");
  expect (flags_at (w->r, w->next - 1) == flags,
          "an extent's flags are wrong at its end");
  return 0;
}

static void
walk_extents (const struct layer *disk, const struct reference *r,
              uint64_t offset, uint64_t count)
{
  const struct guest_off at = { offset };
  struct walk w = { .r = r, .next = offset, .end = offset + count };
  struct walk first = w;

  if (layer_extents (disk, count, at, false, take_extent, &w) == -1)
    broken ("extents fail"); /* damage is data to them */
  expect (w.next == w.end, "extents don't cover the range");
  if (layer_extents (disk, count, at, true, take_extent, &first) == -1)
    broken ("one extent fails where many do not");
  expect (first.any && first.next > offset, "no first extent");
}

/* ---------------------------------------------------------------- visiting */

static void
visit (const struct layer *disk, const struct reference *r, uint64_t offset,
       uint64_t *state)
{
  const uint64_t left = disk->size - offset;
  uint64_t count = 1 + random_below (state, MAX_READ);

  if (offset >= disk->size)
    return;
  if (count > left)
    count = left;
  read_range (disk, r, offset, count, 1 + random_below (state, count));
  walk_extents (disk, r, offset, left < MAX_WINDOW ? left : MAX_WINDOW);
  layer_prefetch (disk, count, (struct guest_off) { offset });
}

void
disk_visit (const struct layer *disk, const struct reference *r,
            uint64_t *state)
{
  const uint64_t table = r->table_bytes;
  unsigned i;

  expect (disk->size == r->disk_size, "the disk's size");
  if (disk->size == 0)
    return;
  visit (disk, r, 0, state);
  visit (disk, r, disk->size - 1, state);
  visit (disk, r, disk->size > MAX_WINDOW ? disk->size - MAX_WINDOW : 0,
         state);
  for (i = 1; i < 4; ++i) { /* over the ends of L2 tables and clusters */
    if (i * table < disk->size)
      visit (disk, r, i * table - random_below (state, 2 * r->cluster_size),
             state);
    if (i * r->cluster_size < disk->size)
      visit (disk, r, i * r->cluster_size - 1, state);
  }
  for (i = 0; i < 4; ++i)
    visit (disk, r, random_below (state, disk->size), state);
}
