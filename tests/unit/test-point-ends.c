/* SPDX-License-Identifier: BSD-3-Clause */

/* Points in time that end while requests run which have seen what they have:
 * threads are stopped where that matters, and nothing that was answered may be
 * lost.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "check.h"
#include "disk/read.h"
#include "image-parts.h"
#include "must-have.h"
#include "qcow2/disk.h"
#include "qcow2/qcow2.h"
#include "qcow2/write/writer.h"
#include "rig.h"

#define CLUSTER 4096
#define CLUSTERS 32

static struct rig rig;
static _Atomic unsigned nr_waits; /* for requests, by who ends points */
static uint8_t *was;              /* the disk at first */

/* -------------------------------------------------------------------- threads */

/* It writes or reads a sector, and stops where stop says, until it may go on. */
enum stop { NOWHERE, AT_DATA, AFTER_LOOKUP, BEFORE_CAPTURE };

struct request {
  uint64_t at;
  uint8_t value;       /* to be written */
  struct layer *point; /* to be read; or NULL */
  enum stop stop;
  uint8_t read[512];
  _Atomic bool stopped, go, answered;
  pthread_t thread;
};

static _Thread_local struct request *mine; /* NULL: not one of them */

static void
stop_here (enum stop where)
{
  if (mine == NULL || mine->stop != where || atomic_load (&mine->stopped))
    return;
  atomic_store (&mine->stopped, true);
  while (!atomic_load (&mine->go))
    sched_yield ();
}

static void
stop_at_data (void *opaque, const struct memory_call *call)
{
  (void) opaque;
  if (call->kind == (mine != NULL && mine->point ? MEMORY_READ : MEMORY_WRITE))
    stop_here (AT_DATA);
}

/* Whoever has waited for requests goes on only when another point is taken. */
static _Atomic bool end_after_taken, taken;

void __real_epoch_wait (struct epoch *e);
void __wrap_epoch_wait (struct epoch *e);

void
__wrap_epoch_wait (struct epoch *e)
{
  atomic_fetch_add (&nr_waits, 1);
  __real_epoch_wait (e);
  while (atomic_load (&end_after_taken) && !atomic_load (&taken))
    sched_yield ();
}

int __real_map_lookup (const struct map *m, struct guest_off offset,
                       uint64_t max, struct run *run);
int __wrap_map_lookup (const struct map *m, struct guest_off offset,
                       uint64_t max, struct run *run);

int
__wrap_map_lookup (const struct map *m, struct guest_off offset, uint64_t max,
                   struct run *run)
{
  const int r = __real_map_lookup (m, offset, max, run);

  stop_here (AFTER_LOOKUP);
  return r;
}

/* What is released waits until it may be. */
static _Atomic bool no_release, release_waits;

void __real_unfreeze (struct writer *w);
void __wrap_unfreeze (struct writer *w);

void
__wrap_unfreeze (struct writer *w)
{
  while (atomic_load (&no_release)) {
    atomic_store (&release_waits, true);
    sched_yield ();
  }
  atomic_store (&release_waits, false);
  __real_unfreeze (w);
}

/* Whoever opens a point in a thread of its own waits for a condition, or has taken
 * one, while shadows had so many bytes.
 */
static _Thread_local bool opens;
static _Atomic bool waits_or_has_taken;
static uint64_t bytes_when_taken;

int __real_pthread_cond_wait (pthread_cond_t *c, pthread_mutex_t *m);
int __wrap_pthread_cond_wait (pthread_cond_t *c, pthread_mutex_t *m);

int
__wrap_pthread_cond_wait (pthread_cond_t *c, pthread_mutex_t *m)
{
  if (opens)
    atomic_store (&waits_or_has_taken, true);
  return __real_pthread_cond_wait (c, m);
}

struct point *__real_points_take (struct points *p);
struct point *__wrap_points_take (struct points *p);

struct point *
__wrap_points_take (struct points *p)
{
  const int r = pthread_mutex_trylock (&rig.im->writer_lock);
  struct point *point;

  CHECK_EQ (r, EBUSY); /* no repair runs: it would not be known to the point */
  if (r == 0)
    pthread_mutex_unlock (&rig.im->writer_lock);
  bytes_when_taken = atomic_load (&p->bytes);
  if (opens)
    atomic_store (&waits_or_has_taken, true);
  point = __real_points_take (p);
  atomic_store (&taken, true);
  return point;
}

