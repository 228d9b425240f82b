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
#include "qcow2/entry.h"

static const char *
image_name (const struct bitmap_set *b)
{
  return b->e->storage->name;
}

static int
no_memory (const struct bitmap_set *b)
{
  error_set (ENOMEM, "%s: out of memory", image_name (b));
  return -1;
}

/* ------------------------------------------------------------ the directory
 */

static void
free_parts (struct bitmap_member *m)
{
  uint32_t i;

  for (i = 0; m->bits != NULL && i < m->nr_parts; ++i)
    free (m->bits[i]);
  free (m->bits);
  free (m->old);
  free (m->now);
}

void
bitmap_set_free (struct bitmap_set *b)
{
  size_t i;

  for (i = 0; i < b->nr; ++i) {
    free_parts (&b->member[i]);
    if (b->member[i].is_new)
      free (b->member[i].entry);
  }
  free (b->member);
  free (b->directory);
  *b = (struct bitmap_set) { .nr = 0 };
}

/* opaque: the set, whose directory was read before.  Only of an entry that is
 * still the same it is known that it ends before the directory does.
 */
static int
note_member (void *opaque, const struct bitmap_info *info)
{
  struct bitmap_set *b = opaque;
  const uint64_t at = info->place.v - b->e->header.bitmap_directory.v;
  uint8_t *p = b->directory + at;

  if (memcmp (p, info->entry, sizeof info->entry) != 0) {
    error_set (EIO, "%s: the bitmap directory entry at offset 0x%" PRIx64
               " changed while it was read", image_name (b), info->place.v);
    return -1;
  }
  b->member[b->nr++] = (struct bitmap_member) {
    .entry = p,
    .entry_bytes = (QCOW2_BITMAP_ENTRY_SIZE +
                    (uint64_t) get_be32 (p + QCOW2_BITMAP_FIELD_EXTRA_SIZE) +
                    get_be16 (p + QCOW2_BITMAP_FIELD_NAME_SIZE) + 7) / 8 * 8,
    .state = info->state, .automatic = info->automatic,
    .granularity_bits = info->granularity_bits,
    .place = info->place, .table = info->table,
    .nr_parts = info->nr_parts,
  };
  return 0;
}

int
bitmap_set_read (struct bitmap_set *b, struct edit *e)
{
  const struct header *h = &e->header;

  *b = (struct bitmap_set) {
    .e = e, .disk_size = h->disk_size, .max_bytes = UINT64_MAX,
  };
  if (!writer_has_bitmaps (h))
    return 0;
  if (h->bitmap_directory_size > QCOW2_MAX_BITMAP_DIRECTORY_BYTES ||
      h->nr_bitmaps > QCOW2_MAX_BITMAPS)
    return bitmaps_list (e->storage, h, note_member, b); /* which says so */
  b->directory_bytes = h->bitmap_directory_size;
  b->directory = calloc (1, b->directory_bytes + 1);
  b->member = calloc (h->nr_bitmaps, sizeof b->member[0]);
  if (b->directory == NULL || b->member == NULL)
    return no_memory (b);
  if (storage_read (e->storage, b->directory, b->directory_bytes,
                    h->bitmap_directory) == -1)
    return -1;
  return bitmaps_list (e->storage, h, note_member, b);
}

struct bitmap_member *
bitmap_set_find (const struct bitmap_set *b, const char *name)
{
  const size_t length = strlen (name);
  size_t i;

  for (i = 0; i < b->nr; ++i) {
    const uint8_t *p = b->member[i].entry;
    const uint8_t *is = p + QCOW2_BITMAP_ENTRY_SIZE +
      get_be32 (p + QCOW2_BITMAP_FIELD_EXTRA_SIZE);

    if (!b->member[i].removed &&
        get_be16 (p + QCOW2_BITMAP_FIELD_NAME_SIZE) == length &&
        memcmp (is, name, length) == 0)
      return &b->member[i];
  }
  return NULL;
}

int
bitmap_set_count_parts (const struct bitmap_set *b, unsigned granularity_bits,
                        uint64_t size, uint32_t *nr)
{
  return bitmap_count_parts (image_name (b), &b->e->header, size,
                             granularity_bits, nr);
}

static int
allocate_parts (const struct bitmap_set *b, struct bitmap_member *m)
{
  m->now = calloc (m->nr_parts + 1, sizeof m->now[0]);
  m->bits = calloc (m->nr_parts + 1, sizeof m->bits[0]);
  return m->now == NULL || m->bits == NULL ? no_memory (b) : 0;
}

