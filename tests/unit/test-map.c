/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/map.c and disk/read.c: small images, known ones and random ones. */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "cache/clusters.h"
#include "check.h"
#include "disk/chain.h"
#include "disk/read.h"
#include "formats.h"
#include "model.h"
#include "qcow2/codec.h"
#include "qcow2/disk.h"
#include "qcow2/qcow2.h"
#include "random.h"
#include "seconds.h"

static struct epoch epoch;
static struct shared shared = { .formats = all_formats, .epoch = &epoch };
static struct chain chain;
static struct memory_control control;
static const struct layer *layer; /* of the image that is open */

static void
open_image (const struct builder *b)
{
  struct storage *s;

  epoch_init (&epoch);
  shared.cache = cache_new (CACHE_MIN_BYTES);
  shared.clusters = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  shared.codecs = codec_pool_new ();
  s = build_storage (b, &control);
  CHECK_OK (chain_open_storages (&chain, &qcow2_format, &s, 1, &shared));
  layer = chain.layer[0];
}

static void
close_image (void)
{
  chain_close (&chain);
  codec_pool_free (shared.codecs);
  cluster_cache_free (shared.clusters);
  cache_free (shared.cache);
  epoch_destroy (&epoch);
  memset (&control, 0, sizeof control);
}

static struct run
lookup (uint64_t offset, uint64_t max)
{
  struct run run = { .kind = RUN_DAMAGED };

  error_set (0, "none");
  CHECK_OK (map_lookup (qcow2_map (layer), (struct guest_off) { offset }, max,
                        &run));
  return run;
}

#define CHECK_RUN(offset, max, kind_, length_)          \
  do {                                                  \
    const struct run r_ = lookup (offset, max);         \
    CHECK_EQ (r_.kind, kind_);                          \
    CHECK_EQ (r_.length, length_);                      \
  } while (0)

/* Tables of 64 entries: runs that go on over the ends of slices and of
 * tables.
 */
static void
test_joins (void)
{
  struct builder b;
  uint64_t i, first, tables;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 20);
  for (i = 0; i < 32; ++i) /* all tables first */
    build_l2_place (&b, 64 * i);
  tables = b.size;
  first = build_clusters (&b, 200);
  CHECK_EQ (first, tables);
  for (i = 0; i < 200; ++i)
    build_entry (&b, 10 + i, first + 512 * i, 0);
  for (i = 210; i < 500; ++i)
    build_entry (&b, i, QCOW2_L2_ZERO, 0);
  for (i = 500; i < 600; ++i)
    build_entry (&b, i, first | QCOW2_L2_ZERO, 0);
  for (i = 700; i < 800; i += 2) /* backwards: never joined */
    build_entry (&b, i, first + 512 * (199 - i % 199), 0);
  open_image (&b);

  CHECK_RUN (0, 1 << 20, RUN_UNALLOCATED, 10 * 512);
  CHECK_RUN (0, 1, RUN_UNALLOCATED, 1);
  CHECK_RUN (5000, 1 << 19, RUN_UNALLOCATED, 120);
  CHECK_RUN (5120, 1 << 19, RUN_DATA, 200 * 512);
  CHECK_EQ (lookup (5120, 1).host.v, first);
  CHECK_EQ (lookup (5121, 1000).host.v, first + 1);
  CHECK_RUN (5121, 1000, RUN_DATA, 1000);
  CHECK_RUN (5121, 1 << 19, RUN_DATA, 200 * 512 - 1);
  CHECK_RUN (210 * 512, 1 << 19, RUN_ZERO_PLAIN, 290 * 512);
  CHECK_RUN (500 * 512, 1 << 18, RUN_ZERO_ALLOC, 100 * 512);
  CHECK_RUN (600 * 512, 1 << 18, RUN_UNALLOCATED, 100 * 512);
  CHECK_RUN (700 * 512, 1 << 18, RUN_DATA, 512);
  CHECK_RUN (798 * 512, 1 << 18, RUN_DATA, 512);
  CHECK_RUN (799 * 512, (1 << 20) - 799 * 512, RUN_UNALLOCATED,
             (1 << 20) - 799 * 512);
  close_image ();
  build_free (&b);
}

/* An empty disk of 2^40 is one run, without reading much. */
static void
test_sparse (void)
{
  struct builder b;

  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, UINT64_C (1) << 40);
  build_entry (&b, (UINT64_C (1) << 24) - 1, QCOW2_L2_ZERO, 0);
  open_image (&b);
  atomic_store (&control.preads, 0);
  CHECK_RUN (0, UINT64_C (1) << 40, RUN_UNALLOCATED,
             (UINT64_C (1) << 40) - 65536);
  CHECK (control.preads < 30);
  CHECK_RUN ((UINT64_C (1) << 40) - 65536, 65536, RUN_ZERO_PLAIN, 65536);
  close_image ();
  build_free (&b);
}

