/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing, zeroing and trimming the disk of a QED image.  All of them take a
 * range within the disk, and the caller holds no lock.  They return -1 with the
 * error set: ENOSPC, EIO, ENOMEM; part of the change may have been made.
 */

#ifndef CORE_QED_WRITE_H
#define CORE_QED_WRITE_H

#include "qed/writer.h"

enum {
  QED_FUA = 1 << 0,      /* durable on return */
  QED_MAY_TRIM = 1 << 1, /* zeros need no space on the host */
  QED_FAST = 1 << 2,     /* ENOTSUP, and no change, rather than writing zeros */
};

/* Takes no lock where clusters are overwritten in place. */
extern int qed_disk_write (struct qed_writer *w, const void *buf,
                           uint64_t count, struct guest_off offset,
                           unsigned flags);

/* Clusters without a place become zero clusters; others become holes of the
 * file, where they are.  Parts of clusters without a place are written, unless
 * they are zeros now.
 */
extern int qed_disk_zero (struct qed_writer *w, uint64_t count,
                          struct guest_off offset, unsigned flags);

/* The same, as far as nothing has to be written, nor a table be made: the rest
 * is left alone.
 */
extern int qed_disk_trim (struct qed_writer *w, uint64_t count,
                          struct guest_off offset, unsigned flags);

#endif /* CORE_QED_WRITE_H */