int
bitmap_set_add (struct bitmap_set *b, const char *name, unsigned bits)
{
  struct bitmap_member m = {
    .entry_bytes = bitmap_entry_bytes (name), .is_new = true,
    .state = BITMAP_ENABLED, .automatic = true, .granularity_bits = bits,
    .changed = true,
  };
  struct bitmap_member *p;

  if (bitmap_set_count_parts (b, bits, b->disk_size, &m.nr_parts) == -1)
    return -1;
  p = realloc (b->member, (b->nr + 1) * sizeof *p);
  if (p == NULL)
    return no_memory (b);
  b->member = p;
  m.entry = calloc (1, m.entry_bytes);
  if (m.entry != NULL)
    bitmap_entry_encode (m.entry, name, bits);
  if (m.entry == NULL || allocate_parts (b, &m) == -1) {
    free (m.entry);
    free_parts (&m);
    return no_memory (b);
  }
  b->member[b->nr++] = m;
  b->changed = true;
  return 0;
}

/* ----------------------------------------------------------------- loading */

static int
check_table (const struct bitmap_set *b, const struct bitmap_member *m)
{
  const struct header *h = &b->e->header;
  uint32_t nr = m->nr_parts;

  /* Who left it in use may have left it for a disk of another size. */
  if (m->state != BITMAP_IN_USE &&
      bitmap_set_count_parts (b, m->granularity_bits, h->disk_size,
                              &nr) == -1)
    return -1;
  if (nr != m->nr_parts) {
    error_set (EINVAL, "%s: bitmap directory entry at offset 0x%" PRIx64 ": a "
               "table of %" PRIu32 " entries, where the disk needs %" PRIu32,
               image_name (b), m->place.v, m->nr_parts, nr);
    return -1;
  }
  return header_check_table (image_name (b), h,
                             atomic_load (&b->e->storage->size),
                             "bitmap table", m->place.v, m->table, m->nr_parts,
                             8, QCOW2_MAX_BITMAP_BYTES / h->cluster_size * 8);
}

static int
check_parts (const struct bitmap_set *b, const struct bitmap_member *m)
{
  const uint64_t size = atomic_load (&b->e->storage->size);
  uint32_t i;

  for (i = 0; i < m->nr_parts; ++i) {
    struct host_off at = { 0 };

    if (entry_decode_bitmap (m->now[i], b->e->header.cluster_bits, &at) ==
        BITMAP_PART_INVALID || (bitmap_is_cluster (m->now[i]) && at.v >= size)) {
      error_set (EIO, "%s: bitmap table entry at offset 0x%" PRIx64 ": 0x%"
                 PRIx64 " is not valid, or beyond the end of the file",
                 image_name (b), m->table.v + i * sizeof m->now[0], m->now[i]);
      return -1;
    }
  }
  return 0;
}

static int
read_table (struct bitmap_set *b, struct bitmap_member *m)
{
  const uint64_t bytes = m->nr_parts * sizeof m->old[0];
  uint32_t i;

  if (storage_read (b->e->storage, m->now, bytes, m->table) == -1)
    return -1;
  for (i = 0; i < m->nr_parts; ++i)
    m->now[i] = be64toh (m->now[i]);
  if (check_parts (b, m) == -1)
    return -1;
  m->old = malloc (bytes + 1);
  if (m->old == NULL)
    return no_memory (b);
  memcpy (m->old, m->now, bytes);
  m->nr_old = m->nr_parts;
  return 0;
}

int
bitmap_set_load (struct bitmap_set *b, struct bitmap_member *m)
{
  if (m->now != NULL)
    return 0;
  if (check_table (b, m) == 0 && allocate_parts (b, m) == 0 &&
      read_table (b, m) == 0)
    return 0;
  free_parts (m);
  m->now = m->old = NULL;
  m->bits = NULL;
  return -1;
}

/* ---------------------------------------------------------------- changing */

void
bitmap_set_remove (struct bitmap_set *b, struct bitmap_member *m)
{
  m->removed = true;
  b->changed = true;
}

void
bitmap_set_enable (struct bitmap_set *b, struct bitmap_member *m, bool enable)
{
  uint8_t *flags = m->entry + QCOW2_BITMAP_FIELD_FLAGS;

  if (m->automatic == enable)
    return;
  put_be32 (flags, get_be32 (flags) ^ QCOW2_BITMAP_AUTO);
  m->automatic = enable;
  m->state = enable ? BITMAP_ENABLED : BITMAP_DISABLED;
  b->changed = true;
}

