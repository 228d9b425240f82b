/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing the live disk. */

#ifndef CORE_QCOW2_WRITE_WRITE_H
#define CORE_QCOW2_WRITE_WRITE_H

#include <stddef.h>
#include <stdint.h>

#include "qcow2/write/writer.h"

/* How the disk is to be changed. */
enum {
  DISK_FUA = 1 << 0,      /* durable on return */
  DISK_MAY_TRIM = 1 << 1, /* host clusters of zeros may be given up */
  DISK_FAST = 1 << 2,     /* fail rather than write zeros */
  DISK_PUNCH = 1 << 3,    /* give the space of zeros that are written back to
                           * the host, where they stay mapped */
  DISK_HIDE = 1 << 4,     /* mark zeros even where nothing lies below */
};

/* Write count bytes at offset, which must be within the disk; buf NULL writes
 * zeros.  flags are of DISK_FUA and, for zeros, DISK_PUNCH.  Takes no lock
 * where clusters are overwritten in place.  The caller holds no lock.
 * Returns -1 with the error set: ENOSPC, EIO, ENOMEM; part of it may have
 * been written.
 */
extern int disk_write (struct writer *w, const void *buf, uint64_t count,
                       struct guest_off offset, unsigned flags);

#endif /* CORE_QCOW2_WRITE_WRITE_H */
