/* SPDX-License-Identifier: BSD-3-Clause */

/* Bitmaps that begin and end at the point of a snapshot which is made while the image
 * is written (B1 to B5): what they have, whatever fails; and what is refused.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "bits-view.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "follow-rig.h"
#include "image-check.h"
#include "must-have.h"
#include "no-memory.h"
#include "qcow2/write/writer-parts.h"
#include "random.h"
#include "seconds.h"
#include "take-wrap.h"

#define MEMORY (UINT64_C (16) << 20)
#define FEW 16 /* pages: enough, and soon allocated */

/* ---------------------------------------------------------------- what changed */

/* Requests since the image was made, in phases, of which a point begins each: those
 * sectors that they touched.
 */
#define PHASES 8

static bool touched[PHASES][SECTORS];
static unsigned phase;
static bool first_bits[2][SECTORS]; /* that FINE and COARSE had, by granules */
static bool may_fail; /* requests: they may not have come as far as to a mark */

static void
touch (uint64_t at, uint64_t count)
{
  uint64_t s;

  for (s = at / SECTOR; s <= (at + count - 1) / SECTOR; ++s)
    touched[phase][s] = true;
}

static bool
was_touched (uint64_t at, uint64_t count, unsigned from, unsigned to)
{
  unsigned p;
  uint64_t s;

  for (p = from; p < to; ++p)
    for (s = at / SECTOR; s < (at + count) / SECTOR; ++s)
      if (touched[p][s])
        return true;
  return false;
}

static void
change (uint64_t seed, unsigned nr)
{
  uint64_t state = mix (seed);
  unsigned i;

  for (i = 0; i < nr; ++i) {
    const uint64_t most = random_below (&state, 6) == 0 ? 600000 : 6000;
    const uint64_t count = 1 + random_below (&state, most);
    const uint64_t at = random_below (&state, DISK_BYTES - count);
    int r;

    switch (random_below (&state, 6)) {
    case 0:
      r = rig_try_trim (&rig, at, count, 0);
      break;
    case 1:
      r = rig_try_zero (&rig, at, count,
                        random_below (&state, 2) ? IMAGE_MAY_TRIM : 0);
      break;
    default:
      r = rig_try_write (&rig, at, count, random_next (&state), 0);
    }
    if (r == 0)
      touch (at, count);
    else
      CHECK (may_fail);
  }
}

/* A bitmap, with what was touched from the beginning of a phase to the end of the one
 * before another: exactly, or at least.
 */
static void
check_bits (const char *name, unsigned from, unsigned to, bool enabled,
            bool exact)
{
  const uint8_t *data = rig.disk.data;
  struct bits_view v;
  uint64_t at, step;

  if (!bits_view_find (&v, data, atomic_load (&rig.disk.size), name)) {
    check_failed (__FILE__, __LINE__, "there is no bitmap %s", name);
    return;
  }
  CHECK (enabled ? bits_view_is_enabled (&v) : bits_view_is_disabled (&v));
  step = UINT64_C (1) << v.granularity_bits;
  for (at = 0; at < DISK_BYTES; at += step) {
    const bool dirty = bits_view_has (&v, at);
    const bool first = from == 0 && (name[0] == 'a' || name[0] == 'b') &&
      first_bits[name[0] - 'a'][at / step];
    const bool should = first || was_touched (at, step, from, to);

    if (dirty == should || (dirty && !exact))
      continue;
    check_failed (__FILE__, __LINE__, "%s: the bit of offset %llu is %d", name,
                  (unsigned long long) at, dirty);
    return;
  }
}

static bool
has_bitmap (const char *name)
{
  struct bits_view v;

  return bits_view_find (&v, rig.disk.data, atomic_load (&rig.disk.size), name);
}

/* ---------------------------------------------------------------------- images */

static void
start_model (void)
{
  struct bits_view v;
  unsigned i;
  uint64_t k;

  memset (touched, 0, sizeof touched);
  memset (first_bits, 0, sizeof first_bits);
  phase = 0;
  for (i = FINE; i <= COARSE; ++i) {
    const char name[] = { 'a' + i, '\0' };

    if (bits_view_find (&v, rig.disk.data, atomic_load (&rig.disk.size), name))
      for (k = 0; k < DISK_BYTES >> v.granularity_bits; ++k)
        first_bits[i][k] = bits_view_has (&v, k << v.granularity_bits);
  }
}

