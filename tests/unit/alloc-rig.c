/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "alloc-rig.h"
#include "check.h"
#include "image-check.h"

struct memory_disk disk;
struct memory_control control;
struct storage *storage;
struct cache *cache;
struct epoch epoch;
struct writeback writeback;
struct overlap overlap;
struct alloc space;
static struct header header;
unsigned cluster_bits;
unsigned refcount_order = 4;

uint8_t owner[MAX_CLUSTERS];

/* Garbage in a free cluster. */
static uint64_t
free_garbage (struct builder *b)
{
  return build_data (b, 0x77);
}

void
alloc_rig_start (unsigned bits, bool keep_discarded)
{
  const uint64_t cluster_size = UINT64_C (1) << bits;
  struct builder b;
  unsigned i;

  cluster_bits = bits;
  build_start (&b, 3, bits, false, COMPRESSION_DEFLATE, 40 * cluster_size);
  build_order (&b, refcount_order);
  for (i = 0; i < 10; ++i) {
    build_entry (&b, i, build_data (&b, i + 1), 0);
    if (i % 3 == 0)
      free_garbage (&b);
  }
  build_finish (&b);
  memset (&control, 0, sizeof control);
  memset (owner, 0, sizeof owner);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  CHECK_OK (header_decode ("test", disk.data, cluster_size,
                           atomic_load (&disk.size), &header));
  storage = memory_disk_open (&disk, "test", &control);
  cache = cache_new (1 << 20);
  epoch_init (&epoch);
  CHECK_OK (writeback_init (&writeback, storage, storage, cache, 0,
                            bits < 12 ? 1U << bits : CACHE_SLOT_BYTES, bits,
                            &epoch));
  overlap_init (&overlap, bits);
  CHECK_OK (overlap_add_range (&overlap, (struct host_off) { 0 },
                               cluster_size, METADATA_HEADER));
  CHECK_OK (overlap_sort (&overlap, "test"));
  CHECK_OK (alloc_init (&space, &header, &writeback, &overlap, keep_discarded));
}

void
alloc_rig_end (void)
{
  alloc_destroy (&space);
  overlap_destroy (&overlap);
  writeback_destroy (&writeback);
  epoch_destroy (&epoch);
  cache_free (cache);
  storage_close (storage);
  memory_disk_free (&disk);
}

void
alloc_rig_close (uint64_t leaks)
{
  struct image_check c;

  CHECK_OK (alloc_close (&space));
  c = image_check ("after closing", disk.data, atomic_load (&disk.size));
  CHECK_EQ (c.leaks, leaks);
  alloc_rig_end ();
}

bool
alloc_rig_is_zero (uint64_t offset, uint64_t count)
{
  static const uint8_t zeros[65536];
  uint8_t buf[65536];

  while (count > 0) {
    const size_t n = count < sizeof buf ? count : sizeof buf;

    CHECK_OK (storage_read (storage, buf, n, (struct host_off) { offset }));
    if (memcmp (buf, zeros, n) != 0)
      return false;
    offset += n;
    count -= n;
  }
  return true;
}

void
alloc_rig_check_taken (const struct alloc_clusters *c, uint64_t max,
                       unsigned me)
{
  const uint64_t first = c->host.v >> cluster_bits;
  uint64_t i, refcount = 0;

  CHECK (c->nr >= 1 && c->nr <= max);
  CHECK_EQ (c->host.v & ((UINT64_C (1) << cluster_bits) - 1), 0);
  CHECK (c->host.v + (c->nr << cluster_bits) <= atomic_load (&disk.size));
  CHECK (first + c->nr <= MAX_CLUSTERS);
  CHECK_EQ (overlap_find (&overlap, c->host, c->nr << cluster_bits),
            METADATA_NONE);
  for (i = 0; i < c->nr; ++i) {
    CHECK_EQ (owner[first + i], 0);
    owner[first + i] = me;
  }
  if (c->zero)
    CHECK (alloc_rig_is_zero (c->host.v, c->nr << cluster_bits));
  CHECK_OK (alloc_refcount (&space, c->host, &refcount));
  CHECK_EQ (refcount, 1);
}
