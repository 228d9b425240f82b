/* SPDX-License-Identifier: BSD-3-Clause */

/* cache/clusters.c: a cluster is decoded once for all who want a part of it. */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>

#include "cache/clusters.h"
#include "check.h"
#include "random.h"
#include "seconds.h"

#define CLUSTER 65536

struct decoder {
  uint64_t seed;
  _Atomic unsigned calls;
  _Atomic unsigned fail; /* so many calls fail */
  _Atomic bool held;     /* calls wait */
  unsigned microseconds;
  _Atomic unsigned running, most_running;
  _Atomic (void *) last_out;
};

static uint8_t
byte_at (uint64_t seed, size_t i)
{
  return mix (seed + i / 8) >> (8 * (i % 8));
}

/* The first bytes, by words: byte by byte is long for a thread sanitizer. */
static void
fill (uint64_t seed, uint8_t *p, size_t n)
{
  size_t i;

  for (i = 0; i + 8 <= n; i += 8) {
    const uint64_t word = htole64 (mix (seed + i / 8));

    memcpy (p + i, &word, 8);
  }
  for (; i < n; ++i)
    p[i] = byte_at (seed, i);
}

static int
decode (void *opaque, void *out, size_t out_len)
{
  struct decoder *d = opaque;
  const unsigned running = ++d->running;
  int r = 0;

  if (running > d->most_running)
    d->most_running = running;
  d->calls++;
  d->last_out = out;
  if (d->microseconds > 0)
    usleep (d->microseconds);
  while (d->held)
    usleep (100);
  if (d->fail > 0) {
    d->fail--;
    error_set (EIO, "decoder failed");
    r = -1;
  }
  fill (d->seed, out, out_len);
  d->running--;
  return r;
}

static int
read_part (struct cluster_cache *d, unsigned id, uint64_t offset, size_t cluster,
           size_t skip, size_t count, struct decoder *z)
{
  const struct cluster_cache_key key = {
    .id = id, .size = 100, .offset = offset,
  };
  uint8_t *buf = malloc (count);
  uint64_t word = mix (z->seed + skip / 8);
  size_t i;
  int r;

  if (buf == NULL)
    abort ();
  r = cluster_cache_read (d, key, cluster, skip, buf, count, decode, z);
  for (i = 0; r == 0 && i < count; ++i) {
    const size_t at = skip + i;

    if (at % 8 == 0)
      word = mix (z->seed + at / 8);
    if (buf[i] != (uint8_t) (word >> (8 * (at % 8)))) {
      check_failed (__FILE__, __LINE__, "offset %" PRIu64 " byte %zu is wrong",
                    offset, skip + i);
      break;
    }
  }
  free (buf);
  return r;
}

static void
test_once (void)
{
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 1 }, y = { .seed = 2 };
  size_t at;

  for (at = 0; at < CLUSTER; at += 4096)
    CHECK_OK (read_part (d, 0, 0x1000, CLUSTER, at, 4096, &z));
  CHECK_EQ (z.calls, 1);
  CHECK_OK (read_part (d, 0, 0x1000, CLUSTER, 65535, 1, &z));
  CHECK_OK (read_part (d, 0, 0x1000, CLUSTER, 1, 65535, &z));
  CHECK_OK (read_part (d, 0, 0x1000, CLUSTER, 0, CLUSTER, &z));
  CHECK_EQ (z.calls, 1);
  /* Another file, another place. */
  CHECK_OK (read_part (d, 1, 0x1000, CLUSTER, 0, 10, &y));
  CHECK_OK (read_part (d, 0, 0x1001, CLUSTER, 0, 10, &y));
  CHECK_EQ (y.calls, 2);
  CHECK_OK (read_part (d, 0, 0x1000, CLUSTER, 0, 10, &z));
  CHECK_EQ (z.calls, 1);
  cluster_cache_free (d);
  cluster_cache_free (NULL);
}

/* Whole clusters go straight into the caller's buffer and are not kept. */
static void
test_whole (void)
{
  const struct cluster_cache_key key = { .id = 0, .size = 1, .offset = 5 };
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 3 };
  uint8_t *buf = malloc (CLUSTER);

  CHECK_OK (cluster_cache_read (d, key, CLUSTER, 0, buf, CLUSTER, decode, &z));
  CHECK (z.last_out == buf);
  CHECK_OK (cluster_cache_read (d, key, CLUSTER, 0, buf, CLUSTER, decode, &z));
  CHECK_EQ (z.calls, 2);
  CHECK_EQ (buf[CLUSTER - 1], byte_at (3, CLUSTER - 1));
  z.fail = 1;
  CHECK_EQ (cluster_cache_read (d, key, CLUSTER, 0, buf, CLUSTER, decode, &z),
            (uint64_t) -1);
  CHECK_ERROR (EIO, "decoder failed");
  free (buf);
  cluster_cache_free (d);
}