static void
allow_points (uint64_t memory)
{
  CHECK_OK (image_allow_points (rig.im, 0, memory));
}

/* With the three bitmaps of the rig, or with none. */
static void
start (unsigned bits, unsigned pages, bool bitmaps, uint64_t memory)
{
  struct builder b;
  unsigned i;

  if (bitmaps)
    follow_build (&b, bits);
  else {
    build_start (&b, 3, bits, false, COMPRESSION_DEFLATE, DISK_BYTES);
    for (i = 0; i < 40; ++i) {
      build_l2_place (&b, i);
      build_entry (&b, i, build_data (&b, i + 1), 0);
    }
    build_finish (&b);
  }
  rig_init (&rig, "rotate", &b);
  build_free (&b);
  rig.options.bitmap_pages = pages;
  rig.options.bitmap_idle = follow_idle;
  start_model ();
  rig_open (&rig);
  allow_points (memory);
}

static void
wait_for_end (void)
{
  while (!image_points_have_ended (rig.im))
    sched_yield ();
}

/* --------------------------------------------------------- requests meanwhile */

static uint64_t changes; /* seed of those while a snapshot is made; 0: none */

static void
change_meanwhile (uint64_t seed)
{
  const bool was = memory_pause ();
  struct error_kept kept;

  error_keep (&kept);
  if (changes != 0)
    change (changes + seed, 6);
  error_restore (&kept);
  memory_resume (was);
}

int
__wrap_features_begin_take (struct writer *w)
{
  const int r = __real_features_begin_take (w);

  change_meanwhile (1);
  return r;
}

int
__wrap_features_switch_snapshots (struct writer *w, uint32_t nr,
                                  struct host_off table,
                                  const struct bitmap_header *bitmaps)
{
  int r;

  change_meanwhile (2);
  r = __real_features_switch_snapshots (w, nr, table, bitmaps);
  change_meanwhile (3);
  return r;
}

/* ---------------------------------------------------------------------- takes */

static uint8_t was[DISK_BYTES], is[DISK_BYTES]; /* contents */

static struct layer *
try_take (const char *asked)
{
  char export[300];

  snprintf (export, sizeof export, IMAGE_TAKE_PREFIX "%s", asked);
  return image_open_disk (rig.im, export);
}

static void
take (const char *asked)
{
  struct layer *disk;

  memcpy (was, rig.content, DISK_BYTES);
  phase++;
  disk = try_take (asked);
  if (disk == NULL) {
    check_failed (__FILE__, __LINE__, "%s: %s", asked, error_message ());
    return;
  }
  CHECK_OK (layer_read (disk, is, DISK_BYTES, (struct guest_off) { 0 }));
  CHECK (memcmp (is, was, DISK_BYTES) == 0);
  image_close_disk (disk);
  wait_for_end ();
}

static void
refuse (const char *asked, int err, const char *why)
{
  CHECK (try_take (asked) == NULL);
  CHECK_ERROR (err, why);
}

/* I7: all of what a new one has is known to be metadata. */
static void
check_protected (const char *name)
{
  struct writer *w = rig.im->writer;
  struct bits_view v;
  struct host_off at;

  if (!bits_view_find (&v, rig.disk.data, atomic_load (&rig.disk.size), name)) {
    check_failed (__FILE__, __LINE__, "there is no bitmap %s", name);
    return;
  }
  at.v = v.table;
  CHECK_EQ (overlap_find (&w->overlap, at, 8 * v.nr_parts),
            METADATA_BITMAP_TABLE);
  CHECK_EQ (overlap_find (&w->overlap, w->header.bitmap_directory,
                          w->header.bitmap_directory_size), METADATA_BITMAPS);
}

/* A bitmap ends as the next one begins, several times; with one page for each, and
 * one more, what has ended may have too much.
 */
