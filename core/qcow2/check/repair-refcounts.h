/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of refcounts. */

#ifndef CORE_QCOW2_CHECK_REPAIR_REFCOUNTS_H
#define CORE_QCOW2_CHECK_REPAIR_REFCOUNTS_H

#include "qcow2/check/repair-state.h"

/* Find out what there is to do.  Returns -1 with the error set. */
extern int repair_survey (struct repair *r);

/* Whether clusters beyond the end of the file have refcounts, which are leaks once it
 * grows: a crash has kept it from that.  Reads no more than the blocks that have
 * these.  Returns -1 with the error set.
 */
extern int repair_find_beyond (struct check *c, bool *any);

/* Correct in place the refcounts that are too low, or too high. */
extern int repair_raise (struct repair *r);
extern int repair_lower (struct repair *r);

/* Write a new refcount table and blocks after everything else in the file, and
 * make the header point to them.  Until then nothing has changed.
 */
extern int repair_rebuild (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_REFCOUNTS_H */
