/* SPDX-License-Identifier: BSD-3-Clause */

/* Leaks that a killed writer has left are looked for, and freed, while the
 * image is being served: by a thread of its own, in the background.
 *
 * A cluster is leaked if its refcount is 1 and nothing refers to it.  Nothing
 * ever will then: only what the allocator hands out gets references, and it
 * hands out what had a refcount of 0, or what was given back to it.  So:
 *
 *  1. All clusters of some refcount blocks are suspects (qcow2/write/suspects.h).  From
 *     here on, what is given up or given back is not, nor what a table refers to
 *     that is copied.  What was given up before is waited for.
 *  2. Those whose refcount on the disk is not 1 are none.
 *  3. Those in the reserve are none, at one moment.
 *  4. All requests of that moment end: what they had been handed out is mapped,
 *     given back or given up.  A flush: what is mapped is so on the disk.
 *  5. All tables are read from the disk.  What they refer to is not leaked.  A
 *     reference stays where it is, in a table or its copy, until it is given
 *     up: so none is missed, though requests go on.
 *  6. The rest is given up in the ordinary way, if it is not metadata.  The
 *     header, the refcount table and its blocks are not read in step 5:
 *     qcow2/write/overlap.h knows them.
 *
 * Nothing is freed if anything is found to be damaged, or can't be read, or
 * isn't known here: it may be what a cluster belongs to.  References in
 * excess of those that there are, where there are some, stay.
 */

#ifndef CORE_QCOW2_WRITE_LEAKS_H
#define CORE_QCOW2_WRITE_LEAKS_H

#include "qcow2/write/writer.h"

struct leaks;

/* Start to look for leaks.  w must outlive it.  NULL: that can't be done for
 * this image, or now; which is no error.
 */
extern struct leaks *leaks_start (struct writer *w,
                                  const struct snapshots *snapshots);

/* True once it has ended: by itself. */
extern bool leaks_have_ended (const struct leaks *l);

/* End it, now; the writer must not be closed yet.  Returns whether it had come
 * to its end, so that there are no leaks from before.  NULL is allowed.
 */
extern bool leaks_stop (struct leaks *l);

#endif /* CORE_QCOW2_WRITE_LEAKS_H */