static void
test_chain (unsigned bits, unsigned pages, bool bitmaps)
{
  const bool exact = pages == 0;

  start (bits, pages, bitmaps, MEMORY);
  changes = 1000;
  change (1, 20);
  take (bitmaps ? "x?bitmap=n1&disable=a" : "x?bitmap=n1");
  change (2, 20);
  rig_flush (&rig);
  if (bitmaps)
    check_bits ("a", 0, 1, false, exact);
  check_bits ("n1", 1, 2, true, false);
  changes = 2000;
  check_protected ("n1");
  take ("y?bitmap=n%3F2&disable=n1&granularity=1024");
  check_protected ("n?2");
  check_bits ("n1", 1, 2, false, exact);
  change (3, 20);
  take ("z?granularity=4096&bitmap=n3");
  changes = 0;
  change (4, 20);
  rig_compare (&rig);
  rig_close (&rig);
  if (bitmaps) {
    check_bits ("a", 0, 1, false, exact);
    check_bits ("b", 0, 4, true, true);
    CHECK (has_bitmap ("c"));
  }
  check_bits ("n1", 1, 2, false, exact);
  check_bits ("n?2", 2, 4, true, true);
  check_bits ("n3", 3, 4, true, true);
  CHECK_EQ (bits_view_count (rig.disk.data, atomic_load (&rig.disk.size)),
            bitmaps ? 6 : 3);
  /* The next server finds them, and has one end that it has not begun. */
  rig_open (&rig);
  allow_points (MEMORY);
  change (5, 20);
  take ("w?bitmap=n4&disable=n3");
  change (6, 10);
  rig_close (&rig);
  check_bits ("n?2", 2, 5, true, true);
  check_bits ("n3", 3, 4, false, exact);
  check_bits ("n4", 4, 5, true, true);
  rig_free (&rig);
}

/* --------------------------------------------------------------------- refused */

static void
test_refused (void)
{
  uint64_t writes;

  start (12, 0, true, MEMORY);
  rig_write (&rig, 0, 512, 1);
  rig_flush (&rig);
  writes = rig.control.writes;
  refuse ("x?bitmap=b", EEXIST, "there is a bitmap \"b\" already");
  refuse ("x?bitmap=c&disable=a", EEXIST, "already");
  refuse ("x?bitmap=n&disable=none", ENOENT, "there is no bitmap \"none\"");
  refuse ("x?bitmap=n&disable=n", ENOENT, "there is no bitmap");
  refuse ("x?bitmap=n&disable=c", EINVAL, "it is not enabled");
  refuse ("x?bitmap=n&granularity=1000", EINVAL, "a power of 2");
  refuse ("x?bitmap=n&granularity=4294967296", EINVAL, "a power of 2");
  refuse ("x?bitmap=n&granularity=0", EINVAL, "is none");
  refuse ("x?bitmap=n&granularity=-1", EINVAL, "is none");
  refuse ("x?bitmap=n&bitmap=m", EINVAL, "is none");
  refuse ("x?bitmap=", EINVAL, "is none");
  refuse ("x?bitmap=%01", EINVAL, "is none");
  refuse ("x?bitmap=n/m", EINVAL, "is none");
  refuse ("x?disable=a", EINVAL, "is none");
  refuse ("x?", EINVAL, "is none");
  refuse ("x?what=n", EINVAL, "is none");
  refuse ("?bitmap=n", EINVAL, "is none");
  CHECK_EQ (rig.control.writes, writes);
  check_bits ("a", 0, 1, true, false);
  rig_close (&rig);
  rig_free (&rig);
}

/* 16 can follow, and a 17th can begin only where another one ends. */
static void
test_many (void)
{
  char asked[80];
  unsigned i;

  start (12, 0, false, MEMORY);
  for (i = 0; i < BITMAPS_MAX_FOLLOWED; ++i) {
    snprintf (asked, sizeof asked, "s%u?bitmap=n%u", i, i);
    image_close_disk (try_take (asked));
  }
  refuse ("x?bitmap=n16", ENOTSUP, "more than 16 persistent bitmaps");
  image_close_disk (try_take ("x?bitmap=n16&disable=n3"));
  phase = 1;
  change (1, 10);
  refuse ("y?bitmap=n17", ENOTSUP, "more than 16 persistent bitmaps");
  rig_close (&rig);
  check_bits ("n3", 2, 2, false, true);
  check_bits ("n4", 1, 2, true, true);
  check_bits ("n16", 1, 2, true, true);
  rig_free (&rig);
  start (12, 2, true, MEMORY); /* no page for a third one */
  refuse ("x?bitmap=n", ENOMEM, "memory");
  change (1, 10);
  rig_close (&rig);
  rig_free (&rig);
}