/* An L1 table that is shorter than the disk (a snapshot's may be). */
static void
test_short_l1 (void)
{
  struct builder b;
  struct map m;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 17);
  build_entry (&b, 0, QCOW2_L2_ZERO, 0);
  build_entry (&b, 64, QCOW2_L2_ZERO, 0);
  build_entry (&b, 128, QCOW2_L2_ZERO, 0);
  open_image (&b);
  m = *qcow2_map (layer);
  m.l1_size = 2;
  CHECK_RUN (65536, 512, RUN_ZERO_PLAIN, 512);
  for (unsigned size = 0; size <= 2; ++size) {
    struct run run;

    m.l1_size = size;
    CHECK_OK (map_lookup (&m, (struct guest_off) { 65536 }, 65536, &run));
    CHECK_EQ (run.kind, RUN_UNALLOCATED);
    CHECK_EQ (run.length, 65536);
    CHECK_OK (map_lookup (&m, (struct guest_off) { UINT64_C (1) << 62 },
                          UINT64_C (1) << 62, &run));
    CHECK_EQ (run.kind, RUN_UNALLOCATED);
    CHECK_EQ (run.length, UINT64_C (1) << 62);
  }
  close_image ();
  build_free (&b);
}

/* What lies beyond the file's end, which may be within a cluster. */
static void
test_host_size (void)
{
  static const int cut[] = { 0, 1, 511, 512, 65535 };
  struct builder b;
  uint64_t last;
  uint8_t buf[512];
  size_t i;

  for (i = 0; i < sizeof cut / sizeof cut[0]; ++i) {
    build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, 1 << 20);
    build_l2_place (&b, 0);
    last = build_data (&b, 1);
    build_entry (&b, 0, last, 0);
    build_entry (&b, 1, last + 65536, 0);
    build_entry (&b, 2, (last + 65536) | QCOW2_L2_ZERO, 0);
    build_entry (&b, 3, build_compressed_word (16, last + 65536, 100), 0);
    build_entry (&b, 4, build_compressed_word (16, last + 65535, 100), 0);
    b.size -= cut[i];
    open_image (&b);
    CHECK_RUN (0, 1 << 20, RUN_DATA, 65536);
    CHECK_RUN (65536, 1 << 19, RUN_DAMAGED, 65536);
    CHECK_ERROR (EIO, "beyond the end of the file");
    CHECK_RUN (2 * 65536, 1 << 19, RUN_ZERO_ALLOC, 65536);
    CHECK_RUN (3 * 65536, 100, RUN_DAMAGED, 100);
    CHECK_RUN (4 * 65536, 1 << 19, RUN_COMPRESSED, 65536);
    /* The part that is not there reads as zeros. */
    memset (buf, 1, sizeof buf);
    CHECK_OK (layer_read (layer, buf, 512, (struct guest_off) { 65024 }));
    if (cut[i] > 0)
      CHECK_EQ (buf[511], 0);
    close_image ();
    build_free (&b);
  }
}

/* Each damaged entry is reported as itself, even with others beside it,
 * once, and the rest can be read.
 */
static void
test_damage (void)
{
  struct builder b;
  uint64_t place[3], l1;
  char expected[64];
  uint8_t buf[2048];
  unsigned i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 18);
  build_entry (&b, 0, build_data (&b, 1), 0);
  for (i = 0; i < 3; ++i) {
    place[i] = build_l2_place (&b, 1 + i);
    build_entry (&b, 1 + i, (UINT64_C (1) << 40) + 512 * i, 0);
  }
  build_entry (&b, 4, build_data (&b, 2), 0);
  l1 = b.l1_offset + 8;
  put_be64 (b.data + l1, UINT64_C (1) << 41);
  open_image (&b);

  for (i = 0; i < 3; ++i) {
    const struct run run = lookup (512 + 512 * i, 2048);

    CHECK_EQ (run.kind, RUN_DAMAGED);
    CHECK_EQ (run.length, 512);
    CHECK_EQ (run.host.v, place[i]);
    snprintf (expected, sizeof expected, "at offset 0x%" PRIx64 ":",
              place[i]);
    CHECK_ERROR (EIO, expected);
    CHECK_HAS (error_message (), "test: damaged: L2 entry 0x");

    CHECK_EQ (layer_read (layer, buf, 2048, (struct guest_off) {
          512 + 512 * i }), (uint64_t) -1);
    CHECK_ERROR (EIO, expected);
    CHECK (!error_repeated ());
    CHECK_EQ (layer_read (layer, buf, 1, (struct guest_off) {
          512 + 512 * i + 511 }), (uint64_t) -1);
    CHECK_ERROR (EIO, expected);
    CHECK (error_repeated ());
  }
  CHECK_OK (layer_read (layer, buf, 512, (struct guest_off) { 0 }));
  CHECK_OK (layer_read (layer, buf, 512, (struct guest_off) { 2048 }));

  snprintf (expected, sizeof expected, "L1 entry 0x%016" PRIx64
            " at offset 0x%" PRIx64, UINT64_C (1) << 41, l1);
  CHECK_RUN (32768, 1 << 17, RUN_DAMAGED, 32768);
  CHECK_ERROR (EIO, expected);
  CHECK_OK (layer_read (layer, buf, 512, (struct guest_off) { 65536 }));
  close_image ();
  build_free (&b);
}

