/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/write/placement.h"

static int
take_allocated (struct placement *p, uint64_t guest, uint64_t nr,
                struct placed *out)
{
  const struct alloc_placement *ap = (struct alloc_placement *) p;
  struct alloc_clusters c;

  if (alloc_take (ap->alloc, ap->scattered ? ALLOC_NO_GUEST : guest, nr,
                  &c) == -1)
    return -1;
  *out = (struct placed) {
    .host = c.host,
    .nr = c.nr,
    .zero = c.zero && storage_holes_read_zero (ap->data),
    .durable = c.durable,
  };
  return 0;
}

static void
give_back_allocated (struct placement *p, struct host_off host, uint64_t nr)
{
  alloc_give_back (((struct alloc_placement *) p)->alloc, host, nr);
}

void
alloc_placement_init (struct alloc_placement *p, struct alloc *alloc,
                      const struct storage *data, bool scattered)
{
  *p = (struct alloc_placement) {
    .placement = {
      .take = take_allocated,
      .give_back = give_back_allocated,
    },
    .alloc = alloc,
    .data = data,
    .scattered = scattered,
  };
}
