/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of entries of L1 and L2 tables. */

#ifndef CORE_QCOW2_CHECK_REPAIR_ENTRIES_H
#define CORE_QCOW2_CHECK_REPAIR_ENTRIES_H

#include "qcow2/check/repair-state.h"

/* Write each entry as qcow2/check/fix-up.h would have it.  Returns -1 with the
 * error set.
 */
extern int repair_fix_entries (struct repair *r);

/* In the active tables, clear the COPIED flag of entries whose cluster has
 * other references, or set that of entries whose cluster has no others.
 */
extern int repair_clear_copied (struct repair *r);
extern int repair_set_copied (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_ENTRIES_H */