bool __real_points_capture (struct points *p, const struct map *m,
                            uint64_t slice, struct host_off place,
                            const uint64_t *words);
bool __wrap_points_capture (struct points *p, const struct map *m,
                            uint64_t slice, struct host_off place,
                            const uint64_t *words);

bool
__wrap_points_capture (struct points *p, const struct map *m, uint64_t slice,
                       struct host_off place, const uint64_t *words)
{
  stop_here (BEFORE_CAPTURE);
  return __real_points_capture (p, m, slice, place, words);
}

static void
write_sector (uint64_t at, uint8_t value)
{
  uint8_t buf[512];

  memset (buf, value, sizeof buf);
  CHECK_OK (image_write (rig.im, buf, sizeof buf, (struct guest_off) { at },
                         0));
}

static void *
request_main (void *opaque)
{
  struct request *q = mine = opaque;

  if (q->point != NULL)
    CHECK_OK (layer_read (q->point, q->read, sizeof q->read,
                          (struct guest_off) { q->at }));
  else
    write_sector (q->at, q->value);
  atomic_store (&q->answered, true);
  return NULL;
}

/* Begin it, and wait until it has stopped, if it is to. */
static void
begin (struct request *q)
{
  CHECK_EQ (pthread_create (&q->thread, NULL, request_main, q), 0);
  while (q->stop != NOWHERE && !atomic_load (&q->stopped))
    sched_yield ();
}

static void
finish (struct request *q)
{
  atomic_store (&q->go, true);
  pthread_join (q->thread, NULL);
}

/* Whether somebody waits to enter a range. */
static bool
somebody_waits (void)
{
  struct inflight *f = &((struct writer *) rig.im->writer)->inflight;
  bool waits;

  pthread_mutex_lock (&f->lock);
  waits = f->waiting > 0;
  pthread_mutex_unlock (&f->lock);
  return waits;
}

/* Wait until it was answered, or waits for another one. */
static void
wait_for_answer (const struct request *q)
{
  while (!atomic_load (&q->answered) && !somebody_waits ())
    sched_yield ();
}

/* --------------------------------------------------------------------- points */

static struct points *
points (void)
{
  return qcow2_file (rig.im->chain.layer[0])->points;
}

/* An image whose clusters are all there, for points with so much memory. */
static void
start (uint64_t memory)
{
  struct builder b;
  uint64_t i;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, CLUSTERS * CLUSTER);
  for (i = 0; i < CLUSTERS; ++i) {
    build_l2_place (&b, i);
    build_entry (&b, i, build_data (&b, 1), 0);
  }
  build_finish (&b);
  rig_init (&rig, "ends", &b);
  build_free (&b);
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 0, memory));
  was = must_have (malloc (rig.size));
  write_sector (10 * CLUSTER, 1); /* the first write has more to do */
  CHECK_OK (layer_read (rig.live, was, rig.size, (struct guest_off) { 0 }));
  rig.control.hook = stop_at_data;
  atomic_store (&nr_waits, 0);
}

static void
wait_for_end (void)
{
  while (!image_points_have_ended (rig.im))
    sched_yield ();
}

/* Until who ends points has begun to wait that often, or has done all. */
static void
wait_for_waits (unsigned nr)
{
  while (atomic_load (&nr_waits) < nr && !image_points_have_ended (rig.im))
    sched_yield ();
}

static void
check_sector (uint64_t at, uint8_t value)
{
  uint8_t buf[512];

  CHECK_OK (layer_read (rig.live, buf, sizeof buf, (struct guest_off) { at }));
  CHECK_EQ (buf[0], value);
}

static void
end (void)
{
  wait_for_end ();
  CHECK (!points_are_held (points ()));
  rig.control.hook = NULL;
  rig_close (&rig);
  free (was);
  rig_free (&rig);
}

static struct layer *
open_point (void)
{
  struct layer *disk = image_open_disk (rig.im, IMAGE_POINT_PREFIX "one");

  CHECK (disk != NULL);
  return disk;
}

/* Steps that could not capture copy clusters; one of them began when the end of
 * points waited for the first already.  It is not done when they have ended.
 */
