/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/check/refcounts.h"

/* Files can't be read beyond this, since offsets are signed. */
#define MAX_READABLE (INT64_MAX - (INT64_C (1) << 30))

#define SECTOR 512

/* ------------------------------------------------------------------- table */

static int
no_memory (void)
{
  error_set (ENOMEM, "out of memory");
  return -1;
}

/* Record the nonzero entries among words of the table just read, from the
 * index first on.
 */
static int
note_used (struct check_refcounts *r, size_t first, size_t nr,
           size_t *capacity)
{
  size_t i;

  for (i = first; i < first + nr; ++i) {
    r->table[i] = be64toh (r->table[i]);
    if (r->table[i] == 0)
      continue;
    if (r->nr_used == *capacity) {
      uint32_t *p = realloc (r->used, (2 * *capacity + 64) * sizeof *p);

      if (p == NULL)
        return no_memory ();
      r->used = p;
      *capacity = 2 * *capacity + 64;
    }
    r->used[r->nr_used++] = i;
  }
  return 0;
}

#define TABLE_PIECE 65536

static int
read_table (struct check_refcounts *r, size_t bytes)
{
  size_t at, n, capacity = 0;

  for (at = 0; at < bytes; at += n) {
    const struct host_off place = { r->offset.v + at };

    n = check_hole (&r->holes, place.v, bytes - at) & ~(size_t) 7;
    if (n > 0)
      continue;
    n = bytes - at < TABLE_PIECE ? bytes - at : TABLE_PIECE;
    if (storage_read (r->storage, r->table + at / 8, n, place) == -1 ||
        note_used (r, at / 8, n / 8, &capacity) == -1)
      return -1;
  }
  return 0;
}

/* A table entry and its block. */
struct user {
  uint64_t block;
  uint32_t index;
};

static int
compare_users (const void *a, const void *b)
{
  const struct user *x = a, *y = b;

  if (x->block != y->block)
    return x->block < y->block ? -1 : 1;
  return x->index < y->index ? -1 : x->index > y->index;
}

static int
compare_indices (const void *a, const void *b)
{
  const uint32_t *x = a, *y = b;

  return *x < *y ? -1 : *x > *y;
}

/* Find the entries that share the block of an earlier one, in ascending order.
 * Returns how many.
 */
static size_t
find_later (struct user *user, size_t nr, uint32_t *later)
{
  size_t i, found = 0;

  if (nr > 1)
    qsort (user, nr, sizeof *user, compare_users);
  for (i = 1; i < nr; ++i)
    if (user[i].block != 0 && user[i].block == user[i-1].block)
      later[found++] = user[i].index;
  if (found > 1)
    qsort (later, found, sizeof *later, compare_indices);
  return found;
}

static void
ignore (struct check_refcounts *r, const uint32_t *later, size_t nr)
{
  size_t i, kept = 0;

  for (i = 0; i < nr; ++i)
    r->table[later[i]] = 0;
  for (i = 0; i < r->nr_used; ++i)
    if (r->table[r->used[i]] != 0)
      r->used[kept++] = r->used[i];
  r->nr_used = kept;
  r->ignored = nr;
}

static int
find_twice (struct check_refcounts *r)
{
  struct user *user = malloc ((r->nr_used + 1) * sizeof *user);
  uint32_t *later = malloc ((r->nr_used + 1) * sizeof *later);
  size_t i, nr;
  int ret = 0;

  if (user == NULL || later == NULL)
    ret = no_memory ();
  else {
    for (i = 0; i < r->nr_used; ++i)
      user[i] = (struct user) { check_block_offset (r, r->used[i]),
                                r->used[i] };
    nr = find_later (user, r->nr_used, later);
    r->twice = nr > 0;
    if (nr > CHECK_MAX_TWICE)
      ignore (r, later + CHECK_MAX_TWICE, nr - CHECK_MAX_TWICE);
  }
  free (user);
  free (later);
  return ret;
}

