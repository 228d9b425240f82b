/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "must-have.h"
#include "qed-image.h"
#include "random.h"

/* --------------------------------------------------------------- building */

void
qed_image_put (struct qed_image *q, uint64_t at, unsigned bytes,
               uint64_t value)
{
  unsigned i;

  for (i = 0; i < bytes; ++i)
    q->bytes[at + i] = value >> (8 * i);
}

uint64_t
qed_image_get (const uint8_t *bytes, uint64_t at, unsigned nr)
{
  uint64_t v = 0;
  unsigned i;

  for (i = 0; i < nr; ++i)
    v |= (uint64_t) bytes[at + i] << (8 * i);
  return v;
}

uint64_t
qed_image_grow (struct qed_image *q, uint64_t nr)
{
  const uint64_t at = q->size, size = at + nr * q->cluster_size;

  if (size > q->capacity) {
    q->capacity = size * 2;
    q->bytes = must_have (realloc (q->bytes, q->capacity));
  }
  memset (q->bytes + at, 0, size - at);
  q->size = size;
  return at;
}

void
qed_image_cut (struct qed_image *q, uint64_t bytes)
{
  q->size -= bytes;
  memset (q->bytes + q->size, 0, bytes);
}

void
qed_image_start (struct qed_image *q, uint64_t cluster_size,
                 uint32_t table_size, uint32_t header_size, uint64_t disk_size,
                 const char *backing)
{
  memset (q, 0, sizeof *q);
  q->cluster_size = cluster_size;
  q->table_bytes = table_size * cluster_size;
  q->disk_size = disk_size;
  q->l1_offset = header_size * cluster_size;
  (void) qed_image_grow (q, header_size + table_size);
  memcpy (q->bytes, "QED", 4);
  qed_image_put (q, 4, 4, cluster_size);
  qed_image_put (q, 8, 4, table_size);
  qed_image_put (q, 12, 4, header_size);
  qed_image_put (q, 40, 8, q->l1_offset);
  qed_image_put (q, 48, 8, disk_size);
  if (backing != NULL) {
    qed_image_put (q, 16, 8, 1 | 4);
    qed_image_put (q, 56, 4, 64);
    qed_image_put (q, 60, 4, strlen (backing));
    memcpy (q->bytes + 64, backing, strlen (backing));
  }
}

void
qed_image_free (struct qed_image *q)
{
  free (q->bytes);
}

uint64_t
qed_image_place (struct qed_image *q, uint64_t cluster)
{
  const uint64_t nr = q->table_bytes / 8;
  const uint64_t l1 = q->l1_offset + cluster / nr * 8;
  uint64_t table = qed_image_get (q->bytes, l1, 8);

  if (table == 0) {
    table = qed_image_grow (q, q->table_bytes / q->cluster_size);
    qed_image_put (q, l1, 8, table);
  }
  return table + cluster % nr * 8;
}

void
qed_image_data (struct qed_image *q, uint64_t cluster, uint64_t seed)
{
  const uint64_t place = qed_image_place (q, cluster);
  const uint64_t host = qed_image_grow (q, 1);
  uint64_t i;

  for (i = 0; i < q->cluster_size; i += 8)
    qed_image_put (q, host + i, 8, mix (seed * 1000003 + i) | 1);
  qed_image_put (q, place, 8, host);
}

void
qed_image_zero (struct qed_image *q, uint64_t cluster)
{
  qed_image_put (q, qed_image_place (q, cluster), 8, 1);
}

/* ---------------------------------------------------------------- reading */

struct layout {
  uint64_t cluster, table, entries, header, l1, disk, end;
};

static struct layout
layout_of (const uint8_t *bytes, uint64_t size)
{
  struct layout l;

  l.cluster = qed_image_get (bytes, 4, 4);
  l.table = qed_image_get (bytes, 8, 4) * l.cluster;
  l.entries = l.table / 8;
  l.header = qed_image_get (bytes, 12, 4) * l.cluster;
  l.l1 = qed_image_get (bytes, 40, 8);
  l.disk = qed_image_get (bytes, 48, 8);
  l.end = (size + 511) / 512 * 512 / l.cluster * l.cluster;
  return l;
}

