/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/bitmap-set.h"
#include "qcow2/bitmap-bits.h"

/* ------------------------------------------------------------------ refusing
 */

/* Whether a change of the disk's content, or size, concerns it. */
static bool
is_concerned (const struct bitmap_member *m, bool resized)
{
  return resized || (m->automatic && m->state != BITMAP_IN_USE);
}

static int
check_member (const struct bitmap_set *b, const struct bitmap_member *m)
{
  const char *name = b->e->storage->name;

  switch (m->state) {
  case BITMAP_ENABLED:
  case BITMAP_DISABLED:
    if (!b->e->writer->bitmaps_shared)
      return 0;
    error_set (ENOTSUP, "%s: persistent bitmaps have clusters in common, and "
               "would have to change", name);
    return -1;
  case BITMAP_IN_USE:
    error_set (ENOTSUP, "%s: the bitmap of the directory entry at offset 0x%"
               PRIx64 " is marked as in use, and would have to get another "
               "size: it has to be removed before", name, m->place.v);
    return -1;
  case BITMAP_UNKNOWN:
    error_set (ENOTSUP, "%s: the bitmap of the directory entry at offset 0x%"
               PRIx64 " is not of a kind that is known here, and would have to "
               "change", name, m->place.v);
    return -1;
  }
  abort ();
}

int
bitmap_set_follow (struct bitmap_set *b, bool resized)
{
  size_t i;

  b->max_bytes = BITMAP_SET_FOLLOW_BYTES;
  for (i = 0; i < b->nr; ++i) {
    struct bitmap_member *m = &b->member[i];

    if (is_concerned (m, resized) &&
        (check_member (b, m) == -1 || bitmap_set_load (b, m) == -1))
      return -1;
  }
  return 0;
}

bool
bitmap_set_any_enabled (const struct bitmap_set *b)
{
  size_t i;

  for (i = 0; i < b->nr; ++i)
    if (b->member[i].state == BITMAP_ENABLED)
      return true;
  return false;
}

int
bitmap_set_mark_enabled (struct bitmap_set *b, uint64_t start, uint64_t length)
{
  size_t i;

  for (i = 0; i < b->nr; ++i)
    if (b->member[i].state == BITMAP_ENABLED &&
        bitmap_set_mark (b, &b->member[i], start, length) == -1)
      return -1;
  return 0;
}

int
bitmap_set_mark_range (void *opaque, uint64_t start, uint64_t length)
{
  return bitmap_set_mark_enabled (opaque, start, length);
}

/* ------------------------------------------------------------------ resizing
 */

/* Have so many parts: new ones are clean. */
static int
resize_table (struct bitmap_set *b, struct bitmap_member *m, uint32_t nr)
{
  uint64_t *now;
  uint8_t **bits;
  uint32_t i;

  for (i = nr; i < m->nr_parts; ++i)
    bitmap_set_forget_bits (b, m, i);
  if (nr > m->nr_parts) {
    now = realloc (m->now, (nr + UINT64_C (1)) * sizeof *now);
    if (now != NULL)
      m->now = now;
    bits = realloc (m->bits, (nr + UINT64_C (1)) * sizeof *bits);
    if (bits != NULL)
      m->bits = bits;
    if (now == NULL || bits == NULL) {
      error_set (ENOMEM, "%s: out of memory", b->e->storage->name);
      return -1;
    }
    for (i = m->nr_parts; i < nr; ++i) {
      m->now[i] = 0;
      m->bits[i] = NULL;
    }
  }
  if (nr != m->nr_parts)
    m->changed = b->changed = true;
  m->nr_parts = nr;
  return 0;
}

/* Bits from nr_bits on may have been anything: they stood for nothing. */
static int
clear_beyond (struct bitmap_set *b, struct bitmap_member *m, uint64_t nr_bits)
{
  const uint64_t per_part = b->e->header.cluster_size * 8;
  const uint64_t end = (nr_bits + per_part - 1) / per_part * per_part;

  return end == nr_bits ? 0 : bitmap_set_clear_bits (b, m, nr_bits, end);
}

static int
resize_member (struct bitmap_set *b, struct bitmap_member *m, uint64_t old,
               uint64_t size)
{
  const uint64_t smaller = size < old ? size : old;
  uint32_t nr;

  if (bitmap_set_count_parts (b, m->granularity_bits, size, &nr) == -1 ||
      (nr < m->nr_parts && resize_table (b, m, nr) == -1) ||
      clear_beyond (b, m, bitmap_nr_bits (smaller,
                                          m->granularity_bits)) == -1)
    return -1;
  return resize_table (b, m, nr);
}

int
bitmap_set_resize (struct bitmap_set *b, uint64_t size)
{
  const uint64_t old = b->disk_size;
  size_t i;

  for (i = 0; i < b->nr; ++i)
    if (resize_member (b, &b->member[i], old, size) == -1)
      return -1;
  b->disk_size = size;
  return size <= old ? 0 : bitmap_set_mark_enabled (b, old, size - old);
}