int
check_refcounts_open (struct check_refcounts *r, struct storage *storage,
                      const struct header *h)
{
  const size_t bytes = h->refcount_table_clusters << h->cluster_bits;

  memset (r, 0, offsetof (struct check_refcounts, read));
  r->storage = storage;
  r->order = h->refcount_order;
  r->cluster_bits = h->cluster_bits;
  r->block_bits = h->cluster_bits + 3 - h->refcount_order;
  r->offset = h->refcount_table_offset;
  r->entries = bytes / 8;
  check_holes_init (&r->holes, storage);
  r->table = calloc (1, bytes + 1);
  if (r->table == NULL)
    return no_memory ();
  if (read_table (r, bytes) == 0 && find_twice (r) == 0)
    return 0;
  check_refcounts_close (r);
  return -1;
}

void
check_refcounts_close (struct check_refcounts *r)
{
  free (r->table);
  free (r->used);
  r->table = NULL;
  r->used = NULL;
  r->entries = 0;
  r->nr_used = 0;
}

/* --------------------------------------------------------------- refcounts */

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

/* The place of the refcounts from a cluster on; false if they can't be looked
 * up, or there are none.
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

/* Whether these bytes of the file are in the buffer. */
static inline bool
is_buffered (const struct check_refcounts *r, uint64_t at, size_t bytes)
{
  return r->read_bytes > 0 && at >= r->read_at &&
    at - r->read_at < r->read_bytes &&
    bytes <= r->read_bytes - (at - r->read_at);
}

/* The position in used of the first entry from this index on. */
static size_t
find_used (const struct check_refcounts *r, uint64_t index)
{
  size_t low = 0, high = r->nr_used;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (r->used[middle] < index)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

uint64_t
check_refcounts_next (struct check_refcounts *r, uint64_t cluster)
{
  size_t i = find_used (r, cluster >> r->block_bits);

  for (; i < r->nr_used; ++i) {
    const uint64_t start = (uint64_t) r->used[i] << r->block_bits;
    const uint64_t from = cluster > start ? cluster : start;
    struct host_off place;
    uint64_t rest, n;

    if (!find_place (r, from, &place))
      continue;
    if (is_buffered (r, place.v, 1))
      return from;
    rest = check_refcounts_bytes (r, check_block_rest (r, from));
    n = check_hole (&r->holes, place.v, rest);
    if (n < rest)
      return from + (8 * n >> r->order);
  }
  return UINT64_MAX;
}

/* Read bytes of a block through the buffer.  Holes that are in there are read, too,
 * which is quicker than to look for each.
 */
static int
read_bytes (struct check_refcounts *r, uint8_t *buf, size_t bytes,
            struct host_off place)
{
  const uint64_t at = place.v & -(uint64_t) sizeof r->read;

  if (is_buffered (r, place.v, bytes)) {
    memcpy (buf, r->read + (place.v - r->read_at), bytes);
    return 0;
  }
  if (check_hole (&r->holes, place.v, bytes) == bytes) {
    memset (buf, 0, bytes);
    return 0;
  }
  if (place.v + bytes > at + sizeof r->read) /* more than that */
    return storage_read (r->storage, buf, bytes, place);
  r->read_bytes = 0;
  if (storage_read (r->storage, r->read, sizeof r->read,
                    (struct host_off) { at }) == -1)
    return -1;
  r->read_at = at;
  r->read_bytes = sizeof r->read;
  memcpy (buf, r->read + (place.v - at), bytes);
  return 0;
}

int
check_refcounts_read (struct check_refcounts *r, uint64_t first,
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
      if (read_bytes (r, p, bytes, place) == -1)
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
check_refcounts_write (struct check_refcounts *r, uint64_t first,
                       uint64_t n, const void *old, const void *buf)
{
  const uint8_t *p = buf, *q = old;

  check_refcounts_forget (r);
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

/* How many bytes from at on are in the same sector and before end. */
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

  /* [from, at) differs and is yet to be written. */
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
