/* SPDX-License-Identifier: BSD-3-Clause */

/* What an image costs that was made to cost much.  An input is not an image,
 * but tells how one is made that holds little and claims much: where its tables
 * are, and rows of words in them.  It is opened, its exports are listed and its
 * disks are mapped; it is checked and repaired, made writable and written once,
 * by the plugin's ways.  Each of these may take so much time and so many calls
 * of the storage as what the image holds allows.
 *
 * libFuzzer is told the costs, so that it goes on from those that are high.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/bytes.h"
#include "disk/extents.h"
#include "image.h"
#include "promise.h"
#include "qcow2/check/check.h"
#include "qed/check.h"
#include "random.h"
#include "sparse.h"
#include "target.h"

/* For up to 2 MiB a second is promised, and two under a sanitizer; what
 * libFuzzer counts, and this storage, make that two and four.  Beyond, by the
 * byte.
 */
#ifndef __has_feature
#define __has_feature(feature) 0
#endif
#if __has_feature (address_sanitizer) || defined __SANITIZE_ADDRESS__
#define LEAST_SECONDS 4.0
#else
#define LEAST_SECONDS 2.0
#endif
#define SECONDS_EACH (LEAST_SECONDS / (2 << 20))
#define LEAST_CALLS 20000
#define CALLS_EACH 0.5

#define HEADER_BYTES 16
#define RECORD_BYTES 16
#define MAX_WORDS 4096
#define MAX_RUNS 2000

/* Where tables are, in clusters; from there on they claim what they like. */
enum place {
  PLACE_L1 = 0x100,
  PLACE_SNAPSHOTS = 0x20000,
  PLACE_BITMAPS = 0x40000,
  PLACE_REFCOUNTS = 0x60000,
  PLACE_FREE = 0x80000,
};

enum step {
  STEP_OPEN,
  STEP_MAP,
  STEP_CHECK,
  STEP_REPAIR,
  STEP_WRITABLE,
  STEP_WRITE,
  STEP_CLOSE,
  STEPS,
};

/* libFuzzer looks at these as at edges that were reached. */
#define LEVELS 64
static uint8_t level[STEPS][2][LEVELS]
  __attribute__ ((__section__ ("__libfuzzer_extra_counters"), __used__));

static struct {
  struct sparse file;
  bool qed;
  unsigned bits;
  uint64_t held; /* bytes */
  unsigned nr;   /* blocks of the file, before a step */
  uint64_t calls;
  struct timespec start;
  double worst; /* of all inputs */
} x;

/* ------------------------------------------------------------------ costs */

static void
begin (void)
{
  x.calls = x.file.calls;
  x.nr = x.file.nr;
  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &x.start);
}

/* Four levels for each doubling. */
static void
note (uint8_t levels[LEVELS], double cost)
{
  unsigned i = 0;

  while (cost > 1 && i < LEVELS - 1) {
    cost /= 1.19;
    i++;
  }
  levels[i] = 1;
}

static void
end (enum step step)
{
  static const char *const name[STEPS] = {
    "opening", "mapping", "checking", "repairing", "opening for writing",
    "the first write", "closing",
  };
  const uint64_t calls = x.file.calls - x.calls;
  const double seconds_allowed = x.held * SECONDS_EACH;
  /* A repair may make new refcount blocks, or copy a table of snapshots, as much
   * as it bounds itself, and reads that again in each of its passes.
   */
  const uint64_t held = x.held + (step == STEP_REPAIR ? (uint64_t)
                                  (x.file.nr - x.nr) * SPARSE_BLOCK : 0);
  struct timespec now;
  double seconds;
  bool failed;

  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &now);
  seconds = now.tv_sec - x.start.tv_sec +
    (now.tv_nsec - x.start.tv_nsec) / 1e9;
  note (level[step][0], calls / 16.0);
  note (level[step][1], seconds * 1e4);
  failed = (seconds > LEAST_SECONDS && seconds > seconds_allowed) ||
    (step != STEP_MAP && calls > LEAST_CALLS + held * CALLS_EACH);
  if (failed || (seconds > x.worst && getenv ("FUZZ_COST") != NULL))
    fprintf (stderr, "cost: %s: %g s, %" PRIu64 " calls, of %" PRIu64
             " bytes\n", name[step], seconds, calls, x.held);
  if (seconds > x.worst)
    x.worst = seconds;
  if (failed)
    broken ("it takes too much");
}

