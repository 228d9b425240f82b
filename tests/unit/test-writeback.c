/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/writeback.c: what is written in which order, and what becomes of
 * it when that fails.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "fixed-key.h"
#include "memory-storage.h"
#include "qcow2/write/writeback.h"
#include "random.h"
#include "seconds.h"

#define ID 1
#define FIRST (UINT64_C (1) << 20)
#define DISK_BYTES (UINT64_C (8) << 20)
#define SLICE CACHE_SLOT_BYTES

static struct memory_disk disk;
static struct memory_control control;
static struct memory_log call_log = MEMORY_LOG_INIT;
static struct storage *storage;
static struct cache *cache;
static struct epoch epoch;
static struct writeback writeback;

static void
start (uint64_t cache_bytes)
{
  memset (&control, 0, sizeof control);
  control.log = &call_log;
  memory_log_clear (&call_log);
  memory_disk_init (&disk, NULL, DISK_BYTES);
  storage = memory_disk_open (&disk, "test", &control);
  cache = cache_new (cache_bytes);
  epoch_init (&epoch);
  CHECK_OK (writeback_init (&writeback, storage, storage, cache, ID, SLICE, 16,
                            &epoch));
}

static void
end (void)
{
  writeback_destroy (&writeback);
  epoch_destroy (&epoch);
  cache_free (cache);
  storage_close (storage);
  memory_disk_free (&disk);
}

static struct host_off
slice_at (uint64_t i)
{
  return (struct host_off) { FIRST + i * SLICE };
}

static uint64_t
on_disk (uint64_t i, unsigned word)
{
  uint8_t buf[8];

  CHECK_OK (storage_read (storage, buf, 8, (struct host_off) {
        slice_at (i).v + 8 * word }));
  return get_be64 (buf);
}

static int
try_set (uint64_t i, unsigned word, uint64_t value, enum cache_order order,
         bool ordered, uint64_t *batch)
{
  const struct change ch = {
    .slice = slice_at (i), .first = word, .nr = 1, .words = &value,
    .order = order, .ordered = ordered,
  };

  return writeback_change (&writeback, &ch, batch);
}

static uint64_t
set (uint64_t i, unsigned word, uint64_t value, enum cache_order order,
     bool ordered)
{
  uint64_t batch = 0;

  CHECK_OK (try_set (i, word, value, order, ordered, &batch));
  return batch;
}

/* The calls since the last time, as a text: W for a write of metadata, with
 * the first sector's number and, if there are several, how many; F for a
 * flush.  Space is allocated before (T6): that is left out.
 */
static const char *
calls (void)
{
  static char text[1024];
  size_t used = 0, i;

  text[0] = '\0';
  for (i = 0; i < call_log.nr && used < sizeof text; ++i) {
    const struct memory_call *c = &call_log.call[i];
    const uint64_t sector = (c->offset - FIRST) / CACHE_SECTOR;

    if (c->kind == MEMORY_ALLOCATE)
      continue;
    if (c->kind == MEMORY_FLUSH)
      used += snprintf (text + used, sizeof text - used, "F ");
    else if (c->kind == MEMORY_WRITE && c->count == CACHE_SECTOR)
      used += snprintf (text + used, sizeof text - used, "W%u ",
                        (unsigned) sector);
    else if (c->kind == MEMORY_WRITE)
      used += snprintf (text + used, sizeof text - used, "W%ux%u ",
                        (unsigned) sector,
                        (unsigned) (c->count / CACHE_SECTOR));
    else
      used += snprintf (text + used, sizeof text - used, "? ");
  }
  memory_log_clear (&call_log);
  return text;
}

