/* SPDX-License-Identifier: BSD-3-Clause */

/* cache/tables.c: hits, misses, eviction, errors, and many threads at once.
 *
 * Every word of the storage used here is a function of its offset and of
 * the storage's id, so that a torn or a wrong slice shows.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <time.h>

#include "cache/tables.h"
#include "check.h"
#include "fixed-key.h"
#include "random.h"
#include "seconds.h"
#include "wrap.h"

/* What the cache maps is counted: C3. */
extern void *__real_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t offset);
extern void *__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd,
                          off_t offset);
static _Atomic size_t mapped;

void *
__wrap_mmap (void *addr, size_t len, int prot, int flags, int fd,
             off_t offset)
{
  mapped += len;
  return __real_mmap (addr, len, prot, flags, fd, offset);
}

/* Offsets in this test are from here on, since no slice is at offset 0. */
#define FIRST (UINT64_C (1) << 20)

struct pattern {
  struct storage storage;
  unsigned id;
  _Atomic uint64_t reads, bytes;
  _Atomic unsigned fail; /* so many reads fail */

  /* While block is set, reads of slices from block_from on wait. */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  bool block;
  uint64_t block_from;
  unsigned waiting;
  unsigned microseconds;
};

static uint64_t
word_at (unsigned id, uint64_t offset)
{
  /* Some slices are all zeros, which the cache keeps without a copy. */
  if (offset / CACHE_SLOT_BYTES % 5 == 2)
    return 0;
  return mix (offset * 512 + id + 1);
}

static ssize_t
pattern_pread (struct storage *s, void *buf, size_t count, uint64_t offset)
{
  struct pattern *p = (struct pattern *) s;
  uint8_t *to = buf;
  size_t i;

  offset -= FIRST;
  p->reads++;
  p->bytes += count;
  pthread_mutex_lock (&p->lock);
  p->waiting++;
  pthread_cond_broadcast (&p->changed);
  while (p->block && offset >= p->block_from)
    pthread_cond_wait (&p->changed, &p->lock);
  p->waiting--;
  pthread_mutex_unlock (&p->lock);
  if (p->microseconds > 0)
    usleep (p->microseconds);
  if (p->fail > 0) {
    p->fail--;
    errno = EIO;
    return -1;
  }
  for (i = 0; i < count; i += 8) {
    const uint64_t w = htobe64 (word_at (p->id, offset + i));

    memcpy (to + i, &w, 8);
  }
  return count;
}

static const struct storage_ops pattern_ops = { .pread = pattern_pread };

static void
pattern_init (struct pattern *p, unsigned id)
{
  memset (p, 0, sizeof *p);
  p->storage.ops = &pattern_ops;
  p->storage.name = (char *) "pattern";
  p->storage.size = UINT64_C (1) << 56;
  p->id = id;
  pthread_mutex_init (&p->lock, NULL);
  pthread_cond_init (&p->changed, NULL);
}

static void
pattern_end (struct pattern *p)
{
  pthread_mutex_destroy (&p->lock);
  pthread_cond_destroy (&p->changed);
}

static void
set_block (struct pattern *p, bool block, uint64_t from)
{
  pthread_mutex_lock (&p->lock);
  p->block = block;
  p->block_from = from;
  pthread_cond_broadcast (&p->changed);
  pthread_mutex_unlock (&p->lock);
}

static void
wait_for_waiting (struct pattern *p, unsigned nr)
{
  pthread_mutex_lock (&p->lock);
  while (p->waiting < nr)
    pthread_cond_wait (&p->changed, &p->lock);
  pthread_mutex_unlock (&p->lock);
}

/* Get a slice and check all of its words.  Returns what cache_get did. */
static int
get (struct cache *c, struct pattern *p, uint64_t offset, uint32_t bytes)
{
  uint64_t words[CACHE_SLOT_BYTES / 8];
  struct cache_ref ref;
  unsigned i;

  do {
    if (cache_get (c, &p->storage, p->id, (struct host_off) { FIRST + offset },
                   bytes, 1, &ref) == -1)
      return -1;
    for (i = 0; i < bytes / 8; ++i)
      words[i] = cache_word (&ref, i);
  } while (!cache_still_valid (&ref));
  for (i = 0; i < bytes / 8; ++i) {
    if (words[i] != word_at (p->id, offset + 8 * i)) {
      check_failed (__FILE__, __LINE__, "storage %u offset 0x%" PRIx64
                    " word %u is wrong", p->id, offset, i);
      break;
    }
  }
  return 0;
}

