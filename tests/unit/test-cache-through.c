/* SPDX-License-Identifier: BSD-3-Clause */

/* cache/tables.c, C9: slices that are written past the batches.  What is cached has
 * the new words, what has changes is left alone, and who reads a slice meanwhile
 * does not insert what was there before.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "cache/tables.h"
#include "check.h"
#include "fixed-key.h"
#include "memory-storage.h"

#define ID 3
#define SLICE CACHE_SLOT_BYTES
#define SLICE_WORDS (SLICE / 8)
#define NR CACHE_MAX_AHEAD

static struct memory_disk disk;
static struct memory_control control;
static struct storage *storage;
static struct cache *cache;
static uint64_t words[NR * SLICE_WORDS]; /* what is written */

static struct host_off
slice_at (unsigned i)
{
  return (struct host_off) { (1 + i) * SLICE };
}

/* On the disk all words are 1; new ones are 2. */
static void
start (void)
{
  unsigned i;

  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, (1 + NR) * SLICE);
  for (i = 0; i < (1 + NR) * SLICE_WORDS; ++i)
    put_be64 (disk.data + 8 * i, 1);
  for (i = 0; i < NR * SLICE_WORDS; ++i)
    words[i] = htobe64 (2);
  storage = memory_disk_open (&disk, "test", &control);
  cache = cache_new (1 << 20);
  CHECK_OK (cache_begin_writing (cache, ID, false));
}

static void
end (void)
{
  cache_free (cache);
  storage_close (storage);
  memory_disk_free (&disk);
}

static uint64_t
look (unsigned i)
{
  struct cache_ref ref = { 0 };
  uint64_t w;

  do {
    CHECK_OK (cache_get (cache, storage, ID, slice_at (i), SLICE, 1, &ref));
    w = cache_word (&ref, SLICE_WORDS - 1);
  } while (!cache_still_valid (&ref));
  return w;
}

static uint64_t
on_disk (unsigned i)
{
  return get_be64 (disk.data + slice_at (i).v + SLICE - 8);
}

static bool
is_cached (unsigned i)
{
  struct cache_ref ref;

  return cache_find (cache, ID, slice_at (i), &ref);
}

static int
write_through (unsigned nr, unsigned *done)
{
  return cache_write_through (cache, storage, ID, slice_at (0), SLICE, nr,
                              words, done);
}

static void
test_cached_and_absent (void)
{
  unsigned done, i;

  start ();
  for (i = 0; i < NR; i += 2)
    CHECK_EQ (look (i), 1);
  CHECK_OK (write_through (NR, &done));
  CHECK_EQ (done, NR);
  CHECK_EQ (control.writes, 1);
  for (i = 0; i < NR; ++i) {
    CHECK_EQ (is_cached (i), i % 2 == 0);
    CHECK_EQ (on_disk (i), 2);
    CHECK_EQ (look (i), 2);
  }
  CHECK (cache_is_clean (cache, ID));
  end ();
}

/* It ends before a slice that has changes, be they in a batch already. */
static void
test_changed (void)
{
  const uint64_t value = 7;
  struct cache_batch b = { 0 };
  unsigned done;

  start ();
  CHECK_EQ (look (2), 1);
  CHECK_EQ (cache_update (cache, ID, slice_at (2), SLICE_WORDS - 1, 1, &value,
                          CACHE_SECOND), CACHE_UPDATED);
  CHECK_OK (write_through (NR, &done));
  CHECK_EQ (done, 2);
  CHECK_EQ (look (2), 7);
  CHECK_EQ (on_disk (2), 1);
  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 1);
  CHECK_OK (write_through (NR, &done));
  CHECK_EQ (done, 2);
  CHECK_EQ (look (2), 7);
  CHECK_OK (storage_write (storage, b.sector[0].data, CACHE_SECTOR,
                           b.sector[0].offset));
  cache_end_batch (cache, ID, &b, true);
  CHECK_OK (write_through (NR, &done));
  CHECK_EQ (done, NR);
  CHECK_EQ (look (2), 2);
  free (b.sector);
  end ();
}

/* Then they are read again. */
static void
test_failing (void)
{
  unsigned done;

  start ();
  CHECK_EQ (look (0), 1);
  memory_fail (&control, MEMORY_WRITE, 1, ENOSPC);
  CHECK_EQ (write_through (2, &done), -1);
  CHECK_EQ (done, 0);
  memory_fail_no_more (&control);
  CHECK (!is_cached (0) && !is_cached (1));
  CHECK_EQ (look (0), 1);
  CHECK_OK (write_through (2, &done));
  CHECK_EQ (done, 2);
  CHECK_EQ (look (0), 2);
  end ();
}

/* A reader comes while they are written. */
static pthread_t reader;
static _Atomic bool writing;
static _Atomic unsigned too_early;

static void *
read_one (void *opaque)
{
  (void) opaque;
  CHECK_EQ (look (1), 2);
  return NULL;
}

static void
while_written (void *opaque, const struct memory_call *call)
{
  unsigned i;

  (void) opaque;
  if (call->kind == MEMORY_READ && writing)
    too_early++;
  if (call->kind != MEMORY_WRITE)
    return;
  writing = true;
  if (pthread_create (&reader, NULL, read_one, NULL) != 0)
    abort ();
  for (i = 0; i < 200 && too_early == 0; ++i)
    sched_yield ();
  writing = false;
}

static void
test_reader_waits (bool cached)
{
  unsigned done, i;

  for (i = 0; i < 20 && !check_any_failed (); ++i) {
    start ();
    if (cached)
      CHECK_EQ (look (1), 1);
    control.hook = while_written;
    CHECK_OK (write_through (NR, &done));
    pthread_join (reader, NULL);
    CHECK_EQ (done, NR);
    CHECK_EQ (too_early, 0);
    CHECK_EQ (look (1), 2);
    end ();
  }
}

int
main (void)
{
  fix_hash_key ();
  check_time_limit (60);
  test_cached_and_absent ();
  test_changed ();
  test_failing ();
  test_reader_waits (false);
  test_reader_waits (true);
  return check_result ();
}
