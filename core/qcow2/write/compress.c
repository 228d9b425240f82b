/* SPDX-License-Identifier: BSD-3-Clause */

/* A cluster is compressed by the thread that its request came on, so that
 * requests at one time use all CPUs.  Then, as for any write that changes a
 * mapping: take room, write, change the entry.  That is always ordered behind
 * data and refcounts (R4): the room is in clusters that hold other clusters'
 * data, and are never known to be zeros.
 *
 * What comes in requests smaller than a cluster is written as it is, and
 * compressed when its cluster is complete.  Nothing that was answered waits in
 * memory for that, so that reads, flushes and crashes need to know nothing of
 * it.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/read.h"
#include "qcow2/codec.h"
#include "qcow2/write/compress.h"
#include "qcow2/write/remap.h"

/* A cluster, compressed. */
struct packed {
  struct writer *w;
  uint64_t cluster; /* the guest offset */
  const void *data;
  uint32_t bytes;
};

static int
write_packed (const struct packed *p, struct remap *r, struct host_off host)
{
  if (writer_check_overlap (p->w, host, p->bytes) == -1 ||
      storage_write (p->w->disk->tables, p->data, p->bytes, host) == -1)
    return -1;
  writeback_note_data (&p->w->writeback);
  remap_set_compressed (r, 0, host, p->bytes);
  return 0;
}

/* The cluster's range is entered, and is left by this. */
static int
store_packed (const struct packed *p, struct remap *r, bool *stored)
{
  struct host_off host;
  struct l2_entry old;
  bool fits;

  if (remap_find (r) == -1 || remap_entry (r, 0, &old) == -1 ||
      remap_take_bytes (r, p->bytes, &host) == -1)
    goto fail;
  fits = entry_compressed_fits (&qcow2_map (p->w->disk)->format, host);
  if (fits && write_packed (p, r, host) == -1)
    goto fail;
  if (remap_end (r, true) == -1)
    return -1;
  *stored = fits;
  return 0;

 fail:
  remap_abort (r);
  return -1;
}

/* ---------------------------------------------------------------- encoding */

/* Less than this part of a cluster is not worth the decoding. */
#define LEAST_GAIN 128

/* Encode a cluster into the codec's buffer.  p->bytes is 0 if that is of no
 * use.
 */
static int
encode (struct packed *p, struct codec *codec, const void *in)
{
  const struct layer *disk = p->w->disk;
  const uint64_t cluster_size = qcow2_map (disk)->cluster_size;
  void *out = codec_input (codec, cluster_size);
  ssize_t n;

  if (out == NULL)
    return -1;
  n = codec_encode (codec, qcow2_disk (disk)->compression,
                    p->w->compress_level, in, cluster_size, out,
                    cluster_size - cluster_size / LEAST_GAIN);
  if (n == -1)
    return -1;
  p->data = out;
  p->bytes = n;
  return 0;
}

static void *
cluster_buffer (const struct writer *w)
{
  void *buf = malloc (qcow2_map (w->disk)->cluster_size);

  if (buf == NULL)
    error_set (ENOMEM, "%s: out of memory", w->disk->tables->name);
  return buf;
}

/* How much of a cluster is within the disk. */
static uint64_t
inside (const struct writer *w, uint64_t cluster)
{
  const uint64_t left = w->disk->size - cluster;

  const uint64_t cluster_size = qcow2_map (w->disk)->cluster_size;

  return left < cluster_size ? left : cluster_size;
}

static void
enter_cluster (struct remap *r, const struct packed *p)
{
  const struct guest_off offset = { p->cluster };

  remap_enter (r, p->w, offset, p->cluster + inside (p->w, p->cluster));
}

/* --------------------------------------------------------- what is written */

/* whole: a cluster's bytes.  Nobody else needs to wait while they are encoded,
 * since they are what will be there.
 */
