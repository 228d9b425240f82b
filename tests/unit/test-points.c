/* SPDX-License-Identifier: BSD-3-Clause */

/* Points in time beside threads that write; for ThreadSanitizer, too.
 * TEST_SECONDS says for how long.
 *
 * Each writer has sectors of its own, in turns in the same clusters, and numbers
 * its writes.  A point must have a prefix of each writer's: each sector as the
 * last write of that prefix left it.  And the prefixes must be such that all
 * writes in them could have been answered before all others began: no write that
 * is missing was answered before one that is there began, nor before the point
 * was asked for; and none that is there began after it was had.  Others trim and
 * fill a part of the disk, so that what a point has would soon be reused.
 *
 * Then what ends a point, and what can't be had.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "must-have.h"
#include "random.h"
#include "rig.h"
#include "seconds.h"

#define SECTOR 512
#define WRITERS 3
#define OWN 96          /* sectors of each writer */
#define MAX_WRITES 200000
#define HELD 3          /* points at one time */

static struct rig rig;
static double until;
static _Atomic uint64_t test_clock;
static uint64_t nr_points;
static uint8_t *scratch; /* of the disk's size */

/* --------------------------------------------------------------------- image */

struct form {
  unsigned version, bits;
  bool extended, backing, snapshot;
  unsigned compress;
};

/* Clusters of all kinds; the sectors of writers are in the first ones. */
#define CLUSTERS 600

static uint64_t
clusters_of (const struct form *f)
{
  return f->bits >= 16 ? 40 : f->bits >= 14 ? 120 : CLUSTERS;
}

static void
build (const struct form *f, struct builder *b)
{
  const uint64_t nr = clusters_of (f), size = nr << f->bits;
  uint64_t i, state = 1;

  build_start (b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE, size);
  for (i = 0; i < nr; i += 2) {
    build_l2_place (b, i);
    build_entry (b, i, build_data (b, 1), f->extended ? UINT32_MAX : 0);
  }
  if (f->backing)
    build_backing (b, "raw");
  if (f->snapshot)
    build_snapshot (b, 50, &state);
  build_finish (b);
}

static void
start (const struct form *f, uint64_t memory)
{
  static char what[100];
  const uint64_t size = clusters_of (f) << f->bits;
  struct builder b;

  snprintf (what, sizeof what, "v%u, clusters of 2^%u%s%s%s%s", f->version,
            f->bits, f->extended ? ", extended" : "",
            f->backing ? ", backing" : "", f->snapshot ? ", snapshot" : "",
            f->compress ? ", compressed" : "");
  build (f, &b);
  rig_init (&rig, what, &b);
  build_free (&b);
  if (f->backing) {
    uint8_t *base = must_have (malloc (size));

    memset (base, 7, size);
    rig_set_base (&rig, base, size, true);
  }
  rig.options.compress_level = f->compress;
  rig_open (&rig);
  scratch = must_have (malloc (rig.size));
  CHECK_OK (image_allow_points (rig.im, 0, memory));
}

/* rig_close holds that there are no leaks. */
static void
end (void)
{
  rig_close (&rig);
  free (scratch);
  free ((void *) rig.base);
  rig_free (&rig);
}

/* -------------------------------------------------------------------- writers */

struct write {
  uint64_t begun, answered;
  unsigned first, nr; /* sectors of its writer's */
};

static struct writer_log {
  _Atomic uint64_t nr; /* writes that have begun */
  struct write write[MAX_WRITES + 1]; /* from 1 on */
} logs[WRITERS];

/* Blocks of four sectors in turns, so that clusters are shared. */
static uint64_t
place_of (unsigned writer, unsigned sector)
{
  return ((sector / 4 * WRITERS + writer) * 4 + sector % 4) *
    (uint64_t) SECTOR;
}

static void
fill_stamp (uint8_t *sector, unsigned writer, uint64_t number)
{
  unsigned i;

  for (i = 0; i < SECTOR; i += 8)
    put_be64 (sector + i, number << 16 | (uint64_t) writer << 8 | i / 8);
}

