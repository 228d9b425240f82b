/* SPDX-License-Identifier: BSD-3-Clause */

/* Storing clusters compressed. */

#ifndef CORE_QCOW2_WRITE_COMPRESS_H
#define CORE_QCOW2_WRITE_COMPRESS_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/write/writer.h"

/* Store one whole cluster at offset, compressed; of a disk's last cluster buf
 * holds what the disk has of it.  *stored is false, and nothing has changed,
 * if it would not become smaller, or can't be stored so.  The caller holds no
 * lock, and is in no epoch.  Returns -1 with the error set: ENOSPC, EIO,
 * ENOMEM.  Spec: Compressed Clusters Descriptor.
 *
 * While an image is compressed, all writes enter the range of clusters in
 * flight, those in place as well.
 */
extern int compress_cluster (struct writer *w, const void *buf,
                             struct guest_off offset, bool *stored);

/* These bytes, of one cluster, were just written or zeroed, not compressed.
 * If that completes it, it is read, and stored compressed instead.  That this
 * fails is no error, since the bytes are there, unless nothing may be written
 * any more: -1 with the error set.  Otherwise as compress_cluster.
 */
extern int compress_written (struct writer *w, struct guest_off offset,
                             uint64_t count, bool *stored);

#endif /* CORE_QCOW2_WRITE_COMPRESS_H */
