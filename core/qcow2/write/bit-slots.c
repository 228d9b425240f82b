/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "qcow2/write/bit-slots-parts.h"

#define SECTOR_BITS (BIT_SECTOR * 8)

/* How many bits a mark adds at first, and how soon after one the next adds four
 * times as many, up to those of a sector: so that random writes mark each
 * region once, and sequential ones seldom.
 */
#define FIRST_MARK 64
#define GROW_NS UINT64_C (1000000000)

/* --------------------------------------------------------------------- bits */

/* Those of the i-th word from first to end. */
static uint64_t
mask (unsigned i, unsigned first, unsigned end)
{
  uint64_t m = UINT64_MAX;

  if (i == first / 64)
    m &= UINT64_MAX << first % 64;
  if (i == (end - 1) / 64)
    m &= UINT64_MAX >> (63 - (end - 1) % 64);
  return m;
}

static bool
has_all (const _Atomic uint64_t *words, unsigned first, unsigned end)
{
  unsigned i;

  for (i = first / 64; i <= (end - 1) / 64; ++i) {
    if (~atomic_load_explicit (&words[i], memory_order_acquire) &
        mask (i, first, end))
      return false;
  }
  return true;
}

static void
add_all (_Atomic uint64_t *words, unsigned first, unsigned end)
{
  unsigned i;

  for (i = first / 64; i <= (end - 1) / 64; ++i) {
    const uint64_t m = mask (i, first, end);

    /* Mostly they are there already. */
    if (~atomic_load_explicit (&words[i], memory_order_relaxed) & m)
      atomic_fetch_or_explicit (&words[i], m, memory_order_release);
  }
}

/* ------------------------------------------------------------------- states */

static inline enum follow_state
state_of (const struct bit_slots *s, unsigned bitmap)
{
  return atomic_load_explicit (&s->parts->bitmap[bitmap].state,
                               memory_order_relaxed);
}

static unsigned
count_followed (const struct bit_parts *p)
{
  unsigned i, nr = 0;

  for (i = 0; i < p->nr; ++i)
    nr += bit_parts_follows (p, i);
  return nr;
}

/* ------------------------------------------------------------------ the pool */

static struct bit_slot **
bucket_of (const struct bit_slots *s, unsigned bitmap, uint64_t page)
{
  return &s->bucket[hash_top (&s->key, page * FOLLOW_PLACES + bitmap,
                              s->hash_bits)];
}

static void
unlink_slot (struct bit_slots *s, struct bit_slot *t)
{
  struct bit_slot **p = bucket_of (s, t->bitmap, t->page);

  while (*p != t)
    p = &(*p)->next;
  *p = t->next;
  t->state = SLOT_FREE;
  t->holders = 0;
  t->next = s->free;
  s->free = t;
  pthread_cond_broadcast (&s->changed);
}

static struct bit_slot *
look_up (const struct bit_slots *s, unsigned bitmap, uint64_t page)
{
  struct bit_slot *t = *bucket_of (s, bitmap, page);

  while (t != NULL && (t->bitmap != bitmap || t->page != page))
    t = t->next;
  return t;
}

/* Write a page that nobody holds, as it is exactly.  Then the disk may have
 * anything from that to what was durable where it has failed.  Returns false if it is
 * to stay as it is.  The state is that of its bitmap when the page was last READY: once
 * that follows again, a page that wasn't is not among those regained.
 */
static bool
store (struct bit_slots *s, struct bit_slot *t, enum follow_state state)
{
  const unsigned per_sector = SECTOR_BITS / 64;
  uint8_t bytes[BIT_PAGE];
  unsigned i, sectors = t->unsettled;

  if (state != FOLLOW_ALL && state != FOLLOW_ENDED) /* S4 */
    return false;
  for (i = 0; i < s->page_bits / 64; ++i) {
    if (t->exact[i] != t->durable[i])
      sectors |= 1U << i / per_sector;
  }
  if (sectors == 0)
    return true;
  bit_slots_bytes (s, t->exact, bytes);
  t->unsettled = bit_parts_store (s->parts, t->bitmap, t->page, bytes,
                                  sectors);
  return true;
}

/* Nobody can have the page meanwhile.  The lock is held, but for the I/O. */
static bool
store_unlocked (struct bit_slots *s, struct bit_slot *t)
{
  const enum follow_state state = state_of (s, t->bitmap);
  bool stored;

  t->state = SLOT_WRITING;
  pthread_mutex_unlock (&s->lock);
  stored = store (s, t, state);
  pthread_mutex_lock (&s->lock);
  return stored;
}

