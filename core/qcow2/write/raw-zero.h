/* SPDX-License-Identifier: BSD-3-Clause */

/* Zeroing and trimming where the external data file is a raw image of the disk:
 * there, and not by changing mappings (qcow2/write/raw-data.h).
 */

#ifndef CORE_QCOW2_WRITE_RAW_ZERO_H
#define CORE_QCOW2_WRITE_RAW_ZERO_H

#include "qcow2/write/writer.h"

/* As disk_zero and disk_trim.  With DISK_FAST it fails where there are data, as
 * nobody knows whether the host can do without writing.
 */
extern int raw_zero (struct writer *w, uint64_t count, struct guest_off offset,
                     unsigned flags);
/* Whether it would fail with DISK_FAST: returns -1 with the error set. */
extern int raw_zero_is_fast (struct writer *w, uint64_t count,
                             struct guest_off offset);
extern int raw_trim (struct writer *w, uint64_t count, struct guest_off offset,
                     unsigned flags);

#endif /* CORE_QCOW2_WRITE_RAW_ZERO_H */
