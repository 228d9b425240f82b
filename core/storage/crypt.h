/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage of which the inner one has the bytes enciphered, in sectors of 512.
 * The number of a sector is that of its place in the inner storage; a view has
 * other numbers.
 *
 * Invariants:
 *
 *  E1  Nothing but enciphered sectors is written to the inner storage (I15).
 *  E2  What writes is in a range of sectors meanwhile, which no other write is
 *      in: so no two of them lose each other's bytes.
 *  E3  A read never meets a sector while a part of it is being written: the
 *      rest of the sector, which nobody writes, may change where it is stored.
 *      Readers enter a range only if such a write may have been beside them.
 *  E4  Nothing reads as zeros that was not written as such: neither holes, nor
 *      what is past the end of the inner storage (storage_holes_read_zero).
 *      It can't be told that there is a hole, nor made one.
 *
 * After a power loss a sector is as it was or as it was written, if the device
 * doesn't tear it: storage/align.h says more.
 *
 * A write takes memory of its own of CRYPT_MAX_BYTES at most (I11).  Reads of
 * whole sectors take none.
 */

#ifndef CORE_STORAGE_CRYPT_H
#define CORE_STORAGE_CRYPT_H

#include "crypto/sectors.h"
#include "storage/storage.h"

#define CRYPT_MAX_BYTES ((size_t) 256 << 10)

/* Put a storage on an inner one, which must outlive it and stays the caller's.
 * The sectors are owned from here on, even after an error; NULL: there is no
 * key, and nothing can be read or written (EACCES).  Returns NULL with the
 * error set.
 */
extern struct storage *storage_crypt_new (struct storage *inner,
                                          struct sectors *sectors);

/* Whether what storage_crypt_new has made has no key. */
extern bool storage_crypt_is_locked (const struct storage *crypt);

/* The same bytes, with sectors that have other numbers: those of their place
 * and distance more, in bytes, modulo 2^64; a multiple of 512.
 */
struct crypt_view {
  struct storage storage; /* to be used, for reading and writing */
  struct storage *crypt;
  uint64_t distance;
};

/* Set up a view of a storage that storage_crypt_new has made.  It needs no
 * closing, and holds nothing.
 */
extern void storage_crypt_view (struct crypt_view *view, struct storage *crypt,
                                uint64_t distance);

#endif /* CORE_STORAGE_CRYPT_H */
