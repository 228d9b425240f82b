/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/leaks.c, qcow2/write/suspects.c: what a killed writer has left
 * is freed, and nothing else; beside threads that write, zero and trim, for
 * ThreadSanitizer, too.
 */

#include <config.h>

#include <errno.h>
#include <sched.h>
#include <stdlib.h>
#include <time.h>

#include "base/bytes.h"
#include "check.h"
#include "checker.h"
#include "content.h"
#include "guest.h"
#include "must-have.h"
#include "qcow2/entry.h"
#include "qcow2/write/suspects.h"
#include "random.h"
#include "seconds.h"

/* What the allocator says when a cluster is freed twice. */
static void
listen (const char *text)
{
  if (strstr (text, "while it was in use") != NULL)
    check_failed (__FILE__, __LINE__, "%s", text);
}

/* ---------------------------------------------------------------- refcounts */

/* Refcounts in an image's bytes. */
struct counted {
  uint8_t *bytes;
  uint64_t size;
  unsigned bits, order;
};

static struct counted
count_in (uint8_t *bytes, uint64_t size)
{
  return (struct counted) {
    .bytes = bytes, .size = size, .bits = get_be32 (bytes + 20),
    .order = get_be32 (bytes + 4) >= 3 ? get_be32 (bytes + 96) : 4,
  };
}

/* The word that the refcount of this cluster is in; NULL: it has no block. */
static uint8_t *
find_word (const struct counted *c, uint64_t cluster, uint64_t *i)
{
  const uint64_t per_block = (UINT64_C (8) << c->bits) >> c->order;
  const uint64_t table = get_be64 (c->bytes + 48);
  const uint64_t entries = (uint64_t) get_be32 (c->bytes + 56)
    << (c->bits - 3);
  uint64_t block;

  if (cluster / per_block >= entries)
    return NULL;
  block = get_be64 (c->bytes + table + cluster / per_block * 8);
  *i = cluster % per_block;
  return block == 0 ? NULL : c->bytes + block + (*i << c->order) / 64 * 8;
}

/* Of what has no block: 0. */
static uint64_t
refcount_of (const struct counted *c, uint64_t cluster)
{
  uint64_t i;
  const uint8_t *p = find_word (c, cluster, &i);

  return p == NULL ? 0 : entry_get_refcount (c->order, get_be64 (p), i);
}

static bool
leak (const struct counted *c, uint64_t cluster)
{
  uint64_t i;
  uint8_t *p = find_word (c, cluster, &i);

  if (p == NULL || entry_get_refcount (c->order, get_be64 (p), i) != 0)
    return false;
  put_be64 (p, entry_put_refcount (c->order, get_be64 (p), i, 1));
  return true;
}

/* Leak every free cluster that the file has, and some behind its end: within
 * it from then on, and not.
 */
static unsigned
plant (struct made *m)
{
  const uint64_t cs = m->cluster_size, old = m->size;
  const uint64_t end = (old + cs - 1) / cs;
  struct counted c;
  unsigned nr = 0;
  uint64_t i;

  if (old % cs == 0) {
    m->size += 3 * cs;
    m->bytes = must_have (realloc (m->bytes, m->size));
    memset (m->bytes + old, 0x5a, m->size - old);
  }
  c = count_in (m->bytes, m->size);
  for (i = 0; i < end + 6; ++i)
    nr += leak (&c, i);
  return nr;
}

/* --------------------------------------------------------------------- runs */

static void
wait_until_done (struct guest *g)
{
  const struct timespec pause = { .tv_nsec = 1000000 };

  while (!image_leaks_are_done (g->im))
    nanosleep (&pause, NULL);
}

static void
start (struct guest *g, struct made *m)
{
  guest_init (g, m);
  g->free_leaks = true;
  if (!guest_start (g, m->bytes, m->size) || !guest_read (g))
    check_failed (__FILE__, __LINE__, "%s: %s", m->name, g->why);
  guest_believe (g);
  if (!guest_make_writable (g))
    check_failed (__FILE__, __LINE__, "%s: %s", m->name, g->why);
}

