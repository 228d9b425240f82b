/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>

#include "base/bytes.h"
#include "model.h"
#include "random.h"

/* What shows through where the image has nothing. */
static void
show_base (struct model *m, uint64_t at, uint64_t count)
{
  const uint64_t left = at < m->base_size ? m->base_size - at : 0;
  const uint64_t n = left < count ? left : count;

  if (n > 0)
    memcpy (m->content + at, m->base + at, n);
  memset (m->content + at + n, 0, count - n);
}

/* Set the sectors of a part of a cluster, as far as the disk reaches. */
static void
set_sectors (struct model *m, uint64_t cluster, uint64_t from, uint64_t count,
             struct model_sector s)
{
  const uint64_t per_cluster = m->image.cluster_size / MODEL_SECTOR;
  uint64_t i;

  for (i = from; i < from + count; ++i) {
    const uint64_t at = cluster * per_cluster + i;

    if (at >= m->nr)
      return;
    m->sector[at] = s;
    if (s.kind == RUN_DATA) {
      m->sector[at].host = s.host + i * MODEL_SECTOR;
      memcpy (m->content + at * MODEL_SECTOR,
              m->image.data + m->sector[at].host, MODEL_SECTOR);
    }
    else if (s.kind == RUN_UNALLOCATED)
      show_base (m, at * MODEL_SECTOR, MODEL_SECTOR);
    else
      memset (m->content + at * MODEL_SECTOR, 0, MODEL_SECTOR);
  }
}

static void
set_cluster (struct model *m, uint64_t cluster, struct model_sector s)
{
  set_sectors (m, cluster, 0, m->image.cluster_size / MODEL_SECTOR, s);
}

static void
compressed (struct model *m, uint64_t cluster, uint64_t *state)
{
  struct builder *b = &m->image;
  uint8_t *plain = malloc (b->cluster_size);
  const uint64_t at = cluster * b->cluster_size;
  const uint64_t disk = m->nr * MODEL_SECTOR;
  uint64_t place, word, offset, size;

  if (plain == NULL)
    abort ();
  build_pattern (plain, b->cluster_size, random_next (state) | 1);
  place = build_l2_place (b, cluster); /* before the data */
  build_compressed (b, cluster, plain, random_below (state, 700));
  word = get_be64 (b->data + place);
  offset = word & ((UINT64_C (1) << (70 - b->cluster_bits)) - 1);
  size = ((word & ~QCOW2_L2_COMPRESSED) >> (70 - b->cluster_bits)) * 512 +
    512 - offset % 512;
  set_cluster (m, cluster, (struct model_sector) {
      .kind = RUN_COMPRESSED, .host = offset, .size = size,
    });
  memcpy (m->content + at, plain,
          disk - at < b->cluster_size ? disk - at : b->cluster_size);
  free (plain);
}

static void
damaged (struct model *m, uint64_t cluster, uint64_t *state)
{
  struct builder *b = &m->image;
  uint64_t word = 3 * b->cluster_size + 512, bitmap = UINT32_MAX;

  switch (random_below (state, b->cluster_bits > 9 ? 4 : 3)) {
  case 0: /* far beyond the end */
    word = UINT64_C (1) << 54;
    break;
  case 1: /* no compressed data at 0 */
    word = QCOW2_L2_COMPRESSED;
    break;
  case 2:
    if (b->version == 2)
      word = 1;
    else if (b->extended) {
      word = b->cluster_size;
      bitmap = UINT64_C (0x100000001);
    }
    else
      word = UINT64_C (1) << 50;
    break;
  case 3: /* not aligned */
    break;
  }
  build_entry (b, cluster, word, bitmap);
  set_cluster (m, cluster, (struct model_sector) {
      .kind = RUN_DAMAGED, .place = build_l2_place (b, cluster),
    });
}

static void
subclusters (struct model *m, uint64_t cluster, uint64_t *state)
{
  struct builder *b = &m->image;
  const uint64_t per = b->cluster_size / 32 / MODEL_SECTOR;
  const bool host = random_below (state, 3) > 0;
  uint64_t offset = 0, bitmap = 0;
  unsigned i, what = 0;

  if (host)
    offset = build_data (b, random_next (state) | 1);
  for (i = 0; i < 32; ++i) {
    struct model_sector s = { .kind = RUN_UNALLOCATED, .host = offset };

    if (random_below (state, 3) == 0) /* else as the last one */
      what = random_below (state, 3);
    if (what == 1 && host) {
      bitmap |= UINT64_C (1) << i;
      s.kind = RUN_DATA;
    }
    else if (what == 2) {
      bitmap |= UINT64_C (1) << (32 + i);
      s.kind = host ? RUN_ZERO_ALLOC : RUN_ZERO_PLAIN;
    }
    set_sectors (m, cluster, i * per, per, s);
  }
  build_entry (b, cluster, offset, bitmap);
}