/* ------------------------------------------------------------- the image */

static void
put_word (uint64_t offset, uint64_t word)
{
  uint8_t buf[8];

  if (x.qed)
    put_le64 (buf, word);
  else
    put_be64 (buf, word);
  sparse_put (&x.file, offset, buf, sizeof buf);
}

static uint64_t
cluster (uint64_t number)
{
  return number << x.bits;
}

static void
make_qed_header (const uint8_t *p)
{
  struct qed_header q;
  uint8_t h[64] = { 'Q', 'E', 'D' };

  put_le32 (h + 4, 1 << x.bits);
  put_le32 (h + 8, 1 << p[2] % 5);
  put_le32 (h + 12, 1);
  put_le64 (h + QED_FEATURES_AT, p[1] & 2 ? QED_NEED_CHECK : 0);
  put_le64 (h + QED_AUTOCLEAR_AT, p[1] >> 2 & 1);
  put_le64 (h + 40, cluster (PLACE_L1));
  if (!qed_header_set_sizes (&q, 1 << x.bits, 1 << p[2] % 5))
    abort ();
  put_le64 (h + 48, (qed_header_max_size (&q) >> p[6] % 32) / 512 * 512);
  sparse_put (&x.file, 0, h, sizeof h);
}

static void
make_header (const uint8_t *p)
{
  const bool extended = p[1] & 1 && x.bits >= 14;
  const unsigned entries_bits = x.bits - (extended ? 4 : 3);
  const uint64_t l1_max = (UINT64_C (32) << 20) / 8;
  uint64_t l1 = (uint64_t) (p[2] + 1) << p[3] % 16;
  uint64_t table = ((uint64_t) (p[4] + 1) << p[5] % 12);
  uint8_t h[4096] = { 'Q', 'F', 'I', 0xfb };

  if (l1 > l1_max)
    l1 = l1_max;
  if (cluster (table) > UINT64_C (8) << 20)
    table = (UINT64_C (8) << 20) >> x.bits;
  put_be32 (h + 4, 3);
  put_be32 (h + 20, x.bits);
  put_be64 (h + 24, x.bits + entries_bits + 22 > 62 ? INT64_MAX / 512 * 512
            >> (p[6] % 4 * 8) : l1 << (x.bits + entries_bits));
  if (get_be64 (h + 24) >> (x.bits + entries_bits) >= l1)
    put_be64 (h + 24, l1 << (x.bits + entries_bits));
  put_be32 (h + 36, l1);
  put_be64 (h + 40, cluster (PLACE_L1));
  put_be64 (h + 48, cluster (PLACE_REFCOUNTS));
  put_be32 (h + 56, table);
  put_be32 (h + 60, p[7] << p[8] % 9);
  put_be64 (h + 64, cluster (PLACE_SNAPSHOTS));
  put_be64 (h + 72, (p[1] & 2 ? QCOW2_INCOMPAT_DIRTY : 0) |
            (extended ? QCOW2_INCOMPAT_EXTENDED_L2 : 0));
  put_be64 (h + 88, p[9] > 0 ? QCOW2_AUTOCLEAR_BITMAPS : 0);
  put_be32 (h + 96, p[1] >> 2 & 7);
  put_be32 (h + 100, 104);
  put_be32 (h + 104, QCOW2_EXT_BITMAPS);
  put_be32 (h + 108, 24);
  put_be32 (h + 112, p[9] << p[10] % 9);
  put_be64 (h + 120, (uint64_t) 24 * (p[9] << p[10] % 9));
  put_be64 (h + 128, cluster (PLACE_BITMAPS));
  sparse_put (&x.file, 0, h, UINT64_C (1) << x.bits < sizeof h
              ? UINT64_C (1) << x.bits : sizeof h);
}