/* Close it; the image must be sound, and have so many leaks. */
static void
finish (struct guest *g, uint64_t leaks)
{
  struct check_result r;

  if (!guest_finish (g))
    check_failed (__FILE__, __LINE__, "%s: %s", g->m->name, g->why);
  check_image (g->disk->bytes, g->disk->size, 0, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s: %s", g->m->name, r.why);
  if (r.leaks + r.beyond != leaks)
    check_failed (__FILE__, __LINE__, "%s: %" PRIu64 " leaks, and %" PRIu64
                  " beyond the end, not %" PRIu64, g->m->name, r.leaks,
                  r.beyond, leaks);
  guest_free (g);
}

/* An image of which everything is known, and leaks planted in it. */
static unsigned
make (struct made *m, const char *name)
{
  char known[96];

  snprintf (known, sizeof known, "%s-known", name);
  if (!made_image (m, known))
    abort ();
  return plant (m);
}

/* Without a request all that was planted is freed, on the disk, too. */
static void
test_alone (const char *name)
{
  const bool unknown = strstr (name, "autoclear") != NULL;
  struct check_result r;
  struct guest g;
  struct made m;
  const unsigned nr = make (&m, name);

  start (&g, &m);
  wait_until_done (&g);
  check_image (g.disk->bytes, g.disk->size, 0, &r);
  if (r.leaks + r.beyond != (unknown ? nr : 0))
    check_failed (__FILE__, __LINE__, "%s: %" PRIu64 " leaks of %u are left",
                  name, r.leaks + r.beyond, nr);
  finish (&g, unknown ? nr : 0);
  made_free (&m);
}

/* Beside threads.  Ended before its time it may leave some of those that were
 * planted, or that the image had from the start.
 */
static void
test_beside (const char *name, uint64_t seed)
{
  struct script *s = must_have (malloc (sizeof *s));
  struct check_result r;
  struct guest g;
  struct made m;
  const unsigned nr = make (&m, name);

  start (&g, &m);
  (seed % 2 == 0 ? script_churn : script_random) (s, &m, seed, 100);
  if (!guest_threads (&g, s, 4, seed % 4 < 2))
    check_failed (__FILE__, __LINE__, "%s: %s", name, g.why);
  if (seed % 8 != 0) {
    wait_until_done (&g);
    finish (&g, 0);
  }
  else {
    if (!guest_finish (&g))
      check_failed (__FILE__, __LINE__, "%s: %s", name, g.why);
    check_image (g.disk->bytes, g.disk->size, 0, &r);
    if (!check_is_sound (&r) || r.leaks + r.beyond > nr + m.leaks)
      check_failed (__FILE__, __LINE__, "%s: %s, %" PRIu64 " leaks", name,
                    r.why, r.leaks);
    guest_free (&g);
  }
  free (s);
  made_free (&m);
}

/* --------------------------------------------------------- nothing is freed */

struct unknown {
  const char *what;
  const char *image;
  void (*make) (struct made *m);
};

static void
unknown_field (struct made *m)
{
  m->bytes[105] = 1; /* between the compression type and the header's end */
}

static void
unknown_compatible (struct made *m)
{
  m->bytes[80] = 1;
}

static void
unknown_autoclear (struct made *m)
{
  m->bytes[88] = 1;
}

/* The extension is where the header ends. */
static void
bitmaps_without_bit (struct made *m)
{
  m->bytes[95] &= ~QCOW2_AUTOCLEAR_BITMAPS;
}

static void
unknown_extension (struct made *m)
{
  put_be32 (m->bytes + 112, UINT32_C (0x12345678));
  put_be32 (m->bytes + 116, 0);
}

/* In the first L2 table, an entry that has none. */
static void
damaged_entry (struct made *m)
{
  const uint64_t l1 = get_be64 (m->bytes + 40);
  const uint64_t table = get_be64 (m->bytes + l1) & QCOW2_ENTRY_OFFSET_MASK;
  uint64_t i;

  for (i = 0; i < m->cluster_size / 8; ++i) {
    if (get_be64 (m->bytes + table + 8 * i) == 0) {
      put_be64 (m->bytes + table + 8 * i, UINT64_C (1) << 57);
      return;
    }
  }
  abort ();
}

/* A table of which nobody can tell what it refers to. */
static void
damaged_snapshot (struct made *m)
{
  const uint64_t table = get_be64 (m->bytes + 64);

  put_be32 (m->bytes + table + 8, 0x7fffffff);
}

static const struct unknown unknowns[] = {
  { "a field", "v3-c4k-holes", unknown_field },
  { "a compatible bit", "v3-c4k-holes", unknown_compatible },
  { "an autoclear bit", "v3-c4k-holes", unknown_autoclear },
  { "bitmaps without their bit", "v3-c4k-holes-bitmap", bitmaps_without_bit },
  { "an extension", "v3-c4k-holes", unknown_extension },
  { "an entry", "v3-c4k-holes", damaged_entry },
  { "a snapshot", "v3-c4k-holes-snap", damaged_snapshot },
};

/* What is not known, or damaged, may own clusters. */
static void
test_unknown (const struct unknown *u)
{
  struct writer_options options = { .invalidate_bitmaps = true };
  struct crash_disk disk;
  struct counted before, after;
  struct image *im;
  struct made m;
  uint64_t i;

  CHECK (make (&m, u->image) > 0);
  u->make (&m);
  crash_disk_init (&disk, m.bytes, m.size);
  im = image_open_storage (crash_storage_open (&disk, "test"),
                           CACHE_MIN_BYTES);
  if (im == NULL || image_make_writable (im, &options) == -1)
    check_failed (__FILE__, __LINE__, "%s: %s", u->what, error_message ());
  image_free_leaks (im);
  while (!image_leaks_are_done (im))
    sched_yield ();
  CHECK_OK (image_close (im));
  before = count_in (m.bytes, m.size);
  after = count_in (disk.bytes, disk.size);
  for (i = 0; i <= m.size >> before.bits; ++i) {
    if (refcount_of (&before, i) != refcount_of (&after, i))
      check_failed (__FILE__, __LINE__, "%s: cluster %" PRIu64 " was freed",
                    u->what, i);
  }
  crash_disk_free (&disk);
  made_free (&m);
}

/* Whatever fails while it is looked for: what is in use stays. */
static void
test_failing (const char *name)
{
  struct check_result r;
  struct guest g;
  struct made m;
  const unsigned nr = make (&m, name);
  uint64_t call;

  for (call = 1; call < 200 && !check_any_failed (); call += 1 + call / 8) {
    start (&g, &m);
    g.failing = true;
    pthread_mutex_lock (&g.disk->lock);
    g.disk->calls = 0;
    g.disk->fault = (struct crash_fault) {
      .call = call, .kinds = call % 2 ? FAULT_ANY : FAULT_READ,
      .forever = call % 3 == 0,
    };
    pthread_mutex_unlock (&g.disk->lock);
    wait_until_done (&g);
    (void) guest_close (&g);
    check_image (g.disk->bytes, g.disk->size, 0, &r);
    if (!check_is_sound (&r) || r.leaks + r.beyond > nr)
      check_failed (__FILE__, __LINE__, "%s: call %" PRIu64 " fails: %s", name,
                    call, r.why);
    guest_free (&g);
  }
  made_free (&m);
}

/* ----------------------------------------------------------------- suspects */

/* Against a byte for each cluster. */
static void
test_suspects (void)
{
  enum { NR = 5 * SUSPECTS_PART };
  uint8_t *is = must_have (calloc (NR, 1));
  struct suspects *s = suspects_new (16);
  uint64_t state = 1, i, at;
  unsigned n;

  CHECK_EQ (suspects_add (s, 10, 20), 1);
  CHECK_EQ (suspects_add (s, 100, 1), 1); /* the same part */
  CHECK_EQ (suspects_add (s, 2 * SUSPECTS_PART - 1, SUSPECTS_PART + 2), 1);
  CHECK_EQ (s->nr, 4);
  memset (is, 1, 4 * SUSPECTS_PART);
  CHECK_EQ (suspects_add (s, 9 * SUSPECTS_PART,
                          SUSPECTS_MAX_PARTS * SUSPECTS_PART), 0);
  CHECK_EQ (s->nr, 4);
  for (n = 0; n < 2000; ++n) {
    const uint64_t from = random_below (&state, NR);
    const uint64_t nr = random_below (&state, n % 100 == 0 ? 20000 : 200);

    suspects_clear (s, from, nr);
    for (i = from; i < from + nr && i < NR; ++i)
      is[i] = 0;
  }
  for (i = 0; i < NR; ++i) {
    at = i;
    CHECK (suspects_next (s, &at) ? at >= i : memchr (is + i, 1, NR - i)
           == NULL);
    if (is[i])
      CHECK_EQ (at, i);
    else
      CHECK (at != i || !suspects_next (s, &at));
  }
  suspects_clear (s, 0, UINT64_MAX);
  at = 0;
  CHECK (!suspects_next (s, &at));
  suspects_free (s);
  free (is);
}

/* A compressed cluster has all that it touches; and what can't be decoded
 * leaves it open who is leaked.
 */
static void
test_entries (void)
{
  const struct entry_format f = { .version = 3, .cluster_bits = 12 };
  struct suspects *s = suspects_new (12);
  uint64_t words[2], at = 5;

  CHECK_EQ (suspects_add (s, 0, 1), 1);
  entry_encode_compressed (&f, (struct host_off) { 5 * 4096 + 4000 }, 200,
                           words);
  CHECK (suspects_clear_entry (s, &f, words[0], 0));
  CHECK (suspects_next (s, &at));
  CHECK_EQ (at, 7);
  words[0] = htobe64 (UINT64_C (8) << 12 | QCOW2_L2_ZERO);
  words[1] = htobe64 (UINT64_C (9) << 12);
  suspects_clear_table (s, &f, words, 2);
  at = 8;
  CHECK (suspects_next (s, &at));
  CHECK_EQ (at, 10);
  CHECK (!atomic_load (&s->unsure));
  words[0] = htobe64 (512);
  suspects_clear_table (s, &f, words, 2);
  CHECK (atomic_load (&s->unsure));
  suspects_free (s);
}

int
main (void)
{
  uint64_t seed = 0;
  double until;
  unsigned i;

  check_time_limit (200 + 3 * test_seconds (6));
  debug_hooks.message = listen;
  test_suspects ();
  test_entries ();
  for (i = 0; made_names[i] != NULL && !check_any_failed (); ++i) {
    if (i % TEST_EACH (4) == 0)
      test_alone (made_names[i]);
  }
  for (i = 0; i < sizeof unknowns / sizeof unknowns[0]; ++i)
    test_unknown (&unknowns[i]);
  test_failing ("v3-c512-snap-comp-holes");
  test_failing ("v3-c4k-holes-bitmap");
  until = seconds () + test_seconds (6);
  for (i = 0; seconds () < until && !check_any_failed (); ++seed) {
    if (strstr (made_names[i], "autoclear") == NULL)
      test_beside (made_names[i], seed);
    if (made_names[++i] == NULL)
      i = 0;
  }
  printf ("%" PRIu64 " images beside threads\n", seed);
  return check_result ();
}
