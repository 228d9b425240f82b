/* SPDX-License-Identifier: BSD-3-Clause */

/* What a repair must do, and must not, in special cases: on storage that
 * can't grow, is full or fails; without memory; where it would have to guess.
 */

#include <config.h>

#include <stdlib.h>

#include "../crash/crash-storage.h"
#include "../crash/maker.h"
#include "../crash/power-cut.h"
#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "disk-view.h"
#include "no-memory.h"
#include "qcow2/check/repair.h"

static const struct check_options quiet;

#define BITS 12
#define CLUSTER (UINT64_C (1) << BITS)

static uint64_t
get (const void *bytes, uint64_t place)
{
  return get_be64 ((const uint8_t *) bytes + place);
}

static void
put (void *bytes, uint64_t place, uint64_t word)
{
  put_be64 ((uint8_t *) bytes + place, word);
}

/* A sound image of 16 clusters of data. */
static void
build (struct builder *b, bool snapshot)
{
  uint64_t random = 1;
  unsigned i;

  build_start (b, 3, BITS, false, COMPRESSION_DEFLATE, 64 * CLUSTER);
  for (i = 0; i < 16; ++i)
    build_entry (b, i, build_data (b, i + 1), 0);
  if (snapshot)
    build_snapshot (b, 100, &random);
  build_finish (b);
}

/* Repair a copy of the image; the disk is the caller's to free. */
static int
repair (const struct builder *b, struct memory_disk *d,
        struct memory_control *control, enum repair_mode mode,
        struct repair_report *r)
{
  struct storage *s;
  int ret;

  memory_disk_init (d, b->data, b->size);
  s = memory_disk_open (d, "test", control);
  ret = repair_storage (s, mode, &quiet, r);
  storage_close (s);
  return ret;
}

static struct check_report
check (const void *bytes, uint64_t size)
{
  struct memory_disk d;
  struct repair_report r = { 0 };
  struct storage *s;

  /* That of a repair which has nothing to do is the check's. */
  memory_disk_init (&d, bytes, size);
  s = memory_disk_open (&d, "test", NULL);
  CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
  storage_close (s);
  memory_disk_free (&d);
  return r.before;
}

static bool
is_clean (const void *bytes, uint64_t size)
{
  const struct check_report r = check (bytes, size);

  return check_report_is_sound (&r) && r.leaks == 0 && !r.dirty && !r.corrupt;
}

static bool
is_unchanged (const struct builder *b, const struct memory_disk *d)
{
  return d->size == b->size && memcmp (d->data, b->data, b->size) == 0;
}

static void
check_view (const struct builder *b, const void *bytes, uint64_t size)
{
  struct disk_view before, after;
  char text[200] = "";

  disk_view_read (&before, b->data, b->size, NULL, 0);
  disk_view_read (&after, bytes, size, NULL, 0);
  CHECK (disk_view_is_kept (&before, &after, text, sizeof text));
  CHECK_STR (text, "");
  disk_view_free (&before);
  disk_view_free (&after);
}

/* ---------------------------------------------------------------- restraint */

static void
expect_nothing (const struct builder *b, enum repair_mode mode,
                const char *why)
{
  struct memory_control control = { 0 };
  struct repair_report r;
  struct memory_disk d;

  CHECK_OK (repair (b, &d, &control, mode, &r));
  CHECK (is_unchanged (b, &d));
  CHECK_EQ (control.writes + control.flushes + control.zeros, 0);
  if (why == NULL)
    CHECK (r.why_not == NULL);
  else
    CHECK_HAS (r.why_not, why);
  memory_disk_free (&d);
}

static void
test_nothing_to_do (void)
{
  struct builder b;

  build (&b, true);
  put (b.data, 88, 4); /* an autoclear bit that is not known */
  expect_nothing (&b, REPAIR_ALL, NULL);
  expect_nothing (&b, REPAIR_LEAKS, NULL);
  build_free (&b);
}

static void
test_errors_keep_leaks (void)
{
  struct builder b;

  build (&b, false);
  put (b.data, build_l2_place (&b, 3), 1 << BITS | 512);
  expect_nothing (&b, REPAIR_LEAKS, "damaged entry");
  build_free (&b);
}

/* The snapshots' table is cut off, and the refcounts of what is theirs would
 * be leaks.
 */
static void
test_hidden (void)
{
  struct builder b;

  build (&b, true);
  put (b.data, 64, (b.size + CLUSTER) & -CLUSTER);
  expect_nothing (&b, REPAIR_ALL, "hide");
  build_free (&b);

  build (&b, true);
  put (b.data, get (b.data, 64), (b.size + CLUSTER) & -CLUSTER);
  expect_nothing (&b, REPAIR_ALL, "hide");
  build_free (&b);
}

