/* SPDX-License-Identifier: BSD-3-Clause */

/* Changes of what the cache holds: made, taken in batches, and discarded (C5 to
 * C8; see tables.c for C9).
 */

#include <config.h>

#include <assert.h>
#include <endian.h>
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "cache/tables-parts.h"
#include "cache/tables.h"

/* The slot that holds this slice, or WAYS.  Lock held. */
static unsigned
find_slot (const struct set *set, uint64_t tag)
{
  unsigned i;

  for (i = 0; i < WAYS; ++i) {
    if (atomic_load_explicit (&set->tag[i], memory_order_relaxed) == tag &&
        !set->loading[i])
      return i;
  }
  return WAYS;
}

/* Whether another slot of the set may hold changes of this storage (C5).  Lock
 * held.
 */
static bool
has_room (const struct cache *c, const struct set *set, unsigned id)
{
  unsigned i, nr = 0;

  for (i = 0; i < WAYS; ++i)
    nr += is_changed (set, i) &&
      id_of (atomic_load_explicit (&set->tag[i], memory_order_relaxed)) == id;
  return nr < WAYS / 2 / c->nr_writers;
}

/* Put a slot into the list of its storage.  Lock held. */
static void
list_slot (struct cache *c, unsigned id, uint32_t slot)
{
  struct changes *ch = &c->changes[id];

  c->link[slot] = (struct link) { .previous = NO_SLOT, .next = ch->first };
  if (ch->first != NO_SLOT)
    c->link[ch->first].previous = slot;
  ch->first = slot;
  c->sets[slot / WAYS].listed[slot % WAYS] = true;
  ch->nr_listed++;
  if (!c->sets[slot / WAYS].in_batch[slot % WAYS])
    ch->nr_dirty++;
}

/* Lock held. */
static void
unlist_slot (struct cache *c, unsigned id, uint32_t slot)
{
  const struct link l = c->link[slot];

  if (l.previous != NO_SLOT)
    c->link[l.previous].next = l.next;
  else
    c->changes[id].first = l.next;
  if (l.next != NO_SLOT)
    c->link[l.next].previous = l.previous;
  c->sets[slot / WAYS].listed[slot % WAYS] = false;
  c->changes[id].nr_listed--;
}

/* Give a slot that shares no_words words of its own.  Lock held, and seq
 * odd.
 */
static void
give_own_words (struct set *set, unsigned way, _Atomic uint64_t *own)
{
  unsigned i;

  if (atomic_load_explicit (&set->words[way], memory_order_relaxed) ==
      (uintptr_t) own)
    return;
  for (i = 0; i < SLOT_WORDS; ++i)
    atomic_store_explicit (&own[i], 0, memory_order_release);
  atomic_store_explicit (&set->words[way], (uintptr_t) own,
                         memory_order_release);
}

/* Discard the contents of a slot, even if changed.  Lock held. */
static void
forget_slot (struct cache *c, unsigned id, uint32_t slot)
{
  struct set *set = &c->sets[slot / WAYS];
  const unsigned way = slot % WAYS;

  assert (!set->in_batch[way]);
  set->changed[way] = 0;
  if (set->listed[way]) {
    unlist_slot (c, id, slot);
    c->changes[id].nr_dirty--;
  }
  atomic_store_explicit (&set->tag[way], TAG_EMPTY, memory_order_release);
}

/* Lock held. */
static void
mark_changed (struct cache *c, unsigned id, uint64_t set_index, unsigned way,
              unsigned first, unsigned nr, enum cache_order order)
{
  struct set *set = &c->sets[set_index];
  unsigned i;

  for (i = first / SECTOR_WORDS; i <= (first + nr - 1) / SECTOR_WORDS; ++i)
    set->changed[way] |= 1U << i;
  set->order[way] = order;
  if (!set->listed[way])
    list_slot (c, id, set_index * WAYS + way);
}

/* Whether one more storage may be written.  That makes the others' shares of
 * each set smaller, so they must be clean.  Lock held.
 */
static bool
may_begin (const struct cache *c)
{
  unsigned i;

  if (c->nr_writers == CACHE_MAX_WRITERS)
    return false;
  for (i = 0; i < CACHE_MAX_STORAGES; ++i) {
    if (!cache_is_clean (c, i))
      return false;
  }
  return true;
}

int
cache_begin_writing (struct cache *c, unsigned id, bool holes)
{
  int r = 0;

  pthread_mutex_lock (&c->lock);
  assert (id < CACHE_MAX_STORAGES && !c->changes[id].written);
  if (may_begin (c)) {
    c->changes[id].written = true;
    c->changes[id].holes = holes;
    c->nr_writers++;
  }
  else {
    error_set (EBUSY, "the metadata cache has changes of another image");
    r = -1;
  }
  pthread_mutex_unlock (&c->lock);
  return r;
}

