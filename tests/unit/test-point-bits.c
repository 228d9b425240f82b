/* SPDX-License-Identifier: BSD-3-Clause */

/* The bits of bitmaps at points in time (S6 of qcow2/points.h, S5 of qcow2/write/
 * bit-slots.h): exactly those of the point, whatever is written, marked ahead,
 * written back or dropped after it; or more, where they can't be, and never fewer.
 */

#include <config.h>

#include <pthread.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "check.h"
#include "disk/read.h"
#include "point-bits.h"
#include "qcow2/points.h"
#include "qcow2/write/follow.h"
#include "qcow2/write/writer-parts.h"
#include "random.h"
#include "take-wrap.h"

#define MEMORY (UINT64_C (16) << 20)

static struct bits now; /* what both bitmaps should have */

static void
start (unsigned bits, unsigned pages, unsigned linger, uint64_t memory)
{
  follow_start (bits, pages);
  CHECK_OK (image_allow_points (rig.im, linger, memory));
  bits_at_first (&now);
}

static void
end (void)
{
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

static void
wait_for_end (void)
{
  while (!image_points_have_ended (rig.im))
    sched_yield ();
}

static void
write_at (uint64_t offset, uint64_t count, uint64_t seed)
{
  rig_write (&rig, offset, count, seed);
  bits_touch (&now, offset, count);
}

static void
change (uint64_t *state, unsigned nr)
{
  while (nr-- > 0) {
    const uint64_t count = 1 + random_below (state, 9000);
    const uint64_t offset = random_below (state, DISK_BYTES - count);

    bits_touch (&now, offset, count);
    switch (random_below (state, 4)) {
    case 0:
      rig_zero (&rig, offset, count, IMAGE_MAY_TRIM);
      break;
    case 1:
      rig_trim (&rig, offset, count);
      break;
    default:
      rig_write (&rig, offset, count, random_next (state));
    }
  }
}

static struct layer *
open_export (const char *name)
{
  struct layer *l = image_open_disk (rig.im, name);

  if (l == NULL)
    check_failed (__FILE__, __LINE__, "%s: %s", name, error_message ());
  return l;
}

/* --------------------------------------------------------------------- exact */

#define POINTS 4

/* Points one after the other, the first of which ends before the others; of some the
 * bits are first asked for when other things were written.
 */
static void
test_exact (unsigned bits, unsigned pages)
{
  static struct bits was[POINTS];
  struct layer *held[POINTS];
  uint64_t state = 77 * bits + pages;
  unsigned i, k;
  char token[8], name[16];

  start (bits, pages, 0, MEMORY);
  for (i = 0; i < POINTS; ++i) {
    change (&state, 6);
    if (i == 2)
      follow_settle (rig.im->writer, 0);
    snprintf (name, sizeof name, IMAGE_POINT_PREFIX "%u", i);
    held[i] = open_export (name);
    was[i] = now;
    for (k = 0; k <= i; ++k) {
      if (k == i && i % 2)
        continue; /* it is first asked for later */
      snprintf (token, sizeof token, "%u", k);
      bits_check_point (token, &was[k], true);
    }
  }
  change (&state, 6);
  image_close_disk (held[0]);
  wait_for_end ();
  follow_settle (rig.im->writer, 0);
  change (&state, 6);
  for (k = 1; k < POINTS; ++k) {
    snprintf (token, sizeof token, "%u", k);
    bits_check_point (token, &was[k], true);
    image_close_disk (held[k]);
  }
  end ();
}

/* What was marked ahead is not in it, before anything is written, either. */
static void
test_marked_ahead (void)
{
  static struct bits was;
  struct layer *held;

  start (12, 0, 0, MEMORY);
  write_at (65536, 512, 1);
  CHECK (follow_is_set (FINE, 129));
  was = now;
  held = open_export ("now/T");
  bits_check_point ("T", &was, true);
  write_at (65536 + 512, 512, 2);
  bits_check_point ("T", &was, true);
  image_close_disk (held);
  end ();
}

/* ----------------------------------------------------------- read and written */

struct within {
  uint64_t host; /* of a cluster with bits: what is read */
  unsigned nr;
};

static void
write_within (void *opaque, const struct memory_call *call)
{
  struct within *w = opaque;

  if (call->kind == MEMORY_READ && call->offset <= w->host &&
      w->host - call->offset < call->count && w->nr++ == 0)
    write_at (300000, 512, 9);
}

/* A bit that is seen on the disk is one that was kept before. */
static void
test_written_while_read (void)
{
  static struct bits was;
  struct within w = { 0 };
  struct layer *l;

  start (12, 0, 0, MEMORY);
  write_at (65536, 512, 1);
  follow_settle (rig.im->writer, 0);
  was = now;
  l = open_export ("now/T/bitmap/a");
  w.host = get_be64 (rig.disk.data + follow_table[FINE]);
  rig.control.opaque = &w;
  rig.control.hook = write_within;
  bits_check (l, FINE, &was, true, "written while it is read");
  rig.control.hook = NULL;
  CHECK (w.nr > 0);
  image_close_disk (l);
  end ();
}

/* ---------------------------------------------------------------- in flight */

/* A request that is being done when the point is taken, and one that begins then. */
#define FLYING 70000
#define LATE 400000

static atomic_bool flying, go_on;
static _Thread_local bool flies;

static void
wait_in_flight (void *opaque, const struct memory_call *call)
{
  (void) opaque;
  if (!flies || call->kind != MEMORY_WRITE || call->durable)
    return;
  atomic_store (&flying, true);
  while (!atomic_load (&go_on))
    sched_yield ();
}

static void *
fly (void *opaque)
{
  (void) opaque;
  flies = true;
  CHECK_OK (image_write (rig.im, "flying", 6, (struct guest_off) { FLYING }, 0));
  return NULL;
}

static void *
take (void *opaque)
{
  *(struct layer **) opaque = open_export ("now/T/bitmap/a");
  return NULL;
}

static void *
come_late (void *opaque)
{
  (void) opaque;
  CHECK_OK (image_write (rig.im, "late", 4, (struct guest_off) { LATE }, 0));
  return NULL;
}

static unsigned
count_waiting (void)
{
  struct gate *g = &rig.im->gate;
  unsigned nr;

  pthread_mutex_lock (&g->lock);
  nr = g->waiting;
  pthread_mutex_unlock (&g->lock);
  return nr;
}

/* What is answered before the point is in it, and what begins after is not. */
static void
test_in_flight (void)
{
  struct layer *l = NULL;
  pthread_t a, b, c;
  char buf[6];

  start (12, 0, 60, MEMORY);
  write_at (FLYING + 4096, 512, 1); /* bits of the same page */
  rig.control.hook = wait_in_flight;
  pthread_create (&a, NULL, fly, NULL);
  while (!atomic_load (&flying))
    sched_yield ();
  pthread_create (&b, NULL, take, &l);
  while (!atomic_load (&rig.im->gate.closed))
    sched_yield ();
  pthread_create (&c, NULL, come_late, NULL);
  while (count_waiting () == 0)
    sched_yield ();
  atomic_store (&go_on, true);
  pthread_join (a, NULL);
  pthread_join (b, NULL);
  pthread_join (c, NULL);
  rig.control.hook = NULL;
  bits_touch (&now, FLYING, 6);
  bits_check (l, FINE, &now, true, "in flight");
  CHECK_OK (layer_read (l, buf, 6, (struct guest_off) { FLYING }));
  CHECK (memcmp (buf, "flying", 6) == 0);
  CHECK_OK (layer_read (l, buf, 4, (struct guest_off) { LATE }));
  CHECK (memcmp (buf, "late", 4) != 0);
  image_close_disk (l);
  rig_close (&rig);
  rig_free (&rig);
}

/* ------------------------------------------------------------------ rotation */

#define THIRD (UINT64_C (4) << 20) /* of pages of small clusters */

static bool asks, switch_fails;
static struct bits at_take, at_second;

/* While the snapshot is made, a page is marked that was not since any point: before
 * and after another point.  What that has is asked for at once, since the old bitmap
 * is about to end.
 */
int
__wrap_features_switch_snapshots (struct writer *w, uint32_t nr,
                                  struct host_off table,
                                  const struct bitmap_header *bitmaps)
{
  struct layer *second;

  at_take = now;
  write_at (THIRD, 4096, 51);
  at_second = now;
  second = open_export ("now/second");
  write_at (THIRD + 60000, 4096, 52);
  if (asks) {
    bits_check_point ("first", &at_take, true);
    bits_check_point ("second", &at_second, false);
  }
  image_close_disk (second);
  if (!switch_fails)
    return __real_features_switch_snapshots (w, nr, table, bitmaps);
  error_set (EIO, "this fails");
  return -1;
}

/* Nothing was changed between `first', which stays, and the take. */
static void
test_rotation (unsigned bits, bool fails)
{
  struct layer *first, *taken, *other;
  uint64_t state = bits;

  start (bits, 0, 60, MEMORY);
  write_at (65536, 4096, 50);
  change (&state, 3);
  first = open_export ("now/first/bitmap/a");
  asks = true;
  switch_fails = fails;
  taken = image_open_disk (rig.im, "take/x?bitmap=n&disable=a");
  CHECK_EQ (taken == NULL, fails);
  bits_check_point ("first", &at_take, true);
  other = open_export ("now/other");
  if (fails) {
    bits_check_point ("other", &now, false);
    bits_check_point ("second", &at_second, false);
    change (&state, 3);
    bits_check_point ("second", &at_second, false);
  }
  change (&state, 3);
  bits_check_point ("first", &at_take, true);
  image_close_disk (other);
  image_close_disk (taken);
  image_close_disk (first);
  if (fails) { /* what failed was no write: the image can go on */
    CHECK_OK (rig_close_only (&rig));
    rig_free (&rig);
  }
  else
    end ();
}

/* The new one has nothing at its beginning, and then what has changed since. */
static void
test_new_one (void)
{
  static uint8_t is[SECTORS];
  struct layer *taken, *l;
  uint64_t state = 5;

  start (12, 0, 60, MEMORY);
  asks = switch_fails = false;
  taken = image_open_disk (rig.im, "take/x?bitmap=n&granularity=512");
  CHECK (taken != NULL);
  memset (&now, 0, sizeof now);
  bits_touch (&now, THIRD, 4096);
  bits_touch (&now, THIRD + 60000, 4096);
  at_take = now;
  l = open_export ("now/since/bitmap/n");
  change (&state, 10);
  CHECK_OK (bits_read (l, FINE, is));
  CHECK (memcmp (is, at_take.of[FINE], sizeof is) == 0);
  image_close_disk (l);
  image_close_disk (taken);
  end ();
}

/* -------------------------------------------------------------------- memory */

/* Enough for three slices of entries, or for a page of both bitmaps and one slice. */
#define LITTLE (4 * 4096)

/* Bits are given up for entries, and the point lives on; the next one has both. */
static void
test_memory (void)
{
  static struct bits was;
  static uint8_t is[DISK_BYTES], content[DISK_BYTES];
  struct layer *l;
  uint64_t at;

  start (12, 0, 0, LITTLE);
  for (at = 0; at < DISK_BYTES; at += 2 << 20)
    write_at (at, 4096, 1 + at);
  l = open_export ("now/A");
  was = now;
  CHECK_OK (layer_read (l, content, DISK_BYTES, (struct guest_off) { 0 }));
  write_at (8192, 4096, 2);
  bits_check_point ("A", &was, true);
  for (at = 0; at < DISK_BYTES; at += 2 << 20)
    write_at (at + 200000, 4096, 3 + at);
  bits_check_point ("A", &was, false);
  bits_check_point ("A", &now, false); /* all of the later ones */
  CHECK_OK (layer_read (l, is, DISK_BYTES, (struct guest_off) { 0 }));
  CHECK (memcmp (is, content, DISK_BYTES) == 0);
  image_close_disk (l);
  wait_for_end ();
  follow_settle (rig.im->writer, 0);
  l = open_export ("now/B");
  was = now;
  write_at (100000, 4096, 4);
  bits_check_point ("B", &was, true);
  image_close_disk (l);
  end ();
}

/* Points share a copy, which stays as long as one of them does, and no longer. */
static void
test_ends (void)
{
  static struct bits was;
  struct layer *a, *b;
  const struct points *p;

  start (12, 0, 0, MEMORY);
  p = ((struct writer *) rig.im->writer)->points;
  a = open_export ("now/A");
  b = open_export ("now/B");
  was = now;
  write_at (65536, 4096, 1);
  CHECK (atomic_load (&p->bytes) > 0);
  image_close_disk (b);
  wait_for_end ();
  bits_check_point ("A", &was, true);
  image_close_disk (a);
  wait_for_end ();
  CHECK_EQ (atomic_load (&p->bytes), 0);
  if (check_any_failed ())
    exit (check_result ()); /* closing the image would abort */
  end ();
}

int
main (void)
{
  check_time_limit (100);
  test_ends ();
  test_exact (9, 0);
  test_exact (9, 2); /* one page of each */
  test_exact (9, 3);
  test_exact (12, 0);
  test_marked_ahead ();
  test_written_while_read ();
  test_in_flight ();
  test_rotation (9, false);
  test_rotation (12, false);
  test_rotation (9, true);
  test_new_one ();
  test_memory ();
  return check_result ();
}
