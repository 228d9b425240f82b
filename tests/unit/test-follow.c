/* SPDX-License-Identifier: BSD-3-Clause */

/* Bitmaps that follow what is written (I14): exact after a clean end, and when
 * their pages are idle.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <time.h>

#include "base/bytes.h"
#include "check.h"
#include "follow-rig.h"
#include "image-check.h"
#include "qcow2/write/follow.h"
#include "random.h"

/* --------------------------------------------------------------------- exact */

static uint8_t expected[2][SECTORS];

static void
touch (uint64_t offset, uint64_t count)
{
  unsigned i;
  uint64_t k;

  for (i = FINE; i <= COARSE; ++i)
    for (k = offset >> follow_kinds[i].granularity_bits;
         k <= (offset + count - 1) >> follow_kinds[i].granularity_bits; ++k)
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

  follow_start (bits, pages);
  for (i = FINE; i <= COARSE; ++i)
    follow_read_bits (i, expected[i]);
  for (session = 0; session < 2; ++session) {
    for (i = 0; i < 60; ++i)
      do_request (&state, i);
    rig_compare (&rig);
    rig_close (&rig);
    follow_check_valid ();
    for (i = FINE; i <= COARSE; ++i) {
      follow_read_bits (i, is);
      CHECK (memcmp (is, expected[i],
                     DISK_BYTES >> follow_kinds[i].granularity_bits) == 0);
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

  follow_start (9, 4); /* of five */
  rig.control.hook = take_time;
  for (i = FINE; i <= COARSE; ++i)
    follow_read_bits (i, expected[i]);
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
  follow_check_valid ();
  for (i = FINE; i <= COARSE; ++i) {
    follow_read_bits (i, is);
    CHECK (memcmp (is, expected[i],
                   DISK_BYTES >> follow_kinds[i].granularity_bits) == 0);
  }
  rig_free (&rig);
}

/* I7: a new cluster of bits is known to be one. */
static void
test_new_cluster (void)
{
  const struct writer *w;
  struct host_off host;

  follow_start (12, 0);
  rig_write (&rig, 0, 512, 1);
  host.v = get_be64 (rig.disk.data + follow_table[COARSE]);
  CHECK (host.v != 0 && host.v % 4096 == 0);
  w = rig.im->writer;
  CHECK_EQ (overlap_find ((struct overlap *) &w->overlap, host, 4096),
            METADATA_BITS);
  rig_close (&rig);
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
                          (struct host_off) { follow_table[FINE] }));
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

  follow_start (12, 0);
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

  follow_start (12, 0);
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
  follow_start (12, 0);
  rig_write (&rig, 65536, 512, 1);
  memory_fail (&rig.control, MEMORY_WRITE, 1, EIO);
  settle ();
  CHECK_EQ (rig.control.failed, 1);
  memory_fail_no_more (&rig.control);
  CHECK (peek (128) && peek (129));
  rig_close (&rig);
  CHECK (follow_is_set (FINE, 128) && !follow_is_set (FINE, 129));
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

  follow_start (9, 0);
  rig_write (&rig, 0, 512, 1);
  nanosleep (&t, NULL);
  rig.control.opaque = &m;
  rig.control.hook = mark_within;
  follow_settle (rig.im->writer, IDLE_NS);
  rig.control.hook = NULL;
  CHECK (m.nr > 0);
  soon = monotonic () - m.marked_at < IDLE_NS;
  if (soon)
    CHECK (follow_is_set (FINE, SECOND_PAGE / 512 + 1));
  rig_close (&rig);
  CHECK (!follow_is_set (FINE, SECOND_PAGE / 512 + 1));
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

  follow_idle = 1;
  follow_start (12, 0);
  rig_write (&rig, 65536, 512, 1);
  while (peek (129))
    nanosleep (&t, NULL);
  CHECK (peek (128));
  rig_close (&rig);
  rig_free (&rig);
  test_threads ();
  test_exact (9, 3);
  follow_idle = BITMAP_NEVER_IDLE;
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
  test_settled ();
  test_settled_while_held ();
  test_settling_fails ();
  test_marked_while_settling ();
  if (!check_any_failed ()) /* else threads may run into an assertion */
    test_thread_settles ();
  return check_result ();
}
