/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of the writer have in common: writer.c, which opens and closes
 * it, and
 *
 *   features.c   the header's feature bits, and the hint that there is a writer
 *   features-take.c   the header's first sector while a snapshot is made
 *   guard.c      images that are found to be corrupt
 *   l2-table.c   L2 tables that may be changed
 *
 * Where that is not said otherwise these return -1 with the error set; then nothing is
 * written any more (I10).
 */

#ifndef CORE_QCOW2_WRITE_WRITER_PARTS_H
#define CORE_QCOW2_WRITE_WRITER_PARTS_H

#include "qcow2/bitmap-header.h"
#include "qcow2/write/writer.h"

/* A copy of writer.header, which others change. */
static inline struct header
writer_get_header (struct writer *w)
{
  struct header h;

  pthread_mutex_lock (&w->begin_lock);
  h = w->header;
  pthread_mutex_unlock (&w->begin_lock);
  return h;
}

/* Write those of writer.header, durably.  Wants writer.begin_lock. */
extern int features_write (struct writer *w);

/* The image is about to be changed for the first time.  Wants
 * writer.begin_lock.
 */
extern int features_begin (struct writer *w);

/* All is durable and nothing is pending: it is not dirty any more, and has no
 * writer, unless leaks are left.  No request may be running.
 */
extern int features_clear_dirty (struct writer *w);
extern int features_clear_hint (struct writer *w);

/* While a snapshot is made refcounts and COPIED flags may disagree: the image is
 * dirty, durably, if its version has that.
 */
extern int features_begin_take (struct writer *w);

/* They agree again, durably: it is dirty no longer, unless that is for another
 * reason.
 */
extern int features_end_take (struct writer *w);

/* The same, and the image has this snapshot table and, unless that is NULL, this
 * directory of bitmaps, by one write of a sector.  After ENOSPC and ENOMEM, which do
 * not stick, all is as before; after a failed write or flush (which does) it is not
 * known which it has.
 */
extern int features_switch_snapshots (struct writer *w, uint32_t nr,
                                      struct host_off table,
                                      const struct bitmap_header *bitmaps);

/* Whether the header has room for that.  Returns -1 with the error set: ENOTSUP,
 * EIO, EINVAL for damage, ENOMEM.
 */
extern int features_check_bitmaps (struct writer *w,
                                   const struct bitmap_header *bitmaps);

#endif /* CORE_QCOW2_WRITE_WRITER_PARTS_H */
