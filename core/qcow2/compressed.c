/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "cache/clusters.h"
#include "qcow2/codec.h"
#include "qcow2/compressed.h"
#include "qcow2/disk.h"

struct compressed {
  const struct qcow2_disk *disk;
  const struct run *run;
};

/* Returns NULL with the error set. */
static const void *
read_input (const struct layer *layer, const struct run *run,
            struct codec *codec)
{
  void *in = codec_input (codec, run->compressed_size);

  if (in != NULL &&
      storage_read (layer->tables, in, run->compressed_size, run->host) == -1)
    return NULL;
  return in;
}

/* A decode_fn: read and decode the cluster that a COMPRESSED run is in. */
static int
decode_cluster (void *opaque, void *out, size_t out_len)
{
  const struct compressed *z = opaque;
  const struct layer *layer = &z->disk->layer;
  const struct run *run = z->run;
  struct codec *codec = codec_get (layer->shared->codecs);
  const void *in = run->bytes;
  const char *why;
  int r = -1;

  if (codec == NULL)
    return -1;
  if (in == NULL)
    in = read_input (layer, run, codec);
  if (in == NULL)
    goto out;
  why = codec_decode (codec, z->disk->compression, in, run->compressed_size,
                      out, out_len);
  if (why == codec_no_memory) {
    error_set (ENOMEM, "%s: %s", layer->tables->name, why);
    goto out;
  }
  if (why != NULL) {
    error_set (EIO, "%s: damaged: compressed cluster of %" PRIu32 " bytes at "
               "offset 0x%" PRIx64 ": %s", layer->tables->name,
               run->compressed_size, run->host.v, why);
    layer_damaged (layer, run->host);
    goto out;
  }
  r = 0;

 out:
  codec_put (layer->shared->codecs, codec);
  return r;
}

int
compressed_read (const struct layer *layer, const struct run *run, void *buf,
                 struct guest_off offset)
{
  const struct qcow2_disk *disk = qcow2_disk (layer);
  const struct cluster_cache_key key = {
    .id = disk->map.id,
    .size = run->compressed_size,
    .offset = run->host.v,
  };
  struct compressed z = { .disk = disk, .run = run };

  return cluster_cache_read (layer->shared->clusters, key,
                             disk->map.cluster_size,
                             offset.v & (disk->map.cluster_size - 1),
                             buf, run->length, decode_cluster, &z);
}
