/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/compress.c: what is stored compressed, when, and what becomes of
 * it.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "random.h"
#include "rig.h"
#include "seconds.h"

static struct rig rig;
static uint64_t cluster_size;

struct form {
  unsigned version, bits, order;
  bool extended;
  enum compression compression;
  unsigned level;
};

static void
start_built (struct builder *b, unsigned level)
{
  build_finish (b);
  rig_init (&rig, "compress", b);
  rig.options.compress_level = level;
  build_free (b);
  rig_open (&rig);
}

static void
build (struct builder *b, const struct form *f, uint64_t clusters,
       uint64_t cut)
{
  cluster_size = UINT64_C (1) << f->bits;
  build_start (b, f->version, f->bits, f->extended, f->compression,
               clusters * cluster_size - cut);
  if (f->version == 3)
    build_order (b, f->order);
}

static void
start (const struct form *f, uint64_t clusters, uint64_t cut)
{
  struct builder b;

  build (&b, f, clusters, cut);
  start_built (&b, f->level);
}

static const struct form usual = { 3, 16, 4, false, COMPRESSION_DEFLATE, 1 };

/* It is sound, and the same when it is opened again. */
static void
end (void)
{
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

static void
write_noise (uint64_t offset, uint64_t count)
{
  uint64_t state = offset + 1;
  uint8_t *buf = rig.content + offset;

  random_fill (&state, buf, count);
  CHECK_OK (image_write (rig.im, buf, count, (struct guest_off) { offset },
                         0));
}

static void
write_zeros (uint64_t offset, uint64_t count)
{
  memset (rig.content + offset, 0, count);
  CHECK_OK (image_write (rig.im, rig.content + offset, count,
                         (struct guest_off) { offset }, 0));
}

#define CHECK_KIND(cluster, kind) \
  CHECK_EQ (rig_kind (&rig, (cluster) * cluster_size), kind)

static uint64_t
file_size (void)
{
  return atomic_load (&rig.disk.size);
}

/* Host clusters with a refcount, on disk. */
static uint64_t
nr_used (void)
{
  uint64_t i, n = 0;

  for (i = 0; i < file_size () / cluster_size; ++i)
    n += rig_refcount (&rig, i * cluster_size) > 0;
  return n;
}

/* ---------------------------------------------------------- whole clusters */

/* All kinds of images: clusters, also several in one request, and the last one
 * that the disk's end cuts, are compressed and packed; noise is not.
 */
static void
test_whole (const struct form *f)
{
  const uint64_t nr = f->bits > 16 ? 24 : 40;
  uint64_t i, before, clusters;

  start (f, nr, 512);
  before = nr_used ();
  for (i = 0; i < nr / 2; ++i)
    rig_write (&rig, i * cluster_size, cluster_size, i + 1);
  rig_write (&rig, i * cluster_size, (nr - 5 - i) * cluster_size, 99);
  write_noise ((nr - 4) * cluster_size, cluster_size);
  rig_write (&rig, (nr - 1) * cluster_size, cluster_size - 512, 7);
  for (i = 0; i < nr - 5; ++i)
    CHECK_KIND (i, RUN_COMPRESSED);
  CHECK_KIND (nr - 4, RUN_DATA);
  if (cluster_size > 512)
    CHECK_KIND (nr - 1, RUN_COMPRESSED);
  rig_flush (&rig);
  end ();

  /* Patterns compress to less than half, so that two and more share a
   * cluster, where refcounts allow that.
   */
  start (f, nr, 0);
  rig_write (&rig, 0, nr * cluster_size, 5);
  rig_close (&rig);
  clusters = nr_used () - before;
  CHECK (clusters <= (f->order == 0 ? nr : nr * 2 / 3) + 8);
  rig_open (&rig);
  end ();
}

/* A gain of less than a 128th is not worth it. */
static void
test_least_gain (void)
{
  const uint64_t zeros[] = { 400, 700 };
  unsigned i;

  for (i = 0; i < 2; ++i) {
    start (&usual, 4, 0);
    write_noise (0, cluster_size);
    memset (rig.content + 1000, 0, zeros[i]);
    CHECK_OK (image_write (rig.im, rig.content, cluster_size,
                           (struct guest_off) { 0 }, 0));
    CHECK_KIND (0, i == 0 ? RUN_DATA : RUN_COMPRESSED);
    end ();
  }
}

/* One that was compressed is not changed in place: written anew, in part, and
 * as something else.
 */
static void
test_rewrite (void)
{
  uint64_t i;

  start (&usual, 20, 0);
  for (i = 0; i < 10; ++i)
    rig_write (&rig, i * cluster_size, cluster_size, i + 1);
  rig_write (&rig, 0, cluster_size, 100);
  CHECK_KIND (0, RUN_COMPRESSED);
  rig_write (&rig, cluster_size + 10, 100, 101);
  CHECK_KIND (1, RUN_DATA);
  rig_write (&rig, cluster_size, cluster_size, 102);
  CHECK_KIND (1, RUN_COMPRESSED);
  write_noise (2 * cluster_size, cluster_size);
  CHECK_KIND (2, RUN_DATA);
  rig_write (&rig, 2 * cluster_size, cluster_size, 103);
  CHECK_KIND (2, RUN_COMPRESSED);
  rig_trim (&rig, 3 * cluster_size, cluster_size);
  rig_zero (&rig, 4 * cluster_size, cluster_size, 0);
  rig_zero (&rig, 5 * cluster_size + 100, 1000, IMAGE_MAY_TRIM);
  CHECK_KIND (5, RUN_DATA);
  rig_compare (&rig);
  rig_write (&rig, 3 * cluster_size, 3 * cluster_size, 104);
  for (i = 3; i < 6; ++i)
    CHECK_KIND (i, RUN_COMPRESSED);
  end ();
}

/* Without a flush, too, the space of what was replaced is used again. */
static void
test_growth (void)
{
  const uint64_t nr = 40;
  uint64_t i, written = 0, most;

  start (&usual, nr, 0);
  rig_close (&rig);
  rig.cache_size = UINT64_C (16) << 20; /* which asks for no writeback */
  rig_open (&rig);
  rig_write (&rig, 0, nr * cluster_size, 1);
  for (i = 0; i < 300 * nr; ++i) {
    const uint64_t at = i % nr * cluster_size;

    CHECK_OK (image_write (rig.im, rig.content + at, cluster_size,
                           (struct guest_off) { at }, 0));
    written += cluster_size / 2; /* hardly more */
  }
  most = file_size ();
  CHECK (most < written / 2);
  for (i = 0; i < 5 * nr; ++i) {
    rig_write (&rig, i % nr * cluster_size, cluster_size, i);
    if (i % 4 == 0)
      rig_flush (&rig);
  }
  CHECK (file_size () <= most + (UINT64_C (8) << 20));
  end ();
}

/* A read of a part, which is kept decoded, sees what is there now, although
 * host clusters are used again all the time.
 */
static void
test_decoded (void)
{
  const struct form form = { 3, 12, 4, false, COMPRESSION_DEFLATE, 1 };
  uint64_t state = 5;
  unsigned i;

  start (&form, 20, 0);
  for (i = 0; i < 1500; ++i) {
    rig_write (&rig, random_below (&state, 20) * cluster_size, cluster_size,
               i + 1);
    rig_compare_range (&rig, random_below (&state, 20) * cluster_size + 100,
                       100);
    if (i % 2 == 0)
      rig_flush (&rig);
  }
  CHECK (file_size () < UINT64_C (2) << 20); /* they were used again */
  end ();
}

/* What snapshots have stays as it is; so does the backing file's. */
static void
test_snapshot (void)
{
  struct builder b;
  uint8_t *plain, base[10 * 4096];
  uint64_t state = 1, i;
  const struct form form = { 3, 12, 4, false, COMPRESSION_DEFLATE, 1 };

  build (&b, &form, 20, 0);
  plain = malloc (cluster_size);
  for (i = 0; i < 15; ++i) {
    build_l2_place (&b, i);
    build_pattern (plain, cluster_size, i + 1);
    if (i % 3 != 0)
      build_compressed (&b, i, plain, 10);
    else
      build_entry (&b, i, build_data (&b, i), 0);
  }
  build_backing (&b, "raw");
  build_snapshot (&b, 0, &state);
  build_finish (&b);
  rig_init (&rig, "snapshot", &b);
  rig.options.compress_level = 1;
  build_free (&b);
  free (plain);
  build_pattern (base, sizeof base, 77);
  rig_set_base (&rig, base, sizeof base, true);
  rig_open (&rig);
  for (i = 0; i < 60; ++i) {
    rig_write (&rig, i % 20 * cluster_size, cluster_size, i + 50);
    if (i % 7 == 0)
      rig_flush (&rig);
    rig_compare (&rig); /* and the snapshot */
  }
  end ();
}

/* With FUA it is durable: data, refcounts, and then the mapping (I5). */
static void
test_order (void)
{
  static struct memory_log log = MEMORY_LOG_INIT;
  uint64_t i, flushes = 0, last = 0;

  start (&usual, 20, 0);
  rig_write (&rig, 0, cluster_size, 1);
  rig_flush (&rig);
  rig.control.log = &log;
  CHECK_OK (rig_try_write (&rig, 5 * cluster_size, cluster_size, 2,
                           IMAGE_FUA));
  rig.control.log = NULL;
  for (i = 0; i < log.nr; ++i) {
    if (log.call[i].kind == MEMORY_FLUSH)
      flushes++;
    else if (log.call[i].kind == MEMORY_WRITE)
      last = i;
  }
  CHECK_EQ (flushes, 2);
  CHECK_EQ (log.call[0].kind, MEMORY_WRITE); /* the data */
  CHECK_EQ (log.call[0].offset, rig_host (&rig, 5 * cluster_size));
  CHECK_EQ (log.call[last - 1].kind, MEMORY_FLUSH);
  CHECK_EQ (log.call[last].count, 512); /* the entry's sector */
  CHECK_EQ (log.call[last + 1].kind, MEMORY_FLUSH);
  memory_log_free (&log);
  end ();
}

/* A cluster of one byte, which compresses to next to nothing. */
static void
write_same (uint64_t cluster, uint8_t byte)
{
  const uint64_t at = cluster * cluster_size;

  memset (rig.content + at, byte, cluster_size);
  CHECK_OK (image_write (rig.im, rig.content + at, cluster_size,
                         (struct guest_off) { at }, 0));
}

/* Of tiny compressed clusters a host cluster has as many as its refcount can
 * count, be it one.
 */
static void
test_saturated (unsigned bits, unsigned order)
{
  const struct form form = { 3, bits, order, false, COMPRESSION_ZSTD, 1 };
  const uint64_t nr = 500, max = (UINT64_C (1) << (1 << order)) - 1;
  uint64_t state = order + 1, i, before;

  start (&form, nr, 0);
  before = nr_used () + 1; /* with an L2 table */
  for (i = 0; i < nr; ++i)
    write_same (i, i + 1);
  rig_close (&rig);
  CHECK_EQ (nr_used (), before + (nr + max - 1) / max);

  rig_open (&rig);
  for (i = 0; i < 2 * nr; ++i) {
    const uint64_t cluster = random_below (&state, nr);

    switch (random_below (&state, 8)) {
    case 0:
      rig_trim (&rig, cluster * cluster_size, cluster_size);
      break;
    case 1:
      rig_write (&rig, cluster * cluster_size + 77, 500, i);
      break;
    default:
      write_same (cluster, i);
    }
    if (random_below (&state, 50) == 0)
      rig_flush (&rig);
  }
  rig_compare (&rig);
  rig_trim (&rig, 0, nr * cluster_size);
  rig_close (&rig);
  CHECK_EQ (nr_used (), before);
  rig_open (&rig);
  end ();
}

/* So it is where zeros are looked for: compressed or not, mapped anew or in
 * place.
 */
static void
test_fua (unsigned level, unsigned detect)
{
  static struct memory_log log = MEMORY_LOG_INIT;
  struct form f = usual;
  unsigned i;

  f.level = level;
  start (&f, 20, 0);
  image_detect_zeroes (rig.im, detect);
  for (i = 0; i < 4; ++i) {
    memory_log_clear (&log);
    rig.control.log = &log;
    CHECK_OK (rig_try_write (&rig, i / 2 * cluster_size,
                             cluster_size >> i / 2, i + 1, IMAGE_FUA));
    rig.control.log = NULL;
    CHECK (log.nr > 0 && (log.call[log.nr - 1].kind == MEMORY_FLUSH ||
                          log.call[log.nr - 1].durable));
  }
  memory_log_free (&log);
  end ();
}

/* ------------------------------------------------------------------ pieces */

/* Smaller requests are gathered, in order, backwards, and of several clusters
 * in turns; over what was there before, too.
 */
static void
test_gather (const struct form *f)
{
  const uint64_t nr = f->bits > 16 ? 2 : 6, pieces = 8;
  uint64_t round, i, j, piece;

  start (f, nr, 0);
  piece = cluster_size / pieces;
  for (round = 0; round < 3; ++round) {
    for (i = 0; i < nr; ++i) {
      for (j = 0; j < pieces; ++j) {
        const uint64_t at = round == 0 ? i * pieces + j
          : round == 1 ? (nr - i) * pieces - 1 - j
          : (j * nr + i) % nr * pieces + (j * nr + i) / nr;

        rig_write (&rig, at * piece, piece, round * 1000 + at);
      }
      if (round < 2)
        CHECK_KIND (round == 0 ? i : nr - 1 - i, RUN_COMPRESSED);
    }
    rig_compare (&rig);
    rig_flush (&rig);
  }
  end ();
}

/* With FUA each piece, and what becomes of them, is durable. */
static void
test_gather_fua (void)
{
  uint64_t i;

  start (&usual, 4, 0);
  for (i = 0; i < 16; ++i)
    CHECK_OK (rig_try_write (&rig, i * cluster_size / 4, cluster_size / 4,
                             i + 1, IMAGE_FUA));
  CHECK_KIND (0, RUN_COMPRESSED);
  CHECK_KIND (3, RUN_COMPRESSED);
  end ();
}

/* Zeros complete a cluster as data does; one of zeros alone has no data.  The
 * last cluster is complete where the disk ends.
 */
static void
test_gather_zeros (const struct form *f, unsigned detect)
{
  const uint64_t half = UINT64_C (1) << (f->bits - 1);
  unsigned flags;

  for (flags = 0; flags <= IMAGE_MAY_TRIM; flags += IMAGE_MAY_TRIM) {
    start (f, 8, 1024);
    image_detect_zeroes (rig.im, detect);
    rig_write (&rig, 0, half, 1);
    rig_zero (&rig, half, half, flags);
    CHECK_KIND (0, RUN_COMPRESSED);
    rig_zero (&rig, 2 * half, half, flags);
    rig_write (&rig, 3 * half, half, 1);
    CHECK_KIND (1, RUN_COMPRESSED);
    /* Parts of two at once. */
    rig_write (&rig, 4 * half, half, 1);
    rig_write (&rig, 7 * half, half, 1);
    rig_zero (&rig, 5 * half, 2 * half, flags);
    CHECK_KIND (2, RUN_COMPRESSED);
    CHECK_KIND (3, RUN_COMPRESSED);
    /* By zeros that are written. */
    rig_write (&rig, 8 * half, half, 1);
    write_zeros (9 * half, half);
    CHECK_KIND (4, RUN_COMPRESSED);
    rig_zero (&rig, 10 * half, half, flags);
    rig_zero (&rig, 11 * half, half, flags);
    CHECK (rig_kind (&rig, 10 * half) != RUN_COMPRESSED);
    rig_write (&rig, 14 * half, half, 1);
    rig_zero (&rig, 15 * half, half - 1024, flags);
    CHECK_KIND (7, RUN_COMPRESSED);
    end ();
  }
}

/* What does not go well when a cluster is complete is no error of the request
 * whose bytes are there: neither a read, nor a write, nor the lack of space.
 */
static void
test_gather_fails (void)
{
  const struct { unsigned kinds; int err; uint64_t call; } failures[] = {
    { MEMORY_READ, EIO, 1 },
    { MEMORY_WRITE, EIO, 2 }, /* the first is the piece */
    { MEMORY_WRITE, ENOSPC, 2 },
  };
  unsigned i;

  for (i = 0; i < 3; ++i) {
    start (&usual, 4, 0);
    rig_write (&rig, 0, cluster_size / 2, 1);
    rig_flush (&rig);
    memory_fail (&rig.control, failures[i].kinds, failures[i].call,
                 failures[i].err);
    rig_write (&rig, cluster_size / 2, cluster_size / 2, 2);
    CHECK_EQ (rig.control.failed, 1);
    memory_fail_no_more (&rig.control);
    CHECK_KIND (0, RUN_DATA);
    rig_compare (&rig);
    rig_write (&rig, cluster_size, cluster_size, 3);
    CHECK_KIND (1, RUN_COMPRESSED);
    end (); /* no leak */
  }
}

/* What lies past the disk's end, in its last cluster, are zeros and nothing
 * that was in memory: it is seen when somebody makes the disk larger.
 */
static void
test_end (bool whole)
{
  const uint64_t nr = 3, cut = 1536, size = (nr << 16) - cut;

  start (&usual, nr, cut);
  if (whole)
    rig_write (&rig, 2 * cluster_size, cluster_size - cut, 1);
  else {
    rig_write (&rig, 2 * cluster_size, cluster_size / 2, 1);
    rig_write (&rig, 5 * cluster_size / 2, cluster_size / 2 - cut, 2);
  }
  CHECK_KIND (2, RUN_COMPRESSED);
  rig_close (&rig);
  CHECK_EQ (get_be64 (rig.disk.data + 24), size);
  put_be64 (rig.disk.data + 24, size + cut);
  rig.content = realloc (rig.content, size + cut);
  memset (rig.content + size, 0, cut);
  rig.size = size + cut;
  rig_open (&rig);
  end ();
}

/* ----------------------------------------------------------- detect-zeroes */

static void
test_detect_zeroes (void)
{
  unsigned compress, detect;

  for (compress = 0; compress < 2; ++compress) {
    for (detect = 0; detect < 3; ++detect) {
      struct form f = usual;
      enum run_kind zeros, kept;

      f.level = compress;
      start (&f, 10, 512);
      image_detect_zeroes (rig.im, detect);
      rig_write (&rig, 0, 3 * cluster_size, 1);
      write_noise (3 * cluster_size, cluster_size);
      write_zeros (cluster_size, cluster_size);
      write_zeros (3 * cluster_size, cluster_size);
      write_zeros (9 * cluster_size, cluster_size - 512);
      write_zeros (5 * cluster_size + 100, cluster_size);
      zeros = detect == DETECT_ZEROES_OFF
        ? compress ? RUN_COMPRESSED : RUN_DATA
        : compress || detect == DETECT_ZEROES_UNMAP ? RUN_ZERO_PLAIN
        : RUN_ZERO_ALLOC;
      kept = detect == DETECT_ZEROES_ON ? RUN_ZERO_ALLOC : zeros;
      CHECK_KIND (1, zeros);
      CHECK_KIND (3, kept);
      CHECK_KIND (0, compress ? RUN_COMPRESSED : RUN_DATA);
      CHECK_KIND (9, detect != DETECT_ZEROES_OFF ? RUN_UNALLOCATED : zeros);
      CHECK_KIND (5, detect != DETECT_ZEROES_OFF ? RUN_UNALLOCATED
                  : RUN_DATA);
      /* Zeros between data, in one request, durably. */
      memset (rig.content + 6 * cluster_size, 0, 3 * cluster_size);
      build_pattern (rig.content + 6 * cluster_size, cluster_size, 4);
      build_pattern (rig.content + 8 * cluster_size, cluster_size, 5);
      CHECK_OK (image_write (rig.im, rig.content + 6 * cluster_size,
                             3 * cluster_size,
                             (struct guest_off) { 6 * cluster_size },
                             IMAGE_FUA));
      CHECK_KIND (7, detect != DETECT_ZEROES_OFF ? RUN_UNALLOCATED : zeros);
      end ();
    }
  }
}

/* ---------------------------------------------------------------- no space */

static void
test_full (void)
{
  uint64_t i, failed = 0;

  start (&usual, 100, 0);
  rig.control.limit = file_size () + 25 * cluster_size;
  for (i = 0; i < 100; ++i) {
    if (rig_try_write (&rig, i * cluster_size, cluster_size, i, 0) == -1) {
      CHECK_ERROR (ENOSPC, "");
      failed++;
    }
  }
  CHECK (failed > 0 && failed < 90);
  rig_compare (&rig);
  rig_trim (&rig, 0, 20 * cluster_size);
  for (i = 80; i < 85; ++i)
    rig_write (&rig, i * cluster_size, cluster_size, i);
  rig_compare (&rig);
  rig.control.limit = 0;
  for (i = 0; i < 100; ++i)
    rig_write (&rig, i * cluster_size, cluster_size, i + 7);
  end ();
}

/* What was set apart for more compressed data goes to others in need. */
static void
test_full_of_others (void)
{
  uint64_t i;

  start (&usual, 100, 0);
  rig.control.limit = file_size () + 40 * cluster_size;
  rig_write (&rig, 0, cluster_size, 1);
  for (i = 1; i < 37; ++i) /* one is an L2 table */
    write_noise (i * cluster_size, cluster_size);
  end ();
}

int
main (void)
{
  static const struct form forms[] = {
    { 3, 9, 4, false, COMPRESSION_DEFLATE, 1 },
    { 2, 10, 4, false, COMPRESSION_DEFLATE, 6 },
    { 3, 12, 0, false, COMPRESSION_DEFLATE, 1 },
    { 3, 12, 1, false, COMPRESSION_ZSTD, 3 },
    { 2, 16, 4, false, COMPRESSION_DEFLATE, 2 },
    { 3, 16, 6, false, COMPRESSION_ZSTD, 1 },
    { 3, 14, 4, true, COMPRESSION_DEFLATE, 3 },
    { 3, 16, 4, true, COMPRESSION_ZSTD, 3 },
    { 3, 18, 3, false, COMPRESSION_DEFLATE, 1 },
    { 3, 20, 4, false, COMPRESSION_DEFLATE, 1 },
  };
  unsigned i, detect;

  check_time_limit (200);
  for (i = 0; i < sizeof forms / sizeof forms[0]; i += TEST_EACH (3)) {
    test_whole (&forms[i]);
    if (forms[i].bits > 9)
      test_gather (&forms[i]);
    for (detect = 0; detect < 3 && forms[i].bits >= 12 && forms[i].bits < 18;
         ++detect)
      test_gather_zeros (&forms[i], detect);
  }
  for (i = 0; i < 3; ++i)
    test_saturated (12, i);
  test_saturated (16, 3);
  test_least_gain ();
  test_rewrite ();
  test_growth ();
  test_decoded ();
  test_snapshot ();
  test_order ();
  for (i = 0; i < 2; ++i) {
    for (detect = 0; detect < 3; ++detect)
      test_fua (i, detect);
  }
  test_gather_fua ();
  test_gather_fails ();
  test_end (false);
  test_end (true);
  test_detect_zeroes ();
  test_full ();
  test_full_of_others ();
  return check_result ();
}
