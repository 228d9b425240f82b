/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "formats.h"
#include "image-parts.h"
#include "qcow2/codec.h"
#include "qcow2/qcow2.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"
#include "storage/open.h"

void
image_each_warning (const struct image *im, image_warning_fn *fn,
                    void *opaque)
{
  char text[512];
  unsigned i;

  for (i = 0; i < im->chain.nr; ++i) {
    const struct layer *l = im->chain.layer[i];

    if (l->format->warning != NULL &&
        l->format->warning (l, text, sizeof text))
      fn (opaque, text);
  }
}

/* Everything but the chain and what depends on it. */
static struct image *
image_new (uint64_t cache_size)
{
  struct image *im = calloc (1, sizeof *im);

  if (im == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  epoch_init (&im->epoch);
  gate_init (&im->gate);
  pthread_mutex_init (&im->writer_lock, NULL);
  im->check_memory = IMAGE_DEFAULT_CHECK_MEMORY;
  im->shared.formats = all_formats;
  im->shared.epoch = &im->epoch;
  im->shared.cache = cache_new (cache_size);
  if (im->shared.cache != NULL)
    im->shared.clusters = cluster_cache_new ();
  if (im->shared.clusters != NULL)
    im->shared.codecs = codec_pool_new ();
  if (im->shared.codecs == NULL) {
    (void) image_close (im);
    return NULL;
  }
  return im;
}

static struct image *
read_snapshots (struct image *im)
{
  if (snapshots_read (&im->snapshots, &image_top (im)->header,
                      image_top (im)->layer.tables) == -1) {
    (void) image_close (im);
    return NULL;
  }
  return im;
}

struct image *
image_open (const struct image_options *options)
{
  struct image *im = image_new (options->cache_size);

  if (im == NULL)
    return NULL;
  if (options->check_memory != 0)
    im->check_memory = options->check_memory;
  if (chain_open (&im->chain, &qcow2_format, &options->chain,
                  &im->shared) == -1) {
    (void) image_close (im);
    return NULL;
  }
  return read_snapshots (im);
}

struct image *
image_open_storages (struct storage *const *storages, unsigned nr,
                     uint64_t cache_size)
{
  struct image *im = image_new (cache_size);
  unsigned i;

  if (im == NULL) {
    for (i = 0; i < nr; ++i)
      storage_close (storages[i]);
    return NULL;
  }
  if (chain_open_storages (&im->chain, &qcow2_format, storages, nr,
                           &im->shared) == -1) {
    (void) image_close (im);
    return NULL;
  }
  return read_snapshots (im);
}

struct image *
image_open_storage (struct storage *s, uint64_t cache_size)
{
  return image_open_storages (&s, 1, cache_size);
}

/* The image itself must not be its own backing file, nor below that: once it
 * is made anew its data would be lost.  Returns -1 with the error set.
 */
static int
check_is_not (const struct storage *backing,
              const struct chain_options *options)
{
  const char *file = options->file;
  struct storage *s = storage_open (file, &options->nbd);
  const bool same = s != NULL && storage_same (backing, s);

  storage_close (s);
  if (same)
    error_set (EINVAL, "%s: can't be its own backing file", file);
  return same ? -1 : 0;
}

static int
check_chain_is_not (const struct chain *c, const struct chain_options *options)
{
  unsigned i;

  for (i = 0; i < c->nr; ++i) {
    if (check_is_not (c->layer[i]->tables, options) == -1)
      return -1;
  }
  return 0;
}

static int
qcow2_size (const struct chain_options *options, uint64_t *size)
{
  const char *const *formats = options->lower_formats;
  const bool given = formats != NULL && formats[0] != NULL;
  const struct image_options backing = {
    .chain.file = options->backing,
    .chain.follow = options->follow,
    .chain.backing_format = given ? formats[0] : NULL,
    .chain.lower_formats = given ? formats + 1 : NULL,
    .chain.force_share = options->force_share,
    .chain.locking = options->locking,
    .chain.nbd = options->nbd,
    .cache_size = CACHE_MIN_BYTES,
  };
  struct image *im = image_open (&backing);
  int r = -1;

  if (im != NULL && check_chain_is_not (&im->chain, options) == 0) {
    *size = image_top (im)->layer.size;
    r = 0;
  }
  (void) image_close (im); /* it was only read */
  return r;
}

static int
raw_size (const struct chain_options *options, uint64_t *size)
{
  struct storage *s = storage_open (options->backing, &options->nbd);
  int r = -1;

  if (s != NULL && check_is_not (s, options) == 0) {
    *size = (atomic_load (&s->size) + 511) & ~UINT64_C (511);
    r = 0;
  }
  storage_close (s);
  return r;
}

int
image_backing_size (const struct chain_options *options, uint64_t *size)
{
  return strcmp (options->backing_format, "raw") == 0
    ? raw_size (options, size) : qcow2_size (options, size);
}

int
image_close (struct image *im)
{
  int r;

  if (im == NULL)
    return 0;
  if (leaks_stop (im->leaks))
    writer_no_leaks (im->writer);
  r = writer_close (im->writer);
  snapshots_free (&im->snapshots);
  chain_close (&im->chain);
  codec_pool_free (im->shared.codecs);
  cluster_cache_free (im->shared.clusters);
  cache_free (im->shared.cache);
  pthread_mutex_destroy (&im->writer_lock);
  gate_destroy (&im->gate);
  epoch_destroy (&im->epoch);
  free (im);
  return r;
}

void
image_detect_zeroes (struct image *im, enum detect_zeroes detect)
{
  im->detect_zeroes = detect;
}

enum compression
image_compression (const struct image *im)
{
  return image_top (im)->disk.compression;
}

/* Requests fail by the thousand once there is no space.  The first is logged,
 * and another only after a request that was given some has gone well: mere
 * overwriting goes well all the time.  full is 0, or one more than writer.taken
 * was at the last failure.  r is the result of a request, and returned.
 */
static int
no_space_once (struct image *im, int r)
{
  uint64_t full = atomic_load_explicit (&im->full, memory_order_relaxed);
  const bool failed = r == -1 && error_errno () == ENOSPC;

  if (full != 0 || failed) {
    const uint64_t now = atomic_load (&im->writer->taken) + 1;

    if (failed && atomic_exchange (&im->full, now) != 0)
      error_set_repeated ();
    else if (failed)
      error_append (" (logged once until there is room again)");
    else if (r == 0 && full != now)
      atomic_compare_exchange_strong (&im->full, &full, 0);
  }
  return r;
}

static bool
is_zero (const uint8_t *p, uint64_t count)
{
  return p[0] == 0 && memcmp (p, p + 1, count - 1) == 0;
}

/* How many of the bytes from here on are of one kind: zeros or not, in pieces
 * that end where clusters do.
 */
static uint64_t
same_kind (const struct image *im, const uint8_t *p, uint64_t count,
           struct guest_off offset, bool *zero)
{
  const uint64_t mask = image_top (im)->header.cluster_size - 1;
  uint64_t done, piece;

  for (done = 0; done < count; done += piece) {
    bool z;

    piece = mask + 1 - ((offset.v + done) & mask);
    if (piece > count - done)
      piece = count - done;
    z = is_zero (p + done, piece);
    if (done == 0)
      *zero = z;
    else if (z != *zero)
      break;
  }
  return done;
}

static int
write_or_zero (struct image *im, const uint8_t *p, uint64_t count,
               struct guest_off offset)
{
  while (count > 0) {
    bool zero = false;
    const uint64_t n = same_kind (im, p, count, offset, &zero);
    const int r = zero
      ? disk_zero (im->writer, n, offset,
                   im->detect_zeroes == DETECT_ZEROES_UNMAP
                   ? DISK_MAY_TRIM : 0)
      : disk_write (im->writer, p, n, offset, 0);

    if (r == -1)
      return -1;
    p += n;
    offset.v += n;
    count -= n;
  }
  return 0;
}

static unsigned
disk_flags (unsigned flags)
{
  return (flags & IMAGE_FUA ? DISK_FUA : 0) |
    (flags & IMAGE_MAY_TRIM ? DISK_MAY_TRIM : 0) |
    (flags & IMAGE_FAST ? DISK_FAST : 0);
}

static int
write_request (struct image *im, const void *buf, uint64_t count,
               struct guest_off offset, unsigned flags)
{
  if (im->detect_zeroes == DETECT_ZEROES_OFF)
    return disk_write (im->writer, buf, count, offset, disk_flags (flags));
  if (write_or_zero (im, buf, count, offset) == -1)
    return -1;
  return flags & IMAGE_FUA ? writer_flush (im->writer) : 0;
}

int
image_write (struct image *im, const void *buf, uint64_t count,
             struct guest_off offset, unsigned flags)
{
  const unsigned token = gate_enter (&im->gate);
  const int r = write_request (im, buf, count, offset, flags);

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_zero (struct image *im, uint64_t count, struct guest_off offset,
            unsigned flags)
{
  const unsigned token = gate_enter (&im->gate);
  const int r = disk_zero (im->writer, count, offset, disk_flags (flags));

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_trim (struct image *im, uint64_t count, struct guest_off offset,
            unsigned flags)
{
  const unsigned token = gate_enter (&im->gate);
  const int r = disk_trim (im->writer, count, offset, disk_flags (flags));

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_flush (struct image *im)
{
  struct writer *w = im->writer;
  unsigned token;
  int r;

  if (w == NULL)
    return 0;
  token = gate_enter (&im->gate);
  r = writer_flush (w);
  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

uint32_t
image_preferred_size (const struct image *im)
{
  return image_top (im)->header.subcluster_size;
}
