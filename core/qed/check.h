/* SPDX-License-Identifier: BSD-3-Clause */

/* Check and repair of QED images.  The verdict is that of `qemu-img check', but
 * that this one counts leaks right where an image has more clusters than one of
 * them has bytes: QEMU then numbers them wrongly, and counts a leak that isn't
 * there.  Spec: Consistency checking.
 */

#ifndef CORE_QED_CHECK_H
#define CORE_QED_CHECK_H

#include "qcow2/check/repair.h"
#include "qed/header.h"
#include "storage/storage.h"

/* A file of more clusters is not checked: memory is a bit for each of them.
 * With clusters of 64 KiB it is longer than 16 TiB.
 */
#define QED_CHECK_MAX_CLUSTERS (UINT64_C (1) << 28)

/* Check an image that is not being written.  Writes nothing.  report->dirty
 * tells of NEED_CHECK.  Returns -1 with the error set if that can't be done:
 * EINVAL, ENOTSUP, EIO, ENOMEM.
 */
extern int qed_check_storage (struct storage *s,
                              const struct check_options *options,
                              struct check_report *report);

/* Repair an image that nothing else is using, in a writable storage:
 *
 *  - REPAIR_ALL sets entries that lead nowhere to 0, as QEMU does;
 *  - if nothing is wrong then but leaks, those at the end of the file are cut
 *    off, and NEED_CHECK is cleared.
 *
 * Clusters that are used twice are left to the owner; leaks between others
 * have to stay, since QED gives out nothing but the end of the file.  Each step
 * is durable before the next.  Returns as repair_storage.
 */
extern int qed_repair_storage (struct storage *s, enum repair_mode mode,
                               const struct check_options *options,
                               struct repair_report *r);

/* Change the feature bits that writing changes, in place, and nothing else of
 * the header; not durable.  Returns -1 with the error set.
 */
extern int qed_write_features (struct storage *s, uint64_t features,
                               uint64_t autoclear);

#endif /* CORE_QED_CHECK_H */
