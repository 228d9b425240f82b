/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of an active L1 table that the end of the file cuts off, in part or
 * entirely.  The missing part reads as zeros, in QEMU as well, and becomes
 * zeros: the file grows to contain the table.
 */

#ifndef CORE_QCOW2_CHECK_REPAIR_L1_H
#define CORE_QCOW2_CHECK_REPAIR_L1_H

#include "qcow2/check/repair-state.h"

/* First drop invalid entries, while what they refer to is still beyond the end
 * of the file; then give the table's clusters their refcounts; then grow the
 * file.  hidden: there are leaks, which the missing part may have referred to,
 * and which must be kept.  Returns -1 with the error set.  *why_not is NULL, or
 * tells why nothing was done (a constant string).
 */
extern int repair_complete_l1 (struct repair *r, bool hidden,
                               const char **why_not);

#endif /* CORE_QCOW2_CHECK_REPAIR_L1_H */