static void
zero (struct model *m, uint64_t cluster, bool host)
{
  struct builder *b = &m->image;
  const uint64_t offset = host ? build_data (b, 99) : 0;

  if (b->extended)
    build_entry (b, cluster, offset, ~(uint64_t) UINT32_MAX);
  else
    build_entry (b, cluster, offset | QCOW2_L2_ZERO, 0);
  set_cluster (m, cluster, (struct model_sector) {
      .kind = host ? RUN_ZERO_ALLOC : RUN_ZERO_PLAIN,
    });
}

static void
data (struct model *m, uint64_t cluster, uint64_t *state)
{
  struct builder *b = &m->image;
  uint64_t place, host;

  place = build_l2_place (b, cluster); /* before, so that data can join */
  host = build_data (b, random_next (state) | 1);
  put_be64 (b->data + place, host | QCOW2_ENTRY_COPIED);
  if (b->extended)
    put_be64 (b->data + place + 8, UINT32_MAX);
  set_cluster (m, cluster, (struct model_sector) {
      .kind = RUN_DATA, .host = host,
    });
}

static void
make_cluster (struct model *m, uint64_t cluster, unsigned what, bool damage,
              uint64_t *state)
{
  const bool v3 = m->image.version == 3;

  switch (what) {
  case 0:
  case 1:
    data (m, cluster, state);
    return;
  case 2:
    compressed (m, cluster, state);
    return;
  case 3:
  case 4:
    if (v3)
      zero (m, cluster, what == 3);
    return;
  case 5:
    if (m->image.extended)
      subclusters (m, cluster, state);
    return;
  case 6:
    if (damage)
      damaged (m, cluster, state);
    return;
  default: /* unallocated */
    return;
  }
}

/* Whole L2 tables whose L1 entry is damaged. */
static void
damage_l1 (struct model *m, uint64_t *state)
{
  struct builder *b = &m->image;
  const uint64_t per_table = b->cluster_size /
    (b->extended ? 16 : 8) * b->cluster_size / MODEL_SECTOR;
  const uint64_t index = random_below (state, b->l1_size);
  const uint64_t place = b->l1_offset + 8 * index;
  uint64_t i;

  put_be64 (b->data + place, b->cluster_bits > 9 && random_below (state, 2)
            ? b->cluster_size + 512 : UINT64_C (1) << 53);
  for (i = index * per_table; i < (index + 1) * per_table && i < m->nr; ++i) {
    m->sector[i] = (struct model_sector) {
      .kind = RUN_DAMAGED, .place = place,
    };
  }
}

void
model_start (struct model *m, unsigned version, unsigned cluster_bits,
             bool extended, enum compression compression, uint64_t disk_size,
             const uint8_t *base, uint64_t base_size)
{
  memset (m, 0, sizeof *m);
  build_start (&m->image, version, cluster_bits, extended, compression,
               disk_size);
  m->base = base;
  m->base_size = base_size;
  m->nr = disk_size / MODEL_SECTOR;
  m->sector = calloc (m->nr + 1, sizeof *m->sector);
  m->content = calloc (m->nr + 1, MODEL_SECTOR);
  if (m->sector == NULL || m->content == NULL)
    abort ();
  show_base (m, 0, m->nr * MODEL_SECTOR);
}

static uint64_t
nr_clusters (const struct model *m)
{
  return (m->image.disk_size + m->image.cluster_size - 1) /
    m->image.cluster_size;
}

void
model_fill (struct model *m, bool damage, uint64_t *state)
{
  const unsigned steady = 1 + random_below (state, 8); /* how long runs are */
  unsigned what = 0;
  uint64_t cluster;

  for (cluster = 0; cluster < nr_clusters (m); ++cluster) {
    if (random_below (state, steady) == 0)
      what = random_below (state, 9);
    make_cluster (m, cluster, what, damage, state);
  }
  if (damage && m->image.l1_size > 0 && random_below (state, 2))
    damage_l1 (m, state);
}

void
model_snapshot (struct model *m, unsigned copied, uint64_t *state)
{
  const uint64_t bytes = (m->nr + 1) * MODEL_SECTOR;
  uint8_t *content = malloc (bytes);

  if (content == NULL)
    abort ();
  memcpy (content, m->content, bytes);
  m->snapshot[m->image.nr_snapshots] = content;
  build_snapshot (&m->image, copied, state);
}

void
model_refill (struct model *m, uint64_t *state)
{
  uint64_t cluster;

  for (cluster = 0; cluster < nr_clusters (m); ++cluster) {
    if (random_below (state, 3) == 0)
      make_cluster (m, cluster, random_below (state, 6), false, state);
  }
}

void
model_random (struct model *m, unsigned version, unsigned cluster_bits,
              bool extended, enum compression compression,
              uint64_t disk_size, bool damage, uint64_t *state)
{
  model_start (m, version, cluster_bits, extended, compression, disk_size,
               NULL, 0);
  model_fill (m, damage, state);
}

void
model_free (struct model *m)
{
  unsigned i;

  build_free (&m->image);
  free (m->sector);
  free (m->content);
  for (i = 0; i < BUILD_MAX_SNAPSHOTS; ++i)
    free (m->snapshot[i]);
  memset (m, 0, sizeof *m);
}