static void
test_hits (void)
{
  uint32_t bytes;
  uint64_t i;

  for (bytes = 512; bytes <= CACHE_SLOT_BYTES; bytes *= 2) {
    struct cache *c = cache_new (UINT64_C (16) << 20);
    struct pattern p, q;

    pattern_init (&p, 0);
    pattern_init (&q, CACHE_MAX_STORAGES - 1);
    for (i = 0; i < 256; ++i) {
      CHECK_OK (get (c, &p, i * bytes, bytes));
      CHECK_OK (get (c, &q, i * bytes, bytes)); /* same place, other file */
    }
    CHECK_EQ (p.reads, 256);
    CHECK_EQ (p.bytes, 256 * bytes);
    CHECK_EQ (q.reads, 256);
    for (i = 0; i < 256; ++i) {
      CHECK_OK (get (c, &p, i * bytes, bytes));
      CHECK_OK (get (c, &q, i * bytes, bytes));
    }
    CHECK_EQ (p.reads, 256);
    CHECK_EQ (q.reads, 256);
    /* The largest offset that an entry can hold. */
    CHECK_OK (get (c, &p, (UINT64_C (1) << 56) - CACHE_SLOT_BYTES - FIRST,
                   bytes));
    CHECK_EQ (p.reads, 257);
    cache_free (c);
    pattern_end (&p);
    pattern_end (&q);
  }
  cache_free (NULL);
}

/* C3: memory is bounded; and what is half of what fits stays in it, but for
 * a few that collide in their set, wherever the slices are: tables at the
 * beginning of the file, or far from each other.
 */
static void
test_size (void)
{
  static const uint64_t sizes[] = {
    CACHE_MIN_BYTES, CACHE_MIN_BYTES + 1, 100000, 1 << 20, 5000000,
    10000000, 64 << 20,
  };
  static const uint64_t strides[] = {
    512, 4096, 65536, 17 * 4096, 2 << 20, 512 << 20,
  };
  size_t s, t;
  uint64_t i;

  /* The largest two are long for sanitizers, and have nothing for them. */
  for (s = 0; s < sizeof sizes / sizeof sizes[0] + 1 - TEST_EACH (3); ++s) {
    for (t = 0; t < sizeof strides / sizeof strides[0]; ++t) {
      const uint32_t bytes = strides[t] < 4096 ? strides[t] : 4096;
      const uint64_t nr = sizes[s] / CACHE_SLOT_BYTES / 2;
      struct pattern p;
      struct cache *c;
      uint64_t missing;

      pattern_init (&p, 1);
      mapped = 0;
      c = cache_new (sizes[s]);
      CHECK (mapped > 0 && mapped <= sizes[s]);
      for (i = 0; i < nr; ++i)
        CHECK_OK (get (c, &p, i * strides[t], bytes));
      CHECK_EQ (p.reads, nr);
      for (i = 0; i < nr; ++i)
        CHECK_OK (get (c, &p, i * strides[t], bytes));
      missing = p.reads - nr;
      if (missing > 1 + nr / 5)
        check_failed (__FILE__, __LINE__, "cache of %" PRIu64 " bytes, slices "
                      "of %" PRIu32 " bytes each %" PRIu64 " bytes: %" PRIu64
                      " of %" PRIu64 " are not in it", sizes[s], bytes,
                      strides[t], missing, nr);
      cache_free (c);
      pattern_end (&p);
    }
  }
}

