/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/inflight.h"
#include "storage/crypt.h"

struct crypt {
  struct storage storage;
  struct storage_ops ops; /* without those that the inner one has not */
  struct storage *inner;
  struct sectors *sectors;
  struct inflight changing; /* ranges of sectors: E2 */

  /* Writes of parts of sectors that have begun, and that have ended: E3. */
  _Atomic uint64_t begun, ended;
};

static struct crypt *
crypt_of (struct storage *s)
{
  return (struct crypt *) s;
}

static inline uint64_t
sector_start (uint64_t offset)
{
  return offset & -(uint64_t) CRYPTO_SECTOR;
}

static inline uint64_t
sector_end (uint64_t offset)
{
  return sector_start (offset + CRYPTO_SECTOR - 1);
}

static inline bool
is_whole (uint64_t value)
{
  return value % CRYPTO_SECTOR == 0;
}

static void
enter_sectors (struct crypt *c, uint64_t from, uint64_t to,
               struct inflight_range *range)
{
  range->first = from / CRYPTO_SECTOR;
  range->last = (to - 1) / CRYPTO_SECTOR;
  inflight_enter (&c->changing, range);
}

/* ----------------------------------------------------------- whole sectors */

/* Read all of it; what is behind the end is zeros, enciphered or not: nobody
 * has written it.  Returns -1 with errno set.
 */
static int
read_enciphered (struct crypt *c, uint8_t *buf, size_t count, uint64_t offset)
{
  while (count > 0) {
    const ssize_t r = c->inner->ops->pread (c->inner, buf, count, offset);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -1;
    if (r == 0) {
      memset (buf, 0, count);
      break;
    }
    buf += r;
    offset += r;
    count -= r;
  }
  return 0;
}

static int
read_whole (struct crypt *c, uint8_t *buf, size_t count, uint64_t offset,
            uint64_t distance)
{
  if (read_enciphered (c, buf, count, offset) == -1)
    return -1;
  return sectors_decipher (c->sectors, buf, buf, count,
                           (offset + distance) / CRYPTO_SECTOR);
}

/* E3. */
static int
read_in_peace (struct crypt *c, uint8_t *buf, size_t count, uint64_t offset,
               uint64_t distance)
{
  const uint64_t begun = atomic_load (&c->begun);
  struct inflight_range range;
  int r;

  if (atomic_load (&c->ended) == begun) {
    r = read_whole (c, buf, count, offset, distance);
    if (r == -1 || atomic_load (&c->begun) == begun)
      return r;
  }
  enter_sectors (c, offset, offset + count, &range);
  r = read_whole (c, buf, count, offset, distance);
  inflight_leave (&c->changing, &range);
  return r;
}

/* The inner storage reaches up to end at least from now on. */
static void
reach_inner (struct crypt *c, uint64_t end)
{
  uint64_t size = atomic_load (&c->inner->size);

  while (size < end &&
         !atomic_compare_exchange_weak (&c->inner->size, &size, end))
    ;
}

static int
write_enciphered (struct crypt *c, uint8_t *buf, size_t count, uint64_t offset,
                  bool durable)
{
  while (count > 0) {
    const struct iovec iov = { .iov_base = buf, .iov_len = count };
    const ssize_t r = c->inner->ops->pwritev (c->inner, &iov, 1, offset,
                                              durable);

    if (r == -1 && errno == EINTR)
      continue;
    if (r == -1)
      return -1;
    buf += r;
    offset += r;
    count -= r;
    reach_inner (c, offset);
  }
  return 0;
}

/* ----------------------------------------------------------------- reading */

/* Read what is not whole sectors, or some of it.  Returns how much, or -1 with
 * errno set.
 */
static ssize_t
read_parts (struct crypt *c, void *buf, size_t count, uint64_t offset,
            uint64_t distance)
{
  const uint64_t start = sector_start (offset);
  uint64_t end = sector_end (offset + count);
  uint8_t *sectors;
  int r;

  if (end - start > CRYPT_MAX_BYTES)
    end = start + CRYPT_MAX_BYTES;
  if (count > end - offset)
    count = end - offset;
  sectors = malloc (end - start);
  if (sectors == NULL)
    return -1;
  r = read_in_peace (c, sectors, end - start, start, distance);
  if (r == 0)
    memcpy (buf, sectors + (offset - start), count);
  free (sectors);
  return r == -1 ? -1 : (ssize_t) count;
}

