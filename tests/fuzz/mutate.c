/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "build.h"
#include "image-check.h"
#include "mutate.h"
#include "qcow2/format.h"
#include "random.h"

/* The header's fields. */
static const struct {
  uint8_t offset, width;
} fields[] = {
  { 4, 4 }, { 8, 8 }, { 16, 4 }, { 20, 4 }, { 24, 8 }, { 32, 4 }, { 36, 4 },
  { 40, 8 }, { 48, 8 }, { 56, 4 }, { 60, 4 }, { 64, 8 }, { 72, 8 }, { 80, 8 },
  { 88, 8 }, { 96, 4 }, { 100, 4 }, { 104, 1 }, { 112, 4 }, { 116, 4 },
};

struct mutation {
  uint8_t *data;
  size_t size, max;
  uint64_t state;
};

static uint64_t
below (struct mutation *m, uint64_t limit)
{
  return random_below (&m->state, limit);
}

static uint64_t
cluster_size (const struct mutation *m)
{
  const uint32_t bits = m->size >= 24 ? get_be32 (m->data + 20) : 9;

  return UINT64_C (1) << (bits < 9 || bits > 21 ? 9 : bits);
}

/* The offset of one of the file's clusters, or one just behind it. */
static uint64_t
some_cluster (struct mutation *m)
{
  const uint64_t c = cluster_size (m);

  return below (m, m->size / c + 2) * c;
}

static uint64_t
some_number (struct mutation *m)
{
  static const uint64_t odd[] = {
    0, 1, 2, 7, 8, 9, 40, 72, 104, 112, 511, 512, 513, 4096, 65535, 65536,
    INT32_MAX, UINT32_MAX, INT64_MAX, UINT64_MAX,
  };

  switch (below (m, 7)) {
  case 0: return odd[below (m, sizeof odd / sizeof odd[0])];
  case 1: return some_cluster (m);
  case 2: return UINT64_C (1) << below (m, 64);
  case 3: return below (m, 64);
  case 4: return m->size - below (m, 16);
  case 5: return -cluster_size (m) * (1 + below (m, 4));
  default: return random_next (&m->state) >> below (m, 64);
  }
}

static void
put (struct mutation *m, uint64_t offset, unsigned width, uint64_t value)
{
  if (offset > m->size || m->size - offset < width)
    return;
  switch (width) {
  case 1: m->data[offset] = value; return;
  case 2: put_be16 (m->data + offset, value); return;
  case 4: put_be32 (m->data + offset, value); return;
  case 8: put_be64 (m->data + offset, value); return;
  }
}

static uint64_t
get (const struct mutation *m, uint64_t offset)
{
  return offset > m->size || m->size - offset < 8 ? 0
    : get_be64 (m->data + offset);
}

static uint32_t
get32 (const struct mutation *m, uint64_t offset)
{
  return get (m, offset) >> 32;
}

static void
change_field (struct mutation *m)
{
  const unsigned i = below (m, sizeof fields / sizeof fields[0]);
  uint64_t value = some_number (m);

  switch (fields[i].offset) {
  case 4: /* mostly what gets further than the first check */
    value = below (m, 8) ? 2 + below (m, 2) : value;
    break;
  case 20:
    value = below (m, 8) ? 9 + below (m, 8) : value;
    break;
  case 72:
    value = below (m, 8) ? below (m, 32) & ~4u : value;
    break;
  }
  put (m, fields[i].offset, fields[i].width, value);
}

static uint64_t
some_word (struct mutation *m)
{
  const uint64_t offset = some_cluster (m);

  switch (below (m, 8)) {
  case 0: return 0;
  case 1: return offset;
  case 2: return offset | QCOW2_ENTRY_COPIED;
  case 3: return offset | QCOW2_L2_ZERO;
  case 4: return QCOW2_L2_ZERO;
  case 5: /* compressed, by any cluster size's rule */
    return QCOW2_L2_COMPRESSED | below (m, 4) << (52 + below (m, 10)) |
      below (m, m->size);
  case 6: return random_next (&m->state);
  default: return some_number (m);
  }
}