/* A working set of one slice stays, whatever else streams by. */
static void
test_eviction (void)
{
  struct cache *c = cache_new (CACHE_MIN_BYTES);
  struct pattern p;
  uint64_t i, hot_reads = 0;

  pattern_init (&p, 3);
  for (i = 0; i < 1000; ++i) {
    const uint64_t before = p.reads;

    CHECK_OK (get (c, &p, 0, 4096));
    hot_reads += p.reads - before;
    CHECK_OK (get (c, &p, (1 + i) * 4096, 4096));
  }
  CHECK (hot_reads < 50);
  CHECK_EQ (p.reads, 1000 + hot_reads);
  /* A reference to what was evicted is not valid any more. */
  for (i = 0; i < 100; ++i) {
    struct cache_ref ref;
    unsigned j;

    CHECK_OK (cache_get (c, &p.storage, 3, (struct host_off) {
          FIRST + i * 4096 }, 4096, 1, &ref));
    CHECK (cache_still_valid (&ref));
    for (j = 0; j < 64; ++j)
      CHECK_OK (get (c, &p, (10000 + 64 * i + j) * 4096, 4096));
    CHECK (!cache_still_valid (&ref));
  }
  cache_free (c);
  pattern_end (&p);
}

static void
test_error (void)
{
  struct cache *c = cache_new (CACHE_MIN_BYTES);
  struct pattern p;
  uint64_t i;

  pattern_init (&p, 0);
  for (i = 0; i < 100; ++i) {
    p.fail = 1;
    CHECK_EQ (get (c, &p, i * 4096, 4096), (uint64_t) -1);
    CHECK_ERROR (EIO, "pattern: ");
    CHECK_OK (get (c, &p, i * 4096, 4096));
  }
  CHECK_EQ (p.reads, 200);
  cache_free (c);
  pattern_end (&p);
}

struct reader {
  pthread_t thread;
  struct cache *c;
  struct pattern *p;
  uint64_t offset;
  uint32_t bytes;
  int r;
};

static void *
reader_main (void *opaque)
{
  struct reader *r = opaque;

  r->r = get (r->c, r->p, r->offset, r->bytes);
  return NULL;
}

static void
reader_start (struct reader *r, struct cache *c, struct pattern *p,
              uint64_t offset)
{
  *r = (struct reader) { .c = c, .p = p, .offset = offset, .bytes = 512 };
  pthread_create (&r->thread, NULL, reader_main, r);
}

static int
reader_join (struct reader *r)
{
  pthread_join (r->thread, NULL);
  return r->r;
}

/* C4: one read for all who want a slice, and nobody else waits for it. */
static void
test_one_read (void)
{
  struct cache *c = cache_new (CACHE_MIN_BYTES);
  struct reader reader[16];
  struct pattern p;
  unsigned i, failed = 0;

  pattern_init (&p, 0);
  CHECK_OK (get (c, &p, 0, 512));
  set_block (&p, true, 4096);
  for (i = 0; i < 16; ++i)
    reader_start (&reader[i], c, &p, 4096);
  wait_for_waiting (&p, 1);
  CHECK_OK (get (c, &p, 0, 512));   /* a hit */
  CHECK_OK (get (c, &p, 512, 512)); /* a miss */
  usleep (20000); /* let the others arrive */
  set_block (&p, false, 0);
  for (i = 0; i < 16; ++i)
    CHECK_OK (reader_join (&reader[i]));
  CHECK_EQ (p.reads, 3);

  /* If that one fails, another tries. */
  p.reads = 0;
  p.fail = 1;
  set_block (&p, true, 8192);
  for (i = 0; i < 16; ++i)
    reader_start (&reader[i], c, &p, 8192);
  wait_for_waiting (&p, 1);
  usleep (20000);
  set_block (&p, false, 0);
  for (i = 0; i < 16; ++i)
    failed += reader_join (&reader[i]) == -1;
  CHECK_EQ (failed, 1);
  CHECK_EQ (p.reads, 2);
  cache_free (c);
  pattern_end (&p);
}

/* Slices read ahead are there afterwards; what can't be read ahead does
 * not hinder what is wanted.
 */
