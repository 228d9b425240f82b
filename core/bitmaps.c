/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "bitmaps.h"
#include "error.h"

/* Spec: Bitmap directory: the fixed part of an entry. */
#define ENTRY_BYTES 24
#define FIELD_FLAGS 12
#define FIELD_NAME_SIZE 18
#define FIELD_EXTRA_SIZE 20
#define FLAG_IN_USE UINT32_C (1)

/* The entries, one after the other. */
struct cursor {
  struct storage *storage;
  uint32_t left;
  uint64_t at, end; /* of the directory that is left, in the file */
  uint32_t flags;
  struct host_off flags_place;
};

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
  c->left = h->nr_bitmaps;
  c->at = h->bitmap_directory.v;
  c->end = c->at + h->bitmap_directory_size;
  return 0;
}

/* Returns 1 for an entry, 0 at the end, -1 with the error set. */
static int
next (struct cursor *c)
{
  const struct host_off at = { c->at };
  uint8_t buf[ENTRY_BYTES];
  uint64_t size;

  if (c->left == 0)
    return 0;
  if (c->end - c->at >= ENTRY_BYTES) {
    if (storage_read (c->storage, buf, sizeof buf, at) == -1)
      return -1;
    size = ((uint64_t) ENTRY_BYTES + get_be32 (buf + FIELD_EXTRA_SIZE) +
            get_be16 (buf + FIELD_NAME_SIZE) + 7) & ~UINT64_C (7);
    if (size <= c->end - c->at) {
      c->flags = get_be32 (buf + FIELD_FLAGS);
      c->flags_place.v = c->at + FIELD_FLAGS;
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
bitmaps_are_consistent (struct storage *s, const struct header *h,
                        bool *consistent)
{
  struct cursor c;
  int r;

  *consistent = false;
  if (start (&c, s, h) == -1)
    return -1;
  while ((r = next (&c)) == 1)
    *consistent |= !(c.flags & FLAG_IN_USE);
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
    uint8_t buf[4];

    if (c.flags & FLAG_IN_USE)
      continue;
    put_be32 (buf, c.flags | FLAG_IN_USE);
    *written = true;
    if (storage_write (s, buf, sizeof buf, c.flags_place) == -1)
      return -1;
  }
  if (r == 0 && *written)
    r = storage_flush (s);
  return r;
}