static void *
writer_main (void *opaque)
{
  const unsigned me = (uintptr_t) opaque;
  struct writer_log *l = &logs[me];
  uint64_t state = mix (me + 5), number;
  uint8_t buf[4 * SECTOR];
  unsigned i;

  for (number = 1; number < MAX_WRITES && seconds () < until &&
         !check_any_failed (); ++number) {
    struct write *w = &l->write[number];

    w->first = random_below (&state, OWN);
    w->nr = 1 + random_below (&state, 4 - w->first % 4);
    for (i = 0; i < w->nr; ++i)
      fill_stamp (buf + i * SECTOR, me, number);
    w->answered = UINT64_MAX;
    w->begun = atomic_fetch_add (&test_clock, 1);
    atomic_store (&l->nr, number);
    CHECK_OK (image_write (rig.im, buf, w->nr * SECTOR, (struct guest_off) {
          place_of (me, w->first) }, number % 64 == 0 ? IMAGE_FUA : 0));
    __atomic_store_n (&w->answered, atomic_fetch_add (&test_clock, 1),
                      __ATOMIC_SEQ_CST);
  }
  return NULL;
}

/* Behind the writers' part: what is trimmed and filled. */
static uint64_t
rest_of_disk (void)
{
  return (rig.size / 2 + 65535) / 65536 * 65536;
}

static void *
churn_main (void *opaque)
{
  const uint64_t from = rest_of_disk (), left = rig.size - from;
  uint64_t state = 3;
  uint8_t *buf = must_have (malloc (65536));

  (void) opaque;
  while (seconds () < until && !check_any_failed ()) {
    const struct guest_off at = { from + random_below (&state, left) };
    uint64_t count = 1 + random_below (&state, 65536);

    if (count > rig.size - at.v)
      count = rig.size - at.v;
    switch (random_below (&state, 4)) {
    case 0:
      CHECK_OK (image_trim (rig.im, count, at, 0));
      break;
    case 1:
      CHECK_OK (image_zero (rig.im, count, at, random_below (&state, 2)
                            ? IMAGE_MAY_TRIM : 0));
      break;
    case 2:
      if (random_below (&state, 8) == 0)
        CHECK_OK (image_flush (rig.im));
      break;
    default:
      random_fill (&state, buf, 64);
      memset (buf + 64, buf[0], 65536 - 64);
      CHECK_OK (image_write (rig.im, buf, count, at, 0));
    }
  }
  free (buf);
  return NULL;
}

/* --------------------------------------------------------------------- points */

struct held {
  struct layer *disk;
  uint8_t *content; /* as it was read first */
};

/* The prefix of a writer's writes that the content has.  Returns -1 if it has
 * none.
 */
static int64_t
prefix_of (const uint8_t *content, unsigned writer)
{
  uint64_t stamp[OWN], last[OWN] = { 0 }, prefix = 0, n;
  uint8_t whole[SECTOR];
  unsigned i;

  for (i = 0; i < OWN; ++i) {
    const uint8_t *p = content + place_of (writer, i);

    stamp[i] = get_be64 (p) >> 16;
    if ((get_be64 (p) & 0xffff) != (uint64_t) writer << 8 ||
        stamp[i] > logs[writer].nr)
      stamp[i] = 0; /* what was there at first */
    fill_stamp (whole, writer, stamp[i]);
    if (stamp[i] != 0 && memcmp (whole, p, SECTOR) != 0)
      return -1;
    if (stamp[i] > prefix)
      prefix = stamp[i];
  }
  for (n = 1; n <= prefix; ++n) {
    const struct write *w = &logs[writer].write[n];

    for (i = 0; i < w->nr; ++i)
      last[w->first + i] = n;
  }
  return memcmp (stamp, last, sizeof stamp) == 0 ? (int64_t) prefix : -1;
}

static void
check_linear (const uint8_t *content, uint64_t asked, uint64_t had)
{
  uint64_t last_begun = 0, first_answered = UINT64_MAX;
  unsigned i;

  for (i = 0; i < WRITERS; ++i) {
    const int64_t n = prefix_of (content, i);
    const struct write *w = &logs[i].write[n < 0 ? 0 : n];
    uint64_t answered = UINT64_MAX;

    CHECK (n >= 0);
    if (n > 0 && w->begun > last_begun)
      last_begun = w->begun;
    if ((uint64_t) n < logs[i].nr)
      answered = __atomic_load_n (&w[1].answered, __ATOMIC_SEQ_CST);
    if (answered < first_answered)
      first_answered = answered;
  }
  CHECK (last_begun < had);
  CHECK (first_answered > asked);
  CHECK (first_answered > last_begun);
}

static void
read_point (const struct layer *disk, uint8_t *buf)
{
  CHECK_OK (layer_read (disk, buf, rig.size, (struct guest_off) { 0 }));
}

static void
take (struct held *h)
{
  char name[40];
  uint64_t asked, had;

  snprintf (name, sizeof name, IMAGE_POINT_PREFIX "%" PRIu64, nr_points++);
  asked = atomic_fetch_add (&test_clock, 1);
  h->disk = image_open_disk (rig.im, name);
  had = atomic_fetch_add (&test_clock, 1);
  CHECK (h->disk != NULL);
  if (h->disk == NULL)
    return;
  h->content = must_have (malloc (rig.size));
  read_point (h->disk, h->content);
  check_linear (h->content, asked, had);
}

