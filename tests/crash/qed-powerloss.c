/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts of QED images, and storage that fails: as powerloss and failing do
 * for qcow2, in one program, with images, a reader and a judge of their own
 * (unit/qed-image.h).  Each seed is a workload.
 *
 *   qed-powerloss [SEEDS [FIRST]]
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "crash-storage.h"
#include "disk/read.h"
#include "history.h"
#include "image.h"
#include "memory-storage.h"
#include "must-have.h"
#include "power-cut.h"
#include "qed-image.h"
#include "random.h"

#define REQUESTS 40
#define THREADS 4
#define STRIPE 1024 /* bytes that one thread owns, in turn */
#define CUTS 60
#define TORN 3

static uint64_t seed, nr_states, nr_again, nr_faults, violations;

struct load {
  struct qed_image q;
  uint8_t *backing;
  uint64_t backing_size;
  struct qed_verdict before;
  uint8_t *initial, *buf;

  struct crash_disk disk;
  struct history history;
  pthread_mutex_t lock; /* of the history, and of buf */
  struct image *im;
  struct layer *live;
  unsigned threads;
  bool failing;         /* requests may fail */
  bool sticks;          /* I10: nothing may go well any more */
};

struct worker {
  struct load *l;
  unsigned number;
  uint64_t state;
};

static void __attribute__ ((__format__ (__printf__, 1, 2)))
violated (const char *fmt, ...)
{
  va_list ap;

  if (violations++ > 10)
    return;
  va_start (ap, fmt);
  fprintf (stderr, "seed %" PRIu64 ": ", seed);
  vfprintf (stderr, fmt, ap);
  fputc ('\n', stderr);
  va_end (ap);
}

/* ------------------------------------------------------------------ images */

static void
make_backing (struct load *l, uint64_t *state)
{
  l->backing_size = random_below (state, l->q.disk_size / 512 * 5 / 4) * 512;
  l->backing = must_have (calloc (1, l->backing_size + 1));
  content_fill_many (l->backing, l->backing_size, CONTENT_BACKING, 0, 0);
  if (l->backing_size > 65536 && random_below (state, 2))
    memset (l->backing + 8192, 0, 50000 / 512 * 512);
}

static void
make_image (struct load *l, uint64_t *state)
{
  const uint64_t size = UINT64_C (4096) << 2 * random_below (state, 2);
  const uint32_t table = 1 << random_below (state, 2);
  const uint64_t per_table = table * size / 8;
  const uint64_t clusters = 20 + random_below (state, 60);
  const bool over = random_below (state, 2);
  uint64_t i;

  /* Some disks reach into a second table. */
  const uint64_t far = random_below (state, 3) == 0 && size == 4096
    ? per_table - 10 : 0;

  qed_image_start (&l->q, size, table, 1 + random_below (state, 2),
                   (far + clusters) * size - random_below (state, 8) * 512,
                   over ? "base" : NULL);
  for (i = 0; i < clusters; ++i) {
    switch (random_below (state, 8)) {
    case 0:
    case 1:
      qed_image_data (&l->q, far + i, i);
      break;
    case 2:
      qed_image_zero (&l->q, far + i);
      break;
    }
  }
  if (random_below (state, 4) == 0)
    (void) qed_image_grow (&l->q, 1 + random_below (state, 3)); /* leaks */
  if (random_below (state, 4) == 0)
    qed_image_put (&l->q, 32, 8, 4); /* an unknown autoclear bit */
  if (random_below (state, 4) == 0) {
    const uint64_t end = qed_image_grow (&l->q, 1);

    memset (l->q.bytes + end, 'x', size); /* it ends within a cluster */
    l->q.size = end + size - 512;
  }
  if (over)
    make_backing (l, state);
  l->before = qed_image_judge (l->q.bytes, l->q.size);
  l->initial = must_have (malloc (l->q.disk_size));
  l->buf = must_have (malloc (l->q.disk_size));
  (void) qed_image_read (l->q.bytes, l->q.size, l->backing, l->backing_size,
                         l->initial);
}

static struct image *
open_image (struct load *l, struct crash_disk *disk)
{
  struct storage *s[2];

  s[0] = crash_storage_open (disk, "image");
  if (l->backing != NULL)
    s[1] = memory_storage_new ("base", l->backing, l->backing_size, NULL);
  return image_open_storages (s, l->backing != NULL ? 2 : 1, CACHE_MIN_BYTES);
}

static int
make_writable (struct image *im)
{
  const struct writer_options options = { 0 };
  char text[1024];

  return image_repair (im, IMAGE_REPAIR_DIRTY, text, sizeof text) == -1
    ? -1 : image_make_writable (im, &options);
}

