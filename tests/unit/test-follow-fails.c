/* SPDX-License-Identifier: BSD-3-Clause */

/* Bitmaps that follow what is written (I14): with enough bits whatever fails;
 * what is refused; full file systems; and what is made durable when.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "failures.h"
#include "follow-rig.h"
#include "image-check.h"
#include "rig-step.h"
#include "seconds.h"

/* ------------------------------------------------------------------- failing */

/* What differs from these contents is dirty. */
static void
check_enough (const uint8_t *before, const uint8_t *now)
{
  uint64_t s;
  unsigned i;

  follow_check_valid ();
  for (s = 0; s < SECTORS; ++s) {
    if (memcmp (before + s * SECTOR, now + s * SECTOR, SECTOR) == 0)
      continue;
    for (i = FINE; i <= COARSE; ++i)
      if (!follow_is_set (i, s * SECTOR >> follow_kinds[i].granularity_bits)) {
        fprintf (stderr, "sector %u, bitmap %u\n", (unsigned) s, i);
        CHECK (false);
        return;
      }
  }
}

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

  follow_start (bits, 2);
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

/* I10: what a mark that has failed has left on the disk is not known. */
static void
test_mark_fails (void)
{
  uint64_t writes;

  follow_start (12, 0);
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
  CHECK_EQ (get_be32 (disk.data + follow_directory + 12),
            QCOW2_BITMAP_AUTO | QCOW2_BITMAP_IN_USE);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

static void
put_refcount (struct builder *b, uint64_t host, unsigned refcount)
{
  const uint64_t cluster = host >> follow_cluster_bits;
  const uint64_t block = get_be64 (b->data + get_be64 (b->data + 48) +
                                   cluster / (b->cluster_size / 2) * 8);

  put_be16 (b->data + block + cluster % (b->cluster_size / 2) * 2, refcount);
}

static void
test_refused (void)
{
  struct builder b;

  follow_build (&b, 12); /* a cluster of bits that something else has, too */
  put_refcount (&b, get_be64 (b.data + follow_table[FINE]), 2);
  check_refused (&b, ENOTSUP, "whose refcount is 2");

  follow_build (&b, 12); /* its table */
  put_refcount (&b, follow_table[COARSE], 2);
  check_refused (&b, ENOTSUP, "whose refcount is 2");

  follow_build (&b, 12); /* two bitmaps have it, whatever the refcount says */
  put_be64 (b.data + follow_table[DISABLED],
            get_be64 (b.data + follow_table[FINE]));
  check_refused (&b, ENOTSUP, "clusters in common");

  follow_build (&b, 12); /* or one table */
  put_be64 (b.data + follow_directory + DISABLED * ENTRY, follow_table[FINE]);
  check_refused (&b, ENOTSUP, "clusters in common");

  follow_build (&b, 12); /* made for another size of the disk */
  put_be32 (b.data + follow_directory + 8, follow_parts (FINE) + 1);
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
  uint8_t *d = c->disk->data + follow_directory;
  unsigned i;

  for (i = 0; c->too_many && i < BITMAPS + MORE; ++i)
    put_be32 (d + i * ENTRY + 12, QCOW2_BITMAP_AUTO);
  if (!c->too_many)
    put_be32 (d + 8, follow_parts (FINE) - 1);
}

static void
count_reads (void *opaque, const struct memory_call *call)
{
  struct directory_change *c = opaque;

  if (call->kind == MEMORY_READ && call->offset <= follow_directory &&
      follow_directory - call->offset < call->count && c->in > 0 &&
      --c->in == 0)
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

  follow_build_bitmaps (&b, 12, BITMAPS + MORE);
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

  follow_start (12, 0);
  before = malloc (rig.disk.size);
  memcpy (before, rig.disk.data, rig.disk.size);
  CHECK_EQ (rig_try_zero (&rig, 4096 + 100, 3 << 20, IMAGE_FAST),
            (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "would have to be written");
  CHECK (memcmp (before, rig.disk.data, rig.disk.size) == 0);
  rig_compare (&rig);
  CHECK_OK (rig_try_zero (&rig, 4096, 3 << 20, IMAGE_FAST));
  rig_close (&rig);
  CHECK (follow_is_set (FINE, 8) && follow_is_set (FINE, 3 << 11));
  CHECK (!follow_is_set (FINE, 7));
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

  follow_start (12, 0);
  cluster = get_be64 (rig.disk.data + follow_table[FINE]);
  rig_close (&rig);
  make_hole (&rig.disk, cluster);
  rig_open (&rig);
  rig.control.room = rig.disk.blocks;
  rig_write (&rig, 4096, 4096, 3); /* in place: there is a hole, and no room */
  CHECK_EQ (get_be64 (rig.disk.data + follow_table[FINE]),
            QCOW2_BITMAP_ALL_ONES);
  CHECK_EQ (get_be64 (rig.disk.data + follow_table[COARSE]),
            QCOW2_BITMAP_ALL_ONES);
  rig_trim (&rig, 8192, 8192);
  rig_flush (&rig);
  rig_compare (&rig);
  follow_check_valid ();
  rig.control.room = 0; /* the cluster that was for bits is for data now */
  rig_write (&rig, 1 << 20, 1 << 20, 5);
  rig_close (&rig); /* without leaks */
  CHECK_EQ (get_be64 (rig.disk.data + follow_table[FINE]),
            QCOW2_BITMAP_ALL_ONES);
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

  follow_build (&b, 12);
  memory_disk_init (&disk, b.data, b.size);
  build_free (&b);
  make_hole (&disk, follow_table[COARSE]);
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
  CHECK_EQ (get_be64 (disk.data + follow_table[COARSE]),
            QCOW2_BITMAP_ALL_ONES);
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

  follow_start (12, 0);
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

  follow_start (9, 0);
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

  follow_start (12, 0);
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

/* The end writes bits as they are exactly, though tables find no space at first. */
static void
test_end_lacks_space (void)
{
  follow_start (12, 0);
  rig_write (&rig, SECTOR, SECTOR, 1);
  rig_trim (&rig, 16384, 4096);
  CHECK (follow_is_set (FINE, 30)); /* ahead */
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_OK (rig_close_only (&rig));
  CHECK (rig.control.failed > 0);
  CHECK (follow_is_set (FINE, 1) && !follow_is_set (FINE, 30));
  image_check_clean ("no space at first", rig.disk.data,
                     atomic_load (&rig.disk.size));
  rig_free (&rig);
}

int
main (void)
{
  check_time_limit (100);
  test_refused ();
  test_changing_directory ();
  test_fast ();
  test_full ();
  test_table_is_hole (true);
  test_table_is_hole (false);
  test_flushed ();
  test_fua ();
  test_mark_lacks_space ();
  test_end_lacks_space ();
  test_mark_fails ();
  test_failing (9);
  test_failing (12);
  return check_result ();
}