/* A data cluster that is an L2 table as well: it says that, and writes to
 * neither, but the refcount is raised so that nobody frees it.
 */
static void
test_shared (void)
{
  struct repair_report r;
  struct memory_disk d;
  struct builder b;
  uint64_t data;

  build_start (&b, 3, BITS, false, COMPRESSION_DEFLATE,
               2 * (CLUSTER / 8) * CLUSTER);
  data = build_data (&b, 7);
  build_entry (&b, 0, data, 0);
  build_finish (&b);
  put (b.data, b.l1_offset + 8, data | QCOW2_ENTRY_COPIED);
  CHECK_OK (repair (&b, &d, NULL, REPAIR_ALL, &r));
  CHECK_HAS (r.why_not, "not written");
  CHECK (r.after.corruptions > 0);
  CHECK (memcmp (d.data + data, b.data + data, CLUSTER) == 0);
  CHECK_EQ (r.after.found[CHECK_REFCOUNT], 0);
  memory_disk_free (&d);
  build_free (&b);
}

/* ----------------------------------------------------------------- the bits */

static void
test_autoclear (void)
{
  struct repair_report r;
  struct memory_disk d;
  struct builder b;

  build (&b, false);
  put (b.data, 72, 3);
  put (b.data, 88, 4);
  put (b.data, build_l2_place (&b, 3), 0);
  CHECK_OK (repair (&b, &d, NULL, REPAIR_ALL, &r));
  CHECK_EQ (get (d.data, 72), 0);
  CHECK_EQ (get (d.data, 88), 0);
  CHECK (is_clean (d.data, d.size));
  memory_disk_free (&d);

  /* The marks stay as long as there are errors. */
  put_be64 (b.data + 96, (uint64_t) 0 << 32 | 104); /* a bit each: too narrow */
  put (b.data, build_l2_place (&b, 3), get (b.data, build_l2_place (&b, 4)));
  CHECK_OK (repair (&b, &d, NULL, REPAIR_ALL, &r));
  CHECK_EQ (r.after.found[CHECK_OVERFLOW], 1);
  CHECK_EQ (r.after.corruptions, 1);
  CHECK_EQ (get (d.data, 72), 3);
  check_view (&b, d.data, d.size);
  memory_disk_free (&d);
  build_free (&b);
}

/* A data file is a raw image as long as that is so, and never if it is encrypted.
 */
static void
test_raw_mark (void)
{
  uint32_t method;

  for (method = ENCRYPTION_NONE; method <= ENCRYPTION_AES; ++method) {
    struct repair_report r;
    struct memory_disk d;
    struct builder b;

    build (&b, false);
    put_be32 (b.data + 32, method);
    put (b.data, 72, QCOW2_INCOMPAT_DATA_FILE);
    put (b.data, 88, QCOW2_AUTOCLEAR_RAW_DATA_FILE | 4);
    CHECK_OK (repair (&b, &d, NULL, REPAIR_ALL, &r));
    CHECK_EQ (get (d.data, 88), method == ENCRYPTION_NONE
              ? QCOW2_AUTOCLEAR_RAW_DATA_FILE : 0);
    memory_disk_free (&d);
    build_free (&b);
  }
}

/* Where an image has the directory of its bitmaps. */
static uint64_t
bitmap_directory (const struct made *m)
{
  uint64_t at;

  for (at = get_be32 (m->bytes + 100);
       get_be32 (m->bytes + at) != QCOW2_EXT_BITMAPS; at += 8)
    at += (get_be32 (m->bytes + at + 4) + 7) & -8;
  return get (m->bytes, at + 24);
}

/* Where the first L1 entry is that leads to a table. */
static uint64_t
first_l1_entry (const struct made *m)
{
  uint64_t at = get (m->bytes, 40);

  while (get (m->bytes, at) == 0)
    at += 8;
  return at;
}

#define BITMAP_FLAGS 12 /* in an entry of the directory */

enum bitmap_damage {
  WRONG_FLAG, /* COPIED: the guest does not see it */
  LOST_TABLE,
  TWO_USES,   /* the L2 table is the refcount table, too */
};

/* A repair that changes what the guest sees marks those that should follow as
 * in use: a backup by them would lack that change.  Where something has two
 * uses, nothing is written to what it may be: all bitmaps are given up.
 */