/* The entry of the snapshot table with this number. */
static uint64_t
snapshot_entry (const struct mutation *m, unsigned i)
{
  uint64_t at = get (m, 64);

  for (; i > 0; --i) {
    const uint32_t sizes = get32 (m, at + 12);

    at += (47 + get32 (m, at + 36) + (sizes >> 16) + (sizes & 0xffff)) / 8 * 8;
  }
  return at;
}

/* An L1 table: mostly that of the disk. */
static uint64_t
some_l1 (struct mutation *m)
{
  return below (m, 4) ? get (m, 40)
    : get (m, snapshot_entry (m, below (m, 3)));
}

/* The place of an entry in an L2 table that one of the first entries of an L1
 * table names; 0: there is none.
 */
static uint64_t
some_l2_entry (struct mutation *m)
{
  const uint64_t table = get (m, some_l1 (m) + 8 * below (m, 4)) &
    QCOW2_ENTRY_OFFSET_MASK;

  return table == 0 ? 0 : table + 8 * below (m, 1 + below (m, 64));
}

static void
change_l1 (struct mutation *m)
{
  put (m, some_l1 (m) + 8 * below (m, 8), 8, some_word (m));
}

static void
change_l2 (struct mutation *m)
{
  const uint64_t at = some_l2_entry (m);
  uint64_t low, high;

  if (at == 0)
    return;
  if (below (m, 4)) {
    put (m, at, 8, some_word (m));
    return;
  }
  low = random_next (&m->state) & UINT32_MAX; /* as a bitmap */
  high = random_next (&m->state) & UINT32_MAX & ~low;
  put (m, at, 8, high << 32 | low);
}

/* Data is where metadata is. */
static void
overlap_metadata (struct mutation *m)
{
  const uint64_t at = some_l2_entry (m);
  uint64_t host = 0;

  switch (below (m, 6)) {
  case 0: host = some_l1 (m); break;
  case 1: host = get (m, some_l1 (m)); break;
  case 2: host = get (m, 48); break;
  case 3: host = get (m, get (m, 48) + 8 * below (m, 2)); break;
  case 4: host = get (m, 64); break;
  case 5: host = get (m, 136); break; /* often the directory of bitmaps */
  }
  if (at != 0)
    put (m, at, 8, (host & QCOW2_ENTRY_OFFSET_MASK) | QCOW2_ENTRY_COPIED);
}

/* A flag is wrong, or two entries refer to the same. */
static void
change_flags (struct mutation *m)
{
  const uint64_t at = below (m, 4) ? some_l2_entry (m)
    : some_l1 (m) + 8 * below (m, 4);

  if (at == 0)
    return;
  if (below (m, 2))
    put (m, at, 8, get (m, at) ^ QCOW2_ENTRY_COPIED);
  else
    put (m, at + 8 * below (m, 4), 8, get (m, at));
}

/* An entry of the refcount table, or some refcounts. */
static void
change_refcounts (struct mutation *m)
{
  const uint64_t table = get (m, 48);
  const uint64_t block = get (m, table + 8 * below (m, 2));

  switch (below (m, 4)) {
  case 0:
    put (m, table + 8 * below (m, 1 + below (m, 64)), 8,
         below (m, 3) ? some_cluster (m) : some_number (m));
    break;
  case 1: /* of any width */
    put (m, block + below (m, 64), 1 << below (m, 4), below (m, 4));
    break;
  default:
    put (m, block + below (m, 256), 1, random_next (&m->state));
    break;
  }
}

static void
set_refcount (struct mutation *m, unsigned order, uint64_t cluster,
              uint64_t value)
{
  const uint64_t per_block = cluster_size (m) * 8 >> order;
  const uint64_t block = get (m, get (m, 48) + cluster / per_block * 8);
  const uint64_t bit = cluster % per_block << order;
  const unsigned in_byte = bit % 8, width = 1 << order;
  const unsigned mask = (1U << width % 8) - 1;
  uint8_t *p;

  if (block == 0 || block > m->size || m->size - block <= bit / 8)
    return;
  p = m->data + block + bit / 8;
  if (order >= 3)
    put (m, block + bit / 8, width / 8, value);
  else
    *p = (*p & ~(mask << in_byte)) | (value & mask) << in_byte;
}

