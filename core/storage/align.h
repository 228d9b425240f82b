/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage of any bytes on one that only takes whole blocks, of 512 or 4096
 * bytes say: a device, or a file that is read and written past the host's
 * cache.  Whatever reaches the inner storage begins and ends with a block, and
 * so does the memory that it is given.  Part of a block is written by reading
 * it, changing it and writing it back.
 *
 * Invariants:
 *
 *  A1  Bytes of the inner storage behind the size of this one are zeros.  The
 *      inner one is larger by less than a block, or as large.
 *  A2  What writes, zeros or resizes is in a range of blocks meanwhile, which
 *      no other such call is in: so no two of them lose each other's bytes.
 *      Readers are not; they may see a block before or after.
 *  A3  Bytes next to those that are written are written back as they are.
 *
 * After a power loss: the device must write a block whole, or tear it between
 * sectors of 512 bytes, each of which is old or new then.  With A3 a torn block
 * has all the bytes next to what was being written, as they were; bytes there
 * that were written but not flushed may be what they were before that, as
 * without this.  A device that may leave a block unreadable, or anything else
 * in it, loses its neighbours too.
 *
 * A block is read and written in memory of its own for each call, so that
 * memory is bounded (I11): ALIGN_MAX_BYTES for each thread that is in here.
 */

#ifndef CORE_STORAGE_ALIGN_H
#define CORE_STORAGE_ALIGN_H

#include "storage/storage.h"

#define ALIGN_MAX_BYTES ((size_t) 256 << 10)

/* Put a storage on an inner one, with blocks of this size: a power of 2, at
 * most ALIGN_MAX_BYTES / 2.  The inner one gives less than was asked for only
 * in whole blocks, or at its end.  It is owned from here on, even after an
 * error.  Returns NULL with the error set.
 */
extern struct storage *storage_align_new (struct storage *inner,
                                          uint32_t block);

#endif /* CORE_STORAGE_ALIGN_H */
