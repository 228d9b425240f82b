/* SPDX-License-Identifier: BSD-3-Clause */

/* How slices lie in memory: what tables.c, which finds and loads them, and
 * changes.c, which changes them, have in common.  C1 to C8: see tables.h.
 */

#ifndef CORE_CACHE_TABLES_PARTS_H
#define CORE_CACHE_TABLES_PARTS_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "cache/tables.h"

#define WAYS 8
#define SLOT_WORDS (CACHE_SLOT_BYTES / sizeof (uint64_t))
#define SECTOR_WORDS (CACHE_SECTOR / sizeof (uint64_t))

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

static inline uint64_t
find_set (const struct cache *c, uint64_t tag)
{
  /* Tags come in strides of large powers of two, and may differ in any bit:
   * mix all bits into the high half, which is then scaled to nr_sets.
   */
  return ((hash_mix (&c->key, tag) >> 32) * c->nr_sets) >> 32;
}

/* The words of a slot, which from now on has some.  Lock held. */
static inline _Atomic uint64_t *
slot_words (struct cache *c, struct set *set, unsigned way)
{
  if (set->own[way] == 0)
    set->own[way] = ++c->nr_own;
  return c->words + (size_t) (set->own[way] - 1) * SLOT_WORDS;
}

/* Whether the slot has changes that are not on the storage yet (C5).  Lock
 * held.
 */
static inline bool
is_changed (const struct set *set, unsigned way)
{
  return set->changed[way] != 0 || set->in_batch[way];
}

static inline unsigned
id_of (uint64_t tag)
{
  return tag % CACHE_MAX_STORAGES;
}

#endif /* CORE_CACHE_TABLES_PARTS_H */
