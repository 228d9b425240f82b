/* SPDX-License-Identifier: BSD-3-Clause */

/* The header's first sector while a snapshot is made. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "qcow2/write/writer-parts.h"

#define SECTOR BITMAP_HEADER_SECTOR

/* What is written of that sector, in one write. */
struct part {
  struct host_off at;
  size_t bytes;
  uint8_t buf[SECTOR];
};

/* Both fields of the snapshot table, and the features that follow them. */
static void
encode_snapshots (const struct header *h, struct part *p)
{
  const size_t features =
    HEADER_FEATURES_OFFSET - HEADER_NR_SNAPSHOTS_OFFSET;

  p->at.v = HEADER_NR_SNAPSHOTS_OFFSET;
  p->bytes = features;
  put_be32 (p->buf, h->nr_snapshots);
  put_be64 (p->buf + HEADER_SNAPSHOTS_OFFSET - HEADER_NR_SNAPSHOTS_OFFSET,
            h->snapshots_offset.v);
  if (h->version < 3) /* which has no features */
    return;
  header_encode_features (h, p->buf + features);
  p->bytes += HEADER_FEATURES_BYTES;
}

/* Whether the file has it, though writing another one has failed. */
static bool
is_there (const struct writer *w, const struct part *p)
{
  uint8_t is[SECTOR];

  return storage_read (w->disk->tables, is, p->bytes, p->at) == 0 &&
    memcmp (is, p->buf, p->bytes) == 0;
}

/* Durably.  Returns -1 with the error set; ENOSPC does not stick, since nothing that
 * is on the disk is wrong.
 */
static int
write_part (struct writer *w, const struct part *p)
{
  struct storage *s = w->disk->tables;
  int r = storage_write (s, p->buf, p->bytes, p->at);

  if (r == -1 && error_errno () == ENOSPC) {
    if (!writeback_spend_ballast (&w->writeback))
      return -1;
    r = storage_write (s, p->buf, p->bytes, p->at);
    if (r == -1 && error_errno () == ENOSPC)
      return -1;
  }
  if (r == 0 && storage_flush (s) == 0)
    return 0;
  writeback_fail (&w->writeback);
  return -1;
}

/* As writer.header has them. */
static int
write_snapshots (struct writer *w)
{
  struct part p;

  encode_snapshots (&w->header, &p);
  return write_part (w, &p);
}

