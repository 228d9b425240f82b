/* SPDX-License-Identifier: BSD-3-Clause */

/* Parallel requests on few clusters, so that they meet all the time; for
 * ThreadSanitizer, too.  TEST_SECONDS says for how long.
 *
 * First each thread has sectors of its own, that lie in turns in the same
 * clusters: it knows what they hold, byte by byte.  Then all write everywhere,
 * whole sectors with a stamp; and what is read must be a stamp that was
 * written there, by a write that no other has replaced before the read began.
 *
 * test-compress-threads is the same with TEST_COMPRESS: clusters are
 * compressed.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "random.h"
#include "rig.h"
#include "seconds.h"

#ifndef TEST_COMPRESS
#define TEST_COMPRESS 0
#endif

#define SECTOR 512
#define MAX_SECTORS 4096
#define THREADS 4

static struct rig rig;
static double until;
static _Atomic uint64_t nr_requests, nr_reads;
static uint64_t nr_sectors, cluster_size;
static bool trims; /* those of whole clusters take effect */

/* ------------------------------------------------------------------ stamps */

static void
fill_stamp (uint8_t *sector, uint64_t stamp)
{
  unsigned i;

  for (i = 0; i < SECTOR; i += 8)
    put_be64 (sector + i, stamp == 0 ? 0 : stamp + i);
}

/* The stamp of a sector; UINT64_MAX if it is torn. */
static uint64_t
stamp_of (const uint8_t *sector)
{
  const uint64_t stamp = get_be64 (sector);
  uint8_t whole[SECTOR];

  fill_stamp (whole, stamp);
  return memcmp (sector, whole, SECTOR) == 0 ? stamp : UINT64_MAX;
}

/* Stamps of what is there at first are made of the sector's number. */
static uint64_t
first_stamp (uint64_t sector)
{
  return UINT64_C (1) << 60 | sector << 16;
}

static void
fill_first (uint8_t *p, uint64_t at, uint64_t count)
{
  uint64_t i;

  for (i = 0; i < count; i += SECTOR)
    fill_stamp (p + i, first_stamp ((at + i) / SECTOR));
}

/* ------------------------------------------------------------------- image */

struct form {
  unsigned version, bits;
  bool extended, backing;
  unsigned snapshots;
  uint64_t clusters;
  uint64_t cache_size;
};

static void
add_cluster (struct builder *b, uint64_t cluster)
{
  const uint64_t at = cluster * cluster_size;
  uint8_t *plain = malloc (cluster_size);
  uint64_t host;

  build_l2_place (b, cluster);
  fill_first (plain, at, cluster_size);
  switch (cluster % 6) {
  case 0: case 1:
    host = build_clusters (b, 1);
    memcpy (b->data + host, plain, cluster_size);
    build_entry (b, cluster, host, b->extended ? UINT32_MAX : 0);
    break;
  case 2:
    build_compressed (b, cluster, plain, 10);
    break;
  case 3:
    if (b->extended) {
      host = build_clusters (b, 1);
      memcpy (b->data + host, plain, cluster_size);
      build_entry (b, cluster, host, UINT64_C (0x00ffff00ff0000ff));
    }
    else if (b->version >= 3)
      build_entry (b, cluster, build_data (b, 1) | QCOW2_L2_ZERO, 0);
    break;
  default: /* none */
    break;
  }
  free (plain);
}

static void
start (const struct form *f)
{
  static char what[100];
  struct builder b;
  uint64_t state = 1, i, size;
  uint8_t *base = NULL;

  cluster_size = UINT64_C (1) << f->bits;
  trims = f->version >= 3 || !f->backing;
  size = f->clusters * cluster_size - (f->bits > 10 ? 1024 : 0);
  nr_sectors = size / SECTOR;
  snprintf (what, sizeof what, "v%u, clusters of 2^%u%s%s, %u snapshots",
            f->version, f->bits, f->extended ? ", extended" : "",
            f->backing ? ", backing" : "", f->snapshots);
  build_start (&b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE,
               size);
  for (i = 0; i < f->clusters; ++i)
    add_cluster (&b, i);
  if (f->backing)
    build_backing (&b, "raw");
  for (i = 0; i < f->snapshots; ++i)
    build_snapshot (&b, 50 * i, &state);
  build_finish (&b);
  rig_init (&rig, what, &b);
  build_free (&b);
  if (f->backing) {
    base = malloc (size);
    fill_first (base, 0, size);
    rig_set_base (&rig, base, size - cluster_size, true);
  }
  rig.cache_size = f->cache_size;
  rig.options.compress_level = TEST_COMPRESS;
  rig_open (&rig);
  nr_requests = nr_reads = 0;
}