static void
test_failing (void)
{
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 4, .fail = 2 };

  CHECK_EQ (read_part (d, 0, 0, CLUSTER, 0, 10, &z), (uint64_t) -1);
  CHECK_ERROR (EIO, "decoder failed");
  CHECK_EQ (read_part (d, 0, 0, CLUSTER, 0, 10, &z), (uint64_t) -1);
  CHECK_OK (read_part (d, 0, 0, CLUSTER, 0, 10, &z));
  CHECK_EQ (z.calls, 3);
  CHECK_OK (read_part (d, 0, 0, CLUSTER, 0, 10, &z));
  CHECK_EQ (z.calls, 3);
  cluster_cache_free (d);
}

/* The least recently used make room: by number and by bytes. */
static void
test_eviction (void)
{
  static const size_t clusters[] = { 512, CLUSTER, 2 << 20 };
  unsigned c;
  uint64_t i;

  for (c = 0; c < 3; ++c) {
    const uint64_t by_bytes = CLUSTER_CACHE_MAX_BYTES / clusters[c];
    const uint64_t fit = by_bytes < CLUSTER_CACHE_MAX_CLUSTERS ? by_bytes
      : CLUSTER_CACHE_MAX_CLUSTERS;
    struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
    struct decoder z = { .seed = 5 };

    for (i = 0; i < fit; ++i)
      CHECK_OK (read_part (d, 0, i, clusters[c], 0, 1, &z));
    for (i = 0; i < fit; ++i)
      CHECK_OK (read_part (d, 0, i, clusters[c], 3, 1, &z));
    CHECK_EQ (z.calls, fit);
    CHECK_OK (read_part (d, 0, 0, clusters[c], 0, 1, &z)); /* 1 is oldest */
    CHECK_OK (read_part (d, 0, fit, clusters[c], 0, 1, &z));
    CHECK_EQ (z.calls, fit + 1);
    CHECK_OK (read_part (d, 0, 0, clusters[c], 0, 1, &z));
    CHECK_EQ (z.calls, fit + 1);
    CHECK_OK (read_part (d, 0, 1, clusters[c], 0, 1, &z));
    CHECK_EQ (z.calls, fit + 2);
    cluster_cache_free (d);
  }
}

/* Layers with clusters of several sizes share one. */
static void
test_mixed_sizes (void)
{
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 6 };
  uint64_t state = 8;
  unsigned i;

  for (i = 0; i < 3000 / TEST_EACH (10); ++i) {
    const uint64_t nr = random_below (&state, 400);
    const size_t size = (size_t) 512 << (nr % 13);
    const size_t skip = random_below (&state, size);

    CHECK_OK (read_part (d, nr % 13, nr, size, skip,
                         1 + random_below (&state, size - skip > 64 ? 64
                                           : size - skip), &z));
  }
  cluster_cache_free (d);
}

struct reader {
  pthread_t thread;
  struct cluster_cache *d;
  struct decoder *z;
  uint64_t offset;
  size_t skip, count;
  int r, errnum;
};

static void *
reader_main (void *opaque)
{
  struct reader *r = opaque;

  error_set (0, "none");
  r->r = read_part (r->d, 0, r->offset, CLUSTER, r->skip, r->count, r->z);
  r->errnum = error_errno ();
  return NULL;
}

/* Sixteen at once; some want all of it. */
static void
test_parallel (unsigned fail)
{
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 7, .microseconds = 20000, .fail = fail };
  struct reader reader[16];
  unsigned i, failed = 0;

  for (i = 0; i < 16; ++i) {
    reader[i] = (struct reader) {
      .d = d, .z = &z, .offset = 9, .skip = i * 4096, .count = 4096,
    };
    pthread_create (&reader[i].thread, NULL, reader_main, &reader[i]);
  }
  for (i = 0; i < 16; ++i) {
    pthread_join (reader[i].thread, NULL);
    if (reader[i].r == -1) {
      failed++;
      CHECK_EQ (reader[i].errnum, EIO);
    }
  }
  CHECK_EQ (failed, fail);
  CHECK_EQ (z.calls, fail + (fail < 16));
  CHECK_EQ (z.most_running, 1); /* of the same cluster */
  cluster_cache_free (d);
}

static void
read_100 (struct cluster_cache *d, unsigned id, uint64_t offset, struct decoder *z)
{
  CHECK_OK (read_part (d, id, offset, CLUSTER, 0, 1, z));
}

/* What doesn't fit isn't kept, whatever threads had it at once, but for one
 * cluster.
 */
static void
test_small (size_t bytes)
{
  struct cluster_cache *d = cluster_cache_new (bytes);
  struct decoder z = { .seed = 10, .held = true };
  struct reader reader[3];
  unsigned i;

  for (i = 0; i < 3; ++i) {
    reader[i] = (struct reader) {
      .d = d, .z = &z, .offset = i * 1000, .count = 10,
    };
    pthread_create (&reader[i].thread, NULL, reader_main, &reader[i]);
  }
  while (z.running < 3)
    usleep (100);
  z.held = false;
  for (i = 0; i < 3; ++i)
    pthread_join (reader[i].thread, NULL);
  for (i = 0; i < 3; ++i)
    read_100 (d, 0, i * 1000, &z);
  CHECK (z.calls >= 3 + 2);
  read_100 (d, 0, 3000, &z);
  z.calls = 0;
  read_100 (d, 0, 3000, &z);
  CHECK_EQ (z.calls, 0);
  read_100 (d, 0, 2000, &z);
  CHECK_EQ (z.calls, 1);
  cluster_cache_free (d);
}

