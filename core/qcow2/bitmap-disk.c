/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/epoch.h"
#include "base/error.h"
#include "disk/extents.h"
#include "qcow2/bitmap-bits.h"
#include "qcow2/bitmap-disk.h"
#include "qcow2/bitmaps.h"
#include "qcow2/point-disk.h"
#include "qcow2/points.h"
#include "qcow2/qcow2.h"

/* What is read at once, of the table and of the bits. */
#define PAGE 4096

/* Spec: Bitmaps extension: fields in its data; the first is the number. */
#define EXTENSION_SIZE 8
#define EXTENSION_DIRECTORY 16

struct bitmap_disk {
  struct point_disk frozen; /* first: see qcow2/disk.h */
  bool live;                /* it has neither a point nor a snapshot's disk */
  struct bitmap_info info;
  unsigned cluster_bits;
  struct host_off extension; /* where the header says this of the directory: */
  uint32_t nr_bitmaps;
  uint64_t directory_size;
  struct host_off directory;
};

static inline const struct bitmap_disk *
bitmap_disk (const struct layer *layer)
{
  return (const struct bitmap_disk *) layer;
}

static inline struct layer *
layer_of (struct bitmap_disk *d)
{
  return &d->frozen.disk.layer;
}

/* Reads pages of a bitmap.  start: what offset in the file a page has; 0: none
 * was read.
 */
struct page {
  uint64_t start;
  uint8_t bytes[PAGE];
};

struct bits {
  const struct bitmap_disk *d;
  struct page table, data;

  /* What the point has of the page with this number, counted from 1; 0: it was not
   * looked for.
   */
  uint64_t kept_nr;
  bool is_kept;
  uint8_t kept[PAGE];
};

/* Nothing was read. */
static void
bits_init (struct bits *b, const struct bitmap_disk *d)
{
  b->d = d;
  b->table.start = b->data.start = b->kept_nr = 0;
}

/* Point to the bytes at offset at, in a page that is aligned to `unit' bytes,
 * a power of two of at most PAGE.  They were within the file when it was
 * opened: if it is shorter now what is missing must not seem to be zeros.
 * Returns NULL with the error set.
 */
static const uint8_t *
find_bytes (struct storage *s, struct page *p, uint64_t at, uint64_t unit)
{
  const struct host_off start = { at & -unit };
  const uint64_t size = atomic_load (&s->size);
  const uint64_t count = start.v < size && size - start.v < unit
    ? size - start.v : unit;

  if (p->start != start.v) {
    p->start = 0;
    if (storage_read_present (s, p->bytes, count, start) == -1)
      return NULL;
    p->start = start.v;
  }
  return p->bytes + (at - start.v);
}

static uint64_t
page_size (unsigned cluster_bits)
{
  return cluster_bits < 12 ? UINT64_C (1) << cluster_bits : PAGE;
}

static int __attribute__ ((__cold__))
invalid_part (const struct bitmap_disk *d, struct host_off place, uint64_t word)
{
  const struct layer *l = &d->frozen.disk.layer;

  error_set (EIO, "%s: the bitmap \"%s\": table entry at offset 0x%" PRIx64
             ": 0x%" PRIx64 " is not valid, or beyond the end of the file",
             l->tables->name, d->info.name, place.v, word);
  return layer_damaged (l, place);
}

/* Decode the i-th entry of the table; a cluster is within the file.  Returns -1
 * with the error set.
 */
static int
find_part (struct bits *b, uint64_t i, enum bitmap_part *part,
           struct host_off *host)
{
  const struct bitmap_disk *d = b->d;
  struct storage *s = d->frozen.disk.layer.tables;
  const uint64_t cluster = UINT64_C (1) << d->cluster_bits;
  const struct host_off place = { d->info.table.v + 8 * i };
  const uint64_t size = atomic_load (&s->size);
  const uint8_t *p = find_bytes (s, &b->table, place.v,
                                 page_size (d->cluster_bits));

  if (p == NULL)
    return -1;
  *part = entry_decode_bitmap (get_be64 (p), d->cluster_bits, host);
  if (*part == BITMAP_PART_INVALID ||
      (*part == BITMAP_PART_CLUSTER &&
       (host->v > size || cluster > size - host->v)))
    return invalid_part (d, place, get_be64 (p));
  return 0;
}

/* The page that was kept for the point, instead of what was read of the disk before
 * (S6 of qcow2/points.h); NULL: there is none.
 */
static const uint8_t *
find_kept (struct bits *b, uint64_t page)
{
  const struct point_disk *f = &b->d->frozen;

  if (b->kept_nr != page + 1) {
    b->kept_nr = page + 1;
    b->is_kept = points_get_bits (f->points, f->point, b->d->info.table, page,
                                  b->kept, page_size (b->d->cluster_bits));
  }
  return b->is_kept ? b->kept : NULL;
}

/* Find the value of the bit, and how many (at most max) after it have the same,
 * which may be fewer than there are.  Returns -1 with the error set.
 */