static void
end (void)
{
  printf ("%s: %" PRIu64 " requests, %" PRIu64 " sectors read\n", rig.what,
          nr_requests, nr_reads);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  free ((void *) rig.base);
  rig_free (&rig);
}

/* Beside the others: flushes, and looks at everything. */
static int
ignore_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  return 0;
}

static void *
flush_main (void *opaque)
{
  uint64_t state = 99;
  unsigned n = 0;

  while (seconds () < until) {
    rig_flush (&rig);
    if (++n % 4 == 0)
      CHECK_OK (layer_extents (rig.live, rig.size, (struct guest_off) { 0 },
                               false, ignore_extent, NULL));
    usleep (random_below (&state, 300));
  }
  return NULL;
}

static void
run_threads (void *(*request_main) (void *))
{
  pthread_t thread[THREADS + 1];
  uintptr_t i;

  pthread_create (&thread[THREADS], NULL, flush_main, NULL);
  for (i = 0; i < THREADS; ++i)
    pthread_create (&thread[i], NULL, request_main, (void *) i);
  for (i = 0; i <= THREADS; ++i)
    pthread_join (thread[i], NULL);
}

/* ------------------------------------------------------- sectors of its own */

/* So many sectors of a thread follow each other. */
#define OWN 3

static void
own_request (uint64_t *state, uint64_t me)
{
  const uint64_t blocks = nr_sectors / OWN / THREADS;
  const uint64_t block = random_below (state, blocks) * THREADS + me;
  const uint64_t first = block * OWN * SECTOR;
  uint64_t from = random_below (state, OWN * SECTOR), count;

  if (random_below (state, 2))
    from = from / SECTOR * SECTOR;
  count = 1 + random_below (state, OWN * SECTOR - from);
  if (random_below (state, 2))
    count = OWN * SECTOR - from;
  switch (random_below (state, 8)) {
  case 0: case 1: case 2:
    rig_write (&rig, first + from, count, random_next (state));
    break;
  case 3:
    rig_zero (&rig, first + from, count, 0);
    break;
  case 4:
    rig_zero (&rig, first + from, count, IMAGE_MAY_TRIM);
    break;
  case 5:
    rig_trim (&rig, first + from, count);
    break;
  case 6:
    if (random_below (state, 8) == 0) {
      CHECK_OK (rig_try_write (&rig, first + from, count, random_next (state),
                               IMAGE_FUA));
      break;
    }
    /* Fall through. */
  default:
    rig_compare_range (&rig, first, OWN * SECTOR);
    nr_reads += OWN;
    return;
  }
  nr_requests++;
}

static void *
own_main (void *opaque)
{
  const uint64_t me = (uintptr_t) opaque;
  uint64_t state = mix (me + 1);

  while (seconds () < until && !check_any_failed ())
    own_request (&state, me);
  return NULL;
}

static void
test_own (const struct form *f, double length)
{
  start (f);
  until = seconds () + length;
  run_threads (own_main);
  rig_compare (&rig);
  end ();
}

/* ---------------------------------------------------------- sectors of all */

/* A value that a sector was given, and when: by the clock of the test, which
 * goes on by one at each beginning and end of a request.
 */
struct value {
  uint64_t stamp;
  uint64_t begun, ended; /* the write */
  uint64_t replaced;     /* when a write that began after that had ended */
};

#define NEVER UINT64_MAX
#define VALUES 24

