/* SPDX-License-Identifier: BSD-3-Clause */

/* The metadata cache: slices of tables, keyed by their storage and their
 * offset there.  Knows nothing of qcow2.
 *
 * Invariants:
 *
 *  C1  A hit takes no lock, and writes no shared memory except, now and then,
 *      one reference bit.
 *  C2  Each slot is a sequence lock: what a reader saw counts only if
 *      cache_still_valid says so afterwards.
 *  C3  Memory is bounded by the size given to cache_new (I11), and only
 *      taken as it is used.
 *  C4  No lock is held while a slice is read from storage; a slice is read
 *      once, however many threads want it.
 *  C5  A changed slice stays until its changes are on the storage.  At most
 *      half of each set's slots are changed ones, so that readers always find
 *      a slot without waiting for that; each storage being written has an
 *      equal share of them, so that its writer never waits for another's.
 *  C6  In a storage with holes, a sector that is all zeros is changed only
 *      after cache_note_space has said that it has space on the host; any
 *      other sector has some, for its bytes that are not zeros.  So changes
 *      can be written even on a full file system.
 *  C7  Changes are kept for each storage separately: a batch belongs to one
 *      storage and contains nothing of another.
 *  C8  Where a reader has seen a change, the storage is not called clean
 *      before the change is there: it counts before any reader can see it,
 *      and until its batch has ended.
 *  C9  A slice that is written past the batches is absent meanwhile, and whoever
 *      wants it waits, as while it is read: nobody inserts what was there before.
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
#define CACHE_MAX_WRITERS 4    /* storages being written at one time */

struct cache;

/* bytes: at least CACHE_MIN_BYTES.  NULL: error set. */
extern struct cache *cache_new (uint64_t bytes);
extern void cache_free (struct cache *c); /* no reader left; NULL is allowed */

/* A slice being looked at.  Not owned; nothing to release. */
struct cache_ref {
  const _Atomic uint64_t *words;
  const _Atomic uint64_t *seq;
  uint64_t seen;
};

/* The most slices that are read at once. */
#define CACHE_MAX_AHEAD 16

/* Find the slice at this offset, a nonzero multiple of slice_bytes, of the
 * storage with this id.  slice_bytes is a power of two from 512 to
 * CACHE_SLOT_BYTES, always the same for one storage.  If the slice has to be
 * read, up to `ahead' slices (1: just this one), which must belong to the same
 * table, are read at once, since the caller will want them next.  Returns -1
 * with the error set if it can't be read.
 */
extern int cache_get (struct cache *c, struct storage *s, unsigned id,
                      struct host_off offset, uint32_t slice_bytes,
                      uint64_t ahead, struct cache_ref *ref);

/* Slices of a table, from this one on. */
struct cache_part {
  struct host_off offset;
  uint64_t nr; /* CACHE_MAX_AHEAD are read at most */
};

#define CACHE_MAX_PARTS 16

/* Read what will be wanted of so many tables (CACHE_MAX_PARTS at most), from a
 * storage that reads together, at once: of each the first slices that are not in
 * the cache, and of all no more than a quarter of it holds.  It doesn't wait
 * for others to read.  A failure is not reported: it recurs when a slice is wanted.
 */
extern void cache_read_ahead (struct cache *c, struct storage *s, unsigned id,
                              const struct cache_part *parts, unsigned nr,
                              uint32_t slice_bytes);

/* As cache_get, for a slice that is in the cache.  False: it is not, and has no
 * changes that are not on the storage (C5).  Reads nothing, and waits for nobody;
 * takes the cache's lock briefly where the storage has such changes.
 */
extern bool cache_find (struct cache *c, unsigned id, struct host_off offset,
                        struct cache_ref *ref);

/* The acquire order keeps the check in cache_still_valid after this load. */
static inline uint64_t
cache_word (const struct cache_ref *ref, unsigned i)
{
  return be64toh (atomic_load_explicit (&ref->words[i],
                                        memory_order_acquire));
}

/* Zero needs no byte swap. */
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

/* A change is made in the cache, where all readers see it at once, and is
 * written later, as part of a batch: just the 512-byte sectors that changed.
 */
