/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage in memory that counts what is asked of it, and that fails when
 * it is told to.
 */

#ifndef UNIT_MEMORY_STORAGE_H
#define UNIT_MEMORY_STORAGE_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "storage.h"

/* Owned by the test, so that it outlives the storage.  All zeros: nothing
 * special happens.
 */
struct memory_control {
  _Atomic uint64_t calls; /* of pread and extent, failed ones included */
  _Atomic uint64_t preads;
  _Atomic uint64_t bytes;
  _Atomic uint64_t extents;
  _Atomic uint64_t prefetches;
  _Atomic uint64_t closes;

  uint64_t fail_call;   /* the number of the call that fails, from 1 on */
  bool fail_ever_after; /* and all calls after that one */
  int fail_errno;       /* EIO if 0 */

  size_t short_reads;     /* the most that one pread gives; 0: any */
  unsigned interrupt;     /* each pread of this number fails with EINTR */
  uint64_t size;          /* what the storage claims to be; 0: the truth */
  bool holes;             /* blocks of 512 zeros are holes */
  unsigned microseconds;  /* that each pread takes */
};

/* A storage on these bytes, which must outlive it.  control may be NULL.
 * Aborts if memory is short.
 */
extern struct storage *memory_storage_new (const char *name,
                                           const void *data, uint64_t size,
                                           struct memory_control *control);

#endif /* UNIT_MEMORY_STORAGE_H */