void
cache_end_writing (struct cache *c, unsigned id)
{
  struct changes *ch = &c->changes[id];

  pthread_mutex_lock (&c->lock);
  assert (ch->written && ch->nr_in_batch == 0);
  while (ch->first != NO_SLOT)
    forget_slot (c, id, ch->first);
  ch->written = false;
  c->nr_writers--;
  pthread_mutex_unlock (&c->lock);
}

static bool
sector_is_zero (const struct set *set, unsigned way, unsigned sector)
{
  const _Atomic uint64_t *words = (const _Atomic uint64_t *)
    atomic_load_explicit (&set->words[way], memory_order_relaxed);
  unsigned i;

  for (i = 0; i < SECTOR_WORDS; ++i) {
    if (atomic_load_explicit (&words[sector * SECTOR_WORDS + i],
                              memory_order_relaxed) != 0)
      return false;
  }
  return true;
}

/* C6: see cache_lacking_space.  Notes which sectors turn out to have space.
 * Lock held.
 */
static uint8_t
find_lacking (struct set *set, unsigned way, unsigned first, unsigned nr)
{
  uint8_t lacking = 0;
  unsigned i;

  for (i = first / SECTOR_WORDS; i <= (first + nr - 1) / SECTOR_WORDS; ++i) {
    if (set->has_space[way] & 1U << i)
      continue;
    if (sector_is_zero (set, way, i))
      lacking |= 1U << i;
    else
      set->has_space[way] |= 1U << i;
  }
  return lacking;
}

uint8_t
cache_lacking_space (struct cache *c, unsigned id, struct host_off slice,
                     unsigned first, unsigned nr)
{
  const uint64_t tag = slice.v | id;
  struct set *set = &c->sets[find_set (c, tag)];
  uint8_t r = 0;
  unsigned way;

  pthread_mutex_lock (&c->lock);
  way = find_slot (set, tag);
  if (way != WAYS && c->changes[id].holes)
    r = find_lacking (set, way, first, nr);
  pthread_mutex_unlock (&c->lock);
  return r;
}

void
cache_note_space (struct cache *c, unsigned id, struct host_off slice,
                  uint8_t sectors)
{
  const uint64_t tag = slice.v | id;
  struct set *set = &c->sets[find_set (c, tag)];
  unsigned way;

  pthread_mutex_lock (&c->lock);
  way = find_slot (set, tag);
  if (way != WAYS)
    set->has_space[way] |= sectors;
  pthread_mutex_unlock (&c->lock);
}

enum cache_update
cache_update (struct cache *c, unsigned id, struct host_off slice,
              unsigned first, unsigned nr, const uint64_t *words,
              enum cache_order order)
{
  const uint64_t tag = slice.v | id;
  const uint64_t set_index = find_set (c, tag);
  struct set *set = &c->sets[set_index];
  enum cache_update r = CACHE_UPDATED;
  unsigned way, i;

  assert (nr > 0 && first + nr <= SLOT_WORDS);
  pthread_mutex_lock (&c->lock);
  assert (c->changes[id].written);
  way = find_slot (set, tag);
  if (way == WAYS)
    r = CACHE_ABSENT;
  else if (!is_changed (set, way) && !has_room (c, set, id))
    r = CACHE_CROWDED;
  else if (c->changes[id].holes && find_lacking (set, way, first, nr) != 0)
    r = CACHE_LACKS_SPACE;
  else {
    _Atomic uint64_t *to = slot_words (c, set, way);
    const uint64_t seq = atomic_load_explicit (&set->seq[way],
                                               memory_order_relaxed);

    mark_changed (c, id, set_index, way, first, nr, order); /* first: C8 */
    /* C2, as in publish. */
    atomic_store_explicit (&set->seq[way], seq + 1, memory_order_relaxed);
    give_own_words (set, way, to);
    for (i = 0; i < nr; ++i)
      atomic_store_explicit (&to[first + i], htobe64 (words[i]),
                             memory_order_release);
    atomic_store_explicit (&set->seq[way], seq + 2, memory_order_release);
  }
  pthread_mutex_unlock (&c->lock);
  return r;
}

bool
cache_wants_writing (const struct cache *c, unsigned id)
{
  return atomic_load_explicit (&c->changes[id].nr_listed,
                               memory_order_relaxed) >=
    c->max_listed / atomic_load_explicit (&c->nr_writers,
                                          memory_order_relaxed);
}

bool
cache_is_clean (const struct cache *c, unsigned id)
{
  return atomic_load (&c->changes[id].nr_dirty) == 0;
}

/* Lock held. */
static size_t
count_changed_sectors (const struct cache *c, unsigned id)
{
  size_t nr = 0;
  uint32_t slot;

  for (slot = c->changes[id].first; slot != NO_SLOT;
       slot = c->link[slot].next)
    nr += __builtin_popcount (c->sets[slot / WAYS].changed[slot % WAYS]);
  return nr;
}

