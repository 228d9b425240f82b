/* SPDX-License-Identifier: BSD-3-Clause */

/* Writes changed tables to the disk, in an order that is safe against a crash
 * at any point.
 *
 * A change is made in the cache, and written together with all others by the
 * next writeback; a flush is one.  A writeback takes all changes, as they are
 * at one moment, as a batch, and writes
 *
 *   1. refcounts, and waits until they and all data are durable;
 *   2. mappings (L2 and L1 entries), and waits until those are durable.
 *
 * The first wait is left out if no mapping of the batch needs it.
 *
 * Invariants:
 *
 *  T1  A mapping is changed in memory after its data was handed to the
 *      host, and taken into a batch together with `ordered' (I5).
 *  T2  What a change made unreachable is passed on for freeing only after the
 *      batch with that change is durable (I4, I6).
 *  T3  Running out of space while writing a batch loses nothing: its sectors
 *      go into the next one.  Any other failure to write, and each failure to
 *      flush, sticks (I10).
 *  T4  Batches are written one after the other.
 *  T5  What is given up and not yet reusable is bounded (I13), in bytes and in
 *      entries of these lists, provided that every caller which adds to them
 *      then does a writeback if writeback_is_wanted, and waits while
 *      writeback_is_behind.
 *  T6  A change has its space on the host before it is made (C6), so that a
 *      writeback, which is what gives space back, works on a full file system.
 *      Where the host needs space even so, since it copies what is
 *      overwritten, the ballast is given up for it.
 */

#ifndef CORE_QCOW2_WRITE_WRITEBACK_H
#define CORE_QCOW2_WRITE_WRITEBACK_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/epoch.h"
#include "cache/tables.h"
#include "qcow2/write/suspects.h"
#include "storage/storage.h"

/* Given up: one reference to each of some contiguous host clusters. */
struct freed {
  struct host_off host;
  uint64_t nr;    /* clusters */
  bool is_table;  /* may be in the cache */
  bool copied;    /* the entry said that there are no other references */
  uint64_t bytes; /* the host's space that should come back: 0 if there are
                   * other references */
};

/* What was given up within one batch. */
struct freed_list {
  struct freed_list *next;
  uint64_t epoch; /* in which it became unreachable for new requests */
  uint64_t bytes; /* the sum */
  uint64_t batch; /* its number */
  size_t nr, capacity;
  struct freed *freed;
};

#define WRITEBACK_ALLOCATED 8

struct writeback {
  struct storage *tables;
  struct storage *data; /* may be the same */
  struct cache *cache;
  unsigned id; /* of the storage, in the cache */
  bool begun;  /* the cache knows that it is written */
  uint32_t slice_bytes;
  unsigned cluster_bits;
  struct epoch *epoch;

  /* Held briefly, so that a batch is taken between two changes. */
  pthread_mutex_t changes;
  bool ordered;              /* changes; the next batch needs both waits */
  uint64_t taken;            /* changes; the number of the last batch */
  struct freed_list *freed;  /* changes; by the next batch; never NULL */
  struct suspects *suspects; /* changes; NULL: no search for leaks */

  _Atomic uint64_t durable;  /* the number of the last durable batch */
  _Atomic bool unflushed;    /* something was written since the last flush */

  /* Held for reading the header's first sector and writing all of it, and for
   * changing the place of the refcount table there; around I/O of that sector.
   */
  pthread_mutex_t header_lock;

  pthread_mutex_t space_lock; /* for allocating on the host (T6); around I/O */
  struct host_off allocated[WRITEBACK_ALLOCATED]; /* space_lock; see
                                                * writeback_allocate_table */
  unsigned next_allocated;    /* space_lock */
  struct host_off ballast;    /* space_lock; see writeback_set_ballast */
  uint64_t ballast_bytes;     /* space_lock; 0: there is none */

  /* Group writeback. */
  pthread_mutex_t lock;
  pthread_cond_t done;
  bool running;              /* lock */
  uint64_t started, ended;   /* lock */
  int result;                /* lock; errno of the last one that ended */
  char message[512];         /* lock, until failed is set; why */
  struct cache_batch batch;  /* of the running one */

  /* Freed, durably; waiting for older requests to end. */
  pthread_mutex_t freed_lock;
  struct freed_list *first_freed, **last_freed;
  _Atomic size_t nr_freed;   /* entries, the next batch's included */
  _Atomic size_t nr_next;    /* those of the next batch */
  _Atomic uint64_t bytes_freed, bytes_next; /* the same in bytes */
  uint64_t max_freed;        /* bytes (T5); 0: depends on the file's size */
  _Atomic uint64_t lost;     /* how often writeback_lost was called */

  _Atomic bool failed;       /* I10 */
  _Atomic bool corrupt;      /* failed since the image is corrupt (I7) */
};

extern int writeback_init (struct writeback *c, struct storage *tables,
                           struct storage *data, struct cache *cache,
                           unsigned id, uint32_t slice_bytes,
                           unsigned cluster_bits, struct epoch *epoch);
