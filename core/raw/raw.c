/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "disk/layer.h"
#include "raw/raw.h"
#include "storage/storage.h"

static struct layer *
raw_open (struct storage *storage, unsigned id, struct shared *shared)
{
  struct layer *l = calloc (1, sizeof *l);

  (void) id; /* nothing of it is cached */
  if (l == NULL) {
    error_set (ENOMEM, "%s: out of memory", storage->name);
    return NULL;
  }
  l->format = &raw_format;
  l->tables = l->data = l->data_file = storage;
  l->size = storage->size;
  l->shared = shared;
  debug_message ("%s: raw, %" PRIu64 " bytes", storage->name, l->size);
  return l;
}

static int
raw_lookup (const struct layer *layer, struct guest_off offset, uint64_t max,
            struct run *run)
{
  (void) layer;
  run->kind = RUN_DATA;
  run->length = max;
  run->host.v = offset.v;
  run->in_place = false;
  return 0;
}

static int
raw_find_hole (const struct layer *layer, struct run *run, bool *hole)
{
  return storage_extent (layer->data, run->host, run->length, hole,
                         &run->length);
}

static void
raw_close (struct layer *layer)
{
  free (layer);
}

const struct format_ops raw_format = {
  .name = "raw",
  .open = raw_open,
  .lookup = raw_lookup,
  .find_hole = raw_find_hole,
  .close = raw_close,
};