/* Have a free slot, if there is none: of a page that nobody holds (S3).  The
 * lock is held, but for the I/O.
 */
static void
free_one (struct bit_slots *s)
{
  struct bit_slot *t;

  for (;;) {
    t = &s->slot[s->hand++ % s->nr];
    if (t->state == SLOT_READY && t->holders == 0 && !t->used)
      break;
    t->used = false;
  }
  (void) store_unlocked (s, t);
  unlink_slot (s, t);
}

static int
read_page (struct bit_slots *s, struct bit_slot *t)
{
  uint8_t bytes[BIT_PAGE];
  unsigned i;

  if (bit_parts_load (s->parts, t->bitmap, t->page, bytes) == -1)
    return -1;
  for (i = 0; i < s->page_bits / 64; ++i) {
    uint64_t word;

    memcpy (&word, bytes + 8 * i, sizeof word);
    t->exact[i] = t->durable[i] = le64toh (word);
  }
  t->mark = t->marked_at = t->unsettled = 0;
  t->kept = 0;
  return 0;
}

/* Take a free slot for this page.  The lock is held, but for the I/O. */
static struct bit_slot *
load (struct bit_slots *s, unsigned bitmap, uint64_t page)
{
  struct bit_slot **bucket = bucket_of (s, bitmap, page), *t = s->free;
  int r;

  s->free = t->next;
  t->bitmap = bitmap;
  t->page = page;
  t->state = SLOT_LOADING;
  t->holders = 1;
  t->used = true;
  t->next = *bucket;
  *bucket = t;
  pthread_mutex_unlock (&s->lock);
  r = read_page (s, t);
  pthread_mutex_lock (&s->lock);
  if (r == -1) {
    unlink_slot (s, t);
    return NULL;
  }
  t->state = SLOT_READY;
  pthread_cond_broadcast (&s->changed);
  return t;
}

/* Hold a page; NULL: the error is set.  The lock is held, but while others, or
 * I/O, are waited for.
 */
static struct bit_slot *
hold_page (struct bit_slots *s, unsigned bitmap, uint64_t page)
{
  for (;;) {
    struct bit_slot *t = look_up (s, bitmap, page);

    if (t == NULL && s->free != NULL)
      return load (s, bitmap, page);
    if (t == NULL)
      free_one (s);
    else if (t->state == SLOT_READY) {
      t->holders++;
      t->used = true;
      return t;
    }
    else
      pthread_cond_wait (&s->changed, &s->lock);
  }
}

/* ------------------------------------------------------------------ marking */

static uint64_t
nanoseconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

/* How much a mark of these bits adds. */
static void
widen (const struct bit_slots *s, struct bit_slot *t, unsigned *first,
       unsigned *end)
{
  const uint64_t now = nanoseconds ();
  const uint64_t nr = s->parts->bitmap[t->bitmap].nr_bits;
  const uint64_t left = nr - t->page * s->page_bits;

  if (t->mark == 0 || now - t->marked_at > GROW_NS)
    t->mark = FIRST_MARK;
  else if (t->mark < SECTOR_BITS)
    t->mark *= 4;
  t->marked_at = now;
  *first &= -t->mark;
  *end = (*end + t->mark - 1) & -t->mark;
  if (*end > s->page_bits)
    *end = s->page_bits;
  if (*end > left)
    *end = left;
}

/* The slot's lock is held. */
static int
mark_durably (struct bit_slots *s, struct bit_slot *t, unsigned first,
              unsigned end)
{
  _Atomic uint64_t with[PAGE_WORDS];
  uint8_t bytes[BIT_PAGE];
  unsigned i, sector;
  bool all;

  widen (s, t, &first, &end);
  for (i = 0; i < s->page_bits / 64; ++i)
    with[i] = t->durable[i];
  add_all (with, first, end);
  bit_slots_bytes (s, with, bytes);
  sector = first / SECTOR_BITS;
  if (bit_parts_mark (s->parts, t->bitmap, t->page, bytes, sector,
                      (end - 1) / SECTOR_BITS + 1 - sector, &all) == -1)
    return -1;
  if (all)
    add_all (t->durable, 0, s->page_bits);
  else
    add_all (t->durable, first, end); /* S2 */
  return 0;
}

