/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "crypto/luks-new.h"
#include "disk/extents.h"
#include "manage/create-parts.h"
#include "manage/measure.h"
#include "qcow2/bitmaps.h"

#define NAME "the new image"

static uint64_t
divide_up (uint64_t a, uint64_t b)
{
  return a / b + (a % b != 0);
}

static uint64_t
round_up (uint64_t a, uint64_t b)
{
  return divide_up (a, b) * b;
}

static uint64_t
disk_clusters (const struct measure *m)
{
  return divide_up (m->options->size, m->options->cluster_size);
}

static uint64_t
l2_tables (const struct measure *m)
{
  const uint64_t entry = sizeof (uint64_t) << m->options->extended_l2;

  return divide_up (disk_clusters (m), m->options->cluster_size / entry);
}

int
measure_begin (struct measure *m, const struct create_options *o)
{
  *m = (struct measure) { .options = o };
  if (create_check_format (NAME, o) == -1)
    return -1;
  if (l2_tables (m) <= QCOW2_MAX_L1_BYTES / sizeof (uint64_t))
    return 0;
  error_set (EINVAL, "%s: disk size %" PRIu64 ": its L1 table would be larger "
             "than the limit of %" PRIu64 " bytes; larger clusters help", NAME,
             o->size, QCOW2_MAX_L1_BYTES);
  return -1;
}

/* ------------------------------------------------------------------ source */

/* Count the clusters that have some of this range; ranges come in order. */
static void
add_data (struct measure *m, uint64_t start, uint64_t length)
{
  uint64_t first = start / m->options->cluster_size;
  const uint64_t end = divide_up (start + length, m->options->cluster_size);

  if (first < m->next)
    first = m->next;
  if (end <= first)
    return;
  m->data += end - first;
  m->next = end;
}

struct disk {
  struct measure *measure;
  uint64_t end; /* of what was told */
};

static int
add_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct disk *d = opaque;

  if (!(flags & EXTENT_ZERO))
    add_data (d->measure, offset, length);
  d->end = offset + length;
  return 0;
}

int
measure_disk (struct measure *m, const struct layer *disk)
{
  struct disk d = { .measure = m };

  if (m->options->backing != NULL) {
    add_data (m, 0, disk->size);
    return 0;
  }
  while (d.end < disk->size) {
    if (layer_extents (disk, disk->size - d.end, (struct guest_off) { d.end },
                       false, add_extent, &d) == -1)
      return -1;
  }
  return 0;
}

int
measure_raw (struct measure *m, struct storage *s)
{
  uint64_t at, length;
  bool hole;

  for (at = 0; at < s->size; at += length) {
    if (storage_extent (s, (struct host_off) { at }, s->size - at, &hole,
                        &length) == -1)
      return -1;
    if (!hole || !storage_holes_read_zero (s) || m->options->backing != NULL)
      add_data (m, at, length);
  }
  return 0;
}

struct bitmap_sizes {
  struct measure *measure;
  uint64_t disk_size;
};

/* All its bits may be in clusters of their own. */
static int
add_bitmap (void *opaque, const struct bitmap_info *b)
{
  const struct bitmap_sizes *z = opaque;
  struct measure *m = z->measure;
  const uint64_t cluster = m->options->cluster_size;
  const uint64_t bits = divide_up (z->disk_size,
                                   UINT64_C (1) << b->granularity_bits);
  const uint64_t clusters = divide_up (divide_up (bits, 8), cluster);

  if (b->state == BITMAP_UNKNOWN)
    return 0;
  m->bitmaps += clusters * cluster +
    round_up (clusters * sizeof (uint64_t), cluster);
  m->directory += round_up (QCOW2_BITMAP_ENTRY_SIZE + strlen (b->name), 8);
  return 0;
}

int
measure_bitmaps (struct measure *m, struct storage *s, const struct header *h)
{
  struct bitmap_sizes z = { .measure = m, .disk_size = h->disk_size };

  m->has_bitmaps = h->version >= 3 && m->options->version >= 3;
  return m->has_bitmaps ? bitmaps_list (s, h, add_bitmap, &z) : 0;
}

/* ----------------------------------------------------------------- results */

/* Bytes of the refcount table and its blocks, which count themselves as well. */
static uint64_t
refcount_bytes (const struct create_options *o, uint64_t clusters)
{
  const uint64_t in_block = o->cluster_size * 8 / o->refcount_bits;
  const uint64_t in_table = o->cluster_size / sizeof (uint64_t);
  uint64_t blocks = 0, table = 0, last;

  do {
    last = blocks + table;
    blocks = divide_up (clusters + last, in_block);
    table = divide_up (blocks, in_table);
  } while (blocks + table != last);
  return last * o->cluster_size;
}

/* Bytes of all but the guest's clusters. */
static uint64_t
overhead (const struct measure *m)
{
  const struct create_options *o = m->options;
  const uint64_t cluster = o->cluster_size;
  const uint64_t tables = l2_tables (m);
  const uint64_t own = cluster + tables * cluster +
    round_up (tables * sizeof (uint64_t), cluster);
  const uint64_t crypto = o->passphrase != NULL
    ? round_up (LUKS_NEW_BYTES, cluster) : 0;

  return own + crypto + refcount_bytes (o, own / cluster + disk_clusters (m));
}

uint64_t
measure_full (const struct measure *m)
{
  return overhead (m) + disk_clusters (m) * m->options->cluster_size;
}

uint64_t
measure_required (const struct measure *m)
{
  const bool all = m->options->preallocation == PREALLOCATION_FALLOC ||
    m->options->preallocation == PREALLOCATION_FULL;

  return overhead (m) +
    (all ? disk_clusters (m) : m->data) * m->options->cluster_size;
}

uint64_t
measure_of_bitmaps (const struct measure *m)
{
  return m->bitmaps + round_up (m->directory, m->options->cluster_size);
}
