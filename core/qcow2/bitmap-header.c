/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdbool.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/bitmap-header.h"

#define SECTOR BITMAP_HEADER_SECTOR
#define HEAD 8 /* an extension's type and length */

/* Fields of the header.  Spec: Header. */
#define FIELD_BACKING_OFFSET 8
#define FIELD_BACKING_SIZE 16

/* In this sector there can't be more of them. */
#define MAX_KEPT (SECTOR / HEAD)

/* Whole feature names, and what QEMU's table takes: it has one where clusters
 * are larger than this.
 */
#define QEMU_NO_NAMES 4096
#define QEMU_NAMES (HEAD + 8 * QCOW2_FEATURE_ENTRY_SIZE)

/* An extension with its padding. */
struct item {
  uint32_t type;
  size_t at, bytes;
  bool whole; /* else it lacks padding, which the list's end has cut off */
};

/* A header's extensions.  Those that end in the first sector can be put
 * elsewhere in it, from start to `fixed': there begins the first of those that
 * can't, or the list's end.
 */
struct layout {
  size_t start, fixed;
  struct item kept[MAX_KEPT];
  unsigned nr;
  size_t kept_bytes, other_bytes; /* of all but names and bitmaps */
  struct item names;              /* bytes 0: there is none */
  bool inside; /* the list ends in the sector, so that its end can move, too */
  size_t end_bytes; /* what says that it ends; 0: nothing does */
  bool bitmaps_behind; /* a bitmaps extension that can't be taken out */

  size_t name_at, name_bytes; /* of the backing file; 0: it has none */
};

static inline size_t
padded (uint32_t length)
{
  return HEAD + ((size_t) length + 7) / 8 * 8;
}

/* Note one that is not the list's end.  Of tables of names one is enough. */
static void
note_item (struct layout *l, const struct item *i)
{
  const bool bitmaps = i->type == QCOW2_EXT_BITMAPS;
  const bool names = i->type == QCOW2_EXT_FEATURE_NAMES;

  if (l->fixed == 0 &&
      !(i->whole && (bitmaps || names || i->at + i->bytes <= SECTOR)))
    l->fixed = i->at;
  if (bitmaps)
    l->bitmaps_behind |= l->fixed != 0;
  else if (l->fixed != 0)
    l->other_bytes += i->bytes;
  else if (names) {
    if (i->at < SECTOR && i->bytes > l->names.bytes)
      l->names = *i;
  }
  else {
    l->other_bytes += i->bytes;
    l->kept[l->nr++] = *i;
    l->kept_bytes += i->bytes;
  }
}

/* header_decode has found nothing wrong with it. */
static void
read_layout (const struct header *h, const uint8_t *buf, size_t len,
             struct layout *l)
{
  size_t at = h->header_length, end = len;

  *l = (struct layout) { .start = at };
  l->name_at = get_be64 (buf + FIELD_BACKING_OFFSET);
  if (l->name_at != 0) {
    l->name_bytes = get_be32 (buf + FIELD_BACKING_SIZE);
    end = l->name_at;
  }
  while (end - at >= HEAD && get_be32 (buf + at) != QCOW2_EXT_END) {
    const size_t bytes = padded (get_be32 (buf + at + 4));
    const struct item i = {
      .type = get_be32 (buf + at), .at = at,
      .bytes = bytes < end - at ? bytes : end - at, .whole = bytes <= end - at,
    };

    note_item (l, &i);
    at += i.bytes;
  }
  l->end_bytes = end - at >= HEAD ? HEAD : 0;
  l->inside = l->fixed == 0 && at + l->end_bytes <= SECTOR;
  if (l->fixed == 0)
    l->fixed = at;
}

/* ---------------------------------------------------------------- encoding */

struct writing {
  const uint8_t *old;
  uint8_t *sector;
  size_t at;
};

static void
put_head (struct writing *w, uint32_t type, uint32_t length)
{
  put_be32 (w->sector + w->at, type);
  put_be32 (w->sector + w->at + 4, length);
  w->at += HEAD;
}

