/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/bitmap-set.h"
#include "qcow2/bitmap-bits.h"
#include "qcow2/bitmap-directory.h"
#include "qcow2/bitmap-header.h"

static int
no_memory (const struct bitmap_set *b)
{
  error_set (ENOMEM, "%s: out of memory", b->e->storage->name);
  return -1;
}

/* Whether it is there in the end. */
static inline bool
has_table (const struct bitmap_member *m)
{
  return !m->removed && m->changed;
}

/* ------------------------------------------------------------- what changes
 */

/* Bits that are all the same need no cluster. */
static void
simplify (struct bitmap_set *b, struct bitmap_member *m)
{
  const uint64_t per_part = b->e->header.cluster_size * 8;
  const uint64_t nr_bits = bitmap_nr_bits (b->disk_size, m->granularity_bits);
  uint32_t i;

  for (i = 0; i < m->nr_parts; ++i) {
    const uint64_t left = nr_bits - i * per_part;
    const uint64_t nr = left < per_part ? left : per_part;

    if (m->bits[i] == NULL || bitmap_same (m->bits[i], 0, nr) < nr)
      continue;
    m->now[i] = bitmap_bit (m->bits[i], 0) ? QCOW2_BITMAP_ALL_ONES : 0;
    bitmap_set_forget_bits (b, m, i);
  }
}

/* How many there will be, and the bytes of their directory. */
static struct bitmap_header
count_members (const struct bitmap_set *b)
{
  struct bitmap_header h = { .nr = 0 };
  size_t i;

  for (i = 0; i < b->nr; ++i) {
    if (b->member[i].removed)
      continue;
    h.nr++;
    h.directory_bytes += b->member[i].entry_bytes;
  }
  return h;
}

static uint64_t
count_clusters (const struct bitmap_set *b, const struct bitmap_member *m)
{
  uint64_t nr = edit_clusters (b->e, m->nr_parts * sizeof m->now[0]);
  uint32_t i;

  for (i = 0; i < m->nr_parts; ++i)
    nr += m->bits[i] != NULL;
  return nr;
}

uint64_t
bitmap_set_bytes (const struct bitmap_set *b)
{
  uint64_t nr = edit_clusters (b->e, count_members (b).directory_bytes);
  size_t i;

  for (i = 0; i < b->nr; ++i)
    if (has_table (&b->member[i]))
      nr += count_clusters (b, &b->member[i]);
  return b->changed ? nr << b->e->header.cluster_bits : 0;
}

/* ---------------------------------------------------------------- the header
 */

/* Have e->sector lead to a directory, in a header of so many bytes. */
static int
put_header (const struct bitmap_set *b, const struct bitmap_header *directory,
            uint8_t *buf, size_t len, bool try)
{
  struct edit *e = b->e;
  struct bitmap_header_name moved;
  struct host_off hint;

  if (storage_read (e->storage, buf, len, (struct host_off) { 0 }) == -1)
    return -1;
  memcpy (buf, e->sector, sizeof e->sector);
  if (bitmap_header_put (e->storage->name, &e->header, buf, len, directory,
                         &moved, &hint) == -1)
    return -1;
  if (try)
    return 0;
  if (moved.at.v != 0 &&
      storage_write (e->storage, buf + moved.at.v, moved.bytes,
                     moved.at) == -1)
    return -1;
  memcpy (e->sector, buf, sizeof e->sector);
  e->hint = hint;
  return 0;
}

static int
lead_to (const struct bitmap_set *b, const struct bitmap_header *directory,
         bool try)
{
  const size_t len = b->e->header.cluster_size;
  uint8_t *buf = malloc (len);
  int r;

  if (buf == NULL)
    return no_memory (b);
  r = put_header (b, directory, buf, len, try);
  free (buf);
  return r;
}

/* ------------------------------------------------------------------ planning
 */

