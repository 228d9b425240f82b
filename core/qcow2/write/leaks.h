/* SPDX-License-Identifier: BSD-3-Clause */

/* Finds and frees leaks of a killed writer while the image is being served, in
 * a background thread.
 *
 * A cluster is leaked if its refcount is 1 and nothing refers to it.  Nothing
 * ever will then: only what the allocator hands out gets references, and it
 * hands out what had a refcount of 0, or what was given back to it.  So:
 *
 *  1. Suspect all clusters of some refcount blocks (qcow2/write/suspects.h).
 *     From here on, clear what is given up or given back, and what a table
 *     that is copied refers to.  Wait for what was given up before.
 *  2. Clear those whose refcount on the disk is not 1.
 *  3. Clear the reserve, as it is at one moment.
 *  4. Wait for all requests of that moment to end: what they were handed out
 *     is then mapped, given back or given up.  Flush, so that mappings are on
 *     the disk.
 *  5. Read all tables from the disk, and clear what they refer to.  A
 *     reference stays where it is, in a table or its copy, until it is given
 *     up, so that none is missed although requests go on.
 *  6. Give up the rest in the ordinary way, except for metadata: the header,
 *     the refcount table and its blocks are not read in step 5, but
 *     qcow2/write/overlap.h knows them.
 *
 * Nothing is freed if anything is damaged, unreadable or unknown here, since
 * clusters may belong to it.  Where a refcount exceeds the references that
 * exist, the excess stays.
 */

#ifndef CORE_QCOW2_WRITE_LEAKS_H
#define CORE_QCOW2_WRITE_LEAKS_H

#include "qcow2/write/writer.h"

struct leaks;

/* Start the search, with a budget of at most so many bytes of memory for the
 * walk over the tables.  w must outlive it.  NULL, which is no error: that is not
 * possible for this image, or not now.
 */
extern struct leaks *leaks_start (struct writer *w,
                                  const struct snapshots *snapshots,
                                  uint64_t memory);

/* Whether it has ended by itself. */
extern bool leaks_have_ended (const struct leaks *l);

/* Stop it now, before the writer is closed.  Returns whether it had completed,
 * so that no earlier leaks are left.  NULL is allowed.
 */
extern bool leaks_stop (struct leaks *l);

#endif /* CORE_QCOW2_WRITE_LEAKS_H */
