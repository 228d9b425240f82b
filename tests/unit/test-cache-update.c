/* SPDX-License-Identifier: BSD-3-Clause */

/* cache/tables.c, changing: what was changed is seen at once, stays until it is
 * written, and is written whole.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "cache/tables.h"
#include "check.h"
#include "fixed-key.h"
#include "memory-storage.h"
#include "random.h"
#include "seconds.h"

#define ID 3
#define FIRST (UINT64_C (1) << 16) /* slices are from here on */
#define DISK_BYTES (UINT64_C (4) << 20)
#define SLICE CACHE_SLOT_BYTES
#define SLICE_WORDS (SLICE / 8)

static struct memory_disk disk;
static struct memory_control control;
static struct storage *storage;
static struct cache *cache;

static void
start (uint64_t cache_bytes, bool zeros)
{
  uint64_t i;

  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, DISK_BYTES);
  for (i = 0; i < DISK_BYTES && !zeros; i += 8)
    put_be64 (disk.data + i, mix (i));
  storage = memory_disk_open (&disk, "test", &control);
  cache = cache_new (cache_bytes);
  CHECK_OK (cache_begin_writing (cache, ID, false));
}

static void
end (void)
{
  cache_free (cache);
  storage_close (storage);
  memory_disk_free (&disk);
}

static struct host_off
slice_at (uint64_t i)
{
  return (struct host_off) { FIRST + i * SLICE };
}

/* What the cache says that a word of slice i is. */
static uint64_t
look (uint64_t i, unsigned word)
{
  struct cache_ref ref = { 0 };
  uint64_t w;

  do {
    CHECK_OK (cache_get (cache, storage, ID, slice_at (i), SLICE, 1, &ref));
    w = cache_word (&ref, word);
  } while (!cache_still_valid (&ref));
  return w;
}

static uint64_t
on_disk (uint64_t i, unsigned word)
{
  return get_be64 (disk.data + slice_at (i).v + 8 * word);
}

static enum cache_update
update (uint64_t i, unsigned first, unsigned nr, const uint64_t *words,
        enum cache_order order)
{
  return cache_update (cache, ID, slice_at (i), first, nr, words, order);
}

/* Change one word of a slice, which is read if need be. */
static void
set (uint64_t i, unsigned word, uint64_t value)
{
  enum cache_update r;

  while ((r = update (i, word, 1, &value, CACHE_SECOND)) == CACHE_ABSENT)
    look (i, 0);
  CHECK_EQ (r, CACHE_UPDATED);
}

static void
write_batch (const struct cache_batch *b)
{
  size_t i;

  for (i = 0; i < b->nr; ++i)
    CHECK_OK (storage_write (storage, b->sector[i].data, CACHE_SECTOR,
                             b->sector[i].offset));
}

/* Only what changed is in a batch, in its order, as it was. */
static void
test_batch (void)
{
  static const uint64_t words[3] = { 7, 8, 9 };
  struct cache_batch b = { 0 };
  uint64_t before;

  start (1 << 20, false);
  CHECK_EQ (update (0, 0, 3, words, CACHE_FIRST), CACHE_ABSENT);
  CHECK (cache_is_clean (cache, ID));
  before = look (0, 62);
  look (1, 0);
  look (2, 0);
  CHECK_EQ (update (1, 511, 1, words, CACHE_SECOND), CACHE_UPDATED);
  CHECK_EQ (update (0, 63, 3, words, CACHE_SECOND), CACHE_UPDATED);
  CHECK_EQ (update (2, 5, 1, words, CACHE_FIRST), CACHE_UPDATED);
  CHECK (!cache_is_clean (cache, ID));
  CHECK_EQ (look (0, 62), before);
  CHECK_EQ (look (0, 63), 7);
  CHECK_EQ (look (0, 65), 9);
  CHECK_EQ (on_disk (0, 63), mix (FIRST + 63 * 8));

  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 4);
  CHECK_EQ (b.sector[0].offset.v, slice_at (2).v);
  CHECK_EQ (b.sector[0].order, CACHE_FIRST);
  CHECK_EQ (get_be64 (b.sector[0].data + 40), 7);
  CHECK_EQ (b.sector[1].offset.v, slice_at (0).v);
  CHECK_EQ (b.sector[1].order, CACHE_SECOND);
  CHECK_EQ (get_be64 (b.sector[1].data + 62 * 8), before);
  CHECK_EQ (b.sector[2].offset.v, slice_at (0).v + 512);
  CHECK_EQ (b.sector[3].offset.v, slice_at (1).v + 7 * 512);
  CHECK (!cache_is_clean (cache, ID));
  write_batch (&b);
  cache_end_batch (cache, ID, &b, true);
  CHECK (cache_is_clean (cache, ID));
  CHECK_EQ (on_disk (0, 63), 7);
  CHECK_EQ (on_disk (1, 511), 7);

  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 0);
  cache_end_batch (cache, ID, &b, true);
  free (b.sector);
  end ();
}

