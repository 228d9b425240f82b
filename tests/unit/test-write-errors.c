/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing where something goes wrong: damaged images, full disks, failing
 * calls; and the header's feature bits.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "failures.h"
#include "image-check.h"
#include "random.h"
#include "rig.h"
#include "rig-step.h"
#include "seconds.h"

#define CLUSTER UINT64_C (4096)
#define CLUSTERS 100
#define DISK_BYTES (CLUSTERS * CLUSTER)

static struct rig rig;
static uint8_t base[DISK_BYTES];

static void
compressed (struct builder *b, uint64_t cluster)
{
  uint8_t plain[CLUSTER];

  build_pattern (plain, sizeof plain, cluster);
  build_compressed (b, cluster, plain, 10);
}

/* Clusters of 4 KiB: 0 to 19 data, 20 to 23 compressed, 24 to 27 zero (two of
 * them kept).
 */
enum sharing { NO_SNAPSHOT, SHARED_TABLES, COPIED_TABLES };

static void
build (struct builder *b, enum sharing snapshot, bool backing)
{
  uint64_t state = 1, i;

  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, DISK_BYTES);
  build_l2_place (b, 0);
  for (i = 0; i < 20; ++i)
    build_entry (b, i, build_data (b, i + 1), 0);
  for (; i < 24; ++i)
    compressed (b, i);
  for (; i < 28; ++i)
    build_entry (b, i, (i % 2 ? build_data (b, 9) : 0) | QCOW2_L2_ZERO, 0);
  if (backing)
    build_backing (b, "raw");
  if (snapshot != NO_SNAPSHOT)
    build_snapshot (b, snapshot == COPIED_TABLES ? 100 : 0, &state);
}

static void
start_built (struct builder *b, bool backing)
{
  build_finish (b);
  rig_init (&rig, "errors", b);
  build_free (b);
  if (backing)
    rig_set_base (&rig, base, sizeof base, true);
  rig_open (&rig);
}

static void
start (enum sharing snapshot, bool backing)
{
  struct builder b;

  build (&b, snapshot, backing);
  start_built (&b, backing);
}

static void
end (void)
{
  rig_close (&rig);
  rig_free (&rig);
}

/* ----------------------------------------------------------------- overlap */

static uint64_t
on_disk (uint64_t at)
{
  return get_be64 (rig.disk.data + at);
}

/* I7: an entry says that a cluster may be written in place, but it is one of
 * the image's own tables.
 */