static void
test_failed_step (void)
{
  struct request first = { .at = 8 * CLUSTER, .value = 0xa0, .stop = AT_DATA };
  struct request copies = { .at = 0, .value = 0xa1, .stop = AT_DATA };
  struct request other = { .at = 2048, .value = 0xa2 };
  struct layer *point;

  start (2000); /* no shadow fits */
  point = open_point ();
  begin (&first);
  wait_for_waits (1);
  begin (&copies);
  finish (&first);
  while (atomic_load (&points ()->newest) != 0)
    sched_yield ();
  wait_for_waits (2);
  begin (&other);
  wait_for_answer (&other);
  finish (&copies);
  finish (&other);
  check_sector (0, 0xa1);
  check_sector (2048, 0xa2);
  image_close_disk (point);
  end ();
}

/* Write elsewhere until that has gone to this host cluster, which was given up. */
static void
use_again (uint64_t host)
{
  bool used = false;
  unsigned tries;
  uint64_t i;

  for (tries = 0; tries < 1000 && !used; ++tries) {
    rig_trim (&rig, 20 * CLUSTER, 8 * CLUSTER);
    rig_flush (&rig); /* what was given up is durably so ... */
    rig_flush (&rig); /* ... and so is its refcount */
    for (i = 20; i < 28; ++i) {
      rig_write (&rig, i * CLUSTER, CLUSTER, i);
      used |= rig_host (&rig, i * CLUSTER) == host;
    }
  }
  CHECK (used);
}

/* A step has read the entries of a slice; then another one, which had no memory to
 * capture them, changes some, and gives up what they referred to.  With memory
 * again they must not be captured as they were: it would be given up twice.
 */
static void
test_captured_late (void)
{
  struct request late = { .at = 5 * CLUSTER, .value = 0xa0,
                          .stop = BEFORE_CAPTURE };
  struct layer *point;
  uint64_t host;

  start (1 << 20);
  rig_trim (&rig, 20 * CLUSTER, 8 * CLUSTER);
  host = rig_host (&rig, 0);
  point = open_point ();
  begin (&late);
  points ()->max_bytes = 0;
  write_sector (0, 0xa1);
  points ()->max_bytes = 1 << 20;
  atomic_store (&no_release, true);
  finish (&late);
  use_again (host);
  atomic_store (&no_release, false);
  wait_for_end ();
  check_sector (0, 0xa1);
  check_sector (5 * CLUSTER, 0xa0);
  image_close_disk (point);
  end ();
}

static void *
open_main (void *opaque)
{
  opens = true;
  *(struct layer **) opaque = image_open_disk (rig.im, IMAGE_POINT_PREFIX "new");
  return NULL;
}

/* One is being taken while another one fails, in the place of one that had failed
 * before: that it did must not end the new one.  It is taken after what failed was
 * looked at, and before that is ended.
 */
static void
test_taken_beside (void)
{
  struct request fails = { .at = 8 * CLUSTER, .value = 0xa0,
                           .stop = BEFORE_CAPTURE };
  struct request holds = { .at = 5 * CLUSTER, .value = 0xa1,
                           .stop = BEFORE_CAPTURE };
  struct layer *first, *second, *new = NULL;
  pthread_t thread;
  uint8_t buf[512];

  start (2000);
  first = open_point ();
  second = image_open_disk (rig.im, IMAGE_POINT_PREFIX "two");
  write_sector (9 * CLUSTER, 1);
  image_close_disk (first);
  image_close_disk (second);
  wait_for_end ();
  first = image_open_disk (rig.im, IMAGE_POINT_PREFIX "three");
  begin (&fails);
  begin (&holds);
  pthread_create (&thread, NULL, open_main, &new);
  while (!atomic_load (&rig.im->gate.closed))
    sched_yield ();
  atomic_store (&nr_waits, 0);
  atomic_store (&taken, false);
  atomic_store (&end_after_taken, true);
  finish (&fails);
  wait_for_waits (1);
  finish (&holds);
  pthread_join (thread, NULL);
  CHECK (atomic_load (&taken));
  atomic_store (&end_after_taken, false);
  wait_for_end ();
  points ()->max_bytes = 1 << 20;
  write_sector (0, 0xa2);
  CHECK (new != NULL);
  CHECK_OK (layer_read (new, buf, sizeof buf, (struct guest_off) { 0 }));
  CHECK (memcmp (buf, was, sizeof buf) == 0);
  image_close_disk (first);
  image_close_disk (new);
  end ();
}

