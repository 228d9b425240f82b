/* SPDX-License-Identifier: BSD-3-Clause */

/* Bitmaps that follow what is written (I14): exact after a clean end, and with
 * enough bits whatever fails; what is refused; and full file systems.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <time.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "failures.h"
#include "image-check.h"
#include "image-parts.h"
#include "qcow2/write/follow.h"
#include "random.h"
#include "rig.h"
#include "rig-step.h"
#include "seconds.h"

#define SECTOR 512
#define DISK_BYTES (UINT64_C (5) << 20)
#define SECTORS (DISK_BYTES / SECTOR)
#define EXTENSION 112 /* where it is in the header */
#define ENTRY 32      /* bytes of a directory entry here */

enum { FINE, COARSE, DISABLED, BITMAPS };

static const struct {
  unsigned granularity_bits;
  uint32_t flags;
} kinds[BITMAPS] = {
  { 9, QCOW2_BITMAP_AUTO }, { 10, QCOW2_BITMAP_AUTO }, { 9, 0 },
};

/* More of them, like the disabled one. */
#define MORE BITMAPS_MAX_FOLLOWED

static struct rig rig;
static uint64_t directory, table[BITMAPS + MORE];
static unsigned cluster_bits;

static unsigned
kind_of (unsigned bitmap)
{
  return bitmap < BITMAPS ? bitmap : DISABLED;
}

static uint64_t
parts (unsigned bitmap)
{
  const uint64_t bits = DISK_BYTES >> kinds[kind_of (bitmap)].granularity_bits;

  return (bits + (8 << cluster_bits) - 1) >> (cluster_bits + 3);
}

/* Parts of the first are in a cluster, clean, dirty and so on; those of the
 * others are clean, and dirty.
 */
static uint64_t
part_word (struct builder *b, unsigned bitmap, uint64_t i)
{
  uint64_t cluster;

  if (bitmap != FINE)
    return bitmap == COARSE ? 0 : QCOW2_BITMAP_ALL_ONES;
  if (i % 3 != 0)
    return i % 3 == 1 ? 0 : QCOW2_BITMAP_ALL_ONES;
  cluster = build_clusters (b, 1);
  b->data[cluster + 5] = 0x81;
  return cluster;
}

static void
add_bitmap (struct builder *b, unsigned bitmap)
{
  const uint64_t nr = parts (bitmap);
  const uint64_t size = b->cluster_size;
  uint64_t i;
  uint8_t *p;

  table[bitmap] = build_clusters (b, (8 * nr + size - 1) / size);
  for (i = 0; i < nr; ++i) {
    const uint64_t word = part_word (b, bitmap, i);

    put_be64 (b->data + table[bitmap] + 8 * i, word);
  }
  p = b->data + directory + bitmap * ENTRY;
  put_be64 (p, table[bitmap]);
  put_be32 (p + 8, nr);
  put_be32 (p + 12, kinds[kind_of (bitmap)].flags);
  p[16] = QCOW2_BITMAP_DIRTY_TRACKING;
  p[17] = kinds[kind_of (bitmap)].granularity_bits;
  put_be16 (p + 18, 1);
  p[24] = 'a' + bitmap;
}

static void
build_bitmaps (struct builder *b, unsigned bits, unsigned nr)
{
  unsigned i;

  cluster_bits = bits;
  build_start (b, 3, bits, false, COMPRESSION_DEFLATE, DISK_BYTES);
  for (i = 0; i < 40; ++i) {
    build_l2_place (b, i);
    build_entry (b, i, build_data (b, i + 1), 0);
  }
  directory = build_clusters (b, 1);
  for (i = 0; i < nr; ++i)
    add_bitmap (b, i);
  put_be32 (b->data + EXTENSION, QCOW2_EXT_BITMAPS);
  put_be32 (b->data + EXTENSION + 4, 24);
  put_be32 (b->data + EXTENSION + 8, nr);
  put_be64 (b->data + EXTENSION + 16, nr * ENTRY);
  put_be64 (b->data + EXTENSION + 24, directory);
  put_be64 (b->data + 88, QCOW2_AUTOCLEAR_BITMAPS);
  build_finish (b);
}

