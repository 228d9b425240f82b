/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>

#include "base/error.h"
#include "qcow2/write/raw-data.h"
#include "qcow2/write/remap.h"

/* The subclusters of an entry that hold data. */
static uint32_t
allocated_in (const struct l2_entry *e, uint32_t all)
{
  switch (e->kind) {
  case CLUSTER_UNALLOCATED:
  case CLUSTER_ZERO_PLAIN:
  case CLUSTER_ZERO_ALLOC:
    return 0;
  case CLUSTER_STANDARD:
    return all;
  case CLUSTER_SUBCLUSTERS:
    return e->allocated;
  case CLUSTER_COMPRESSED:
  case CLUSTER_INVALID:
    break;
  }
  abort ();
}

/* D2.  The file ends where the disk does, or later. */
static int
zero_data (struct writer *w, uint64_t from, uint64_t to)
{
  struct storage *data = w->disk->data_file;
  const uint64_t size = atomic_load (&data->size);

  if (to > size)
    to = size;
  return from >= to ? 0
    : storage_zero (data, (struct host_off) { from }, to - from,
                    !w->places.identical.keep_discarded);
}

/* Zero the subclusters of a cluster that don't hold data. */
static int
zero_rest (struct writer *w, uint64_t cluster, uint32_t allocated)
{
  const struct map *m = qcow2_map (w->disk);
  const unsigned nr = m->format.extended_l2 ? QCOW2_SUBCLUSTERS : 1;
  unsigned i, n;

  for (i = 0; i < nr; i += n) {
    n = 1;
    if (allocated >> i & 1)
      continue;
    while (i + n < nr && !(allocated >> (i + n) & 1))
      n++;
    if (zero_data (w, cluster + ((uint64_t) i << m->subcluster_bits),
                   cluster + ((uint64_t) (i + n) << m->subcluster_bits)) == -1)
      return -1;
  }
  return 0;
}

/* Set entries, as far as none is damaged.  *changed: there is something to do.
 */
static int
map_entries (struct remap *r, bool *changed)
{
  const struct map *m = qcow2_map (r->w->disk);
  const uint32_t all = m->format.extended_l2 ? UINT32_MAX : 1;
  unsigned i;

  for (i = 0; i < r->nr; ++i) {
    const uint64_t cluster = r->cluster + i * m->cluster_size;
    struct l2_entry e;
    uint32_t allocated;

    if (remap_entry (r, i, &e) == -1)
      return i == 0 ? -1 : 0; /* the next step will meet it */
    allocated = allocated_in (&e, all);
    if (allocated != all && zero_rest (r->w, cluster, allocated) == -1)
      return -1;
    *changed |= allocated != all || !e.copied;
    remap_set (r, i, (struct host_off) { cluster }, true, all, 0);
  }
  return 0;
}

/* D3 */
static int
map_step (struct writer *w, struct guest_off offset)
{
  struct remap r;
  bool changed = false;
  int result;

  if (remap_begin (&r, w, offset, w->disk->size) == -1)
    return -1;
  result = map_entries (&r, &changed);
  if (result == -1 || !changed) {
    remap_abort (&r);
    return result == -1 ? -1 : writeback_check (&w->writeback);
  }
  writeback_note_data (&w->writeback);
  return remap_end_durably (&r);
}

int
raw_data_map (struct writer *w, struct guest_off offset)
{
  int r;

  atomic_fetch_add (&w->in_turn, 1);
  r = map_step (w, offset);
  atomic_fetch_sub (&w->in_turn, 1);
  return r;
}
