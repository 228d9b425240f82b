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

static int
take_identical (struct placement *p, uint64_t guest, uint64_t nr,
                struct placed *out)
{
  const struct identity_placement *ip = (struct identity_placement *) p;

  *out = (struct placed) {
    .host.v = guest << ip->cluster_bits, .nr = nr,
  };
  return 0;
}

static void
give_back_identical (struct placement *p, struct host_off host, uint64_t nr)
{
  (void) p;
  (void) host;
  (void) nr;
}

/* A hole that can't be punched is only space that is not had again. */
static void
release_identical (struct placement *p, struct host_off host, uint64_t nr)
{
  const struct identity_placement *ip = (struct identity_placement *) p;

  if (!ip->keep_discarded)
    (void) storage_punch (ip->data, host, nr << ip->cluster_bits);
}

void
identity_placement_init (struct identity_placement *p, struct storage *data,
                         unsigned cluster_bits, bool keep_discarded)
{
  *p = (struct identity_placement) {
    .placement = {
      .take = take_identical,
      .give_back = give_back_identical,
      .release = release_identical,
    },
    .data = data,
    .cluster_bits = cluster_bits,
    .keep_discarded = keep_discarded,
  };
}
