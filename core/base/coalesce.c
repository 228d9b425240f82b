/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "base/coalesce.h"

void
coalesce_init (struct coalesce *g, unsigned cluster_bits)
{
  memset (g, 0, sizeof *g);
  g->cluster_bits = cluster_bits;
  pthread_mutex_init (&g->lock, NULL);
}

void
coalesce_destroy (struct coalesce *g)
{
  pthread_mutex_destroy (&g->lock);
}

/* The slot of this cluster, or one that it can take.  lock held. */
static struct coalesce_slot *
find_slot (struct coalesce *g, uint64_t cluster)
{
  struct coalesce_slot *oldest = &g->slot[0];
  unsigned i;

  for (i = 0; i < COALESCE_SLOTS; ++i) {
    struct coalesce_slot *s = &g->slot[i];

    if (s->last_use > 0 && s->cluster == cluster)
      return s;
    if (s->last_use < oldest->last_use)
      oldest = s;
  }
  *oldest = (struct coalesce_slot) { .cluster = cluster };
  return oldest;
}

/* The 64ths that lie entirely between two offsets in a cluster. */
static uint64_t
whole_parts (unsigned cluster_bits, uint64_t from, uint64_t to)
{
  const unsigned part_bits = cluster_bits - 6;
  const uint64_t first = (from + (UINT64_C (1) << part_bits) - 1) >> part_bits;
  const uint64_t end = to >> part_bits;

  if (first >= end)
    return 0;
  return UINT64_MAX >> (64 - (end - first)) << first;
}

bool
coalesce_note (struct coalesce *g, uint64_t from, uint64_t to)
{
  const uint64_t cluster = from >> g->cluster_bits;
  const uint64_t start = cluster << g->cluster_bits;
  struct coalesce_slot *s;
  bool complete;

  pthread_mutex_lock (&g->lock);
  s = find_slot (g, cluster);
  s->last_use = ++g->clock;
  s->written |= whole_parts (g->cluster_bits, from - start, to - start);
  complete = s->written == UINT64_MAX;
  if (complete)
    s->last_use = 0;
  pthread_mutex_unlock (&g->lock);
  return complete;
}