static void
test_ahead (void)
{
  struct cache *c = cache_new (1 << 20);
  struct cache_ref ref;
  struct pattern p;
  unsigned ahead;
  uint64_t at = 0, i, before;

  pattern_init (&p, 5);
  for (ahead = 1; ahead <= 2 * CACHE_MAX_AHEAD; ++ahead) {
    const unsigned most = ahead < CACHE_MAX_AHEAD ? ahead : CACHE_MAX_AHEAD;

    before = p.bytes;
    p.reads = 0;
    CHECK_OK (cache_get (c, &p.storage, 5, (struct host_off) { FIRST + at },
                         512, ahead, &ref));
    CHECK_EQ (p.reads, 1);
    CHECK (p.bytes - before <= 512 * most);
    CHECK_EQ (cache_word (&ref, 63), word_at (5, at + 504));
    before = (p.bytes - before) / 512;
    for (i = 0; i < before; ++i)
      CHECK_OK (get (c, &p, at + 512 * i, 512));
    CHECK_EQ (p.reads, 1);
    at += 512 * 64;

    /* The first attempt fails, the second is for the one slice alone. */
    p.reads = 0;
    p.fail = 1;
    before = p.bytes;
    if (cache_get (c, &p.storage, 5, (struct host_off) { FIRST + at }, 512,
                   ahead, &ref) == 0) {
      CHECK_EQ (p.reads, 2);
      CHECK_EQ (cache_word (&ref, 0), word_at (5, at));
    }
    else
      CHECK_EQ (p.reads, 1);
    CHECK_OK (get (c, &p, at, 512));
    CHECK_OK (get (c, &p, at + 512, 512));
    at += 512 * 64;
  }
  cache_free (c);
  pattern_end (&p);
}

/* More slices are being read than the cache has slots. */
static void
test_all_loading (void)
{
  struct cache *c = cache_new (CACHE_MIN_BYTES); /* one set of 8 */
  struct reader reader[40];
  struct pattern p;
  unsigned i;

  pattern_init (&p, 0);
  set_block (&p, true, 0);
  for (i = 0; i < 40; ++i)
    reader_start (&reader[i], c, &p, i * 512);
  wait_for_waiting (&p, 8);
  usleep (20000);
  CHECK_EQ (p.reads, 8);
  set_block (&p, false, 0);
  for (i = 0; i < 40; ++i)
    CHECK_OK (reader_join (&reader[i]));
  CHECK (p.reads >= 40); /* some may be evicted before they were seen */
  cache_free (c);
  pattern_end (&p);
}

/* The sequence locks. */

#define HAMMER_THREADS 8
#define HAMMER_SECONDS (1.0 / TEST_EACH (2))

struct hammer {
  struct cache *c;
  struct pattern p[4];
  uint32_t bytes;
  uint64_t slices; /* of each storage */
  bool few_words;
  unsigned ahead;
  double until;
  _Atomic uint64_t seed, gets, retries, errors;
};

static double
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

/* Look at a few words, as a lookup does: the window is shorter. */
static int
get_few (struct hammer *h, struct pattern *p, uint64_t offset, uint64_t *state)
{
  unsigned index[3], i;
  uint64_t word[3];
  struct cache_ref ref;

  for (i = 0; i < 3; ++i)
    index[i] = random_below (state, h->bytes / 8);
  for (;;) {
    if (cache_get (h->c, &p->storage, p->id, (struct host_off) {
          FIRST + offset }, h->bytes, 1, &ref) == -1)
      return -1;
    for (i = 0; i < 3; ++i)
      word[i] = cache_word (&ref, index[i]);
    if (cache_still_valid (&ref))
      break;
    h->retries++;
  }
  for (i = 0; i < 3; ++i)
    CHECK_EQ (word[i], word_at (p->id, offset + 8 * index[i]));
  return 0;
}

static void *
hammer_main (void *opaque)
{
  struct hammer *h = opaque;
  uint64_t state = mix (++h->seed), gets = 0, errors = 0;

  do {
    struct pattern *p = &h->p[random_below (&state, 4)];
    /* Some are wanted more than others. */
    const uint64_t slice = random_below (&state, 1 + random_below
                                         (&state, h->slices));
    const uint64_t offset = slice * h->bytes;

    if (random_below (&state, 200) == 0)
      p->fail = 1;
    if ((h->few_words ? get_few (h, p, offset, &state)
         : get (h->c, p, offset, h->bytes)) == -1)
      errors++;
    gets++;
  } while (gets % 64 != 0 || now () < h->until);
  h->gets += gets;
  h->errors += errors;
  return NULL;
}