/* A place of the file, by two bytes. */
static uint64_t
some_place (const uint8_t *p)
{
  static const uint32_t tables[] = {
    PLACE_L1, PLACE_SNAPSHOTS, PLACE_BITMAPS, PLACE_REFCOUNTS, PLACE_FREE,
  };

  return cluster (tables[p[0] % 5] + (uint64_t) p[1]);
}

/* A row of words: each refers to a cluster, and the next one to another. */
static void
put_words (const uint8_t *p, uint64_t at)
{
  const uint64_t step = (uint64_t) p[8] << p[9] % 48;
  const uint64_t stride = 8 * (1 + (uint64_t) p[10]) << p[11] % 24;
  uint64_t word = (PLACE_FREE + ((uint64_t) get_be32 (p + 4) >> p[3] % 32));
  unsigned i, nr = get_be16 (p + 12) % MAX_WORDS + 1;

  for (i = 0; i < nr; ++i, word += step) {
    const uint64_t offset = cluster (word) & QCOW2_ENTRY_OFFSET_MASK;
    const uint64_t flags = x.qed ? 0 : (uint64_t) (p[14] >> 6) << 62;

    put_word (at + i * (p[15] & 1 ? stride : 8), p[14] & 1
              ? (uint64_t) p[14] * UINT64_C (0x0101010101010101)
              : offset | flags);
  }
}

/* Entries of the snapshot table or of the directory of bitmaps. */
static void
put_entries (const uint8_t *p, bool bitmaps)
{
  const uint64_t step = cluster ((uint64_t) p[8] << p[9] % 32);
  uint64_t table = cluster (PLACE_FREE + (uint64_t) p[4]);
  const uint32_t size = (uint32_t) (p[10] + 1) << p[11] % 15;
  unsigned i, nr = get_be16 (p + 12) % MAX_WORDS + 1;
  uint8_t e[56];

  for (i = 0; i < nr; ++i, table += step) {
    memset (e, 0, sizeof e);
    put_be64 (e, table);
    put_be32 (e + 8, size);
    if (bitmaps) {
      put_be32 (e + 12, 1);
      e[16] = 1;
      e[17] = 16;
      sparse_put (&x.file, cluster (PLACE_BITMAPS) + 24 * i, e, 24);
    }
    else {
      put_be32 (e + 36, 16);
      sparse_put (&x.file, cluster (PLACE_SNAPSHOTS) + 56 * i, e, 56);
    }
  }
}

static void
make_image (const uint8_t *data, size_t size)
{
  uint64_t claimed;

  memset (&x.file, 0, sizeof x.file);
  x.qed = data[1] & 0x80;
  x.bits = x.qed ? QED_MIN_CLUSTER_BITS + data[0] % 15 : 9 + data[0] % 13;
  if (x.qed)
    make_qed_header (data);
  else
    make_header (data);
  /* Up to some exabytes. */
  x.file.size = cluster (PLACE_FREE) + (UINT64_C (1) << data[11] % 56);
  claimed = x.file.size;
  for (size -= HEADER_BYTES, data += HEADER_BYTES; size >= RECORD_BYTES;
       size -= RECORD_BYTES, data += RECORD_BYTES) {
    switch (x.qed ? 2 : data[0] % 4) { /* QED has tables only */
    case 0: put_entries (data, true); break;
    case 1: put_entries (data, false); break;
    default: put_words (data, some_place (data + 1)); break;
    }
    x.file.size = claimed; /* what is behind that is not there */
  }
  x.held = (uint64_t) x.file.nr * SPARSE_BLOCK;
  x.file.calls = x.file.bytes = 0;
}

/* -------------------------------------------------------------- the steps */

static int
count_run (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  unsigned *nr = opaque;

  (void) offset;
  (void) length;
  (void) flags;
  return ++*nr < MAX_RUNS ? 0 : -1;
}

