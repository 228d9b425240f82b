/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include "kinds-rig.h"

static struct kinds_form form;
uint64_t kinds_cache_bytes = CACHE_MIN_BYTES;
static uint8_t *base;
uint64_t cluster_size, disk_size;

static uint64_t
per_table (void)
{
  return cluster_size / (form.extended ? 16 : 8);
}

uint64_t
kinds_at (enum kind kind)
{
  if (kind == NO_TABLE && cluster_size <= 4096)
    return per_table () * cluster_size;
  return (3 * kind + 1) * cluster_size;
}

static void
add_compressed (struct builder *b, uint64_t cluster)
{
  uint8_t *plain = malloc (cluster_size);

  build_pattern (plain, cluster_size, cluster + 100);
  build_compressed (b, cluster, plain, 30);
  free (plain);
}

static void
add_data (struct builder *b, uint64_t cluster)
{
  build_l2_place (b, cluster); /* first, so that data can join */
  build_entry (b, cluster, build_data (b, cluster + 1),
               b->extended ? UINT32_MAX : 0);
}

static void
add_kind (struct builder *b, enum kind kind)
{
  const uint64_t c = kinds_at (kind) / cluster_size;

  switch (kind) {
  case DATA_BESIDE:
    add_data (b, c - 1);
    add_data (b, c);
    add_data (b, c + 1);
    return;
  case DATA:
    add_data (b, c);
    return;
  case ZERO:
  case ZERO_KEPT: {
    const uint64_t host = kind == ZERO_KEPT ? build_data (b, 5) : 0;

    if (b->extended)
      build_entry (b, c, host, ~(uint64_t) UINT32_MAX);
    else if (b->version >= 3)
      build_entry (b, c, host | QCOW2_L2_ZERO, 0);
    return;
  }
  case COMPRESSED:
  case COMPRESSED_TOO:
    add_compressed (b, c);
    return;
  case MIXED:
  case MIXED_NO_HOST:
    if (b->extended && kind == MIXED)
      build_entry (b, c, build_data (b, 6), UINT64_C (0x00f0f00f0f0f00f0));
    else if (b->extended)
      build_entry (b, c, 0, UINT64_C (0x00fff00f00000000));
    return;
  case NOTHING:
  case NO_TABLE:
  case NR_KINDS:
    return;
  }
}

void
kinds_make (const struct kinds_form *f, bool tail)
{
  static char what[200];
  struct builder b;
  uint64_t state = 1;
  enum kind kind;
  unsigned i;

  form = *f;
  cluster_size = UINT64_C (1) << f->bits;
  disk_size = (3 * NR_KINDS + 3) * cluster_size;
  if (disk_size < kinds_at (NO_TABLE) + 3 * cluster_size)
    disk_size = kinds_at (NO_TABLE) + 3 * cluster_size;
  if (tail)
    disk_size += cluster_size > 512 ? cluster_size / 2 : 0;
  snprintf (what, sizeof what, "v%u, clusters of 2^%u, refcounts of 2^%u bits"
            "%s%s, %u snapshots, %u%% of tables copied", f->version, f->bits,
            f->order, f->extended ? ", extended" : "",
            f->backing ? ", backing" : "", f->snapshots, f->copied);
  build_start (&b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE,
               disk_size);
  if (f->version >= 3)
    build_order (&b, f->order);
  if (f->order < 2)
    b.max_sharing = 1;
  for (kind = 0; kind < NR_KINDS; ++kind)
    add_kind (&b, kind);
  if (f->backing)
    build_backing (&b, "raw");
  for (i = 0; i < f->snapshots; ++i)
    build_snapshot (&b, f->copied, &state);
  build_finish (&b);
  rig_init (&rig, what, &b);
  build_free (&b);
  rig.cache_size = kinds_cache_bytes;
  if (f->backing) {
    /* It ends within the disk, and not at a cluster. */
    base = malloc (disk_size);
    build_pattern (base, disk_size, 1234);
    rig_set_base (&rig, base, disk_size - (tail ? 100 : cluster_size / 2 + 100),
                  true);
  }
  rig_open (&rig);
}

void
kinds_unmake (void)
{
  rig_free (&rig);
  free (base);
  base = NULL;
}

const struct kinds_form kinds_forms[KINDS_FORMS] = {
  { 2, 16, false, 4, false, 0, 0 },
  { 2, 9, false, 4, true, 0, 0 },
  { 2, 12, false, 4, true, 2, 50 },
  { 3, 9, false, 0, true, 0, 0 },
  { 3, 12, false, 4, false, 0, 0 },
  { 3, 16, false, 3, true, 0, 0 },
  { 3, 16, false, 4, true, 1, 0 },
  { 3, 12, false, 6, false, 2, 100 },
  { 3, 14, true, 4, false, 0, 0 },
  { 3, 14, true, 1, true, 1, 0 },
  { 3, 16, true, 4, true, 0, 0 },
  { 3, 16, true, 5, true, 2, 60 },
};