extern void writeback_destroy (struct writeback *c);

/* A change of some words of one slice of a table. */
struct change {
  struct host_off slice;
  unsigned first, nr;    /* words */
  const uint64_t *words; /* in the host's byte order */
  enum cache_order order;

  /* All data written, and all refcounts changed, before this change must be
   * durable before it is.
   */
  bool ordered;

  /* What the change makes unreachable. */
  const struct freed *freed;
  unsigned nr_freed;
};

/* Make a change.  *batch, if not NULL, is set to the number of its batch.  May
 * read a slice, allocate space on the host, and do a writeback: the caller
 * must hold no lock that these take.  Returns -1 with the error set (ENOSPC
 * among others), and then nothing has changed.
 */
extern int writeback_change (struct writeback *c, const struct change *change,
                             uint64_t *batch);

/* Allocate space on the host, in one piece, for a cluster that becomes a
 * table.  The last few are remembered, so that changing their slices needs no
 * further allocation.  Returns -1 with the error set.
 */
extern int writeback_allocate_table (struct writeback *c,
                                     struct host_off table);

/* The ballast: unused bytes of the storage that have space on the host.  A
 * writeback that runs out of space punches them, once.  0 bytes: no ballast
 * from now on.
 */
extern void writeback_set_ballast (struct writeback *c, struct host_off host,
                                   uint64_t bytes);
extern bool writeback_has_ballast (struct writeback *c);

/* Something found no space: returns true if the ballast gave the host some. */
extern bool writeback_spend_ballast (struct writeback *c);

/* Give up references independently of a change.  Returns -1 with the error set if
 * memory is short: then they are lost.
 */
extern int writeback_free (struct writeback *c, const struct freed *freed,
                           unsigned nr);

/* References could not be given up: they are leaked, and their refcounts stay too
 * high, though there may be entries with COPIED.
 */
static inline void
writeback_lost (struct writeback *c)
{
  atomic_fetch_add (&c->lost, 1);
}

/* The number of the last durable batch.  After a writeback_flush that went well all
 * that was given up before it is in that one, or in earlier ones.
 */
static inline uint64_t
writeback_durable_batch (const struct writeback *c)
{
  return atomic_load (&c->durable);
}

/* Whether the batch of this number is durable. */
static inline bool
writeback_is_durable (const struct writeback *c, uint64_t batch)
{
  return atomic_load (&c->durable) >= batch;
}

/* Data was written to the storage: called after that, and before the
 * request is answered.
 */
static inline void
writeback_note_data (struct writeback *c)
{
  if (!atomic_load (&c->unflushed))
    atomic_store (&c->unflushed, true);
}

/* Make everything written and changed before this call durable.  Concurrent
 * calls share the work.  Returns -1 with the error set.
 */
extern int writeback_flush (struct writeback *c);

/* Whether all changes are durable. */
extern bool writeback_is_clean (struct writeback *c);

/* Whether it is time for a writeback, to bound what waits for one: memory, and
 * the host's space (T5).
 */
extern bool writeback_is_wanted (struct writeback *c);

/* Whether so much is given up and not yet reusable that requests which give up
 * more must wait (T5).
 */
extern bool writeback_is_behind (struct writeback *c);

/* Take the next list of what was given up, if all requests that could have
 * seen it have ended.  The caller frees it by writeback_free_list.  NULL: none.
 */
extern struct freed_list *writeback_next_freed (struct writeback *c);
extern void writeback_free_list (struct writeback *c, struct freed_list *l);

/* Whether writeback_next_freed has yet to return anything from batches up to
 * this one, which has ended.
 */
extern bool writeback_has_freed (struct writeback *c, uint64_t batch);

/* From now on, clear these suspects of all clusters that could wrongly seem to
 * be leaked: of those given up, and of those passed to the two functions
 * below.  Returns the number of the last batch that can contain clusters given
 * up earlier.  NULL: stop that; earlier suspects are not used any more.
 */
extern uint64_t writeback_set_suspects (struct writeback *c,
                                        struct suspects *s);
extern void writeback_not_leaked (struct writeback *c, struct host_off host,
                                  uint64_t nr);
extern void writeback_table_not_leaked (struct writeback *c,
                                        const struct entry_format *f,
                                     const uint64_t *words, uint64_t nr_words);

/* Forbid all further writing, for the reason that is set as the error. */
extern void writeback_fail (struct writeback *c);

/* The same, since metadata was found where it can't be. */
extern void writeback_fail_corrupt (struct writeback *c);

/* Whether something has failed, and not because the image is corrupt. */
static inline bool
writeback_has_failed (const struct writeback *c)
{
  return atomic_load (&c->failed) && !atomic_load (&c->corrupt);
}

/* Returns -1 with the error set to EIO if nothing may be written. */
extern int writeback_check (struct writeback *c);

#endif /* CORE_QCOW2_WRITE_WRITEBACK_H */
