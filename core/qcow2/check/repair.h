/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of an image: what the check finds wrong, as far as it can be put
 * right without guessing.
 */

#ifndef CORE_QCOW2_CHECK_REPAIR_H
#define CORE_QCOW2_CHECK_REPAIR_H

#include "qcow2/check/report.h"
#include "storage/storage.h"

enum repair_mode {
  /* Free what nothing refers to, if there are no other errors but COPIED
   * flags.
   */
  REPAIR_LEAKS,
  /* Lower refcounts that are too high, but not to 0, if nothing else is wrong:
   * what nothing refers to is for others to find, as that doesn't need exact
   * counts (qcow2/write/leaks.h).
   */
  REPAIR_EXCESS,
  REPAIR_ALL, /* see qcow2/check/repair.c */
};

struct repair_report {
  struct check_report before, after;
  /* Why nothing was done although something is wrong, or more was not; or
   * NULL: a constant string.
   */
  const char *why_not;
};

/* Repair an image that nobody else uses meanwhile, in a storage that can be
 * written.  Returns 0 if that went well, whatever is left: the caller looks
 * at r->after.  Returns -1 with the error set if the image can't be checked,
 * or not be written; it is not worse than before, and a second repair does
 * what is left to do.
 */
extern int repair_storage (struct storage *s, enum repair_mode mode,
                           const struct check_options *options,
                           struct repair_report *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_H */