static void
test_not_kept (void)
{
  start (12, 0, true, MEMORY);
  rig_close (&rig);
  rig.options.invalidate_bitmaps = true;
  rig_open (&rig);
  allow_points (MEMORY);
  refuse ("x?bitmap=n", ENOTSUP, "bitmaps are given up");
  rig_close (&rig);
  rig_free (&rig);
}

/* What is wrong with it is that, and nothing else. */
static void
close_common (void)
{
  struct image_check c;

  rig_compare (&rig);
  CHECK_OK (rig_close_only (&rig));
  c = image_check_quietly (rig.disk.data, atomic_load (&rig.disk.size));
  CHECK_EQ (c.errors, 1);
  CHECK_EQ (c.leaks, 0);
}

/* Two disabled ones have a cluster in common: that is as good as it was, but where one
 * followed the image would be refused the next time.
 */
static void
test_common_clusters (void)
{
  struct builder b;
  uint64_t common, block;
  unsigned i;

  follow_build_bitmaps (&b, 12, BITMAPS + 1);
  for (i = 0; i <= BITMAPS; ++i)
    put_be32 (b.data + follow_directory + i * ENTRY + 12, 0);
  common = get_be64 (b.data + follow_table[FINE]);
  put_be64 (b.data + follow_table[BITMAPS], common);
  block = get_be64 (b.data + get_be64 (b.data + 48));
  put_be16 (b.data + block + 2 * (common >> 12), 2);
  rig_init (&rig, "common", &b);
  build_free (&b);
  start_model ();
  rig_open (&rig);
  allow_points (MEMORY);
  change (1, 10);
  refuse ("x?bitmap=n", ENOTSUP, "clusters in common");
  refuse ("x?bitmap=n&disable=a", ENOTSUP, "clusters in common");
  if (check_any_failed ()) /* it can't be opened again */
    exit (check_result ());
  image_close_disk (try_take ("x"));
  change (2, 10);
  close_common ();
  rig_open (&rig); /* it is written again */
  change (3, 10);
  close_common ();
  CHECK_EQ (bits_view_count (rig.disk.data, atomic_load (&rig.disk.size)),
            BITMAPS + 1);
  CHECK (!has_bitmap ("n"));
  rig_free (&rig);
}

/* Who opens it again meanwhile shares it, if all is the same. */
static void
test_shared (void)
{
  struct layer *a, *b;

  start (12, 0, true, MEMORY);
  a = try_take ("x?bitmap=n&disable=a");
  b = try_take ("%78?disable=%61&bitmap=%6e");
  CHECK (a != NULL && b != NULL);
  refuse ("x", EEXIST, "with other bitmaps");
  refuse ("x?bitmap=n", EEXIST, "with other bitmaps");
  image_close_disk (a);
  image_close_disk (b);
  refuse ("y?bitmap=n", EEXIST, "there is a bitmap \"n\" already");
  rig_close (&rig);
  rig_free (&rig);
}

static int
ignore_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  (void) opaque;
  (void) offset;
  (void) length;
  (void) flags;
  return 0;
}

static int
extents_of (struct layer *disk)
{
  return disk == NULL ? -1
    : layer_extents (disk, DISK_BYTES, (struct guest_off) { 0 }, false,
                     ignore_extent, NULL);
}

/* Exports that are open meanwhile: those of other bitmaps go on, and that of a point
 * before; the live disk's by the one that ends does not.
 */
static void
test_open_exports (void)
{
  static const char *const names[] = {
    "bitmap/a", "bitmap/b", "bitmap/c", "now/t/bitmap/a",
  };
  struct layer *disk[4];
  unsigned i;

  start (12, 0, true, MEMORY);
  change (1, 10);
  for (i = 0; i < 4; ++i) {
    disk[i] = image_open_disk (rig.im, names[i]);
    CHECK_OK (extents_of (disk[i]));
  }
  phase++;
  image_close_disk (try_take ("x?bitmap=n&disable=a"));
  rig_flush (&rig); /* the old directory is given up */
  rig_flush (&rig);
  change (2, 10);
  for (i = 1; i < 4; ++i)
    CHECK_OK (extents_of (disk[i]));
  CHECK_EQ (extents_of (disk[0]), (uint64_t) -1);
  CHECK_ERROR (EIO, "or the bitmap has ended");
  for (i = 0; i < 4; ++i)
    image_close_disk (disk[i]);
  wait_for_end ();
  rig_close (&rig);
  rig_free (&rig);
}

