/* SPDX-License-Identifier: BSD-3-Clause */

/* Set-associative: a slice can be in any of WAYS neighbouring slots.  The
 * tags of a set fill one line of the CPU's cache, so that the cost of a lookup
 * doesn't depend on the cache's size.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "base/hash.h"
#include "cache/tables.h"

#define WAYS 8
#define SLOT_WORDS (CACHE_SLOT_BYTES / sizeof (uint64_t))
#define SECTOR_WORDS (CACHE_SECTOR / sizeof (uint64_t))

/* Beyond this (32 MiB of tables) changes should be written soon. */
#define MAX_CHANGED_SLOTS 8192

/* A tag is the slice's offset with the storage's id in the low bits that
 * the alignment leaves free.  No slice is at offset 0, so fresh memory is a
 * set of empty slots without being touched (C3).
 */
#define TAG_EMPTY 0

_Static_assert (CACHE_MAX_STORAGES <= 512, "ids must fit below the offset");

struct set {
  _Alignas (64) _Atomic uint64_t tag[WAYS];
  _Atomic uint64_t seq[WAYS]; /* odd while the slot changes */
  _Atomic bool referenced[WAYS];
  bool loading[WAYS]; /* lock; a tag being loaded is in loading_tag */
  uint64_t loading_tag[WAYS];
  unsigned hand; /* lock; the clock's */

  /* Lock; C5. */
  uint8_t changed[WAYS];  /* bit i: sector i is not in a batch yet */
  bool listed[WAYS];      /* in the list of its storage */
  bool in_batch[WAYS];
  uint8_t order[WAYS];
  uint8_t has_space[WAYS]; /* bit i: sector i is known to have some (C6) */
  uint32_t own[WAYS]; /* lock; the number of its words, from 1; 0: none yet */

  /* What the slot holds: its own words, or no_words if all are 0. */
  _Atomic uintptr_t words[WAYS];
};

/* Shared by all slices of zeros, which most slices of a sparse disk's tables
 * are: they take neither memory nor a copy.
 */
static const _Atomic uint64_t no_words[SLOT_WORDS];

/* C7: the changes of one storage.  Written under the lock; the atomic members
 * are read without it.
 */
struct changes {
  bool written;   /* between cache_begin_writing and its end */
  bool holes;     /* C6 */
  uint32_t first; /* the list of slots that changed since the last batch was
                   * taken; NO_SLOT if there are none */
  _Atomic uint32_t nr_listed;
  uint32_t nr_in_batch;
  _Atomic uint32_t nr_dirty; /* slots that are listed, in a batch, or both */
};

#define NO_SLOT UINT32_MAX

/* The neighbours of a slot in its list. */
struct link {
  uint32_t previous, next;
};

struct cache {
  struct hash_key key; /* or an image could choose what shares a set */
  uint64_t nr_sets;
  struct set *sets;
  _Atomic uint64_t *words; /* SLOT_WORDS for each slot that ever had some */
  uint32_t nr_own;         /* lock; how many did */
  size_t sets_bytes, words_bytes, links_bytes;

  struct link *link; /* lock; of each slot */
  struct changes changes[CACHE_MAX_STORAGES];
  _Atomic unsigned nr_writers; /* changes under the lock */
  uint32_t max_listed;         /* of all together */

  /* Taken on a miss, briefly, never around I/O (C4). */
  pthread_mutex_t lock;
  pthread_cond_t loaded;
};

/* Words are handed out one after the other, so that large pages do not take
 * more memory than is used (C3): the kernel clears one of 2 MiB in a fraction of
 * the time that 512 faults take, and addresses are found faster in it.  The
 * first ones are small, for images that need no more.
 */
#define LARGE_PAGE ((size_t) 2 << 20)

static void
want_large_pages (void *p, size_t bytes)
{
  const uintptr_t start = ((uintptr_t) p + 2 * LARGE_PAGE - 1) & -LARGE_PAGE;

  if (start < (uintptr_t) p + bytes) /* advice */
    (void) madvise ((void *) start, (uintptr_t) p + bytes - start,
                    MADV_HUGEPAGE);
}

