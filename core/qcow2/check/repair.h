/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of an image: of what the check finds wrong, as far as that is
 * possible without guessing.
 */

#ifndef CORE_QCOW2_CHECK_REPAIR_H
#define CORE_QCOW2_CHECK_REPAIR_H

#include "qcow2/check/report.h"
#include "storage/storage.h"

enum repair_mode {
  /* Free leaks, if the only other errors are in COPIED flags. */
  REPAIR_LEAKS,
  /* If nothing else is wrong, lower refcounts that are too high, but not to 0:
   * clusters without references are left to qcow2/write/leaks.h, which doesn't
   * need exact counts.
   */
  REPAIR_EXCESS,
  REPAIR_ALL, /* see qcow2/check/repair.c */
};

struct repair_report {
  struct check_report before, after;
  /* Why errors were left alone: a constant string, or NULL. */
  const char *why_not;
};

/* Repair an image that nothing else is using, in a writable storage.  Returns
 * 0 on completion, even if errors are left: the caller looks at r->after.
 * Returns -1 with the error set if the image can't be checked or written; it
 * is no worse than before then, and another repair completes the work.
 */
extern int repair_storage (struct storage *s, enum repair_mode mode,
                           const struct check_options *options,
                           struct repair_report *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_H */