int
features_begin_take (struct writer *w)
{
  int r = 0;

  pthread_mutex_lock (&w->begin_lock);
  if (w->header.version >= 3) {
    w->header.incompatible |= QCOW2_INCOMPAT_DIRTY;
    r = write_snapshots (w);
  }
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* begin_lock held. */
static void
not_dirty_by_take (struct writer *w)
{
  if (!w->dirty && !w->mismatched)
    w->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
}

int
features_end_take (struct writer *w)
{
  int r = 0;

  pthread_mutex_lock (&w->begin_lock);
  not_dirty_by_take (w);
  if (w->header.version >= 3)
    r = write_snapshots (w);
  if (r == -1) { /* the end clears it */
    w->header.incompatible |= QCOW2_INCOMPAT_DIRTY;
    w->dirty = true;
  }
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* Write one instead of the other.  begin_lock held. */
static int
replace (struct writer *w, const struct part *old, const struct part *now)
{
  struct error_kept kept;

  if (write_part (w, now) == 0)
    return 0;
  error_keep (&kept);
  if (kept.errnum == ENOSPC && !is_there (w, old) &&
      write_part (w, old) == -1)
    writeback_fail (&w->writeback); /* which of them is there is not known */
  error_restore (&kept);
  return -1;
}

/* ------------------------------------------------------------------- bitmaps */

/* The header's cluster, with what leads to bitmaps put into its first sector. */
struct rebuilt {
  uint8_t *cluster;     /* owned */
  size_t bytes;
  struct part old, now; /* its first sector */
  struct header header; /* as it is then */
  struct bitmap_header_name moved;
};

static int
read_cluster (const struct writer *w, struct rebuilt *b)
{
  b->bytes = w->header.cluster_size;
  b->cluster = malloc (b->bytes);
  if (b->cluster != NULL)
    return storage_read (w->disk->tables, b->cluster, b->bytes,
                         (struct host_off) { 0 });
  error_set (ENOMEM, "%s: out of memory", writer_name (w));
  return -1;
}

static int
decode (const struct writer *w, struct rebuilt *b)
{
  return header_decode (writer_name (w), b->cluster, b->bytes,
                        atomic_load (&w->disk->tables->size), &b->header);
}

static void
copy_sector (const struct rebuilt *b, struct part *p)
{
  p->at.v = 0;
  p->bytes = SECTOR;
  memcpy (p->buf, b->cluster, SECTOR);
}

/* With writer.header's fields, which begin_lock is held for; header_lock is held.
 * The caller frees b->cluster, also after an error.
 */
static int
rebuild (const struct writer *w, const struct bitmap_header *bitmaps,
         struct rebuilt *b)
{
  struct host_off hint;
  struct part p;

  if (read_cluster (w, b) == -1 || decode (w, b) == -1)
    return -1;
  copy_sector (b, &b->old);
  encode_snapshots (&w->header, &p);
  memcpy (b->cluster + p.at.v, p.buf, p.bytes);
  if (bitmap_header_put (writer_name (w), &b->header, b->cluster, b->bytes,
                         bitmaps, &b->moved, &hint) == -1 ||
      decode (w, b) == -1)
    return -1;
  copy_sector (b, &b->now);
  return 0;
}

/* The backing file's name is where the new sector leads to, before that does. */
static int
write_name (struct writer *w, const struct rebuilt *b)
{
  struct storage *s = w->disk->tables;

  if (b->moved.at.v == 0)
    return 0;
  if (storage_write (s, b->cluster + b->moved.at.v, b->moved.bytes,
                     b->moved.at) == -1) {
    if (error_errno () != ENOSPC)
      writeback_fail (&w->writeback);
    return -1;
  }
  if (storage_flush (s) == 0)
    return 0;
  writeback_fail (&w->writeback);
  return -1;
}

static void
note_bitmaps (struct header *h, const struct header *now)
{
  h->autoclear = now->autoclear;
  h->nr_bitmaps = now->nr_bitmaps;
  h->bitmaps_field = now->bitmaps_field;
  h->bitmap_directory = now->bitmap_directory;
  h->bitmap_directory_size = now->bitmap_directory_size;
  h->hint = now->hint;
}

/* begin_lock held. */
static int
switch_both (struct writer *w, const struct bitmap_header *bitmaps)
{
  struct rebuilt b = { .cluster = NULL };
  int r = -1;

  pthread_mutex_lock (&w->writeback.header_lock);
  if (rebuild (w, bitmaps, &b) == 0 && write_name (w, &b) == 0)
    r = replace (w, &b.old, &b.now);
  pthread_mutex_unlock (&w->writeback.header_lock);
  if (r == 0)
    note_bitmaps (&w->header, &b.header);
  free (b.cluster);
  return r;
}

int
features_check_bitmaps (struct writer *w, const struct bitmap_header *bitmaps)
{
  struct rebuilt b = { .cluster = NULL };
  int r;

  pthread_mutex_lock (&w->begin_lock);
  pthread_mutex_lock (&w->writeback.header_lock);
  r = rebuild (w, bitmaps, &b);
  pthread_mutex_unlock (&w->writeback.header_lock);
  pthread_mutex_unlock (&w->begin_lock);
  free (b.cluster);
  return r;
}

/* ----------------------------------------------------------------- the switch */

int
features_switch_snapshots (struct writer *w, uint32_t nr, struct host_off table,
                           const struct bitmap_header *bitmaps)
{
  struct part before, after;
  struct header old;
  int r;

  pthread_mutex_lock (&w->begin_lock);
  old = w->header;
  encode_snapshots (&old, &before);
  not_dirty_by_take (w);
  w->header.nr_snapshots = nr;
  w->header.snapshots_offset = table;
  encode_snapshots (&w->header, &after);
  r = bitmaps == NULL ? replace (w, &before, &after) : switch_both (w, bitmaps);
  if (r == -1)
    w->header = old;
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}
