/* SPDX-License-Identifier: BSD-3-Clause */

/* What writing does for points in time (qcow2/points.h), whose invariants S1 to
 * S5 are kept here.  All of it is done only while points_are_held.
 */

#ifndef CORE_QCOW2_WRITE_FROZEN_H
#define CORE_QCOW2_WRITE_FROZEN_H

#include "qcow2/write/writer.h"

/* Before entries of the slice that maps offset change: it is captured if a point
 * wants that.  table is its L2 table; the caller has entered a range within the
 * slice.  Never fails the caller but where the table can't be read: returns -1
 * with the error set.
 */
extern int frozen_capture (struct writer *w, struct host_off table,
                           struct guest_off offset);

/* A run that map_lookup has found: shorten it to where all of it, or nothing,
 * belongs to a point; then it is not in_place.  The caller is in the epoch in
 * which it was looked up, or has entered its range.
 */
extern void frozen_clip (struct writer *w, struct guest_off offset,
                         struct run *run);

/* Whether such a run that is in_place may be written there without having entered
 * its range: whoever held it for frozen, and copied it, has ended, and was not
 * missed by the lookup.
 */
extern bool frozen_no_more (struct writer *w, struct guest_off offset,
                            const struct run *run);

/* Whether the host cluster that the live entry of the cluster at offset refers
 * to, by its first word, belongs to a point: it must not be written.
 */
extern bool frozen_host (struct writer *w, struct guest_off offset,
                         uint64_t word);

/* Whether it must not be given up by the change of that entry.  The caller has
 * entered its range, and had the slice captured.
 */
extern bool frozen_reference (struct writer *w, struct guest_off offset,
                              uint64_t word);

/* The search for leaks has begun to suspect: what points hold is none. */
extern void frozen_not_leaked (struct writer *w, struct suspects *suspects);

#endif /* CORE_QCOW2_WRITE_FROZEN_H */
