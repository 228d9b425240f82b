/* SPDX-License-Identifier: BSD-3-Clause */

/* Holes of an image that is being checked.  A small file can claim tables of
 * terabytes, all in holes: code that walks a table asks here first, so that it
 * takes time in proportion to what the file holds.
 */

#ifndef CORE_QCOW2_CHECK_HOLES_H
#define CORE_QCOW2_CHECK_HOLES_H

#include "storage/storage.h"

struct check_holes {
  struct storage *storage;
  uint64_t start, end; /* the hole that was found last */
  uint64_t data;       /* a byte whose page has no hole; 0: none is known */
};

/* No second query within a page that had data: on most file systems holes are
 * no smaller than that, and reading one does no harm.
 */
#define CHECK_HOLES_PAGE UINT64_C (4096)

static inline void
check_holes_init (struct check_holes *h, struct storage *storage)
{
  *h = (struct check_holes) { .storage = storage };
}

/* Something was written. */
static inline void
check_holes_forget (struct check_holes *h)
{
  h->start = h->end = h->data = 0;
}

/* How many of the count bytes from at on read as zeros, being in a hole or
 * beyond the end of the file; 0: they must be read.
 */
static inline uint64_t
check_hole (struct check_holes *h, uint64_t at, uint64_t count)
{
  if (at < h->start || at >= h->end) {
    uint64_t n;

    if (h->data != 0 && at / CHECK_HOLES_PAGE == h->data / CHECK_HOLES_PAGE)
      return 0;
    n = storage_hole (h->storage, (struct host_off) { at });
    if (n == 0) {
      h->data = at;
      return 0;
    }
    h->start = at;
    h->end = at + n;
  }
  return h->end - at < count ? h->end - at : count;
}

#endif /* CORE_QCOW2_CHECK_HOLES_H */
