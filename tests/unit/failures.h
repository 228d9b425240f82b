/* SPDX-License-Identifier: BSD-3-Clause */

/* The ways in which calls of the storage are made to fail in turn. */

#ifndef UNIT_FAILURES_H
#define UNIT_FAILURES_H

#include <errno.h>

#include "memory-storage.h"

static const struct failure {
  unsigned kinds;
  int err;
  bool ever_after;
} failures[] = {
  { MEMORY_WRITE, EIO, false },
  { MEMORY_WRITE, ENOSPC, false },
  { MEMORY_WRITE, ENOSPC, true },
  { MEMORY_FLUSH, EIO, false },
  { MEMORY_RESIZE, ENOSPC, false },
  { MEMORY_RESIZE, EIO, false },
  { MEMORY_RESIZE | MEMORY_ALLOCATE, ENOSPC, true },
  { MEMORY_ZERO, EOPNOTSUPP, false },
  { MEMORY_ALLOCATE, ENOSPC, false },
  { MEMORY_ALLOCATE, EOPNOTSUPP, true },
  { MEMORY_READ, EIO, false },
};
#define NR_FAILURES (sizeof failures / sizeof failures[0])

/* From now on have the call-th call of these kinds fail. */
static inline void
failure_arm (struct memory_control *c, const struct failure *f, uint64_t call)
{
  if (f->ever_after)
    memory_fail_ever_after (c, f->kinds, call, f->err);
  else
    memory_fail (c, f->kinds, call, f->err);
}

#endif /* UNIT_FAILURES_H */
