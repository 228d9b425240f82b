/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "build.h"
#include "format.h"
#include "mutate.h"
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
  size_t size;
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

  switch (below (m, 6)) {
  case 0: return odd[below (m, sizeof odd / sizeof odd[0])];
  case 1: return some_cluster (m);
  case 2: return UINT64_C (1) << below (m, 64);
  case 3: return below (m, 64);
  case 4: return m->size - below (m, 16);
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

static void
change_l1 (struct mutation *m)
{
  put (m, get (m, 40) + 8 * below (m, 8), 8, some_word (m));
}

/* An entry of the L2 table that one of the first L1 entries names. */
static void
change_l2 (struct mutation *m)
{
  const uint64_t table = get (m, get (m, 40) + 8 * below (m, 4)) &
    QCOW2_ENTRY_OFFSET_MASK;
  const uint64_t at = table + 8 * below (m, 1 + below (m, 64));
  uint64_t low, high;

  if (table == 0)
    return;
  if (below (m, 4)) {
    put (m, at, 8, some_word (m));
    return;
  }
  low = random_next (&m->state) & UINT32_MAX; /* as a bitmap */
  high = random_next (&m->state) & UINT32_MAX & ~low;
  put (m, at, 8, high << 32 | low);
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
change_snapshot (struct mutation *m)
{
  static const uint8_t offsets[] = { 0, 8, 12, 14, 16, 32, 36, 40, 48, 56 };
  static const uint8_t widths[] = { 8, 4, 2, 2, 4, 4, 4, 8, 8, 1 };
  const unsigned i = below (m, sizeof offsets);
  const uint64_t table = get (m, 64);

  put (m, table + below (m, 3) * 64 + offsets[i], widths[i], some_number (m));
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
cut_or_grow (struct mutation *m, size_t max)
{
  size_t size = m->size;

  if (below (m, 2))
    size -= below (m, m->size);
  else
    size += below (m, 1024);
  if (size > max)
    size = max;
  if (size > m->size)
    memset (m->data + m->size, 0, size - m->size);
  m->size = size;
}

size_t
mutate (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  struct mutation m = { .data = data, .size = size, .state = seed };
  unsigned n;

  for (n = 1 + below (&m, 4); n > 0; --n) {
    switch (below (&m, 18)) {
    case 0: case 1: case 2:
      change_field (&m);
      break;
    case 3: case 4:
      change_l1 (&m);
      break;
    case 5: case 6: case 7: case 8:
      change_l2 (&m);
      break;
    case 9: case 10:
      change_snapshot (&m);
      break;
    case 11: case 12:
      change_bytes (&m);
      break;
    case 13:
      flip_bit (&m);
      break;
    case 14:
      copy_within (&m);
      break;
    case 15: case 16:
      change_refcounts (&m);
      break;
    default:
      cut_or_grow (&m, max);
      break;
    }
  }
  return m.size;
}