static void *
map_memory (size_t bytes)
{
  /* Not malloc: pages must not be touched before they are used (C3). */
  void *p = mmap (NULL, bytes, PROT_READ | PROT_WRITE,
                  MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

  return p == MAP_FAILED ? NULL : p;
}

struct cache *
cache_new (uint64_t bytes)
{
  struct cache *c = calloc (1, sizeof *c);
  unsigned i;

  assert (bytes >= CACHE_MIN_BYTES);
  if (c == NULL)
    goto no_memory;
  pthread_mutex_init (&c->lock, NULL);
  pthread_cond_init (&c->loaded, NULL);
  c->key = hash_key ();
  c->nr_sets = bytes / (WAYS * (CACHE_SLOT_BYTES + sizeof c->link[0]) +
                        sizeof (struct set));
  c->sets_bytes = c->nr_sets * sizeof (struct set);
  c->words_bytes = c->nr_sets * WAYS * CACHE_SLOT_BYTES;
  c->links_bytes = c->nr_sets * WAYS * sizeof c->link[0];
  c->sets = map_memory (c->sets_bytes);
  c->words = map_memory (c->words_bytes);
  c->link = map_memory (c->links_bytes);
  if (c->sets == NULL || c->words == NULL || c->link == NULL)
    goto no_memory;
  want_large_pages (c->words, c->words_bytes);
  for (i = 0; i < CACHE_MAX_STORAGES; ++i)
    c->changes[i].first = NO_SLOT;
  c->max_listed = c->nr_sets * WAYS / 4;
  if (c->max_listed > MAX_CHANGED_SLOTS)
    c->max_listed = MAX_CHANGED_SLOTS;
  return c;

 no_memory:
  cache_free (c);
  error_set (ENOMEM, "no memory for a metadata cache of %" PRIu64 " bytes",
             bytes);
  return NULL;
}

void
cache_free (struct cache *c)
{
  if (c == NULL)
    return;
  if (c->sets != NULL)
    munmap (c->sets, c->sets_bytes);
  if (c->words != NULL)
    munmap (c->words, c->words_bytes);
  if (c->link != NULL)
    munmap (c->link, c->links_bytes);
  pthread_cond_destroy (&c->loaded);
  pthread_mutex_destroy (&c->lock);
  free (c);
}

static inline uint64_t
find_set (const struct cache *c, uint64_t tag)
{
  /* Tags come in strides of large powers of two, and may differ in any bit:
   * mix all bits into the high half, which is then scaled to nr_sets.
   */
  return ((hash_mix (&c->key, tag) >> 32) * c->nr_sets) >> 32;
}

/* The words of a slot, which from now on has some.  Lock held. */
static _Atomic uint64_t *
slot_words (struct cache *c, struct set *set, unsigned way)
{
  if (set->own[way] == 0)
    set->own[way] = ++c->nr_own;
  return c->words + (size_t) (set->own[way] - 1) * SLOT_WORDS;
}

/* C1 */
static inline bool
lookup (struct cache *c, uint64_t set_index, uint64_t tag,
        struct cache_ref *ref)
{
  struct set *set = &c->sets[set_index];
  unsigned i;

  for (i = 0; i < WAYS; ++i) {
    if (atomic_load_explicit (&set->tag[i], memory_order_relaxed) != tag)
      continue;
    ref->seen = atomic_load_explicit (&set->seq[i], memory_order_acquire);
    /* The tag may have changed before seq was read.  Acquire: a thread that
     * sees the tag of a later load must see that load's seq as well.
     */
    if ((ref->seen & 1) != 0 ||
        atomic_load_explicit (&set->tag[i], memory_order_acquire) != tag)
      continue;
    ref->seq = &set->seq[i];
    /* Acquire, as for any word: cache_still_valid stays after it. */
    ref->words = (const _Atomic uint64_t *)
      atomic_load_explicit (&set->words[i], memory_order_acquire);
    if (!atomic_load_explicit (&set->referenced[i], memory_order_relaxed))
      atomic_store_explicit (&set->referenced[i], true, memory_order_relaxed);
    return true;
  }
  return false;
}

/* Whether the slot has changes that are not on the storage yet (C5).  Lock
 * held.
 */
static inline bool
is_changed (const struct set *set, unsigned way)
{
  return set->changed[way] != 0 || set->in_batch[way];
}

/* Choose a slot of the set that is neither being loaded nor changed: an empty
 * one, else by the clock.  Returns WAYS if there is none.  Lock held.
 */
static unsigned
choose_victim (struct set *set)
{
  unsigned i, turns, last = WAYS;

  for (i = 0; i < WAYS; ++i) {
    if (!set->loading[i] &&
        atomic_load_explicit (&set->tag[i], memory_order_relaxed) == TAG_EMPTY)
      return i;
  }
  for (turns = 0; turns < 2 * WAYS; ++turns) {
    i = set->hand++ % WAYS;
    if (set->loading[i] || is_changed (set, i))
      continue;
    last = i;
    if (!atomic_exchange_explicit (&set->referenced[i], false,
                                   memory_order_relaxed))
      return i;
  }
  return last; /* readers set the bits faster than they are cleared */
}

/* True if another thread is reading this slice now.  Lock held. */
static bool
is_loading (const struct set *set, uint64_t tag)
{
  unsigned i;

  for (i = 0; i < WAYS; ++i) {
    if (set->loading[i] && set->loading_tag[i] == tag)
      return true;
  }
  return false;
}

static bool
all_zero (const uint64_t *words, unsigned nr)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    if (words[i] != 0)
      return false;
  }
  return true;
}

/* Put the words into the slot.  C2: seq is odd while they change, and the
 * release order of the stores keeps them after that.  Lock held.
 */
