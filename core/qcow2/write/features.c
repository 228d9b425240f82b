/* SPDX-License-Identifier: BSD-3-Clause */

/* The feature bits of the header while an image is written, and the hint that
 * it has a writer.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "qcow2/bitmaps.h"
#include "qcow2/write/raw-data.h"
#include "qcow2/write/writer-parts.h"

int
features_write (struct writer *w)
{
  const struct host_off at = { HEADER_FEATURES_OFFSET };
  uint8_t buf[HEADER_FEATURES_BYTES];

  header_encode_features (&w->header, buf);
  if (storage_write (w->disk->tables, buf, sizeof buf, at) == -1 ||
      storage_flush (w->disk->tables) == -1) {
    writeback_fail (&w->writeback);
    return -1;
  }
  return 0;
}

/* Write the hint that a writer has not ended.  It becomes durable by the flush
 * that makes the first leak so: no fdatasync is spent on it.
 */
static int
write_hint (struct writer *w, uint8_t value)
{
  if (w->header.hint.v == 0)
    return 0;
  if (storage_write (w->disk->tables, &value, sizeof value,
                     w->header.hint) == -1) {
    writeback_fail (&w->writeback);
    return -1;
  }
  writeback_note_data (&w->writeback);
  return 0;
}

/* What must be true before anything is changed: what nobody keeps up to date
 * from here on is not to be believed (I8), and with lazy refcounts the image
 * is dirty.  The bitmaps' own bit stays: they remain well-formed, and those
 * that are disabled, or followed, right.  begin_lock held.
 */
int
features_begin (struct writer *w)
{
  struct header *h = &w->header;
  const bool lazy = h->compatible & QCOW2_COMPAT_LAZY_REFCOUNTS;
  const uint64_t autoclear =
    (writer_has_bitmaps (h) ? QCOW2_AUTOCLEAR_BITMAPS : 0) |
    (h->raw_data ? QCOW2_AUTOCLEAR_RAW_DATA_FILE : 0);
  bool written;

  if (h->raw_data && raw_data_look (w) == -1)
    return -1;
  if (write_hint (w, HEADER_HINT_SET) == -1)
    return -1;
  if (h->version < 3)
    return 0;
  if (w->follow == NULL &&
      bitmaps_mark_in_use (w->disk->tables, h, &written) == -1) {
    if (written)
      writeback_fail (&w->writeback);
    return -1;
  }
  if (h->autoclear == autoclear && !lazy)
    return 0;
  h->autoclear = autoclear;
  if (lazy)
    h->incompatible |= QCOW2_INCOMPAT_DIRTY;
  w->dirty = lazy;
  return features_write (w);
}

/* Nothing is pending any more. */
int
features_clear_dirty (struct writer *w)
{
  int r;

  if (!w->dirty || w->mismatched)
    return 0;
  pthread_mutex_lock (&w->begin_lock);
  w->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
  r = features_write (w);
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* ---------------------------------------------------------------- snapshots */

/* Both fields of the snapshot table, and the features that follow them: in one
 * sector.
 */
#define SNAPSHOTS_BYTES (HEADER_FEATURES_OFFSET - HEADER_NR_SNAPSHOTS_OFFSET)

struct snapshot_fields {
  size_t bytes; /* version 2 has no features */
  uint8_t buf[SNAPSHOTS_BYTES + HEADER_FEATURES_BYTES];
};

static void
encode_snapshots (const struct header *h, struct snapshot_fields *f)
{
  f->bytes = h->version >= 3 ? sizeof f->buf : SNAPSHOTS_BYTES;
  put_be32 (f->buf, h->nr_snapshots);
  put_be64 (f->buf + HEADER_SNAPSHOTS_OFFSET - HEADER_NR_SNAPSHOTS_OFFSET,
            h->snapshots_offset.v);
  header_encode_features (h, f->buf + SNAPSHOTS_BYTES);
}

/* Whether the file has them as the header has, though writing others has failed. */
static bool
snapshots_are_there (const struct writer *w)
{
  const struct host_off at = { HEADER_NR_SNAPSHOTS_OFFSET };
  struct snapshot_fields should, is;

  encode_snapshots (&w->header, &should);
  return storage_read (w->disk->tables, is.buf, should.bytes, at) == 0 &&
    memcmp (is.buf, should.buf, should.bytes) == 0;
}

/* Durably.  Returns -1 with the error set; ENOSPC does not stick, since nothing that
 * is on the disk is wrong.
 */
static int
write_snapshots (struct writer *w)
{
  const struct host_off at = { HEADER_NR_SNAPSHOTS_OFFSET };
  struct snapshot_fields f;
  int r;

  encode_snapshots (&w->header, &f);
  r = storage_write (w->disk->tables, f.buf, f.bytes, at);
  if (r == -1 && error_errno () == ENOSPC) {
    if (!writeback_spend_ballast (&w->writeback))
      return -1;
    r = storage_write (w->disk->tables, f.buf, f.bytes, at);
    if (r == -1 && error_errno () == ENOSPC)
      return -1;
  }
  if (r == 0 && storage_flush (w->disk->tables) == 0)
    return 0;
  writeback_fail (&w->writeback);
  return -1;
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

int
features_switch_snapshots (struct writer *w, uint32_t nr, struct host_off table)
{
  struct error_kept kept;
  struct header old;
  int r;

  pthread_mutex_lock (&w->begin_lock);
  old = w->header;
  not_dirty_by_take (w);
  w->header.nr_snapshots = nr;
  w->header.snapshots_offset = table;
  r = write_snapshots (w);
  if (r == -1) {
    error_keep (&kept);
    w->header = old;
    if (kept.errnum == ENOSPC && !snapshots_are_there (w) &&
        write_snapshots (w) == -1)
      writeback_fail (&w->writeback); /* which of them is there is not known */
    error_restore (&kept);
  }
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* ------------------------------------------------------------------- ending */

/* All else is durable.  Leaks that are left are to be looked for, still. */
int
features_clear_hint (struct writer *w)
{
  if (w->header.hint.v == 0 || w->leaks_left || atomic_load (&w->leaked))
    return 0;
  return write_hint (w, HEADER_HINT_ENDED) == -1 ? -1
    : writeback_flush (&w->writeback);
}