static void
test_sequences (void)
{
  start (1 << 20);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), ""); /* nothing costs nothing */

  writeback_note_data (&writeback);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "F ");
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "");

  /* Without order: refcounts, mappings, one wait. */
  set (0, 0, 1, CACHE_SECOND, false);
  set (2, 0, 1, CACHE_FIRST, false);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "W16 W0 F ");

  /* I5: with it there is a wait between them. */
  set (0, 0, 2, CACHE_SECOND, true);
  set (2, 0, 2, CACHE_FIRST, false);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "W16 F W0 F ");

  /* For the data, too. */
  set (0, 0, 3, CACHE_SECOND, true);
  writeback_note_data (&writeback);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "F W0 F ");

  /* One change that needs it is enough, and it is for one batch. */
  set (0, 0, 4, CACHE_SECOND, false);
  set (0, 1, 4, CACHE_SECOND, true);
  set (0, 2, 4, CACHE_SECOND, false);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "F W0 F ");
  set (0, 0, 5, CACHE_SECOND, false);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "W0 F ");

  /* Refcounts alone. */
  set (2, 70, 6, CACHE_FIRST, false);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "W17 F ");
  CHECK (writeback_is_clean (&writeback));
  end ();
}

/* Sectors that follow one another are one call; and only those. */
static void
test_runs (void)
{
  unsigned i;

  start (4 << 20);
  for (i = 0; i < 8; ++i)
    set (0, 64 * i, 1, CACHE_SECOND, false);
  set (1, 0, 1, CACHE_SECOND, false);
  set (1, 128, 1, CACHE_SECOND, false);
  set (3, 0, 1, CACHE_SECOND, false);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "W0x9 W10 W24 F ");
  for (i = 0; i < 8 * 10; ++i) /* more than a call takes */
    set (i / 8, 64 * (i % 8), 2, CACHE_SECOND, false);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "W0x64 W64x16 F ");
  for (i = 0; i < 80; ++i)
    CHECK_EQ (on_disk (i / 8, 64 * (i % 8)), 2);
  end ();
}

