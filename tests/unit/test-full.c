/* SPDX-License-Identifier: BSD-3-Clause */

/* A full file system is no dead end (I13): whatever is in holes of the image's
 * file, it can be flushed, trimmed, flushed and written again, and closed.
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "rig.h"

static struct rig rig;

struct form {
  const char *what;
  unsigned version, bits, order;
  bool extended, snapshot, keep_discarded;
  bool cannot_allocate; /* all that it can is to write */
  uint64_t clusters;    /* of the disk */
  uint64_t room;        /* bytes on the file system */
};

static const struct form forms[] = {
  { .what = "v3", .version = 3, .bits = 16, .order = 4, .clusters = 800,
    .room = 20 << 20 },
  { .what = "v2", .version = 2, .bits = 16, .order = 4, .clusters = 800,
    .room = 20 << 20 },
  { .what = "extended L2", .version = 3, .bits = 16, .order = 4,
    .extended = true, .clusters = 800, .room = 20 << 20 },
  { .what = "snapshot", .version = 3, .bits = 12, .order = 4,
    .snapshot = true, .clusters = 3000, .room = 6 << 20 },
  { .what = "512 bytes", .version = 3, .bits = 9, .order = 4,
    .clusters = 6000, .room = 2 << 20 },
  { .what = "512 bytes, 64 bit refcounts", .version = 3, .bits = 9,
    .order = 6, .clusters = 6000, .room = 2 << 20 },
  { .what = "1 bit refcounts", .version = 3, .bits = 12, .order = 0,
    .clusters = 3000, .room = 6 << 20 },
  { .what = "2M", .version = 3, .bits = 21, .order = 4, .clusters = 40,
    .room = 64 << 20 },
  { .what = "can't allocate", .version = 3, .bits = 12, .order = 4,
    .cannot_allocate = true, .clusters = 3000, .room = 6 << 20 },
};

/* What is all zeros becomes a hole, as in a file that was copied sparsely. */
static void
dig_holes (struct memory_disk *d)
{
  static const uint8_t zeros[MEMORY_DISK_BLOCK];
  uint64_t i;

  for (i = 0; i * MEMORY_DISK_BLOCK < d->size; ++i) {
    if (d->in_use[i] &&
        memcmp (d->data + i * MEMORY_DISK_BLOCK, zeros, sizeof zeros) == 0) {
      d->in_use[i] = 0;
      d->blocks--;
    }
  }
}

static void
start (const struct form *f)
{
  struct builder b;
  uint64_t state = 1, i;

  build_start (&b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE,
               f->clusters << f->bits);
  if (f->order != 4)
    build_order (&b, f->order);
  for (i = 0; i < f->clusters; i += 64)
    build_l2_place (&b, i);
  if (f->snapshot)
    build_snapshot (&b, 50, &state);
  build_finish (&b);
  rig_init (&rig, f->what, &b);
  build_free (&b);
  dig_holes (&rig.disk);
  rig.cache_size = 1 << 20;
  rig.options.keep_discarded = f->keep_discarded;
  rig_open (&rig);
  if (f->cannot_allocate)
    memory_fail_ever_after (&rig.control, MEMORY_ALLOCATE, 1, EOPNOTSUPP);
  rig.control.room = f->room / MEMORY_DISK_BLOCK;
}

/* Write each cluster, in an order that touches all tables early, until there
 * is no room.  Returns how many could be written.
 */
static uint64_t
fill (const struct form *f)
{
  uint64_t i, done = 0;

  for (i = 0; i < f->clusters; ++i) {
    const uint64_t cluster = i * 67 % f->clusters;

    if (rig_try_write (&rig, cluster << f->bits, 1 << f->bits, i, 0) == 0)
      done++;
    else {
      CHECK_EQ (error_errno (), ENOSPC);
      break;
    }
  }
  return done;
}

static void
test_form (const struct form *f)
{
  uint64_t first, second;

  start (f);
  first = fill (f);
  CHECK (first < f->clusters);
  rig_flush (&rig);
  rig_trim (&rig, 0, f->clusters << f->bits);
  rig_flush (&rig);
  second = fill (f);
  if (second < first - first / 8)
    check_failed (__FILE__, __LINE__, "%s: %" PRIu64 " clusters, then %" PRIu64,
                  f->what, first, second);
  /* And so without a flush. */
  rig_trim (&rig, 0, f->clusters << f->bits);
  rig_write (&rig, 0, 1 << f->bits, 3);
  rig_compare (&rig);
  memory_fail_no_more (&rig.control);
  rig_close (&rig);
  rig_free (&rig);
}

/* The host finds no space for what has some: it copies what is overwritten.
 * The ballast is given up for that, and there is some again after that.
 */
static void
test_ballast (void)
{
  static const struct form f = {
    .what = "ballast", .version = 3, .bits = 16, .order = 4, .clusters = 1600,
    .room = 200 << 20,
  };
  uint64_t i, round;

  start (&f);
  for (i = 0; i < 1100; ++i)
    rig_write (&rig, i << 16, 1 << 16, i);
  rig_flush (&rig);
  for (round = 0; round < 3; ++round) {
    const uint64_t punches = rig.control.punches;

    rig_trim (&rig, round << 20, 1 << 20);
    memory_fail (&rig.control, MEMORY_WRITE, 1, ENOSPC);
    rig_flush (&rig);
    CHECK_EQ (rig.control.failed, 1);
    CHECK (rig.control.punches > punches);
    memory_fail_no_more (&rig.control);
    for (i = 0; i < 150; ++i) /* the reserve is filled up meanwhile */
      rig_write (&rig, (1100 + round * 150 + i) << 16, 1 << 16, i);
    rig_flush (&rig);
  }
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

int
main (void)
{
  unsigned i;

  check_time_limit (300);
  for (i = 0; i < sizeof forms / sizeof forms[0]; ++i)
    test_form (&forms[i]);
  test_ballast ();
  return check_result ();
}