static void
check_same (const struct held *h)
{
  read_point (h->disk, scratch);
  CHECK (memcmp (scratch, h->content, rig.size) == 0);
}

static void
give_up (struct held *h)
{
  image_close_disk (h->disk);
  free (h->content);
  *h = (struct held) { 0 };
}

static void
test_threads (const struct form *f, double length)
{
  pthread_t thread[WRITERS + 1];
  struct held held[HELD] = { { 0 } };
  uint64_t state = 8;
  uintptr_t i;

  nr_points = 0;
  for (i = 0; i < WRITERS; ++i)
    logs[i].nr = 0;
  start (f, 16 << 20);
  until = seconds () + length;
  for (i = 0; i < WRITERS; ++i)
    pthread_create (&thread[i], NULL, writer_main, (void *) i);
  pthread_create (&thread[WRITERS], NULL, churn_main, NULL);
  while (seconds () < until && !check_any_failed ()) {
    struct held *h = &held[random_below (&state, HELD)];

    if (h->disk == NULL)
      take (h);
    else if (random_below (&state, 2))
      check_same (h);
    else
      give_up (h);
  }
  for (i = 0; i <= WRITERS; ++i)
    pthread_join (thread[i], NULL);
  for (i = 0; i < HELD; ++i) {
    if (held[i].disk == NULL)
      continue;
    check_same (&held[i]);
    give_up (&held[i]);
  }
  printf ("%s: %" PRIu64 " points\n", rig.what, nr_points);
  end ();
}

/* --------------------------------------------------------------- what ends one */

static struct layer *
open_point (const char *token)
{
  char name[64];

  snprintf (name, sizeof name, IMAGE_POINT_PREFIX "%s", token);
  return image_open_disk (rig.im, name);
}

static void
wait_for_end (void)
{
  while (!image_points_have_ended (rig.im))
    sched_yield ();
}

static const struct form plain = { .version = 3, .bits = 12 };

static void
test_tokens (void)
{
  struct layer *a, *b, *many[9];
  unsigned i;
  char name[8];

  start (&plain, 1 << 20);
  a = open_point ("one");
  rig_write (&rig, 0, 4096, 77);
  b = open_point ("one"); /* the same */
  CHECK (a != NULL && b != NULL);
  CHECK_OK (layer_read (b, scratch, 4096, (struct guest_off) { 0 }));
  CHECK (memcmp (scratch, rig.content, 4096) != 0);
  image_close_disk (a);
  CHECK (image_points_have_ended (rig.im)); /* there is still one */
  image_close_disk (b);
  wait_for_end ();
  CHECK (open_point ("one") == NULL);
  CHECK_ERROR (ESTALE, "has ended");
  CHECK (open_point ("") == NULL);
  CHECK_ERROR (EINVAL, "token");
  CHECK (open_point ("a/b") == NULL);
  CHECK_ERROR (EINVAL, "token");
  for (i = 0; i < 9; ++i) {
    snprintf (name, sizeof name, "%u", i);
    many[i] = open_point (name);
    CHECK ((many[i] != NULL) == (i < 8));
  }
  CHECK_ERROR (EBUSY, "test: there are 8 points in time");
  image_close_disk (many[3]);
  wait_for_end ();
  many[3] = open_point ("again");
  CHECK (many[3] != NULL);
  for (i = 0; i < 8; ++i)
    image_close_disk (many[i]);
  end ();
}

/* It lasts after the last one was closed, and ends with the image. */
static void
test_linger (void)
{
  struct layer *a;

  start (&plain, 1 << 20);
  rig_close (&rig);
  rig_open (&rig);
  CHECK_OK (image_allow_points (rig.im, 1000, 1 << 20));
  image_close_disk (open_point ("one"));
  rig_write (&rig, 0, 4096, 77);
  a = open_point ("one");
  CHECK (a != NULL);
  CHECK_OK (layer_read (a, scratch, 4096, (struct guest_off) { 0 }));
  CHECK (memcmp (scratch, rig.content, 4096) != 0);
  image_close_disk (a);
  end ();
}

