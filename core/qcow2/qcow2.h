/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2, as a format of disks. */

#ifndef CORE_QCOW2_QCOW2_H
#define CORE_QCOW2_QCOW2_H

#include "disk/format.h"
#include "qcow2/header.h"
#include "storage/storage.h"

/* The layers that it opens are each within a struct qcow2_file; those that are
 * made of them for snapshots, within a struct qcow2_disk only.
 */
extern const struct format_ops qcow2_format;

/* Read and check the header of the image in a storage.  Returns -1 with the
 * error set.
 */
extern int qcow2_read_header (struct storage *s, struct header *h);

#endif /* CORE_QCOW2_QCOW2_H */
