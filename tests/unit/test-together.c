/* SPDX-License-Identifier: BSD-3-Clause */

/* What is read together from a storage whose answers come from afar: tables that
 * extents will want, and compressed clusters.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "build.h"
#include "cache/tables.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image.h"
#include "memory-storage.h"
#include "random.h"

/* ------------------------------------------------------------------- cache */

#define SLICE CACHE_SLOT_BYTES
#define BYTES (UINT64_C (8) << 20)

static uint8_t bytes[BYTES];

static struct storage *
open_bytes (struct memory_control *control)
{
  uint64_t state = 1;

  random_fill (&state, bytes, BYTES);
  control->reads_together = true;
  return memory_storage_new ("test", bytes, BYTES, control);
}

static struct cache_part
part (uint64_t slice, uint64_t nr)
{
  return (struct cache_part) { { slice * SLICE }, nr };
}

/* Get a slice and compare its first word. */
static void
get (struct cache *c, struct storage *s, uint64_t slice)
{
  const struct host_off at = { slice * SLICE };
  struct cache_ref ref;
  uint64_t word;

  do {
    CHECK_OK (cache_get (c, s, 1, at, SLICE, 1, &ref));
    word = cache_word (&ref, 5);
  } while (!cache_still_valid (&ref));
  CHECK_EQ (word, get_be64 (bytes + at.v + 40));
}

static void
test_read_ahead (void)
{
  const struct cache_part parts[] = { part (1, 4), part (100, 16),
                                      part (200, 40) };
  struct memory_control control = { .fail_together = true };
  struct storage *s = open_bytes (&control);
  struct cache *c = cache_new (UINT64_C (4) << 20);
  struct cache_ref ref;
  uint64_t i;

  /* A failure leaves nothing behind. */
  cache_read_ahead (c, s, 1, parts, 3, SLICE);
  CHECK_EQ (control.together, 1);
  CHECK (!cache_find (c, 1, parts[0].offset, &ref));
  control.fail_together = false;
  get (c, s, 101);
  /* What is in the cache is not read again, nor is what follows it. */
  cache_read_ahead (c, s, 1, parts, 3, SLICE);
  CHECK_EQ (control.together, 2);
  CHECK_EQ (control.bytes, (1 + 4 + 1 + 16) * SLICE);
  for (i = 1; i < 5; ++i)
    get (c, s, i);
  for (i = 200; i < 216; ++i)
    get (c, s, i);
  get (c, s, 100);
  get (c, s, 101);
  CHECK_EQ (control.bytes, (1 + 4 + 1 + 16) * SLICE);
  CHECK (!cache_find (c, 1, (struct host_off) { 216 * SLICE }, &ref));
  cache_read_ahead (c, s, 1, parts, 1, SLICE);
  CHECK_EQ (control.together, 2);
  cache_free (c);
  storage_close (s);
}

/* A small cache keeps most of what it has. */
static void
test_bound (void)
{
  struct cache_part parts[CACHE_MAX_PARTS];
  struct memory_control control = { 0 };
  struct storage *s = open_bytes (&control);
  struct cache *c = cache_new (CACHE_MIN_BYTES);
  unsigned i;

  for (i = 0; i < CACHE_MAX_PARTS; ++i)
    parts[i] = part (1 + 20 * i, 16);
  cache_read_ahead (c, s, 1, parts, CACHE_MAX_PARTS, SLICE);
  CHECK (control.bytes > 0 && control.bytes <= CACHE_MIN_BYTES / 4);
  cache_free (c);
  storage_close (s);
}

struct reader {
  struct cache *cache;
  struct storage *storage;
  uint64_t state;
};

static void *
read_at_random (void *opaque)
{
  struct reader *r = opaque;
  unsigned i, k;

  for (i = 0; i < 400 && !check_any_failed (); ++i) {
    struct cache_part parts[3];

    for (k = 0; k < 3; ++k)
      parts[k] = part (1 + random_below (&r->state, 300),
                       1 + random_below (&r->state, 16));
    if (i % 2 == 0)
      cache_read_ahead (r->cache, r->storage, 1, parts, 3, SLICE);
    for (k = 0; k < 3; ++k)
      get (r->cache, r->storage, parts[k].offset.v / SLICE);
  }
  return NULL;
}

static void
test_threads (void)
{
  struct memory_control control = { 0 };
  struct storage *s = open_bytes (&control);
  struct cache *c = cache_new (UINT64_C (256) << 10);
  struct reader reader[4];
  pthread_t thread[4];
  unsigned i;

  for (i = 0; i < 4; ++i) {
    reader[i] = (struct reader) { c, s, i + 1 };
    CHECK_EQ (pthread_create (&thread[i], NULL, read_at_random, &reader[i]), 0);
  }
  for (i = 0; i < 4; ++i)
    pthread_join (thread[i], NULL);
  cache_free (c);
  storage_close (s);
}

/* ------------------------------------------------------------------- image */

#define BITS 12
#define CLUSTER (UINT64_C (1) << BITS)
#define CLUSTERS 200

static uint8_t model[CLUSTERS * CLUSTER], got[CLUSTERS * CLUSTER];