/* Memory for less than what changes: readers are told, the guest is not. */
static void
test_memory (void)
{
  const struct form f = { .version = 3, .bits = 9, .snapshot = true };
  struct layer *a, *b;
  uint64_t i;

  start (&f, 2000); /* two shadows of 512 bytes */
  a = open_point ("one");
  b = open_point ("one");
  for (i = 0; i + 512 <= rig.size; i += 512)
    rig_write (&rig, i, 512, i);
  rig_trim (&rig, 0, rig.size / 2);
  wait_for_end ();
  CHECK (layer_read (a, scratch, rig.size,
                     (struct guest_off) { 0 }) == -1);
  CHECK_ERROR (EIO, "could not be kept");
  CHECK (layer_read (b, scratch, 512, (struct guest_off) { 0 }) == -1);
  CHECK (error_repeated ());
  CHECK (open_point ("one") == NULL);
  CHECK_ERROR (EIO, "could not be kept");
  image_close_disk (a);
  a = open_point ("two"); /* what the first held is given back */
  rig_write (&rig, 0, 512, 1);
  CHECK_OK (layer_read (a, scratch, rig.size, (struct guest_off) { 0 }));
  image_close_disk (a);
  image_close_disk (b);
  wait_for_end ();
  CHECK (open_point ("one") == NULL);
  CHECK_ERROR (ESTALE, "has ended");
  a = open_point ("three");
  for (i = 0; i + 512 <= rig.size; i += 512)
    rig_write (&rig, i, 512, i);
  CHECK (layer_read (a, scratch, 512, (struct guest_off) { 0 }) == -1);
  CHECK_ERROR (EIO, "could not be kept");
  CHECK (!error_repeated ()); /* another one: it is reported, too */
  image_close_disk (a);
  wait_for_end ();
  rig_compare (&rig);
  end ();
}

/* The first write to a cluster goes elsewhere; the next ones stay there, until
 * there is another point; and the old place is free when all have ended.
 */
static void
test_places (void)
{
  const uint64_t at = 0;
  struct layer *a, *b;
  uint64_t first, second, third;

  start (&plain, 1 << 20);
  first = rig_host (&rig, at);
  a = open_point ("one");
  rig_write (&rig, at + 100, 200, 1);
  second = rig_host (&rig, at);
  CHECK (second != first);
  rig_write (&rig, at + 1000, 200, 2);
  CHECK_EQ (rig_host (&rig, at), second);
  b = open_point ("two");
  rig_write (&rig, at + 2000, 200, 3);
  third = rig_host (&rig, at);
  CHECK (third != second && third != first);
  image_close_disk (a);
  wait_for_end ();
  rig_flush (&rig); /* what was given up is durably so ... */
  rig_flush (&rig); /* ... and so is its refcount */
  CHECK_EQ (rig_refcount (&rig, first), 0);
  CHECK_EQ (rig_refcount (&rig, second), 1);
  image_close_disk (b);
  wait_for_end ();
  rig_flush (&rig);
  rig_flush (&rig);
  CHECK_EQ (rig_refcount (&rig, second), 0);
  rig_write (&rig, at + 3000, 200, 4);
  CHECK_EQ (rig_host (&rig, at), third);
  rig_compare (&rig);
  end ();
}

/* Before the image is writable there is nothing to keep, and after it is. */
static void
test_before_writer (void)
{
  const struct writer_options options = { 0 };
  struct layer *a;
  uint8_t *was;

  start (&plain, 1 << 20);
  was = must_have (malloc (rig.size));
  CHECK_OK (layer_read (rig.live, was, rig.size, (struct guest_off) { 0 }));
  rig_close (&rig);
  rig.im = image_open_storage (memory_disk_open (&rig.disk, "test", &rig.control),
                               CACHE_MIN_BYTES);
  CHECK_OK (image_allow_points (rig.im, 0, 1 << 20));
  rig.live = image_open_disk (rig.im, "");
  a = open_point ("one");
  CHECK_OK (image_make_writable (rig.im, &options));
  rig_write (&rig, 0, rig.size, 1);
  CHECK_OK (layer_read (a, scratch, rig.size, (struct guest_off) { 0 }));
  CHECK (memcmp (scratch, was, rig.size) == 0);
  image_close_disk (a);
  free (was);
  end ();
}

/* A repair, at the first client that writes, may change what points have. */
static void
test_repair (void)
{
  char summary[1024];
  struct builder b;
  struct layer *a;

  build (&plain, &b);
  put_be64 (b.data + 72, QCOW2_INCOMPAT_DIRTY);
  rig_init (&rig, "dirty", &b);
  build_free (&b);
  rig.im = image_open_storage (memory_disk_open (&rig.disk, "test",
                                                 &rig.control),
                               CACHE_MIN_BYTES);
  CHECK_OK (image_allow_points (rig.im, 0, 1 << 20));
  a = open_point ("one");
  scratch = must_have (malloc (512));
  CHECK_OK (layer_read (a, scratch, 512, (struct guest_off) { 0 }));
  CHECK_OK (image_repair (rig.im, IMAGE_REPAIR_DIRTY, summary,
                          sizeof summary));
  CHECK (layer_read (a, scratch, 512, (struct guest_off) { 0 }) == -1);
  CHECK_ERROR (EIO, "was repaired");
  image_close_disk (a);
  end ();
}

