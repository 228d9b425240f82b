/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check-refcounts.h"
#include "error.h"

/* Nothing of a file can be read beyond this, since offsets are signed. */
#define MAX_READABLE (INT64_MAX - (INT64_C (1) << 30))

#define SECTOR 512

int
check_refcounts_open (struct check_refcounts *r, struct storage *storage,
                      const struct header *h)
{
  const size_t bytes = h->refcount_table_clusters << h->cluster_bits;
  size_t i;

  r->storage = storage;
  r->order = h->refcount_order;
  r->cluster_bits = h->cluster_bits;
  r->block_bits = h->cluster_bits + 3 - h->refcount_order;
  r->offset = h->refcount_table_offset;
  r->entries = bytes / 8;
  r->table = malloc (bytes);
  if (r->table == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  if (storage_read (storage, r->table, bytes, r->offset) == -1) {
    check_refcounts_close (r);
    return -1;
  }
  for (i = 0; i < r->entries; ++i)
    r->table[i] = be64toh (r->table[i]);
  return 0;
}

void
check_refcounts_close (struct check_refcounts *r)
{
  free (r->table);
  r->table = NULL;
  r->entries = 0;
}

static bool
is_readable (const struct check_refcounts *r, uint64_t block)
{
  return (block & ((UINT64_C (1) << r->cluster_bits) - 1)) == 0 &&
    block <= MAX_READABLE;
}

bool
check_refcount_readable (const struct check_refcounts *r, uint64_t cluster)
{
  return is_readable (r, check_block_offset (r, cluster >> r->block_bits));
}

/* Where the refcounts from a cluster on are; false if they can't be read, or
 * there are none.
 */
static bool
find_place (const struct check_refcounts *r, uint64_t cluster,
            struct host_off *place)
{
  const uint64_t block = check_block_offset (r, cluster >> r->block_bits);
  const uint64_t i = cluster & ((UINT64_C (1) << r->block_bits) - 1);

  place->v = block + check_refcounts_bytes (r, i);
  return block != 0 && is_readable (r, block);
}

static bool
is_zero (const void *buf, size_t count)
{
  const char *p = buf;

  return count == 0 || (p[0] == 0 && memcmp (p, p + 1, count - 1) == 0);
}

int
check_refcounts_read (const struct check_refcounts *r, uint64_t first,
                      uint64_t n, void *buf)
{
  uint8_t *p = buf;
  int any = 0;

  while (n > 0) {
    const uint64_t rest = check_block_rest (r, first);
    const uint64_t piece = n < rest ? n : rest;
    const size_t bytes = check_refcounts_bytes (r, piece);
    struct host_off place;

    if (!find_place (r, first, &place))
      memset (p, 0, bytes);
    else {
      if (storage_read (r->storage, p, bytes, place) == -1)
        return -1;
      if (!is_zero (p, bytes))
        any = 1;
    }
    p += bytes;
    first += piece;
    n -= piece;
  }
  return any;
}

int
check_refcounts_write (const struct check_refcounts *r, uint64_t first,
                       uint64_t n, const void *old, const void *buf)
{
  const uint8_t *p = buf, *q = old;

  while (n > 0) {
    const uint64_t rest = check_block_rest (r, first);
    const uint64_t piece = n < rest ? n : rest;
    const size_t bytes = check_refcounts_bytes (r, piece);
    struct host_off place;

    if (find_place (r, first, &place) &&
        check_write_changed (r->storage, place, q, p, bytes) == -1)
      return -1;
    p += bytes;
    q += bytes;
    first += piece;
    n -= piece;
  }
  return 0;
}

/* The bytes from at on that are in its sector, and in the range up to end. */
static size_t
sector_rest (uint64_t at, uint64_t end)
{
  const uint64_t rest = SECTOR - at % SECTOR;

  return rest < end - at ? rest : end - at;
}

int
check_write_changed (struct storage *s, struct host_off offset,
                     const void *old, const void *buf, size_t count)
{
  const uint64_t end = offset.v + count;
  const uint8_t *p = buf, *q = old;
  uint64_t at = offset.v, from = at;

  /* [from, at) differs, and is not written yet. */
  while (at < end) {
    const size_t n = sector_rest (at, end);
    const size_t i = at - offset.v;
    const bool differs = memcmp (p + i, q + i, n) != 0;

    if (!differs) {
      if (at > from &&
          storage_write (s, p + (from - offset.v), at - from,
                         (struct host_off) { from }) == -1)
        return -1;
      from = at + n;
    }
    at += n;
  }
  if (at > from)
    return storage_write (s, p + (from - offset.v), at - from,
                          (struct host_off) { from });
  return 0;
}
