/* SPDX-License-Identifier: BSD-3-Clause */

/* Things that several users share: each is opened for the first of them, and
 * closed after the last.
 *
 * Invariants:
 *
 *  Y1  Of each key there is one thing at a time: until the one before is
 *      closed, no other is opened.
 *  Y2  No lock is held while one is opened or closed.  Who wants the same waits
 *      for that, and nobody else.
 *  Y3  What somebody has is not closed.
 *  Y4  Who waits for what is being opened shares the outcome: what fails is not
 *      tried once more for each of those.
 */

#ifndef CORE_BASE_REGISTRY_H
#define CORE_BASE_REGISTRY_H

#include <stdint.h>

struct registry;

/* What tells things apart, such as a file's device and inode. */
struct registry_key {
  uint64_t number[2];
};

/* Returns the thing, or NULL, with the error set. */
typedef void *registry_open_fn (void *opaque);

/* Reports its own errors. */
typedef void registry_close_fn (void *thing);

/* NULL: the error is set. */
extern struct registry *registry_new (registry_close_fn *close);

/* Closes what is still open, whoever has it.  No other thread uses the registry
 * any more.  NULL is allowed.
 */
extern void registry_free (struct registry *r);

/* Have the thing with this key, which is opened by this thread if it is not
 * there.  Returns NULL with the error set.  The call waits while another thread
 * opens or closes that thing; if the other can't open it, its error is this
 * thread's, too.  No lock may be held that opening or closing takes.
 */
extern void *registry_take (struct registry *r, const struct registry_key *key,
                            registry_open_fn *open, void *opaque);

/* To be called once for each registry_take.  If nobody else has it, the thing
 * has been closed when this returns.
 */
extern void registry_give_back (struct registry *r, void *thing);

#endif /* CORE_BASE_REGISTRY_H */
