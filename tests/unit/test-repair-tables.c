/* SPDX-License-Identifier: BSD-3-Clause */

/* Repair of an L1 table that the end of the file cuts off, and of a snapshot
 * table with extra data that is too long or too short: with a power cut at each
 * call of the storage.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "../crash/checker.h"
#include "../crash/crash-storage.h"
#include "../crash/power-cut.h"
#include "base/bytes.h"
#include "base/error.h"
#include "build.h"
#include "check.h"
#include "disk-view.h"
#include "image.h"
#include "qcow2/check/check.h"
#include "qcow2/check/repair.h"
#include "seconds.h"

static const struct check_options quiet;
static const char *what;

static uint64_t
get (const struct builder *b, uint64_t place)
{
  return get_be64 (b->data + place);
}

static void
set_refcount (struct builder *b, uint64_t offset, unsigned n)
{
  const uint64_t block = get (b, get (b, 48));

  put_be16 (b->data + block + offset / b->cluster_size * 2, n);
}

static void
set_refcounts (struct builder *b, uint64_t offset, uint64_t bytes, unsigned n)
{
  uint64_t at;

  for (at = 0; at < bytes; at += b->cluster_size)
    set_refcount (b, offset + at, n);
}

static void
check_kept (unsigned line, const struct disk_view *a, const struct disk_view *b)
{
  char text[200];

  if (!disk_view_is_kept (a, b, text, sizeof text))
    check_failed (__FILE__, line, "%s: %s", what, text);
}

/* Sound for both checkers, with so many leaks. */
static void
check_sound (unsigned line, const struct repair_report *r, const void *bytes,
             uint64_t size, uint64_t leaks)
{
  struct check_result other;

  check_image (bytes, size, 0, &other);
  if (!check_report_is_sound (&r->after) || r->after.leaks != leaks ||
      r->after.l1_cut || !other.opens || other.corruptions > 0 ||
      other.errors > 0 || other.leaks != leaks)
    check_failed (__FILE__, line, "%s: %" PRIu64 " corruptions, %" PRIu64
                  " leaks; the other checker: %s", what, r->after.corruptions,
                  r->after.leaks, other.why);
}

static void
find_low (void *opaque, enum check_kind kind, const char *text)
{
  uint64_t *nr = opaque;

  (void) text;
  *nr += kind == CHECK_REFCOUNT;
}

static uint64_t
low_refcounts (const void *bytes, uint64_t size)
{
  uint64_t nr = 0;
  const struct check_options options = {
    .messages = CHECK_MAX_MESSAGES, .found = find_low, .opaque = &nr,
  };
  struct storage *s = memory_storage_new ("image", bytes, size, NULL);
  struct check_report r;

  CHECK_OK (check_storage (s, &options, &r));
  storage_close (s);
  return nr;
}

/* What can be read stays, no more refcounts are too low, and a second repair
 * comes to the same end; but for leaks, which it may have freed.
 */
static void
check_cut (const struct disk_state *d, uint64_t low,
           const struct disk_view *before, const struct disk_view *after)
{
  struct memory_disk disk;
  struct disk_view view;
  struct repair_report r;
  struct storage *s;

  disk_view_read (&view, d->bytes, d->size, NULL, 0);
  check_kept (__LINE__, before, &view);
  disk_view_free (&view);
  if (low_refcounts (d->bytes, d->size) > low)
    check_failed (__FILE__, __LINE__, "%s: a refcount is too low", what);

  memory_disk_init (&disk, d->bytes, d->size);
  s = memory_disk_open (&disk, "image", NULL);
  CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
  storage_close (s);
  check_sound (__LINE__, &r, disk.data, disk.size, r.after.leaks);
  disk_view_read (&view, disk.data, disk.size, NULL, 0);
  check_kept (__LINE__, after, &view);
  check_kept (__LINE__, &view, after);
  disk_view_free (&view);
  memory_disk_free (&disk);
}

/* Repair these bytes, with and without cuts.  Frees the builder. */
static void
run (struct builder *b, uint64_t size, uint64_t leaks)
{
  struct disk_view before, after;
  struct disk_state state = { 0 };
  struct crash_disk disk;
  struct repair_report r;
  struct storage *s;
  struct cut *cut;
  uint64_t low, k, i;

  low = low_refcounts (b->data, size);
  disk_view_read (&before, b->data, size, NULL, 0);
  CHECK (before.opens);
  crash_disk_init (&disk, b->data, size);
  s = crash_storage_open (&disk, "test");
  CHECK_OK (repair_storage (s, REPAIR_LEAKS, &quiet, &r));
  CHECK_OK (repair_storage (s, REPAIR_EXCESS, &quiet, &r));
  CHECK_EQ (disk.nr, 0);
  CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
  storage_close (s);
  check_sound (__LINE__, &r, disk.bytes, disk.size, leaks);
  CHECK ((r.why_not != NULL) == (leaks > 0));
  disk_view_read (&after, disk.bytes, disk.size, NULL, 0);
  check_kept (__LINE__, &before, &after);
  cut = cut_new (b->data, size, disk.op, disk.nr);
  for (k = 1; k <= disk.nr; ++k) {
    cut_advance (cut, k);
    for (i = 0; i < 4; ++i) {
      const struct landed landed = { i == 0 ? LANDED_ALL : LANDED_TORN, i };

      cut_state (cut, landed, &state);
      check_cut (&state, low, &before, &after);
    }
  }
  CHECK (disk.nr > 0);
  cut_free (cut);
  disk_state_free (&state);
  crash_disk_free (&disk);
  disk_view_free (&before);
  disk_view_free (&after);
  build_free (b);
}