/* See to it that COPIED is right. */
static void
set_flag (struct mutation *m, const struct image_refs *refs, uint64_t at)
{
  const uint64_t word = get (m, at), offset = word & QCOW2_ENTRY_OFFSET_MASK;
  const uint64_t cluster = offset / cluster_size (m);

  if (offset == 0 || (word & QCOW2_L2_COMPRESSED) || cluster >= refs->nr)
    return;
  put (m, at, 8, refs->count[cluster] == 1 ? word | QCOW2_ENTRY_COPIED
       : word & ~QCOW2_ENTRY_COPIED);
}

static void
set_flags (struct mutation *m, const struct image_refs *refs)
{
  const unsigned entry_bytes = get32 (m, 4) == 3 &&
    (get (m, 72) & QCOW2_INCOMPAT_EXTENDED_L2) ? 16 : 8;
  const uint64_t l1 = get (m, 40);
  uint64_t i, j;

  for (i = 0; i < get32 (m, 36) && l1 < m->size && i < m->size / 8; ++i) {
    const uint64_t table = get (m, l1 + 8 * i) & QCOW2_ENTRY_OFFSET_MASK;

    set_flag (m, refs, l1 + 8 * i);
    for (j = 0; table != 0 && table < m->size && j < cluster_size (m);
         j += entry_bytes)
      set_flag (m, refs, table + j);
  }
}

/* Have refcounts and flags agree with what there is, so that it may be a sound
 * image again.
 */
static void
make_sound (struct mutation *m)
{
  const uint32_t version = get32 (m, 4), bits = get32 (m, 20);
  const unsigned order = version == 3 ? get32 (m, 96) : 4;
  struct image_refs refs;
  uint64_t i;

  if (m->size < QCOW2_HEADER_LENGTH_V3 || (version != 2 && version != 3) ||
      bits < 9 || bits > 16 || order > 6)
    return;
  if (image_refs_count_quietly (&refs, m->data, m->size)) {
    for (i = 0; i < refs.nr; ++i)
      set_refcount (m, order, i, refs.count[i]);
    set_flags (m, &refs);
  }
  image_refs_free (&refs);
}

/* A field of an entry of the snapshot table. */
static void
change_snapshot_field (struct mutation *m)
{
  static const uint8_t offsets[] = { 0, 8, 12, 14, 16, 32, 36, 40, 48, 56 };
  static const uint8_t widths[] = { 8, 4, 2, 2, 4, 4, 4, 8, 8, 1 };
  const unsigned i = below (m, sizeof offsets);

  put (m, snapshot_entry (m, below (m, 4)) + offsets[i], widths[i],
       some_number (m));
}

/* Mostly what gets further than the first check. */
static void
change_snapshot (struct mutation *m)
{
  const uint64_t at = snapshot_entry (m, below (m, 4));

  switch (below (m, 8)) {
  case 0: put (m, 60, 4, below (m, 8)); break;
  case 1: put (m, at + 12, 2, below (m, 20)); break;
  case 2: put (m, at + 14, 2, below (m, 20)); break;
  case 3: put (m, at + 36, 4, below (m, 40)); break;
  case 4: put (m, at, 8, some_cluster (m)); break;
  case 5: put (m, at + 40 + below (m, 40), 1, random_next (&m->state)); break;
  default: change_snapshot_field (m); break;
  }
}

/* Of the directory of bitmaps, where make-corpus puts it; of a table; bits. */
static void
change_bitmap (struct mutation *m)
{
  static const uint8_t offsets[] = { 0, 8, 12, 16, 17, 18, 20, 24 };
  static const uint8_t widths[] = { 8, 4, 4, 1, 1, 2, 4, 1 };
  const uint64_t at = get (m, 136) + 32 * below (m, 2);
  const uint64_t table = get (m, at);
  const unsigned i = below (m, sizeof offsets);

  switch (below (m, 8)) {
  case 0: put (m, at + offsets[i], widths[i], some_number (m)); break;
  case 1: put (m, at + 12, 4, below (m, 9)); break;
  case 2: put (m, at + 8, 4, below (m, 200)); break;
  case 3: put (m, at + 17, 1, 8 + below (m, 25)); break;
  case 4: put (m, table + 8 * below (m, 4), 8, below (m, 3)); break;
  case 5: put (m, table + 8 * below (m, 4), 8, some_cluster (m)); break;
  case 6: put (m, table + 8 * below (m, 4), 8, some_word (m)); break;
  case 7: put (m, (get (m, table) & QCOW2_ENTRY_OFFSET_MASK) + below (m, 512),
               1, random_next (&m->state)); break;
  }
}

