/* SPDX-License-Identifier: BSD-3-Clause */

/* disk/extents.c, disk/layer.c and reading through chains of layers, against
 * what models of each layer say.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "cache/clusters.h"
#include "check.h"
#include "disk/chain.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "formats.h"
#include "model.h"
#include "qcow2/codec.h"
#include "qcow2/disk.h"
#include "qcow2/qcow2.h"
#include "random.h"
#include "raw/raw.h"

#define MAX_LAYERS 4

static struct epoch epoch;
static struct shared shared = { .formats = all_formats, .epoch = &epoch };
static unsigned nr_layers;
static struct chain chain[MAX_LAYERS]; /* of one layer each */
static struct model model[MAX_LAYERS]; /* the first is the top */
static struct memory_control control[MAX_LAYERS];

/* The last layer may be raw. */
static struct layer raw;
static uint8_t *raw_data;
static struct memory_control raw_control;

static void
open_chain (unsigned nr, uint64_t raw_size, const uint8_t *data)
{
  unsigned i;

  epoch_init (&epoch);
  shared.cache = cache_new (CACHE_MIN_BYTES);
  shared.clusters = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  shared.codecs = codec_pool_new ();
  nr_layers = nr;
  for (i = 0; i < nr; ++i) {
    struct storage *s = build_storage (&model[i].image, &control[i]);

    CHECK_OK (chain_open_storages (&chain[i], &qcow2_format, &s, 1, &shared));
    qcow2_file (chain[i].layer[0])->disk.map.id = i;
    if (i > 0)
      chain[i - 1].layer[0]->backing = chain[i].layer[0];
  }
  memset (&raw, 0, sizeof raw);
  if (data != NULL) {
    raw_control.holes = true;
    raw = (struct layer) {
      .format = &raw_format,
      .data = memory_storage_new ("raw", data, raw_size, &raw_control),
      .size = raw_size,
      .shared = &shared,
    };
    chain[nr - 1].layer[0]->backing = &raw;
  }
}

static void
close_chain (void)
{
  unsigned i;

  for (i = 0; i < nr_layers; ++i) {
    chain_close (&chain[i]);
    model_free (&model[i]);
  }
  storage_close (raw.data);
  free (raw_data);
  raw_data = NULL;
  codec_pool_free (shared.codecs);
  cluster_cache_free (shared.clusters);
  cache_free (shared.cache);
  epoch_destroy (&epoch);
  memset (control, 0, sizeof control);
  memset (&raw_control, 0, sizeof raw_control);
}

/* What the byte at offset of the whole disk is. */
static unsigned
expected (uint64_t offset, uint8_t *byte, bool *damaged)
{
  unsigned i;

  *byte = 0;
  *damaged = false;
  for (i = 0; i < nr_layers; ++i) {
    const struct model *m = &model[i];

    if (offset >= m->nr * MODEL_SECTOR)
      return EXTENT_HOLE | EXTENT_ZERO;
    *byte = m->content[offset];
    switch (m->sector[offset / MODEL_SECTOR].kind) {
    case RUN_UNALLOCATED:
      continue;
    case RUN_ZERO_PLAIN:
      return EXTENT_HOLE | EXTENT_ZERO;
    case RUN_ZERO_ALLOC:
      return EXTENT_ZERO;
    case RUN_DAMAGED:
      *damaged = true;
      return 0;
    case RUN_DATA:
    case RUN_GUEST_DATA:
    case RUN_COMPRESSED:
      return 0;
    }
  }
  *byte = 0;
  if (offset >= raw.size)
    return EXTENT_HOLE | EXTENT_ZERO;
  *byte = raw_data[offset];
  for (offset = offset / 512 * 512, i = 0; i < 512; ++i, ++offset) {
    if (offset < raw.size && raw_data[offset] != 0)
      return 0;
  }
  return EXTENT_HOLE | EXTENT_ZERO;
}

struct walk {
  uint64_t next, end;
  unsigned nr, last_flags;
  unsigned stop_after; /* this many; 0: never */
};