static void
test_bitmaps_marked (enum bitmap_damage damage, uint32_t flags, uint32_t then,
                     uint64_t autoclear)
{
  struct repair_report r;
  struct memory_disk d;
  struct storage *s;
  uint64_t directory, at;
  struct made m;

  CHECK (made_image (&m, "v3-c4k-r32-snap2-bitmap"));
  directory = bitmap_directory (&m);
  put_be32 (m.bytes + directory + BITMAP_FLAGS, flags);
  at = first_l1_entry (&m);
  if (damage == WRONG_FLAG)
    put (m.bytes, at, get (m.bytes, at) ^ UINT64_C (1) << 63);
  else if (damage == LOST_TABLE)
    put (m.bytes, at, get (m.bytes, at) + 512);
  else
    put (m.bytes, at, get (m.bytes, 48));
  memory_disk_init (&d, m.bytes, m.size);
  s = memory_disk_open (&d, "test", NULL);
  CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
  CHECK (r.before.corruptions > 0);
  CHECK_EQ (r.before.found[CHECK_REFCOUNT] > 0, damage == TWO_USES);
  CHECK_EQ (get (d.data, 88), autoclear);
  if (autoclear != 0)
    CHECK_EQ (get_be32 (d.data + directory + BITMAP_FLAGS), then);
  if (damage != TWO_USES)
    CHECK (is_clean (d.data, d.size));
  storage_close (s);
  memory_disk_free (&d);
  made_free (&m);
}

/* Bitmaps that can't be read are given up, and their clusters freed. */
static void
test_bitmaps (void)
{
  struct repair_report r;
  struct memory_disk d;
  struct storage *s;
  struct made m;
  uint64_t at;

  CHECK (made_image (&m, "v3-c4k-r32-snap2-bitmap"));
  CHECK_EQ (get (m.bytes, 88), QCOW2_AUTOCLEAR_BITMAPS);
  at = bitmap_directory (&m);
  put (m.bytes, at, get (m.bytes, at) + 512); /* of the first bitmap's table */
  memory_disk_init (&d, m.bytes, m.size);
  s = memory_disk_open (&d, "test", NULL);
  CHECK_OK (repair_storage (s, REPAIR_LEAKS, &quiet, &r));
  CHECK_EQ (get (d.data, 88), QCOW2_AUTOCLEAR_BITMAPS);
  CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
  CHECK_EQ (r.before.found[CHECK_BITMAPS], 1);
  CHECK_EQ (get (d.data, 88), 0);
  CHECK (is_clean (d.data, d.size));
  storage_close (s);
  memory_disk_free (&d);
  made_free (&m);
}

/* ---------------------------------------------------------------- no growth */

/* All refcounts must be written anew. */
static void
lose_refcounts (struct builder *b)
{
  put (b->data, get (b->data, 48), 0);
}

static void
test_fixed_size (void)
{
  struct memory_control control = { .fixed = true };
  struct repair_report r;
  struct memory_disk d;
  struct builder b;

  build (&b, true);
  lose_refcounts (&b);
  build_clusters (&b, 1); /* and two are needed, with the old table's place */
  CHECK_EQ (repair (&b, &d, &control, REPAIR_ALL, &r), -1);
  CHECK_ERROR (ENOSPC, "test: ");
  CHECK (is_unchanged (&b, &d));
  memory_disk_free (&d);

  build_clusters (&b, 8);
  CHECK_OK (repair (&b, &d, &control, REPAIR_ALL, &r));
  CHECK_EQ (d.size, b.size);
  CHECK (is_clean (d.data, d.size));
  check_view (&b, d.data, d.size);
  memory_disk_free (&d);
  build_free (&b);
}

/* A refcount far beyond the end, which is stale, takes no space there. */
static void
test_fixed_size_stale (void)
{
  struct memory_control control = { .fixed = true };
  struct repair_report r;
  struct memory_disk d;
  struct builder b;
  uint64_t block;

  build (&b, true);
  lose_refcounts (&b);
  block = build_clusters (&b, 1);
  put (b.data, block + 64, UINT64_C (1) << 32);
  put (b.data, get (b.data, 48) + 8, block);
  build_clusters (&b, 8);
  CHECK_OK (repair (&b, &d, &control, REPAIR_ALL, &r));
  CHECK_EQ (d.size, b.size);
  CHECK (is_clean (d.data, d.size));
  check_view (&b, d.data, d.size);
  memory_disk_free (&d);
  build_free (&b);
}