/* All is compressed but for a cluster of data and one of zeros; and one that is
 * damaged, if that is wanted.
 */
static void
build (struct builder *b, bool damaged)
{
  uint64_t i;

  build_start (b, 3, BITS, false, COMPRESSION_DEFLATE, CLUSTERS * CLUSTER);
  for (i = 0; i < CLUSTERS; ++i) {
    uint8_t *p = model + i * CLUSTER;

    build_pattern (p, CLUSTER, i);
    memset (p + CLUSTER / 4, i, CLUSTER / 2);
    if (i == 50) {
      const uint64_t at = build_data (b, i);

      memcpy (p, b->data + at, CLUSTER);
      build_entry (b, i, at | QCOW2_ENTRY_COPIED, 0);
    }
    else if (i == 90)
      memset (p, 0, CLUSTER);
    else
      build_compressed (b, i, p, 0);
  }
  if (damaged) {
    const uint64_t word = get_be64 (b->data + build_l2_place (b, 120));

    memset (b->data + (word & ((UINT64_C (1) << (62 - (BITS - 8))) - 1)), 0xff,
            16);
  }
}

static void
compare (const struct layer *disk, uint64_t offset, uint64_t count)
{
  memset (got, 0xee, count);
  CHECK_OK (layer_read (disk, got, count, (struct guest_off) { offset }));
  CHECK (memcmp (got, model + offset, count) == 0);
}

static void
test_compressed (bool fail)
{
  struct memory_control control = { .reads_together = true,
                                    .fail_together = fail };
  struct builder b;
  struct image *im;
  struct layer *disk;
  uint64_t state = 3;
  unsigned i;

  build (&b, false);
  im = image_open_storage (build_storage (&b, &control), 1 << 20);
  CHECK (im != NULL);
  disk = image_open_disk (im, "");
  CHECK (disk != NULL);
  compare (disk, 0, CLUSTER);
  control.preads = control.together = 0;
  compare (disk, 0, 32 * CLUSTER);
  CHECK_EQ (control.together, 1);
  CHECK_EQ (control.preads, 32);
  compare (disk, 0, CLUSTERS * CLUSTER);
  for (i = 0; i < 300; ++i) {
    const uint64_t offset = random_below (&state, CLUSTERS * CLUSTER);

    compare (disk, offset, 1 + random_below (&state, CLUSTERS * CLUSTER -
                                             offset));
  }
  image_close_disk (disk);
  CHECK_OK (image_close (im));
  build_free (&b);
}

/* What is read is right up to what is damaged. */
static void
test_damaged (void)
{
  struct memory_control control = { .reads_together = true };
  struct builder b;
  struct image *im;
  struct layer *disk;

  build (&b, true);
  im = image_open_storage (build_storage (&b, &control), 1 << 20);
  CHECK (im != NULL);
  disk = image_open_disk (im, "");
  CHECK (disk != NULL);
  compare (disk, 100 * CLUSTER, 20 * CLUSTER);
  compare (disk, 121 * CLUSTER, 40 * CLUSTER);
  CHECK_EQ (layer_read (disk, got, 30 * CLUSTER,
                        (struct guest_off) { 100 * CLUSTER }), -1);
  CHECK_ERROR (EIO, "damaged: compressed cluster");
  image_close_disk (disk);
  CHECK_OK (image_close (im));
  build_free (&b);
}

static int
sum_data (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  uint64_t *sum = opaque;

  (void) offset;
  *sum += flags & EXTENT_ZERO ? 0 : length;
  return 0;
}

/* Of 64 L2 tables, with a cluster each. */
static void
test_extents (bool fail)
{
  struct memory_control control = { .reads_together = true,
                                    .fail_together = fail };
  const uint64_t size = CLUSTER * (CLUSTER / 8) * 64;
  struct builder b;
  struct image *im;
  struct layer *disk;
  uint64_t i, sum = 0;

  build_start (&b, 3, BITS, false, COMPRESSION_DEFLATE, size);
  for (i = 0; i < 64; ++i)
    build_entry (&b, i * (CLUSTER / 8) + i, build_data (&b, i) |
                 QCOW2_ENTRY_COPIED, 0);
  im = image_open_storage (build_storage (&b, &control), 1 << 20);
  CHECK (im != NULL);
  disk = image_open_disk (im, "");
  CHECK (disk != NULL);
  control.together = 0;
  CHECK_OK (layer_extents (disk, size, (struct guest_off) { 0 }, false,
                           sum_data, &sum));
  CHECK_EQ (sum, 64 * CLUSTER);
  if (!fail)
    CHECK (control.together > 0 && control.together <= 6);
  image_close_disk (disk);
  CHECK_OK (image_close (im));
  build_free (&b);
}

int
main (void)
{
  check_time_limit (60);
  (void) unsetenv (MEMORY_BLOCK_VARIABLE);
  test_read_ahead ();
  test_bound ();
  test_threads ();
  test_compressed (false);
  test_compressed (true);
  test_damaged ();
  test_extents (false);
  test_extents (true);
  return check_result ();
}
