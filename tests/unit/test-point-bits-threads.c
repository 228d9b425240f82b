/* SPDX-License-Identifier: BSD-3-Clause */

/* The bits of a bitmap at points in time, beside threads that write: all that was
 * answered before the point, nothing that began after it, and always the same.  For
 * ThreadSanitizer, too (TEST_SECONDS says for how long).
 */

#include <config.h>

#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "check.h"
#include "image-check.h"
#include "point-bits.h"
#include "random.h"
#include "seconds.h"

#define MEMORY (UINT64_C (16) << 20)
#define WRITERS 3
#define ROUNDS 16       /* with one image: most of its sectors are clean */
#define BETWEEN 40      /* requests */

static atomic_bool begun[SECTORS], answered[SECTORS], enough;
static _Atomic unsigned done;

static void *
writer_main (void *opaque)
{
  uint64_t state = (uintptr_t) opaque;
  uint8_t buf[SECTOR];

  while (!atomic_load (&enough) && !check_any_failed ()) {
    const uint64_t s = random_below (&state, SECTORS);
    const struct guest_off at = { s * SECTOR };

    memset (buf, random_next (&state), sizeof buf);
    atomic_store (&begun[s], true);
    if (s % 5 == 0)
      CHECK_OK (image_trim (rig.im, sizeof buf, at, 0));
    else
      CHECK_OK (image_write (rig.im, buf, sizeof buf, at, 0));
    atomic_store (&answered[s], true);
    atomic_fetch_add (&done, 1);
  }
  return NULL;
}

static void
wait_for_requests (void)
{
  const unsigned from = atomic_load (&done);

  while (atomic_load (&done) - from < BETWEEN && !check_any_failed ())
    sched_yield ();
}

static void
copy (uint8_t *to, const atomic_bool *from)
{
  unsigned s;

  for (s = 0; s < SECTORS; ++s)
    to[s] = atomic_load (&from[s]);
}

/* In turn the bits are asked for at once, and when the point was there for a while.
 */
static void
check_point (unsigned nr, const struct bits *first)
{
  static uint8_t before[SECTORS], after[SECTORS], is[SECTORS], again[SECTORS];
  struct layer *held, *l;
  char name[40];
  unsigned s;

  snprintf (name, sizeof name, IMAGE_POINT_PREFIX "%u", nr);
  copy (before, answered);
  held = image_open_disk (rig.im, name);
  copy (after, begun);
  if (nr % 2)
    wait_for_requests ();
  strcat (name, "/" IMAGE_BITMAP_PREFIX "a");
  l = image_open_disk (rig.im, name);
  if (held == NULL || l == NULL) {
    check_failed (__FILE__, __LINE__, "%s: %s", name, error_message ());
    return;
  }
  CHECK_OK (bits_read (l, FINE, is));
  for (s = 0; s < SECTORS; ++s) {
    if (is[s] ? first->of[FINE][s] || after[s]
        : !first->of[FINE][s] && !before[s])
      continue;
    check_failed (__FILE__, __LINE__, "%s: the bit of sector %u is %d", name, s,
                  is[s]);
    break;
  }
  wait_for_requests ();
  CHECK_OK (bits_read (l, FINE, again));
  CHECK (memcmp (is, again, sizeof is) == 0);
  image_close_disk (l);
  image_close_disk (held);
}

static void
test_image (unsigned bits, unsigned pages, uint64_t seed)
{
  static struct bits first;
  pthread_t thread[WRITERS];
  unsigned k;

  follow_start (bits, pages);
  CHECK_OK (image_allow_points (rig.im, 0, MEMORY));
  bits_at_first (&first);
  for (k = 0; k < SECTORS; ++k) {
    atomic_store (&begun[k], false);
    atomic_store (&answered[k], false);
  }
  atomic_store (&enough, false);
  for (k = 0; k < WRITERS; ++k)
    pthread_create (&thread[k], NULL, writer_main,
                    (void *) (uintptr_t) (seed * WRITERS + k));
  for (k = 0; k < ROUNDS && !check_any_failed (); ++k)
    check_point (k, &first);
  atomic_store (&enough, true);
  for (k = 0; k < WRITERS; ++k)
    pthread_join (thread[k], NULL);
  while (!image_points_have_ended (rig.im))
    sched_yield ();
  CHECK_OK (rig_close_only (&rig));
  image_check_clean ("threads", rig.disk.data, atomic_load (&rig.disk.size));
  follow_check_valid ();
  rig_free (&rig);
}

int
main (void)
{
  const double until = seconds () + test_seconds (1);
  unsigned nr = 0;

  check_time_limit (600);
  follow_idle = 1;
  do {
    test_image (9, 0, nr);
    test_image (9, 3, nr);
    test_image (12, 0, nr);
    nr++;
  } while (seconds () < until && !check_any_failed ());
  printf ("%u images with %u points each\n", 3 * nr, ROUNDS);
  return check_result ();
}
