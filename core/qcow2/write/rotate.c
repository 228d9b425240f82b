/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/bitmap-bits.h"
#include "qcow2/bitmap-directory.h"
#include "qcow2/write/follow-parts.h"
#include "qcow2/write/rotate.h"
#include "qcow2/write/writer-parts.h"

#define NONE FOLLOW_PLACES

enum progress {
  PLANNED, BEGUN, MADE, FAILED
};

struct rotation {
  struct writer *w;
  enum progress progress;
  struct following *following;
  bool is_new;      /* that is: no other bitmap follows */
  unsigned begins, ends; /* places; ends may be NONE */
  unsigned granularity_bits;
  uint32_t nr_parts;
  struct bitmap_directory directory;
  struct bitmap_header header;
  uint64_t generation; /* of the point */
  struct host_off ends_table;
  struct alloc_clusters table, space; /* of the new bitmap's table, and of the
                                       * directory; nr is 0: not taken */
};

static int
no_memory (const struct rotation *r)
{
  error_set (ENOMEM, "%s: out of memory", writer_name (r->w));
  return -1;
}

static inline struct storage *
tables_of (const struct rotation *r)
{
  return r->w->disk->tables;
}

static inline uint64_t
clusters (const struct rotation *r, uint64_t bytes)
{
  const uint64_t size = r->w->header.cluster_size;

  return (bytes + size - 1) / size;
}

/* ------------------------------------------------------------------ checking */

static int
check_absent (const struct rotation *r, const struct header *h,
              const char *name)
{
  struct bitmap_info b;
  unsigned nr;

  if (bitmap_find (tables_of (r), h, name, &b, &nr) == 0 || nr > 0)
    error_set (EEXIST, "%s: there is a bitmap \"%s\" already",
               writer_name (r->w), name);
  else if (error_errno () == ENOENT)
    return 0;
  return -1;
}

static int
check_begins (struct rotation *r, const struct header *h,
              const struct rotation_wanted *wanted)
{
  if (r->w->options.invalidate_bitmaps) {
    error_set (ENOTSUP, "%s: bitmaps are given up when it is written, so that none "
               "can begin", writer_name (r->w));
    return -1;
  }
  if (r->w->bitmaps_shared) { /* it could not follow the next time */
    error_set (ENOTSUP, "%s: bitmaps have clusters in common, so that none can "
               "begin", writer_name (r->w));
    return -1;
  }
  if (bitmap_check_new (writer_name (r->w), h, wanted->begins,
                        wanted->granularity, &r->granularity_bits) == -1 ||
      bitmap_count_parts (writer_name (r->w), h, h->disk_size,
                          r->granularity_bits, &r->nr_parts) == -1)
    return -1;
  return check_absent (r, h, wanted->begins);
}

/* By its table, which no other bitmap has, too. */
static unsigned
find_place (const struct rotation *r, struct host_off table)
{
  const struct bit_parts *p = &r->w->follow->parts;
  unsigned i = 0;

  while (i < p->nr && !(bit_parts_follows (p, i) &&
                        p->bitmap[i].table.v == table.v))
    i++;
  return i < p->nr ? i : NONE;
}

/* Find the one that ends, and disable it in the directory. */
static int
check_ends (struct rotation *r, const struct header *h, const char *name)
{
  struct bitmap_info b;
  unsigned nr;

  if (bitmap_find (tables_of (r), h, name, &b, &nr) == -1 ||
      bitmap_check_usable (tables_of (r), &b) == -1)
    return -1;
  if (b.state == BITMAP_ENABLED && r->w->follow != NULL)
    r->ends = find_place (r, b.table);
  r->ends_table = b.table;
  if (r->ends != NONE)
    return bitmap_directory_disable (&r->directory, writer_name (r->w), &b);
  error_set (EINVAL, "%s: the bitmap \"%s\" (directory entry at offset 0x%" PRIx64
             ") can't end, since it is not enabled", writer_name (r->w), name,
             b.place.v);
  return -1;
}

/* ------------------------------------------------------------------ planning */

/* A place among those that follow; they are at most one more than can follow, until
 * one has ended.
 */
static int
choose_place (struct rotation *r)
{
  const struct bit_parts *p = &r->following->parts;
  unsigned i, nr = 0;

  r->begins = NONE;
  for (i = FOLLOW_PLACES; i-- > 0; ) {
    if (bit_parts_follows (p, i))
      nr++;
    else
      r->begins = i;
  }
  if (nr + 1 - (r->ends != NONE) <= BITMAPS_MAX_FOLLOWED) {
    if (bit_slots_have_room (r->following->slots))
      return 0;
    return no_memory (r);
  }
  error_set (ENOTSUP, "%s: more than %d persistent bitmaps would be enabled, too "
             "many to follow what is written", writer_name (r->w),
             BITMAPS_MAX_FOLLOWED);
  return -1;
}