/* What is changed while a batch is being written belongs to the next. */
static void
test_change_during_batch (void)
{
  struct cache_batch b = { 0 };

  start (1 << 20, false);
  set (0, 0, 1);
  CHECK_OK (cache_take_batch (cache, ID, &b));
  set (0, 0, 2);
  set (0, 200, 3);
  write_batch (&b);
  CHECK_EQ (on_disk (0, 0), 1);
  cache_end_batch (cache, ID, &b, true);
  CHECK (!cache_is_clean (cache, ID));
  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 2);
  write_batch (&b);
  cache_end_batch (cache, ID, &b, true);
  CHECK (cache_is_clean (cache, ID));
  CHECK_EQ (on_disk (0, 0), 2);
  CHECK_EQ (on_disk (0, 200), 3);
  free (b.sector);
  end ();
}

/* A batch that was not written belongs to the next one, as changed since. */
static void
test_batch_fails (void)
{
  struct cache_batch b = { 0 };
  unsigned i;

  start (1 << 20, false);
  for (i = 0; i < 10; ++i)
    set (i, 64 * (i % 8), i);
  for (i = 0; i < 3; ++i) {
    CHECK_OK (cache_take_batch (cache, ID, &b));
    CHECK_EQ (b.nr, 10 + i);
    set (i, 511, 100 + i); /* one more sector */
    cache_end_batch (cache, ID, &b, false);
    CHECK (!cache_is_clean (cache, ID));
  }
  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 13);
  write_batch (&b);
  cache_end_batch (cache, ID, &b, true);
  for (i = 0; i < 10; ++i)
    CHECK_EQ (on_disk (i, 64 * (i % 8)), i);
  for (i = 0; i < 3; ++i)
    CHECK_EQ (on_disk (i, 511), 100 + i);
  CHECK (cache_is_clean (cache, ID));
  free (b.sector);
  end ();
}

/* Slices of zeros share their words until they are changed; and changed back
 * they are as good as before.
 */
static void
test_zeros (void)
{
  struct cache_batch b = { 0 };
  unsigned i;

  start (1 << 20, true);
  for (i = 0; i < 20; ++i)
    CHECK_EQ (look (i, 100), 0);
  for (i = 0; i < 20; i += 2)
    set (i, 100 + i, 1 + i);
  for (i = 0; i < 20; ++i) {
    CHECK_EQ (look (i, 100 + i), i % 2 ? 0 : 1 + i);
    CHECK_EQ (look (i, 99 + i), 0);
  }
  set (0, 100, 0);
  CHECK_EQ (look (0, 100), 0);
  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 10);
  write_batch (&b);
  cache_end_batch (cache, ID, &b, true);
  for (i = 0; i < 20; ++i)
    CHECK_EQ (on_disk (i, 100 + i), i % 2 || i == 0 ? 0 : 1 + i);
  free (b.sector);
  end ();
}

/* C5: what is changed stays, whatever else is read; so much of it is taken
 * that readers still find a slot; and once it is written it may go.
 */
static void
test_crowded (void)
{
  struct cache_batch b = { 0 };
  uint64_t value = 77, i, nr = 0, read;

  start (CACHE_MIN_BYTES, false); /* one set of 8 */
  for (i = 0; i < 8; ++i) {
    look (i, 0);
    if (update (i, 1, 1, &value, CACHE_SECOND) == CACHE_CROWDED)
      break;
    nr++;
  }
  CHECK_EQ (nr, 4);
  CHECK_EQ (update (0, 2, 1, &value, CACHE_SECOND), CACHE_UPDATED);
  for (i = 100; i < 400; ++i)
    CHECK_EQ (look (i, 9), mix (slice_at (i).v + 72));
  read = control.preads;
  for (i = 0; i < 4; ++i)
    CHECK_EQ (look (i, 1), 77);
  CHECK_EQ (control.preads, read);

  /* While it is being written it still counts. */
  CHECK_OK (cache_take_batch (cache, ID, &b));
  look (500, 0);
  CHECK_EQ (update (500, 1, 1, &value, CACHE_SECOND), CACHE_CROWDED);
  write_batch (&b);
  cache_end_batch (cache, ID, &b, true);
  look (500, 0);
  CHECK_EQ (update (500, 1, 1, &value, CACHE_SECOND), CACHE_UPDATED);
  for (i = 600; i < 700; ++i)
    look (i, 0);
  for (i = 0; i < 4; ++i) /* read again */
    CHECK_EQ (look (i, 1), 77);
  CHECK (control.preads > read + 100);
  free (b.sector);
  end ();
}

