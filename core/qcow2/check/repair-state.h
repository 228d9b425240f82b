/* SPDX-License-Identifier: BSD-3-Clause */

/* State shared by the parts of a repair. */

#ifndef CORE_QCOW2_CHECK_REPAIR_STATE_H
#define CORE_QCOW2_CHECK_REPAIR_STATE_H

#include "qcow2/check/check.h"

/* Most clusters of metadata that may have another use as well.  It is unknown
 * which use is right, so nothing is written there.
 */
#define REPAIR_MAX_SHARED 65536

struct repair {
  struct check c;   /* counts entries as they will be */
  bool counted;     /* c has valid counts of a window */
  uint64_t highest; /* one past the last cluster with references or, in the file, a
                     * refcount */

  /* How many clusters have references, how many refcount blocks these need,
   * and one past the index of the last such block.
   */
  uint64_t referred, blocks, last_block;

  uint64_t *shared; /* in ascending order */
  size_t nr_shared;
  uint64_t all_shared; /* more than nr_shared if there is no room for all */

  /* What there is to do. */
  bool rebuild; /* the refcount table, and all blocks */
  bool raise, lower;
  bool keep_leaks; /* don't lower, even if lower is set */
  bool keep_one; /* lower to 1 at least, so that nothing becomes free */

  bool changed;       /* something was written since the last flush */
  uint64_t not_fixed; /* entries in shared tables */
};

/* Call fn for each window, once its references are counted; next is where the
 * next one begins.  Stops when fn returns -1, and returns -1.
 */
typedef int repair_window_fn (struct repair *r, uint64_t next, void *opaque);
extern int repair_each_window (struct repair *r, repair_window_fn *fn,
                               void *opaque);

/* References have changed since they were counted. */
extern void repair_recount (struct repair *r);

/* Treat the file as being of this size, since it is about to be. */
extern void repair_pretend_size (struct repair *r, uint64_t size);

/* Whether metadata at this place may be written. */
extern bool repair_may_write (const struct repair *r, struct host_off place);

/* Make durable what was written. */
extern int repair_flush (struct repair *r);

#endif /* CORE_QCOW2_CHECK_REPAIR_STATE_H */