static int
take_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  struct walk *w = opaque;
  uint64_t at;
  uint8_t byte;
  bool damaged;

  CHECK_EQ (offset, w->next);
  CHECK (length > 0 && length <= w->end - offset);
  if (w->nr > 0)
    CHECK (flags != w->last_flags);
  for (at = offset; at < offset + length; at = (at / 512 + 1) * 512) {
    const unsigned right = expected (at, &byte, &damaged);

    if (flags != right) {
      check_failed (__FILE__, __LINE__, "offset 0x%" PRIx64 " (extent 0x%"
                    PRIx64 "+0x%" PRIx64 "): flags %u are not %u", at, offset,
                    length, flags, right);
      break;
    }
  }
  w->next = offset + length;
  w->last_flags = flags;
  return ++w->nr == w->stop_after ? -1 : 0;
}

static void
compare_extents (uint64_t offset, uint64_t count)
{
  const struct layer *top = chain[0].layer[0];
  const struct guest_off at = { offset };
  struct walk w = { .next = offset, .end = offset + count };
  struct walk one = w, stopped = w;
  uint8_t byte;
  bool damaged;

  CHECK_OK (layer_extents (top, count, at, false, take_extent, &w));
  CHECK_EQ (w.next, w.end);

  CHECK_OK (layer_extents (top, count, at, true, take_extent, &one));
  CHECK_EQ (one.nr, 1);
  /* The first one ends where its flags do. */
  if (one.next < one.end)
    CHECK (expected (one.next, &byte, &damaged) != one.last_flags);

  stopped.stop_after = 1 + w.nr / 2;
  CHECK_EQ (layer_extents (top, count, at, false, take_extent, &stopped),
            (uint64_t) -1);
  CHECK_EQ (stopped.nr, 1 + w.nr / 2);
}

static void
compare_read (uint64_t offset, size_t count)
{
  const struct layer *top = chain[0].layer[0];
  uint8_t *buf = malloc (count), *right = malloc (count);
  bool any_damaged = false, damaged;
  size_t i;

  memset (buf, 0xdd, count);
  for (i = 0; i < count; ++i) {
    expected (offset + i, &right[i], &damaged);
    any_damaged |= damaged;
  }
  if (any_damaged) {
    CHECK_EQ (layer_read (top, buf, count, (struct guest_off) { offset }),
              (uint64_t) -1);
    CHECK_ERROR (EIO, "damaged");
  }
  else {
    CHECK_OK (layer_read (top, buf, count, (struct guest_off) { offset }));
    CHECK (memcmp (buf, right, count) == 0);
  }
  free (buf);
  free (right);
}

static void
random_chain (uint64_t *state)
{
  const unsigned nr = 1 + random_below (state, MAX_LAYERS);
  const bool damage = random_below (state, 3) == 0;
  uint64_t raw_size = 0, i;
  unsigned l;

  for (l = 0; l < nr; ++l) {
    const unsigned bits = 9 + random_below (state, 8);
    const unsigned version = random_below (state, 3) == 0 ? 2 : 3;

    model_random (&model[l], version, bits, version == 3 && bits >= 14 &&
                  random_below (state, 2), version == 3
                  ? random_below (state, 2) : COMPRESSION_DEFLATE,
                  1024 + random_below (state, 400000), damage, state);
  }
  if (random_below (state, 2)) {
    raw_size = random_below (state, 400000);
    raw_data = calloc (raw_size + 1, 1);
    for (i = 0; i < raw_size; i += 4096) {
      if (random_below (state, 2))
        build_pattern (raw_data + i, raw_size - i < 5000 ? raw_size - i : 5000,
                       i | 1);
    }
  }
  open_chain (nr, raw_size, raw_data);
}

static void
test_random (void)
{
  uint64_t state = 13;
  unsigned i, j;

  for (i = 0; i < 250; ++i) {
    uint64_t size;

    random_chain (&state);
    size = chain[0].layer[0]->size;
    compare_extents (0, size);
    for (j = 0; j < 15; ++j) {
      const uint64_t offset = random_below (&state, size);

      compare_extents (offset, 1 + random_below (&state, size - offset));
      compare_read (offset, 1 + random_below
                    (&state, size - offset < 70000 ? size - offset : 70000));
    }
    layer_prefetch (chain[0].layer[0], size, (struct guest_off) { 0 });
    close_chain ();
  }
}