static void
publish (struct cache *c, uint64_t set_index, unsigned way, uint64_t tag,
         const uint64_t *words, unsigned nr)
{
  struct set *set = &c->sets[set_index];
  const uint64_t seq = atomic_load_explicit (&set->seq[way],
                                             memory_order_relaxed);
  const bool empty = all_zero (words, nr);
  _Atomic uint64_t *to = empty ? NULL : slot_words (c, set, way);
  unsigned i;

  set->has_space[way] = 0;
  atomic_store_explicit (&set->seq[way], seq + 1, memory_order_relaxed);
  atomic_store_explicit (&set->tag[way], tag, memory_order_release);
  atomic_store_explicit (&set->words[way],
                         empty ? (uintptr_t) no_words : (uintptr_t) to,
                         memory_order_release);
  for (i = 0; !empty && i < nr; ++i)
    atomic_store_explicit (&to[i], words[i], memory_order_release);
  atomic_store_explicit (&set->seq[way], seq + 2, memory_order_release);
}

/* A slot that this thread is about to read a slice into. */
struct reservation {
  uint64_t set_index, tag;
  unsigned way;
};

/* Take a slot for the slice, unless it is cached or being read, or no slot of
 * its set is free.  Lock held.
 */
static bool
try_reserve (struct cache *c, uint64_t tag, struct reservation *r)
{
  const uint64_t set_index = find_set (c, tag);
  struct set *set = &c->sets[set_index];
  unsigned way;

  if (is_loading (set, tag))
    return false;
  way = choose_victim (set);
  if (way == WAYS)
    return false;
  /* A lookup of the old slice must miss and read it again: a slice may be
   * changed only in a slot that keeps it.
   */
  atomic_store_explicit (&set->tag[way], TAG_EMPTY, memory_order_release);
  set->loading[way] = true;
  set->loading_tag[way] = tag;
  *r = (struct reservation) { set_index, tag, way };
  return true;
}

/* Reserve a slot for the slice with this tag, waiting while another thread
 * reads it or all slots of its set are being read into; and for the following
 * slices as far as that needs no waiting.  Returns how many were reserved: 0
 * if the first has been cached meanwhile (in *ref).
 */
static unsigned
reserve (struct cache *c, uint64_t tag, uint32_t slice_bytes, unsigned ahead,
         struct reservation r[], struct cache_ref *ref)
{
  unsigned nr = 0;

  pthread_mutex_lock (&c->lock);
  while (!lookup (c, find_set (c, tag), tag, ref)) {
    if (try_reserve (c, tag, &r[0])) {
      nr = 1;
      break;
    }
    pthread_cond_wait (&c->loaded, &c->lock);
  }
  while (nr > 0 && nr < ahead) {
    struct cache_ref other;

    tag += slice_bytes;
    if (lookup (c, find_set (c, tag), tag, &other) ||
        !try_reserve (c, tag, &r[nr]))
      break;
    nr++;
  }
  pthread_mutex_unlock (&c->lock);
  return nr;
}

static int
load (struct cache *c, struct storage *s, uint64_t tag, struct host_off offset,
      uint32_t slice_bytes, uint64_t ahead, struct cache_ref *ref)
{
  uint64_t words[CACHE_MAX_AHEAD * SLOT_WORDS];
  const unsigned slice_words = slice_bytes / sizeof words[0];
  struct reservation reserved[CACHE_MAX_AHEAD];
  unsigned nr, got, i;
  int r;

  if (ahead > CACHE_MAX_AHEAD)
    ahead = CACHE_MAX_AHEAD;
  nr = reserve (c, tag, slice_bytes, ahead, reserved, ref);
  if (nr == 0)
    return 0;
  if (debug_hooks.cache)
    debug_message ("cache: %s: reading %" PRIu32 " bytes at offset 0x%" PRIx64,
                   s->name, nr * slice_bytes, offset.v);
  r = storage_read (s, words, nr * slice_bytes, offset);
  if (r == -1 && nr > 1) { /* maybe only slices that were not asked for fail */
    r = storage_read (s, words, slice_bytes, offset);
    got = 1;
  }
  else
    got = nr;

  pthread_mutex_lock (&c->lock);
  for (i = 0; i < nr; ++i) {
    const struct reservation *to = &reserved[i];

    if (r == 0 && i < got)
      publish (c, to->set_index, to->way, to->tag, words + i * slice_words,
               slice_words);
    c->sets[to->set_index].loading[to->way] = false;
  }
  if (r == 0)
    lookup (c, reserved[0].set_index, tag, ref);
  pthread_cond_broadcast (&c->loaded);
  pthread_mutex_unlock (&c->lock);
  return r;
}

int
cache_get (struct cache *c, struct storage *s, unsigned id,
           struct host_off offset, uint32_t slice_bytes, uint64_t ahead,
           struct cache_ref *ref)
{
  const uint64_t tag = offset.v | id;

  assert (id < CACHE_MAX_STORAGES);
  assert (offset.v != 0 && offset.v % slice_bytes == 0);
  if (lookup (c, find_set (c, tag), tag, ref))
    return 0;
  return load (c, s, tag, offset, slice_bytes, ahead, ref);
}

bool
cache_find (struct cache *c, unsigned id, struct host_off offset,
            struct cache_ref *ref)
{
  const uint64_t tag = offset.v | id;

  return lookup (c, find_set (c, tag), tag, ref);
}

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

static inline unsigned
id_of (uint64_t tag)
{
  return tag % CACHE_MAX_STORAGES;
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
