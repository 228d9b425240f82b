/* SPDX-License-Identifier: BSD-3-Clause */

/* A layer: one disk of a backing chain, qcow2 or raw, as a guest would
 * see it, and what lies below it.  Everything in it is fixed once it is
 * open, but for the tables of the live disk, so that reads need no lock (I12).
 */

#ifndef CORE_DISK_LAYER_H
#define CORE_DISK_LAYER_H

#include <stdbool.h>
#include <stdint.h>

#include "base/epoch.h"
#include "cache/clusters.h"
#include "qcow2/codec.h"
#include "qcow2/map.h"
#include "storage/storage.h"

enum layer_format {
  LAYER_RAW,
  LAYER_QCOW2,
};

/* What all layers of a chain share. */
struct shared {
  struct cache *cache;
  struct cluster_cache *clusters;
  struct codec_pool *codecs;
  struct epoch *epoch; /* that each request is in while it uses a mapping */
};

struct layer {
  enum layer_format format;
  struct storage *tables;      /* metadata, and compressed clusters */
  struct storage *data;        /* the rest of the guest's data (I16); the same
                                * storage as tables, or another one */
  uint64_t size;               /* of the disk, in bytes */
  const struct layer *backing; /* NULL: none */
  struct shared *shared;
  struct damage *damage;

  struct map map;               /* QCOW2 */
  enum compression compression; /* QCOW2 */
};

/* Find the run at offset of the disk whose top layer this is, in the
 * first layer that has it; *owner is that layer.  A run that no layer has
 * is ZERO_PLAIN, as is what lies past the end of a short backing layer.
 * Never UNALLOCATED.  offset + max must be within the top layer.  Errors
 * and the run's length as with map_lookup.  The caller is in the epoch.
 */
extern int layer_lookup (const struct layer *top, struct guest_off offset,
                         uint64_t max, struct run *run,
                         const struct layer **owner);

#endif /* CORE_DISK_LAYER_H */