/* Copy the changed sectors of a slot to the batch.  Lock held. */
static void
take_slot (struct cache *c, unsigned id, uint32_t slot, struct cache_batch *b)
{
  struct set *set = &c->sets[slot / WAYS];
  const unsigned way = slot % WAYS;
  const _Atomic uint64_t *words = slot_words (c, set, way);
  const uint64_t tag = atomic_load_explicit (&set->tag[way],
                                             memory_order_relaxed);
  unsigned i, w;

  for (i = 0; i < CACHE_SLOT_BYTES / CACHE_SECTOR; ++i) {
    struct cache_sector *s = &b->sector[b->nr];

    if (!(set->changed[way] & 1U << i))
      continue;
    s->offset.v = (tag & -(uint64_t) CACHE_SECTOR) + i * CACHE_SECTOR;
    s->order = set->order[way];
    s->slot = slot;
    s->bit = i;
    for (w = 0; w < SECTOR_WORDS; ++w) {
      const uint64_t word =
        atomic_load_explicit (&words[i * SECTOR_WORDS + w],
                              memory_order_relaxed);

      memcpy (s->data + w * sizeof word, &word, sizeof word);
    }
    b->nr++;
  }
  set->changed[way] = 0;
  set->in_batch[way] = true;
  c->changes[id].nr_in_batch++;
  unlist_slot (c, id, slot);
}

static int
compare_sectors (const void *a, const void *b)
{
  const struct cache_sector *x = a, *y = b;

  if (x->order != y->order)
    return x->order < y->order ? -1 : 1;
  return x->offset.v < y->offset.v ? -1 : x->offset.v > y->offset.v;
}

int
cache_take_batch (struct cache *c, unsigned id, struct cache_batch *b)
{
  struct changes *ch = &c->changes[id];
  size_t nr;

  pthread_mutex_lock (&c->lock);
  assert (ch->nr_in_batch == 0);
  nr = count_changed_sectors (c, id);
  if (nr > b->capacity) {
    struct cache_sector *p = realloc (b->sector, nr * sizeof *p);

    if (p == NULL) {
      pthread_mutex_unlock (&c->lock);
      error_set (ENOMEM, "out of memory");
      return -1;
    }
    b->sector = p;
    b->capacity = nr;
  }
  b->nr = 0;
  while (ch->first != NO_SLOT)
    take_slot (c, id, ch->first, b);
  pthread_mutex_unlock (&c->lock);
  if (b->nr > 1)
    qsort (b->sector, b->nr, sizeof b->sector[0], compare_sectors);
  return 0;
}

void
cache_end_batch (struct cache *c, unsigned id, const struct cache_batch *b,
                 bool written)
{
  size_t i;

  pthread_mutex_lock (&c->lock);
  for (i = 0; i < b->nr; ++i) {
    const struct cache_sector *s = &b->sector[i];
    struct set *set = &c->sets[s->slot / WAYS];
    const unsigned way = s->slot % WAYS;

    if (!written)
      mark_changed (c, id, s->slot / WAYS, way, s->bit * SECTOR_WORDS, 1,
                    s->order);
    if (set->in_batch[way]) {
      set->in_batch[way] = false;
      c->changes[id].nr_in_batch--;
      if (!set->listed[way])
        c->changes[id].nr_dirty--;
    }
  }
  pthread_mutex_unlock (&c->lock);
}

void
cache_forget (struct cache *c, unsigned id, struct host_off offset,
              uint64_t count, uint32_t slice_bytes)
{
  const uint64_t end = offset.v + count;

  pthread_mutex_lock (&c->lock);
  for (; offset.v < end; offset.v += slice_bytes) {
    const uint64_t tag = offset.v | id;
    struct set *set = &c->sets[find_set (c, tag)];
    const unsigned way = find_slot (set, tag);

    if (way == WAYS)
      continue;
    forget_slot (c, id, find_set (c, tag) * WAYS + way);
  }
  pthread_mutex_unlock (&c->lock);
}

void
cache_forget_storage (struct cache *c, unsigned id)
{
  uint64_t i;
  unsigned way;

  pthread_mutex_lock (&c->lock);
  for (i = 0; i < c->nr_sets; ++i) {
    struct set *set = &c->sets[i];

    for (way = 0; way < WAYS; ++way) {
      const uint64_t tag = atomic_load_explicit (&set->tag[way],
                                                 memory_order_relaxed);

      if (tag == TAG_EMPTY || id_of (tag) != id)
        continue;
      assert (set->changed[way] == 0);
      forget_slot (c, id, i * WAYS + way);
    }
  }
  pthread_mutex_unlock (&c->lock);
}