/* ---------------------------------------------------------------------- undone */

/* It was not made: the old one goes on, and can end later. */
static void
check_goes_on (bool bitmaps)
{
  wait_for_end ();
  CHECK (!has_bitmap ("n"));
  changes = 0;
  rig_compare (&rig);
  if (bitmaps)
    check_bits ("a", 0, phase + 1, true, false);
  change (8, 10);
  take (bitmaps ? "late?bitmap=n&disable=a" : "late?bitmap=n");
  change (9, 10);
  rig_close (&rig);
  if (bitmaps) {
    check_bits ("a", 0, phase, false, false);
    check_bits ("b", 0, phase + 1, true, true);
  }
  check_bits ("n", phase, phase + 1, true, true);
  rig_free (&rig);
}

/* No memory for what is changed meanwhile. */
static void
test_point_fails (unsigned bits, bool bitmaps, unsigned pages)
{
  start (bits, pages, bitmaps, 100);
  change (1, 10);
  changes = 3000;
  refuse (bitmaps ? "x?bitmap=n&disable=a" : "x?bitmap=n", EIO,
          "no snapshot was made");
  wait_for_end ();
  change (2, 10);
  if (bitmaps)
    check_bits ("a", 0, 1, true, false);
  CHECK (!has_bitmap ("n"));
  rig_close (&rig); /* without leaks */
  if (bitmaps) {
    check_bits ("a", 0, 1, true, false);
    check_bits ("b", 0, 1, true, true);
  }
  CHECK (!has_bitmap ("n"));
  rig_open (&rig);
  allow_points (MEMORY);
  check_goes_on (bitmaps);
}

/* No space to write the header again, when it is to be switched. */
static unsigned headers;

static void
fail_headers (void *opaque, const struct memory_call *call)
{
  (void) opaque;
  if (call->kind == MEMORY_WRITE && call->offset < 512 && headers++ > 0)
    memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
}

static void
test_header_no_space (unsigned bits, bool bitmaps, unsigned pages)
{
  start (bits, pages, bitmaps, MEMORY);
  change (1, 10);
  changes = 4000;
  rig_flush (&rig);
  headers = 0;
  rig.control.hook = fail_headers;
  refuse (bitmaps ? "x?bitmap=n&disable=a" : "x?bitmap=n", ENOSPC, "");
  rig.control.hook = NULL;
  memory_fail_no_more (&rig.control);
  check_goes_on (bitmaps);
}

/* ------------------------------------------------------------------ each fails */

/* Whether it was made, or is undone, or nothing is written any more. */
static void
judge (bool bitmaps, bool made, bool sticks)
{
  const unsigned point = 1, end = 2;

  if (made) {
    CHECK (has_bitmap ("n"));
    check_bits ("n", point, end, true, false);
    if (bitmaps)
      check_bits ("a", 0, point, false, false);
  }
  else if (!sticks) {
    CHECK (!has_bitmap ("n"));
    if (bitmaps)
      check_bits ("a", 0, end, true, false);
  }
  else if (bitmaps) { /* which of both is not known */
    const bool found = has_bitmap ("n");

    check_bits ("a", 0, found ? point : end, !found, false);
    if (found)
      check_bits ("n", point, end, true, false);
  }
  if (bitmaps)
    check_bits ("b", 0, end, true, false);
}