static int
find_bits (struct bits *b, uint64_t bit, uint64_t max, bool *set, uint64_t *nr)
{
  const unsigned cluster_bits = b->d->cluster_bits;
  const uint64_t per_part = UINT64_C (8) << cluster_bits;
  const uint64_t per_page = 8 * page_size (cluster_bits);
  const uint64_t first = bit % per_page;
  uint64_t left = per_part - bit % per_part;
  struct host_off host = HOST_NONE;
  enum bitmap_part part;
  const uint8_t *p = NULL;

  if (find_part (b, bit / per_part, &part, &host) == -1)
    return -1;
  *set = part == BITMAP_PART_DIRTY;
  if (part == BITMAP_PART_CLUSTER) {
    p = find_bytes (b->d->frozen.disk.layer.tables, &b->data,
                    host.v + bit % per_part / per_page * (per_page / 8),
                    per_page / 8);
    if (p == NULL)
      return -1;
  }
  if (b->d->frozen.point != NULL) {
    const uint8_t *kept = find_kept (b, bit / per_page);

    p = kept != NULL ? kept : p;
    left = left < per_page - first ? left : per_page - first;
  }
  if (p != NULL) {
    left = per_page - first < max ? per_page - first : max;
    *set = bitmap_bit (p, first);
    left = bitmap_same (p, first, first + left);
  }
  *nr = left < max ? left : max;
  return 0;
}

/* Whether the header still has the directory in which it was found. */
static bool
is_same_directory (const struct bitmap_disk *d, const uint8_t *extension)
{
  return get_be32 (extension) == d->nr_bitmaps &&
    get_be64 (extension + EXTENSION_SIZE) == d->directory_size &&
    get_be64 (extension + EXTENSION_DIRECTORY) == d->directory.v;
}

/* Whether all that it was found by is where it was, and the same. */
static bool
is_where_it_was (const struct bitmap_disk *d)
{
  struct storage *s = d->frozen.disk.layer.tables;
  const struct host_off autoclear = { HEADER_FEATURES_OFFSET + 16 };
  uint8_t features[8], entry[sizeof d->info.entry];
  uint8_t extension[QCOW2_EXT_BITMAPS_BYTES];

  return storage_read (s, entry, sizeof entry, d->info.place) == 0 &&
    storage_read (s, extension, sizeof extension, d->extension) == 0 &&
    storage_read (s, features, sizeof features, autoclear) == 0 &&
    (get_be64 (features) & QCOW2_AUTOCLEAR_BITMAPS) &&
    is_same_directory (d, extension) &&
    memcmp (entry, d->info.entry, sizeof entry) == 0;
}

/* Whether a disk with a point is of a moment in the bitmap's life. */
static bool
is_in_life (const struct bitmap_disk *d)
{
  return d->frozen.point == NULL ||
    bitmap_lives_at (&d->frozen.points->lives, d->info.table,
                     atomic_load (&d->frozen.point->generation));
}

/* Whether the header leads to it elsewhere, with the same table: since other bitmaps
 * have begun or ended, or this one has ended, after the moment that the disk is of.
 * Of points that is known by is_in_life; snapshots that can be opened before were made
 * before.
 */
static bool
is_elsewhere (const struct bitmap_disk *d)
{
  struct storage *s = d->frozen.disk.layer.tables;
  struct bitmap_info now;
  struct header h;
  unsigned nr;

  return qcow2_read_header (s, &h) == 0 &&
    bitmap_find (s, &h, d->info.name, &now, &nr) == 0 &&
    (now.state == d->info.state ||
     (now.state == BITMAP_DISABLED && !d->live)) &&
    now.table.v == d->info.table.v && now.nr_parts == d->info.nr_parts &&
    now.granularity_bits == d->info.granularity_bits;
}

/* Whether the bitmap is what it was when it was opened: the bits that were read
 * before count only then.  Another program makes a new directory, and leaves
 * the old one as it was, until something else is put there; so does the start of a
 * bitmap here, and in the epoch the old one stays.  Returns -1 with the error set if
 * it isn't.
 */
static int
check_valid (const struct bitmap_disk *d)
{
  const struct layer *l = &d->frozen.disk.layer;
  const unsigned token = epoch_enter (l->shared->epoch);
  const bool valid = (is_where_it_was (d) || is_elsewhere (d)) &&
    is_in_life (d);

  epoch_leave (l->shared->epoch, token);
  if (valid)
    return 0;
  error_set (EIO, "%s: the bitmap \"%s\" is not valid any more, since the "
             "image was written, or the bitmap has ended", l->tables->name,
             d->info.name);
  return layer_damaged (l, d->info.place);
}

/* See layer.find_changes. */
static int
find_changes (const struct layer *layer, uint64_t count,
              struct guest_off offset, struct extents *e)
{
  const struct bitmap_disk *d = bitmap_disk (layer);
  const unsigned shift = d->info.granularity_bits;
  const uint64_t end = offset.v + count;
  struct bits b;
  uint64_t at = offset.v;
  int r = 0;

