/* SPDX-License-Identifier: BSD-3-Clause */

/* Writing to damaged images: no write lands on metadata (I7), and what is damaged
 * is reported, once.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "errors-rig.h"

/* I7: an entry says that a cluster may be written in place, but it is one of
 * the image's own tables.
 */
static void
check_overlap (uint64_t host, const char *what, bool kept_zero)
{
  const uint64_t table = errors_on_disk (errors_on_disk (40)) &
    QCOW2_ENTRY_OFFSET_MASK;
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
  CHECK_EQ (errors_on_disk (72), QCOW2_INCOMPAT_CORRUPT);

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
      errors_start (COPIED_TABLES, false);
      check_overlap (errors_on_disk (tables[i].field), tables[i].what, kept);
      errors_check_refused ("marked as corrupt");
      rig_free (&rig);
    }
    errors_start (COPIED_TABLES, false);
    check_overlap (errors_on_disk (errors_on_disk (48)), "a refcount block",
                   kept);
    rig_free (&rig);
    errors_start (COPIED_TABLES, false);
    check_overlap (errors_on_disk (errors_on_disk (64)),
                   "the L1 table of a snapshot", kept);
    rig_free (&rig);
    errors_start (NO_SNAPSHOT, false);
    check_overlap (errors_on_disk (errors_on_disk (40)) &
                   QCOW2_ENTRY_OFFSET_MASK, "an L2 table", kept);
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

    errors_build (&b, NO_SNAPSHOT, false);
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
    CHECK_EQ (errors_on_disk (72), QCOW2_INCOMPAT_CORRUPT);
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
  CHECK_EQ (errors_on_disk (72), QCOW2_INCOMPAT_CORRUPT);
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
    errors_build (&b, SHARED_TABLES, false);
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

  errors_build (&b, NO_SNAPSHOT, false);
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
  check_time_limit (60);
  test_overlap ();
  test_overlap_given_up ();
  test_overlap_new_table ();
  test_overlap_written_table ();
  test_overlap_tables ();
  test_overlap_parts ();
  test_damaged_entry ();
  return check_result ();
}