/* Requests fail as well. */
static bool
fail_one (bool bitmaps, unsigned kinds, int err, uint64_t call)
{
  struct layer *disk;
  bool failed, sticks, made;

  start (12, FEW, bitmaps, MEMORY);
  change (4, 6);
  rig_flush (&rig);
  changes = 5000;
  may_fail = true;
  phase++;
  memory_fail (&rig.control, kinds, call, err);
  disk = try_take (bitmaps ? "x?bitmap=n&disable=a" : "x?bitmap=n");
  made = disk != NULL;
  image_close_disk (disk);
  wait_for_end ();
  failed = rig.control.failed > 0;
  memory_fail_no_more (&rig.control);
  sticks = image_flush (rig.im) == -1;
  CHECK (!(sticks && err == ENOSPC));
  judge (bitmaps, made, sticks);
  if (!sticks)
    change (5, 6);
  judge (bitmaps, made, sticks);
  may_fail = false;
  changes = 0;
  CHECK_EQ (rig_close_only (&rig), sticks ? (uint64_t) -1 : 0);
  judge (bitmaps, made, sticks);
  if (!sticks && (err == ENOSPC || made))
    image_check_clean ("a call failed", rig.disk.data,
                       atomic_load (&rig.disk.size));
  rig_free (&rig);
  return failed;
}

static void
test_failing (bool bitmaps)
{
  static const struct {
    unsigned kinds;
    int err;
  } faults[] = {
    { MEMORY_WRITE | MEMORY_ZERO | MEMORY_RESIZE | MEMORY_ALLOCATE, ENOSPC },
    { MEMORY_READ, EIO }, { MEMORY_CHANGES, EIO },
  };
  uint64_t call;
  unsigned i;

  for (i = 0; i < sizeof faults / sizeof faults[0]; ++i) {
    for (call = 1; !check_any_failed () &&
           fail_one (bitmaps, faults[i].kinds, faults[i].err, call);
         call += TEST_EACH (7))
      continue;
    if (check_any_failed ()) {
      fprintf (stderr, "kinds 0x%x, errno %d, call %u\n", faults[i].kinds,
               faults[i].err, (unsigned) call);
      return;
    }
    CHECK (call > 10);
  }
}

/* Each allocation of the take, but for those of requests. */
static bool
fail_allocation (bool bitmaps, unsigned nr)
{
  struct layer *disk;
  bool failed;

  start (12, FEW, bitmaps, MEMORY);
  change (4, 6);
  rig_flush (&rig);
  image_close_disk (try_take ("first")); /* a thread begins with it */
  wait_for_end ();
  changes = 6000;
  phase++;
  memory_calls = 0;
  memory_fail_at = nr;
  memory_armed = true;
  disk = try_take (bitmaps ? "x?bitmap=n&disable=a" : "x?bitmap=n");
  memory_armed = false;
  failed = memory_calls >= nr;
  memory_fail_at = 0;
  if (disk == NULL)
    CHECK_ERROR (ENOMEM, "");
  judge (bitmaps, has_bitmap ("n"), false);
  image_close_disk (disk);
  wait_for_end ();
  changes = 0;
  change (5, 6);
  judge (bitmaps, has_bitmap ("n"), false);
  CHECK_OK (rig_close_only (&rig));
  judge (bitmaps, has_bitmap ("n"), false);
  CHECK (disk == NULL || has_bitmap ("n"));
  (void) image_check ("an allocation failed", rig.disk.data,
                      atomic_load (&rig.disk.size));
  rig_free (&rig);
  return failed;
}

static void
test_memory (bool bitmaps)
{
  unsigned nr;

  for (nr = 1; fail_allocation (bitmaps, nr) && !check_any_failed (); ++nr)
    continue;
  if (check_any_failed ())
    fprintf (stderr, "allocation %u\n", nr);
  printf ("%u allocations failed\n", nr - 1);
  CHECK (nr > 10);
}

int
main (void)
{
  check_time_limit (600);
  test_chain (9, 0, true);
  test_chain (12, 0, true);
  test_chain (9, 0, false);
  test_chain (12, 0, false);
  test_chain (9, 5, true);
  test_chain (9, 4, false);
  test_refused ();
  test_many ();
  test_not_kept ();
  test_common_clusters ();
  test_shared ();
  test_open_exports ();
  test_point_fails (12, true, 0);
  test_point_fails (9, true, 0);
  test_point_fails (9, true, 4);
  test_point_fails (9, false, 3);
  test_header_no_space (12, true, 0);
  test_header_no_space (12, false, 0);
  test_header_no_space (9, true, 4);
  test_failing (true);
  test_failing (false);
  test_memory (true);
  test_memory (false);
  return check_result ();
}