/* A raw layer on its own: its holes, and errors in looking for them. */
static void
test_raw (void)
{
  struct walk w = { .end = 100000 };

  raw_data = calloc (100000, 1);
  memset (raw_data + 20000, 1, 30000);
  raw_data[99999] = 1;
  nr_layers = 0;
  raw_control.holes = true;
  raw = (struct layer) {
    .format = &raw_format, .size = 100000,
    .shared = &shared,
    .data = memory_storage_new ("raw", raw_data, 100000, &raw_control),
  };
  CHECK_OK (layer_extents (&raw, 100000, (struct guest_off) { 0 }, false,
                           take_extent, &w));
  CHECK_EQ (w.nr, 4);
  raw_control.fail_call = raw_control.calls + 2;
  w = (struct walk) { .end = 100000 };
  CHECK_EQ (layer_extents (&raw, 100000, (struct guest_off) { 0 }, false,
                           take_extent, &w), (uint64_t) -1);
  CHECK_ERROR (EIO, "raw: looking for holes at offset 0x");
  storage_close (raw.data);
  free (raw_data);
  raw_data = NULL;
  memset (&raw_control, 0, sizeof raw_control);
}

/* An empty disk of 2^40 is one extent, at once. */
static int
count_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  uint64_t *total = opaque;

  *total += length;
  CHECK_EQ (flags, EXTENT_HOLE | EXTENT_ZERO);
  return 0;
}

static void
test_sparse (void)
{
  uint64_t total = 0;

  build_start (&model[0].image, 3, 16, false, COMPRESSION_DEFLATE,
               UINT64_C (1) << 40);
  build_start (&model[1].image, 3, 16, false, COMPRESSION_DEFLATE, 1 << 20);
  open_chain (2, 0, NULL);
  CHECK_OK (layer_extents (chain[0].layer[0], UINT64_C (1) << 40,
                           (struct guest_off) { 0 }, false, count_extent,
                           &total));
  CHECK_EQ (total, UINT64_C (1) << 40);
  CHECK (control[0].preads < 30);
  close_chain ();
}

/* Very many damaged entries are data, and nothing of them gets to the log; the
 * first read of each still does.
 */
static unsigned nr_messages;

static void
count_message (const char *text)
{
  (void) text;
  nr_messages++;
}

static int
take_data (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  uint64_t *total = opaque;

  CHECK_EQ (offset, 0);
  CHECK_EQ (flags, 0);
  *total += length;
  return 0;
}

static void
test_many_damaged (void)
{
  struct builder *b = &model[0].image;
  uint64_t total = 0;
  uint8_t byte;
  unsigned i;

  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, 4096 * 4096);
  for (i = 0; i < 4096; ++i)
    build_entry (b, i, (UINT64_C (1) << 40) + 512, 0);
  open_chain (1, 0, NULL);
  debug_hooks.message = debug_hooks.note = count_message;
  CHECK_OK (layer_extents (chain[0].layer[0], 4096 * 4096,
                           (struct guest_off) { 0 }, false, take_data, &total));
  CHECK_EQ (total, 4096 * 4096);
  CHECK_EQ (nr_messages, 0);
  debug_hooks.message = debug_hooks.note = NULL;
  for (i = 0; i < 2; ++i) {
    CHECK_EQ (layer_read (chain[0].layer[0], &byte, 1, (struct guest_off) {
          4095 * 4096 }), (uint64_t) -1);
    CHECK_ERROR (EIO, "damaged: L2 entry");
    CHECK_EQ (error_repeated (), i == 1);
  }
  close_chain ();
}

int
main (void)
{
  check_time_limit (200);
  test_raw ();
  test_sparse ();
  test_many_damaged ();
  test_random ();
  return check_result ();
}