static ssize_t
read_some (struct crypt *c, void *buf, size_t count, uint64_t offset,
           uint64_t distance)
{
  if (c->sectors == NULL) {
    errno = EACCES;
    return -1;
  }
  if (!is_whole (offset) || !is_whole (count))
    return read_parts (c, buf, count, offset, distance);
  return read_in_peace (c, buf, count, offset, distance) == -1
    ? -1 : (ssize_t) count;
}

static ssize_t
crypt_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  return read_some (crypt_of (s), buf, count, offset, 0);
}

static void
crypt_prefetch (struct storage *s, uint64_t offset, uint64_t count)
{
  storage_prefetch (crypt_of (s)->inner, (struct host_off) { offset }, count);
}

/* ----------------------------------------------------------------- writing */

/* A write, of some of what was asked for. */
struct crypt_write {
  struct crypt *c;
  const struct iovec *iov;
  size_t count;
  uint64_t offset, distance;
  uint64_t start, end; /* of the sectors */
  uint8_t *sectors;    /* what becomes of them */
};

static uint64_t
first_number (const struct crypt_write *w)
{
  return (w->start + w->distance) / CRYPTO_SECTOR;
}

/* Read and decipher those sectors that are written in part: the first and the
 * last.
 */
static int
read_parts_kept (const struct crypt_write *w)
{
  const uint64_t end = w->offset + w->count, last = w->end - CRYPTO_SECTOR;
  const bool first_in_part = !is_whole (w->offset) ||
    w->count < CRYPTO_SECTOR;

  if (first_in_part && read_whole (w->c, w->sectors, CRYPTO_SECTOR, w->start,
                                   w->distance) == -1)
    return -1;
  if (is_whole (end) || (first_in_part && last == w->start))
    return 0;
  return read_whole (w->c, w->sectors + (last - w->start), CRYPTO_SECTOR, last,
                     w->distance);
}

static void
gather_pieces (const struct crypt_write *w)
{
  uint8_t *to = w->sectors + (w->offset - w->start);
  const struct iovec *iov = w->iov;
  size_t left = w->count;

  for (; left > 0; ++iov) {
    const size_t n = iov->iov_len < left ? iov->iov_len : left;

    memcpy (to, iov->iov_base, n);
    to += n;
    left -= n;
  }
}

/* Whole sectors. */
static int
write_sectors_whole (struct crypt_write *w, bool durable)
{
  const uint8_t *in = w->sectors;
  struct inflight_range range;
  int r;

  if (w->iov[0].iov_len >= w->count) /* one piece needs no copy */
    in = w->iov[0].iov_base;
  else
    gather_pieces (w);
  if (sectors_encipher (w->c->sectors, in, w->sectors, w->count,
                        first_number (w)) == -1)
    return -1;
  enter_sectors (w->c, w->start, w->end, &range);
  r = write_enciphered (w->c, w->sectors, w->count, w->start, durable);
  inflight_leave (&w->c->changing, &range);
  return r;
}

static int
write_sectors_in_part (struct crypt_write *w, bool durable)
{
  const size_t bytes = w->end - w->start;
  struct inflight_range range;
  int r;

  enter_sectors (w->c, w->start, w->end, &range);
  r = read_parts_kept (w);
  if (r == 0) {
    gather_pieces (w);
    r = sectors_encipher (w->c->sectors, w->sectors, w->sectors, bytes,
                          first_number (w));
  }
  if (r == 0) {
    atomic_fetch_add (&w->c->begun, 1);
    r = write_enciphered (w->c, w->sectors, bytes, w->start, durable);
    atomic_fetch_add (&w->c->ended, 1);
  }
  inflight_leave (&w->c->changing, &range);
  return r;
}

static uint64_t
sum_of_pieces (const struct iovec *iov, int nr)
{
  uint64_t count = 0;

  while (nr > 0)
    count += iov[--nr].iov_len;
  return count;
}

