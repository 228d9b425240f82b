/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "disk/layer.h"

int
layer_lookup (const struct layer *top, struct guest_off offset, uint64_t max,
              struct run *run, const struct layer **owner)
{
  const struct layer *layer;

  for (layer = top; layer != NULL; layer = layer->backing) {
    *owner = layer;
    if (offset.v >= layer->size)
      break;
    if (max > layer->size - offset.v)
      max = layer->size - offset.v;
    if (layer->format->lookup (layer, offset, max, run) == -1)
      return -1;
    if (run->kind != RUN_UNALLOCATED)
      return 0;
    max = run->length;
  }
  run->kind = RUN_ZERO_PLAIN;
  run->length = max;
  return 0;
}

int __attribute__ ((__cold__))
layer_damaged (const struct layer *layer, struct host_off place)
{
  if (!damage_is_new (layer->damage, place.v))
    error_set_repeated ();
  return -1;
}
