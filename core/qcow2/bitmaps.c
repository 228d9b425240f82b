/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/bitmaps.h"

/* Spec: Bitmap directory: the fixed part of an entry. */
#define ENTRY_BYTES 24
#define FIELD_TABLE_SIZE 8
#define FIELD_FLAGS 12
#define FIELD_GRANULARITY 17
#define FIELD_NAME_SIZE 18
#define FIELD_EXTRA_SIZE 20
#define FLAG_IN_USE UINT32_C (1)
#define FLAG_AUTO UINT32_C (2)

/* QEMU's limit. */
#define MAX_BITMAPS 65535
#define MAX_TABLE_BYTES (UINT64_C (8) << 20) /* with the smallest clusters */

/* Iterates over the entries, which are small and so are read together. */
struct cursor {
  struct storage *storage;
  uint32_t left;
  uint64_t at, end; /* the rest of the directory, in the file */
  struct host_off place; /* of this entry */
  uint8_t entry[ENTRY_BYTES];
  uint64_t ahead;     /* offset of what is in buf; 0: nothing is */
  uint8_t buf[4096];
};

static inline uint32_t
flags (const struct cursor *c)
{
  return get_be32 (c->entry + FIELD_FLAGS);
}

/* Whether writing the disk makes this one wrong. */
static inline bool
must_follow (const struct cursor *c)
{
  return (flags (c) & (FLAG_IN_USE | FLAG_AUTO)) == FLAG_AUTO;
}

static int
start (struct cursor *c, struct storage *s, const struct header *h)
{
  const bool consistent = h->autoclear & QCOW2_AUTOCLEAR_BITMAPS;

  *c = (struct cursor) { .storage = s };
  if (!consistent || h->nr_bitmaps == 0)
    return 0;
  if (header_check_table (s->name, h, s->size, "bitmap directory",
                          h->bitmaps_field, h->bitmap_directory,
                          h->bitmap_directory_size, 1,
                          QCOW2_MAX_BITMAP_DIRECTORY_BYTES) == -1)
    return -1;
  if (h->nr_bitmaps > MAX_BITMAPS) {
    error_set (EINVAL, "%s: %" PRIu32 " bitmaps (header extension at offset "
               "%" PRIu64 ") are more than %d", s->name, h->nr_bitmaps,
               h->bitmaps_field, MAX_BITMAPS);
    return -1;
  }
  c->left = h->nr_bitmaps;
  c->at = h->bitmap_directory.v;
  c->end = c->at + h->bitmap_directory_size;
  return 0;
}

static int
read_entry (struct cursor *c)
{
  if (c->ahead == 0 || c->at + ENTRY_BYTES > c->ahead + sizeof c->buf) {
    c->ahead = 0;
    /* If what follows can't be read, this still may be readable. */
    if (storage_read (c->storage, c->buf, sizeof c->buf, c->place) == -1)
      return storage_read (c->storage, c->entry, ENTRY_BYTES, c->place);
    c->ahead = c->at;
  }
  memcpy (c->entry, c->buf + (c->at - c->ahead), ENTRY_BYTES);
  return 0;
}

/* Returns 1 for an entry, 0 at the end, -1 with the error set. */
static int
next (struct cursor *c)
{
  uint64_t size;

  if (c->left == 0)
    return 0;
  c->place.v = c->at;
  if (c->end - c->at >= ENTRY_BYTES) {
    if (read_entry (c) == -1)
      return -1;
    size = ((uint64_t) ENTRY_BYTES + get_be32 (c->entry + FIELD_EXTRA_SIZE) +
            get_be16 (c->entry + FIELD_NAME_SIZE) + 7) & ~UINT64_C (7);
    if (size <= c->end - c->at) {
      c->at += size;
      c->left--;
      return 1;
    }
  }
  error_set (EINVAL, "%s: bitmap directory entry at offset 0x%" PRIx64 ": it "
             "reaches beyond the directory's end at offset 0x%" PRIx64,
             c->storage->name, c->at, c->end);
  return -1;
}

int
bitmaps_must_follow (struct storage *s, const struct header *h, bool *any)
{
  struct cursor c;
  int r;

  *any = false;
  if (start (&c, s, h) == -1)
    return -1;
  while ((r = next (&c)) == 1)
    *any |= must_follow (&c);
  return r;
}

int
bitmaps_check_tables (struct storage *s, const struct header *h)
{
  struct cursor c;
  int r;

  if (start (&c, s, h) == -1)
    return -1;
  while ((r = next (&c)) == 1) {
    const struct host_off table = { get_be64 (c.entry) };
    const uint32_t nr = get_be32 (c.entry + FIELD_TABLE_SIZE);

    if (header_check_table (s->name, h, s->size, "bitmap table", c.place.v,
                            table, nr, 8, MAX_TABLE_BYTES) == -1)
      return -1;
  }
  return r;
}

int
bitmaps_mark_in_use (struct storage *s, const struct header *h, bool *written)
{
  struct cursor c;
  int r;

  *written = false;
  if (start (&c, s, h) == -1)
    return -1;
  while ((r = next (&c)) == 1) {
    const struct host_off place = { c.place.v + FIELD_FLAGS };
    uint8_t buf[4];

    if (!must_follow (&c))
      continue;
    put_be32 (buf, flags (&c) | FLAG_IN_USE);
    *written = true;
    if (storage_write (s, buf, sizeof buf, place) == -1)
      return -1;
  }
  if (r == 0 && *written)
    r = storage_flush (s);
  return r;
}

static int
describe (const struct cursor *c, struct bitmap_info *b)
{
  const struct host_off name = {
    c->place.v + ENTRY_BYTES + get_be32 (c->entry + FIELD_EXTRA_SIZE)
  };
  const unsigned size = get_be16 (c->entry + FIELD_NAME_SIZE);
  const unsigned bits = c->entry[FIELD_GRANULARITY];

  if (size >= sizeof b->name || bits > 63) {
    error_set (EINVAL, "%s: bitmap directory entry at offset 0x%" PRIx64
               ": name size %u or granularity_bits %u is too large",
               c->storage->name, c->place.v, size, bits);
    return -1;
  }
  b->name[size] = '\0';
  b->granularity = UINT64_C (1) << bits;
  b->in_use = flags (c) & FLAG_IN_USE;
  b->automatic = flags (c) & FLAG_AUTO;
  return storage_read (c->storage, b->name, size, name);
}

int
bitmaps_list (struct storage *s, const struct header *h, bitmaps_list_fn *fn,
              void *opaque)
{
  struct bitmap_info b;
  struct cursor c;
  int r;

  if (start (&c, s, h) == -1)
    return -1;
  while ((r = next (&c)) == 1) {
    if (describe (&c, &b) == -1 || fn (opaque, &b) == -1)
      return -1;
  }
  return r;
}
