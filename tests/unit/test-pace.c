/* SPDX-License-Identifier: BSD-3-Clause */

/* base/pace.c, with the clocks of the CPU wound by hand; and where a snapshot that
 * is made while the disk is served rests.
 */

#include <config.h>

#include <stdlib.h>
#include <time.h>

#include "base/pace.h"
#include "check.h"
#include "disk/read.h"
#include "must-have.h"
#include "rig.h"

#define MS UINT64_C (1000000)

static bool by_hand;
static uint64_t own, all; /* nanoseconds */
static unsigned nr_rests;
static uint64_t last_rest; /* nanoseconds */

extern int __real_clock_gettime (clockid_t clock, struct timespec *t);
extern int __wrap_clock_gettime (clockid_t clock, struct timespec *t);
extern int __real_nanosleep (const struct timespec *t, struct timespec *left);
extern int __wrap_nanosleep (const struct timespec *t, struct timespec *left);

int
__wrap_clock_gettime (clockid_t clock, struct timespec *t)
{
  uint64_t is;

  if (!by_hand || (clock != CLOCK_THREAD_CPUTIME_ID &&
                   clock != CLOCK_PROCESS_CPUTIME_ID))
    return __real_clock_gettime (clock, t);
  is = clock == CLOCK_THREAD_CPUTIME_ID ? own : all;
  t->tv_sec = is / (1000 * MS);
  t->tv_nsec = is % (1000 * MS);
  return 0;
}

int
__wrap_nanosleep (const struct timespec *t, struct timespec *left)
{
  if (!by_hand)
    return __real_nanosleep (t, left);
  nr_rests++;
  last_rest = t->tv_sec * 1000 * MS + t->tv_nsec;
  return 0;
}

/* ----------------------------------------------------------------- by itself */

static void
work (uint64_t mine, uint64_t others)
{
  own += mine;
  all += mine + others;
}

static void
test_pace (void)
{
  struct pace p;

  by_hand = true;
  own = 999 * MS;
  all = 1999 * MS;
  pace_begin (&p);
  work (4 * MS, MS - 1); /* others have done less than a quarter */
  pace_rest (&p);
  CHECK_EQ (nr_rests, 0);
  work (4 * MS, MS);
  pace_rest (&p);
  CHECK_EQ (nr_rests, 1);
  CHECK_EQ (last_rest, 24 * MS);
  pace_rest (&p); /* it has just done so */
  CHECK_EQ (nr_rests, 1);
  work (MS - 1, 100 * MS); /* not worth it yet */
  pace_rest (&p);
  CHECK_EQ (nr_rests, 1);
  work (1, 0);
  pace_rest (&p);
  CHECK_EQ (nr_rests, 2);
  CHECK_EQ (last_rest, 6 * MS);
  work (2000 * MS, 2000 * MS);
  pace_rest (&p);
  CHECK_EQ (last_rest, 50 * MS);
  by_hand = false;
}

/* ---------------------------------------------------------------- in a take */

#define TABLES 20
#define CLUSTERS (TABLES * 64)

static struct rig rig;
static unsigned nr_pieces;
static bool writes; /* somebody does while it rests */

extern void __real_pace_rest (struct pace *p);
extern void __wrap_pace_rest (struct pace *p);

/* Nothing is held: what was just taken can be written. */
void
__wrap_pace_rest (struct pace *p)
{
  if (by_hand) {
    __real_pace_rest (p);
    return;
  }
  if (writes)
    rig_write (&rig, nr_pieces * (rig.size / TABLES), 512, nr_pieces + 1);
  nr_pieces++;
}

/* Returns how often it rested. */
static unsigned
take (uint64_t memory, bool with_writes)
{
  struct layer *disk;
  struct builder b;
  uint8_t *was, *is;
  unsigned i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, CLUSTERS << 9);
  for (i = 0; i < CLUSTERS; ++i) {
    build_l2_place (&b, i);
    build_entry (&b, i, build_data (&b, i + 1), 0);
  }
  build_finish (&b);
  rig_init (&rig, "pace", &b);
  build_free (&b);
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 0, memory));
  was = must_have (malloc (rig.size));
  is = must_have (malloc (rig.size));
  memcpy (was, rig.content, rig.size);
  nr_pieces = 0;
  writes = with_writes;
  disk = image_open_disk (rig.im, IMAGE_TAKE_PREFIX "s");
  CHECK (disk != NULL);
  if (disk != NULL) {
    CHECK_OK (layer_read (disk, is, rig.size, (struct guest_off) { 0 }));
    CHECK (memcmp (is, was, rig.size) == 0);
    image_close_disk (disk);
  }
  free (is);
  free (was);
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
  return nr_pieces;
}

int
main (void)
{
  test_pace ();
  CHECK_EQ (take (1 << 20, false), TABLES);
  CHECK_EQ (take (1 << 20, true), TABLES);
  CHECK_EQ (take (8 << 10, true), 1); /* memory for few shadows */
  return check_result ();
}