/* A file that can grow, but not by enough. */
static void
test_full (void)
{
  struct memory_control control = { 0 };
  struct repair_report r;
  struct memory_disk d;
  struct builder b;

  build (&b, true);
  lose_refcounts (&b);
  control.limit = b.size + CLUSTER;
  control.short_writes = 1000;
  CHECK_EQ (repair (&b, &d, &control, REPAIR_ALL, &r), -1);
  CHECK_ERROR (ENOSPC, "test: ");
  CHECK (is_unchanged (&b, &d));
  memory_disk_free (&d);
  build_free (&b);
}

/* ----------------------------------------------------------------- failures */

/* Damage of every kind that is repaired. */
static void
damage (struct builder *b, bool rebuild)
{
  const uint64_t block = get (b->data, get (b->data, 48));

  put (b->data, build_l2_place (b, 1), (b->size + 64 * CLUSTER) & -CLUSTER);
  put (b->data, build_l2_place (b, 2),
       get (b->data, build_l2_place (b, 2)) ^ QCOW2_ENTRY_COPIED);
  put (b->data, build_l2_place (b, 3),
       get (b->data, build_l2_place (b, 4)));
  put (b->data, build_l2_place (b, 5),
       get (b->data, build_l2_place (b, 5)) | 2);
  put (b->data, block + 8, 0);
  put (b->data, block + 16, UINT64_MAX);
  put (b->data, 72, QCOW2_INCOMPAT_DIRTY);
  if (rebuild)
    lose_refcounts (b);
}

static void
test_failing (bool rebuild)
{
  struct builder b;
  uint64_t call;

  build (&b, true);
  damage (&b, rebuild);
  for (call = 1;; ++call) {
    struct memory_control control = {
      .fail_call = call, .fail_kinds = ~MEMORY_EXTENT,
    };
    struct repair_report r;
    struct memory_disk d;
    struct storage *s;
    const int ret = repair (&b, &d, &control, REPAIR_ALL, &r);

    check_view (&b, d.data, d.size);
    CHECK_EQ (ret, control.failed > 0 ? -1 : 0);
    s = memory_disk_open (&d, "again", NULL);
    CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
    storage_close (s);
    CHECK (is_clean (d.data, d.size));
    memory_disk_free (&d);
    if (control.failed == 0)
      break;
  }
  CHECK (call > 30);
  build_free (&b);
}

static void
test_no_memory (bool rebuild)
{
  struct builder b;

  build (&b, true);
  damage (&b, rebuild);
  for (memory_fail_at = 1;; ++memory_fail_at) {
    struct repair_report r;
    struct memory_disk d;
    struct storage *s;
    int ret;

    memory_disk_init (&d, b.data, b.size);
    s = memory_disk_open (&d, "test", NULL);
    memory_calls = 0;
    memory_armed = true;
    ret = repair_storage (s, REPAIR_ALL, &quiet, &r);
    memory_armed = false;
    if (memory_calls < memory_fail_at) {
      CHECK_EQ (ret, 0);
      CHECK (is_clean (d.data, d.size));
    }
    else {
      CHECK_EQ (ret, -1);
      CHECK_ERROR (ENOMEM, "memory");
    }
    check_view (&b, d.data, d.size);
    storage_close (s);
    memory_disk_free (&d);
    if (memory_calls < memory_fail_at)
      break;
  }
  CHECK (memory_fail_at > 20);
  memory_fail_at = 0;
  build_free (&b);
}

/* ------------------------------------------------------------ little memory */

/* With as many windows as there are chunks of clusters a repair does the same
 * as with one.
 */
static void
test_windows (bool rebuild)
{
  const struct check_options little = { .memory = 1 };
  struct repair_report r;
  struct memory_disk a, b;
  struct builder image;
  struct storage *s;
  unsigned i;

  build_start (&image, 3, 9, false, COMPRESSION_DEFLATE, 4096 * 512);
  for (i = 0; i < 40; ++i) {
    build_bytes (&image, 65536 / 8 * 512);
    build_entry (&image, i * 100, build_data (&image, i), 0);
  }
  build_finish (&image);
  put (image.data, build_l2_place (&image, 100),
       get (image.data, build_l2_place (&image, 3900)));
  put (image.data, build_l2_place (&image, 300), 0);
  put (image.data, build_l2_place (&image, 2000), image.size + (1 << 20));
  put (image.data, build_l2_place (&image, 2500),
       get (image.data, build_l2_place (&image, 2500)) ^ QCOW2_ENTRY_COPIED);
  for (i = 0; rebuild && i < 2000; i += 500)
    put (image.data, get (image.data, 48) + 8 * i, 0);

  CHECK_OK (repair (&image, &a, NULL, REPAIR_ALL, &r));
  CHECK_EQ (r.before.windows, 1);
  CHECK (is_clean (a.data, a.size));
  check_view (&image, a.data, a.size);
  memory_disk_init (&b, image.data, image.size);
  s = memory_disk_open (&b, "test", NULL);
  CHECK_OK (repair_storage (s, REPAIR_ALL, &little, &r));
  CHECK (r.before.windows > 40); /* one for each cluster with data */
  storage_close (s);
  CHECK_EQ (a.size, b.size);
  CHECK (memcmp (a.data, b.data, a.size) == 0);
  memory_disk_free (&a);
  memory_disk_free (&b);
  build_free (&image);
}