/* ---------------------------------------------------------------- requests */

enum what { WRITE, ZERO, TRIM, FLUSH };

/* A range, in sectors: threads have stripes of their own, so that it is known
 * which request to a sector came last.
 */
static void
choose_range (struct worker *t, uint64_t *offset, uint64_t *count)
{
  const struct load *l = t->l;
  const uint64_t sectors = l->q.disk_size / 512;
  /* Where something happens. */
  const uint64_t from = sectors > 40 * 128
    ? sectors - 40 * l->q.cluster_size / 512 : 0;
  uint64_t n, at;

  if (l->threads > 1) {
    const uint64_t stripes = (sectors * 512 - from * 512) / STRIPE / THREADS;

    at = from * 512 / STRIPE + random_below (&t->state, stripes) * THREADS +
      t->number;
    *offset = at * STRIPE;
    *count = random_below (&t->state, 2) ? STRIPE : 512;
    return;
  }
  at = from + random_below (&t->state, sectors - from);
  n = 1 + random_below (&t->state, random_below (&t->state, 3) ? 24 : 300);
  if (random_below (&t->state, 3) == 0) { /* whole clusters */
    at = at * 512 / l->q.cluster_size * (l->q.cluster_size / 512);
    n = (1 + random_below (&t->state, 6)) * (l->q.cluster_size / 512);
  }
  if (n > sectors - at)
    n = sectors - at;
  *offset = at * 512;
  *count = n * 512;
}

static void
note_values (struct load *l, uint32_t number, uint64_t offset, uint64_t count,
             const uint8_t *bytes)
{
  static const uint8_t zeros[512];
  uint64_t i;

  for (i = 0; i < count; i += 512)
    history_value (&l->history, number, (offset + i) / 512,
                   bytes != NULL ? bytes + i : zeros);
}

static int
do_request (struct load *l, enum what what, const uint8_t *data,
            uint64_t offset, uint64_t count, unsigned flags)
{
  const struct guest_off at = { offset };

  switch (what) {
  case WRITE:
    return image_write (l->im, data, count, at, flags & IMAGE_FUA);
  case ZERO:
    return image_zero (l->im, count, at, flags);
  case TRIM:
    return image_trim (l->im, count, at, flags & IMAGE_FUA);
  case FLUSH:
    break;
  }
  return image_flush (l->im);
}

/* What a trim has left alone: what is read in its range is what is there.
 * False if that can't be read.
 */
static bool
note_trimmed (struct load *l, uint32_t number, uint64_t offset, uint64_t count)
{
  if (layer_read (l->live, l->buf, count, (struct guest_off) { offset }) == -1)
    return false;
  note_values (l, number, offset, count, l->buf);
  return true;
}

static void
expect_failure (struct load *l, int r)
{
  if (!l->failing && r == -1 && error_errno () != ENOTSUP)
    violated ("a request failed: %s", error_message ());
  if (l->sticks && r == 0)
    violated ("a request went well after a failed flush");
}

static void
flush (struct load *l)
{
  uint64_t moment;
  int r;

  pthread_mutex_lock (&l->lock);
  moment = history_moment (&l->history, crash_disk_now (&l->disk));
  pthread_mutex_unlock (&l->lock);
  r = do_request (l, FLUSH, NULL, 0, 0, 0);
  expect_failure (l, r);
  if (r == -1) {
    l->sticks |= error_errno () != ENOSPC;
    return;
  }
  pthread_mutex_lock (&l->lock);
  history_flushed (&l->history, moment, crash_disk_now (&l->disk));
  pthread_mutex_unlock (&l->lock);
}

static void
request (struct worker *t)
{
  struct load *l = t->l;
  const unsigned dice = random_below (&t->state, 20);
  const enum what what = dice < 10 ? WRITE : dice < 14 ? ZERO
    : dice < 17 ? TRIM : FLUSH;
  unsigned flags = random_below (&t->state, 4) == 0 ? IMAGE_FUA : 0;
  uint64_t offset, count;
  uint8_t *data;
  uint32_t number;
  int r;

  if (what == FLUSH) {
    flush (l);
    return;
  }
  choose_range (t, &offset, &count);
  flags |= random_below (&t->state, 2) ? IMAGE_MAY_TRIM : 0;
  flags |= random_below (&t->state, 5) == 0 ? IMAGE_FAST : 0;
  data = must_have (malloc (count));
  pthread_mutex_lock (&l->lock);
  number = history_begin (&l->history, crash_disk_now (&l->disk));
  content_fill_many (data, count, CONTENT_WRITTEN, number, offset / 512);
  note_values (l, number, offset, count, what == WRITE ? data : NULL);
  pthread_mutex_unlock (&l->lock);
  r = do_request (l, what, data, offset, count, flags);
  expect_failure (l, r);
  pthread_mutex_lock (&l->lock);
  /* A trim leaves alone what it can't do for nothing. */
  if ((r == -1 || what == TRIM) && !note_trimmed (l, number, offset, count))
    r = -1;
  if (r == 0)
    history_answer (&l->history, number, crash_disk_now (&l->disk),
                    flags & IMAGE_FUA);
  else
    history_fail (&l->history, number, crash_disk_now (&l->disk));
  pthread_mutex_unlock (&l->lock);
  free (data);
}

