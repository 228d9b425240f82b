/* SPDX-License-Identifier: BSD-3-Clause */

/* What guest.c, guest-requests.c and guest-threads.c share. */

#ifndef CRASH_GUEST_PARTS_H
#define CRASH_GUEST_PARTS_H

#include <pthread.h>

#include "guest.h"

/* Several threads: each sector is only one request's at a time, so that it is
 * known which came last.  Requests beside each other do run at the same time.
 * Or they overlap: then the last one may be any that ran last.
 */
struct sharing {
  bool overlap;
  pthread_mutex_t lock; /* of the history, and of this */
  pthread_cond_t freed;
  bool *busy;           /* sectors */
};

/* Say in r->why what is wrong.  Returns false. */
extern bool guest_wrong (struct guest *r, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3), __cold__));

/* Hold what the threads of r share; nothing, if there is one thread. */
extern void guest_lock (struct guest *r);
extern void guest_unlock (struct guest *r);

/* Open the image for reading. */
extern bool guest_open (struct guest *r);

/* Read a range of a disk of the image. */
extern bool guest_read_range (struct guest *r, const char *export, void *buf,
                              uint64_t count, uint64_t offset);

/* Compare sectors of a disk, the first of which is at this offset. */
extern bool guest_compare_range (struct guest *r, const char *what,
                                 const uint8_t *is, const uint8_t *should,
                                 uint64_t first, uint64_t count);

/* Whether reading itself has failed; else reads go on, whatever has (I10). */
extern bool guest_reads_may_fail (const struct guest *r);

/* Compare a range, or everything unless r->careless, with what it should be.
 */
extern bool guest_verify (struct guest *r, const char *what, uint64_t start,
                          uint64_t end);

/* Do a request that is a flush. */
extern bool guest_flush (struct guest *r, const struct request *q);

#endif /* CRASH_GUEST_PARTS_H */
