/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "bare-writer.h"
#include "base/error.h"
#include "formats.h"
#include "must-have.h"
#include "qcow2/codec.h"
#include "qcow2/disk.h"
#include "qcow2/qcow2.h"

void
bare_open (struct bare_writer *b, struct storage *tables, struct storage *base,
           struct storage *data)
{
  struct storage *storages[3] = { tables };
  unsigned nr = 1;
  struct header h;

  memset (b, 0, sizeof *b);
  epoch_init (&b->epoch);
  b->shared = (struct shared) {
    .formats = all_formats,
    .epoch = &b->epoch,
    .cache = must_have (cache_new (CACHE_MIN_BYTES)),
    .clusters = must_have (cluster_cache_new (CLUSTER_CACHE_MAX_BYTES)),
    .codecs = must_have (codec_pool_new ()),
  };
  if (qcow2_read_header (tables, &h) == 0 && h.has_data_file)
    storages[nr++] = data;
  if (base != NULL)
    storages[nr++] = base;
  if (chain_open_storages (&b->chain, &qcow2_format, storages, nr,
                           &b->shared) == -1) {
    fprintf (stderr, "%s\n", error_message ());
    abort ();
  }
  b->disk = b->chain.layer[0];
  if (data != NULL)
    b->disk->data = data;
}

void
bare_write (struct bare_writer *b, const struct writer_options *options)
{
  static const struct snapshots none;

  b->writer = must_have (writer_open (b->disk, &qcow2_file (b->disk)->header,
                                      &none, options));
}

int
bare_close (struct bare_writer *b)
{
  const int r = writer_close (b->writer);

  chain_close (&b->chain);
  codec_pool_free (b->shared.codecs);
  cluster_cache_free (b->shared.clusters);
  cache_free (b->shared.cache);
  epoch_destroy (&b->epoch);
  return r;
}
