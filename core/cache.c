/* SPDX-License-Identifier: BSD-3-Clause */

/* Set-associative: a slice can be in any of WAYS neighbouring slots.  The
 * tags of a set fill one line of the CPU's cache, so that a lookup costs
 * the same at any size.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <pthread.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "cache.h"
#include "error.h"

#define WAYS 8
#define SLOT_WORDS (CACHE_SLOT_BYTES / sizeof (uint64_t))

/* A tag is the slice's offset with the storage's id in the low bits that
 * the alignment leaves free, plus one of these in the rare cases.
 */
#define TAG_EMPTY UINT64_MAX

_Static_assert (CACHE_MAX_STORAGES <= 512, "ids must fit below the offset");

struct set {
  _Alignas (64) _Atomic uint64_t tag[WAYS];
  _Atomic uint64_t seq[WAYS]; /* odd while the slot changes */
  _Atomic bool referenced[WAYS];
  bool loading[WAYS]; /* lock; a tag being loaded is in loading_tag */
  uint64_t loading_tag[WAYS];
  unsigned hand; /* lock; the clock's */
};

struct cache {
  uint64_t nr_sets;
  struct set *sets;
  _Atomic uint64_t *words; /* SLOT_WORDS for each way of each set */
  size_t sets_bytes, words_bytes;

  /* Taken on a miss, for moments only, never around I/O (C4). */
  pthread_mutex_t lock;
  pthread_cond_t loaded;
};

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
  uint64_t i;

  assert (bytes >= CACHE_MIN_BYTES);
  if (c == NULL)
    goto no_memory;
  pthread_mutex_init (&c->lock, NULL);
  pthread_cond_init (&c->loaded, NULL);
  c->nr_sets = bytes / (WAYS * CACHE_SLOT_BYTES + sizeof (struct set));
  c->sets_bytes = c->nr_sets * sizeof (struct set);
  c->words_bytes = c->nr_sets * WAYS * CACHE_SLOT_BYTES;
  c->sets = map_memory (c->sets_bytes);
  c->words = map_memory (c->words_bytes);
  if (c->sets == NULL || c->words == NULL)
    goto no_memory;
  for (i = 0; i < c->nr_sets * WAYS; ++i)
    atomic_init (&c->sets[i / WAYS].tag[i % WAYS], TAG_EMPTY);
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
  pthread_cond_destroy (&c->loaded);
  pthread_mutex_destroy (&c->lock);
  free (c);
}

static inline uint64_t
find_set (const struct cache *c, uint64_t tag)
{
  /* Slices are 512 bytes or more apart; the multiplication spreads
   * them over the high half, which is then scaled to nr_sets.
   */
  const uint64_t hash = ((tag >> 9) + (tag << 32)) *
    UINT64_C (0x9e3779b97f4a7c15);

  return ((hash >> 32) * c->nr_sets) >> 32;
}

static inline _Atomic uint64_t *
slot_words (const struct cache *c, uint64_t set, unsigned way)
{
  return c->words + (set * WAYS + way) * SLOT_WORDS;
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
    /* The tag may have changed before seq was read.  Acquire: whoever
     * sees the tag of a later load must see that load's seq as well.
     */
    if ((ref->seen & 1) != 0 ||
        atomic_load_explicit (&set->tag[i], memory_order_acquire) != tag)
      continue;
    ref->seq = &set->seq[i];
    ref->words = slot_words (c, set_index, i);
    if (!atomic_load_explicit (&set->referenced[i], memory_order_relaxed))
      atomic_store_explicit (&set->referenced[i], true, memory_order_relaxed);
    return true;
  }
  return false;
}

/* Choose a slot of the set that is not being loaded: an empty one, else by
 * the clock.  Returns WAYS if there is none.  Called with the lock held.
 */
static unsigned
choose_victim (struct set *set)
{
  unsigned i, turns;

  for (i = 0; i < WAYS; ++i) {
    if (!set->loading[i] &&
        atomic_load_explicit (&set->tag[i], memory_order_relaxed) == TAG_EMPTY)
      return i;
  }
  for (turns = 0; turns < 2 * WAYS; ++turns) {
    i = set->hand++ % WAYS;
    if (set->loading[i])
      continue;
    if (!atomic_exchange_explicit (&set->referenced[i], false,
                                   memory_order_relaxed))
      return i;
  }
  return WAYS;
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

/* Put the words into the slot.  C2: seq is odd while they change, and the
 * release order of the stores keeps them behind that.  Lock held.
 */
static void
publish (struct cache *c, uint64_t set_index, unsigned way, uint64_t tag,
         const uint64_t *words, unsigned nr)
{
  struct set *set = &c->sets[set_index];
  _Atomic uint64_t *to = slot_words (c, set_index, way);
  const uint64_t seq = atomic_load_explicit (&set->seq[way],
                                             memory_order_relaxed);
  unsigned i;

  atomic_store_explicit (&set->seq[way], seq + 1, memory_order_relaxed);
  atomic_store_explicit (&set->tag[way], tag, memory_order_release);
  for (i = 0; i < nr; ++i)
    atomic_store_explicit (&to[i], words[i], memory_order_release);
  atomic_store_explicit (&set->seq[way], seq + 2, memory_order_release);
}

/* Reserve a slot for the slice, waiting while another thread reads it or
 * all slots of the set are being read into.  Returns WAYS if the slice
 * turned up meanwhile (in *ref).
 */
static unsigned
reserve (struct cache *c, uint64_t set_index, uint64_t tag,
         struct cache_ref *ref)
{
  struct set *set = &c->sets[set_index];
  unsigned way = WAYS;

  pthread_mutex_lock (&c->lock);
  while (!lookup (c, set_index, tag, ref)) {
    if (!is_loading (set, tag)) {
      way = choose_victim (set);
      if (way < WAYS) {
        set->loading[way] = true;
        set->loading_tag[way] = tag;
        break;
      }
    }
    pthread_cond_wait (&c->loaded, &c->lock);
  }
  pthread_mutex_unlock (&c->lock);
  return way;
}

static int
load (struct cache *c, struct storage *s, uint64_t tag, struct host_off offset,
      uint32_t slice_bytes, struct cache_ref *ref)
{
  const uint64_t set_index = find_set (c, tag);
  struct set *set = &c->sets[set_index];
  uint64_t words[SLOT_WORDS];
  unsigned way;
  int r;

  way = reserve (c, set_index, tag, ref);
  if (way == WAYS)
    return 0;
  if (debug_hooks.cache)
    debug_message ("cache: %s: reading %" PRIu32 " bytes at offset 0x%" PRIx64,
                   s->name, slice_bytes, offset.v);
  r = storage_read (s, words, slice_bytes, offset);

  pthread_mutex_lock (&c->lock);
  if (r == 0) {
    publish (c, set_index, way, tag, words, slice_bytes / sizeof words[0]);
    lookup (c, set_index, tag, ref);
  }
  set->loading[way] = false;
  pthread_cond_broadcast (&c->loaded);
  pthread_mutex_unlock (&c->lock);
  return r;
}

int
cache_get (struct cache *c, struct storage *s, unsigned id,
           struct host_off offset, uint32_t slice_bytes, struct cache_ref *ref)
{
  const uint64_t tag = offset.v | id;

  assert (id < CACHE_MAX_STORAGES && offset.v % slice_bytes == 0);
  if (lookup (c, find_set (c, tag), tag, ref))
    return 0;
  return load (c, s, tag, offset, slice_bytes, ref);
}
