/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeroing and trimming of the live disk. */

#ifndef CORE_QCOW2_WRITE_ZERO_H
#define CORE_QCOW2_WRITE_ZERO_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/write/writer.h"

/* Have a range, which must be within the disk, read as zeros.  may_trim gives
 * up the host clusters; without it they are kept, where they can be.  fast
 * fails with ENOTSUP, and nothing is changed, where that would take writing
 * zeros.  The caller holds no lock.  Errors as with disk_write.
 *
 * Version 3 marks clusters, or subclusters, as zeros.  Version 2 can't: it
 * unmaps them if nothing lies below and may_trim is set, and zeros are written
 * otherwise.
 */
extern int disk_zero (struct writer *w, uint64_t count,
                      struct guest_off offset, bool may_trim, bool fast,
                      bool fua);

/* The same as disk_zero with may_trim, but for clusters (subclusters, with
 * extended L2) that are only in part in the range: those are left alone.
 */
extern int disk_trim (struct writer *w, uint64_t count,
                      struct guest_off offset, bool fua);

#endif /* CORE_QCOW2_WRITE_ZERO_H */