static void *
work (void *opaque)
{
  struct worker *t = opaque;
  unsigned i;

  for (i = 0; i < REQUESTS / t->l->threads; ++i)
    request (t);
  return NULL;
}

static void
run (struct load *l)
{
  struct worker t[THREADS];
  pthread_t thread[THREADS];
  unsigned i;

  for (i = 0; i < l->threads; ++i)
    t[i] = (struct worker) { l, i, mix (seed * THREADS + i) };
  if (l->threads == 1) {
    (void) work (&t[0]);
    return;
  }
  l->disk.dawdle = true;
  for (i = 0; i < l->threads; ++i)
    if (pthread_create (&thread[i], NULL, work, &t[i]) != 0)
      abort ();
  for (i = 0; i < l->threads; ++i)
    pthread_join (thread[i], NULL);
  l->disk.dawdle = false;
}

/* ------------------------------------------------------------------ states */

/* What a power cut at moment k has left. */
static void
judge (struct load *l, const uint8_t *bytes, uint64_t size, uint64_t k,
       const char *which)
{
  const struct qed_verdict v = qed_image_judge (bytes, size);
  uint64_t sector;

  nr_states++;
  if (v.errors > 0)
    violated ("cut %" PRIu64 " %s: %" PRIu64 " errors", k, which, v.errors);
  if (v.leaks > l->before.leaks && !v.need_check)
    violated ("cut %" PRIu64 " %s: leaks without NEED_CHECK", k, which);
  if (!qed_image_read (bytes, size, l->backing, l->backing_size, l->buf)) {
    violated ("cut %" PRIu64 " %s: it can't be read", k, which);
    return;
  }
  sector = history_check (&l->history, l->buf, k);
  if (sector < l->history.nr_sectors) {
    violated ("cut %" PRIu64 " %s: sector %" PRIu64 " is wrong", k, which,
              sector);
    if (violations < 3)
      history_explain (&l->history, sector, k);
  }
}

/* The image goes on being written, and is closed. */
static void
write_again (struct load *l, const struct disk_state *state, uint64_t k)
{
  struct crash_disk disk;
  struct qed_verdict v;
  struct image *im;
  uint8_t data[5000];

  nr_again++;
  crash_disk_init (&disk, state->bytes, state->size);
  disk.logging = false;
  im = open_image (l, &disk);
  memset (data, 0x5a, sizeof data);
  if (im == NULL || make_writable (im) == -1 ||
      image_write (im, data, sizeof data, (struct guest_off) { 700 }, 0) == -1)
    violated ("cut %" PRIu64 ": it can't be written again: %s", k,
              error_message ());
  else if (image_close (im) == -1)
    violated ("cut %" PRIu64 ": it can't be closed: %s", k, error_message ());
  else {
    v = qed_image_judge (disk.bytes, disk.size);
    if (v.errors > 0 || v.need_check)
      violated ("cut %" PRIu64 ": written again it has %" PRIu64 " errors", k,
                v.errors);
    if (!qed_image_read (disk.bytes, disk.size, l->backing, l->backing_size,
                         l->buf) || memcmp (l->buf + 700, data, sizeof data))
      violated ("cut %" PRIu64 ": written again it lost that", k);
  }
  crash_disk_free (&disk);
}

static void
explore (struct load *l)
{
  const uint64_t nr = l->disk.nr, step = nr / CUTS + 1;
  struct cut *cut = cut_new (l->q.bytes, l->q.size, l->disk.op, nr);
  struct disk_state state = { 0 };
  uint64_t k, s = mix (seed);

  for (k = random_below (&s, step); k <= nr; k += step) {
    unsigned i, pending;

    cut_advance (cut, k);
    pending = cut_pending (cut);
    for (i = 0; i < 2 + TORN + 2 * (pending < 4 ? pending : 4); ++i) {
      struct landed which = { LANDED_NONE, 0 };
      char text[64];

      if (i == 1)
        which.kind = LANDED_ALL;
      else if (i > 1 && i < 2 + TORN)
        which = (struct landed) { LANDED_TORN, random_next (&s) >> 32 };
      else if (i > 1)
        which = (struct landed) { i % 2 ? LANDED_ONLY : LANDED_NOT,
                                  random_below (&s, pending) };
      cut_state (cut, which, &state);
      judge (l, state.bytes, state.size, k,
             landed_format (which, text, sizeof text));
      if (random_below (&s, 40) == 0)
        write_again (l, &state, k);
    }
  }
  disk_state_free (&state);
  cut_free (cut);
}

