/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "base/error.h"
#include "storage/durable.h"

int
storage_write_durably (struct storage *s, const void *buf, size_t count,
                       struct host_off offset, bool *sticks)
{
  struct iovec iov = { (void *) buf, count };

  *sticks = false;
  if (!s->one_report) {
    if (storage_writev (s, &iov, 1, offset, true) == 0)
      return 0;
    if (error_errno () != ENOSPC) {
      *sticks = true;
      return -1;
    }
  }
  if (storage_write (s, buf, count, offset) == -1) {
    *sticks = error_errno () != ENOSPC;
    return -1;
  }
  *sticks = storage_flush (s) == -1;
  return *sticks ? -1 : 0;
}
