/* SPDX-License-Identifier: BSD-3-Clause */

/* Check an image: everything that the header leads to, as it is on the disk.
 *
 * The check must be able to prove the rest of core/ wrong, and so shares only
 * its lowest levels with it.  It judges and counts as `qemu-img check' does;
 * qcow2/check/check.c lists the differences.
 */

#ifndef CORE_QCOW2_CHECK_CHECK_H
#define CORE_QCOW2_CHECK_CHECK_H

#include "qcow2/check/tables.h"

/* Check an image that is not being written.  Writes nothing.  Returns -1 with
 * the error set if the check can't be completed: EINVAL or ENOTSUP if this is
 * no image that can be checked, EIO, ENOMEM.
 */
extern int check_storage (struct storage *s,
                          const struct check_options *options,
                          struct check_report *report);

/* For repair: visit the clusters from the window's start up to end, in spans that
 * each lie in one chunk.  fn gets the chunk, NULL if its clusters have no
 * references, and the refcounts on the disk from the chunk's first cluster on,
 * in a buffer that it may change.  Spans without references and refcounts are
 * left out, as are holes of refcount blocks.  Stops when fn returns -1, and
 * returns -1.
 */
struct check_span {
  uint64_t first, end; /* clusters */
  const struct counts *counts;
  const struct counts_chunk *chunk;
  uint8_t *refcounts;
  bool any; /* one of the refcounts is not 0 */
};
typedef int check_span_fn (struct check *c, void *opaque,
                           const struct check_span *span);
extern int check_each_span (struct check *c, uint64_t end, check_span_fn *fn,
                            void *opaque);

/* The first cluster of the span's chunk: that of span->refcounts[0]. */
static inline uint64_t
check_span_base (const struct check_span *span)
{
  return span->first & ~(COUNTS_CHUNK - 1);
}

/* The first cluster from this one on that may have references or a refcount,
 * or the span's end.  Where references are sparse this skips most clusters.
 */
static inline uint64_t
check_span_next (const struct check_span *span, uint64_t cluster)
{
  while (!span->any && cluster % 8 == 0 && cluster + 8 <= span->end &&
         (span->chunk == NULL ||
          get_be64 (span->chunk->narrow + cluster % COUNTS_CHUNK) == 0))
    cluster += 8;
  return cluster;
}

static inline uint64_t
check_span_counted (const struct check_span *span, uint64_t cluster)
{
  return span->chunk != NULL ? counts_get (span->counts, span->chunk, cluster)
    : 0;
}

#endif /* CORE_QCOW2_CHECK_CHECK_H */