static int
compress_whole (struct writer *w, const void *whole, uint64_t cluster,
                bool *stored)
{
  struct packed p = { .w = w, .cluster = cluster };
  struct codec *codec = codec_get (w->disk->shared->codecs);
  struct remap remap;
  int r;

  if (codec == NULL)
    return -1;
  r = encode (&p, codec, whole);
  if (r == 0 && p.bytes > 0) {
    enter_cluster (&remap, &p);
    r = store_packed (&p, &remap, stored);
  }
  codec_put (w->disk->shared->codecs, codec);
  return r;
}

int
compress_cluster (struct writer *w, const void *buf, struct guest_off offset,
                  bool *stored)
{
  const uint64_t count = inside (w, offset.v);
  const uint64_t cluster_size = qcow2_map (w->disk)->cluster_size;
  uint8_t *whole;
  int r;

  *stored = false;
  if (count == cluster_size)
    return compress_whole (w, buf, offset.v, stored);
  /* What the disk's end cuts off is zeros. */
  whole = cluster_buffer (w);
  if (whole == NULL)
    return -1;
  memcpy (whole, buf, count);
  memset (whole + count, 0, cluster_size - count);
  r = compress_whole (w, whole, offset.v, stored);
  free (whole);
  return r;
}

/* -------------------------------------------------------- what was written */

/* Whether this cluster has data, and that is not compressed.  Its range is
 * entered.
 */
static int
is_plain (const struct writer *w, uint64_t cluster, bool *plain)
{
  const uint64_t end = cluster + inside (w, cluster);
  struct guest_off at = { cluster };
  struct run run;

  *plain = false;
  for (; at.v < end; at.v += run.length) {
    if (map_lookup (qcow2_map (w->disk), at, end - at.v, &run) == -1)
      return -1;
    if (run.kind == RUN_COMPRESSED || run.kind == RUN_DAMAGED)
      return 0;
    *plain |= run.kind == RUN_DATA;
  }
  return 0;
}

/* Read the cluster, and encode it, if that is of use: else p->bytes is 0.  Its
 * range is entered: nobody changes what is read.
 */
static int
encode_written (struct packed *p, struct codec *codec, uint8_t *buf)
{
  struct writer *w = p->w;
  const struct guest_off offset = { p->cluster };
  const uint64_t count = inside (w, p->cluster);
  bool plain;

  if (is_plain (w, p->cluster, &plain) == -1)
    return -1;
  if (!plain)
    return 0;
  memset (buf + count, 0, qcow2_map (w->disk)->cluster_size - count);
  if (layer_read (w->disk, buf, count, offset) == -1)
    return -1;
  return encode (p, codec, buf);
}

static int
compress_again (struct writer *w, uint64_t cluster, bool *stored)
{
  struct packed p = { .w = w, .cluster = cluster };
  struct codec *codec = codec_get (w->disk->shared->codecs);
  uint8_t *buf = cluster_buffer (w);
  struct remap remap;
  int r = -1;

  if (codec != NULL && buf != NULL) {
    enter_cluster (&remap, &p);
    r = encode_written (&p, codec, buf);
    if (r == 0 && p.bytes > 0)
      r = store_packed (&p, &remap, stored);
    else
      remap_abort (&remap);
  }
  free (buf);
  if (codec != NULL)
    codec_put (w->disk->shared->codecs, codec);
  return r;
}

int
compress_written (struct writer *w, struct guest_off offset, uint64_t count,
                  bool *stored)
{
  const uint64_t cluster_size = qcow2_map (w->disk)->cluster_size;
  const uint64_t cluster = offset.v & -cluster_size;
  uint64_t end = offset.v + count;

  *stored = false;
  if (end == w->disk->size) /* which completes its last cluster */
    end = cluster + cluster_size;
  if (count == 0 || !coalesce_note (&w->coalesce, offset.v, end) ||
      compress_again (w, cluster, stored) == 0)
    return 0;
  if (atomic_load (&w->writeback.failed))
    return -1;
  debug_message ("%s", error_message ());
  return 0;
}
