/* SPDX-License-Identifier: BSD-3-Clause */

/* manage/create.c: images over what is there; in which order things are
 * written; and what is left when the storage fails.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "image-check.h"
#include "new-image.h"
#include "random.h"

#define SECTOR NEW_IMAGE_SECTOR

static struct new_image made;
static unsigned images;

/* ------------------------------------------------------ over what is there */

#define DEVICE (UINT64_C (6) << 20)

/* A block device: an image that is larger than the new one will be, and
 * garbage wherever that has nothing.
 */
static uint8_t device[DEVICE];

static void
make_device (void)
{
  struct create_options o = CREATE_DEFAULTS;
  uint64_t state = 42, i;

  o.size = 3 << 20;
  o.preallocation = PREALLOCATION_FULL;
  new_image_init (&made, &o, NULL, 0);
  CHECK_OK (new_image_create (&made, &o));
  random_fill (&state, device, sizeof device);
  for (i = 0; i < atomic_load (&made.disk.size); ++i) {
    if (made.disk.data[i] != 0 || i < 4096)
      device[i] = made.disk.data[i];
  }
  new_image_free (&made);
}

static void
put_device (const struct create_options *o)
{
  new_image_init (&made, o, device, sizeof device);
  made.control.fixed = true;
}

/* Have the device, or nothing. */
static void
put (const struct create_options *o, bool over)
{
  if (over)
    put_device (o);
  else
    new_image_init (&made, o, NULL, 0);
}

static void
make_over (const struct create_options *o, bool no_zero)
{
  put_device (o);
  CHECK (new_image_opens (&made));
  made.control.no_zero = no_zero;
  if (new_image_create (&made, o) == -1)
    check_failed (__FILE__, __LINE__, "%s: %s", made.what, error_message ());
  else
    new_image_check (&made, o);
  images++;
  CHECK_EQ (atomic_load (&made.disk.size), DEVICE);
  new_image_free (&made);
}

static void
test_over (void)
{
  static const uint64_t cluster_sizes[] = { 512, 4096, 65536, 1 << 18 };
  struct create_options o = CREATE_DEFAULTS;
  unsigned i, p, order;

  for (i = 0; i < 4; ++i) {
    for (p = PREALLOCATION_OFF; p <= PREALLOCATION_FULL; ++p) {
      for (order = 0; order <= 6; order += 3) {
        o.cluster_size = cluster_sizes[i];
        o.preallocation = p;
        o.refcount_bits = 1U << order;
        o.size = 1234567;
        make_over (&o, order == 3);
        if (o.cluster_size >= 65536) {
          o.extended_l2 = true;
          make_over (&o, order == 3);
          o.extended_l2 = false;
        }
      }
    }
  }
}

/* There is no room: nothing is touched. */
static void
test_too_small (void)
{
  struct create_options o = CREATE_DEFAULTS;

  o.size = DEVICE;
  o.preallocation = PREALLOCATION_METADATA;
  put_device (&o);
  CHECK_EQ (new_image_create (&made, &o), -1);
  CHECK_ERROR (ENOSPC, "resizing to ");
  CHECK (memcmp (made.disk.data, device, DEVICE) == 0);
  new_image_free (&made);
}

/* ------------------------------------------------------------------- order */

static bool
changes_header (const struct memory_call *call)
{
  return (call->kind & (MEMORY_WRITE | MEMORY_ZERO)) && call->offset == 0;
}

/* The calls: flushed before the first sector, which comes alone, and flushed
 * after it.
 */
static void
check_end (const struct memory_log *l)
{
  const struct memory_call *last = l->call + l->nr;

  CHECK (l->nr >= 4);
  CHECK_EQ (last[-1].kind, MEMORY_FLUSH);
  CHECK_EQ (last[-2].kind, MEMORY_WRITE);
  CHECK_EQ (last[-2].offset, 0);
  CHECK_EQ (last[-2].count, SECTOR);
  CHECK_EQ (last[-3].kind, MEMORY_FLUSH);
}

static void
test_order (uint64_t cluster_size, enum preallocation preallocation,
            bool over)
{
  struct create_options o = CREATE_DEFAULTS;
  struct memory_log log = MEMORY_LOG_INIT;
  size_t i;

  o.cluster_size = cluster_size;
  o.size = 500000;
  o.preallocation = preallocation;
  put (&o, over);
  made.control.log = &log;
  CHECK_OK (new_image_create (&made, &o));
  check_end (&log);
  if (over) { /* the old header goes first, and durably */
    CHECK (changes_header (&log.call[0]));
    CHECK_EQ (log.call[0].count, SECTOR);
    CHECK_EQ (log.call[1].kind, MEMORY_FLUSH);
  }
  /* No header in between: only zeros, over the old one. */
  for (i = over ? 3 : 0; i + 3 < log.nr; ++i)
    CHECK (log.call[i].kind != MEMORY_WRITE || log.call[i].offset > 0);
  new_image_free (&made);
  memory_log_free (&log);
}

