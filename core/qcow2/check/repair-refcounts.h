/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of refcounts. */

#ifndef CORE_QCOW2_CHECK_REPAIR_REFCOUNTS_H
#define CORE_QCOW2_CHECK_REPAIR_REFCOUNTS_H

#include "qcow2/check/repair-state.h"

/* Find out what there is to do.  Returns -1 with the error set. */
extern int repair_survey (struct repair *r);

/* Write refcounts that are too low, or too high, where they are. */
extern int repair_raise (struct repair *r);
extern int repair_lower (struct repair *r);

/* Write all refcounts anew, behind everything else, and have the header point
 * to them.  Until it does, nothing has changed.
 */
extern int repair_rebuild (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_REFCOUNTS_H */