static int
take_name (void *opaque, const char *name, const char *description)
{
  (void) opaque;
  (void) name;
  (void) description;
  return 0;
}

/* What a request takes is bounded by its clusters, not by the file: so many
 * of them are mapped, at both ends of the disk.
 */
#define MAX_CLUSTERS (UINT64_C (1) << 18)

static void
map_disk (const struct layer *disk)
{
  uint64_t at = 0, left;
  unsigned nr = 0, i;

  for (i = 0; i < 4 && at < disk->size; ++i) {
    left = disk->size - at;
    if (left > cluster (MAX_CLUSTERS / 4))
      left = cluster (MAX_CLUSTERS / 4);
    (void) layer_extents (disk, left, (struct guest_off) { at }, false,
                          count_run, &nr);
    at += i == 2 && disk->size > left ? disk->size - left - at : left;
  }
}

static void
write_once (struct image *im, const struct layer *disk)
{
  static const uint8_t sector[512] = { 1 };

  if (disk->size >= sizeof sector)
    (void) image_write (im, sector, sizeof sector, (struct guest_off) { 0 },
                        IMAGE_FUA);
}

static void
change (struct image *im, const struct layer *disk)
{
  const struct writer_options options = { .invalidate_bitmaps = true };
  char summary[512];
  int r;

  begin ();
  r = image_repair (im, IMAGE_REPAIR_ALL, summary, sizeof summary);
  end (STEP_REPAIR);
  begin ();
  if (r == 0)
    r = image_make_writable (im, &options);
  end (STEP_WRITABLE);
  begin ();
  if (r == 0)
    write_once (im, disk);
  end (STEP_WRITE);
}

static void
check (void)
{
  const struct check_options options = {
    .memory = IMAGE_DEFAULT_CHECK_MEMORY,
  };
  struct storage *s = sparse_open (&x.file);
  struct check_report report;

  begin ();
  if (x.qed)
    (void) qed_check_storage (s, &options, &report);
  else
    (void) check_storage (s, &options, &report);
  end (STEP_CHECK);
  storage_close (s);
}

static void
test_cost (const uint8_t *data, size_t size)
{
  struct image *im;
  struct layer *disk;

  if (size < HEADER_BYTES)
    return;
  make_image (data, size);
  check ();
  begin ();
  im = image_open_storage (sparse_open (&x.file), UINT64_C (1) << 20);
  end (STEP_OPEN);
  disk = im == NULL ? NULL : image_open_disk (im, "");
  if (disk != NULL) {
    begin ();
    (void) image_list (im, take_name, NULL);
    map_disk (disk);
    end (STEP_MAP);
    change (im, disk);
  }
  image_close_disk (disk);
  begin ();
  (void) image_close (im);
  end (STEP_CLOSE);
  sparse_free (&x.file);
}

/* A byte here and there, or a whole new record. */
static size_t
mutate_cost (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  uint64_t state = seed;
  unsigned n = 1 + random_below (&state, 4);

  if (size < HEADER_BYTES + RECORD_BYTES && max >= HEADER_BYTES + RECORD_BYTES) {
    memset (data + size, 0, HEADER_BYTES + RECORD_BYTES - size);
    size = HEADER_BYTES + RECORD_BYTES;
  }
  if (random_below (&state, 4) == 0 && max - size >= RECORD_BYTES) {
    random_fill (&state, data + size, RECORD_BYTES);
    size += RECORD_BYTES;
  }
  for (; n > 0; --n) {
    const uint64_t at = random_below (&state, size);

    data[at] = random_below (&state, 2) ? random_next (&state)
      : data[at] + random_below (&state, 5) - 2;
  }
  return size;
}

const struct target target_cost = {
  .name = "cost",
  .max_size = HEADER_BYTES + 64 * RECORD_BYTES,
  .memory = 128L << 20, /* 64 MiB of a check, and what the file holds */
  .test = test_cost,
  .mutate = mutate_cost,
};