/* Mark the bits of these bytes of the disk in a page that is held. */
static int
mark (struct bit_slots *s, struct bit_slot *t, uint64_t from, uint64_t to)
{
  const unsigned shift = s->parts->bitmap[t->bitmap].granularity_bits;
  const uint64_t base = t->page << s->page_shift;
  const unsigned first = (from >> shift) - base;
  const unsigned end = ((to - 1) >> shift) + 1 - base;
  int r = 0;

  if (bit_slots_must_keep (s, t)) /* S5 */
    bit_slots_keep (s, t);
  if (!has_all (t->durable, first, end)) {
    pthread_mutex_lock (&t->lock);
    if (!has_all (t->durable, first, end))
      r = mark_durably (s, t, first, end);
    pthread_mutex_unlock (&t->lock);
  }
  if (r == 0 && state_of (s, t->bitmap) != FOLLOW_ENDING)
    add_all (t->exact, first, end);
  return r;
}

/* ------------------------------------------------------------- idle pages */

/* The lock is held.  Those who marked it held it, and have let go of it. */
static bool
is_idle (const struct bit_slots *s, const struct bit_slot *t, uint64_t idle_ns)
{
  return t->state == SLOT_READY && t->holders == 0 && t->mark != 0 &&
    state_of (s, t->bitmap) == FOLLOW_ALL &&
    nanoseconds () - t->marked_at >= idle_ns;
}

/* The lock is held, but for the I/O.  Of what was durable beyond what is exact
 * the disk may have anything from here on.  The page can't be had meanwhile:
 * that counts as one of the requests that hold some (S3).
 */
static void
settle (struct bit_slots *s, struct bit_slot *t)
{
  unsigned i;

  s->holds++;
  if (store_unlocked (s, t)) {
    for (i = 0; i < s->page_bits / 64; ++i)
      t->durable[i] = t->exact[i];
    t->mark = 0;
  }
  s->holds--;
  t->state = SLOT_READY;
  pthread_cond_broadcast (&s->changed);
}

void
bit_slots_settle (struct bit_slots *s, uint64_t idle_ns)
{
  unsigned i;

  for (i = 0; i < s->nr; ++i) {
    pthread_mutex_lock (&s->lock);
    if (s->holds < s->max_holds && is_idle (s, &s->slot[i], idle_ns))
      settle (s, &s->slot[i]);
    pthread_mutex_unlock (&s->lock);
  }
}

/* ------------------------------------------------------------------ requests */

uint64_t
bit_slots_end (const struct bit_slots *s, uint64_t offset)
{
  uint64_t end = UINT64_MAX;
  unsigned i;

  for (i = 0; i < s->parts->nr; ++i) {
    const unsigned shift = s->parts->bitmap[i].granularity_bits + s->page_shift;
    const uint64_t e = ((offset >> shift) + 1) << shift;

    if (e < end && bit_parts_follows (s->parts, i))
      end = e;
  }
  return end;
}

/* Returns -1 with the error set; it may hold some then. */
static int
hold_pages (struct bit_slots *s, struct guest_off offset, struct bit_hold *h)
{
  unsigned i;
  int r = 0;

  h->nr = 0;
  pthread_mutex_lock (&s->lock);
  while (s->holds >= s->max_holds)
    pthread_cond_wait (&s->changed, &s->lock);
  s->holds++;
  for (i = 0; r == 0 && i < s->parts->nr; ++i) {
    const unsigned shift = s->parts->bitmap[i].granularity_bits + s->page_shift;
    struct bit_slot *t;

    if (!bit_parts_follows (s->parts, i))
      continue;
    t = hold_page (s, i, offset.v >> shift);
    if (t == NULL)
      r = -1;
    else
      h->slot[h->nr++] = t;
  }
  pthread_mutex_unlock (&s->lock);
  return r;
}

int
bit_slots_hold (struct bit_slots *s, struct guest_off offset, uint64_t count,
                struct bit_hold *h)
{
  int r = hold_pages (s, offset, h);
  unsigned i;

  for (i = 0; r == 0 && i < h->nr; ++i)
    r = mark (s, h->slot[i], offset.v, offset.v + count);
  if (r == -1)
    bit_slots_leave (s, h);
  return r;
}

void
bit_slots_leave (struct bit_slots *s, const struct bit_hold *h)
{
  unsigned i;

  pthread_mutex_lock (&s->lock);
  for (i = 0; i < h->nr; ++i) {
    assert (h->slot[i]->state == SLOT_READY && h->slot[i]->holders > 0);
    h->slot[i]->holders--;
  }
  if (s->holds-- >= s->max_holds)
    pthread_cond_broadcast (&s->changed);
  pthread_mutex_unlock (&s->lock);
}

void
bit_slots_store (struct bit_slots *s)
{
  unsigned i;

  for (i = 0; i < s->nr; ++i) {
    if (s->slot[i].state == SLOT_READY)
      (void) store (s, &s->slot[i], state_of (s, s->slot[i].bitmap));
  }
}

