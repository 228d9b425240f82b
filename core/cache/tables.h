/* SPDX-License-Identifier: BSD-3-Clause */

/* The metadata cache: slices of tables, found by the storage they are on
 * and their offset there.  It knows nothing of qcow2.
 *
 * Invariants:
 *
 *  C1  A hit takes no lock and writes no shared memory but, now and
 *      then, one reference bit.
 *  C2  What a reader saw counts only if cache_still_valid says so after
 *      it has looked: each slot is a sequence lock.
 *  C3  Memory is bounded by the size given to cache_new (I11), and only
 *      taken as it is used.
 *  C4  No lock is held while a slice is read from storage; a slice is
 *      read once, however many threads want it.
 *  C5  A changed slice stays until what was changed is on the storage.  In
 *      each set at most half of the slots are changed ones, so that readers
 *      always find a slot without waiting for that; each storage that is
 *      written has an equal share of them, so that its writer never waits for
 *      another one's.
 *  C6  In a storage with holes, a sector that was all zeros is changed only
 *      when its space on the host was told of by cache_note_space: any other
 *      has a byte that takes some.  So what is changed can be written on a
 *      full file system, too.
 *  C7  What is changed is kept for each storage by itself: a batch is of one,
 *      and has nothing of another.
 *
 * Words are 64 bits, big endian, as on disk.
 */

#ifndef CORE_CACHE_TABLES_H
#define CORE_CACHE_TABLES_H

#include <stdbool.h>
#include <stdatomic.h>
#include <stdint.h>

#include "base/offset.h"
#include "storage/storage.h"

#define CACHE_SLOT_BYTES 4096
#define CACHE_MIN_BYTES (UINT64_C (64) << 10)
#define CACHE_MAX_STORAGES 512 /* ids must be less */
#define CACHE_MAX_WRITERS 4    /* storages that are written at one time */

struct cache;

/* bytes: at least CACHE_MIN_BYTES.  NULL: error set. */
extern struct cache *cache_new (uint64_t bytes);
extern void cache_free (struct cache *c); /* no reader left; NULL is allowed */

/* A slice that a reader looks at.  Not owned, nothing to release. */
struct cache_ref {
  const _Atomic uint64_t *words;
  const _Atomic uint64_t *seq;
  uint64_t seen;
};

/* The most slices that are read at once. */
#define CACHE_MAX_AHEAD 16

/* Find the slice of slice_bytes (a power of two from 512 to
 * CACHE_SLOT_BYTES, always the same for one storage) at this offset, a
 * multiple of slice_bytes other than 0, of the storage with this id.  If it
 * has to be read, up to `ahead' slices (1: just this one) are read at once,
 * since the caller will want those as well; they must belong to the same
 * table.  Returns -1 with the error set if it can't be read.
 */
extern int cache_get (struct cache *c, struct storage *s, unsigned id,
                      struct host_off offset, uint32_t slice_bytes,
                      uint64_t ahead, struct cache_ref *ref);

/* The acquire order keeps the check in cache_still_valid behind it. */
static inline uint64_t
cache_word (const struct cache_ref *ref, unsigned i)
{
  return be64toh (atomic_load_explicit (&ref->words[i],
                                        memory_order_acquire));
}

/* Whether a word is 0 needs no byte order. */
static inline bool
cache_word_is_zero (const struct cache_ref *ref, unsigned i)
{
  return atomic_load_explicit (&ref->words[i], memory_order_acquire) == 0;
}

static inline bool
cache_still_valid (const struct cache_ref *ref)
{
  return atomic_load_explicit (ref->seq, memory_order_relaxed) == ref->seen;
}

/* Changing.  A change is made in the cache, where all readers see it at
 * once, and is written later, as part of a batch: the 512-byte sectors that
 * changed, never a whole table.
 */
#define CACHE_SECTOR 512

/* What must be on the disk before what, within one batch. */
enum cache_order {
  CACHE_FIRST,
  CACHE_SECOND,
};

enum cache_update {
  CACHE_UPDATED,
  CACHE_ABSENT,      /* cache_get it, and try again */
  CACHE_CROWDED,     /* write a batch, and try again */
  CACHE_LACKS_SPACE, /* see to that, and try again (C6) */
};

/* The storage of this id is about to be written.  holes: it may have some (C6).
 * Returns -1 with the error set (EBUSY): too many others are, or one of them has
 * changes that are not on the storage yet.
 */
extern int cache_begin_writing (struct cache *c, unsigned id, bool holes);

/* It is written no more.  Changes that are left are forgotten, with the slices
 * that they are in.  No batch of it may be open.
 */
extern void cache_end_writing (struct cache *c, unsigned id);

/* The sectors that these words are in and that may be holes, bit i being the
 * i-th sector of the slice: 0 also if the slice is not in the cache.
 */
extern uint8_t cache_lacking_space (struct cache *c, unsigned id,
                                    struct host_off slice, unsigned first,
                                    unsigned nr);

/* These sectors of a slice have space on the host.  It may have left the cache
 * meanwhile.
 */
extern void cache_note_space (struct cache *c, unsigned id,
                              struct host_off slice, uint8_t sectors);

/* Change nr words (at least 1), from the first-th on, of a slice, all at
 * once as far as readers can tell.  A slice always has the same order.
 * Takes the cache's lock for a moment.
 */
extern enum cache_update cache_update (struct cache *c, unsigned id,
                                       struct host_off slice, unsigned first,
                                       unsigned nr, const uint64_t *words,
                                       enum cache_order order);

/* True if so much of a storage was changed that it should be written soon.  No
 * lock.
 */
extern bool cache_wants_writing (const struct cache *c, unsigned id);

/* True if nothing of a storage is changed that is not there yet.  No lock. */
extern bool cache_is_clean (const struct cache *c, unsigned id);

struct cache_sector {
  struct host_off offset;
  enum cache_order order;
  uint32_t slot;
  uint8_t bit;
  uint8_t data[CACHE_SECTOR];
};

/* Sectors of a storage that changed, as they were at one moment.  One at a time
 * for each storage.
 */
struct cache_batch {
  struct cache_sector *sector; /* by order and then by offset */
  size_t nr, capacity;
};

/* Take what has changed into the batch (initially all zeros; its memory is
 * used again).  No update may run at the same time; those after it belong to
 * the next batch.  Returns -1 with ENOMEM set, and nothing is changed.
 */
extern int cache_take_batch (struct cache *c, unsigned id,
                             struct cache_batch *b);

/* The batch was written; or, if not, it belongs to the next one again. */
extern void cache_end_batch (struct cache *c, unsigned id,
                             const struct cache_batch *b, bool written);

/* Forget the slices of slice_bytes in this range, which is about to hold
 * something else.  Nobody may be reading or changing them.
 */
extern void cache_forget (struct cache *c, unsigned id, struct host_off offset,
                          uint64_t count, uint32_t slice_bytes);

/* Forget all slices of a storage, none of which is changed: it was written by
 * another way, or its id is about to be another storage's.  Readers may be at
 * work; one that began before that may still put in what it read before.
 */
extern void cache_forget_storage (struct cache *c, unsigned id);

#endif /* CORE_CACHE_TABLES_H */