/* What is forgotten is neither written nor found. */
static void
test_forget (void)
{
  struct cache_batch b = { 0 };
  uint8_t other[SLICE];

  start (1 << 20, false);
  set (0, 1, 5);
  set (1, 1, 5);
  set (2, 1, 5);
  set (3, 1, 5);
  look (4, 0);
  cache_forget (cache, ID, slice_at (1), 2 * SLICE, SLICE);
  cache_forget (cache, ID, slice_at (4), 3 * SLICE, SLICE);
  cache_forget (cache, ID + 1, slice_at (0), 10 * SLICE, SLICE);
  memset (other, 0x11, sizeof other);
  CHECK_OK (storage_write (storage, other, SLICE, slice_at (1)));
  CHECK_OK (storage_write (storage, other, SLICE, slice_at (4)));
  CHECK_EQ (look (1, 1), UINT64_C (0x1111111111111111));
  CHECK_EQ (look (4, 1), UINT64_C (0x1111111111111111));
  CHECK_EQ (look (0, 1), 5);
  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 2);
  CHECK_EQ (b.sector[0].offset.v, slice_at (0).v);
  CHECK_EQ (b.sector[1].offset.v, slice_at (3).v);
  write_batch (&b);
  cache_end_batch (cache, ID, &b, true);
  CHECK (cache_is_clean (cache, ID));

  /* Changed anew, the same slot must be written. */
  set (1, 2, 6);
  set (2, 2, 6);
  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK_EQ (b.nr, 2);
  write_batch (&b);
  cache_end_batch (cache, ID, &b, true);
  CHECK_EQ (on_disk (1, 2), 6);
  CHECK_EQ (on_disk (1, 1), UINT64_C (0x1111111111111111));
  free (b.sector);
  end ();
}

static void
test_wants_writing (void)
{
  struct cache_batch b = { 0 };
  unsigned i;

  start (1 << 20, false); /* some 250 slots */
  CHECK (!cache_wants_writing (cache, ID));
  for (i = 0; i < 90; ++i) {
    const uint64_t value = i;

    look (i, 0);
    (void) update (i, 0, 1, &value, CACHE_SECOND);
  }
  CHECK (cache_wants_writing (cache, ID));
  CHECK_OK (cache_take_batch (cache, ID, &b));
  CHECK (!cache_wants_writing (cache, ID));
  cache_end_batch (cache, ID, &b, false);
  CHECK (cache_wants_writing (cache, ID));
  free (b.sector);
  end ();
}

/* ---------------------------------------------------------------- threads */

/* Each change sets some words of a slice to one number, all at once; the
 * numbers of a slice only grow.  So readers can tell a torn view, or one that
 * is older than what was seen before.  Meanwhile batches are written, some of
 * which fail, and slices come and go.
 */
#define SLICES 60
#define GROUPS 8 /* of words in a slice, each of as many */
#define GROUP_WORDS (SLICE_WORDS / GROUPS)

struct race {
  double until;
  pthread_mutex_t lock; /* no update runs while a batch is taken */
  _Atomic uint64_t seed, changes, looks, batches;
  /* The last number of each group, by its one writer. */
  uint64_t last[SLICES][GROUPS];
};

#define WRITERS 2
#define READERS 2

static void *
change_main (void *opaque)
{
  struct race *r = opaque;
  const uint64_t me = r->seed++;
  uint64_t state = mix (me), changes = 0;

  while (seconds () < r->until) {
    const uint64_t i = random_below (&state, SLICES / WRITERS) * WRITERS + me;
    const unsigned g = random_below (&state, GROUPS);
    uint64_t words[GROUP_WORDS];
    enum cache_update result;
    unsigned w;

    for (w = 0; w < GROUP_WORDS; ++w)
      words[w] = r->last[i][g] + 1;
    pthread_mutex_lock (&r->lock);
    result = update (i, g * GROUP_WORDS, GROUP_WORDS, words,
                     i % 3 == 0 ? CACHE_FIRST : CACHE_SECOND);
    pthread_mutex_unlock (&r->lock);
    switch (result) {
    case CACHE_UPDATED:
      r->last[i][g]++;
      changes++;
      break;
    case CACHE_ABSENT:
      look (i, 0);
      break;
    case CACHE_CROWDED: /* the batches will see to it */
      sched_yield ();
      break;
    case CACHE_LACKS_SPACE:
      abort ();
    }
  }
  r->changes += changes;
  return NULL;
}