struct sector {
  pthread_mutex_t lock;
  unsigned nr;
  uint64_t forgotten; /* the latest `replaced' of those that were dropped */
  struct value value[VALUES];
};

static struct sector sectors[MAX_SECTORS];
static _Atomic uint64_t test_clock;

static void
drop_oldest (struct sector *s)
{
  unsigned i, oldest = 0;

  for (i = 1; i < s->nr; ++i) {
    if (s->value[i].replaced < s->value[oldest].replaced)
      oldest = i;
  }
  if (s->value[oldest].replaced > s->forgotten)
    s->forgotten = s->value[oldest].replaced;
  s->value[oldest] = s->value[--s->nr];
}

static void
begin_values (uint64_t first, uint64_t nr, uint64_t stamp, uint64_t now)
{
  uint64_t i;

  for (i = first; i < first + nr; ++i) {
    struct sector *s = &sectors[i];

    pthread_mutex_lock (&s->lock);
    if (s->nr == VALUES)
      drop_oldest (s);
    s->value[s->nr++] = (struct value) { stamp, now, NEVER, NEVER };
    pthread_mutex_unlock (&s->lock);
  }
}

static void
end_values (uint64_t first, uint64_t nr, uint64_t begun, uint64_t now)
{
  uint64_t i;
  unsigned v;

  for (i = first; i < first + nr; ++i) {
    struct sector *s = &sectors[i];

    pthread_mutex_lock (&s->lock);
    for (v = 0; v < s->nr; ++v) {
      if (s->value[v].begun == begun)
        s->value[v].ended = now;
      else if (s->value[v].ended < begun && s->value[v].replaced == NEVER)
        s->value[v].replaced = now;
    }
    pthread_mutex_unlock (&s->lock);
  }
}

/* What was read by a read that began at that time. */
static void
check_value (uint64_t sector, uint64_t stamp, uint64_t begun)
{
  struct sector *s = &sectors[sector];
  bool found = false;
  unsigned v;

  if (stamp == UINT64_MAX) {
    check_failed (__FILE__, __LINE__, "%s: sector %" PRIu64 " is torn",
                  rig.what, sector);
    return;
  }
  pthread_mutex_lock (&s->lock);
  for (v = 0; v < s->nr && !found; ++v)
    found = s->value[v].stamp == stamp && s->value[v].replaced > begun;
  if (!found && s->forgotten <= begun) {
    const bool first = !check_any_failed ();

    check_failed (__FILE__, __LINE__, "%s: sector %" PRIu64 " holds 0x%"
                  PRIx64 " at time %" PRIu64, rig.what, sector, stamp, begun);
    for (v = 0; v < s->nr && first; ++v)
      fprintf (stderr, "  it may hold 0x%" PRIx64 ", written from %" PRIu64
               " to %" PRId64 ", replaced %" PRId64 "\n", s->value[v].stamp,
               s->value[v].begun, s->value[v].ended, s->value[v].replaced);
  }
  pthread_mutex_unlock (&s->lock);
}

static void
check_values (const uint8_t *buf, uint64_t first, uint64_t nr, uint64_t begun)
{
  uint64_t i;

  for (i = 0; i < nr; ++i)
    check_value (first + i, stamp_of (buf + i * SECTOR), begun);
  nr_reads += nr;
}

static void
read_sectors (uint64_t first, uint64_t nr)
{
  uint8_t *buf = malloc (nr * SECTOR);
  const uint64_t begun = ++test_clock;

  CHECK_OK (layer_read (rig.live, buf, nr * SECTOR, (struct guest_off) {
        first * SECTOR }));
  check_values (buf, first, nr, begun);
  free (buf);
}

static void
write_sectors (uint64_t first, uint64_t nr, uint64_t stamp, unsigned flags)
{
  uint8_t *buf = malloc (nr * SECTOR);
  const uint64_t begun = ++test_clock;
  uint64_t i;

  for (i = 0; i < nr; ++i)
    fill_stamp (buf + i * SECTOR, stamp);
  begin_values (first, nr, stamp, begun);
  CHECK_OK (image_write (rig.im, buf, nr * SECTOR, (struct guest_off) {
        first * SECTOR }, flags));
  end_values (first, nr, begun, ++test_clock);
  free (buf);
}

