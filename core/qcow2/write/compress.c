/* SPDX-License-Identifier: BSD-3-Clause */

/* A cluster is compressed by the thread that its request came on, so that
 * requests at one time use all CPUs.  Then, as for any write that maps anew:
 * take room, write, change the entry.  That is always ordered behind data and
 * refcounts (I5): the room is in clusters that hold other clusters' data, and
 * are never known to be zeros.
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

/* A cluster, compressed. */
struct packed {
  struct writer *w;
  uint64_t cluster; /* the guest offset */
  const void *data;
  uint32_t bytes;
  struct host_off host;
};

static inline const struct map *
map_of (const struct packed *p)
{
  return &p->w->disk->map;
}

static int
change_entry (const struct packed *p, struct map_l2 *l2,
              const struct l2_entry *old)
{
  const struct map *m = map_of (p);
  const uint64_t old_bytes = host_is_none (old->host) ? 0
    : old->kind == CLUSTER_COMPRESSED ? old->compressed_size
    : m->cluster_size;
  struct freed freed;
  uint64_t words[2];
  const struct change ch = {
    .slice = l2->slice,
    .first = l2->first_word,
    .nr = 1U << m->l2_word_bits,
    .words = words,
    .order = CACHE_SECOND,
    .ordered = true,
    .freed = &freed,
    .nr_freed = old_bytes > 0,
  };

  entry_encode_compressed (&m->format, p->host, p->bytes, words);
  if (ch.nr_freed > 0)
    freed = writer_references (m, old->host, old_bytes,
                               old->kind != CLUSTER_COMPRESSED &&
                               !old->copied);
  if (writer_check_freed (p->w, &freed, ch.nr_freed) == -1)
    return -1;
  return writeback_change (&p->w->writeback, &ch, NULL);
}

static int
write_and_link (const struct packed *p, struct map_l2 *l2,
                const struct l2_entry *old)
{
  if (writer_check_overlap (p->w, p->host, p->bytes) == -1 ||
      storage_write (p->w->disk->tables, p->data, p->bytes, p->host) == -1)
    return -1;
  writeback_note_data (&p->w->writeback);
  return change_entry (p, l2, old);
}

/* The room was not mapped. */
static void
give_back (const struct packed *p)
{
  const struct freed lost =
    writer_references (map_of (p), p->host, p->bytes, false);

  (void) writeback_free (&p->w->writeback, &lost, 1); /* or leaked */
}

/* The cluster's range is entered. */
static int
store (struct packed *p, bool *stored)
{
  const struct guest_off offset = { p->cluster };
  struct host_off table;
  struct l2_entry old;
  struct map_l2 l2;
  int r = 0;

  if (writer_table (p->w, offset, &table) == -1 ||
      map_l2_entries (map_of (p), table, offset, 1, &l2) == -1 ||
      map_l2_decode (map_of (p), &l2, 0, &old) == -1 ||
      writer_take_bytes (p->w, p->bytes, &p->host) == -1)
    return -1;
  if (entry_compressed_fits (&map_of (p)->format, p->host)) {
    r = write_and_link (p, &l2, &old);
    *stored = r == 0;
  }
  if (!*stored)
    give_back (p);
  return r;
}

/* A thread's turn at a cluster. */
struct turn {
  struct inflight_range range;
  unsigned token;
};

static void
begin_turn (struct writer *w, struct turn *t, uint64_t cluster)
{
  t->range.first = t->range.last = cluster >> w->disk->map.format.cluster_bits;
  t->token = epoch_enter (w->disk->shared->epoch);
  inflight_enter (&w->inflight, &t->range);
}

static void
end_turn (struct writer *w, struct turn *t)
{
  inflight_leave (&w->inflight, &t->range);
  epoch_leave (w->disk->shared->epoch, t->token);
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
  const uint64_t cluster_size = disk->map.cluster_size;
  void *out = codec_input (codec, cluster_size);
  ssize_t n;

  if (out == NULL)
    return -1;
  n = codec_encode (codec, disk->compression, p->w->compress_level, in,
                    cluster_size, out,
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
  void *buf = malloc (w->disk->map.cluster_size);

  if (buf == NULL)
    error_set (ENOMEM, "%s: out of memory", w->disk->tables->name);
  return buf;
}

/* How much of a cluster is within the disk. */
static uint64_t
inside (const struct writer *w, uint64_t cluster)
{
  const uint64_t left = w->disk->size - cluster;

  return left < w->disk->map.cluster_size ? left : w->disk->map.cluster_size;
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
  struct turn turn;
  int r;

  if (codec == NULL)
    return -1;
  r = encode (&p, codec, whole);
  if (r == 0 && p.bytes > 0) {
    begin_turn (w, &turn, cluster);
    r = store (&p, stored);
    end_turn (w, &turn);
  }
  codec_put (w->disk->shared->codecs, codec);
  return r;
}

int
compress_cluster (struct writer *w, const void *buf, struct guest_off offset,
                  bool *stored)
{
  const uint64_t count = inside (w, offset.v);
  const uint64_t cluster_size = w->disk->map.cluster_size;
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
    if (map_lookup (&w->disk->map, at, end - at.v, &run) == -1)
      return -1;
    if (run.kind == RUN_COMPRESSED || run.kind == RUN_DAMAGED)
      return 0;
    *plain |= run.kind == RUN_DATA;
  }
  return 0;
}

/* The cluster's range is entered: nobody changes what is read. */
static int
recompress (struct packed *p, struct codec *codec, uint8_t *buf, bool *stored)
{
  struct writer *w = p->w;
  const struct guest_off offset = { p->cluster };
  const uint64_t count = inside (w, p->cluster);
  bool plain;

  if (is_plain (w, p->cluster, &plain) == -1)
    return -1;
  if (!plain)
    return 0;
  memset (buf + count, 0, w->disk->map.cluster_size - count);
  if (layer_read (w->disk, buf, count, offset) == -1 ||
      encode (p, codec, buf) == -1)
    return -1;
  return p->bytes == 0 ? 0 : store (p, stored);
}

static int
compress_again (struct writer *w, uint64_t cluster, bool *stored)
{
  struct packed p = { .w = w, .cluster = cluster };
  struct codec *codec = codec_get (w->disk->shared->codecs);
  uint8_t *buf = cluster_buffer (w);
  struct turn turn;
  int r = -1;

  if (codec != NULL && buf != NULL) {
    begin_turn (w, &turn, cluster);
    r = recompress (&p, codec, buf, stored);
    end_turn (w, &turn);
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
  const uint64_t cluster_size = w->disk->map.cluster_size;
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