  bits_init (&b, d);
  while (r == 0 && at < end) {
    const uint64_t bit = at >> shift;
    uint64_t nr, next = end;
    bool set;

    if (find_bits (&b, bit, ((end - 1) >> shift) + 1 - bit, &set, &nr) == -1)
      return -1;
    if (bit + nr <= (end - 1) >> shift)
      next = (bit + nr) << shift;
    r = extents_add (e, next - at, set ? CHANGE_LOOK : CHANGE_NONE);
    at = next;
  }
  if (r != -1 && (point_disk_check (&d->frozen) == -1 ||
                  check_valid (d) == -1))
    r = -1;
  return r;
}

/* ------------------------------------------------------------------ opening */

/* Each entry of the table that stands for bits of the disk. */
static int
check_parts (const struct bitmap_disk *d)
{
  const uint64_t nr =
    bitmap_nr_parts (bitmap_nr_bits (d->frozen.disk.layer.size,
                                     d->info.granularity_bits),
                     d->cluster_bits);
  struct bits b;
  uint64_t i;

  bits_init (&b, d);
  for (i = 0; i < nr; ++i) {
    enum bitmap_part part;
    struct host_off host;

    if (find_part (&b, i, &part, &host) == -1)
      return -1;
  }
  return 0;
}

static int
find_bitmap (struct bitmap_disk *d, const struct header *h, const char *name)
{
  const struct layer *l = &d->frozen.disk.layer;
  unsigned nr;

  if (bitmap_find (l->tables, h, name, &d->info, &nr) == 0)
    return 0;
  return error_errno () != EINVAL ? -1
    : layer_damaged (l, nr > 0 ? d->info.place
                     : (struct host_off) { h->bitmaps_field });
}

/* A snapshot has the size that the disk had when it was made. */
static int
check_size (const struct bitmap_disk *d, const struct header *h)
{
  const struct layer *l = &d->frozen.disk.layer;

  if (l->size == h->disk_size)
    return 0;
  error_set (EINVAL, "%s: the bitmap \"%s\" is for a disk of %" PRIu64 " bytes, "
             "and the snapshot has %" PRIu64, l->tables->name, d->info.name,
             h->disk_size, l->size);
  return -1;
}

static int
check_life (const struct bitmap_disk *d)
{
  if (is_in_life (d))
    return 0;
  error_set (EINVAL, "%s: the bitmap \"%s\" began after that point in time, or "
             "ended before it, so that it does not tell what had changed by then",
             d->frozen.disk.layer.tables->name, d->info.name);
  return -1;
}

/* Find it, and check what of it is in the directory and the table.  Damage is
 * marked as repeated, since clients that list the exports try each, each time.
 */
static int
find_and_check (struct bitmap_disk *d, const char *name)
{
  struct storage *s = d->frozen.disk.layer.tables;
  struct header h;

  /* A repair may have changed it since the image was opened. */
  if (qcow2_read_header (s, &h) == -1 || find_bitmap (d, &h, name) == -1)
    return -1;
  d->cluster_bits = h.cluster_bits;
  d->extension.v = h.bitmaps_field - EXTENSION_DIRECTORY;
  d->nr_bitmaps = h.nr_bitmaps;
  d->directory_size = h.bitmap_directory_size;
  d->directory = h.bitmap_directory;
  if (bitmap_check_usable (s, &d->info) == -1)
    return layer_damaged (&d->frozen.disk.layer, d->info.place);
  if (bitmap_check_table (s, &h, &d->info) == -1) {
    error_append (" (of the bitmap \"%s\")", d->info.name);
    return layer_damaged (&d->frozen.disk.layer, d->info.place);
  }
  return check_size (d, &h) == -1 || check_life (d) == -1 ? -1
    : check_parts (d);
}

/* In the epoch the directory stays that the header leads to. */
static int
open_bitmap (struct bitmap_disk *d, const char *name)
{
  struct epoch *epoch = d->frozen.disk.layer.shared->epoch;
  const unsigned token = epoch_enter (epoch);
  const int r = find_and_check (d, name);

  epoch_leave (epoch, token);
  return r;
}

struct host_off
bitmap_disk_table (const struct layer *layer)
{
  return bitmap_disk (layer)->info.table;
}

struct layer *
bitmap_disk_new (const struct qcow2_file *f, const char *name,
                 const struct qcow2_disk *snapshot, struct point *point)
{
  struct bitmap_disk *d = malloc (sizeof *d);

  if (d == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  point_disk_init (&d->frozen, f, point);
  d->live = snapshot == NULL && point == NULL;
  if (snapshot != NULL)
    d->frozen.disk = *snapshot;
  if (open_bitmap (d, name) == -1) {
    free (d);
    return NULL;
  }
  layer_of (d)->find_changes = find_changes;
  return layer_of (d);
}