/* A damaged entry whose neighbour's slice can't be read. */
static void
test_damage_and_error (void)
{
  struct builder b;
  uint64_t place;
  char expected[64];
  struct run run;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 1 << 18);
  build_entry (&b, 63, UINT64_C (1) << 40, 0); /* the last of its table */
  place = build_l2_place (&b, 63);
  build_entry (&b, 64, build_data (&b, 1), 0);
  open_image (&b);
  control.fail_call = control.calls + 3; /* L1, L2, and then */
  CHECK_OK (map_lookup (qcow2_map (layer), (struct guest_off) { 63 * 512 }, 1024,
                        &run));
  CHECK_EQ (run.kind, RUN_DAMAGED);
  snprintf (expected, sizeof expected, "at offset 0x%" PRIx64 ":", place);
  CHECK_ERROR (EIO, expected);
  close_image ();
  build_free (&b);
}

static bool
is_zero (const uint8_t *p, size_t count)
{
  while (count > 0 && *p == 0)
    p++, count--;
  return count == 0;
}

/* One lookup against the model. */
static uint64_t
compare_run (const struct model *m, uint64_t offset, uint64_t max)
{
  const struct run run = lookup (offset, max);
  uint64_t at;

  if (run.length == 0 || run.length > max) {
    check_failed (__FILE__, __LINE__, "length 0x%" PRIx64 " of 0x%" PRIx64,
                  run.length, max);
    return max;
  }
  for (at = offset; at < offset + run.length;
       at = (at / MODEL_SECTOR + 1) * MODEL_SECTOR) {
    const struct model_sector *s = &m->sector[at / MODEL_SECTOR];

    if (run.kind != s->kind) {
      check_failed (__FILE__, __LINE__, "guest offset 0x%" PRIx64 ": kind %d "
                    "is not %d", at, run.kind, s->kind);
      break;
    }
    if (s->kind == RUN_DATA)
      CHECK_EQ (run.host.v + (at - offset), s->host + at % MODEL_SECTOR);
    else if (s->kind == RUN_COMPRESSED) {
      CHECK_EQ (run.host.v, s->host);
      CHECK_EQ (run.compressed_size, s->size);
    }
    else if (s->kind == RUN_DAMAGED) {
      char expected[64];

      CHECK_EQ (run.host.v, s->place);
      snprintf (expected, sizeof expected, "at offset 0x%" PRIx64 ":",
                s->place);
      CHECK_HAS (error_message (), expected);
    }
  }
  return run.length;
}

/* One read against the model; no backing file, so that unallocated reads
 * as zeros.
 */
static void
compare_read (const struct model *m, uint64_t offset, size_t count)
{
  uint8_t *buf = malloc (count);
  const struct model_sector *damaged = NULL;
  uint64_t at;

  memset (buf, 0xdd, count);
  for (at = offset; at < offset + count && damaged == NULL;
       at = (at / MODEL_SECTOR + 1) * MODEL_SECTOR) {
    if (m->sector[at / MODEL_SECTOR].kind == RUN_DAMAGED)
      damaged = &m->sector[at / MODEL_SECTOR];
  }
  if (damaged != NULL) {
    char expected[64];

    CHECK_EQ (layer_read (layer, buf, count, (struct guest_off) { offset }),
              (uint64_t) -1);
    snprintf (expected, sizeof expected, "at offset 0x%" PRIx64 ":",
              damaged->place);
    CHECK_ERROR (EIO, expected);
  }
  else {
    CHECK_OK (layer_read (layer, buf, count, (struct guest_off) { offset }));
    if (memcmp (buf, m->content + offset, count) != 0)
      check_failed (__FILE__, __LINE__, "0x%zx bytes at 0x%" PRIx64
                    " are wrong", count, offset);
  }
  free (buf);
}

