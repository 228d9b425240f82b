/* SPDX-License-Identifier: BSD-3-Clause */

/* What every kind of storage has in common: whole reads, zeros past the
 * end, errors with a name.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "error.h"
#include "storage.h"

int
storage_read (struct storage *s, void *buf, size_t count,
              struct host_off offset)
{
  uint8_t *p = buf;
  uint64_t at = offset.v;

  while (count > 0) {
    ssize_t r = s->ops->pread (s, p, count, at);

    if (r == -1) {
      if (errno == EINTR)
        continue;
      error_set (EIO, "%s: reading %zu bytes at offset 0x%" PRIx64 ": %s",
                 s->name, count, at, strerror (errno));
      return -1;
    }
    if (r == 0) {
      memset (p, 0, count);
      break;
    }
    p += r;
    at += r;
    count -= r;
  }
  return 0;
}

int
storage_extent (struct storage *s, struct host_off offset, uint64_t count,
                bool *hole, uint64_t *length)
{
  if (offset.v >= s->size) {
    *hole = true;
    *length = count;
    return 0;
  }
  if (count > s->size - offset.v)
    count = s->size - offset.v;
  if (s->ops->extent == NULL) {
    *hole = false;
    *length = count;
    return 0;
  }
  if (s->ops->extent (s, offset.v, count, hole, length) == -1) {
    error_set (EIO, "%s: looking for holes at offset 0x%" PRIx64 ": %s",
               s->name, offset.v, strerror (errno));
    return -1;
  }
  return 0;
}

void
storage_prefetch (struct storage *s, struct host_off offset, uint64_t count)
{
  if (s->ops->prefetch != NULL)
    s->ops->prefetch (s, offset.v, count);
}

void
storage_close (struct storage *s)
{
  if (s == NULL)
    return;
  free (s->name);
  s->ops->close (s);
}