static void
put_kept (struct writing *w, const struct layout *l, struct host_off *hint)
{
  unsigned i;

  for (i = 0; i < l->nr; ++i) {
    const struct item *k = &l->kept[i];

    memcpy (w->sector + w->at, w->old + k->at, k->bytes);
    if (k->type == QCOW2_EXT_WRITER)
      hint->v = w->at + HEAD;
    w->at += k->bytes;
  }
}

static void
put_bitmaps (struct writing *w, const struct bitmap_header *b)
{
  if (b->nr == 0)
    return;
  put_head (w, QCOW2_EXT_BITMAPS, QCOW2_EXT_BITMAPS_BYTES);
  put_be32 (w->sector + w->at, b->nr);
  put_be32 (w->sector + w->at + 4, 0);
  put_be64 (w->sector + w->at + 8, b->directory_bytes);
  put_be64 (w->sector + w->at + 16, b->directory.v);
  w->at += QCOW2_EXT_BITMAPS_BYTES;
}

/* Put as many of the feature names as end before room bytes, and tell how many
 * bytes they have.
 */
static size_t
put_names (struct writing *w, const struct layout *l, size_t room)
{
  const size_t max = l->names.bytes > HEAD ? l->names.bytes - HEAD : 0;
  const uint8_t *from = w->old + l->names.at + HEAD;
  size_t n = 0;

  for (; n + QCOW2_FEATURE_ENTRY_SIZE <= max &&
         n + QCOW2_FEATURE_ENTRY_SIZE <= room && from[n + 2] != '\0';
       n += QCOW2_FEATURE_ENTRY_SIZE)
    memcpy (w->sector + w->at + n, from + n, QCOW2_FEATURE_ENTRY_SIZE);
  return n;
}

/* ----------------------------------------------------------------- placing */

static int
no_room (const char *name)
{
  error_set (ENOTSUP, "%s: the header has no room for the header extension of "
             "bitmaps in its first sector of %d bytes, which alone can be "
             "changed at once", name, SECTOR);
  return -1;
}

/* The feature names fill what is left up to `fixed', of which the sector has
 * only the beginning: what is behind that is not looked at, as an entry
 * without a name ends them.
 */
static int
put_before_fixed (const char *name, struct writing *w, const struct layout *l)
{
  const size_t end = l->fixed < SECTOR ? l->fixed : SECTOR;
  size_t room;

  if (w->at == l->fixed)
    return 0;
  if (w->at > l->fixed || w->at + HEAD > SECTOR)
    return no_room (name);
  put_head (w, QCOW2_EXT_FEATURE_NAMES, l->fixed - w->at - HEAD);
  room = end - w->at;
  if (l->fixed > SECTOR) /* and type, bit and an empty name */
    room = room < 3 ? 0 : room - 3;
  (void) put_names (w, l, room);
  return 0;
}

static bool
is_zero (const uint8_t *p, size_t n)
{
  while (n > 0 && *p == 0) {
    p++;
    n--;
  }
  return n == 0;
}

/* Find a place for the backing file's name, which the list's end at `end' runs
 * into: in the sector, or in one that has nothing; or the same, since the sector was
 * not written after that.
 */
static int
move_name (const char *name, struct writing *w, const struct layout *l,
           uint8_t *buf, size_t len, struct bitmap_header_name *moved)
{
  const size_t old_end = l->name_at + l->name_bytes;
  size_t to = w->at;

  if (to + l->name_bytes <= SECTOR)
    memcpy (w->sector + to, w->old + l->name_at, l->name_bytes);
  else {
    to = ((old_end > SECTOR ? old_end : SECTOR) + SECTOR - 1) / SECTOR * SECTOR;
    if (to > len || l->name_bytes > len - to ||
        (!is_zero (buf + to, l->name_bytes) &&
         memcmp (buf + to, w->old + l->name_at, l->name_bytes) != 0))
      return no_room (name);
    if (w->at < old_end)
      memset (w->sector + w->at, 0,
              (old_end < SECTOR ? old_end : SECTOR) - w->at);
    memcpy (buf + to, w->old + l->name_at, l->name_bytes);
    *moved = (struct bitmap_header_name) { { to }, l->name_bytes };
  }
  put_be64 (w->sector + FIELD_BACKING_OFFSET, to);
  return 0;
}