void
bitmap_set_forget_bits (struct bitmap_set *b, struct bitmap_member *m,
                        uint32_t i)
{
  if (m->bits[i] == NULL)
    return;
  free (m->bits[i]);
  m->bits[i] = NULL;
  b->bytes -= b->e->header.cluster_size;
}

static void
set_part (struct bitmap_set *b, struct bitmap_member *m, uint32_t i,
          uint64_t word)
{
  bitmap_set_forget_bits (b, m, i);
  m->now[i] = word;
  m->changed = true;
}

void
bitmap_set_clear (struct bitmap_set *b, struct bitmap_member *m)
{
  uint32_t i;

  for (i = 0; i < m->nr_parts; ++i)
    set_part (b, m, i, 0);
  b->changed = true;
}

/* Have the bits of a part in memory. */
static int
open_part (struct bitmap_set *b, struct bitmap_member *m, uint32_t i)
{
  const size_t size = b->e->header.cluster_size;
  uint8_t *p;

  if (m->bits[i] != NULL)
    return 0;
  p = malloc (size);
  if (p == NULL)
    return no_memory (b);
  if (!bitmap_is_cluster (m->now[i]))
    memset (p, m->now[i] != 0 ? 0xff : 0, size);
  else if (storage_read_present (b->e->storage, p, size,
                                 (struct host_off) { m->now[i] }) == -1) {
    free (p);
    return -1;
  }
  m->bits[i] = p;
  b->bytes += size;
  m->changed = true;
  return 0;
}

static void
fill_bits (uint8_t *p, uint64_t first, uint64_t end, bool set)
{
  const uint64_t from = (first + 7) / 8, to = end / 8;

  for (; first < end && first % 8 != 0; ++first)
    p[first / 8] = (p[first / 8] & ~(1U << first % 8)) |
      (unsigned) set << first % 8;
  if (from < to)
    memset (p + from, set ? 0xff : 0, to - from);
  for (first = first > to * 8 ? first : to * 8; first < end; ++first)
    p[first / 8] = (p[first / 8] & ~(1U << first % 8)) |
      (unsigned) set << first % 8;
}

/* Whether there is no room for the bits of a part that has none in memory. */
static bool
is_full (const struct bitmap_set *b, const struct bitmap_member *m, uint32_t i)
{
  const uint64_t cluster = b->e->header.cluster_size;

  return m->bits[i] == NULL &&
    (b->bytes > b->max_bytes || b->max_bytes - b->bytes < cluster);
}

/* Give the bits from first to end (exclusive) a value.  If they end with the
 * disk's the last part's beyond that may get either.
 */
static int
set_bits (struct bitmap_set *b, struct bitmap_member *m, uint64_t first,
          uint64_t end, bool set)
{
  const uint64_t per_part = b->e->header.cluster_size * 8;
  const uint64_t all = set ? QCOW2_BITMAP_ALL_ONES : 0;
  const uint64_t nr_bits = bitmap_nr_bits (b->disk_size, m->granularity_bits);

  b->changed |= first < end;
  while (first < end) {
    const uint32_t i = first / per_part;
    const uint64_t next = (i + UINT64_C (1)) * per_part;
    const uint64_t to = next < end ? next : end;

    if ((first % per_part == 0 && (to == next || to == nr_bits)) ||
        (set && m->now[i] != all && is_full (b, m, i)))
      set_part (b, m, i, all);
    else if (m->bits[i] != NULL || m->now[i] != all) {
      if (open_part (b, m, i) == -1)
        return -1;
      fill_bits (m->bits[i], first % per_part, first % per_part + (to - first),
                 set);
    }
    first = to;
  }
  return 0;
}

int
bitmap_set_mark (struct bitmap_set *b, struct bitmap_member *m, uint64_t start,
                 uint64_t length)
{
  return set_bits (b, m, start >> m->granularity_bits,
                   bitmap_nr_bits (start + length, m->granularity_bits), true);
}

int
bitmap_set_clear_bits (struct bitmap_set *b, struct bitmap_member *m,
                       uint64_t first, uint64_t end)
{
  const uint64_t per_part = b->e->header.cluster_size * 8;
  const uint32_t i = first / per_part;

  /* Most often they are clear. */
  if (m->bits[i] == NULL && bitmap_is_cluster (m->now[i])) {
    const bool changed = m->changed;

    if (open_part (b, m, i) == -1)
      return -1;
    if (!bitmap_bit (m->bits[i], first % per_part) &&
        bitmap_same (m->bits[i], first % per_part, per_part) ==
        per_part - first % per_part) {
      bitmap_set_forget_bits (b, m, i);
      m->changed = changed;
      return 0;
    }
  }
  return set_bits (b, m, first, end, false);
}