static void
check_overlap (uint64_t host, const char *what, bool kept_zero)
{
  const uint64_t table = on_disk (on_disk (40)) & QCOW2_ENTRY_OFFSET_MASK;
  uint8_t pattern[100], buf[CLUSTER];
  uint64_t writes;

  /* The image is opened again, so that the damage is not in the cache. */
  image_close_disk (rig.live);
  CHECK_OK (image_close (rig.im));
  put_be64 (rig.disk.data + table + 7 * 8, host | QCOW2_ENTRY_COPIED |
            (kept_zero ? QCOW2_L2_ZERO : 0));
  free (rig.content);
  rig.content = NULL;
  free (rig.snapshot[0]);
  rig_open (&rig);
  build_pattern (pattern, sizeof pattern, 1);
  rig_write (&rig, 3 * CLUSTER, 100, 1); /* elsewhere it goes well */
  CHECK_EQ (rig_try_write (&rig, 7 * CLUSTER, 100, 1, 0),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: data would be written over");
  CHECK_HAS (error_message (), what);
  CHECK (memcmp (pattern, rig.disk.data + host, sizeof pattern) != 0);
  CHECK_EQ (on_disk (72), QCOW2_INCOMPAT_CORRUPT);

  /* It is read-only from here on. */
  writes = rig.control.writes;
  CHECK_EQ (rig_try_write (&rig, 3 * CLUSTER, 100, 2, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK_EQ (rig_try_zero (&rig, 3 * CLUSTER, 100, 0), (uint64_t) -1);
  CHECK_EQ (rig_try_trim (&rig, 3 * CLUSTER, CLUSTER, 0), (uint64_t) -1);
  CHECK_EQ (image_flush (rig.im), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK_OK (layer_read (rig.live, buf, CLUSTER, (struct guest_off) { 0 }));
  CHECK (memcmp (buf, rig.content, CLUSTER) == 0);
  CHECK_EQ (rig.control.writes, writes);
  CHECK_EQ (rig_close_only (&rig), -1);
  CHECK_EQ (rig.control.writes, writes);
}

static void
check_refused (const char *why)
{
  const struct writer_options options = { 0 };
  struct image *im = image_open_storage (memory_disk_open
                                         (&rig.disk, "test", &rig.control),
                                         CACHE_MIN_BYTES);

  CHECK (im != NULL);
  CHECK_EQ (image_make_writable (im, &options), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, why);
  CHECK_OK (image_flush (im)); /* not writable: nothing is to be done */
  CHECK_OK (image_close (im));
}

static void
test_overlap (void)
{
  static const struct { unsigned field; const char *what; } tables[] = {
    { 40, "the L1 table" },
    { 48, "the refcount table" },
    { 64, "the snapshot table" },
  };
  unsigned i, kept;

  for (kept = 0; kept < 2; ++kept) {
    for (i = 0; i < 3; ++i) {
      start (COPIED_TABLES, false);
      check_overlap (on_disk (tables[i].field), tables[i].what, kept);
      check_refused ("marked as corrupt");
      rig_free (&rig);
    }
    start (COPIED_TABLES, false);
    check_overlap (on_disk (on_disk (48)), "a refcount block", kept);
    rig_free (&rig);
    start (COPIED_TABLES, false);
    check_overlap (on_disk (on_disk (64)), "the L1 table of a snapshot",
                   kept);
    rig_free (&rig);
    start (NO_SNAPSHOT, false);
    check_overlap (on_disk (on_disk (40)) & QCOW2_ENTRY_OFFSET_MASK,
                   "an L2 table", kept);
    rig_free (&rig);
  }
}

/* The same where the cluster would not be written, but given up: by a write
 * that replaces it, and by a trim.
 */
static void
test_overlap_given_up (void)
{
  unsigned trim;

  for (trim = 0; trim < 2; ++trim) {
    struct builder b;
    int r;

    build (&b, NO_SNAPSHOT, false);
    build_finish (&b);
    put_be64 (b.data + build_l2_place (&b, 7), get_be64 (b.data + 48));
    rig_init (&rig, "given up", &b);
    build_free (&b);
    rig_open (&rig);
    r = trim ? rig_try_trim (&rig, 7 * CLUSTER, CLUSTER, 0)
      : rig_try_write (&rig, 7 * CLUSTER, 100, 1, 0);
    CHECK_EQ (r, (uint64_t) -1);
    CHECK_ERROR (EIO, "damaged: data would be taken away that is the refcount "
                 "table");
    CHECK_EQ (on_disk (72), QCOW2_INCOMPAT_CORRUPT);
    rig_compare (&rig);
    CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
    rig_free (&rig);
  }
}

/* The refcount of a cluster of data is 0, so that it becomes an L2 table: which
 * is protected from then on.
 */
static void
test_overlap_new_table (void)
{
  struct builder b;
  uint64_t host, block;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1024 * CLUSTER);
  build_l2_place (&b, 7);
  host = build_data (&b, 7);
  build_entry (&b, 7, host, 0);
  build_finish (&b);
  block = get_be64 (b.data + get_be64 (b.data + 48));
  put_be16 (b.data + block + host / CLUSTER * 2, 0);
  rig_init (&rig, "new table", &b);
  build_free (&b);
  rig_open (&rig);
  rig_write (&rig, 600 * CLUSTER, 10, 1);
  CHECK_EQ (rig_try_write (&rig, 7 * CLUSTER, 100, 1, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: data would be written over an L2 table");
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

/* The same, but the cluster was reserved as one of zeros, then written in place
 * as data, and is wanted as a table after that: what is in it is none.
 */
static void
test_overlap_written_table (void)
{
  struct builder b;
  uint64_t first, block, i;
  uint8_t byte;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1024 * CLUSTER);
  build_l2_place (&b, 0);
  first = build_data (&b, 0);
  build_entry (&b, 0, first, 0);
  for (i = 1; i < 8; ++i)
    build_entry (&b, i, build_data (&b, i), 0);
  build_finish (&b);
  block = get_be64 (b.data + get_be64 (b.data + 48));
  for (i = 0; i < 8; ++i)
    put_be16 (b.data + block + (first / CLUSTER + i) * 2, 0);
  rig_init (&rig, "written table", &b);
  build_free (&b);
  rig_open (&rig);
  rig_write (&rig, 20 * CLUSTER, CLUSTER, 1); /* has the eight reserved */
  for (i = 1; i < 8; ++i)
    CHECK_OK (rig_try_write (&rig, i * CLUSTER, CLUSTER, 1, 0));
  CHECK_EQ (rig_try_write (&rig, 600 * CLUSTER, 10, 1, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: data would be taken for an L2 table");
  CHECK_EQ (on_disk (72), QCOW2_INCOMPAT_CORRUPT);
  CHECK_OK (layer_read (rig.live, &byte, 1, (struct guest_off) {
        601 * CLUSTER }));
  CHECK_EQ (byte, 0);
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

/* Metadata that overlaps other metadata is found when it is opened. */
static void
test_overlap_tables (void)
{
  const struct writer_options options = { 0 };
  struct builder b;
  struct image *im;
  unsigned i;

  for (i = 0; i < 2; ++i) {
    build (&b, SHARED_TABLES, false);
    build_finish (&b);
    if (i == 0) /* the second L1 entry: the refcount table */
      put_be64 (b.data + get_be64 (b.data + 40), get_be64 (b.data + 48) |
                QCOW2_ENTRY_COPIED);
    else /* the snapshot's L1 table: the disk's */
      put_be64 (b.data + get_be64 (b.data + 64), get_be64 (b.data + 40));
    rig_init (&rig, "tables", &b);
    build_free (&b);
    im = image_open_storage (memory_disk_open (&rig.disk, "test", NULL),
                             CACHE_MIN_BYTES);
    CHECK (im != NULL);
    CHECK_EQ (image_make_writable (im, &options), (uint64_t) -1);
    CHECK (error_errno () == EIO || error_errno () == EINVAL);
    CHECK_HAS (error_message (), "so that it can't be written");
    CHECK_OK (image_close (im));
    rig_free (&rig);
  }
}

/* One table maps three parts of the disk, none COPIED: each part copies it when
 * it is written, and its refcount must last until then.
 */
static void
test_overlap_parts (void)
{
  unsigned refcount, i;

  for (refcount = 1; refcount <= 3; ++refcount) {
    const struct writer_options options = { 0 };
    struct builder b;
    struct image *im;
    uint64_t table, l1;

    build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 3 * 512 * CLUSTER);
    build_l2_place (&b, 0);
    build_finish (&b);
    l1 = get_be64 (b.data + 40);
    table = get_be64 (b.data + l1) & QCOW2_ENTRY_OFFSET_MASK;
    for (i = 0; i < 3; ++i)
      put_be64 (b.data + l1 + i * 8, table);
    put_be16 (b.data + get_be64 (b.data + get_be64 (b.data + 48)) +
              table / CLUSTER * 2, refcount);
    rig_init (&rig, "parts", &b);
    build_free (&b);
    im = image_open_storage (memory_disk_open (&rig.disk, "test", NULL),
                             CACHE_MIN_BYTES);
    CHECK (im != NULL);
    if (refcount == 3)
      CHECK_OK (image_make_writable (im, &options));
    else {
      CHECK_EQ (image_make_writable (im, &options), (uint64_t) -1);
      CHECK_ERROR (EIO, "an L2 table at offset");
    }
    CHECK_OK (image_close (im));
    rig_free (&rig);
  }
}

/* ------------------------------------------------------------ feature bits */

static void
test_autoclear (void)
{
  struct builder b;

  build (&b, NO_SNAPSHOT, false);
  put_be64 (b.data + 88, UINT64_C (0x8000000000000100)); /* not known */
  start_built (&b, false);
  CHECK_EQ (rig.control.writes, 0); /* I8: not by opening it */
  CHECK_OK (image_flush (rig.im));
  rig_close (&rig);
  CHECK_EQ (rig.control.writes, 0);
  CHECK_EQ (on_disk (88), UINT64_C (0x8000000000000100));

  rig_open (&rig);
  rig_zero (&rig, 24 * CLUSTER, CLUSTER, IMAGE_MAY_TRIM | IMAGE_FAST);
  rig_write (&rig, 0, 1, 1);
  CHECK_EQ (on_disk (88), 0);
  CHECK (rig.control.flushes >= 1); /* durably, before anything else */
  end ();
}

static struct memory_log call_log = MEMORY_LOG_INIT;

static void
test_lazy_refcounts (void)
{
  struct builder b;
  size_t last, i;

  build (&b, NO_SNAPSHOT, false);
  put_be64 (b.data + 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
  start_built (&b, false);
  rig_close (&rig);
  CHECK_EQ (rig.control.writes, 0);

  rig_open (&rig);
  rig.control.log = &call_log;
  rig_write (&rig, 50 * CLUSTER, 1, 1);
  rig.control.log = NULL;
  CHECK_EQ (on_disk (72), QCOW2_INCOMPAT_DIRTY);
  CHECK_EQ (call_log.call[0].kind, MEMORY_WRITE); /* the header ... */
  CHECK (call_log.call[0].offset < 512);
  CHECK_EQ (call_log.call[1].kind, MEMORY_FLUSH); /* ... durably */
  check_refused ("marked as dirty");

  /* It is cleared when all else is durable. */
  memory_log_clear (&call_log);
  rig.control.log = &call_log;
  end (); /* which wants it to be cleared */
  last = call_log.nr - 1;
  CHECK_EQ (call_log.call[last].kind, MEMORY_FLUSH);
  CHECK_EQ (call_log.call[last - 1].kind, MEMORY_WRITE);
  CHECK (call_log.call[last - 1].offset < 512);
  for (i = last - 1; i > 0 && call_log.call[i - 1].kind != MEMORY_FLUSH; --i)
    CHECK (call_log.call[i - 1].kind != MEMORY_WRITE);
  CHECK (i > 0);
  memory_log_free (&call_log);
}

static void
test_version_2 (void)
{
  struct builder b;

  build_start (&b, 2, 12, false, COMPRESSION_DEFLATE, DISK_BYTES);
  build_finish (&b);
  put_be64 (b.data + 72, UINT64_C (0xdeadbeef00000008)); /* an extension */
  rig_init (&rig, "v2", &b);
  rig_open (&rig);
  rig_write (&rig, 50 * CLUSTER, 1, 1);
  rig_flush (&rig);
  CHECK (memcmp (rig.disk.data, b.data, 40) == 0);
  CHECK (memcmp (rig.disk.data + 72, b.data + 72, 440) == 0);
  build_free (&b);
  end ();
}

/* -------------------------------------------------------------- no space */

/* A full file system: what was written stays, requests fail with ENOSPC, and
 * once something is given up writing goes on.
 */
static void
test_full (bool backing)
{
  uint64_t i, failed = 0;

  start (NO_SNAPSHOT, backing);
  rig.control.room = rig.disk.blocks + 20;
  for (i = 28; i < CLUSTERS; ++i) {
    if (rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0) == -1) {
      CHECK_ERROR (ENOSPC, "No space left");
      failed++;
    }
    if (i % 7 == 0 && image_flush (rig.im) == -1)
      CHECK_ERROR (ENOSPC, "No space left");
  }
  CHECK (failed > 10 && failed < 70);
  rig_compare (&rig);

  /* Overwriting still goes well. */
  rig_write (&rig, 0, 10 * CLUSTER, 99);
  rig_compare (&rig);

  /* Room is made by trimming; the next write finds it, even without a
   * flush.
   */
  rig_trim (&rig, 0, 16 * CLUSTER);
  for (i = 60; i < 70; ++i)
    rig_write (&rig, i * CLUSTER, CLUSTER, i + 1000);
  rig_flush (&rig);
  rig_compare (&rig);

  /* Or from outside. */
  while (i < CLUSTERS && rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0) == 0)
    i++;
  rig.control.room = 0;
  for (i = 0; i < CLUSTERS; ++i)
    rig_write (&rig, i * CLUSTER, CLUSTER, i + 2000);
  rig_flush (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  end ();
}

/* It is closed while it is full. */
static void
test_close_full (void)
{
  uint64_t i, room;

  for (room = 0; room < 12; ++room) {
    start (NO_SNAPSHOT, false);
    rig.control.room = rig.disk.blocks + room;
    for (i = 28; i < CLUSTERS; ++i)
      (void) rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0);
    rig_trim (&rig, 3 * CLUSTER, 2 * CLUSTER);
    (void) rig_close_only (&rig); /* it can't always do all */
    image_check ("closed while full", rig.disk.data,
                 atomic_load (&rig.disk.size));
    rig.control.room = 0;
    rig_open (&rig);
    rig_compare (&rig);
    (void) rig_close_only (&rig);
    rig_free (&rig);
  }
}

/* A block device of the image's size. */
static void
test_fixed_size (void)
{
  struct builder b;
  uint64_t i, failed = 0, size;

  build (&b, NO_SNAPSHOT, false);
  start_built (&b, false);
  (void) rig_close_only (&rig);
  size = atomic_load (&rig.disk.size) + 30 * CLUSTER;
  atomic_store (&rig.disk.size, size);
  rig.control.fixed = true;
  rig_open (&rig);
  for (i = 28; i < CLUSTERS; ++i) {
    if (rig_try_write (&rig, i * CLUSTER, CLUSTER, i, 0) == -1) {
      CHECK_ERROR (ENOSPC, "");
      failed++;
    }
  }
  CHECK (failed > 35 && failed < 50);
  rig_flush (&rig);
  rig_compare (&rig);
  rig_trim (&rig, 0, 20 * CLUSTER);
  for (i = 0; i < 15; ++i)
    rig_write (&rig, i * CLUSTER, CLUSTER, i + 50);
  rig_compare (&rig);
  CHECK_EQ (atomic_load (&rig.disk.size), size);
  end ();
}

/* ------------------------------------------------------------ failing calls */

/* A sector of a failed request holds what it held, or what it should. */
static void
settle (uint64_t offset, uint64_t count, const uint8_t *wanted)
{
  uint8_t *is = malloc (count);
  uint64_t i, n;

  CHECK_OK (layer_read (rig.live, is, count, (struct guest_off) { offset }));
  for (i = 0; i < count; i += n) {
    n = 512 - (offset + i) % 512;
    if (n > count - i)
      n = count - i;
    if (memcmp (is + i, rig.content + offset + i, n) != 0 &&
        memcmp (is + i, wanted + i, n) != 0) {
      check_failed (__FILE__, __LINE__, "after a failed request byte 0x%"
                    PRIx64 " is neither old nor new", offset + i);
      break;
    }
  }
  memcpy (rig.content + offset, is, count);
  free (is);
}

static const struct step steps[] = {
  { WRITE, 0, CLUSTER },
  { WRITE, 30 * CLUSTER + 100, 700 },
  { WRITE, 40 * CLUSTER, 3 * CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 20 * CLUSTER + 5, 10 },
  { ZERO, 3 * CLUSTER + 10, 5 * CLUSTER },
  { TRIM, 10 * CLUSTER, 2 * CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 22 * CLUSTER, 40 * CLUSTER },
  { ZERO_TRIM, 13 * CLUSTER + 1, 3 * CLUSTER },
  { FUA, 3 * CLUSTER + 100, 100 },
  { FUA, 60 * CLUSTER, CLUSTER + 1 },
  { FLUSH, 0, 0 },
  { TRIM, 35 * CLUSTER, 20 * CLUSTER },
  { FLUSH, 0, 0 },
  { WRITE, 64 * CLUSTER, 36 * CLUSTER },
  { FLUSH, 0, 0 },
};

static void
check_failed_step (const struct step *s, uint64_t seed)
{
  uint8_t *wanted = calloc (1, s->count + 1);

  CHECK (error_errno () == EIO || error_errno () == ENOSPC);
  CHECK (error_message ()[0] != '\0');
  if (s->what == WRITE || s->what == FUA)
    build_pattern (wanted, s->count, seed);
  settle (s->offset, s->count, wanted);
  free (wanted);
}

/* Returns false if the call was never made. */
static bool
run (const struct failure *f, unsigned call, enum sharing snapshot,
     bool backing)
{
  bool failed = false, stuck = false;
  unsigned i;
  int r;

  start (snapshot, backing);
  failure_arm (&rig.control, f, call);
  for (i = 0; i < sizeof steps / sizeof steps[0]; ++i) {
    r = rig_try_step (&rig, &steps[i], i + 500);
    if (rig.control.failed > 0) {
      failed = true;
      if (!f->ever_after || i % 4 == 3)
        memory_fail_no_more (&rig.control);
    }
    if (r == -1)
      check_failed_step (&steps[i], i + 500);
    if (stuck)
      CHECK_EQ (r, -1); /* I10 */
    stuck |= r == -1 && error_errno () == EIO &&
      strstr (error_message (), "nothing is written any more") != NULL;
  }
  failed |= rig.control.failed > 0;
  memory_fail_no_more (&rig.control);
  rig_compare (&rig);
  r = rig_close_only (&rig);
  if (stuck)
    CHECK_EQ (r, -1);
  if (image_check ("a call failed", rig.disk.data,
                   atomic_load (&rig.disk.size)).leaks > 0)
    CHECK (failed);
  rig_open (&rig);
  if (!stuck)
    rig_compare (&rig);
  else { /* the snapshot, and what is read at all */
    free (rig.content);
    rig.content = malloc (rig.size);
    CHECK_OK (layer_read (rig.live, rig.content, rig.size,
                          (struct guest_off) { 0 }));
    rig_compare (&rig);
  }
  (void) rig_close_only (&rig);
  image_check ("and closed again", rig.disk.data,
               atomic_load (&rig.disk.size));
  rig_free (&rig);
  return failed;
}

static void
test_failing_calls (void)
{
  unsigned f, i, call, nr;

  for (f = 0; f < NR_FAILURES; ++f) {
    nr = 0;
    for (i = 0; i < 6; ++i) {
      for (call = 1; run (&failures[f], call, i % 3, i / 3);
           call += TEST_EACH (7)) {
        if (check_any_failed ()) {
          fprintf (stderr, "kinds 0x%x, errno %d, ever after %d, call %u, "
                   "snapshot %d, backing %d\n", failures[f].kinds,
                   failures[f].err, failures[f].ever_after, call, i % 3,
                   i / 3);
          return;
        }
        nr++;
      }
    }
    printf ("kinds 0x%x failed with %s at %u calls\n", failures[f].kinds,
            strerror (failures[f].err), nr);
  }
}

/* I10: a durable write in place that fails sticks, as a flush would, unless it
 * was for want of space.
 */
static void
test_fua_fails (void)
{
  start (NO_SNAPSHOT, false);
  memory_fail_ever_after (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA), (uint64_t) -1);
  CHECK_ERROR (ENOSPC, "No space left");
  memory_fail_no_more (&rig.control);
  CHECK_OK (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA));

  /* Space that is found by the next write is no failure at all. */
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_OK (rig_try_write (&rig, 0, 512, 4, IMAGE_FUA));
  CHECK_EQ (rig.control.failed, 1);
  memory_fail_no_more (&rig.control);
  CHECK_OK (image_flush (rig.im));

  memory_fail (&rig.control, MEMORY_WRITE, 1, EIO);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 2, IMAGE_FUA), (uint64_t) -1);
  memory_fail_no_more (&rig.control);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 3, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

/* The first flush of all, for the dirty bit, fails: closing says so. */
static void
test_first_flush_fails (void)
{
  struct builder b;

  build (&b, NO_SNAPSHOT, false);
  put_be64 (b.data + 80, QCOW2_COMPAT_LAZY_REFCOUNTS);
  start_built (&b, false);
  memory_fail (&rig.control, MEMORY_FLUSH, 1, EIO);
  CHECK_EQ (rig_try_write (&rig, 0, CLUSTER, 1, 0), (uint64_t) -1);
  memory_fail_no_more (&rig.control);
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  rig_free (&rig);
}

/* The next flush fails, once something was written that was not durable. */
static void
fail_flush_then (void *opaque, const struct memory_call *call)
{
  if (call->kind == MEMORY_WRITE && !call->durable)
    memory_fail (opaque, MEMORY_FLUSH, 1, EIO);
}

/* Where the write finds space after all, and what makes it durable fails, the
 * lack of space may have been met by other data: that sticks.
 */
static void
test_fua_flush_fails (void)
{
  start (NO_SNAPSHOT, false);
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  rig.control.opaque = &rig.control;
  rig.control.hook = fail_flush_then;
  CHECK_EQ (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA), (uint64_t) -1);
  rig.control.hook = NULL;
  CHECK_EQ (rig_try_write (&rig, 0, 512, 3, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

static void
count_durable (void *opaque, const struct memory_call *call)
{
  unsigned *nr = opaque;

  *nr += call->kind == MEMORY_WRITE && call->durable;
}

/* Where a durable write could be told of other data that was lost, and a flush
 * then is not, there is none: only a flush is told, and that sticks.
 */
static void
test_fua_one_report (void)
{
  unsigned nr = 0;

  start (NO_SNAPSHOT, false);
  rig.live->tables->one_report = true;
  rig.control.opaque = &nr;
  rig.control.hook = count_durable;
  memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 1, IMAGE_FUA), (uint64_t) -1);
  CHECK_ERROR (ENOSPC, "No space left");
  memory_fail_no_more (&rig.control);
  CHECK_OK (rig_try_write (&rig, 0, 512, 2, IMAGE_FUA));
  CHECK_EQ (nr, 0);

  memory_fail (&rig.control, MEMORY_FLUSH, 1, ENOSPC);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 3, IMAGE_FUA), (uint64_t) -1);
  memory_fail_no_more (&rig.control);
  CHECK_EQ (rig_try_write (&rig, 0, 512, 4, 0), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  rig.control.hook = NULL;
  CHECK_EQ (rig_close_only (&rig), (uint64_t) -1);
  rig_free (&rig);
}

/* Short writes, and interrupted reads, are no failures. */
static void
test_short (void)
{
  unsigned i;

  start (SHARED_TABLES, true);
  rig.control.short_writes = 700;
  rig.control.short_reads = 900;
  rig.control.interrupt = 3;
  for (i = 0; i < sizeof steps / sizeof steps[0]; ++i)
    CHECK_OK (rig_try_step (&rig, &steps[i], i));
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  end ();
}

/* The backing file can't be read where a cluster has to be filled: the write
 * fails, nothing has changed, and a later one goes well.
 */
static void
test_fill_fails (void)
{
  uint64_t size;
  unsigned i;

  start (NO_SNAPSHOT, true);
  rig_write (&rig, 30 * CLUSTER, 1, 1);
  size = atomic_load (&rig.disk.size);
  for (i = 0; i < 100; ++i) {
    memory_fail_ever_after (&rig.base_control, MEMORY_READ, 1, EIO);
    CHECK_EQ (rig_try_write (&rig, 50 * CLUSTER + 10, 10, 1, 0),
              (uint64_t) -1);
    CHECK_ERROR (EIO, "base: reading");
  }
  memory_fail_no_more (&rig.base_control);
  rig_compare (&rig);
  CHECK (atomic_load (&rig.disk.size) <= size + 300 * CLUSTER);
  rig_write (&rig, 50 * CLUSTER + 10, 10, 1);
  rig_compare (&rig);
  end ();
}

/* A damaged entry: requests that meet it fail, others don't; and it is reported
 * once, whatever meets it.
 */
static void
test_damaged_entry (void)
{
  const uint64_t flags[] = { IMAGE_MAY_TRIM, 0 };
  struct builder b;
  uint8_t buf[512] = { 0 };
  unsigned i;

  build (&b, NO_SNAPSHOT, false);
  build_finish (&b);
  put_be64 (b.data + build_l2_place (&b, 7), CLUSTER + 512);
  rig_init (&rig, "damaged", &b);
  build_free (&b);
  rig.content = calloc (1, DISK_BYTES);
  rig_open (&rig);
  CHECK_EQ (image_write (rig.im, buf, 512, (struct guest_off) { 7 * CLUSTER },
                         0), (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: L2 entry");
  CHECK (!error_repeated ());
  for (i = 0; i < 2; ++i) {
    CHECK_EQ (image_zero (rig.im, CLUSTER, (struct guest_off) { 7 * CLUSTER },
                          flags[i]), (uint64_t) -1);
    CHECK_ERROR (EIO, "damaged: L2 entry");
    CHECK (error_repeated ());
    /* From where nothing is damaged. */
    CHECK_EQ (image_zero (rig.im, 6 * CLUSTER, (struct guest_off) {
          5 * CLUSTER }, flags[i]), (uint64_t) -1);
    CHECK_ERROR (EIO, "damaged: L2 entry");
    CHECK (error_repeated ());
    CHECK_EQ (image_zero (rig.im, 700, (struct guest_off) { 7 * CLUSTER + 9 },
                          flags[i]), (uint64_t) -1);
    CHECK_ERROR (EIO, "damaged: L2 entry");
    CHECK (error_repeated ());
  }
  CHECK_EQ (image_trim (rig.im, CLUSTER, (struct guest_off) { 7 * CLUSTER },
                        0), (uint64_t) -1);
  CHECK_ERROR (EIO, "damaged: L2 entry");
  CHECK (error_repeated ());
  CHECK_OK (image_write (rig.im, buf, 512, (struct guest_off) { 6 * CLUSTER },
                         0));
  CHECK_OK (image_write (rig.im, buf, 512, (struct guest_off) { 80 * CLUSTER },
                         0));
  CHECK_OK (image_flush (rig.im));
  CHECK_OK (rig_close_only (&rig));
  rig_free (&rig);
}

int
main (void)
{
  check_time_limit (200);
  build_pattern (base, sizeof base, 77);
  test_overlap ();
  test_overlap_given_up ();
  test_overlap_new_table ();
  test_overlap_written_table ();
  test_overlap_tables ();
  test_overlap_parts ();
  test_autoclear ();
  test_lazy_refcounts ();
  test_version_2 ();
  test_full (false);
  test_full (true);
  test_close_full ();
  test_fixed_size ();
  test_fua_fails ();
  test_fua_flush_fails ();
  test_fua_one_report ();
  test_first_flush_fails ();
  test_short ();
  test_fill_fails ();
  test_damaged_entry ();
  test_failing_calls ();
  return check_result ();
}
