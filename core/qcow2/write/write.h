/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing the live disk. */

#ifndef CORE_QCOW2_WRITE_WRITE_H
#define CORE_QCOW2_WRITE_WRITE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/write/writer.h"

/* Write count bytes at offset, which must be within the disk; buf NULL writes
 * zeros, and with punch gives their space back to the host where that needs
 * no change of a mapping.  With fua set they are durable on return.  Takes no
 * lock where clusters are overwritten in place.  The caller holds no lock.
 * Returns -1 with the error set: ENOSPC, EIO, ENOMEM; part of it may have
 * been written.
 */
extern int disk_write (struct writer *w, const void *buf, uint64_t count,
                       struct guest_off offset, bool punch, bool fua);

#endif /* CORE_QCOW2_WRITE_WRITE_H */
