/* SPDX-License-Identifier: BSD-3-Clause */

/* All that an image refers to is counted, and what is wrong with the entries that
 * refer to it is found.
 */

#ifndef CORE_QCOW2_CHECK_REFERENCES_H
#define CORE_QCOW2_CHECK_REFERENCES_H

#include "qcow2/check/state.h"

/* Count the references to the clusters of a window that begins at first, subject
 * to c->fixed_up and c->no_refcounts.  Returns -1 with the error set.
 */
extern int check_count (struct check *c, uint64_t first);

/* Where the next window begins.  Clusters between this one's end and there
 * have no references, but may have refcounts.
 */
extern uint64_t check_next_window (const struct check *c);

#endif /* CORE_QCOW2_CHECK_REFERENCES_H */