static void
change_bytes (struct mutation *m)
{
  uint64_t at = below (m, m->size), n = 1 + below (m, 8);

  for (; n > 0 && at < m->size; --n)
    m->data[at++] = random_next (&m->state);
}

static void
flip_bit (struct mutation *m)
{
  m->data[below (m, m->size)] ^= 1 << below (m, 8);
}

static void
copy_within (struct mutation *m)
{
  const uint64_t from = below (m, m->size), to = below (m, m->size);
  const uint64_t room = m->size - (from > to ? from : to);
  uint64_t n = 1 + below (m, 512);

  memmove (m->data + to, m->data + from, n < room ? n : room);
}

static void
cut_or_grow (struct mutation *m)
{
  size_t size = m->size;

  if (below (m, 2))
    size -= below (m, m->size);
  else
    size += below (m, 1024);
  if (size > m->max)
    size = m->max;
  if (size > m->size)
    memset (m->data + m->size, 0, size - m->size);
  m->size = size;
}

typedef void (*change_fn) (struct mutation *m);

/* What is there more than once is done more often. */
static const change_fn for_header[] = {
  change_field, change_field, change_field, change_field, change_bytes,
  flip_bit, copy_within, cut_or_grow,
};
static const change_fn for_map[] = {
  change_field, change_field, change_l1, change_l1, change_l2, change_l2,
  change_l2, change_l2, change_l2, change_refcounts, change_refcounts,
  change_flags, change_bytes, flip_bit, copy_within, cut_or_grow,
};
static const change_fn for_write[] = {
  change_field, change_l1, change_l1, change_l2, change_l2, change_l2,
  change_refcounts, change_refcounts, change_flags, change_flags,
  overlap_metadata, change_snapshot, make_sound, make_sound, make_sound,
  change_bytes, copy_within, cut_or_grow,
};
static const change_fn for_snapshot[] = {
  change_snapshot, change_snapshot, change_snapshot, change_snapshot,
  change_l1, change_l2, change_field, change_bytes, flip_bit, copy_within,
  cut_or_grow,
};

static const change_fn for_bitmap[] = {
  change_bitmap, change_bitmap, change_bitmap, change_bitmap, change_bitmap,
  change_field, change_l2, change_bytes, flip_bit, cut_or_grow,
};
static const change_fn for_check[] = {
  change_field, change_l1, change_l1, change_l2, change_l2, change_l2,
  change_refcounts, change_refcounts, change_refcounts, change_flags,
  change_flags, overlap_metadata, change_snapshot, make_sound, change_bytes,
  copy_within, cut_or_grow,
};

#define NR(list) (sizeof (list) / sizeof (list)[0])

static const struct {
  const change_fn *fn;
  unsigned nr;
} changes[] = {
  [MUTATE_HEADER] = { for_header, NR (for_header) },
  [MUTATE_MAP] = { for_map, NR (for_map) },
  [MUTATE_WRITE] = { for_write, NR (for_write) },
  [MUTATE_SNAPSHOT] = { for_snapshot, NR (for_snapshot) },
  [MUTATE_BITMAP] = { for_bitmap, NR (for_bitmap) },
  [MUTATE_CHECK] = { for_check, NR (for_check) },
};

size_t
mutate_image (uint8_t *data, size_t size, size_t max, uint64_t seed,
              enum mutate_for what)
{
  struct mutation m = { .data = data, .size = size, .max = max, seed };
  unsigned n;

  for (n = 1 + below (&m, 4); n > 0; --n)
    changes[what].fn[below (&m, changes[what].nr)] (&m);
  return m.size;
}