static void
look_at_group (uint64_t i, unsigned g, uint64_t *seen)
{
  struct cache_ref ref = { 0 };
  uint64_t words[GROUP_WORDS];
  unsigned w;

  do {
    CHECK_OK (cache_get (cache, storage, ID, slice_at (i), SLICE, 1, &ref));
    for (w = 0; w < GROUP_WORDS; ++w)
      words[w] = cache_word (&ref, g * GROUP_WORDS + w);
  } while (!cache_still_valid (&ref));
  for (w = 1; w < GROUP_WORDS; ++w)
    CHECK_EQ (words[w], words[0]);
  CHECK (words[0] >= *seen);
  *seen = words[0];
}

static void *
look_main (void *opaque)
{
  struct race *r = opaque;
  static _Thread_local uint64_t seen[SLICES][GROUPS];
  uint64_t state = mix (1000 + r->seed++), looks = 0;

  while (seconds () < r->until) {
    const uint64_t i = random_below (&state, SLICES);
    const unsigned g = random_below (&state, GROUPS);

    look_at_group (i, g, &seen[i][g]);
    looks++;
  }
  r->looks += looks;
  return NULL;
}

static void
write_batches (struct race *r)
{
  struct cache_batch b = { 0 };
  uint64_t state = 9, n = 0;

  while (seconds () < r->until || !cache_is_clean (cache, ID)) {
    const bool fails = random_below (&state, 4) == 0;

    pthread_mutex_lock (&r->lock);
    CHECK_OK (cache_take_batch (cache, ID, &b));
    pthread_mutex_unlock (&r->lock);
    if (!fails)
      write_batch (&b);
    cache_end_batch (cache, ID, &b, !fails);
    n++;
    usleep (random_below (&state, 200));
  }
  r->batches = n;
  free (b.sector);
}

static void *
batch_main (void *opaque)
{
  write_batches (opaque);
  return NULL;
}

static void
test_threads (uint64_t cache_bytes)
{
  static struct race r;
  pthread_t thread[WRITERS + READERS + 1];
  unsigned i, g, w, n = 0;

  start (cache_bytes, true);
  memset (&r, 0, sizeof r);
  pthread_mutex_init (&r.lock, NULL);
  r.until = seconds () + test_seconds (1);
  for (i = 0; i < WRITERS; ++i)
    pthread_create (&thread[n++], NULL, change_main, &r);
  while (r.seed < WRITERS) /* their numbers are below WRITERS */
    sched_yield ();
  for (i = 0; i < READERS; ++i)
    pthread_create (&thread[n++], NULL, look_main, &r);
  pthread_create (&thread[n++], NULL, batch_main, &r);
  while (n > 0)
    pthread_join (thread[--n], NULL);
  if (!cache_is_clean (cache, ID))
    write_batches (&r);
  for (i = 0; i < SLICES; ++i) {
    for (g = 0; g < GROUPS; ++g) {
      for (w = 0; w < GROUP_WORDS; ++w)
        CHECK_EQ (on_disk (i, g * GROUP_WORDS + w), r.last[i][g]);
    }
  }
  printf ("cache of %" PRIu64 " KiB: %" PRIu64 " changes, %" PRIu64
          " looks, %" PRIu64 " batches\n", cache_bytes / 1024, r.changes,
          r.looks, r.batches);
  end ();
}

/* C6: a sector of zeros may be a hole until it is told that it is none; any
 * other sector is none.
 */