/* ---------------------------------------------------------- the search for leaks */

/* Reads by other threads than this one wait until it lets them go on. */
static struct {
  pthread_t me;
  _Atomic bool stop, stopped;
} search;

static void
stop_others (void *opaque, const struct memory_call *call)
{
  (void) opaque;
  if (call->kind != MEMORY_READ || pthread_equal (pthread_self (), search.me))
    return;
  while (atomic_load (&search.stop)) {
    atomic_store (&search.stopped, true);
    sched_yield ();
  }
}

static void
wait_for_search (void)
{
  while (!image_leaks_are_done (rig.im))
    sched_yield ();
}

/* A point has a cluster that no table refers to any more: before the search for
 * leaks begins, or since it has.
 */
static void
test_leaks (bool before)
{
  struct layer *a;
  uint64_t host;

  start (&plain, 1 << 20);
  host = rig_host (&rig, 0);
  a = open_point ("one");
  search.me = pthread_self ();
  rig.control.hook = stop_others;
  search.stop = !before;
  if (!before) {
    image_free_leaks (rig.im);
    while (!search.stopped)
      sched_yield ();
  }
  rig_write (&rig, 0, 4096, 77);
  rig_flush (&rig);
  search.stop = false;
  if (before)
    image_free_leaks (rig.im);
  wait_for_search ();
  rig_flush (&rig);
  rig_flush (&rig);
  CHECK_EQ (rig_refcount (&rig, host), 1);
  image_close_disk (a);
  wait_for_end ();
  rig_flush (&rig);
  rig_flush (&rig);
  CHECK_EQ (rig_refcount (&rig, host), 0);
  rig.control.hook = NULL;
  end ();
}

/* --------------------------------------------------------------------- readers */

/* A change is made right after a reader of the point has looked for a shadow,
 * before it looks at the tables.
 */
static bool change_meanwhile;

int __real_cache_get (struct cache *c, struct storage *s, unsigned id,
                      struct host_off offset, uint32_t slice_bytes,
                      uint64_t ahead, struct cache_ref *ref);
int __wrap_cache_get (struct cache *c, struct storage *s, unsigned id,
                      struct host_off offset, uint32_t slice_bytes,
                      uint64_t ahead, struct cache_ref *ref);

int
__wrap_cache_get (struct cache *c, struct storage *s, unsigned id,
                  struct host_off offset, uint32_t slice_bytes, uint64_t ahead,
                  struct cache_ref *ref)
{
  if (change_meanwhile) {
    change_meanwhile = false;
    rig_write (&rig, 0, 512, 99);
  }
  return __real_cache_get (c, s, id, offset, slice_bytes, ahead, ref);
}

static void
test_meanwhile (void)
{
  uint8_t was[512];
  struct layer *a;

  start (&plain, 1 << 20);
  a = open_point ("one");
  memcpy (was, rig.content, sizeof was);
  change_meanwhile = true;
  CHECK_OK (layer_read (a, scratch, 512, (struct guest_off) { 0 }));
  CHECK (!change_meanwhile);
  CHECK (memcmp (scratch, was, 512) == 0);
  CHECK (memcmp (rig.content, was, 512) != 0);
  image_close_disk (a);
  end ();
}

int
main (void)
{
  static const struct form forms[] = {
    { .version = 3, .bits = 9 },
    { .version = 3, .bits = 12, .snapshot = true },
    { .version = 2, .bits = 12, .backing = true },
    { .version = 3, .bits = 16, .snapshot = true },
    { .version = 3, .bits = 14, .extended = true, .backing = true },
    { .version = 3, .bits = 12, .compress = 1, .snapshot = true },
  };
  const double length = test_seconds (3) / (sizeof forms / sizeof forms[0]);
  unsigned i;

  check_time_limit (600);
  test_tokens ();
  test_linger ();
  test_memory ();
  test_places ();
  test_before_writer ();
  test_repair ();
  test_leaks (true);
  test_leaks (false);
  test_meanwhile ();
  for (i = 0; i < sizeof forms / sizeof forms[0] && !check_any_failed (); ++i)
    test_threads (&forms[i], length);
  return check_result ();
}
