/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "formats.h"
#include "image-parts.h"
#include "qcow2/codec.h"
#include "storage/open.h"
#include "storage/place.h"

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

static size_t
cluster_bytes (uint64_t memory)
{
  return memory == 0 || memory > CLUSTER_CACHE_MAX_BYTES
    ? CLUSTER_CACHE_MAX_BYTES : memory;
}

/* Everything but the chain and what depends on it. */
static struct image *
image_new (uint64_t cache_size, uint64_t cluster_memory)
{
  struct image *im = calloc (1, sizeof *im);

  if (im == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  epoch_init (&im->epoch);
  gate_init (&im->gate);
  pthread_rwlock_init (&im->snapshots_lock, NULL);
  pthread_mutex_init (&im->writer_lock, NULL);
  im->check_memory = IMAGE_DEFAULT_CHECK_MEMORY;
  im->shared.formats = all_formats;
  im->shared.epoch = &im->epoch;
  im->shared.cache = cache_new (cache_size);
  if (im->shared.cache != NULL)
    im->shared.clusters = cluster_cache_new (cluster_bytes (cluster_memory));
  if (im->shared.clusters != NULL)
    im->shared.codecs = codec_pool_new ();
  if (im->shared.codecs == NULL) {
    (void) image_close (im);
    return NULL;
  }
  return im;
}

/* NULL: images of this format are not served. */
static const struct image_kind *
find_kind (const struct layer *l)
{
  static const struct image_kind *const kinds[] = { &image_qcow2, &image_qed };
  unsigned i;

  for (i = 0; i < sizeof kinds / sizeof kinds[0]; ++i)
    if (strcmp (l->format->name, kinds[i]->format->name) == 0)
      return kinds[i];
  return NULL;
}

/* The chain is open, unless r is -1: find out of what kind the image is.
 * Returns NULL with the error set, and the image is gone.
 */
static struct image *
opened (struct image *im, int r)
{
  if (r == 0)
    im->kind = find_kind (im->chain.layer[0]);
  im->shared.passphrases = NULL; /* they are wiped */
  if (r == 0 && im->kind->opened (im) == 0)
    return im;
  (void) image_close (im);
  return NULL;
}

static struct image *
image_with (const struct image_options *options)
{
  struct image *im = image_new (options->cache_size,
                                options->cluster_memory);

  if (im == NULL)
    return NULL;
  if (options->check_memory != 0)
    im->check_memory = options->check_memory;
  if (options->verdict != NULL)
    im->verdict = *options->verdict;
  im->shared.passphrases = options->passphrases;
  return im;
}

struct image *
image_open (const struct image_options *options)
{
  struct image *im = image_with (options);

  if (im == NULL) {
    storage_close (options->chain.opened);
    return NULL;
  }
  return opened (im, chain_open (&im->chain, image_qcow2.format,
                                 &options->chain, &im->shared));
}

const char *
image_recognize (int dirfd, const char *path)
{
  struct storage *s = storage_open_regular (dirfd, path, path);
  const struct format_ops *format = s == NULL ? NULL
    : format_recognize (all_formats, NULL, s);

  storage_close (s);
  return format == NULL ? NULL : format->name;
}

/* Nobody knows what is behind an NBD server, so that it may be what is below:
 * then both begin with the same.  Zeros tell nothing, and file systems leave
 * some at their start.  Returns -1 with the error set.
 */
#define START_BYTES 1048576

static int
check_start (struct storage *s, struct storage *below)
{
  bool may;

  if (storage_may_be_same (s, below, START_BYTES, &may) == -1)
    return -1;
  if (!may)
    return 0;
  error_set (EINVAL, "%s: it begins with the same bytes as %s, which is to be "
             "below it: they may be the same", s->name, below->name);
  return -1;
}

/* The image itself must not be its own backing file, nor below that: creating
 * it would destroy that data.  Returns -1 with the error set.
 */
static int
check_is_not_below (const struct chain *c, const struct chain_options *options)
{
  const char *file = options->file;
  struct storage *s;
  bool same = false;
  unsigned i;
  int r = 0;

  if (c->nr == 1)
    return 0;
  s = options->far != NULL ? options->far
    : storage_open (file, &options->nbd);
  if (s == NULL) /* else it is unknown what would be overwritten */
    return error_errno () == ENOENT ? 0 : -1;
  for (i = 1; i < c->nr; ++i)
    same |= storage_same (c->layer[i]->tables, s) ||
      storage_same (c->layer[i]->data_file, s);
  if (same) {
    error_set (EINVAL, "%s: can't be its own backing file", file);
    r = -1;
  }
  for (i = 1; r == 0 && i < c->nr; ++i)
    if (check_start (s, c->layer[i]->tables) == -1 ||
        check_start (s, c->layer[i]->data_file) == -1)
      r = -1;
  if (s != options->far)
    storage_close (s);
  return r;
}

struct image *
image_open_below (const struct image_options *options)
{
  struct image *im = image_with (options);

  if (im == NULL ||
      (chain_open_below (&im->chain, &options->chain, &im->shared) == 0 &&
       check_is_not_below (&im->chain, &options->chain) == 0))
    return im;
  (void) image_close (im);
  return NULL;
}

uint64_t
image_size_below (const struct image *below)
{
  return below->chain.nr == 1 ? 0 : below->chain.layer[1]->size;
}

const struct layer *
image_disk_below (const struct image *below)
{
  return below->chain.nr == 1 ? NULL : below->chain.layer[1];
}

struct image *
image_open_made (struct image *below, const struct image_options *options)
{
  return opened (below, chain_open_first (&below->chain, image_qcow2.format,
                                          &options->chain, &below->shared));
}

struct image *
image_open_backing (struct image *im, unsigned above)
{
  const struct chain *c = &im->chain;
  struct image *b = calloc (1, sizeof *b);

  if (b == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  epoch_init (&b->epoch);
  gate_init (&b->gate);
  pthread_rwlock_init (&b->snapshots_lock, NULL);
  pthread_mutex_init (&b->writer_lock, NULL);
  b->borrows = true;
  b->check_memory = im->check_memory;
  b->shared = im->shared;
  b->chain.force_share = c->force_share;
  b->chain.locking = c->locking;
  b->chain.nr = c->nr - above;
  memcpy (b->chain.layer, c->layer + above,
          b->chain.nr * sizeof c->layer[0]);
  b->kind = find_kind (b->chain.layer[0]);
  if (b->kind == NULL)
    error_set (ENOTSUP, "%s: it is no image but a %s file",
               image_storage (b)->name, b->chain.layer[0]->format->name);
  else if (b->kind->opened (b) == 0)
    return b;
  (void) image_close (b);
  return NULL;
}

void
image_is_encrypted (const struct image *im, bool *image, bool *backing)
{
  unsigned i;

  *image = im->chain.layer[0] != NULL && im->chain.layer[0]->encrypted;
  *backing = false;
  for (i = 1; i < im->chain.nr; ++i)
    *backing |= im->chain.layer[i]->encrypted;
}

struct image *
image_open_encrypted (struct storage *const *storages, unsigned nr,
                      uint64_t cache_size,
                      const struct passphrases *passphrases)
{
  struct image *im = image_new (cache_size, 0);
  unsigned i;

  if (im == NULL) {
    for (i = 0; i < nr; ++i)
      storage_close (storages[i]);
    return NULL;
  }
  im->shared.passphrases = passphrases;
  return opened (im, chain_open_storages (&im->chain, image_qcow2.format,
                                          storages, nr, &im->shared));
}

struct image *
image_open_storages (struct storage *const *storages, unsigned nr,
                     uint64_t cache_size)
{
  return image_open_encrypted (storages, nr, cache_size, NULL);
}

struct image *
image_open_storage (struct storage *s, uint64_t cache_size)
{
  return image_open_storages (&s, 1, cache_size);
}

void
image_hide_places (struct image *im)
{
  unsigned i;

  for (i = 0; i < im->chain.nr; ++i) {
    const struct layer *l = im->chain.layer[i];

    debug_message ("%s: called by its name alone from now on", l->tables->name);
    storage_hide_place (l->tables);
    if (l->data_file != l->tables)
      debug_message ("%s: likewise", l->data_file->name);
    storage_hide_place (l->data_file);
    storage_hide_place (l->data);
  }
}

int
image_close_but_file (struct image *im, struct storage **file)
{
  bool no_leaks;
  int r = 0;

  no_leaks = leaks_stop (im->leaks) || im->no_leaks;
  image_takes_free (im->takes);
  image_points_close (im);
  if (im->writer != NULL)
    r = im->kind->close_writer (im->writer, no_leaks);
  snapshots_free (&im->snapshots);
  *file = NULL;
  if (!im->borrows) {
    *file = chain_close_but_first (&im->chain);
    codec_pool_free (im->shared.codecs);
    cluster_cache_free (im->shared.clusters);
    cache_free (im->shared.cache);
  }
  pthread_mutex_destroy (&im->writer_lock);
  pthread_rwlock_destroy (&im->snapshots_lock);
  gate_destroy (&im->gate);
  epoch_destroy (&im->epoch);
  free (im);
  return r;
}

int
image_close (struct image *im)
{
  struct storage *file;
  int r;

  if (im == NULL)
    return 0;
  r = image_close_but_file (im, &file);
  storage_close (file);
  return r;
}

void
image_detect_zeroes (struct image *im, enum detect_zeroes detect)
{
  im->detect_zeroes = detect;
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
    const uint64_t now = im->kind->taken (im->writer) + 1;

    if (failed && atomic_exchange (&im->full, now) != 0)
      error_set_repeated ();
    else if (failed)
      advise (ADVICE_NO_SPACE);
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
  const uint64_t mask = im->cluster_size - 1;
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
      ? im->kind->zero (im->writer, n, offset,
                        im->detect_zeroes == DETECT_ZEROES_UNMAP
                        ? IMAGE_MAY_TRIM : 0)
      : im->kind->write (im->writer, p, n, offset, 0);

    if (r == -1)
      return -1;
    p += n;
    offset.v += n;
    count -= n;
  }
  return 0;
}

static int
write_request (struct image *im, const void *buf, uint64_t count,
               struct guest_off offset, unsigned flags)
{
  if (im->detect_zeroes == DETECT_ZEROES_OFF)
    return im->kind->write (im->writer, buf, count, offset, flags);
  if (write_or_zero (im, buf, count, offset) == -1)
    return -1;
  return flags & IMAGE_FUA ? im->kind->flush (im->writer) : 0;
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
  const int r = im->kind->zero (im->writer, count, offset, flags);

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_trim (struct image *im, uint64_t count, struct guest_off offset,
            unsigned flags)
{
  const unsigned token = gate_enter (&im->gate);
  const int r = im->kind->trim (im->writer, count, offset, flags);

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_flush (struct image *im)
{
  void *w = im->writer;
  unsigned token;
  int r;

  if (w == NULL)
    return 0;
  token = gate_enter (&im->gate);
  r = im->kind->flush (w);
  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

uint32_t
image_preferred_size (const struct image *im)
{
  return im->preferred_size;
}
