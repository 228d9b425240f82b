/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/bitmap-bits.h"
#include "qcow2/bitmaps.h"

/* Iterates over the entries, which are small and so are read together. */
struct cursor {
  struct storage *storage;
  uint32_t left;
  uint64_t at, end; /* the rest of the directory, in the file */
  struct host_off place; /* of this entry */
  uint8_t entry[QCOW2_BITMAP_ENTRY_SIZE];
  uint64_t ahead;     /* offset of what is in buf; 0: nothing is */
  uint8_t buf[4096];
};

static inline uint32_t
flags (const struct cursor *c)
{
  return get_be32 (c->entry + QCOW2_BITMAP_FIELD_FLAGS);
}

/* Whether writing the disk makes this one wrong. */
static inline bool
must_follow (const struct cursor *c)
{
  return (flags (c) & (QCOW2_BITMAP_IN_USE | QCOW2_BITMAP_AUTO)) ==
    QCOW2_BITMAP_AUTO;
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
  if (h->nr_bitmaps > QCOW2_MAX_BITMAPS) {
    error_set (EINVAL, "%s: %" PRIu32 " bitmaps (header extension at offset "
               "%" PRIu64 ") are more than %d", s->name, h->nr_bitmaps,
               h->bitmaps_field, QCOW2_MAX_BITMAPS);
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
  const size_t size = sizeof c->entry;

  if (c->ahead == 0 || c->at + size > c->ahead + sizeof c->buf) {
    c->ahead = 0;
    /* If what follows can't be read, this still may be readable. */
    if (storage_read (c->storage, c->buf, sizeof c->buf, c->place) == -1)
      return storage_read (c->storage, c->entry, size, c->place);
    c->ahead = c->at;
  }
  memcpy (c->entry, c->buf + (c->at - c->ahead), size);
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
  if (c->end - c->at >= QCOW2_BITMAP_ENTRY_SIZE) {
    if (read_entry (c) == -1)
      return -1;
    size = (sizeof c->entry +
            (uint64_t) get_be32 (c->entry + QCOW2_BITMAP_FIELD_EXTRA_SIZE) +
            get_be16 (c->entry + QCOW2_BITMAP_FIELD_NAME_SIZE) + 7) &
      ~UINT64_C (7);
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

static int
check_place (struct storage *s, const struct header *h, struct host_off place,
             struct host_off table, uint32_t nr)
{
  return header_check_table (s->name, h, s->size, "bitmap table", place.v,
                             table, nr, 8,
                             QCOW2_MAX_BITMAP_BYTES / h->cluster_size * 8);
}

int
bitmaps_check_tables (struct storage *s, const struct header *h)
{
  struct cursor c;
  int r;

  if (start (&c, s, h) == -1)
    return -1;
  while ((r = next (&c)) == 1) {
    const struct host_off table = {
      get_be64 (c.entry + QCOW2_BITMAP_FIELD_TABLE)
    };

    if (check_place (s, h, c.place, table,
                     get_be32 (c.entry + QCOW2_BITMAP_FIELD_TABLE_SIZE)) == -1)
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
    const struct host_off place = { c.place.v + QCOW2_BITMAP_FIELD_FLAGS };
    uint8_t buf[4];

    if (!must_follow (&c))
      continue;
    put_be32 (buf, flags (&c) | QCOW2_BITMAP_IN_USE);
    *written = true;
    if (storage_write (s, buf, sizeof buf, place) == -1)
      return -1;
  }
  if (r == 0 && *written)
    r = storage_flush (s);
  return r;
}

/* What can be done with it, as far as the entry tells. */
static enum bitmap_state
judge (const uint8_t *entry, uint64_t cluster_size)
{
  const uint32_t flags = get_be32 (entry + QCOW2_BITMAP_FIELD_FLAGS);
  const uint32_t parts = get_be32 (entry + QCOW2_BITMAP_FIELD_TABLE_SIZE);
  const uint32_t extra = get_be32 (entry + QCOW2_BITMAP_FIELD_EXTRA_SIZE);
  const unsigned bits = entry[QCOW2_BITMAP_FIELD_GRANULARITY];

  if (flags & QCOW2_BITMAP_IN_USE)
    return BITMAP_IN_USE;
  if (entry[QCOW2_BITMAP_FIELD_TYPE] != QCOW2_BITMAP_DIRTY_TRACKING ||
      (flags & QCOW2_BITMAP_RESERVED_FLAGS) ||
      (extra > 0 && !(flags & QCOW2_BITMAP_EXTRA_COMPATIBLE)) ||
      bits < QCOW2_MIN_BITMAP_GRANULARITY_BITS ||
      bits > QCOW2_MAX_BITMAP_GRANULARITY_BITS ||
      parts > QCOW2_MAX_BITMAP_BYTES / cluster_size)
    return BITMAP_UNKNOWN;
  return flags & QCOW2_BITMAP_AUTO ? BITMAP_ENABLED : BITMAP_DISABLED;
}

static int
describe (const struct cursor *c, uint64_t cluster_size, struct bitmap_info *b)
{
  const struct host_off name = {
    c->place.v + QCOW2_BITMAP_ENTRY_SIZE +
    get_be32 (c->entry + QCOW2_BITMAP_FIELD_EXTRA_SIZE)
  };
  const unsigned size = get_be16 (c->entry + QCOW2_BITMAP_FIELD_NAME_SIZE);
  const unsigned bits = c->entry[QCOW2_BITMAP_FIELD_GRANULARITY];

  if (size >= sizeof b->name || bits > 63) {
    error_set (EINVAL, "%s: bitmap directory entry at offset 0x%" PRIx64
               ": name size %u or granularity_bits %u is too large",
               c->storage->name, c->place.v, size, bits);
    return -1;
  }
  *b = (struct bitmap_info) {
    .place = c->place,
    .table.v = get_be64 (c->entry + QCOW2_BITMAP_FIELD_TABLE),
    .nr_parts = get_be32 (c->entry + QCOW2_BITMAP_FIELD_TABLE_SIZE),
    .granularity_bits = bits,
    .state = judge (c->entry, cluster_size),
    .in_use = flags (c) & QCOW2_BITMAP_IN_USE,
    .automatic = flags (c) & QCOW2_BITMAP_AUTO,
  };
  memcpy (b->entry, c->entry, sizeof b->entry);
  if (c->ahead != 0 && name.v + size <= c->ahead + sizeof c->buf)
    memcpy (b->name, c->buf + (name.v - c->ahead), size);
  else if (storage_read (c->storage, b->name, size, name) == -1)
    return -1;
  if (memchr (b->name, '\0', size) != NULL)
    b->state = BITMAP_UNKNOWN;
  return 0;
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
    if (describe (&c, h->cluster_size, &b) == -1)
      return -1;
    b.table_fits = b.state != BITMAP_UNKNOWN &&
      bitmap_check_table (s, h, &b) == 0;
    if (fn (opaque, &b) == -1)
      return -1;
  }
  return r;
}

/* bitmaps_list's, to the end. */
struct search {
  const char *name;
  struct bitmap_info *info; /* of the first one that is found */
  unsigned nr;              /* that were found */
};

static int
compare_name (void *opaque, const struct bitmap_info *b)
{
  struct search *s = opaque;

  if (strcmp (b->name, s->name) == 0 && s->nr++ == 0)
    *s->info = *b;
  return 0;
}

int
bitmap_find (struct storage *s, const struct header *h, const char *name,
             struct bitmap_info *b, unsigned *nr)
{
  struct search search = { .name = name, .info = b };

  *nr = 0;
  if (bitmaps_list (s, h, compare_name, &search) == -1)
    return -1;
  *nr = search.nr;
  if (search.nr == 1)
    return 0;
  if (search.nr == 0)
    error_set (ENOENT, "%s: there is no bitmap \"%s\"", s->name, name);
  else
    error_set (EINVAL, "%s: %u bitmaps have the name \"%s\" (the first "
               "directory entry is at offset 0x%" PRIx64 ")", s->name,
               search.nr, name, b->place.v);
  return -1;
}

int
bitmap_check_usable (struct storage *s, const struct bitmap_info *b)
{
  switch (b->state) {
  case BITMAP_ENABLED:
  case BITMAP_DISABLED:
    return 0;
  case BITMAP_IN_USE:
    error_set (EINVAL, "%s: the bitmap \"%s\" (directory entry at offset 0x%"
               PRIx64 ") is marked as in use: the last writer of the image did "
               "not complete it, so that it misses changes", s->name, b->name,
               b->place.v);
    return -1;
  case BITMAP_UNKNOWN:
    error_set (EINVAL, "%s: the bitmap \"%s\" (directory entry at offset 0x%"
               PRIx64 ") has a type, flags, a size, a granularity, extra data "
               "or a name that are not known here", s->name, b->name,
               b->place.v);
    return -1;
  }
  abort ();
}

int
bitmap_check_table (struct storage *s, const struct header *h,
                    const struct bitmap_info *b)
{
  const uint64_t nr =
    bitmap_nr_parts (bitmap_nr_bits (h->disk_size, b->granularity_bits),
                     h->cluster_bits);

  if (b->nr_parts != nr) {
    error_set (EINVAL, "%s: bitmap directory entry at offset 0x%" PRIx64 ": a "
               "table of %" PRIu32 " entries, where the disk needs %" PRIu64,
               s->name, b->place.v, b->nr_parts, nr);
    return -1;
  }
  return check_place (s, h, b->place, b->table, b->nr_parts);
}

int
bitmap_check_followed (struct storage *s, const struct bitmap_info *b,
                       unsigned *nr)
{
  if (b->in_use || !b->automatic)
    return 0;
  if (b->state == BITMAP_UNKNOWN)
    error_set (ENOTSUP, "%s: the bitmap \"%s\" (directory entry at offset 0x%"
               PRIx64 ") is enabled, but has a type, flags, a size, a "
               "granularity, extra data or a name that are not known here: "
               "writing would make it wrong", s->name, b->name, b->place.v);
  else if (!b->table_fits)
    error_set (ENOTSUP, "%s: the bitmap \"%s\" (directory entry at offset 0x%"
               PRIx64 ") is enabled, but its table, of %" PRIu32 " entries at "
               "offset 0x%" PRIx64 ", is not one for this disk: writing would "
               "make it wrong", s->name, b->name, b->place.v, b->nr_parts,
               b->table.v);
  else if (*nr == BITMAPS_MAX_FOLLOWED)
    error_set (ENOTSUP, "%s: more than %d persistent bitmaps are enabled, too "
               "many to follow what is written", s->name, BITMAPS_MAX_FOLLOWED);
  else {
    ++*nr;
    return 1;
  }
  return -1;
}

struct followed_check {
  struct storage *storage;
  unsigned nr;
};

static int
check_followed (void *opaque, const struct bitmap_info *b)
{
  struct followed_check *c = opaque;

  return bitmap_check_followed (c->storage, b, &c->nr) == -1 ? -1 : 0;
}

int
bitmaps_check_followed (struct storage *s, const struct header *h)
{
  struct followed_check c = { .storage = s };
  bool any;

  /* Names of others need not be valid. */
  if (bitmaps_must_follow (s, h, &any) == -1)
    return -1;
  return any ? bitmaps_list (s, h, check_followed, &c) : 0;
}