int
bitmap_set_plan (struct bitmap_set *b)
{
  const struct bitmap_header h = count_members (b);
  struct refs refs;
  size_t i;
  int r;

  if (!b->changed)
    return 0;
  for (i = 0; i < b->nr; ++i)
    if (has_table (&b->member[i]))
      simplify (b, &b->member[i]);
  if (bitmap_directory_check (b->e->storage->name, h.nr,
                              h.directory_bytes) == -1 || lead_to (b, &h, true) == -1 ||
      edit_open_refs (b->e, &refs) == -1)
    return -1;
  r = bitmap_set_drop (b, &refs);
  refs_close (&refs);
  return r;
}

/* ------------------------------------------------------------------- filling
 */

/* Write new bits from *at on, and a table of them behind them. */
static int
fill_member (const struct bitmap_set *b, struct bitmap_member *m,
             struct host_off *at)
{
  const uint64_t cluster = b->e->header.cluster_size;
  struct edit_space table = { .bytes = m->nr_parts * sizeof (uint64_t) };
  uint64_t *words = malloc (table.bytes + 1);
  uint32_t i;
  int r = 0;

  if (words == NULL)
    return no_memory (b);
  for (i = 0; r == 0 && i < m->nr_parts; ++i) {
    words[i] = htobe64 (m->bits[i] != NULL ? at->v : m->now[i]);
    if (m->bits[i] == NULL)
      continue;
    r = storage_write (b->e->storage, m->bits[i], cluster, *at);
    at->v += cluster;
  }
  table.at = *at;
  if (r == 0)
    r = edit_fill (b->e, &table, words);
  free (words);
  put_be64 (m->entry + QCOW2_BITMAP_FIELD_TABLE, table.at.v);
  put_be32 (m->entry + QCOW2_BITMAP_FIELD_TABLE_SIZE, m->nr_parts);
  at->v += edit_clusters (b->e, table.bytes) * cluster;
  return r;
}

static int
fill_directory (const struct bitmap_set *b, const struct bitmap_header *h)
{
  const struct edit_space space = { h->directory_bytes, h->directory };
  uint8_t *bytes, *p;
  size_t i;
  int r;

  if (h->nr == 0)
    return 0;
  p = bytes = malloc (h->directory_bytes);
  if (bytes == NULL)
    return no_memory (b);
  for (i = 0; i < b->nr; ++i) {
    const struct bitmap_member *m = &b->member[i];

    if (m->removed)
      continue;
    memcpy (p, m->entry, m->entry_bytes);
    p += m->entry_bytes;
  }
  r = edit_fill (b->e, &space, bytes);
  free (bytes);
  return r;
}

int
bitmap_set_fill (struct bitmap_set *b, struct host_off at)
{
  struct bitmap_header h = count_members (b);
  size_t i;

  for (i = 0; i < b->nr; ++i)
    if (has_table (&b->member[i]) && fill_member (b, &b->member[i], &at) == -1)
      return -1;
  if (h.nr > 0)
    h.directory = at;
  return fill_directory (b, &h) == -1 || storage_flush (b->e->storage) == -1
    ? -1 : lead_to (b, &h, false);
}

/* ------------------------------------------------------------------ dropping
 */

/* The old table, and those of its clusters that the new one lacks. */
static int
drop_member (const struct bitmap_set *b, const struct bitmap_member *m,
             struct refs *refs)
{
  const uint64_t cluster = b->e->header.cluster_size;
  uint32_t i;

  for (i = 0; i < m->nr_old; ++i) {
    const bool kept = !m->removed && i < m->nr_parts && m->bits[i] == NULL &&
      m->now[i] == m->old[i];

    if (bitmap_is_cluster (m->old[i]) && !kept &&
        edit_drop (b->e, refs, (struct host_off) { m->old[i] }, cluster) == -1)
      return -1;
  }
  return edit_drop (b->e, refs, m->table, m->nr_old * sizeof m->old[0]);
}

int
bitmap_set_drop (const struct bitmap_set *b, struct refs *refs)
{
  size_t i;

  for (i = 0; i < b->nr; ++i) {
    const struct bitmap_member *m = &b->member[i];

    if (m->old != NULL && (m->removed || m->changed) &&
        drop_member (b, m, refs) == -1)
      return -1;
  }
  return b->directory_bytes == 0 ? 0
    : edit_drop (b->e, refs, b->e->header.bitmap_directory,
                 b->directory_bytes);
}