/* ---------------------------------------------------- beyond the file's end */

/* Entries beyond the end of a file that must grow: at no moment may they have
 * what is written there.
 */
static void
test_beyond (void)
{
  struct disk_state state = { 0 };
  struct crash_disk disk;
  struct repair_report r;
  struct builder b;
  struct storage *s;
  struct cut *cut;
  uint64_t k, i;

  build (&b, false);
  lose_refcounts (&b);
  for (i = 0; i < 4; ++i)
    put (b.data, build_l2_place (&b, 20 + i),
         (b.size + i * CLUSTER) | QCOW2_ENTRY_COPIED);
  crash_disk_init (&disk, b.data, b.size);
  s = crash_storage_open (&disk, "test");
  CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
  storage_close (s);
  CHECK (is_clean (disk.bytes, disk.size));
  cut = cut_new (b.data, b.size, disk.op, disk.nr);
  for (k = 1; k <= disk.nr; ++k) {
    cut_advance (cut, k);
    for (i = 0; i < 20; ++i) {
      const struct landed landed = { i == 0 ? LANDED_ALL : LANDED_TORN, i };
      struct disk_view v;
      uint64_t at, byte;

      cut_state (cut, landed, &state);
      disk_view_read (&v, state.bytes, state.size, NULL, 0);
      CHECK (v.opens);
      for (at = 20 * CLUSTER / 512; at < 24 * CLUSTER / 512; ++at)
        for (byte = 0; v.readable[0][at] && byte < 512; ++byte)
          CHECK_EQ (v.bytes[0][at * 512 + byte], 0);
      disk_view_free (&v);
    }
  }
  CHECK (disk.nr > 6);
  cut_free (cut);
  disk_state_free (&state);
  crash_disk_free (&disk);
  build_free (&b);
}

/* Refcounts of clusters that a dirty file has not come to have, in its last block: in
 * none of them once it is repaired.  Those of one that is not dirty stay, for the
 * search for leaks.
 */
static void
test_refcounts_beyond (bool dirty)
{
  struct memory_disk d;
  struct repair_report r;
  struct builder b;
  uint64_t block, i;

  build (&b, false);
  block = get (b.data, get (b.data, 48)); /* of the refcount table */
  for (i = 0; i < 5; ++i)
    b.data[block + 2 * (b.size / CLUSTER + i * 40) + 1] = 1;
  put (b.data, 72, dirty ? QCOW2_INCOMPAT_DIRTY : 0);
  CHECK_OK (repair (&b, &d, NULL, REPAIR_ALL, &r));
  CHECK (r.why_not == NULL && !r.after.dirty);
  for (i = b.size / CLUSTER; i < CLUSTER / 2; ++i)
    CHECK_EQ (d.data[block + 2 * i + 1],
              !dirty && (i - b.size / CLUSTER) % 40 == 0 &&
              i - b.size / CLUSTER < 200);
  CHECK (is_clean (d.data, d.size));
  check_view (&b, d.data, d.size);
  memory_disk_free (&d);
  build_free (&b);
}

int
main (void)
{
  check_time_limit (100);
  test_refcounts_beyond (true);
  test_refcounts_beyond (false);
  test_nothing_to_do ();
  test_errors_keep_leaks ();
  test_hidden ();
  test_shared ();
  test_autoclear ();
  test_raw_mark ();
  test_bitmaps ();
  test_bitmaps_marked (WRONG_FLAG, 2, 2, QCOW2_AUTOCLEAR_BITMAPS);
  test_bitmaps_marked (LOST_TABLE, 2, 3, QCOW2_AUTOCLEAR_BITMAPS);
  test_bitmaps_marked (LOST_TABLE, 0, 0, QCOW2_AUTOCLEAR_BITMAPS);
  test_bitmaps_marked (TWO_USES, 2, 0, 0);
  test_fixed_size ();
  test_fixed_size_stale ();
  test_full ();
  test_failing (false);
  test_failing (true);
  test_no_memory (false);
  test_no_memory (true);
  test_windows (false);
  test_windows (true);
  test_beyond ();
  return check_result ();
}
