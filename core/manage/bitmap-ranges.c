/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/bitmap-ranges.h"
#include "qcow2/bitmap-bits.h"
#include "qcow2/entry.h"

struct reading {
  struct storage *storage;
  const struct header *header;
  struct bitmap_info info;
  uint64_t nr_bits;
  uint64_t *table; /* big endian */
  uint8_t *bits;   /* of one part */

  /* The range that is not told yet, of bits. */
  uint64_t first, nr;
  bitmap_range_fn *fn;
  void *opaque;
};

static int
tell (struct reading *r)
{
  const unsigned shift = r->info.granularity_bits;
  const uint64_t start = r->first << shift;
  const uint64_t length = r->first + r->nr == r->nr_bits
    ? r->header->disk_size - start : r->nr << shift;
  const bool any = r->nr > 0;

  r->nr = 0;
  return any ? r->fn (r->opaque, start, length) : 0;
}

static int
add (struct reading *r, uint64_t first, uint64_t nr)
{
  if (r->nr > 0 && r->first + r->nr == first) {
    r->nr += nr;
    return 0;
  }
  if (tell (r) == -1)
    return -1;
  r->first = first;
  r->nr = nr;
  return 0;
}

/* A part whose bits are in a cluster: nr from the first-th of the bitmap on.
 */
static int
read_cluster (struct reading *r, struct host_off at, uint64_t first,
              uint64_t nr)
{
  uint64_t i, same;

  if (storage_read_present (r->storage, r->bits, (nr + 7) / 8, at) == -1)
    return -1;
  for (i = 0; i < nr; i += same) {
    same = bitmap_same (r->bits, i, nr);
    if (bitmap_bit (r->bits, i) && add (r, first + i, same) == -1)
      return -1;
  }
  return 0;
}

static int
read_part (struct reading *r, uint32_t i)
{
  const uint64_t word = be64toh (r->table[i]);
  const uint64_t per_part = r->header->cluster_size * 8;
  const uint64_t first = i * per_part;
  const uint64_t nr = r->nr_bits - first < per_part ? r->nr_bits - first
    : per_part;
  struct host_off at;

  switch (entry_decode_bitmap (word, r->header->cluster_bits, &at)) {
  case BITMAP_PART_CLEAN:
    return 0;
  case BITMAP_PART_DIRTY:
    return add (r, first, nr);
  case BITMAP_PART_CLUSTER:
    return read_cluster (r, at, first, nr);
  case BITMAP_PART_INVALID:
    error_set (EIO, "%s: the bitmap \"%s\": table entry at offset 0x%" PRIx64
               ": 0x%" PRIx64 " is not valid", r->storage->name, r->info.name,
               r->info.table.v + i * sizeof word, word);
    return -1;
  }
  abort ();
}

static int
read_all (struct reading *r)
{
  const uint64_t bytes = r->info.nr_parts * sizeof r->table[0];
  uint32_t i;

  r->nr_bits = bitmap_nr_bits (r->header->disk_size, r->info.granularity_bits);
  r->table = malloc (bytes + 1);
  r->bits = malloc (r->header->cluster_size);
  if (r->table == NULL || r->bits == NULL) {
    error_set (ENOMEM, "%s: out of memory", r->storage->name);
    return -1;
  }
  if (storage_read (r->storage, r->table, bytes, r->info.table) == -1)
    return -1;
  for (i = 0; i < r->info.nr_parts; ++i)
    if (read_part (r, i) == -1)
      return -1;
  return tell (r);
}

int
bitmap_ranges (struct storage *s, const struct header *h, const char *name,
               bitmap_range_fn *fn, void *opaque)
{
  struct reading r = {
    .storage = s, .header = h, .fn = fn, .opaque = opaque,
  };
  unsigned nr;
  int ret;

  if (bitmap_find (s, h, name, &r.info, &nr) == -1 ||
      bitmap_check_usable (s, &r.info) == -1 ||
      bitmap_check_table (s, h, &r.info) == -1)
    return -1;
  ret = read_all (&r);
  free (r.table);
  free (r.bits);
  return ret;
}