static void
build (struct builder *b, unsigned bits)
{
  build_bitmaps (b, bits, BITMAPS);
}

/* Of writer_options. */
static unsigned idle = BITMAP_NEVER_IDLE;

static void
start (unsigned bits, unsigned pages)
{
  struct builder b;

  build (&b, bits);
  rig_init (&rig, "follow", &b);
  build_free (&b);
  rig.options.bitmap_pages = pages;
  rig.options.bitmap_idle = idle;
  rig_open (&rig);
}

/* ------------------------------------------------------------ what they say */

/* Whether the disk says that a bit is set. */
static bool
is_set (unsigned bitmap, uint64_t bit)
{
  const uint64_t per_part = UINT64_C (8) << cluster_bits;
  const uint64_t word = get_be64 (rig.disk.data + table[bitmap] +
                                  bit / per_part * 8);
  const uint64_t n = bit % per_part;

  return word == QCOW2_BITMAP_ALL_ONES ||
    (word != 0 && (rig.disk.data[word + n / 8] >> n % 8 & 1));
}

static void
read_bits (unsigned bitmap, uint8_t *bits)
{
  const uint64_t nr = DISK_BYTES >> kinds[bitmap].granularity_bits;
  uint64_t i;

  for (i = 0; i < nr; ++i)
    bits[i] = is_set (bitmap, i);
}

/* They are valid, and the disabled one is as it was. */
static void
check_valid (void)
{
  unsigned i;

  CHECK (get_be64 (rig.disk.data + 88) & QCOW2_AUTOCLEAR_BITMAPS);
  for (i = 0; i < BITMAPS; ++i)
    CHECK_EQ (get_be32 (rig.disk.data + directory + i * ENTRY + 12),
              kinds[i].flags);
  CHECK_EQ (get_be64 (rig.disk.data + table[DISABLED]), QCOW2_BITMAP_ALL_ONES);
}

/* What differs from these contents is dirty. */
static void
check_enough (const uint8_t *before, const uint8_t *now)
{
  uint64_t s;
  unsigned i;

  check_valid ();
  for (s = 0; s < SECTORS; ++s) {
    if (memcmp (before + s * SECTOR, now + s * SECTOR, SECTOR) == 0)
      continue;
    for (i = FINE; i <= COARSE; ++i)
      if (!is_set (i, s * SECTOR >> kinds[i].granularity_bits)) {
        fprintf (stderr, "sector %u, bitmap %u\n", (unsigned) s, i);
        CHECK (false);
        return;
      }
  }
}

/* --------------------------------------------------------------------- exact */

static uint8_t expected[2][SECTORS];

static void
touch (uint64_t offset, uint64_t count)
{
  unsigned i;
  uint64_t k;

  for (i = FINE; i <= COARSE; ++i)
    for (k = offset >> kinds[i].granularity_bits;
         k <= (offset + count - 1) >> kinds[i].granularity_bits; ++k)
      expected[i][k] = 1;
}

static void
do_request (uint64_t *state, uint64_t seed)
{
  const uint64_t most = random_below (state, 8) == 0 ? 2 << 20 : 9000;
  const uint64_t count = 1 + random_below (state, most);
  const uint64_t offset = random_below (state, DISK_BYTES - count);

  touch (offset, count);
  switch (random_below (state, 5)) {
  case 0:
    rig_zero (&rig, offset, count, 0);
    break;
  case 1:
    rig_zero (&rig, offset, count, IMAGE_MAY_TRIM);
    break;
  case 2:
    rig_trim (&rig, offset, count);
    break;
  default:
    CHECK_OK (rig_try_write (&rig, offset, count, seed, seed % 4 == 0
                             ? IMAGE_FUA : 0));
  }
}

/* A clean end leaves exactly the bits of what was asked for, with any number of
 * pages in memory.
 */