static bool
fits (const struct layout *l, uint64_t offset, uint64_t count)
{
  return offset % l->cluster == 0 && offset >= l->header && offset < l->end &&
    l->end - offset >= count;
}

enum qed_what
qed_image_what (const uint8_t *bytes, uint64_t size, uint64_t cluster,
                uint64_t *host)
{
  const struct layout l = layout_of (bytes, size);
  const uint64_t table =
    qed_image_get (bytes, l.l1 + cluster / l.entries * 8, 8);
  uint64_t entry;

  if (table == 0)
    return QED_IS_UNALLOCATED;
  if (!fits (&l, table, l.table))
    return QED_IS_DAMAGED;
  entry = qed_image_get (bytes, table + cluster % l.entries * 8, 8);
  *host = entry;
  return entry == 0 ? QED_IS_UNALLOCATED : entry == 1 ? QED_IS_ZERO
    : fits (&l, entry, l.cluster) ? QED_IS_DATA : QED_IS_DAMAGED;
}

bool
qed_image_read (const uint8_t *bytes, uint64_t size, const uint8_t *backing,
                uint64_t backing_size, uint8_t *buf)
{
  const struct layout l = layout_of (bytes, size);
  uint64_t at;
  bool all = true;

  memset (buf, 0, l.disk);
  for (at = 0; at < l.disk; at += l.cluster) {
    const uint64_t n = l.disk - at < l.cluster ? l.disk - at : l.cluster;
    uint64_t host;

    switch (qed_image_what (bytes, size, at / l.cluster, &host)) {
    case QED_IS_UNALLOCATED:
      if (backing != NULL && at < backing_size)
        memcpy (buf + at, backing + at,
                backing_size - at < n ? backing_size - at : n);
      break;
    case QED_IS_ZERO:
      break;
    case QED_IS_DATA:
      memcpy (buf + at, bytes + host, n);
      break;
    case QED_IS_DAMAGED:
      all = false;
      break;
    }
  }
  return all;
}

/* ---------------------------------------------------------------- judging */

/* Returns whether none of the clusters was in use. */
static bool
use (struct qed_verdict *v, uint8_t *used, const struct layout *l,
     uint64_t offset, uint64_t count)
{
  const uint64_t errors = v->errors;
  uint64_t i;

  for (i = offset / l->cluster; i < (offset + count) / l->cluster; ++i) {
    v->errors += used[i];
    used[i] = 1;
  }
  return v->errors == errors;
}

struct qed_verdict
qed_image_judge (const uint8_t *bytes, uint64_t size)
{
  const struct layout l = layout_of (bytes, size);
  uint8_t *used = must_have (calloc (1, l.end / l.cluster + 1));
  struct qed_verdict v = { .need_check = qed_image_get (bytes, 16, 8) & 2 };
  uint64_t i, j;

  (void) use (&v, used, &l, l.l1, l.table);
  for (i = 0; i < l.entries; ++i) {
    const uint64_t table = qed_image_get (bytes, l.l1 + i * 8, 8);

    if (table == 0)
      continue;
    if (!fits (&l, table, l.table)) {
      v.errors++;
      continue;
    }
    if (!use (&v, used, &l, table, l.table))
      continue;
    for (j = 0; j < l.entries; ++j) {
      const uint64_t entry = qed_image_get (bytes, table + j * 8, 8);

      if (entry <= 1)
        continue;
      if (!fits (&l, entry, l.cluster))
        v.errors++;
      else
        (void) use (&v, used, &l, entry, l.cluster);
    }
  }
  for (i = l.header / l.cluster; i < l.end / l.cluster; ++i)
    v.leaks += !used[i];
  free (used);
  return v;
}
