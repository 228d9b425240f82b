/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/check/references.h"
#include "qcow2/check/repair-state.h"

void
repair_recount (struct repair *r)
{
  r->counted = false;
}

void
repair_pretend_size (struct repair *r, uint64_t size)
{
  struct check *c = &r->c;

  size = (size + 511) & ~UINT64_C (511);
  if (size <= c->file_size)
    return;
  c->file_size = size;
  c->nr = (size + c->h.cluster_size - 1) >> c->h.cluster_bits;
  repair_recount (r);
}

int
repair_each_window (struct repair *r, repair_window_fn *fn, void *opaque)
{
  struct check *c = &r->c;
  uint64_t first = 0;

  do {
    /* Most images have one window, which need not be counted again. */
    if (!r->counted || c->counts.first != first) {
      if (check_count (c, first) == -1)
        return -1;
      r->counted = true;
    }
    first = check_next_window (c);
    if (fn (r, first, opaque) == -1)
      return -1;
  } while (first < c->nr);
  return 0;
}

bool
repair_may_write (const struct repair *r, struct host_off place)
{
  const uint64_t cluster = place.v >> r->c.h.cluster_bits;
  size_t low = 0, high = r->nr_shared;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (r->shared[middle] == cluster)
      return false;
    if (r->shared[middle] < cluster)
      low = middle + 1;
    else
      high = middle;
  }
  return true;
}

int
repair_flush (struct repair *r)
{
  if (!r->changed)
    return 0;
  r->changed = false;
  return storage_flush (r->c.storage);
}