static void
test_exact (unsigned bits, unsigned pages)
{
  static uint8_t is[SECTORS];
  uint64_t state = bits + pages;
  unsigned i, session;

  start (bits, pages);
  for (i = FINE; i <= COARSE; ++i)
    read_bits (i, expected[i]);
  for (session = 0; session < 2; ++session) {
    for (i = 0; i < 60; ++i)
      do_request (&state, i);
    rig_compare (&rig);
    rig_close (&rig);
    check_valid ();
    for (i = FINE; i <= COARSE; ++i) {
      read_bits (i, is);
      CHECK (memcmp (is, expected[i],
                     DISK_BYTES >> kinds[i].granularity_bits) == 0);
    }
    rig_open (&rig);
  }
  rig_close (&rig);
  rig_free (&rig);
}

/* ------------------------------------------------------------------- threads */

#define THREADS 4

static void *
write_at_random (void *opaque)
{
  const unsigned thread = *(unsigned *) opaque;
  uint64_t state = thread + 7;
  uint8_t buf[700];
  unsigned i;

  memset (buf, thread + 1, sizeof buf);
  for (i = 0; i < 300; ++i) {
    const struct guest_off at = {
      random_below (&state, DISK_BYTES - sizeof buf)
    };

    if (image_write (rig.im, buf, sizeof buf, at, 0) == -1)
      break;
  }
  CHECK_EQ (i, 300);
  return NULL;
}

/* The same as of the threads. */
static void
touch_at_random (unsigned thread)
{
  uint64_t state = thread + 7;
  unsigned i;

  for (i = 0; i < 300; ++i)
    touch (random_below (&state, DISK_BYTES - 700), 700);
}

/* Writing data takes time, while its bits' pages are held. */
static void
take_time (void *opaque, const struct memory_call *call)
{
  const struct timespec t = { .tv_nsec = 200000 };

  (void) opaque;
  if (call->kind == MEMORY_WRITE && !call->durable)
    nanosleep (&t, NULL);
}

/* Several requests at once, with hardly more pages than they hold: S3. */
static void
test_threads (void)
{
  static uint8_t is[SECTORS];
  unsigned number[THREADS], i;
  pthread_t thread[THREADS];

  start (9, 4); /* of five */
  rig.control.hook = take_time;
  for (i = FINE; i <= COARSE; ++i)
    read_bits (i, expected[i]);
  for (i = 0; i < THREADS; ++i) {
    number[i] = i;
    touch_at_random (i);
    CHECK_EQ (pthread_create (&thread[i], NULL, write_at_random, &number[i]),
              0);
  }
  for (i = 0; i < THREADS; ++i)
    pthread_join (thread[i], NULL);
  CHECK_OK (rig_close_only (&rig));
  rig.control.hook = NULL; /* which the idle thread has called, too */
  image_check_clean ("threads", rig.disk.data, atomic_load (&rig.disk.size));
  check_valid ();
  for (i = FINE; i <= COARSE; ++i) {
    read_bits (i, is);
    CHECK (memcmp (is, expected[i],
                   DISK_BYTES >> kinds[i].granularity_bits) == 0);
  }
  rig_free (&rig);
}

/* I7: a new cluster of bits is known to be one. */
static void
test_new_cluster (void)
{
  const struct writer *w;
  struct host_off host;

  start (12, 0);
  rig_write (&rig, 0, 512, 1);
  host.v = get_be64 (rig.disk.data + table[COARSE]);
  CHECK (host.v != 0 && host.v % 4096 == 0);
  w = rig.im->writer;
  CHECK_EQ (overlap_find ((struct overlap *) &w->overlap, host, 4096),
            METADATA_BITS);
  rig_close (&rig);
  rig_free (&rig);
}

/* ------------------------------------------------------------------- failing */

static const struct step steps[] = {
  { WRITE, 1000, 5000 },             /* a cluster of bits; in place */
  { FUA, 3 << 20, 700 },             /* clean: it gets one */
  { WRITE, (4 << 20) - 4096, 8192 }, /* clean, and all dirty */
  { FLUSH, 0, 0 },
  { ZERO, (2 << 20) + 300000, 100000 },
  { TRIM, 512, 9000 },
  { WRITE, 100000, 4096 },
  { WRITE, 9 << 19, 4096 },
  { FUA, 2 << 20, 512 },
  { FLUSH, 0, 0 },
};

