/* SPDX-License-Identifier: BSD-3-Clause */

/* Set-associative: a slice can be in any of WAYS neighbouring slots.  The
 * tags of a set fill one line of the CPU's cache, so that the cost of a lookup
 * doesn't depend on the cache's size.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "base/error.h"
#include "cache/tables-parts.h"
#include "cache/tables.h"

/* Beyond this (32 MiB of tables) changes should be written soon. */
#define MAX_CHANGED_SLOTS 8192

/* Shared by all slices of zeros, which most slices of a sparse disk's tables
 * are: they take neither memory nor a copy.
 */
static const _Atomic uint64_t no_words[SLOT_WORDS];

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

/* Reserve slots for the slice with this tag and those that follow, as far as they
 * are missing and that needs no waiting.  Returns how many.  Lock held.
 */
static unsigned
reserve_missing (struct cache *c, uint64_t tag, uint32_t slice_bytes,
                 unsigned max, struct reservation r[])
{
  struct cache_ref ref;
  unsigned nr;

  for (nr = 0; nr < max; ++nr, tag += slice_bytes)
    if (lookup (c, find_set (c, tag), tag, &ref) ||
        !try_reserve (c, tag, &r[nr]))
      break;
  return nr;
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
  if (nr > 0)
    nr += reserve_missing (c, tag + slice_bytes, slice_bytes, ahead - 1, r + 1);
  pthread_mutex_unlock (&c->lock);
  return nr;
}

/* The reading into these slots has ended: the first `got' slices are in words.
 * Lock held.
 */
static void
release (struct cache *c, const struct reservation r[], unsigned nr,
         unsigned got, const uint64_t *words, uint32_t slice_bytes)
{
  const unsigned slice_words = slice_bytes / sizeof *words;
  unsigned i;

  for (i = 0; i < nr; ++i) {
    if (i < got)
      publish (c, r[i].set_index, r[i].way, r[i].tag, words + i * slice_words,
               slice_words);
    c->sets[r[i].set_index].loading[r[i].way] = false;
  }
}

static int
load (struct cache *c, struct storage *s, uint64_t tag, struct host_off offset,
      uint32_t slice_bytes, uint64_t ahead, struct cache_ref *ref)
{
  uint64_t words[CACHE_MAX_AHEAD * SLOT_WORDS];
  struct reservation reserved[CACHE_MAX_AHEAD];
  unsigned nr, got;
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
  release (c, reserved, nr, r == 0 ? got : 0, words, slice_bytes);
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
  const uint64_t set_index = find_set (c, tag);
  bool found = lookup (c, set_index, tag, ref);

  /* A slice that is being changed seemed to be absent: but it has changes. */
  if (!found && !cache_is_clean (c, id)) {
    pthread_mutex_lock (&c->lock);
    found = lookup (c, set_index, tag, ref);
    pthread_mutex_unlock (&c->lock);
  }
  return found;
}

/* Slices of several tables that are read together. */
struct ahead {
  struct reservation reserved[CACHE_MAX_PARTS][CACHE_MAX_AHEAD];
  unsigned slices[CACHE_MAX_PARTS];
  uint64_t words[CACHE_MAX_PARTS][CACHE_MAX_AHEAD * SLOT_WORDS];
};

/* Reserve what is missing of these parts. */
static void
reserve_parts (struct cache *c, unsigned id, const struct cache_part *parts,
               unsigned nr, uint32_t slice_bytes, struct ahead *a)
{
  uint64_t left = c->nr_sets * WAYS / 4;
  unsigned i;

  pthread_mutex_lock (&c->lock);
  for (i = 0; i < nr; ++i) {
    uint64_t max = parts[i].nr < CACHE_MAX_AHEAD ? parts[i].nr
      : CACHE_MAX_AHEAD;

    if (max > left)
      max = left;
    a->slices[i] = reserve_missing (c, parts[i].offset.v | id, slice_bytes,
                                    max, a->reserved[i]);
    left -= a->slices[i];
  }
  pthread_mutex_unlock (&c->lock);
}

void
cache_read_ahead (struct cache *c, struct storage *s, unsigned id,
                  const struct cache_part *parts, unsigned nr,
                  uint32_t slice_bytes)
{
  struct ahead *a = malloc (sizeof *a);
  struct storage_run runs[CACHE_MAX_PARTS];
  struct iovec iov[CACHE_MAX_PARTS];
  unsigned i, n = 0;
  bool read;

  if (a == NULL)
    return;
  assert (nr <= CACHE_MAX_PARTS && id < CACHE_MAX_STORAGES);
  reserve_parts (c, id, parts, nr, slice_bytes, a);
  for (i = 0; i < nr; ++i)
    if (a->slices[i] > 0) {
      iov[n] = (struct iovec) { a->words[i], a->slices[i] * slice_bytes };
      runs[n] = (struct storage_run) { &iov[n], 1, parts[i].offset };
      n++;
    }
  read = n > 0 && storage_read_many (s, runs, n) == 0;
  pthread_mutex_lock (&c->lock);
  for (i = 0; i < nr; ++i)
    release (c, a->reserved[i], a->slices[i], read ? a->slices[i] : 0,
             a->words[i], slice_bytes);
  pthread_cond_broadcast (&c->loaded);
  pthread_mutex_unlock (&c->lock);
  free (a);
}

/* ------------------------------------------------------------ writing through */

/* Take the slot of a slice that is cached, and has no changes; else one for it, if
 * it is absent.  False: it is to be left alone.  Lock held.
 */
static bool
reserve_to_write (struct cache *c, uint64_t tag, struct reservation *r,
                  bool *cached)
{
  const uint64_t set_index = find_set (c, tag);
  struct set *set = &c->sets[set_index];
  unsigned way = 0;

  while (way < WAYS &&
         atomic_load_explicit (&set->tag[way], memory_order_relaxed) != tag)
    way++;
  *cached = way < WAYS;
  if (!*cached)
    return try_reserve (c, tag, r);
  if (set->loading[way] || is_changed (set, way))
    return false;
  atomic_store_explicit (&set->tag[way], TAG_EMPTY, memory_order_release);
  set->loading[way] = true;
  set->loading_tag[way] = tag;
  *r = (struct reservation) { set_index, tag, way };
  return true;
}

int
cache_write_through (struct cache *c, struct storage *s, unsigned id,
                     struct host_off offset, uint32_t slice_bytes, unsigned nr,
                     const uint64_t *words, unsigned *done)
{
  struct reservation reserved[CACHE_MAX_AHEAD];
  const unsigned slice_words = slice_bytes / sizeof *words;
  bool cached[CACHE_MAX_AHEAD];
  unsigned n = 0, i;
  int r = 0;

  assert (nr <= CACHE_MAX_AHEAD);
  pthread_mutex_lock (&c->lock);
  while (n < nr && reserve_to_write (c, (offset.v | id) + n * slice_bytes,
                                     &reserved[n], &cached[n]))
    n++;
  pthread_mutex_unlock (&c->lock);
  if (n > 0)
    r = storage_write (s, words, n * slice_bytes, offset);
  pthread_mutex_lock (&c->lock);
  for (i = 0; i < n; ++i) {
    release (c, &reserved[i], 1, r == 0 && cached[i] ? 1 : 0,
             words + i * slice_words, slice_bytes);
  }
  pthread_cond_broadcast (&c->loaded);
  pthread_mutex_unlock (&c->lock);
  *done = r == 0 ? n : 0;
  return r;
}
