/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeroing and trimming of the live disk. */

#ifndef CORE_QCOW2_WRITE_ZERO_H
#define CORE_QCOW2_WRITE_ZERO_H

#include <stdint.h>

#include "qcow2/write/write.h"

/* Have a range, which must be within the disk, read as zeros.  flags are of
 * DISK_FUA, DISK_MAY_TRIM, without which host clusters are kept where they can
 * be, DISK_HIDE, for what may lie below later, and DISK_FAST, which fails with ENOTSUP, and nothing is changed, where
 * zeros would have to be written.  The caller holds no lock.  Errors as with
 * disk_write.
 *
 * Version 3 marks clusters, or subclusters, as zeros.  Version 2 can't: it
 * unmaps them if nothing lies below and DISK_MAY_TRIM is set, and zeros are
 * written otherwise; DISK_HIDE has no effect there, nor on parts of clusters.
 */
extern int disk_zero (struct writer *w, uint64_t count,
                      struct guest_off offset, unsigned flags);

/* Returns -1, with the error set to ENOTSUP, if disk_zero would with these flags,
 * DISK_FAST among them; or with another error that it has met.
 */
extern int disk_zero_is_fast (struct writer *w, uint64_t count,
                              struct guest_off offset, unsigned flags);

/* The same as disk_zero with DISK_MAY_TRIM, but for clusters (subclusters, with
 * extended L2) that are only in part in the range: those are left alone.
 * flags are DISK_FUA or 0.
 */
extern int disk_trim (struct writer *w, uint64_t count,
                      struct guest_off offset, unsigned flags);

#endif /* CORE_QCOW2_WRITE_ZERO_H */