/* None is taken before what failed ones had is given up, and memory is there. */
static void
test_taken_while_ending (void)
{
  struct layer *failed, *new = NULL;
  pthread_t thread;

  start (1 << 20);
  failed = open_point ();
  write_sector (0, 0xa1);
  CHECK (atomic_load (&points ()->bytes) > 0);
  atomic_store (&no_release, true);
  image_points_fail (rig.im);
  while (!atomic_load (&release_waits))
    sched_yield ();
  atomic_store (&waits_or_has_taken, false);
  pthread_create (&thread, NULL, open_main, &new);
  while (!atomic_load (&waits_or_has_taken))
    sched_yield ();
  atomic_store (&no_release, false);
  pthread_join (thread, NULL);
  CHECK_EQ (bytes_when_taken, 0);
  image_close_disk (failed);
  image_close_disk (new);
  end ();
}

/* What can't be given up, as nothing can be written any more, is leaked: the file
 * must not be closed as if it had no leaks.
 */
static void
test_leaked (void)
{
  struct layer *point;
  struct writer *w;

  start (1 << 20);
  w = rig.im->writer;
  point = open_point ();
  write_sector (0, 0xa1);
  writeback_fail (&w->writeback);
  CHECK (!atomic_load (&w->leaked));
  image_close_disk (point);
  wait_for_end ();
  CHECK_EQ (atomic_load (&points ()->bytes), 0);
  CHECK (atomic_load (&w->leaked));
  rig.control.hook = NULL;
  CHECK_EQ (rig_close_only (&rig), -1);
  free (was);
  rig_free (&rig);
}

/* A step copies a cluster, as a shadow has it, which is not needed any more. */
static void
test_release (void)
{
  struct request copies = { .at = 0, .value = 0xa1, .stop = AT_DATA };
  struct request other = { .at = 2048, .value = 0xa2 };
  struct layer *point;

  start (1 << 20);
  point = open_point ();
  begin (&copies);
  image_close_disk (point);
  while (!somebody_waits () && atomic_load (&points ()->bytes) > 0)
    sched_yield ();
  begin (&other);
  wait_for_answer (&other);
  finish (&copies);
  finish (&other);
  check_sector (0, 0xa1);
  check_sector (2048, 0xa2);
  end ();
}

/* A request has looked up where a cluster is; then this is replaced, since a point
 * has it, and the point ends.
 */
static void
test_looked_up (void)
{
  struct request other = { .at = 2048, .value = 0xa2, .stop = AFTER_LOOKUP };
  struct layer *point;

  start (1 << 20);
  point = open_point ();
  begin (&other);
  write_sector (0, 0xa1);
  image_close_disk (point);
  while (atomic_load (&points ()->bytes) > 0)
    sched_yield ();
  wait_for_waits (1);
  finish (&other);
  check_sector (0, 0xa1);
  check_sector (2048, 0xa2);
  end ();
}

/* A reader of a point that fails gets what it had, or an error. */
static void
test_reader (void)
{
  struct request reader = { .at = 0, .stop = AT_DATA };
  struct layer *point;
  uint8_t buf[512];

  start (2000);
  point = open_point ();
  CHECK_OK (layer_read (point, buf, sizeof buf, (struct guest_off) { 0 }));
  reader.point = point;
  begin (&reader);
  write_sector (8 * CLUSTER, 0xa0);
  wait_for_waits (1);
  write_sector (0, 0xa1);
  finish (&reader);
  CHECK (memcmp (reader.read, was, sizeof reader.read) == 0);
  check_sector (0, 0xa1);
  image_close_disk (point);
  end ();
}

/* Before the image is writable nothing is held when one has ended. */
static void
test_no_writer (void)
{
  const struct writer_options options = { 0 };

  start (1 << 20);
  rig.control.hook = NULL;
  rig_close (&rig);
  rig.im = image_open_storage (memory_disk_open (&rig.disk, "test",
                                                 &rig.control),
                               CACHE_MIN_BYTES);
  CHECK_OK (image_allow_points (rig.im, 0, 1 << 20));
  rig.live = image_open_disk (rig.im, "");
  image_close_disk (open_point ());
  wait_for_end ();
  CHECK (!points_are_held (points ()));
  CHECK_OK (image_make_writable (rig.im, &options));
  write_sector (0, 0xa1);
  check_sector (0, 0xa1);
  end ();
}

int
main (void)
{
  check_time_limit (60);
  test_failed_step ();
  test_captured_late ();
  test_taken_beside ();
  test_taken_while_ending ();
  test_leaked ();
  test_release ();
  test_looked_up ();
  test_reader ();
  test_no_writer ();
  return check_result ();
}