/* --------------------------------------------------------------- workloads */

static void
load_start (struct load *l, unsigned threads)
{
  uint64_t state = mix (seed);

  memset (l, 0, sizeof *l);
  l->threads = threads;
  pthread_mutex_init (&l->lock, NULL);
  make_image (l, &state);
  crash_disk_init (&l->disk, l->q.bytes, l->q.size);
  l->disk.no_zero = random_below (&state, 4) == 0;
  history_init (&l->history, l->initial, l->q.disk_size / 512);
}

static void
load_free (struct load *l)
{
  history_free (&l->history);
  crash_disk_free (&l->disk);
  pthread_mutex_destroy (&l->lock);
  free (l->initial);
  free (l->buf);
  free (l->backing);
  qed_image_free (&l->q);
}

/* At the end all is there, whether it was flushed or not. */
static void
close_load (struct load *l)
{
  struct qed_verdict v;

  image_close_disk (l->live);
  if (image_close (l->im) == -1) {
    if (!l->failing)
      violated ("closing: %s", error_message ());
    return;
  }
  v = qed_image_judge (l->disk.bytes, l->disk.size);
  if (v.errors > 0 || v.need_check ||
      (!l->failing && v.leaks > l->before.leaks))
    violated ("closed it has %" PRIu64 " errors, %" PRIu64 " leaks (%" PRIu64
              " before)%s", v.errors, v.leaks, l->before.leaks,
              v.need_check ? ", NEED_CHECK" : "");
  if (l->disk.nr > 1 && qed_image_get (l->disk.bytes, 32, 8) != 0)
    violated ("an unknown autoclear bit is kept");
}

static void
cut_power (unsigned threads)
{
  struct load l;

  load_start (&l, threads);
  l.im = open_image (&l, &l.disk);
  if (l.im == NULL || make_writable (l.im) == -1)
    violated ("opening: %s", error_message ());
  else {
    l.live = image_open_disk (l.im, "");
    run (&l);
    close_load (&l);
    explore (&l);
  }
  load_free (&l);
}

/* The call-th call of these kinds fails.  What is on the disk afterwards must
 * be sound, and hold what was flushed; and I10.
 */
static void
fail_storage (void)
{
  static const unsigned kinds[] = {
    FAULT_ANY, FAULT_WRITE, FAULT_FLUSH, FAULT_RESIZE, FAULT_READ, FAULT_ZERO,
  };
  uint64_t state = mix (seed + 77);
  struct load l;

  load_start (&l, 1);
  l.failing = true;
  l.disk.fault = (struct crash_fault) {
    .call = 1 + random_below (&state, 60),
    .kinds = kinds[random_below (&state, 6)],
    .forever = random_below (&state, 2), .partly = random_below (&state, 2),
    .err = random_below (&state, 2) ? ENOSPC : EIO,
  };
  l.im = open_image (&l, &l.disk);
  if (l.im != NULL && make_writable (l.im) == 0) {
    l.live = image_open_disk (l.im, "");
    run (&l);
    nr_faults += l.disk.failures > 0;
    close_load (&l);
    /* The process dies, and the host does not. */
    judge (&l, l.disk.bytes, l.disk.size, l.disk.nr, "after failures");
    explore (&l);
  }
  else
    (void) image_close (l.im);
  load_free (&l);
}

int
main (int argc, char *argv[])
{
  const uint64_t nr = argc > 1 ? strtoull (argv[1], NULL, 0) : 20;
  const uint64_t first = argc > 2 ? strtoull (argv[2], NULL, 0) : 1;

  for (seed = first; seed < first + nr && violations == 0; ++seed) {
    cut_power (1);
    if (seed % 3 == 0)
      cut_power (THREADS);
    if (violations == 0)
      fail_storage ();
  }
  printf ("%" PRIu64 " states, %" PRIu64 " written again, %" PRIu64
          " workloads with failures: %" PRIu64 " violations\n", nr_states,
          nr_again, nr_faults, violations);
  return violations > 0;
}