/* The list's end moves; the names are cut off where there is no room for all,
 * and the backing file's name makes room if that does not suffice.
 */
static int
put_inside (const char *name, struct writing *w, const struct layout *l,
            uint8_t *buf, size_t len, struct bitmap_header_name *moved)
{
  const bool has_name = l->name_at != 0 && l->name_at < SECTOR;
  const size_t limit = has_name ? l->name_at : SECTOR;

  if (l->names.bytes > 0 && w->at + 2 * HEAD + QCOW2_FEATURE_ENTRY_SIZE <=
      limit) {
    const size_t head = w->at;
    size_t n;

    w->at += HEAD;
    n = put_names (w, l, limit - HEAD - w->at);
    w->at = head;
    put_head (w, QCOW2_EXT_FEATURE_NAMES, n);
    w->at += n;
  }
  if (w->at + HEAD > SECTOR)
    return no_room (name);
  put_head (w, QCOW2_EXT_END, 0);
  if (!has_name || w->at <= l->name_at)
    return 0;
  return move_name (name, w, l, buf, len, moved);
}

/* Who can't write the header again can't write the image. */
static int
check_qemu_room (const char *name, const struct layout *l, size_t len)
{
  const size_t start = l->start > QCOW2_HEADER_LENGTH_NEW ? l->start
    : QCOW2_HEADER_LENGTH_NEW;
  const size_t needed = start + l->other_bytes + HEAD +
    QCOW2_EXT_BITMAPS_BYTES + HEAD + l->name_bytes +
    (len > QEMU_NO_NAMES ? QEMU_NAMES : 0);

  if (needed <= len)
    return 0;
  error_set (ENOTSUP, "%s: with the header extension of bitmaps the header would "
             "have %zu bytes, more than the first cluster has, %zu", name,
             needed, len);
  return -1;
}

int
bitmap_header_put (const char *name, const struct header *h, uint8_t *buf,
                   size_t len, const struct bitmap_header *b,
                   struct bitmap_header_name *moved, struct host_off *hint)
{
  uint8_t old[QCOW2_MAX_BACKING_NAME + 2 * SECTOR];
  const size_t nr_old = len < sizeof old ? len : sizeof old;
  uint8_t *autoclear = buf + HEADER_FEATURES_OFFSET + 16;
  struct layout l;
  struct writing w = { .old = old, .sector = buf };
  size_t end;

  *moved = (struct bitmap_header_name) { { 0 }, 0 };
  *hint = h->hint;
  read_layout (h, buf, len, &l);
  if (b->nr > 0 && check_qemu_room (name, &l, len) == -1)
    return -1;
  if (l.bitmaps_behind || l.start + l.kept_bytes + HEAD +
      QCOW2_EXT_BITMAPS_BYTES > SECTOR)
    return no_room (name);
  memset (old, 0, sizeof old);
  memcpy (old, buf, nr_old);
  end = l.inside ? l.fixed + l.end_bytes : l.fixed < SECTOR ? l.fixed : SECTOR;
  memset (buf + l.start, 0, end - l.start);
  w.at = l.start;
  put_kept (&w, &l, hint);
  put_bitmaps (&w, b);
  put_be64 (autoclear, (get_be64 (autoclear) & ~QCOW2_AUTOCLEAR_BITMAPS) |
            (b->nr > 0 ? QCOW2_AUTOCLEAR_BITMAPS : 0));
  return l.inside ? put_inside (name, &w, &l, buf, len, moved)
    : put_before_fixed (name, &w, &l);
}
