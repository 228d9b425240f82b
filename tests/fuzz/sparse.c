/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "sparse.h"

struct sparse_storage {
  struct storage storage;
  struct sparse *s;
};

/* The first block from this number on. */
static unsigned
find (const struct sparse *s, uint64_t number)
{
  unsigned low = 0, high = s->nr;

  while (low < high) {
    const unsigned middle = (low + high) / 2;

    if (s->number[middle] < number)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

/* NULL: there is no space for one. */
static uint8_t *
make_block (struct sparse *s, uint64_t number)
{
  const unsigned i = find (s, number);

  if (i < s->nr && s->number[i] == number)
    return s->data[i];
  if (s->nr == SPARSE_MAX_BLOCKS)
    return NULL;
  memmove (s->number + i + 1, s->number + i, (s->nr - i) * sizeof *s->number);
  memmove (s->data + i + 1, s->data + i, (s->nr - i) * sizeof *s->data);
  s->nr++;
  s->number[i] = number;
  s->data[i] = calloc (1, SPARSE_BLOCK);
  if (s->data[i] == NULL)
    abort ();
  return s->data[i];
}

/* Returns how many bytes there was space for. */
static size_t
put (struct sparse *s, uint64_t offset, const uint8_t *buf, size_t count)
{
  size_t done = 0;

  while (done < count) {
    const uint64_t at = offset + done;
    const size_t rest = SPARSE_BLOCK - at % SPARSE_BLOCK;
    const size_t n = rest < count - done ? rest : count - done;
    uint8_t *block = make_block (s, at / SPARSE_BLOCK);

    if (block == NULL)
      break;
    memcpy (block + at % SPARSE_BLOCK, buf + done, n);
    done += n;
  }
  if (offset + done > s->size)
    s->size = offset + done;
  return done;
}

void
sparse_put (struct sparse *s, uint64_t offset, const void *buf, size_t count)
{
  (void) put (s, offset, buf, count);
}

void
sparse_free (struct sparse *s)
{
  while (s->nr > 0)
    free (s->data[--s->nr]);
}

static struct sparse *
of (struct storage *storage)
{
  struct sparse *s = ((struct sparse_storage *) storage)->s;

  s->calls++;
  return s;
}

static ssize_t
sparse_pread (struct storage *storage, void *buf, size_t count,
              uint64_t offset)
{
  struct sparse *s = of (storage);
  uint8_t *p = buf;
  size_t done = 0;
  unsigned i;

  if (offset >= s->size)
    return 0;
  if (count > s->size - offset)
    count = s->size - offset;
  s->bytes += count;
  i = find (s, offset / SPARSE_BLOCK);
  while (done < count) {
    const uint64_t at = offset + done;
    const size_t rest = SPARSE_BLOCK - at % SPARSE_BLOCK;
    const size_t n = rest < count - done ? rest : count - done;

    if (i < s->nr && s->number[i] == at / SPARSE_BLOCK)
      memcpy (p + done, s->data[i++] + at % SPARSE_BLOCK, n);
    else
      memset (p + done, 0, n);
    done += n;
  }
  return count;
}

static uint64_t
sparse_hole (struct storage *storage, uint64_t offset)
{
  const struct sparse *s = of (storage);
  const unsigned i = find (s, offset / SPARSE_BLOCK);

  if (i == s->nr)
    return s->size - offset;
  return s->number[i] <= offset / SPARSE_BLOCK ? 0
    : s->number[i] * SPARSE_BLOCK - offset;
}

static int
sparse_extent (struct storage *storage, uint64_t offset, uint64_t count,
               bool *hole, uint64_t *length)
{
  const uint64_t n = sparse_hole (storage, offset);

  *hole = n > 0;
  *length = n > 0 ? n : SPARSE_BLOCK - offset % SPARSE_BLOCK;
  if (*length > count)
    *length = count;
  return 0;
}

static ssize_t
sparse_pwritev (struct storage *storage, const struct iovec *iov, int nr,
                uint64_t offset, bool durable)
{
  struct sparse *s = of (storage);
  size_t done = 0, n;

  (void) durable;
  for (; nr > 0; --nr, ++iov) {
    n = put (s, offset + done, iov->iov_base, iov->iov_len);
    done += n;
    if (n < iov->iov_len)
      break;
  }
  s->bytes += done;
  if (done > 0)
    return done;
  errno = ENOSPC;
  return -1;
}

static int
sparse_flush (struct storage *storage)
{
  (void) of (storage);
  return 0;
}

static int
sparse_resize (struct storage *storage, uint64_t size)
{
  of (storage)->size = size;
  return 0;
}

static void
sparse_close (struct storage *storage)
{
  free (storage);
}

static const struct storage_ops ops = {
  .pread = sparse_pread,
  .extent = sparse_extent,
  .hole = sparse_hole,
  .pwritev = sparse_pwritev,
  .flush = sparse_flush,
  .resize = sparse_resize,
  .close = sparse_close,
};

struct storage *
sparse_open (struct sparse *s)
{
  struct sparse_storage *p = calloc (1, sizeof *p);

  if (p == NULL || (p->storage.name = strdup ("input")) == NULL)
    abort ();
  p->storage.ops = &ops;
  p->storage.size = s->size;
  p->s = s;
  return &p->storage;
}