static void
compare_image (const struct model *m, uint64_t *state)
{
  const uint64_t disk = m->nr * MODEL_SECTOR;
  uint64_t offset, max;
  unsigned i;

  CHECK_EQ (layer->size, disk);
  if (disk == 0)
    return;
  for (offset = 0; offset < disk; )
    offset += compare_run (m, offset, disk - offset);
  for (i = 0; i < 60; ++i) {
    offset = random_below (state, disk);
    max = 1 + random_below (state, disk - offset);
    compare_run (m, offset, max);
    if (random_below (state, 3) > 0 && max > 3 * m->image.cluster_size)
      max = 1 + random_below (state, 3 * m->image.cluster_size);
    compare_read (m, offset, max);
  }
  layer_prefetch (layer, disk, (struct guest_off) { 0 });
}

static void
test_random (void)
{
  uint64_t state = 11;
  unsigned i;

  for (i = 0; i < 260; i += TEST_EACH (5)) {
    const unsigned bits = 9 + i % 13;
    const unsigned version = random_below (&state, 3) == 0 ? 2 : 3;
    const bool extended = version == 3 && bits >= 14 &&
      random_below (&state, 2);
    const uint64_t clusters = bits > 18 ? 3 : bits > 14 ? 20 : 150;
    struct model m;

    model_random (&m, version, bits, extended, version == 3
                  ? random_below (&state, 2) : COMPRESSION_DEFLATE,
                  random_below (&state, clusters << bits),
                  random_below (&state, 2), &state);
    if (random_below (&state, 4) == 0)
      control.short_reads = 1 + random_below (&state, 3000);
    if (random_below (&state, 4) == 0)
      control.interrupt = 2 + random_below (&state, 3);
    open_image (&m.image);
    compare_image (&m, &state);
    close_image ();
    model_free (&m);
  }
}

/* A cluster of compressed data is read and decoded once for small reads. */
static void
test_compressed_once (void)
{
  struct builder b;
  uint8_t plain[65536], buf[4096];
  uint64_t calls, at;

  build_start (&b, 3, 16, false, COMPRESSION_ZSTD, 1 << 20);
  build_pattern (plain, sizeof plain, 77);
  build_compressed (&b, 3, plain, 1000);
  open_image (&b);
  CHECK_OK (layer_read (layer, buf, 1, (struct guest_off) { 3 * 65536 }));
  calls = control.calls;
  for (at = 0; at < 65536; at += 4096) {
    CHECK_OK (layer_read (layer, buf, 4096, (struct guest_off) {
          3 * 65536 + at }));
    CHECK (memcmp (buf, plain + at, 4096) == 0);
  }
  CHECK_EQ (control.calls, calls);
  close_image ();
  build_free (&b);
}

/* Compressed data that can't be decoded, once and again. */
static void
test_compressed_damage (void)
{
  enum compression type;
  struct builder b;
  uint8_t plain[65536], buf[65536];
  uint64_t word;
  char expected[64];

  for (type = COMPRESSION_DEFLATE; type <= COMPRESSION_ZSTD; ++type) {
    build_start (&b, 3, 16, false, type, 1 << 20);
    build_pattern (plain, sizeof plain, 77);
    build_compressed (&b, 3, plain, 1000);
    word = get_be64 (b.data + build_l2_place (&b, 3)) & 0xffffffffff;
    memset (b.data + word + 4, 0xff, 4000);
    open_image (&b);
    snprintf (expected, sizeof expected, "at offset 0x%" PRIx64 ":", word);
    CHECK_EQ (layer_read (layer, buf, 65536, (struct guest_off) { 196608 }),
              (uint64_t) -1);
    CHECK_ERROR (EIO, "damaged: compressed cluster");
    CHECK_HAS (error_message (), expected);
    CHECK (!error_repeated ());
    CHECK_EQ (layer_read (layer, buf, 1, (struct guest_off) { 196610 }),
              (uint64_t) -1);
    CHECK_ERROR (EIO, expected);
    CHECK (error_repeated ());
    CHECK_OK (layer_read (layer, buf, 65536, (struct guest_off) { 0 }));
    CHECK (is_zero (buf, 65536));
    close_image ();
    build_free (&b);
  }
}

int
main (void)
{
  check_time_limit (200);
  test_joins ();
  test_sparse ();
  test_short_l1 ();
  test_host_size ();
  test_damage ();
  test_damage_and_error ();
  test_random ();
  test_compressed_once ();
  test_compressed_damage ();
  return check_result ();
}
