/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "disk/read.h"

static int
read_run (const struct layer *layer, const struct run *run, void *buf,
          struct guest_off offset)
{
  switch (run->kind) {
  case RUN_ZERO_PLAIN:
  case RUN_ZERO_ALLOC:
    memset (buf, 0, run->length);
    return 0;
  case RUN_DATA:
    return storage_read (layer->data, buf, run->length, run->host);
  case RUN_GUEST_DATA:
    return layer->format->read_guest_data (layer, run, buf, offset);
  case RUN_COMPRESSED:
    return layer->format->read_compressed (layer, run, buf, offset);
  case RUN_DAMAGED:
    return layer_damaged (layer, run->host);
  case RUN_UNALLOCATED:
    break;
  }
  abort ();
}

int
layer_read (const struct layer *layer, void *buf, size_t count,
            struct guest_off offset)
{
  struct epoch *epoch = layer->shared->epoch;
  char *p = buf;

  while (count > 0) {
    const unsigned token = epoch_enter (epoch);
    const struct layer *owner;
    struct run run;
    int r;

    r = layer_lookup (layer, offset, count, &run, &owner);
    if (r == 0)
      r = read_run (owner, &run, p, offset);
    epoch_leave (epoch, token);
    if (r == -1) /* there may be no run */
      return -1;
    p += run.length;
    offset.v += run.length;
    count -= run.length;
  }
  return 0;
}

void
layer_prefetch (const struct layer *layer, uint64_t count,
                struct guest_off offset)
{
  struct epoch *epoch = layer->shared->epoch;
  const unsigned token = epoch_enter (epoch);

  while (count > 0) {
    const struct layer *owner;
    struct run run;

    if (layer_lookup (layer, offset, count, &run, &owner) == -1)
      break;
    if (run.kind == RUN_DATA || run.kind == RUN_GUEST_DATA)
      storage_prefetch (owner->data, run.host, run.length);
    else if (run.kind == RUN_COMPRESSED)
      storage_prefetch (owner->tables, run.host, run.compressed_size);
    offset.v += run.length;
    count -= run.length;
  }
  epoch_leave (epoch, token);
}
