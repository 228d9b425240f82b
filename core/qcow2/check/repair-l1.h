/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of an active L1 table that the end of the file cuts off, in part or as
 * a whole.  What is missing reads as zeros, for QEMU as well, and becomes that:
 * the file grows until the table is within it.
 */

#ifndef CORE_QCOW2_CHECK_REPAIR_L1_H
#define CORE_QCOW2_CHECK_REPAIR_L1_H

#include "qcow2/check/repair-state.h"

/* Entries that can't be used are dropped first, as they lie beyond the end of
 * the file; then the table's clusters get their refcounts; then the file
 * grows.  hidden: there are leaks, which may be what the missing part referred
 * to, and are to be kept.  Returns -1 with the error set; *why_not is NULL, or
 * tells why nothing was done (a constant string).
 */
extern int repair_complete_l1 (struct repair *r, bool hidden,
                               const char **why_not);

#endif /* CORE_QCOW2_CHECK_REPAIR_L1_H */