static void
zero_sectors (uint64_t first, uint64_t nr, unsigned flags)
{
  const uint64_t begun = ++test_clock;

  begin_values (first, nr, 0, begun);
  CHECK_OK (image_zero (rig.im, nr * SECTOR, (struct guest_off) {
        first * SECTOR }, flags));
  end_values (first, nr, begun, ++test_clock);
}

/* Whole clusters: others may be left as they are. */
static void
trim_sectors (uint64_t first, uint64_t nr, unsigned flags)
{
  const uint64_t unit = cluster_size / SECTOR, begun = ++test_clock;
  const uint64_t from = (first + unit - 1) / unit * unit;
  uint64_t to = first + nr;

  if (to != nr_sectors)
    to = to / unit * unit;
  if (from >= to)
    return;
  begin_values (from, to - from, 0, begun);
  CHECK_OK (image_trim (rig.im, (to - from) * SECTOR, (struct guest_off) {
        from * SECTOR }, flags));
  end_values (from, to - from, begun, ++test_clock);
}

static void
shared_request (uint64_t *state, uint64_t stamp)
{
  const uint64_t most = nr_sectors >> random_below (state, 9);
  const uint64_t first = random_below (state, nr_sectors);
  uint64_t nr = 1 + random_below (state, most + 1);
  const unsigned flags = random_below (state, 20) ? 0 : IMAGE_FUA;

  if (nr > nr_sectors - first)
    nr = nr_sectors - first;
  nr_requests++;
  switch (random_below (state, 8)) {
  case 0: case 1: case 2:
    write_sectors (first, nr, stamp, flags);
    break;
  case 3:
    zero_sectors (first, nr, flags);
    break;
  case 4:
    zero_sectors (first, nr, flags | IMAGE_MAY_TRIM);
    break;
  case 5:
    if (trims)
      trim_sectors (first, nr, flags);
    break;
  default:
    read_sectors (first, nr);
    break;
  }
}

static void *
shared_main (void *opaque)
{
  const uint64_t me = (uintptr_t) opaque;
  uint64_t state = mix (me + 100), n = 0;

  while (seconds () < until && !check_any_failed ())
    shared_request (&state, (me + 1) << 48 | ++n << 16);
  return NULL;
}

static void
test_shared (const struct form *f, double length)
{
  uint64_t i;

  start (f);
  memset (sectors, 0, sizeof sectors);
  for (i = 0; i < nr_sectors; ++i) {
    const uint64_t stamp = stamp_of (rig.content + i * SECTOR);

    CHECK (stamp == 0 || stamp == first_stamp (i));
    pthread_mutex_init (&sectors[i].lock, NULL);
    sectors[i].nr = 1;
    sectors[i].value[0] = (struct value) { stamp, 0, 0, NEVER };
  }
  until = seconds () + length;
  run_threads (shared_main);
  read_sectors (0, nr_sectors);
  CHECK_OK (layer_read (rig.live, rig.content, rig.size, (struct guest_off) {
        0 }));
  rig_compare (&rig); /* the snapshots */
  end ();
}

static const struct form forms[] = {
  { 3, 9, false, true, 0, 200, CACHE_MIN_BYTES },
  { 3, 12, false, true, 2, 40, CACHE_MIN_BYTES },
  { 3, 16, false, false, 0, 12, 1 << 20 },
  { 3, 14, true, true, 1, 24, CACHE_MIN_BYTES },
  { 3, 16, true, false, 0, 12, 1 << 20 },
  { 2, 12, false, true, 1, 40, 1 << 20 },
};
#define NR_FORMS (sizeof forms / sizeof forms[0])

int
main (void)
{
  const double length = test_seconds (6) / NR_FORMS / 2;
  unsigned i;

  check_time_limit (200 + 3 * test_seconds (6));
  for (i = 0; i < NR_FORMS && !check_any_failed (); ++i) {
    test_own (&forms[i], length);
    test_shared (&forms[i], length);
  }
  return check_result ();
}
