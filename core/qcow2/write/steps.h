/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests are done in steps, each of which changes mappings of at most so
 * much (R5).  Between two of them a request holds nothing and is in no epoch:
 * there it waits for space, so that what it waits for can come (I13).
 */

#ifndef CORE_QCOW2_WRITE_STEPS_H
#define CORE_QCOW2_WRITE_STEPS_H

#include "qcow2/write/writer.h"

/* A request, or a part of it; first in a struct with what else it is. */
struct steps {
  struct writer *w;
  uint64_t at, end; /* of the guest's disk: what is left to be done */

  /* Do some of it, and move at.  *remapped is false at first; it is to be set
   * where mappings were changed, or may have been.  Returns -1 with the error
   * set, and then at stays where it is.
   */
  int (*step) (struct steps *s, bool *remapped);

  /* There is no space for the next step, and none comes: move at behind what
   * can't be done.  NULL: that is an error of the request.
   */
  void (*skip) (struct steps *s);
};

/* Take steps until at has reached end.  A step that finds no space is tried
 * again once some of what was given up is to be had again.  Returns -1 with
 * the error set.  The caller holds nothing, and is in no epoch.
 */
extern int steps_run (struct steps *s);

/* Whether a step may give something up.  failed: steps were run before, and a
 * writeback has failed.  There must not be ever more that waits for one.
 */
extern bool steps_may_give_up (const struct steps *s, bool failed);

#endif /* CORE_QCOW2_WRITE_STEPS_H */
