/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>

#include "disk/extents.h"

/* The flags of a run, which is shortened where holes of the host's file make
 * a difference within it.
 */
static int
run_flags (const struct layer *layer, struct run *run, unsigned *flags)
{
  bool hole = false;

  switch (run->kind) {
  case RUN_ZERO_PLAIN:
    *flags = EXTENT_HOLE | EXTENT_ZERO;
    return 0;
  case RUN_ZERO_ALLOC:
    *flags = EXTENT_ZERO;
    return 0;
  case RUN_DATA:
    if (layer->format->find_hole != NULL &&
        layer->format->find_hole (layer, run, &hole) == -1)
      return -1;
    *flags = hole && storage_holes_read_zero (layer->data)
      ? EXTENT_HOLE | EXTENT_ZERO : 0;
    return 0;
  case RUN_GUEST_DATA:
  case RUN_COMPRESSED:
  case RUN_DAMAGED:
    *flags = 0;
    return 0;
  case RUN_UNALLOCATED:
    break;
  }
  abort ();
}

/* The run at offset, and its flags. */
static int
find_run (const struct layer *layer, struct guest_off offset, uint64_t max,
          struct run *run, unsigned *flags)
{
  struct epoch *epoch = layer->shared->epoch;
  const unsigned token = epoch_enter (epoch);
  const struct layer *owner;
  int r;

  r = layer_lookup (layer, offset, max, run, &owner);
  if (r == 0)
    r = run_flags (owner, run, flags);
  epoch_leave (epoch, token);
  return r;
}

int
layer_extents (const struct layer *layer, uint64_t count,
               struct guest_off offset, bool one, extent_fn fn, void *opaque)
{
  const uint64_t end = offset.v + count;
  uint64_t start = offset.v;   /* of the extent that is growing ... */
  unsigned flags = 0;          /* ... and its flags */

  while (offset.v < end) {
    struct run run;
    unsigned next = 0;

    if (find_run (layer, offset, end - offset.v, &run, &next) == -1)
      return -1;
    if (next != flags && offset.v > start) {
      if (fn (opaque, start, offset.v - start, flags) == -1)
        return -1;
      if (one)
        return 0;
      start = offset.v;
    }
    flags = next;
    offset.v += run.length;
  }
  if (offset.v > start)
    return fn (opaque, start, offset.v - start, flags);
  return 0;
}