static void
test_hammer (uint64_t cache_bytes, uint32_t bytes, uint64_t slices,
             bool few_words, unsigned ahead)
{
  struct hammer h = {
    .c = cache_new (cache_bytes),
    .bytes = bytes,
    .slices = slices,
    .few_words = few_words,
    .ahead = ahead,
    .until = now () + HAMMER_SECONDS,
  };
  pthread_t thread[HAMMER_THREADS];
  uint64_t reads = 0;
  unsigned i;

  for (i = 0; i < 4; ++i)
    pattern_init (&h.p[i], i);
  for (i = 0; i < HAMMER_THREADS; ++i)
    pthread_create (&thread[i], NULL, hammer_main, &h);
  for (i = 0; i < HAMMER_THREADS; ++i)
    pthread_join (thread[i], NULL);
  for (i = 0; i < 4; ++i)
    reads += h.p[i].reads;
  printf ("cache of %" PRIu64 " KiB, slices of %" PRIu32 ": %" PRIu64
          " gets, %" PRIu64 " reads, %" PRIu64 " retries, %" PRIu64
          " errors\n", cache_bytes / 1024, bytes, h.gets, reads, h.retries,
          h.errors);
  CHECK (h.errors <= reads);
  cache_free (h.c);
  for (i = 0; i < 4; ++i)
    pattern_end (&h.p[i]);
}

/* A few threads use eight slices, which is all that fits, over and over,
 * while others come by with new ones.  Whoever misses must find a slot even
 * if all of them are referenced again at once: nobody else may come to wake
 * it up.
 */
#define HOT_THREADS 3

struct hot {
  struct cache *c;
  struct pattern p;
  double until;
  _Atomic uint64_t misses;
};

static void *
hot_main (void *opaque)
{
  struct hot *h = opaque;
  unsigned i = 0;

  /* No more than is needed to set the reference bits all the time. */
  while (++i % 4096 != 0 || now () < h->until) {
    struct cache_ref ref;

    CHECK_OK (cache_get (h->c, &h->p.storage, 0,
                         (struct host_off) { FIRST + i % 8 * 512 }, 512,
                         1, &ref));
  }
  return NULL;
}

static void *
cold_main (void *opaque)
{
  struct hot *h = opaque;
  volatile unsigned spin;
  unsigned i = 0;

  while (now () < h->until) {
    CHECK_OK (get (h->c, &h->p, (8 + i++ % 64) * 512, 512));
    h->misses++;
    for (spin = 0; spin < 3000; ++spin) /* until the hot ones are back */
      ;
  }
  return NULL;
}

static void
join_or_die (pthread_t thread)
{
  struct timespec t;

  clock_gettime (CLOCK_REALTIME, &t);
  t.tv_sec += 20;
  if (pthread_timedjoin_np (thread, NULL, &t) != 0) {
    check_failed (__FILE__, __LINE__, "a thread waits for ever");
    _exit (1);
  }
}

static void
test_hot (void)
{
  struct hot h = {
    .c = cache_new (CACHE_MIN_BYTES),
    .until = now () + 2 * HAMMER_SECONDS,
  };
  pthread_t thread[HOT_THREADS + 1];
  unsigned i;

  pattern_init (&h.p, 0);
  for (i = 0; i < HOT_THREADS; ++i)
    pthread_create (&thread[i], NULL, hot_main, &h);
  pthread_create (&thread[i], NULL, cold_main, &h);
  for (i = 0; i <= HOT_THREADS; ++i)
    join_or_die (thread[i]);
  printf ("%" PRIu64 " misses beside hot slices\n", h.misses);
  cache_free (h.c);
  pattern_end (&h.p);
}

int
main (void)
{
  fix_hash_key ();
  check_time_limit (200);
  test_hits ();
  test_size ();
  test_eviction ();
  test_error ();
  test_one_read ();
  test_ahead ();
  test_all_loading ();
  test_hot ();
  test_hammer (CACHE_MIN_BYTES, 4096, 8, true, 1);
  test_hammer (CACHE_MIN_BYTES, 4096, 3, false, 1);
  test_hammer (CACHE_MIN_BYTES, 512, 16, true, 8);
  test_hammer (256 << 10, 512, 64, false, 1);
  test_hammer (512 << 10, 4096, 64, true, 16);
  return check_result ();
}