static void
test_space (void)
{
  const uint64_t word = 7, zero = 0;

  start (1 << 20, true);
  put_be64 (disk.data + slice_at (0).v + 3 * CACHE_SECTOR + 504, 1);
  look (0, 0);
  CHECK_EQ (cache_lacking_space (cache, ID, slice_at (0), 0, SLICE_WORDS), 0);
  cache_end_writing (cache, ID);
  CHECK_OK (cache_begin_writing (cache, ID, true));
  CHECK_EQ (cache_lacking_space (cache, ID, slice_at (1), 0, 1), 0); /* absent */
  CHECK_EQ (cache_lacking_space (cache, ID, slice_at (0), 0, SLICE_WORDS),
            0xf7);
  CHECK_EQ (cache_lacking_space (cache, ID, slice_at (0), 63, 2), 3);
  CHECK_EQ (update (0, 63, 1, &word, CACHE_SECOND), CACHE_LACKS_SPACE);
  CHECK_EQ (look (0, 63), 0);
  CHECK_EQ (update (0, 3 * 64, 1, &word, CACHE_SECOND), CACHE_UPDATED);

  /* Which does not depend on what is in there from then on. */
  cache_note_space (cache, ID, slice_at (0), 1);
  CHECK_EQ (update (0, 63, 1, &word, CACHE_SECOND), CACHE_UPDATED);
  CHECK_EQ (update (0, 63, 1, &zero, CACHE_SECOND), CACHE_UPDATED);
  CHECK_EQ (update (0, 0, 1, &word, CACHE_SECOND), CACHE_UPDATED);
  CHECK_EQ (update (0, 64, 1, &word, CACHE_SECOND), CACHE_LACKS_SPACE);

  /* A slice that is read anew is another one. */
  cache_forget (cache, ID, slice_at (0), SLICE, SLICE);
  cache_note_space (cache, ID, slice_at (0), 2);
  look (0, 0);
  CHECK_EQ (cache_lacking_space (cache, ID, slice_at (0), 0, SLICE_WORDS),
            0xf7);
  end ();
}

/* --------------------------------------------------------------------- C8 */

/* One thread changes a word, again and again, and each time writes that; another
 * looks at it.  If it sees a change and then that all is clean, then what it has
 * seen was written: a request that relies on that is answered without a flush.
 */
struct clean {
  double until;
  _Atomic uint64_t written, seen;
  _Atomic bool stop;
};

static void *
watch_main (void *opaque)
{
  struct clean *c = opaque;
  uint64_t nr = 0;

  while (!c->stop) {
    const uint64_t value = look (0, 0);

    if (cache_is_clean (cache, ID))
      CHECK (c->written >= value);
    nr++;
  }
  c->seen = nr;
  return NULL;
}

static void
test_clean_is_written (void)
{
  struct clean c = { .until = seconds () + test_seconds (2) };
  struct cache_batch b = { 0 };
  pthread_t thread;
  uint64_t value;

  start (1 << 20, true);
  look (0, 0);
  pthread_create (&thread, NULL, watch_main, &c);
  for (value = 1; seconds () < c.until; ++value) {
    set (0, 0, value);
    CHECK_OK (cache_take_batch (cache, ID, &b));
    c.written = value;
    cache_end_batch (cache, ID, &b, true);
  }
  c.stop = true;
  pthread_join (thread, NULL);
  printf ("%" PRIu64 " changes, %" PRIu64 " looks\n", value - 1,
          (uint64_t) c.seen);
  free (b.sector);
  end ();
}

/* ----------------------------------------------------- several storages, C7 */

#define OTHER 4

static void
set_other (uint64_t i, uint64_t value)
{
  struct cache_ref ref = { 0 };

  CHECK_OK (cache_get (cache, storage, OTHER, slice_at (i), SLICE, 1, &ref));
  CHECK_EQ (cache_update (cache, OTHER, slice_at (i), 0, 1, &value,
                          CACHE_SECOND), CACHE_UPDATED);
}

static bool
is_clean (unsigned id)
{
  return cache_is_clean (cache, id);
}

/* Two images in one cache, with slices at the same offsets. */
static void
test_two_storages (void)
{
  struct cache_batch mine = { 0 }, other = { 0 };

  start (1 << 20, false);
  CHECK_OK (cache_begin_writing (cache, OTHER, false));
  set (1, 0, 11);
  CHECK (!is_clean (ID) && is_clean (OTHER));
  set_other (1, 22);
  set_other (2, 33);
  CHECK (!is_clean (OTHER));

  /* A batch is of one, and both may be open at one time. */
  CHECK_OK (cache_take_batch (cache, ID, &mine));
  CHECK_EQ (mine.nr, 1);
  CHECK_EQ (get_be64 (mine.sector[0].data), 11);
  if (mine.nr != 1) /* what follows is based on that */
    exit (check_result ());
  CHECK_OK (cache_take_batch (cache, OTHER, &other));
  CHECK_EQ (other.nr, 2);
  CHECK_EQ (get_be64 (other.sector[0].data), 22);
  CHECK_EQ (get_be64 (other.sector[1].data), 33);
  cache_end_batch (cache, ID, &mine, true);
  CHECK (is_clean (ID) && !is_clean (OTHER));

  /* One that fails is the other's next one, and nobody else's. */
  cache_end_batch (cache, OTHER, &other, false);
  CHECK_OK (cache_take_batch (cache, ID, &mine));
  CHECK_EQ (mine.nr, 0);
  cache_end_batch (cache, ID, &mine, true);
  CHECK (is_clean (ID) && !is_clean (OTHER));
  CHECK_OK (cache_take_batch (cache, OTHER, &other));
  CHECK_EQ (other.nr, 2);
  cache_end_batch (cache, OTHER, &other, true);
  CHECK (is_clean (OTHER));
  cache_end_writing (cache, OTHER);
  free (mine.sector);
  free (other.sector);
  end ();
}