/* -------------------------------------------------- bitmaps come and go (S4) */

bool
bit_slots_have_room (const struct bit_slots *s)
{
  return s->nr > count_followed (s->parts);
}

void
bit_slots_set (struct bit_slots *s, unsigned i, enum follow_state state)
{
  unsigned nr;

  pthread_mutex_lock (&s->lock);
  atomic_store (&s->parts->bitmap[i].state, state);
  if (i >= s->parts->nr)
    s->parts->nr = i + 1;
  nr = count_followed (s->parts);
  s->max_holds = s->nr / (nr > 0 ? nr : 1);
  pthread_mutex_unlock (&s->lock);
}

/* Write a page, which is as if a request held some (S3), and free it.  The lock is
 * held, but for the I/O.
 */
static void
drop_page (struct bit_slots *s, struct bit_slot *t)
{
  s->holds++;
  (void) store_unlocked (s, t);
  s->holds--;
  unlink_slot (s, t);
}

void
bit_slots_drop (struct bit_slots *s, unsigned i)
{
  unsigned k;

  pthread_mutex_lock (&s->lock);
  for (k = 0; k < s->nr; ++k) {
    struct bit_slot *t = &s->slot[k];

    /* Others may write it, or take it for another page. */
    while (t->bitmap == i && t->state != SLOT_FREE) {
      if (t->state == SLOT_READY && s->holds < s->max_holds)
        drop_page (s, t);
      else
        pthread_cond_wait (&s->changed, &s->lock);
    }
  }
  atomic_store (&s->parts->bitmap[i].state, FOLLOW_NOT);
  pthread_mutex_unlock (&s->lock);
}

void
bit_slots_regain (struct bit_slots *s, unsigned i)
{
  unsigned k, word;

  for (k = 0; k < s->nr; ++k) {
    struct bit_slot *t = &s->slot[k];

    pthread_mutex_lock (&s->lock);
    for (word = 0; word < s->page_bits / 64 && t->bitmap == i &&
           t->state == SLOT_READY; ++word)
      atomic_fetch_or (&t->exact[word], t->durable[word]);
    pthread_mutex_unlock (&s->lock);
  }
  atomic_store (&s->parts->bitmap[i].state, FOLLOW_ALL);
}

/* ------------------------------------------------------------------ opening */

static void
init_slots (struct bit_slots *s)
{
  unsigned i;

  for (i = s->nr; i-- > 0; ) {
    struct bit_slot *t = &s->slot[i];

    t->exact = s->words + (size_t) i * 2 * PAGE_WORDS;
    t->durable = t->exact + PAGE_WORDS;
    pthread_mutex_init (&t->lock, NULL);
    t->next = s->free;
    s->free = t;
  }
}

struct bit_slots *
bit_slots_new (struct bit_parts *parts, unsigned nr)
{
  struct bit_slots *s = calloc (1, sizeof *s);

  if (s == NULL)
    goto fail;
  s->parts = parts;
  s->nr = nr == 0 ? BIT_SLOTS : nr < parts->nr ? parts->nr : nr;
  s->max_holds = s->nr / parts->nr;
  s->page_bits = bit_parts_page (parts) * 8;
  s->page_shift = __builtin_ctz (s->page_bits);
  s->key = hash_key ();
  s->hash_bits = 1;
  while (1U << s->hash_bits < 2 * s->nr)
    s->hash_bits++;
  pthread_mutex_init (&s->lock, NULL);
  pthread_cond_init (&s->changed, NULL);
  s->bucket = calloc ((size_t) 1 << s->hash_bits, sizeof s->bucket[0]);
  s->slot = calloc (s->nr, sizeof s->slot[0]);
  s->words = calloc ((size_t) s->nr * 2 * PAGE_WORDS, sizeof s->words[0]);
  if (s->bucket != NULL && s->slot != NULL && s->words != NULL) {
    init_slots (s);
    return s;
  }

 fail:
  bit_slots_free (s);
  error_set (ENOMEM, "out of memory");
  return NULL;
}

void
bit_slots_free (struct bit_slots *s)
{
  unsigned i;

  if (s == NULL)
    return;
  for (i = 0; s->slot != NULL && i < s->nr; ++i)
    pthread_mutex_destroy (&s->slot[i].lock);
  pthread_mutex_destroy (&s->lock);
  pthread_cond_destroy (&s->changed);
  free (s->bucket);
  free (s->slot);
  free (s->words);
  free (s);
}
