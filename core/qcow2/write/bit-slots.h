/* SPDX-License-Identifier: BSD-3-Clause */

/* The bits of bitmaps that follow what is written, in memory: pages of them, a
 * fixed number.  Each is there twice: what is dirty, exactly; and what the disk
 * says, durably, which is at least that.
 *
 *  S1  A request holds the pages of what it changes from before it is marked
 *      until it has been changed.  So a page that nobody holds can be written
 *      as it is exactly: whatever of that reaches the disk, it says enough.
 *  S2  A bit is added to what is durable after the write that made it so has
 *      returned, and a request goes on only with all of its bits there (I14).
 *      While a page is written as it is exactly, nobody can hold it, and it is
 *      held again only when what counts as durable is no more than that.
 *  S3  So many requests hold pages at once that there always is one which
 *      nobody holds: a thread that waits for a page waits for I/O only, never for
 *      others that wait.
 *  S4  While it is not known whether a bitmap ends (FOLLOW_ENDING) what is exact of
 *      it is what it was when that began, or more.  It is not written, and becomes
 *      all that is durable if the bitmap goes on.
 *  S5  Before a page gets a bit, here or on the disk, that the newest point in
 *      time may not have, it was kept for that (S6 of qcow2/points.h), if there is
 *      memory.
 */

#ifndef CORE_QCOW2_WRITE_BIT_SLOTS_H
#define CORE_QCOW2_WRITE_BIT_SLOTS_H

#include "qcow2/write/bit-parts.h"

/* By default: 32 MiB in both copies, which are 64 GiB of a disk with bits for
 * 512 bytes each, and 8 TiB with the usual 64 KiB.
 */
#define BIT_SLOTS 4096

struct bit_slots;
struct bit_slot;

/* nr pages (at least one for each bitmap; 0: BIT_SLOTS) of these bitmaps.
 * Returns NULL with the error set: ENOMEM.
 */
extern struct bit_slots *bit_slots_new (struct bit_parts *parts, unsigned nr);
extern void bit_slots_free (struct bit_slots *s); /* NULL is allowed */

/* Where the page ends that has the bit of this offset: the nearest of all
 * bitmaps.  It is a cluster's end, too.
 */
extern uint64_t bit_slots_end (const struct bit_slots *s, uint64_t offset);

/* Pages that are held: one of each bitmap. */
struct bit_hold {
  unsigned nr;
  struct bit_slot *slot[FOLLOW_PLACES];
};

/* Hold the pages of a range, which doesn't reach beyond bit_slots_end, with all
 * of its bits durably marked.  The caller holds nothing, and is in no epoch.
 * Returns -1 with the error set, and then holds nothing: ENOSPC, EIO, ENOMEM.
 */
extern int bit_slots_hold (struct bit_slots *s, struct guest_off offset,
                           uint64_t count, struct bit_hold *h);

/* What was to be changed has been, or won't be. */
extern void bit_slots_leave (struct bit_slots *s, const struct bit_hold *h);

/* Write those pages as they are exactly which were marked, but not in the last
 * so many nanoseconds, and which nobody holds: a crash then leaves no more of
 * them than what has changed.  Requests may be running; nothing depends on it.
 */
extern void bit_slots_settle (struct bit_slots *s, uint64_t idle_ns);

/* Write all of what is in memory as it is exactly.  No request may be running.
 */
extern void bit_slots_store (struct bit_slots *s);

/* ------------------------------------------------- bitmaps come and go (S4)
 *
 * No request is running: what becomes of the i-th bitmap, which may be new.  It
 * takes moments.
 */
extern void bit_slots_set (struct bit_slots *s, unsigned i,
                           enum follow_state state);

/* Whether there are pages for one more bitmap. */
extern bool bit_slots_have_room (const struct bit_slots *s);

/* Requests may be running for both, but no other thread is here: its pages are
 * written as they are exactly, if it has ended, and then its place is free; or it
 * follows as before, with all that is durable as what is exact, where something was
 * marked again.
 */
extern void bit_slots_drop (struct bit_slots *s, unsigned i);
extern void bit_slots_regain (struct bit_slots *s, unsigned i);

/* ---------------------------------------------------------- points in time (S5)
 *
 * Keep the pages of the i-th bitmap of which the disk may have more bits than what
 * is exact, for all points there are: some of them, from slot *at on, which is moved
 * on.  The caller is beyond the gate.  Returns false when all were looked at: then
 * what these points have of the bitmap is exact, as far as S5 and S6 go.
 */
extern bool bit_slots_keep_some (struct bit_slots *s, unsigned i, unsigned *at);

#endif /* CORE_QCOW2_WRITE_BIT_SLOTS_H */
