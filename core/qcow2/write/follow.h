/* SPDX-License-Identifier: BSD-3-Clause */

/* Requests to an image whose persistent bitmaps follow them (I14): before the
 * first change of any kind in a range, its bits are durable in every followed
 * bitmap: one that is enabled, and was valid when the image was opened.  The
 * bitmaps stay valid on the disk all the time: never marked as in use, and with
 * too many bits at worst.
 *
 * A request is cut into pieces, for each of which the pages of its bits are held
 * (qcow2/write/bit-slots.h) around what qcow2/write/write.h and zero.h do.
 */

#ifndef CORE_QCOW2_WRITE_FOLLOW_H
#define CORE_QCOW2_WRITE_FOLLOW_H

#include "qcow2/write/writer.h"

/* Find the bitmaps that follow, and check that each can: sets writer.follow,
 * NULL if there are none or they are to be given up.  Nothing is written.
 * Bitmaps in use are told of in a note, once.  Returns -1 with the error set:
 * ENOTSUP if one can't be followed; EIO, EINVAL for damage; ENOMEM.
 */
extern int follow_open (struct writer *w);

/* As disk_write, disk_zero and disk_trim, where writer.follow is not NULL.  The
 * first has space allocated for the tables of bitmaps: where there is none they
 * fail with ENOSPC, and may be repeated.  DISK_FAST that is refused has changed
 * nothing, bits included.
 */
extern int follow_write (struct writer *w, const void *buf, uint64_t count,
                         struct guest_off offset, unsigned flags);
extern int follow_zero (struct writer *w, uint64_t count,
                        struct guest_off offset, unsigned flags);
extern int follow_trim (struct writer *w, uint64_t count,
                        struct guest_off offset, unsigned flags);

/* Write the bits of places that were not marked in so many nanoseconds as they
 * are exactly, so that a crash does not leave what was marked ahead there.
 * Requests may be running.  A thread does it now and then, which begins with the
 * first change: see writer_options.bitmap_idle.
 */
extern void follow_settle (struct writer *w, uint64_t idle_ns);

/* Keep what is exact of the bitmap with this table, for the points in time that
 * there are, in steps: see bit_slots_keep_some.  The caller is beyond the gate.
 * Returns false when there is nothing more to do.
 */
extern bool follow_keep_bits (struct writer *w, struct host_off table,
                              unsigned *at);

/* The end: make durable what was answered, then write the bits as they are
 * exactly, which nothing depends on.  To be called before writer_close; no
 * request may be running.
 */
extern void follow_close (struct writer *w);

#endif /* CORE_QCOW2_WRITE_FOLLOW_H */
