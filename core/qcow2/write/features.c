/* SPDX-License-Identifier: BSD-3-Clause */

/* The feature bits of the header while an image is written, and the hint that
 * it has a writer.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "qcow2/bitmaps.h"
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

/* What others have put behind the end that the raw data file had when it was
 * looked through would be zeroed by what is mapped there.
 */
static int
check_raw_growth (struct writer *w)
{
  struct storage *data = w->disk->data_file;
  const uint64_t size = atomic_load (&data->size), from = w->raw_seen;
  const uint64_t end = size < w->disk->size ? size : w->disk->size;
  bool zero;

  if (end <= from)
    return 0;
  if (storage_is_zero (data, (struct host_off) { from }, end - from,
                       &zero) == -1)
    return -1;
  if (!zero) {
    error_set (EIO, "%s: the raw data file %s was made longer by another "
               "program since it was opened, with data between the offsets 0x%"
               PRIx64 " and 0x%" PRIx64 ", where zeros should be: it is not "
               "written until it is opened anew", writer_name (w), data->name,
               from, end);
    return -1;
  }
  w->raw_seen = end;
  return 0;
}

/* A raw data file is as large as the disk, or larger.  What others append at the
 * same time is looked at once it is, since from then on it is theirs to write
 * where the disk has its data.
 */
static int
grow_raw_data (struct writer *w)
{
  struct storage *data = w->disk->data_file;

  storage_see_growth (data);
  if (check_raw_growth (w) == -1)
    return -1;
  if (atomic_load (&data->size) >= w->disk->size)
    return 0;
  if (storage_extend (data, w->disk->size) == -1 ||
      check_raw_growth (w) == -1)
    return -1;
  if (storage_flush (data) == 0)
    return 0;
  writeback_fail (&w->writeback);
  return -1;
}

/* What must be true before anything is changed: what nobody keeps up to date
 * from here on is not to be believed (I8), and with lazy refcounts the image
 * is dirty.  The bitmaps' own bit stays: they remain well-formed, and those
 * that are disabled right.  begin_lock held.
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

  if (h->raw_data && grow_raw_data (w) == -1)
    return -1;
  if (write_hint (w, HEADER_HINT_SET) == -1)
    return -1;
  if (h->version < 3)
    return 0;
  if (bitmaps_mark_in_use (w->disk->tables, h, &written) == -1) {
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

  if (!w->dirty)
    return 0;
  pthread_mutex_lock (&w->begin_lock);
  w->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
  r = features_write (w);
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* All else is durable.  Leaks that are left are to be looked for, still. */
int
features_clear_hint (struct writer *w)
{
  if (w->header.hint.v == 0 || w->leaks_left)
    return 0;
  return write_hint (w, HEADER_HINT_ENDED) == -1 ? -1
    : writeback_flush (&w->writeback);
}
