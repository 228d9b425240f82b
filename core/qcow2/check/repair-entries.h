/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of entries of L1 and L2 tables. */

#ifndef CORE_QCOW2_CHECK_REPAIR_ENTRIES_H
#define CORE_QCOW2_CHECK_REPAIR_ENTRIES_H

#include "qcow2/check/repair-state.h"

/* Write what qcow2/check/fix-up.h makes of each entry.  Returns -1 with the error
 * set.
 */
extern int repair_fix_entries (struct repair *r);

/* Take the COPIED flag from the active tables' entries of clusters that have
 * other references, or give it to those that have not.
 */
extern int repair_clear_copied (struct repair *r);
extern int repair_set_copied (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_ENTRIES_H */
