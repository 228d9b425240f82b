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

struct extents {
  const struct layer *layer;
  extent_fn fn;
  void *opaque;
  uint64_t start, end; /* of the extent that is growing ... */
  unsigned flags;      /* ... and its flags */
  uint32_t left;       /* how many more are wanted */
};

/* Returns as extents_add does. */
static int
grow (struct extents *e, uint64_t length, unsigned flags)
{
  if (flags != e->flags && e->end > e->start) {
    if (e->fn (e->opaque, e->start, e->end - e->start, e->flags) == -1)
      return -1;
    e->start = e->end;
    if (--e->left == 0)
      return 1;
  }
  e->flags = flags;
  e->end += length;
  return 0;
}

/* Add count bytes as they are found, but only these flags.  Returns as
 * extents_add does.
 */
static int
add_runs (struct extents *e, uint64_t count, unsigned mask)
{
  const uint64_t end = e->end + count;
  int r = 0;

  while (r == 0 && e->end < end) {
    struct run run;
    unsigned flags = 0;

    if (find_run (e->layer, (struct guest_off) { e->end }, end - e->end, &run,
                  &flags) == -1)
      return -1;
    r = grow (e, run.length, flags & mask);
  }
  return r;
}

int
extents_add (struct extents *e, uint64_t count, enum extent_change change)
{
  switch (change) {
  case CHANGE_NONE:
    return grow (e, count, EXTENT_HOLE);
  case CHANGE_DATA:
    return grow (e, count, 0);
  case CHANGE_ZERO:
    return grow (e, count, EXTENT_ZERO);
  case CHANGE_LOOK:
    return add_runs (e, count, EXTENT_ZERO);
  }
  abort ();
}

bool
extents_want_one (const struct extents *e)
{
  return e->left == 1;
}

int
layer_extents (const struct layer *layer, uint64_t count,
               struct guest_off offset, bool one, extent_fn fn, void *opaque)
{
  struct extents e = {
    .layer = layer, .fn = fn, .opaque = opaque,
    .start = offset.v, .end = offset.v, .left = one ? 1 : EXTENTS_MAX,
  };
  int r;

  if (layer->find_changes != NULL)
    r = layer->find_changes (layer, count, offset, &e);
  else
    r = add_runs (&e, count, EXTENT_HOLE | EXTENT_ZERO);
  if (r == 0 && e.end > e.start)
    r = fn (opaque, e.start, e.end - e.start, e.flags);
  return r == -1 ? -1 : 0;
}