#define NR_STEPS (sizeof steps / sizeof steps[0])

/* Returns false if the call was never made. */
static bool
run_failing (const struct failure *f, unsigned call, unsigned bits)
{
  uint8_t *before, *now = malloc (DISK_BYTES);
  bool failed = false, stuck;
  uint64_t writes;
  unsigned i;

  start (bits, 2);
  before = malloc (DISK_BYTES);
  memcpy (before, rig.content, DISK_BYTES);
  failure_arm (&rig.control, f, call);
  for (i = 0; i < 2 * NR_STEPS; ++i) {
    const bool past = rig.control.failed > 0;
    int r;

    if (i == NR_STEPS) {
      failed = past;
      memory_fail_no_more (&rig.control);
    }
    r = rig_try_step (&rig, &steps[i % NR_STEPS], i + 70);
    /* A lack of space that has passed is over. */
    if ((past || i >= NR_STEPS) && !(f->ever_after && i < NR_STEPS) &&
        f->err == ENOSPC)
      CHECK_EQ (r, 0);
  }
  CHECK_OK (layer_read (rig.live, now, DISK_BYTES, (struct guest_off) { 0 }));
  check_enough (before, now);
  stuck = image_flush (rig.im) == -1;
  writes = rig.control.writes;
  CHECK_EQ (rig_close_only (&rig), stuck ? (uint64_t) -1 : 0);
  if (stuck)
    CHECK_EQ (rig.control.writes, writes); /* I10 */
  check_enough (before, now);
  if (image_check ("a call failed", rig.disk.data,
                   atomic_load (&rig.disk.size)).leaks > 0)
    CHECK (stuck);
  rig_free (&rig);
  free (before);
  free (now);
  return failed;
}

static void
test_failing (unsigned bits)
{
  unsigned f, call, nr;

  for (f = 0; f < NR_FAILURES; ++f) {
    for (call = 1, nr = 0; run_failing (&failures[f], call, bits);
         call += bits == 9 ? TEST_EACH (7) * 3 : TEST_EACH (7), ++nr) {
      if (check_any_failed ()) {
        fprintf (stderr, "kinds 0x%x, errno %d, ever after %d, call %u\n",
                 failures[f].kinds, failures[f].err, failures[f].ever_after,
                 call);
        return;
      }
    }
    printf ("kinds 0x%x failed with %s at %u calls\n", failures[f].kinds,
            strerror (failures[f].err), nr);
  }
}

/* ------------------------------------------------------------------- refused */

static struct image *
open_disk (struct memory_disk *disk, struct memory_control *control)
{
  return image_open_storage (memory_disk_open (disk, "test", control),
                             CACHE_MIN_BYTES);
}

/* Refused with these words, and nothing is written; but for who gives them up.
 */
