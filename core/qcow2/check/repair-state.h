/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of a repair know in common. */

#ifndef CORE_QCOW2_CHECK_REPAIR_STATE_H
#define CORE_QCOW2_CHECK_REPAIR_STATE_H

#include "qcow2/check/check.h"

/* Metadata that is used as something else as well, in clusters.  Nobody can
 * tell which use is the right one, so that nothing is written there.
 */
#define REPAIR_MAX_SHARED 65536

struct repair {
  struct check c;   /* counts entries as they will be */
  bool counted;     /* c has the counts of a window, and they are right */
  uint64_t highest; /* behind the last cluster with references or a refcount */

  /* Clusters that have references, and refcount blocks that they want, the last
   * of which has this index and one.
   */
  uint64_t referred, blocks, last_block;

  uint64_t *shared; /* in ascending order */
  size_t nr_shared;

  /* What there is to do. */
  bool rebuild; /* the refcount table, and all blocks */
  bool raise, lower;
  bool keep_leaks; /* don't lower all the same */
  bool keep_one; /* nothing becomes free */

  bool changed;       /* something was written since the last flush */
  uint64_t not_fixed; /* entries in shared tables */
};

/* Call fn for each window, once its references are counted; next is where the
 * next one begins.  Stops when fn returns -1, with -1.
 */
typedef int repair_window_fn (struct repair *r, uint64_t next, void *opaque);
extern int repair_each_window (struct repair *r, repair_window_fn *fn,
                               void *opaque);

/* References are not what they were counted to be any more. */
extern void repair_recount (struct repair *r);

/* Look at the file as if it reached so far, since it is about to. */
extern void repair_pretend_size (struct repair *r, uint64_t size);

/* Whether metadata at this place may be written. */
extern bool repair_may_write (const struct repair *r, struct host_off place);

/* Make durable what was written. */
extern int repair_flush (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_STATE_H */