#define CACHE_SECTOR 512

/* The order of writing within a batch. */
enum cache_order {
  CACHE_FIRST,
  CACHE_SECOND,
};

enum cache_update {
  CACHE_UPDATED,
  CACHE_ABSENT,      /* cache_get it, and try again */
  CACHE_CROWDED,     /* write a batch, and try again */
  CACHE_LACKS_SPACE, /* allocate it on the host, and try again (C6) */
};

/* The storage with this id is about to be written.  holes: it may have holes
 * (C6).  Returns -1 with the error set to EBUSY if too many others are being
 * written, or one of them has changes that are not on its storage yet.
 */
extern int cache_begin_writing (struct cache *c, unsigned id, bool holes);

/* Writing has ended.  Forgets changes that are left, with their slices.  No
 * batch of this storage may be open.
 */
extern void cache_end_writing (struct cache *c, unsigned id);

/* Which of the sectors that contain these words may be holes: bit i is the
 * i-th sector of the slice.  0 also if the slice is not in the cache.
 */
extern uint8_t cache_lacking_space (struct cache *c, unsigned id,
                                    struct host_off slice, unsigned first,
                                    unsigned nr);

/* These sectors of a slice, which may have left the cache meanwhile, have
 * space on the host.
 */
extern void cache_note_space (struct cache *c, unsigned id,
                              struct host_off slice, uint8_t sectors);

/* Change nr (at least 1) words of a slice, from the first-th on, atomically
 * for readers.  A slice always has the same order.  Takes the cache's lock
 * briefly.
 */
extern enum cache_update cache_update (struct cache *c, unsigned id,
                                       struct host_off slice, unsigned first,
                                       unsigned nr, const uint64_t *words,
                                       enum cache_order order);

/* Whether a storage has so many changes that they should be written soon.
 * Takes no lock.
 */
extern bool cache_wants_writing (const struct cache *c, unsigned id);

/* Whether all changes of a storage have been written.  Takes no lock. */
extern bool cache_is_clean (const struct cache *c, unsigned id);

struct cache_sector {
  struct host_off offset;
  enum cache_order order;
  uint32_t slot;
  uint8_t bit;
  uint8_t data[CACHE_SECTOR];
};

/* The changed sectors of a storage, as they were at one moment.  A storage has
 * one open batch at a time.
 */
struct cache_batch {
  struct cache_sector *sector; /* by order and then by offset */
  size_t nr, capacity;
};

/* Take all changes into the batch (initially all zeros; its memory is reused).
 * No update may run at the same time; later ones belong to the next batch.
 * Returns -1 with ENOMEM set, and then has taken nothing.
 */
extern int cache_take_batch (struct cache *c, unsigned id,
                             struct cache_batch *b);

/* The batch was written; if not, its changes go into the next one. */
extern void cache_end_batch (struct cache *c, unsigned id,
                             const struct cache_batch *b, bool written);

/* Write slices that lie one after the other, with words in place of what is there
 * (C9): those which are in the cache, unchanged, have these words then, and no
 * others are inserted.  Nobody changes them meanwhile, and whoever reads them past
 * the cache may find any byte as it was before or as it will be.  *done is how many
 * were written: it ends before one that has changes, or is being read.  nr is
 * CACHE_MAX_AHEAD at most.  Returns -1 with the error set, and then they are not in
 * the cache.  The caller holds no lock that a reader of these slices could want.
 */
extern int cache_write_through (struct cache *c, struct storage *s,
                                unsigned id, struct host_off offset,
                                uint32_t slice_bytes, unsigned nr,
                                const uint64_t *words, unsigned *done);

/* Forget the slices of slice_bytes in this range, which is about to hold
 * something else.  They must not be in use.
 */
extern void cache_forget (struct cache *c, unsigned id, struct host_off offset,
                          uint64_t count, uint32_t slice_bytes);

/* Forget all slices of a storage, none of which is changed: it was written
 * behind the cache's back, or its id is about to be reused.  Reads may be
 * running; one that began earlier may still insert what it has read.
 */
extern void cache_forget_storage (struct cache *c, unsigned id);

#endif /* CORE_CACHE_TABLES_H */