/* The place is the new bitmap's from here on, and what is exact of the old one is
 * what it has at this point.
 */
static void
fill_place (struct rotation *r)
{
  struct bit_parts *p = &r->following->parts;
  struct followed *b = &p->bitmap[r->begins];

  b->nr_bits = bitmap_nr_bits (r->w->header.disk_size, r->granularity_bits);
  b->granularity_bits = r->granularity_bits;
  b->table = r->table.host;
  b->nr_parts = r->nr_parts;
  if (r->ends != NONE)
    p->bitmap[r->ends].ends_at = r->generation;
}

/* The first one that follows. */
static int
make_following (struct rotation *r)
{
  r->is_new = true;
  r->following = follow_new (r->w);
  if (r->following == NULL)
    return -1;
  r->following->parts.nr = 1;
  r->following->slots = bit_slots_new (&r->following->parts,
                                       r->w->options.bitmap_pages);
  return r->following->slots == NULL ? -1 : 0;
}

/* What depends on nothing that is yet to be taken. */
static int
plan (struct rotation *r, const struct rotation_wanted *wanted)
{
  const struct header h = writer_get_header (r->w);
  const char *name = writer_name (r->w);

  if (check_begins (r, &h, wanted) == -1 ||
      bitmap_directory_read (&r->directory, tables_of (r), &h) == -1 ||
      (wanted->ends != NULL && check_ends (r, &h, wanted->ends) == -1) ||
      bitmap_directory_append (&r->directory, name, wanted->begins,
                               r->granularity_bits) == -1)
    return -1;
  r->header.nr = r->directory.nr;
  r->header.directory_bytes = r->directory.size;
  r->header.directory.v = h.cluster_size; /* as large as any */
  if (features_check_bitmaps (r->w, &r->header) == -1 ||
      bitmap_lives_reserve (&r->w->points->lives) == -1)
    return -1;
  if (r->w->follow == NULL)
    return make_following (r);
  r->following = r->w->follow;
  return choose_place (r);
}

/* --------------------------------------------------------------------- space */

static int
take_space (struct rotation *r, uint64_t bytes, enum metadata kind,
            struct alloc_clusters *space)
{
  struct writer *w = r->w;

  if (alloc_take_contiguous (&w->alloc, clusters (r, bytes), space) == -1) {
    space->nr = 0;
    return writer_failed (w);
  }
  return overlap_add (&w->overlap, writer_name (w), space->host, space->nr,
                      kind);
}

/* All of its clusters: what is beyond the bytes is zeros, and has its space. */
static int
write_space (struct rotation *r, const struct alloc_clusters *space,
             const uint8_t *bytes, uint64_t size)
{
  const uint64_t cluster_size = r->w->header.cluster_size;
  uint8_t *buf = malloc (cluster_size);
  uint64_t at;
  int ret = 0;

  if (buf == NULL)
    return no_memory (r);
  for (at = 0; ret == 0 && at < space->nr * cluster_size; at += cluster_size) {
    const uint64_t left = at < size ? size - at : 0;
    const uint64_t n = left < cluster_size ? left : cluster_size;

    memcpy (buf, bytes + (n > 0 ? at : 0), n);
    memset (buf + n, 0, cluster_size - n);
    ret = storage_write (tables_of (r), buf, cluster_size,
                         (struct host_off) { space->host.v + at });
  }
  free (buf);
  writeback_note_data (&r->w->writeback);
  return ret;
}

/* That entries of the table can be changed on a full file system, as it is written
 * and flushed, is what bit_parts_prepare does for others.
 */
static int
take_all (struct rotation *r, const char *name)
{
  if (take_space (r, 8 * (uint64_t) r->nr_parts, METADATA_BITMAP_TABLE,
                  &r->table) == -1 ||
      take_space (r, r->directory.size, METADATA_BITMAPS, &r->space) == -1)
    return -1;
  bitmap_directory_set_table (&r->directory, name, r->table.host, r->nr_parts);
  r->header.directory = r->space.host;
  return write_space (r, &r->table, r->directory.bytes, 0) == -1 ||
    write_space (r, &r->space, r->directory.bytes, r->directory.size) == -1
    ? -1 : writer_flush (r->w);
}