static void
check_refused (struct builder *b, int err, const char *words)
{
  static const struct writer_options keep = {
    .bitmap_idle = BITMAP_NEVER_IDLE,
  };
  static const struct writer_options give_up = { .invalidate_bitmaps = true };
  struct memory_control control = { 0 };
  struct memory_disk disk;
  struct image *im;

  memory_disk_init (&disk, b->data, b->size);
  build_free (b);
  im = open_disk (&disk, &control);
  CHECK_EQ (image_make_writable (im, &keep), (uint64_t) -1);
  CHECK_ERROR (err, words);
  CHECK_EQ (control.writes, 0);
  CHECK_OK (image_close (im));
  im = open_disk (&disk, &control);
  CHECK_OK (image_make_writable (im, &give_up));
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_EQ (get_be32 (disk.data + directory + 12),
            QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

static void
put_refcount (struct builder *b, uint64_t host, unsigned refcount)
{
  const uint64_t cluster = host >> cluster_bits;
  const uint64_t block = get_be64 (b->data + get_be64 (b->data + 48) +
                                   cluster / (b->cluster_size / 2) * 8);

  put_be16 (b->data + block + cluster % (b->cluster_size / 2) * 2, refcount);
}

static void
test_refused (void)
{
  struct builder b;

  build (&b, 12); /* a cluster of bits that something else has, too */
  put_refcount (&b, get_be64 (b.data + table[FINE]), 2);
  check_refused (&b, ENOTSUP, "whose refcount is 2");

  build (&b, 12); /* its table */
  put_refcount (&b, table[COARSE], 2);
  check_refused (&b, ENOTSUP, "whose refcount is 2");

  build (&b, 12); /* two bitmaps have it, whatever the refcount says */
  put_be64 (b.data + table[DISABLED], get_be64 (b.data + table[FINE]));
  check_refused (&b, ENOTSUP, "clusters in common");

  build (&b, 12); /* or one table */
  put_be64 (b.data + directory + DISABLED * ENTRY, table[FINE]);
  check_refused (&b, ENOTSUP, "clusters in common");

  build (&b, 12); /* made for another size of the disk */
  put_be32 (b.data + directory + 8, parts (FINE) + 1);
  check_refused (&b, ENOTSUP, "is not one for this disk");
}

/* A storage that has another directory from one of its reads on, as NBD servers
 * may: with more bitmaps enabled than can follow, or with one that is for
 * another disk.
 */
struct directory_change {
  struct memory_disk *disk;
  bool too_many;
  unsigned in; /* so many reads */
};

static void
change_directory (struct directory_change *c)
{
  uint8_t *d = c->disk->data + directory;
  unsigned i;

  for (i = 0; c->too_many && i < BITMAPS + MORE; ++i)
    put_be32 (d + i * ENTRY + 12, QCOW2_BITMAP_AUTO);
  if (!c->too_many)
    put_be32 (d + 8, parts (FINE) - 1);
}

static void
count_reads (void *opaque, const struct memory_call *call)
{
  struct directory_change *c = opaque;

  if (call->kind == MEMORY_READ && call->offset <= directory &&
      directory - call->offset < call->count && c->in > 0 && --c->in == 0)
    change_directory (c);
}

/* Returns false if there are no so many reads. */
static bool
open_changing (bool too_many, unsigned read)
{
  static const struct writer_options keep = {
    .bitmap_idle = BITMAP_NEVER_IDLE,
  };
  struct memory_control control = { 0 };
  struct directory_change c = { .too_many = too_many, .in = read };
  struct memory_disk disk;
  struct builder b;
  struct image *im;
  bool changed;

  build_bitmaps (&b, 12, BITMAPS + MORE);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  c.disk = &disk;
  control.hook = count_reads;
  control.opaque = &c;
  im = open_disk (&disk, &control);
  if (image_make_writable (im, &keep) == 0)
    CHECK (c.in > 0);
  else if (too_many)
    CHECK_ERROR (ENOTSUP, "too many to follow");
  changed = c.in == 0;
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
  return changed;
}

static void
test_changing_directory (void)
{
  unsigned read;

  for (read = 1; open_changing (true, read) && !check_any_failed (); ++read)
    CHECK (open_changing (false, read));
  CHECK (read > 2);
}

/* A fast zero that is refused changes nothing, bits included. */
static void
test_fast (void)
{
  uint8_t *before;

  start (12, 0);
  before = malloc (rig.disk.size);
  memcpy (before, rig.disk.data, rig.disk.size);
  CHECK_EQ (rig_try_zero (&rig, 4096 + 100, 3 << 20, IMAGE_FAST),
            (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "would have to be written");
  CHECK (memcmp (before, rig.disk.data, rig.disk.size) == 0);
  rig_compare (&rig);
  CHECK_OK (rig_try_zero (&rig, 4096, 3 << 20, IMAGE_FAST));
  rig_close (&rig);
  CHECK (is_set (FINE, 8) && is_set (FINE, 3 << 11) && !is_set (FINE, 7));
  rig_free (&rig);
  free (before);
}

/* ---------------------------------------------------------------- no space */

/* Have the file lack the block at this offset. */
static void
make_hole (struct memory_disk *d, uint64_t offset)
{
  memset (d->data + offset, 0, 4096);
  d->in_use[offset / MEMORY_DISK_BLOCK] = 0;
  d->blocks--;
}

/* On a full file system a mark that finds no space has all of its part dirty,
 * so that what needs none itself goes on; its cluster comes back at the end.
 */
static void
test_full (void)
{
  uint64_t cluster;

  start (12, 0);
  cluster = get_be64 (rig.disk.data + table[FINE]);
  rig_close (&rig);
  make_hole (&rig.disk, cluster);
  rig_open (&rig);
  rig.control.room = rig.disk.blocks;
  rig_write (&rig, 4096, 4096, 3); /* in place: there is a hole, and no room */
  CHECK_EQ (get_be64 (rig.disk.data + table[FINE]), QCOW2_BITMAP_ALL_ONES);
  CHECK_EQ (get_be64 (rig.disk.data + table[COARSE]), QCOW2_BITMAP_ALL_ONES);
  rig_trim (&rig, 8192, 8192);
  rig_flush (&rig);
  rig_compare (&rig);
  check_valid ();
  rig.control.room = 0; /* the cluster that was for bits is for data now */
  rig_write (&rig, 1 << 20, 1 << 20, 5);
  rig_close (&rig); /* without leaks */
  CHECK_EQ (get_be64 (rig.disk.data + table[FINE]), QCOW2_BITMAP_ALL_ONES);
  rig_open (&rig);
  CHECK_EQ (rig_refcount (&rig, cluster), 0);
  rig_close (&rig);
  rig_free (&rig);
}

/* A table that is a hole gets its space before anything is written, by whatever
 * the storage has for that.  Until there is some only reads are possible.
 */
static void
test_table_is_hole (bool allocates)
{
  static const struct writer_options keep = {
    .bitmap_idle = BITMAP_NEVER_IDLE,
  };
  struct memory_control control = { 0 };
  struct memory_disk disk;
  struct builder b;
  struct image *im;

  build (&b, 12);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  make_hole (&disk, table[COARSE]);
  control.room = disk.blocks;
  if (!allocates)
    memory_fail_ever_after (&control, MEMORY_ALLOCATE, 1, EOPNOTSUPP);
  im = open_disk (&disk, &control);
  CHECK_OK (image_make_writable (im, &keep));
  CHECK_EQ (image_write (im, "x", 1, (struct guest_off) { 0 }, 0),
            (uint64_t) -1);
  CHECK_ERROR (ENOSPC, "");
  CHECK_EQ (image_trim (im, 4096, (struct guest_off) { 0 }, 0),
            (uint64_t) -1);
  CHECK_OK (image_flush (im));
  control.room++;
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, IMAGE_FUA));
  CHECK_EQ (disk.blocks, control.room);
  CHECK_EQ (get_be64 (disk.data + table[COARSE]), QCOW2_BITMAP_ALL_ONES);
  CHECK_OK (image_trim (im, 4096, (struct guest_off) { 0 }, 0));
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

/* -------------------------------------------------------------- made durable */

static bool
has_call (const struct memory_log *l, size_t first, size_t end, unsigned kind)
{
  for (; first < end; ++first) {
    if (l->call[first].kind == kind)
      return true;
  }
  return false;
}

static size_t
last_write (const struct memory_log *l)
{
  size_t i = l->nr;

  while (i > 0 && l->call[i - 1].kind != MEMORY_WRITE)
    --i;
  CHECK (i > 0);
  return i;
}

/* What is read of bits counts as durable, and so is made durable before.  At
 * the end the exact bits are.
 */
static void
test_flushed (void)
{
  struct memory_log log = MEMORY_LOG_INIT;
  size_t i = 0;

  start (12, 0);
  rig.control.log = &log;
  CHECK_OK (rig_try_write (&rig, 4096, 4096, 1, IMAGE_FUA));
  while (i < log.nr && log.call[i].kind != MEMORY_WRITE)
    ++i;
  CHECK (has_call (&log, 0, i, MEMORY_FLUSH));
  rig_flush (&rig);
  memory_log_clear (&log);
  rig_close (&rig);
  CHECK (has_call (&log, last_write (&log), log.nr, MEMORY_FLUSH));
  memory_log_free (&log);
  rig_free (&rig);
}

static uint64_t
count_flushes (bool zero, bool fua)
{
  struct memory_log log = MEMORY_LOG_INIT;
  const uint64_t count = DISK_BYTES - 1024; /* in three pieces */
  const unsigned flags = fua ? IMAGE_FUA : 0;
  uint64_t nr;

  start (9, 0);
  rig_write (&rig, 0, DISK_BYTES, 1);
  rig_flush (&rig);
  rig.control.log = &log;
  nr = rig.control.flushes;
  CHECK_OK (zero ? rig_try_zero (&rig, 512, count, flags)
            : rig_try_write (&rig, 512, count, 2, flags));
  if (!fua)
    rig_flush (&rig);
  nr = rig.control.flushes - nr;
  CHECK (has_call (&log, last_write (&log), log.nr, MEMORY_FLUSH));
  rig.control.log = NULL;
  rig_close (&rig);
  memory_log_free (&log);
  rig_free (&rig);
  return nr;
}

/* FUA is a flush after the request, not one after each piece. */
static void
test_fua (void)
{
  CHECK_EQ (count_flushes (false, true), count_flushes (false, false));
  CHECK_EQ (count_flushes (true, true), count_flushes (true, false));
}

/* A mark that found no space may be on the disk in part, where it is read
 * again: it is flushed.
 */
static void
test_mark_lacks_space (void)
{
  struct memory_log log = MEMORY_LOG_INIT;

  start (12, 0);
  rig_write (&rig, 4096, 512, 1);
  rig.control.log = &log;
  memory_fail_ever_after (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (rig_try_write (&rig, 200000, 512, 2, 0), (uint64_t) -1);
  CHECK_ERROR (ENOSPC, "");
  CHECK (has_call (&log, last_write (&log), log.nr, MEMORY_FLUSH));
  memory_fail_no_more (&rig.control);
  rig_write (&rig, 200000, 512, 2);
  rig_close (&rig);
  memory_log_free (&log);
  rig_free (&rig);
}

/* ---------------------------------------------------------------- idle pages */

/* Whether the disk says that one of the fine bitmap's is set: read by another
 * door, since a thread may be writing it.
 */
static bool
peek (uint64_t bit)
{
  struct storage *s = memory_disk_open (&rig.disk, "peek", NULL);
  uint8_t buf[8], byte = 0;

  CHECK_OK (storage_read (s, buf, sizeof buf,
                          (struct host_off) { table[FINE] }));
  CHECK_OK (storage_read (s, &byte, 1,
                          (struct host_off) { get_be64 (buf) + bit / 8 }));
  storage_close (s);
  return byte >> bit % 8 & 1;
}

static void
settle (void)
{
  follow_settle (rig.im->writer, 0);
}

/* What was marked ahead is taken back; what is in it has to be marked again. */
static void
test_settled (void)
{
  uint64_t writes;

  start (12, 0);
  rig_write (&rig, 65536, 512, 1);
  CHECK (peek (128) && peek (129));
  settle ();
  CHECK (peek (128) && !peek (129));
  writes = rig.control.writes;
  settle (); /* nothing is left to be written */
  CHECK_EQ (rig.control.writes, writes);
  rig_write (&rig, 65536 + 512, 512, 2);
  CHECK (peek (128) && peek (129) && peek (130));
  rig_write (&rig, 65536, 512, 3); /* is marked */
  settle ();
  CHECK (peek (128) && peek (129) && !peek (130));
  rig_close (&rig);
  rig_free (&rig);
}

/* While a page is held it is left as it is. */
static void
settle_within (void *opaque, const struct memory_call *call)
{
  unsigned *nr = opaque;

  if (call->kind == MEMORY_WRITE && !call->durable && (*nr)++ == 0)
    settle ();
}

static void
test_settled_while_held (void)
{
  unsigned nr = 0;

  start (12, 0);
  rig_write (&rig, 65536, 512, 1);
  rig.control.hook = settle_within;
  rig.control.opaque = &nr;
  rig_write (&rig, 65536 + 5 * 512, 512, 1);
  CHECK (nr > 0);
  CHECK (peek (128) && peek (129));
  rig.control.hook = NULL;
  rig_close (&rig);
  rig_free (&rig);
}

/* What could not be written so is at the end. */
static void
test_settling_fails (void)
{
  start (12, 0);
  rig_write (&rig, 65536, 512, 1);
  memory_fail (&rig.control, MEMORY_WRITE, 1, EIO);
  settle ();
  CHECK_EQ (rig.control.failed, 1);
  memory_fail_no_more (&rig.control);
  CHECK (peek (128) && peek (129));
  rig_close (&rig);
  CHECK (is_set (FINE, 128) && !is_set (FINE, 129));
  rig_free (&rig);
}

/* A page that is marked while an earlier one is written is not idle. */
#define IDLE_NS 50000000
#define SECOND_PAGE (UINT64_C (2) << 20)

struct mark_within {
  unsigned nr;
  uint64_t marked_at;
};

static uint64_t
monotonic (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

static void
mark_within (void *opaque, const struct memory_call *call)
{
  struct mark_within *m = opaque;

  if (call->kind != MEMORY_WRITE || call->durable || m->nr++ > 0)
    return;
  m->marked_at = monotonic ();
  rig_write (&rig, SECOND_PAGE, 512, 2);
}

/* Returns false if this took so long that the page was idle after all. */
static bool
settle_and_mark (void)
{
  const struct timespec t = { .tv_nsec = IDLE_NS };
  struct mark_within m = { 0 };
  bool soon;

  start (9, 0);
  rig_write (&rig, 0, 512, 1);
  nanosleep (&t, NULL);
  rig.control.opaque = &m;
  rig.control.hook = mark_within;
  follow_settle (rig.im->writer, IDLE_NS);
  rig.control.hook = NULL;
  CHECK (m.nr > 0);
  soon = monotonic () - m.marked_at < IDLE_NS;
  if (soon)
    CHECK (is_set (FINE, SECOND_PAGE / 512 + 1));
  rig_close (&rig);
  CHECK (!is_set (FINE, SECOND_PAGE / 512 + 1));
  rig_free (&rig);
  return soon;
}

static void
test_marked_while_settling (void)
{
  while (!settle_and_mark ())
    ;
}

/* A thread does it, while others write. */
static void
test_thread_settles (void)
{
  const struct timespec t = { .tv_nsec = 1000000 };

  idle = 1;
  start (12, 0);
  rig_write (&rig, 65536, 512, 1);
  while (peek (129))
    nanosleep (&t, NULL);
  CHECK (peek (128));
  rig_close (&rig);
  rig_free (&rig);
  test_threads ();
  test_exact (9, 3);
  idle = BITMAP_NEVER_IDLE;
}

/* I10: what a mark that has failed has left on the disk is not known. */
static void
test_mark_fails (void)
{
  uint64_t writes;

  start (12, 0);
  rig_write (&rig, 4096, 512, 1);
  memory_fail (&rig.control, MEMORY_WRITE, 1, EIO);
  CHECK_EQ (rig_try_write (&rig, 200000, 512, 2, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "");
  CHECK_EQ (rig.control.failed, 1);
  memory_fail_no_more (&rig.control);
  writes = rig.control.writes;
  CHECK_EQ (rig_try_write (&rig, 4096, 512, 3, 0), (uint64_t) -1);
  CHECK_EQ (image_flush (rig.im), (uint64_t) -1);
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  CHECK_EQ (rig.control.writes, writes);
  rig_free (&rig);
}

int
main (void)
{
  check_time_limit (100);
  test_exact (9, 0);
  test_exact (9, 2); /* one page of each */
  test_exact (9, 3);
  test_exact (12, 0);
  test_threads ();
  test_new_cluster ();
  test_refused ();
  test_changing_directory ();
  test_fast ();
  test_full ();
  test_table_is_hole (true);
  test_table_is_hole (false);
  test_flushed ();
  test_fua ();
  test_mark_lacks_space ();
  test_mark_fails ();
  test_settled ();
  test_settled_while_held ();
  test_settling_fails ();
  test_marked_while_settling ();
  test_thread_settles ();
  test_failing (9);
  test_failing (12);
  return check_result ();
}
