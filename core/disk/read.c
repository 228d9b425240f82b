/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "disk/read.h"

/* The error is set; mark it if this place was reported before. */
static int __attribute__ ((__cold__))
damage_at (const struct layer *layer, struct host_off place)
{
  if (!damage_is_new (layer->damage, place.v))
    error_set_repeated ();
  return -1;
}

struct compressed {
  const struct layer *layer;
  const struct run *run;
};

/* A decode_fn: read and decode the cluster that a COMPRESSED run is in. */
static int
decode_cluster (void *opaque, void *out, size_t out_len)
{
  const struct compressed *z = opaque;
  const struct layer *layer = z->layer;
  const struct run *run = z->run;
  struct codec *codec = codec_get (layer->shared->codecs);
  const char *why;
  void *in;
  int r = -1;

  if (codec == NULL)
    return -1;
  in = codec_input (codec, run->compressed_size);
  if (in == NULL)
    goto out;
  if (storage_read (layer->tables, in, run->compressed_size, run->host) == -1)
    goto out;
  why = codec_decode (codec, layer->compression, in, run->compressed_size,
                      out, out_len);
  if (why == codec_no_memory) {
    error_set (ENOMEM, "%s: %s", layer->tables->name, why);
    goto out;
  }
  if (why != NULL) {
    error_set (EIO, "%s: damaged: compressed cluster of %" PRIu32 " bytes at "
               "offset 0x%" PRIx64 ": %s", layer->tables->name,
               run->compressed_size, run->host.v, why);
    damage_at (layer, run->host);
    goto out;
  }
  r = 0;

 out:
  codec_put (layer->shared->codecs, codec);
  return r;
}

static int
read_compressed (const struct layer *layer, const struct run *run,
                 void *buf, struct guest_off offset)
{
  const struct cluster_cache_key key = {
    .id = layer->map.id,
    .size = run->compressed_size,
    .offset = run->host.v,
  };
  struct compressed z = { .layer = layer, .run = run };

  return cluster_cache_read (layer->shared->clusters, key, layer->map.cluster_size,
                       offset.v & (layer->map.cluster_size - 1),
                       buf, run->length, decode_cluster, &z);
}

static int
read_run (const struct layer *layer, const struct run *run, void *buf,
          struct guest_off offset)
{
  switch (run->kind) {
  case RUN_ZERO_PLAIN:
  case RUN_ZERO_ALLOC:
    memset (buf, 0, run->length);
    return 0;
  case RUN_DATA:
    return storage_read (layer->data, buf, run->length, run->host);
  case RUN_COMPRESSED:
    return read_compressed (layer, run, buf, offset);
  case RUN_DAMAGED:
    return damage_at (layer, run->host);
  case RUN_UNALLOCATED:
    break;
  }
  abort ();
}

int
layer_read (const struct layer *layer, void *buf, size_t count,
            struct guest_off offset)
{
  struct epoch *epoch = layer->shared->epoch;
  char *p = buf;
  int r = 0;

  while (count > 0 && r == 0) {
    const unsigned token = epoch_enter (epoch);
    const struct layer *owner;
    struct run run;

    r = layer_lookup (layer, offset, count, &run, &owner);
    if (r == 0)
      r = read_run (owner, &run, p, offset);
    epoch_leave (epoch, token);
    p += run.length;
    offset.v += run.length;
    count -= run.length;
  }
  return r;
}

void
layer_prefetch (const struct layer *layer, uint64_t count,
                struct guest_off offset)
{
  struct epoch *epoch = layer->shared->epoch;
  const unsigned token = epoch_enter (epoch);

  while (count > 0) {
    const struct layer *owner;
    struct run run;

    if (layer_lookup (layer, offset, count, &run, &owner) == -1)
      break;
    if (run.kind == RUN_DATA)
      storage_prefetch (owner->data, run.host, run.length);
    else if (run.kind == RUN_COMPRESSED)
      storage_prefetch (owner->tables, run.host, run.compressed_size);
    offset.v += run.length;
    count -= run.length;
  }
  epoch_leave (epoch, token);
}
