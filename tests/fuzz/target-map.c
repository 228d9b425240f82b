/* SPDX-License-Identifier: BSD-3-Clause */

/* The live disk of an image, read; and all refcounts that it has. */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "image-check.h"
#include "image.h"
#include "memory-storage.h"
#include "mutate.h"
#include "promise.h"
#include "qcow2/write/refcount.h"
#include "random.h"
#include "target.h"

/* Refcounts that are looked at, and a few behind the file's end. */
#define MAX_CLUSTERS 2048

/* -------------------------------------------------------------- refcounts */

static void
compare_refcounts (struct refcounts *r, const uint8_t *data, uint64_t size,
                   uint64_t nr)
{
  uint64_t at, i, refcount, run;

  for (at = 0; at < nr; at += run) {
    if (refcount_run (r, at, nr - at, &refcount, &run) == -1)
      broken ("a refcount can't be read");
    expect (run > 0 && run <= nr - at, "a run of refcounts is out of range");
    for (i = at; i < at + run; ++i)
      expect (image_refcount (data, size, i) == refcount,
              "a refcount is another one");
  }
}

static void
check_refcounts (const uint8_t *data, size_t size, const struct header *h)
{
  struct storage *s = memory_storage_new ("input", data, size, NULL);
  struct cache *cache = cache_new (CACHE_MIN_BYTES);
  const uint64_t slice = h->cluster_size < CACHE_SLOT_BYTES
    ? h->cluster_size : CACHE_SLOT_BYTES;
  const uint64_t nr = size / h->cluster_size + 16;
  struct epoch epoch;
  struct writeback writeback;
  struct overlap overlap;
  struct refcounts refcounts;

  epoch_init (&epoch);
  overlap_init (&overlap, h->cluster_bits);
  if (cache == NULL ||
      writeback_init (&writeback, s, s, cache, 0, slice, h->cluster_bits,
                      &epoch) == -1)
    broken ("memory is short");
  if (refcounts_init (&refcounts, h, &writeback, &overlap) == -1)
    expect_error ();
  else
    compare_refcounts (&refcounts, data, size,
                       nr < MAX_CLUSTERS ? nr : MAX_CLUSTERS);
  overlap_destroy (&overlap);
  writeback_destroy (&writeback);
  epoch_destroy (&epoch);
  cache_free (cache);
  storage_close (s);
}

/* --------------------------------------------------------------- the target */

static void
visit_live_disk (struct image *im, const uint8_t *data, size_t size)
{
  uint64_t state = disk_seed (data, size);
  struct layer *disk = image_open_disk (im, "");
  struct reference r;

  expect (disk != NULL, "the live disk can't be opened");
  reference_init (&r, data, size);
  disk_set_base (&r);
  disk_visit (disk, &r, &state);
  image_close_disk (disk);
}

static void
test_map (const uint8_t *data, size_t size)
{
  struct memory_control control = { 0 };
  struct header h;
  struct image *im;

  if (disk_is_qed (data, size))
    return;
  error_set (0, "%s", "");
  im = disk_open_image (memory_storage_new ("input", data, size, &control),
                        data, size);
  if (im != NULL) {
    visit_live_disk (im, data, size);
    expect (image_close (im) == 0, "an image that was read can't be closed");
    expect (disk_header (data, size, &h),
            "a header is accepted once, and then refused");
    check_refcounts (data, size, &h);
  }
  else
    expect_error ();
  expect (control.closes == 1, "the storage is not closed");
}

static size_t
mutate_map (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  return mutate_image (data, size, max, seed, MUTATE_MAP);
}

const struct target target_map = {
  .name = "map",
  .max_size = 128 << 10,
  .test = test_map,
  .mutate = mutate_map,
};