/* Bytes that were decoded become others: those of the same file that overlap
 * (each has 100 compressed bytes) are decoded anew.
 */
static void
test_forget (void)
{
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 11 };
  unsigned round;

  for (round = 0; round < 2; ++round) {
    read_100 (d, 0, 900, &z);
    read_100 (d, 0, 901, &z);
    read_100 (d, 0, 1999, &z);
    read_100 (d, 0, 2000, &z);
    read_100 (d, 1, 1500, &z);
    if (round == 0)
      cluster_cache_forget (d, 0, 1000, 1000);
  }
  CHECK_EQ (z.calls, 5 + 2);
  cluster_cache_free (d);
}

/* It is forgotten while it is decoded: who waits for that gets it, or what is
 * there now; who comes later gets what is there now.
 */
static void
test_forget_busy (void)
{
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 12, .held = true };
  struct reader reader[2];
  unsigned i;

  for (i = 0; i < 2; ++i) {
    reader[i] = (struct reader) { .d = d, .z = &z, .offset = 7, .count = 10 };
    pthread_create (&reader[i].thread, NULL, reader_main, &reader[i]);
  }
  while (z.running == 0)
    usleep (100);
  cluster_cache_forget (d, 0, 0, 1000);
  z.held = false;
  for (i = 0; i < 2; ++i) {
    pthread_join (reader[i].thread, NULL);
    CHECK_OK (reader[i].r);
  }
  read_100 (d, 0, 7, &z);
  CHECK_EQ (z.calls, 2);
  cluster_cache_free (d);
}

struct stress {
  struct cluster_cache *d;
  struct decoder z[64];
  _Atomic uint64_t seed, failed;
};

static void *
stress_main (void *opaque)
{
  struct stress *s = opaque;
  uint64_t state = mix (++s->seed);
  unsigned i;

  for (i = 0; i < 250 / TEST_EACH (5); ++i) {
    /* Of 2 MiB each: eight of them fit. */
    const unsigned nr = random_below (&state, 12);
    const bool whole = random_below (&state, 20) == 0;
    const size_t size = nr < 2 ? 2 << 20 : 4096 << (nr % 4);

    if (random_below (&state, 10) == 0)
      s->z[nr].fail = 1;
    if (nr >= 2 && random_below (&state, 5) == 0)
      cluster_cache_forget (s->d, 0, nr, 1);
    if (read_part (s->d, nr, nr, size, whole ? 0 : size / 2,
                   whole ? size : 100, &s->z[nr]) == -1)
      s->failed++;
  }
  return NULL;
}

static void
test_stress (void)
{
  struct stress s = { .d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES) };
  pthread_t thread[12];
  unsigned i;

  for (i = 0; i < 64; ++i)
    s.z[i].seed = i;
  for (i = 0; i < 12; ++i)
    pthread_create (&thread[i], NULL, stress_main, &s);
  for (i = 0; i < 12; ++i)
    pthread_join (thread[i], NULL);
  cluster_cache_free (s.d);
}

/* More threads than slots decode different clusters: nobody waits, and
 * those without a slot do without.
 */
static void
test_many_threads (void)
{
  enum { NR = CLUSTER_CACHE_MAX_CLUSTERS + 20 };
  struct cluster_cache *d = cluster_cache_new (CLUSTER_CACHE_MAX_BYTES);
  struct decoder z = { .seed = 10, .microseconds = 300000 };
  struct reader *reader = calloc (NR, sizeof *reader);
  unsigned i;

  for (i = 0; i < NR; ++i) {
    reader[i] = (struct reader) {
      .d = d, .z = &z, .offset = i, .skip = 1, .count = 10,
    };
    if (pthread_create (&reader[i].thread, NULL, reader_main, &reader[i]) != 0)
      abort ();
  }
  for (i = 0; i < NR; ++i) {
    pthread_join (reader[i].thread, NULL);
    CHECK_OK (reader[i].r);
  }
  CHECK_EQ (z.calls, NR);
  free (reader);
  cluster_cache_free (d);
}

int
main (void)
{
  check_time_limit (200);
  test_once ();
  test_whole ();
  test_failing ();
  test_eviction ();
  test_mixed_sizes ();
  test_small (CLUSTER);
  test_small (CLUSTER / 2);
  test_forget ();
  test_forget_busy ();
  test_parallel (0);
  test_parallel (1);
  test_parallel (5);
  test_parallel (16);
  test_stress ();
  test_many_threads ();
  return check_result ();
}