/* When a batch is durable. */
static void
test_durable (void)
{
  uint64_t first, second;

  start (1 << 20);
  first = set (0, 0, 1, CACHE_FIRST, false);
  CHECK (!writeback_is_durable (&writeback, first));
  CHECK_EQ (set (0, 1, 1, CACHE_FIRST, false), first);
  CHECK_OK (writeback_flush (&writeback));
  CHECK (writeback_is_durable (&writeback, first));
  second = set (0, 0, 2, CACHE_FIRST, false);
  CHECK (second > first);
  CHECK (!writeback_is_durable (&writeback, second));
  memory_fail (&control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (writeback_flush (&writeback), (uint64_t) -1);
  CHECK (!writeback_is_durable (&writeback, second));
  CHECK_OK (writeback_flush (&writeback));
  CHECK (writeback_is_durable (&writeback, second));
  CHECK (!writeback_is_durable (&writeback, UINT64_MAX));
  end ();
}

/* Some changes of both orders. */
static void
some_changes (uint64_t value)
{
  unsigned i;

  for (i = 0; i < 3; ++i) {
    set (2 * i, 64 * i, value, CACHE_SECOND, i == 1);
    set (20 + 2 * i, 64 * i, value, CACHE_FIRST, false);
  }
  writeback_note_data (&writeback);
}

static void
check_changes (uint64_t value)
{
  unsigned i;

  for (i = 0; i < 3; ++i) {
    CHECK_EQ (on_disk (2 * i, 64 * i), value);
    CHECK_EQ (on_disk (20 + 2 * i, 64 * i), value);
  }
}

/* T3: no space, at each write in turn, once or several times: nothing is
 * lost, and nothing sticks.
 */
static void
no_space (unsigned at, unsigned times)
{
  start (1 << 20);
  some_changes (5);
  memory_fail_ever_after (&control, MEMORY_WRITE, at, ENOSPC);
  while (times-- > 0) {
    CHECK_EQ (writeback_flush (&writeback), (uint64_t) -1);
    CHECK_ERROR (ENOSPC, "No space left");
    CHECK_OK (writeback_check (&writeback));
    CHECK (!writeback_is_clean (&writeback));
  }
  set (0, 1, 6, CACHE_SECOND, false); /* and one more */
  memory_fail_no_more (&control);
  calls ();
  CHECK_OK (writeback_flush (&writeback));
  check_changes (5);
  CHECK_EQ (on_disk (0, 1), 6);
  CHECK (writeback_is_clean (&writeback));
  /* I5 holds for what was put off. */
  CHECK_STR (calls (), "W160 W177 W194 F W0 W17 W34 F ");
  end ();
}

static void
test_no_space (void)
{
  unsigned at;

  for (at = 1; at <= 6; ++at) {
    no_space (at, 1);
    no_space (at, 3);
  }
}

/* Data that a failed flush should have made durable is left to the next one,
 * even if no change is: their table was freed meanwhile.
 */
static void
test_still_unflushed (void)
{
  start (1 << 20);
  set (0, 0, 1, CACHE_SECOND, false);
  writeback_note_data (&writeback);
  memory_fail (&control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (writeback_flush (&writeback), (uint64_t) -1);
  cache_forget (cache, ID, slice_at (0), SLICE, SLICE);
  calls ();
  CHECK_OK (writeback_flush (&writeback));
  CHECK_STR (calls (), "F ");
  end ();
}

/* I10: anything else sticks: of a write as of a flush. */
static void
check_stuck (int r)
{
  const struct freed f = { .host.v = 65536, .nr = 1 };

  CHECK_EQ (r, -1);
  CHECK_ERROR (EIO, "test: ");
  memory_fail_no_more (&control);
  CHECK_EQ (writeback_check (&writeback), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK (error_repeated ());
  CHECK_OK (writeback_free (&writeback, &f, 1));
  calls ();
  CHECK_EQ (writeback_flush (&writeback), (uint64_t) -1);
  CHECK_ERROR (EIO, "nothing is written any more");
  CHECK_STR (calls (), "");
  CHECK (writeback_next_freed (&writeback) == NULL);
}

static void
test_sticks (void)
{
  static const int errors[] = { EIO, ENOSPC };
  unsigned at, e;

  for (at = 1; at <= 6; ++at) {
    start (1 << 20);
    some_changes (5);
    memory_fail (&control, MEMORY_WRITE, at, EIO);
    check_stuck (writeback_flush (&writeback));
    end ();
  }
  for (at = 1; at <= 2; ++at) {
    for (e = 0; e < 2; ++e) { /* even if it was for want of space */
      start (1 << 20);
      some_changes (5);
      memory_fail (&control, MEMORY_FLUSH, at, errors[e]);
      check_stuck (writeback_flush (&writeback));
      end ();
    }
  }
  start (1 << 20);
  error_set (EINVAL, "test: something");
  writeback_fail (&writeback);
  CHECK_EQ (writeback_check (&writeback), (uint64_t) -1);
  CHECK_ERROR (EIO, "test: something");
  error_set (EINVAL, "test: another"); /* the first one is the reason */
  writeback_fail (&writeback);
  CHECK_EQ (writeback_check (&writeback), (uint64_t) -1);
  CHECK_ERROR (EIO, "test: something");
  end ();
}

/* ------------------------------------------------------------------- freed */

static void
set_and_free (uint64_t i, uint64_t value, uint64_t host, uint64_t nr)
{
  const struct freed f = { .host.v = host, .nr = nr };
  const struct change ch = {
    .slice = slice_at (i), .first = 0, .nr = 1, .words = &value,
    .order = CACHE_SECOND, .freed = &f, .nr_freed = 1,
  };

  CHECK_OK (writeback_change (&writeback, &ch, NULL));
}

static void
check_next_freed (uint64_t host, uint64_t nr)
{
  struct freed_list *l = writeback_next_freed (&writeback);

  if (l == NULL) {
    check_failed (__FILE__, __LINE__, "nothing is passed on");
    return;
  }
  CHECK_EQ (l->nr, 1);
  CHECK_EQ (l->freed[0].host.v, host);
  CHECK_EQ (l->freed[0].nr, nr);
  writeback_free_list (&writeback, l);
}

/* T2: only once it is durable, and no older request is left (I4). */
static void
test_freed (void)
{
  unsigned old, younger;

  start (1 << 20);
  old = epoch_enter (&epoch);
  set_and_free (0, 1, 0x10000, 1);
  set_and_free (1, 1, 0x20000, 2); /* joins it */
  set_and_free (2, 1, 0x40000, 1);
  CHECK_EQ (writeback.nr_freed, 1);
  CHECK (writeback_next_freed (&writeback) == NULL);
  CHECK_OK (writeback_flush (&writeback));
  younger = epoch_enter (&epoch);
  CHECK (writeback_next_freed (&writeback) == NULL);
  epoch_leave (&epoch, old);
  epoch_leave (&epoch, younger);
  check_next_freed (0x10000, 4);
  CHECK (writeback_next_freed (&writeback) == NULL);
  CHECK_EQ (writeback.nr_freed, 0);

  /* A batch that found no space passes nothing on. */
  set_and_free (0, 2, 0x50000, 1);
  memory_fail (&control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (writeback_flush (&writeback), (uint64_t) -1);
  CHECK (writeback_next_freed (&writeback) == NULL);
  CHECK_EQ (writeback.nr_freed, 1);
  set_and_free (0, 3, 0x51000000, 7);
  CHECK_OK (writeback_flush (&writeback));
  CHECK_EQ (writeback.nr_freed, 2);
  {
    struct freed_list *l = writeback_next_freed (&writeback);

    CHECK (l != NULL && l->nr == 2);
    writeback_free_list (&writeback, l);
  }
  /* Nor one that failed. */
  set_and_free (0, 4, 0x60000, 1);
  memory_fail (&control, MEMORY_FLUSH, 1, EIO);
  CHECK_EQ (writeback_flush (&writeback), (uint64_t) -1);
  CHECK (writeback_next_freed (&writeback) == NULL);
  end ();
}

/* Lists of several batches, in their order; each waits for its own epoch. */
static void
test_freed_lists (void)
{
  unsigned token = 0;
  uint64_t i;

  start (1 << 20);
  for (i = 1; i <= 5; ++i) {
    const struct freed f = { .host.v = i << 20, .nr = i, .is_table = i % 2 };

    CHECK_OK (writeback_free (&writeback, &f, 1));
    CHECK_OK (writeback_flush (&writeback));
    if (i == 3) {
      epoch_advance (&epoch, epoch_now (&epoch));
      token = epoch_enter (&epoch);
    }
  }
  for (i = 1; i <= 3; ++i)
    check_next_freed (i << 20, i);
  CHECK (writeback_next_freed (&writeback) == NULL);
  epoch_leave (&epoch, token);
  for (i = 4; i <= 5; ++i)
    check_next_freed (i << 20, i);
  CHECK (writeback_next_freed (&writeback) == NULL);
  end ();
}

static void
test_wanted (void)
{
  uint64_t i;

  start (8 << 20);
  CHECK (!writeback_is_wanted (&writeback));
  for (i = 0; i < 20000; ++i) {
    const struct freed f = { .host.v = (2 * i + 1) << 16, .nr = 1 };

    CHECK_OK (writeback_free (&writeback, &f, 1));
  }
  CHECK (writeback_is_wanted (&writeback));
  CHECK_OK (writeback_flush (&writeback));
  CHECK (!writeback_is_wanted (&writeback)); /* it would be of no use */
  end ();
}

/* ------------------------------------------------------------ interleaving */

/* A change that is made while a batch is being written, before its first
 * wait and after: it is in the next one, with its own freed clusters.
 */
static unsigned hook_at, hook_nr;

static void
change_in_hook (void *opaque, const struct memory_call *call)
{
  if ((call->kind & (MEMORY_WRITE | MEMORY_FLUSH)) &&
      ++hook_nr == hook_at) {
    set_and_free (0, 99, 0x70000, 1);
    set (40, 0, 99, CACHE_FIRST, false);
  }
}

static void
test_change_during_batch (void)
{
  for (hook_at = 1; hook_at <= 8; ++hook_at) {
    start (1 << 20);
    some_changes (5);
    hook_nr = 0;
    control.hook = change_in_hook;
    CHECK_OK (writeback_flush (&writeback));
    CHECK_EQ (hook_nr, 8);
    check_changes (5);
    CHECK_EQ (on_disk (40, 0), 0);
    CHECK (writeback_next_freed (&writeback) == NULL);
    CHECK (!writeback_is_clean (&writeback));
    calls ();
    CHECK_OK (writeback_flush (&writeback));
    CHECK_STR (calls (), "W320 W0 F ");
    check_next_freed (0x70000, 1);
    end ();
  }
}

/* More is changed than the cache keeps: it is written back unasked. */
static void
test_crowded (void)
{
  unsigned i;

  start (CACHE_MIN_BYTES);
  for (i = 0; i < 200; ++i)
    set (i, i, 1 + i, i % 2 ? CACHE_FIRST : CACHE_SECOND, i % 5 == 0);
  CHECK (control.flushes > 20);
  CHECK_OK (writeback_flush (&writeback));
  for (i = 0; i < 200; ++i)
    CHECK_EQ (on_disk (i, i), 1 + i);

  /* There is no space: the change is not made. */
  memory_fail_ever_after (&control, MEMORY_WRITE, 1, ENOSPC);
  for (i = 0; i < 10; ++i) {
    if (try_set (i, 0, 1000, CACHE_FIRST, false, NULL) == -1)
      break;
  }
  CHECK_EQ (i, 4);
  CHECK_ERROR (ENOSPC, "No space left");
  memory_fail_no_more (&control);
  CHECK_OK (writeback_flush (&writeback));
  for (i = 0; i < 10; ++i)
    CHECK_EQ (on_disk (i, 0), i < 4 ? 1000 : i == 0 ? 1 : 0);
  end ();
}

/* --------------------------------------------------------- group writeback */

#define THREADS 8

struct group {
  double until;
  _Atomic uint64_t seed, flushes, failed;
};

/* An answered flush never lies: what this thread changed or wrote before it
 * is there, and a flush of the storage came after it.
 */
static void *
group_main (void *opaque)
{
  struct group *g = opaque;
  const unsigned me = g->seed++;
  uint64_t n = 0;

  while (seconds () < g->until) {
    const uint64_t before = control.flushes;

    n++;
    if (n % 3 != 0)
      set (me, 0, n, me % 2 ? CACHE_FIRST : CACHE_SECOND, n % 5 == 0);
    else
      writeback_note_data (&writeback);
    if (writeback_flush (&writeback) == -1) {
      CHECK_EQ (error_errno (), EIO);
      g->failed++;
      return NULL;
    }
    CHECK (control.flushes > before || n % 3 == 0);
    if (n % 3 != 0)
      CHECK_EQ (on_disk (me, 0), n);
    g->flushes++;
  }
  return NULL;
}

static void
run_threads (void *(*fn) (void *), struct group *g)
{
  pthread_t thread[THREADS];
  unsigned i;

  for (i = 0; i < THREADS; ++i)
    pthread_create (&thread[i], NULL, fn, g);
  for (i = 0; i < THREADS; ++i)
    pthread_join (thread[i], NULL);
}

static void
run_group (struct group *g, double length)
{
  g->until = seconds () + length;
  run_threads (group_main, g);
}

static void
test_group (void)
{
  struct group g = { 0 };

  start (1 << 20);
  control.log = NULL;
  control.flush_microseconds = 500;
  run_group (&g, test_seconds (1));
  printf ("%" PRIu64 " calls shared %" PRIu64 " flushes\n", g.flushes,
          control.flushes);
  CHECK (control.flushes < g.flushes);
  end ();
}

/* One fails: nobody is told that all is well from then on. */
static void
test_group_fails (void)
{
  struct group g = { 0 };

  start (1 << 20);
  control.log = NULL;
  control.flush_microseconds = 200;
  memory_fail (&control, MEMORY_FLUSH, 50, EIO);
  run_group (&g, 10);
  CHECK_EQ (g.failed, THREADS);
  CHECK_EQ (control.failed, 1);
  end ();
}

/* There is no space, and no change can be written: no flush says that it was,
 * whoever did the work.
 */
static void
write_slowly (void *opaque, const struct memory_call *call)
{
  if (call->kind == MEMORY_WRITE)
    usleep (200);
}

static void *
no_space_main (void *opaque)
{
  struct group *g = opaque;
  const unsigned me = g->seed++;
  unsigned i;

  for (i = 1; i <= 20; ++i) {
    set (me, 0, i, CACHE_SECOND, false);
    if (writeback_flush (&writeback) == 0)
      g->flushes++;
    else
      CHECK_ERROR (ENOSPC, "No space left");
  }
  return NULL;
}

static void
test_group_no_space (void)
{
  struct group g = { 0 };
  unsigned i;

  start (1 << 20);
  control.log = NULL;
  control.hook = write_slowly;
  memory_fail_ever_after (&control, MEMORY_WRITE, 1, ENOSPC);
  run_threads (no_space_main, &g);
  CHECK_EQ (g.flushes, 0);
  CHECK (control.failed < 20 * THREADS); /* some shared one */
  memory_fail_no_more (&control);
  CHECK_OK (writeback_flush (&writeback));
  for (i = 0; i < THREADS; ++i)
    CHECK_EQ (on_disk (i, 0), 20);
  end ();
}

/* Changes, flushes, and who takes what was freed: each freed cluster is
 * passed on once, when the change that gave it up is on the disk.
 */
struct recycle {
  double until;
  _Atomic uint64_t seed, passed, freed;
};

static void *
recycle_main (void *opaque)
{
  struct recycle *r = opaque;
  const uint64_t me = r->seed++;
  uint64_t n = 0;

  while (seconds () < r->until && n < 60000) {
    const unsigned token = epoch_enter (&epoch);

    /* Slice me counts up; the cluster says who and which. */
    set_and_free (me, n + 1, (me << 17 | n << 1) << 16, 1);
    epoch_leave (&epoch, token);
    n++;
    if (n % 64 == 0)
      CHECK_OK (writeback_flush (&writeback));
  }
  r->freed += n;
  return NULL;
}

static void
take_freed (struct recycle *r)
{
  static uint8_t seen[4][1 << 16];
  struct freed_list *l;
  size_t i;

  while ((l = writeback_next_freed (&writeback)) != NULL) {
    for (i = 0; i < l->nr; ++i) {
      const uint64_t cluster = l->freed[i].host.v >> 16;
      const unsigned who = cluster >> 17, which = cluster >> 1 & 0xffff;

      CHECK_EQ (l->freed[i].nr, 1);
      CHECK_EQ (seen[who][which]++, 0);
      CHECK (on_disk (who, 0) > which);
      r->passed++;
    }
    writeback_free_list (&writeback, l);
  }
}

static void
test_recycle (void)
{
  struct recycle r = { .until = seconds () + 1 };
  pthread_t thread[4];
  unsigned i;

  start (1 << 20);
  control.log = NULL;
  for (i = 0; i < 4; ++i)
    pthread_create (&thread[i], NULL, recycle_main, &r);
  while (seconds () < r.until)
    take_freed (&r);
  for (i = 0; i < 4; ++i)
    pthread_join (thread[i], NULL);
  CHECK_OK (writeback_flush (&writeback));
  take_freed (&r);
  CHECK_EQ (r.passed, r.freed);
  CHECK_EQ (writeback.nr_freed, 0);
  printf ("%" PRIu64 " clusters freed\n", r.freed);
  end ();
}

int
main (void)
{
  fix_hash_key ();
  check_time_limit (200 + test_seconds (1));
  test_sequences ();
  test_runs ();
  test_durable ();
  test_no_space ();
  test_still_unflushed ();
  test_sticks ();
  test_freed ();
  test_freed_lists ();
  test_wanted ();
  test_change_during_batch ();
  test_crowded ();
  test_group ();
  test_group_fails ();
  test_group_no_space ();
  test_recycle ();
  memory_log_free (&call_log);
  return check_result ();
}
