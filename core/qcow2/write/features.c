/* SPDX-License-Identifier: BSD-3-Clause */

/* The feature bits of the header while an image is written, and the hint that
 * it has a writer.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

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

/* Nothing is pending any more.  What was lost may have been raised by a take, for
 * entries with COPIED.
 */
int
features_clear_dirty (struct writer *w)
{
  int r;

  if (!w->dirty || w->mismatched || atomic_load (&w->writeback.lost) > 0)
    return 0;
  pthread_mutex_lock (&w->begin_lock);
  w->header.incompatible &= ~QCOW2_INCOMPAT_DIRTY;
  r = features_write (w);
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* ------------------------------------------------------------------- ending */

/* All else is durable.  Leaks that are left are to be looked for, still. */
int
features_clear_hint (struct writer *w)
{
  if (w->header.hint.v == 0 || w->leaks_left || atomic_load (&w->leaked) ||
      atomic_load (&w->writeback.lost) > 0)
    return 0;
  return write_hint (w, HEADER_HINT_ENDED) == -1 ? -1
    : writeback_flush (&w->writeback);
}