struct rotation *
rotation_new (struct writer *w, const struct rotation_wanted *wanted)
{
  struct rotation *r = calloc (1, sizeof *r);

  if (r == NULL) {
    error_set (ENOMEM, "%s: out of memory", writer_name (w));
    return NULL;
  }
  r->w = w;
  r->ends = NONE;
  if (writer_begin (w, (struct guest_off) { 0 }, 0) == 0 &&
      plan (r, wanted) == 0 && take_all (r, wanted->begins) == 0)
    return r;
  rotation_free (r);
  return NULL;
}

/* ---------------------------------------------------------- while it is quiet */

void
rotation_begin (struct rotation *r, const struct point *point)
{
  struct bit_slots *slots = r->following->slots;

  r->generation = atomic_load (&point->generation);
  bitmap_lives_begin (&r->w->points->lives, r->table.host, r->generation);
  fill_place (r);
  bit_slots_set (slots, r->begins, FOLLOW_ALL);
  if (r->ends != NONE)
    bit_slots_set (slots, r->ends, FOLLOW_ENDING);
  if (r->is_new)
    r->w->follow = r->following;
  r->progress = BEGUN;
}

const struct bitmap_header *
rotation_directory (const struct rotation *r)
{
  return &r->header;
}

/* B4.  What is exact of the old one is written after this (B3).  If something has
 * failed that sticks the header may lead to the new one all the same.
 */
static void
note_lives (struct rotation *r, bool made)
{
  struct bitmap_lives *lives = &r->w->points->lives;

  if (!made && !atomic_load (&r->w->writeback.failed))
    bitmap_lives_forget (lives, r->table.host);
  else if (made && r->ends != NONE)
    bitmap_lives_end (lives, r->ends_table, r->generation);
}

void
rotation_end (struct rotation *r, bool made)
{
  struct bit_slots *slots = r->following->slots;

  note_lives (r, made);
  if (r->ends != NONE)
    bit_slots_set (slots, r->ends, made ? FOLLOW_ENDED : FOLLOW_AGAIN);
  if (!made)
    bit_slots_set (slots, r->begins, FOLLOW_GONE);
  if (!made && r->is_new)
    r->w->follow = NULL;
  r->progress = made ? MADE : FAILED;
}

/* ----------------------------------------------------------------- afterwards */

static void
give_up (struct rotation *r, struct host_off host, uint64_t nr)
{
  const struct freed f = {
    .host = host, .nr = nr, .is_table = true,
    .bytes = nr * r->w->header.cluster_size,
  };

  if (nr > 0)
    (void) writeback_free (&r->w->writeback, &f, 1); /* or lost */
}

/* Of its place the overlap table knows by a range, if it was there when the image
 * was opened.
 */
static void
give_up_old_directory (struct rotation *r)
{
  const struct bitmap_directory *d = &r->directory;

  if (d->old_bytes == 0)
    return;
  overlap_remove_range (&r->w->overlap, d->old);
  give_up (r, d->old, clusters (r, d->old_bytes));
}

/* B5.  If something has failed that sticks nothing is given up: what leads where is
 * not known.
 */
static void
give_up_new (struct rotation *r)
{
  if (writeback_check (&r->w->writeback) == -1)
    return;
  if (r->progress == FAILED) {
    struct bit_parts *p = &r->following->parts;

    bit_parts_give_up_bits (p, &p->bitmap[r->begins]);
    if (r->is_new)
      bit_parts_give_up (p);
  }
  give_up (r, r->table.host, r->table.nr);
  give_up (r, r->space.host, r->space.nr);
}

/* It had begun, and the snapshot was not made: nobody uses its pages any more, and
 * what is exact of the old one is right again.
 */
static void
let_go (struct rotation *r)
{
  struct bit_slots *slots = r->following->slots;

  if (r->is_new)
    follow_stop (r->following);
  else
    bit_slots_drop (slots, r->begins);
  if (r->ends != NONE)
    bit_slots_regain (slots, r->ends);
}

static void
undo (struct rotation *r)
{
  if (r->progress == FAILED)
    let_go (r);
  give_up_new (r);
  if (r->is_new)
    follow_free (r->following);
}

void
rotation_free (struct rotation *r)
{
  struct error_kept kept;

  error_keep (&kept);
  if (r->progress == MADE) {
    if (r->ends != NONE)
      bit_slots_drop (r->following->slots, r->ends);
    give_up_old_directory (r);
  }
  else
    undo (r);
  bitmap_directory_free (&r->directory);
  free (r);
  error_restore (&kept);
}