static ssize_t
write_pieces (struct crypt *c, const struct iovec *iov, int nr, uint64_t offset,
              uint64_t distance, bool durable)
{
  const uint64_t start = sector_start (offset);
  const uint64_t most = CRYPT_MAX_BYTES - (offset - start);
  const uint64_t all = sum_of_pieces (iov, nr);
  struct crypt_write w = {
    .c = c, .iov = iov, .count = all < most ? all : most, .offset = offset,
    .distance = distance, .start = start,
  };
  int r;

  if (c->sectors == NULL) {
    errno = EACCES;
    return -1;
  }
  w.end = sector_end (offset + w.count);
  w.sectors = malloc (w.end - w.start);
  if (w.sectors == NULL)
    return -1;
  r = is_whole (offset) && is_whole (w.count)
    ? write_sectors_whole (&w, durable) : write_sectors_in_part (&w, durable);
  free (w.sectors);
  return r == -1 ? -1 : (ssize_t) w.count;
}

static ssize_t
crypt_pwritev (struct storage *s, const struct iovec *iov, int nr,
               uint64_t offset, bool durable)
{
  return write_pieces (crypt_of (s), iov, nr, offset, 0, durable);
}

/* ---------------------------------------------------------------- the rest */

static int
crypt_flush (struct storage *s)
{
  struct crypt *c = crypt_of (s);

  return c->inner->ops->flush (c->inner);
}

static void
crypt_identify (const struct storage *s, struct storage_identity *id)
{
  const struct crypt *c = (const struct crypt *) s;

  c->inner->ops->identify (c->inner, id);
}

static uint32_t
crypt_block_size (const struct storage *s)
{
  const uint32_t size =
    storage_block_size (((const struct crypt *) s)->inner);

  return size > CRYPTO_SECTOR ? size : CRYPTO_SECTOR;
}

static void
crypt_close (struct storage *s)
{
  struct crypt *c = crypt_of (s);

  sectors_free (c->sectors);
  inflight_destroy (&c->changing);
  free (c);
}

/* Locks and the like are the inner one's affair, and its owner's. */
static const struct storage_ops crypt_ops = {
  .pread = crypt_pread,
  .prefetch = crypt_prefetch,
  .pwritev = crypt_pwritev,
  .flush = crypt_flush,
  .identify = crypt_identify,
  .block_size = crypt_block_size,
  .close = crypt_close,
};

struct storage *
storage_crypt_new (struct storage *inner, struct sectors *sectors)
{
  struct crypt *c = calloc (1, sizeof *c);

  if (c != NULL)
    c->storage.name = strdup (inner->name);
  if (c == NULL || c->storage.name == NULL) {
    error_set (ENOMEM, "%s: out of memory", inner->name);
    free (c);
    sectors_free (sectors);
    return NULL;
  }
  c->ops = crypt_ops;
  if (inner->ops->identify == NULL)
    c->ops.identify = NULL;
  c->storage.ops = &c->ops;
  c->storage.size = INT64_MAX; /* E4: nothing is past the end */
  c->storage.holes_not_zero = true;
  c->storage.one_report = inner->one_report;
  c->inner = inner;
  c->sectors = sectors;
  inflight_init (&c->changing);
  return &c->storage;
}

bool
storage_crypt_is_locked (const struct storage *crypt)
{
  return ((const struct crypt *) crypt)->sectors == NULL;
}

/* -------------------------------------------------------------------- views */

static ssize_t
view_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  const struct crypt_view *v = (const struct crypt_view *) s;

  return read_some (crypt_of (v->crypt), buf, count, offset, v->distance);
}

static ssize_t
view_pwritev (struct storage *s, const struct iovec *iov, int nr,
              uint64_t offset, bool durable)
{
  const struct crypt_view *v = (const struct crypt_view *) s;

  return write_pieces (crypt_of (v->crypt), iov, nr, offset, v->distance,
                       durable);
}

static int
view_flush (struct storage *s)
{
  const struct crypt_view *v = (const struct crypt_view *) s;

  return crypt_flush (v->crypt);
}

static const struct storage_ops view_ops = {
  .pread = view_pread,
  .pwritev = view_pwritev,
  .flush = view_flush,
};

void
storage_crypt_view (struct crypt_view *view, struct storage *crypt,
                    uint64_t distance)
{
  *view = (struct crypt_view) {
    .storage = {
      .ops = &view_ops, .name = crypt->name, .size = INT64_MAX,
      .holes_not_zero = true, .one_report = crypt->one_report,
    },
    .crypt = crypt,
    .distance = distance,
  };
}