/* --------------------------------------------------------------- L1 tables */

static void
count_warning (void *opaque, const char *text)
{
  unsigned *nr = opaque;

  CHECK_HAS (text, "bytes beyond the end of the file");
  ++*nr;
}

/* Served with a warning; only IMAGE_REPAIR_ALL has it written. */
static void
check_not_written (const struct builder *b, uint64_t size)
{
  static const enum image_repair modes[] = {
    IMAGE_REPAIR_DIRTY, IMAGE_REPAIR_NONE, IMAGE_REPAIR_LEAKS,
  };
  static const struct writer_options options;
  struct memory_control control = { 0 };
  struct memory_disk disk;
  char summary[512];
  struct image *im;
  unsigned i, nr = 0;

  memory_disk_init (&disk, b->data, size);
  im = image_open_storage (memory_disk_open (&disk, "image", &control),
                           CACHE_MIN_BYTES);
  image_each_warning (im, count_warning, &nr);
  CHECK_EQ (nr, 1);
  for (i = 0; i < sizeof modes / sizeof modes[0]; ++i) {
    CHECK_OK (image_repair (im, modes[i], summary, sizeof summary));
    CHECK_EQ (image_make_writable (im, &options), (uint64_t) -1);
    CHECK_ERROR (ENOTSUP, "beyond the end of the file");
  }
  CHECK_EQ (control.writes, 0);
  CHECK_EQ (disk.size, size);
  CHECK_OK (image_repair (im, IMAGE_REPAIR_ALL, summary, sizeof summary));
  CHECK_HAS (summary, "repaired: ");
  if (image_make_writable (im, &options) == -1)
    check_failed (__FILE__, __LINE__, "%s", error_message ());
  else
    CHECK_OK (image_write (im, "x", 1, (struct guest_off) { 0 }, 0));
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

/* As some writers make it: nothing but the L1 table's place behind the end. */
static void
run_l1_beyond (unsigned version, unsigned distance, unsigned refcount)
{
  struct builder b;
  uint64_t l1;

  build_start (&b, version, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  build_finish (&b);
  l1 = b.size + distance * b.cluster_size;
  set_refcount (&b, b.l1_offset, 0);
  set_refcount (&b, l1, refcount);
  put_be64 (b.data + 40, l1);
  if (distance > 0)
    check_not_written (&b, b.size);
  run (&b, b.size, 0);
}

/* An L1 table of two clusters, of which so many bytes are left.  leaks: the two
 * clusters that it was in before; and 12 more which it refers to, if none are.
 */
static void
run_l1_cut (unsigned version, uint64_t kept, uint64_t leaks)
{
  const uint64_t disk_size = 100 * UINT64_C (32768);
  struct builder b;
  uint64_t l1, i;

  build_start (&b, version, 9, false, COMPRESSION_DEFLATE, disk_size);
  for (i = 0; i < 8; ++i)
    build_entry (&b, 30 * i, build_data (&b, i + 1), 0);
  build_finish (&b);
  l1 = build_clusters (&b, 2);
  memcpy (b.data + l1, b.data + b.l1_offset, 800);
  set_refcounts (&b, l1, 1024, 1);
  set_refcounts (&b, b.l1_offset, 1024, leaks > 0);
  put_be64 (b.data + 40, l1);
  run (&b, l1 + kept, leaks);
}

/* Cut off by less than a cluster, which a check forgives: with a snapshot, so that
 * excess references are looked for, and with leaks, which may be what is lost.
 */
static void
test_cut_by_little (unsigned version)
{
  struct builder b;
  uint64_t random = 1, l1;

  build_start (&b, version, 9, false, COMPRESSION_DEFLATE,
               100 * UINT64_C (32768));
  build_entry (&b, 0, build_data (&b, 1), 0);
  build_snapshot (&b, 100, &random);
  build_finish (&b);
  l1 = build_clusters (&b, 2);
  memcpy (b.data + l1, b.data + b.l1_offset, 800);
  set_refcounts (&b, l1, 1024, 1);
  put_be64 (b.data + 40, l1); /* the old one is leaked */
  check_not_written (&b, l1 + 792);
  build_free (&b);
}

/* Where new refcounts are wanted for it, there must be nothing to be lost. */
static void
test_far (void)
{
  const uint64_t far[] = { UINT64_C (64) << 20, UINT64_C (1) << 41 };
  struct memory_control control = { 0 };
  struct repair_report r;
  struct memory_disk disk;
  struct storage *s;
  struct builder b;
  unsigned i;

  for (i = 0; i < 2; ++i) {
    build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
    build_finish (&b);
    if (i > 0)
      set_refcount (&b, b.l1_offset, 0);
    put_be64 (b.data + 40, far[i]); /* the old one is leaked, for i = 0 */
    memory_disk_init (&disk, b.data, b.size);
    s = memory_disk_open (&disk, "image", &control);
    CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
    CHECK_HAS (r.why_not, i > 0 ? "too far" : "new refcounts are wanted");
    CHECK_EQ (control.writes, 0);
    CHECK_EQ (disk.size, b.size);
    storage_close (s);
    memory_disk_free (&disk);
    build_free (&b);
  }
}

/* ---------------------------------------------------------- snapshot table */

/* The table anew, with so much extra data in each entry. */
static void
replace_snapshots (struct builder *b, const unsigned *extra)
{
  const uint64_t old = get (b, 64);
  const uint64_t table = build_clusters (b, 4);
  uint64_t from = old, to = table;
  unsigned i, k;

  for (i = 0; i < b->nr_snapshots; ++i) {
    const uint8_t *entry = b->data + from;
    const uint32_t had = get_be32 (entry + 36);
    const unsigned names = get_be16 (entry + 12) + get_be16 (entry + 14);

    memcpy (b->data + to, entry, 40);
    put_be32 (b->data + to + 36, extra[i]);
    for (k = 0; k < extra[i]; ++k)
      b->data[to + 40 + k] = k < had ? entry[40 + k] : k;
    memcpy (b->data + to + 40 + extra[i], entry + 40 + had, names);
    from = (from + 40 + had + names + 7) & ~UINT64_C (7);
    to = (to + 40 + extra[i] + names + 7) & ~UINT64_C (7);
  }
  CHECK (to <= b->size);
  set_refcounts (b, old, from - old, 0);
  set_refcounts (b, table, to - table, 1);
  put_be64 (b->data + 64, table);
  b->size = (to + b->cluster_size - 1) & -b->cluster_size;
}

static void
run_snapshots (unsigned version, const unsigned extra[2])
{
  uint64_t random = 1;
  struct builder b;
  unsigned i;

  build_start (&b, version, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  for (i = 0; i < 4; ++i)
    build_entry (&b, i, build_data (&b, i + 1), 0);
  build_snapshot (&b, 100, &random);
  build_entry (&b, 5, build_data (&b, 9), 0);
  build_snapshot (&b, 100, &random);
  build_finish (&b);
  replace_snapshots (&b, extra);
  run (&b, b.size, 0);
}

/* What was in the extra data stays, as far as it may. */
static void
test_extra_kept (void)
{
  static const unsigned extra[2] = { 16, 2000 };
  uint64_t random = 1, table, at;
  struct repair_report r;
  struct memory_disk disk;
  struct storage *s;
  struct builder b;
  unsigned i;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  build_snapshot (&b, 100, &random);
  build_snapshot (&b, 100, &random);
  build_finish (&b);
  replace_snapshots (&b, extra);
  memory_disk_init (&disk, b.data, b.size);
  s = memory_disk_open (&disk, "image", NULL);
  CHECK_OK (repair_storage (s, REPAIR_ALL, &quiet, &r));
  storage_close (s);
  CHECK_EQ (r.before.odd_snapshots, 1);
  CHECK_EQ (r.before.corruptions, 1);
  CHECK_EQ (r.after.odd_snapshots, 0);
  table = get_be64 (disk.data + 64);
  CHECK (table != get (&b, 64));
  at = 40 + 16 + get_be16 (disk.data + table + 12) +
    get_be16 (disk.data + table + 14);
  CHECK (memcmp (disk.data + table, b.data + get (&b, 64), at) == 0);
  at = table + ((at + 7) & ~UINT64_C (7));
  CHECK_EQ (get_be32 (disk.data + at + 36), 1024);
  for (i = 24; i < 1024; ++i)
    CHECK_EQ (disk.data[at + 40 + i], (uint8_t) i);
  CHECK (memcmp (disk.data + at + 40 + 1024, "2", 1) == 0); /* the ID */
  memory_disk_free (&disk);
  build_free (&b);
}

int
main (void)
{
  static const unsigned extras[][2] = {
    { 2000, 2000 }, { 1024, 1025 }, { 0, 24 }, { 3, 8 }, { 12, 5000 },
  };
  unsigned i, version;

  check_time_limit (300);
  for (version = 2; version <= 3; ++version) {
    what = "an L1 table beyond the end";
    for (i = 0; i < 4; ++i)
      run_l1_beyond (version, i, i % 2);
    what = "an L1 table far beyond the end";
    run_l1_beyond (version, 1000, 0);
    what = "an L1 table that is cut";
    test_cut_by_little (version);
    run_l1_cut (version, 512, 0);
    run_l1_cut (version, 516, 0);
    run_l1_cut (version, 799, 0);
    run_l1_cut (version, 0, 14);
    run_l1_cut (version, 512, 2);
    what = "a snapshot table";
    for (i = 0; i < (version == 2 ? 2 : 5); ++i) /* v2 may have none */
      run_snapshots (version, extras[i]);
  }
  test_far ();
  test_extra_kept ();
  return check_result ();
}