/* What one has changed leaves the other its share of each set, however often
 * that is asked for (C5).
 */
static void
test_shares (void)
{
  const uint64_t value = 1;
  struct cache_batch b = { 0 };
  unsigned i, nr = 0;

  start (CACHE_MIN_BYTES, false);
  CHECK_OK (cache_begin_writing (cache, OTHER, false));
  for (i = 0; i < 200; ++i) {
    look (i, 0);
    nr += update (i, 0, 1, &value, CACHE_SECOND) == CACHE_UPDATED;
  }
  CHECK (nr > 0 && cache_wants_writing (cache, ID));
  CHECK (!cache_wants_writing (cache, OTHER));
  for (i = 0; i < 50; ++i) {
    set_other (i, i); /* each time crowded by none but itself */
    CHECK_OK (cache_take_batch (cache, OTHER, &b));
    CHECK_EQ (b.nr, 1);
    cache_end_batch (cache, OTHER, &b, true);
  }
  cache_end_writing (cache, OTHER);
  free (b.sector);
  end ();
}

/* Nobody else may begin with changes that have a larger share; and what is left
 * when one ends is of no use to the next that has its id.
 */
static void
test_begin_and_end (void)
{
  unsigned i;

  start (1 << 20, false);
  set (1, 0, 11);
  CHECK_EQ (cache_begin_writing (cache, OTHER, false), (uint64_t) -1);
  CHECK_ERROR (EBUSY, "the metadata cache has changes of another image");
  cache_end_writing (cache, ID);
  CHECK (is_clean (ID));
  CHECK_EQ (look (1, 0), on_disk (1, 0));
  cache_forget_storage (cache, ID);
  for (i = 0; i < CACHE_MAX_WRITERS; ++i)
    CHECK_OK (cache_begin_writing (cache, ID + i, false));
  CHECK_EQ (cache_begin_writing (cache, ID + i, false), (uint64_t) -1);
  for (i = 0; i < CACHE_MAX_WRITERS; ++i)
    cache_end_writing (cache, ID + i);
  end ();
}

static atomic_bool finding;

static void *
update_main (void *opaque)
{
  uint64_t words[SLICE_WORDS] = { 0 };

  (void) opaque;
  while (atomic_load (&finding)) {
    words[1]++;
    CHECK_EQ (update (1, 0, SLICE_WORDS, words, CACHE_SECOND), CACHE_UPDATED);
  }
  return NULL;
}

/* A slice with changes is found also while it is being changed once more: what
 * is on the storage is not what it says.
 */
static void
test_found_while_changed (void)
{
  const double until = seconds () + test_seconds (0.3);
  struct cache_ref ref;
  unsigned missed = 0;
  pthread_t thread;

  start (1 << 20, false);
  set (1, 0, 11);
  atomic_store (&finding, true);
  CHECK_EQ (pthread_create (&thread, NULL, update_main, NULL), 0);
  while (seconds () < until)
    missed += !cache_find (cache, ID, slice_at (1), &ref);
  atomic_store (&finding, false);
  pthread_join (thread, NULL);
  CHECK_EQ (missed, 0);
  end ();
}

int
main (void)
{
  fix_hash_key ();
  check_time_limit (200 + 4 * test_seconds (1));
  test_batch ();
  test_change_during_batch ();
  test_batch_fails ();
  test_zeros ();
  test_crowded ();
  test_space ();
  test_forget ();
  test_wants_writing ();
  test_clean_is_written ();
  test_two_storages ();
  test_shares ();
  test_begin_and_end ();
  test_found_while_changed ();
  test_threads (CACHE_MIN_BYTES);
  test_threads (1 << 20);
  return check_result ();
}
