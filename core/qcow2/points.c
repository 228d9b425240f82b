/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/points.h"

/* The entries of a slice, as they were until a change in this generation. */
struct shadow {
  struct shadow *next; /* in its bucket; of one slice, the newer one is first */
  uint64_t slice;
  uint64_t generation;
  struct host_off place;
  bool empty;             /* all are zeros: there are no words */
  _Atomic uint64_t words[]; /* big endian, and never changed */
};

/* So many bytes for each bucket. */
#define BUCKET_BYTES 1024
#define MAX_BUCKET_BITS 20

struct points *
points_new (void)
{
  struct points *p = calloc (1, sizeof *p);
  pthread_condattr_t attr;
  unsigned i;

  if (p == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  pthread_condattr_init (&attr);
  pthread_condattr_setclock (&attr, CLOCK_MONOTONIC);
  pthread_cond_init (&p->changed, &attr);
  pthread_condattr_destroy (&attr);
  pthread_mutex_init (&p->lock, NULL);
  for (i = 0; i < POINTS_STRIPES; ++i)
    pthread_mutex_init (&p->stripe[i], NULL);
  pthread_mutex_init (&p->bits_lock, NULL);
  bitmap_lives_init (&p->lives);
  return p;
}

void
points_free (struct points *p)
{
  unsigned i;

  if (p == NULL)
    return;
  assert (atomic_load (&p->bytes) == 0);
  free (p->bucket);
  free (p->bits);
  bitmap_lives_destroy (&p->lives);
  for (i = 0; i < POINTS_STRIPES; ++i)
    pthread_mutex_destroy (&p->stripe[i]);
  pthread_mutex_destroy (&p->bits_lock);
  pthread_mutex_destroy (&p->lock);
  pthread_cond_destroy (&p->changed);
  free (p);
}

int
points_allow (struct points *p, uint64_t max_bytes)
{
  unsigned bits = 6; /* POINTS_STRIPES */

  while (bits < MAX_BUCKET_BITS && max_bytes >> bits > BUCKET_BYTES)
    bits++;
  p->key = hash_key ();
  p->bucket_bits = bits;
  p->max_bytes = max_bytes;
  p->bucket = calloc (UINT64_C (1) << bits, sizeof *p->bucket);
  if (p->bucket != NULL)
    return points_allow_bits (p);
  error_set (ENOMEM, "out of memory");
  return -1;
}

/* Never more than there may be, not even for a moment: others would fail. */
bool
points_reserve (struct points *p, uint64_t bytes)
{
  uint64_t is = atomic_load (&p->bytes);

  do {
    if (is > p->max_bytes || p->max_bytes - is < bytes)
      return false;
  } while (!atomic_compare_exchange_weak (&p->bytes, &is, is + bytes));
  return true;
}

/* For entries, which come before bits: S5, S6. */
static bool
reserve_first (struct points *p, uint64_t bytes)
{
  if (points_reserve (p, bytes))
    return true;
  points_give_up_bits (p);
  return points_reserve (p, bytes);
}

/* --------------------------------------------------------------- generations */

/* lock held. */
static void
find_newest (struct points *p)
{
  uint64_t newest = 0;
  unsigned i;

  for (i = 0; i < POINTS_MAX; ++i) {
    const uint64_t g = atomic_load (&p->point[i].generation);

    if (g > newest)
      newest = g;
  }
  atomic_store (&p->newest, newest);
}

struct point *
points_take (struct points *p)
{
  struct point *point = NULL;
  unsigned i;

  pthread_mutex_lock (&p->lock);
  for (i = 0; i < POINTS_MAX && point == NULL; ++i) {
    if (!p->point[i].taken)
      point = &p->point[i];
  }
  if (point != NULL) {
    point->taken = true;
    atomic_store (&point->failed, false);
    atomic_store (&point->told, false);
    atomic_store (&point->generation, ++p->generation);
    find_newest (p);
    atomic_store (&p->held, true);
  }
  pthread_mutex_unlock (&p->lock);
  return point;
}

void
points_end (struct points *p, struct point *point)
{
  atomic_store (&point->generation, 0);
  find_newest (p);
}

void
points_leave (struct point *point)
{
  assert (atomic_load (&point->generation) == 0);
  point->taken = false;
}

void
points_fail (struct points *p)
{
  unsigned i;

  pthread_mutex_lock (&p->lock);
  atomic_store (&p->failed, p->generation);
  for (i = 0; i < POINTS_MAX; ++i) {
    if (atomic_load (&p->point[i].generation) == 0 ||
        atomic_load (&p->point[i].failed))
      continue;
    atomic_store (&p->point[i].failed, true);
    p->failing = true;
  }
  pthread_cond_broadcast (&p->changed);
  pthread_mutex_unlock (&p->lock);
}

void
points_settle (struct points *p)
{
  if (atomic_load (&p->newest) == 0)
    atomic_store (&p->held, false);
}

/* ------------------------------------------------------------------ shadows */

static inline struct shadow **
find_bucket (struct points *p, uint64_t slice, pthread_mutex_t **stripe)
{
  const uint64_t i = hash_mix (&p->key, slice) >> (64 - p->bucket_bits);

  *stripe = &p->stripe[i % POINTS_STRIPES];
  return &p->bucket[i];
}

static inline uint64_t
shadow_word (const struct shadow *s, unsigned i)
{
  return s->empty ? 0
    : be64toh (atomic_load_explicit (&s->words[i], memory_order_relaxed));
}

/* The next shadow of this slice, from s on; NULL: there is none.  Its stripe is
 * locked.
 */
static struct shadow *
next_of_slice (struct shadow *s, uint64_t slice)
{
  while (s != NULL && s->slice != slice)
    s = s->next;
  return s;
}

static inline uint64_t
shadow_bytes (const struct map *m, bool empty)
{
  return sizeof (struct shadow) + (empty ? 0 : m->slice_bytes);
}

/* What a point has of a slice, from the first shadow in its bucket on (S1); NULL:
 * the live entries.  Its stripe is locked.
 */
static const struct shadow *
find_shadow (struct shadow *first, const struct point *point, uint64_t slice)
{
  const uint64_t generation = atomic_load (&point->generation);
  const struct shadow *found = NULL;
  struct shadow *s;

  for (s = next_of_slice (first, slice);
       s != NULL && s->generation >= generation;
       s = next_of_slice (s->next, slice))
    found = s;
  return found;
}

bool
points_words (struct points *p, const struct point *point, const struct map *m,
              uint64_t slice, uint64_t *words)
{
  const unsigned nr = m->slice_bytes / sizeof words[0];
  const struct shadow *found;
  pthread_mutex_t *stripe;
  struct shadow **bucket = find_bucket (p, slice, &stripe);
  unsigned i;

  pthread_mutex_lock (stripe);
  found = find_shadow (*bucket, point, slice);
  for (i = 0; found != NULL && i < nr; ++i)
    words[i] = shadow_word (found, i);
  pthread_mutex_unlock (stripe);
  return found != NULL;
}

bool
points_lookup (struct points *p, const struct point *point,
               const struct map *m, struct guest_off offset, uint64_t max,
               struct run *run)
{
  static const _Atomic uint64_t zeros[MAP_MAX_WORDS];
  const uint64_t slice = map_slice_number (m, offset);
  pthread_mutex_t *stripe;
  struct shadow **bucket = find_bucket (p, slice, &stripe);
  const struct shadow *found;

  pthread_mutex_lock (stripe);
  found = find_shadow (*bucket, point, slice);
  if (found != NULL)
    map_lookup_words (m, found->empty ? zeros : found->words, found->place,
                      offset, max, run);
  pthread_mutex_unlock (stripe);
  return found != NULL;
}

/* Whether the newest point, of this generation, needs a shadow of a slice of
 * which this one is the newest, or NULL.  The stripe is locked, so that what
 * points_end has done is seen if the shadows of that stripe were released after
 * it.
 */
static inline bool
is_wanted (uint64_t newest, const struct shadow *s)
{
  return newest != 0 && (s == NULL || s->generation < newest);
}

/* Whether it is to be captured for that point.  The stripe is locked: what a step
 * that made the points fail gives up after that is not in a shadow.
 */
static inline bool
is_to_be_captured (const struct points *p, uint64_t newest,
                   const struct shadow *s)
{
  return is_wanted (newest, s) && newest > atomic_load (&p->failed);
}

bool
points_want (struct points *p, uint64_t slice)
{
  pthread_mutex_t *stripe;
  struct shadow **bucket = find_bucket (p, slice, &stripe);
  bool r;

  pthread_mutex_lock (stripe);
  r = is_to_be_captured (p, atomic_load (&p->newest),
                         next_of_slice (*bucket, slice));
  pthread_mutex_unlock (stripe);
  return r;
}

static struct shadow *
new_shadow (struct points *p, const struct map *m, const uint64_t *words)
{
  const unsigned nr = m->slice_bytes / sizeof *words;
  struct shadow *s;
  unsigned i = 0;
  uint64_t bytes;

  while (i < nr && words[i] == 0)
    i++;
  bytes = shadow_bytes (m, i == nr);
  if (!reserve_first (p, bytes))
    return NULL;
  s = malloc (bytes);
  if (s == NULL) {
    atomic_fetch_sub (&p->bytes, bytes);
    return NULL;
  }
  s->empty = i == nr;
  for (i = 0; i < nr && !s->empty; ++i)
    atomic_init (&s->words[i], htobe64 (words[i]));
  return s;
}

static void
free_shadow (struct points *p, const struct map *m, struct shadow *s)
{
  atomic_fetch_sub (&p->bytes, shadow_bytes (m, s->empty));
  free (s);
}

bool
points_capture (struct points *p, const struct map *m, uint64_t slice,
                struct host_off place, const uint64_t *words)
{
  pthread_mutex_t *stripe;
  struct shadow **bucket = find_bucket (p, slice, &stripe);
  struct shadow *s = new_shadow (p, m, words);
  uint64_t newest;
  bool wanted;

  if (s == NULL) {
    points_fail (p); /* S5 */
    return false;
  }
  s->slice = slice;
  s->place = place;
  pthread_mutex_lock (stripe);
  newest = atomic_load (&p->newest);
  wanted = is_to_be_captured (p, newest, next_of_slice (*bucket, slice));
  if (wanted) {
    s->generation = newest;
    s->next = *bucket;
    *bucket = s;
  }
  pthread_mutex_unlock (stripe);
  if (!wanted)
    free_shadow (p, m, s);
  return wanted;
}

/* Whether the newest shadow of a slice has the reference there; or, if uncaptured
 * counts as well, there will be such a shadow before it changes.
 */
static bool
look_for (struct points *p, uint64_t slice, unsigned word, uint64_t reference,
          bool uncaptured)
{
  pthread_mutex_t *stripe;
  struct shadow **bucket = find_bucket (p, slice, &stripe);
  const struct shadow *s;
  bool r;

  pthread_mutex_lock (stripe);
  s = next_of_slice (*bucket, slice);
  r = (uncaptured && is_wanted (atomic_load (&p->newest), s)) ||
    (s != NULL && entry_reference (shadow_word (s, word)) == reference);
  pthread_mutex_unlock (stripe);
  return r;
}

bool
points_have (struct points *p, uint64_t slice, unsigned word,
             uint64_t reference)
{
  return look_for (p, slice, word, reference, true);
}

bool
points_keep (struct points *p, uint64_t slice, unsigned word,
             uint64_t reference)
{
  return look_for (p, slice, word, reference, false);
}

/* --------------------------------------------------------------- releasing */

bool
points_need (const struct points *p, uint64_t generation, uint64_t older)
{
  unsigned i;

  for (i = 0; i < POINTS_MAX; ++i) {
    const uint64_t g = atomic_load (&p->point[i].generation);

    if (g <= generation && g > older)
      return true;
  }
  return false;
}

/* Whether a point needs this shadow, whose older one is this; or NULL (S1). */
static bool
is_needed (const struct points *p, const struct shadow *s,
           const struct shadow *older)
{
  return points_need (p, s->generation, older == NULL ? 0 : older->generation);
}

bool
points_next_unneeded (struct points *p, uint64_t *bucket, uint64_t *slice)
{
  bool found = false;

  for (; *bucket < UINT64_C (1) << p->bucket_bits; ++*bucket) {
    pthread_mutex_t *stripe = &p->stripe[*bucket % POINTS_STRIPES];
    const struct shadow *s;

    pthread_mutex_lock (stripe);
    for (s = p->bucket[*bucket]; s != NULL && !found; s = s->next) {
      found = !is_needed (p, s, next_of_slice (s->next, s->slice));
      *slice = s->slice;
    }
    pthread_mutex_unlock (stripe);
    if (found)
      return true;
  }
  return false;
}

/* What is lost with a shadow: what neither the next newer entries have at the
 * same place, which are those of a shadow or, if that is NULL, the live ones;
 * nor an older shadow, or NULL (S3).
 */
static void
find_lost (const struct map *m, const struct shadow *s,
           const struct shadow *newer, const struct shadow *older,
           const uint64_t *live, uint64_t *lost)
{
  const unsigned nr = m->slice_bytes / sizeof *lost;
  const unsigned step = 1U << m->l2_word_bits;
  unsigned i;

  memset (lost, 0, m->slice_bytes);
  for (i = 0; i < nr; i += step) {
    const uint64_t reference = entry_reference (shadow_word (s, i));
    const uint64_t next = newer != NULL ? shadow_word (newer, i) : live[i];

    if (reference == 0 || reference == entry_reference (next) ||
        (older != NULL &&
         reference == entry_reference (shadow_word (older, i))))
      continue;
    lost[i] = shadow_word (s, i);
    if (step == 2)
      lost[i + 1] = shadow_word (s, i + 1);
  }
}

bool
points_remove (struct points *p, const struct map *m, uint64_t slice,
               const uint64_t *live, uint64_t *lost)
{
  pthread_mutex_t *stripe;
  struct shadow **at = find_bucket (p, slice, &stripe);
  struct shadow *s, *newer = NULL, *older = NULL;

  pthread_mutex_lock (stripe);
  for (; (s = *at) != NULL; at = &s->next) {
    if (s->slice != slice)
      continue;
    older = next_of_slice (s->next, slice);
    if (!is_needed (p, s, older))
      break;
    newer = s;
  }
  if (s != NULL) {
    find_lost (m, s, newer, older, live, lost);
    *at = s->next;
  }
  pthread_mutex_unlock (stripe);
  if (s == NULL)
    return false;
  free_shadow (p, m, s);
  return true;
}

void
points_each (struct points *p, const struct map *m, points_fn *fn,
             void *opaque)
{
  uint64_t words[MAP_MAX_WORDS];
  uint64_t i;

  for (i = 0; i < UINT64_C (1) << p->bucket_bits; ++i) {
    pthread_mutex_t *stripe = &p->stripe[i % POINTS_STRIPES];
    const unsigned nr = m->slice_bytes / sizeof words[0];
    const struct shadow *s;
    unsigned w;

    pthread_mutex_lock (stripe);
    for (s = p->bucket[i]; s != NULL; s = s->next) {
      if (s->empty)
        continue;
      for (w = 0; w < nr; ++w)
        words[w] = atomic_load_explicit (&s->words[w], memory_order_relaxed);
      fn (opaque, words, nr);
    }
    pthread_mutex_unlock (stripe);
  }
}