static void
test_orders (void)
{
  unsigned p;

  for (p = PREALLOCATION_OFF; p <= PREALLOCATION_FULL; ++p) {
    test_order (512, p, false);
    test_order (512, p, true);
    test_order (65536, p, false);
    test_order (65536, p, true);
  }
}

/* ---------------------------------------------------------------- failures */

/* Whether what failed can be done without: zeros can be written, and space need
 * not be there where a storage can't promise it.
 */
static bool
has_other_way (const struct memory_call *call, int err)
{
  return call->kind == MEMORY_ZERO ||
    (call->kind == MEMORY_ALLOCATE && err != ENOSPC);
}

/* What is there after call number n has failed: what was there before, or
 * nothing that could be taken for an image, or, if it was the last call, all
 * of the new one.
 */
static void
check_failed_one (const struct memory_log *l, uint64_t n, bool over)
{
  const bool last = l->nr > 3 && l->call[l->nr - 1].kind == MEMORY_FLUSH &&
    l->call[l->nr - 2].kind == MEMORY_WRITE && l->call[l->nr - 2].offset == 0;

  if (last)
    image_check_clean (made.what, made.disk.data,
                       atomic_load (&made.disk.size));
  else if (!(over && memcmp (made.disk.data, device, DEVICE) == 0) &&
           new_image_opens (&made))
    check_failed (__FILE__, __LINE__, "%s: call %" PRIu64 " failed, and there "
                  "is an image", made.what, n);
}

/* Have call number n of all that change the storage fail.  Returns false if
 * there are not so many.
 */
static bool
fail_at (const struct create_options *o, bool over, uint64_t n, bool ever_after,
         int err)
{
  struct memory_log log = MEMORY_LOG_INIT;
  uint64_t failed;
  int r;

  put (o, over);
  memory_fail (&made.control, MEMORY_CHANGES, n, err);
  made.control.fail_ever_after = ever_after;
  made.control.log = &log;
  r = new_image_create (&made, o);
  failed = atomic_load (&made.control.failed);
  made.control.log = NULL;
  memory_fail_no_more (&made.control);
  if (failed == 0 || (!ever_after && has_other_way (&log.call[n - 1], err))) {
    CHECK_OK (r);
    image_check_clean (made.what, made.disk.data,
                       atomic_load (&made.disk.size));
  }
  else {
    CHECK_EQ (r, -1);
    CHECK (error_errno () == err || error_errno () == EIO);
    check_failed_one (&log, n, over);
  }
  new_image_free (&made);
  memory_log_free (&log);
  return failed > 0;
}

static void
test_failures (void)
{
  struct create_options o = CREATE_DEFAULTS;
  unsigned bits, p, over, err, n, rounds = 0;

  o.size = 400000;
  for (bits = 9; bits <= 16; bits += 7) {
    for (p = PREALLOCATION_OFF; p <= PREALLOCATION_FULL; ++p) {
      for (over = 0; over < 2; ++over) {
        for (err = 0; err < 4; ++err) {
          o.cluster_size = UINT64_C (1) << bits;
          o.preallocation = p;
          n = 1;
          while (fail_at (&o, over, n, err % 2 != 0, err < 2 ? EIO : ENOSPC))
            n++;
          rounds += n;
        }
      }
    }
  }
  CHECK (rounds > 200);
}

/* Space ends at each block in turn. */
static void
test_no_space (void)
{
  struct create_options o = CREATE_DEFAULTS;
  unsigned room;
  int r = -1;

  o.cluster_size = 4096;
  o.size = 100000;
  o.preallocation = PREALLOCATION_FALLOC;
  for (room = 1; r == -1 && room < 100; ++room) {
    new_image_init (&made, &o, NULL, 0);
    made.control.room = room;
    r = new_image_create (&made, &o);
    if (r == -1) {
      CHECK_ERROR (ENOSPC, "test: ");
      CHECK (!new_image_opens (&made));
    }
    new_image_free (&made);
  }
  CHECK (room > 25 && room < 100);
}

/* Writes that do less than they should are gone on with. */
static void
test_short_writes (void)
{
  struct create_options o = CREATE_DEFAULTS;

  o.size = 300000;
  o.cluster_size = 4096;
  o.preallocation = PREALLOCATION_FULL;
  new_image_init (&made, &o, NULL, 0);
  made.control.short_writes = 300;
  CHECK_OK (new_image_create (&made, &o));
  new_image_check (&made, &o);
  new_image_free (&made);
}

int
main (void)
{
  check_time_limit (600);
  make_device ();
  test_over ();
  test_too_small ();
  test_orders ();
  test_failures ();
  test_no_space ();
  test_short_writes ();
  printf ("%u images\n", images);
  return check_result ();
}
