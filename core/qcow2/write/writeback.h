/* SPDX-License-Identifier: BSD-3-Clause */

/* Changes of tables, from memory to the disk, in an order that a crash at
 * any point can't harm.
 *
 * A change is made in the cache, and is written with all others by the next
 * writeback, which a flush is.  A writeback takes what has changed as it is at one
 * moment and writes
 *
 *   1. refcounts, and waits until they and all data are durable;
 *   2. mappings (L2 and L1 entries), and waits until those are.
 *
 * The first wait is left out if no mapping of the batch needs it.
 *
 * Invariants:
 *
 *  T1  A mapping is changed in memory after its data was handed to the
 *      host, and taken into a batch together with `ordered' (I5).
 *  T2  What a change made unreachable is passed on to whoever frees it only
 *      after the batch with that change is durable (I4, I6).
 *  T3  No space, in writing a batch, is no loss: its sectors belong to the
 *      next one.  Any other failure to write, and each failure to flush,
 *      sticks (I10).
 *  T4  Batches are written one after the other.
 *  T5  What is given up and not to be had again is bounded (I13), in bytes and
 *      in entries of these lists, if all who add to them see to it afterwards:
 *      by a writeback once writeback_is_wanted, and by waiting while
 *      writeback_is_behind.
 *  T6  A change has its space on the host before it is made (C6), so that a
 *      writeback wants none on a full file system: it is what gives some back.
 *      Where the host wants some all the same, since it copies what is
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

/* References to host clusters that were given up, one each. */
struct freed {
  struct host_off host;
  uint64_t nr;    /* clusters */
  bool is_table;  /* may be in the cache */
  uint64_t bytes; /* of the host's space that are expected back: 0 where others
                   * refer to it, too */
};

/* What was given up within one batch. */
struct freed_list {
  struct freed_list *next;
  uint64_t epoch; /* when it was out of reach for new requests */
  uint64_t bytes; /* the sum */
  uint64_t batch; /* its number */
  size_t nr, capacity;
  struct freed *freed;
};

#define COMMIT_ALLOCATED 8

struct writeback {
  struct storage *tables;
  struct storage *data; /* may be the same */
  struct cache *cache;
  unsigned id; /* of the storage, in the cache */
  bool begun;  /* the cache knows that it is written */
  uint32_t slice_bytes;
  unsigned cluster_bits;
  struct epoch *epoch;

  /* Held for moments, so that a batch is taken between two changes. */
  pthread_mutex_t changes;
  bool ordered;              /* changes; the next batch needs both waits */
  uint64_t taken;            /* changes; the number of the last batch */
  struct freed_list *freed;  /* changes; by the next batch; never NULL */
  struct suspects *suspects; /* changes; NULL: nobody looks for leaks */

  _Atomic uint64_t durable;  /* the number of the last batch that is */
  _Atomic bool unflushed;    /* something was written since the last flush */

  pthread_mutex_t space_lock; /* of who has space allocated (T6); I/O */
  struct host_off allocated[COMMIT_ALLOCATED]; /* space_lock; see
                                                * writeback_allocate_table */
  unsigned next_allocated;    /* space_lock */
  struct host_off ballast;    /* space_lock; see writeback_set_ballast */
  uint64_t ballast_bytes;     /* space_lock; 0: there is none */

  /* Group writeback. */
  pthread_mutex_t lock;
  pthread_cond_t done;
  bool running;              /* lock */
  uint64_t started, ended;   /* lock */
  int result;                /* lock; of the last one that ended: errno */
  char message[512];         /* lock, until failed is set; why */
  struct cache_batch batch;  /* of who is running */

  /* Freed, durably; waiting for older requests to end. */
  pthread_mutex_t freed_lock;
  struct freed_list *first_freed, **last_freed;
  _Atomic size_t nr_freed;   /* entries, the next batch's included */
  _Atomic size_t nr_next;    /* those of the next batch */
  _Atomic uint64_t bytes_freed, bytes_next; /* the same in bytes */
  uint64_t max_freed;        /* bytes (T5); 0: as the file's size has it */

  _Atomic bool failed;       /* I10 */
  _Atomic bool corrupt;      /* because the image is (I7) */
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

  /* Needs what was written up to now, and the refcounts that were changed
   * up to now, to be durable before it.
   */
  bool ordered;

  /* What becomes unreachable by it. */
  const struct freed *freed;
  unsigned nr_freed;
};

/* Make a change.  *batch, if not NULL, is the number of the batch that it
 * will be in.  May read a slice, have space allocated, and writeback, so that
 * only locks may be held which none of these wants.  Returns -1 with the error
 * set, ENOSPC among others, and then nothing has changed.
 */
extern int writeback_change (struct writeback *c, const struct change *change,
                          uint64_t *batch);

/* Have space on the host for a cluster that becomes a table, in one piece: of a
 * few of the last ones it is known then that their slices have some.  Returns
 * -1 with the error set.
 */
extern int writeback_allocate_table (struct writeback *c, struct host_off table);

/* These bytes of the storage have space on the host, and nothing is in them:
 * a writeback that finds no space punches them, once.  0: none is to be punched
 * any more.
 */
extern void writeback_set_ballast (struct writeback *c, struct host_off host,
                                uint64_t bytes);
extern bool writeback_has_ballast (struct writeback *c);

/* References are given up that have nothing to do with a change. */
extern int writeback_free (struct writeback *c, const struct freed *freed,
                        unsigned nr);

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

/* Make all that was written and changed before this call durable.  Calls at
 * one time share the work.  Returns -1 with the error set.
 */
extern int writeback_flush (struct writeback *c);

/* True if nothing was changed that is not durable. */
extern bool writeback_is_clean (struct writeback *c);

/* True if it is time to writeback, to keep bounded what waits for that: memory,
 * and the host's space (T5).
 */
extern bool writeback_is_wanted (struct writeback *c);

/* True if so much is given up and not to be had again that requests which give
 * up more must wait (T5).
 */
extern bool writeback_is_behind (struct writeback *c);

/* Take the next list of what was given up, if all requests that could have
 * seen it have ended.  The caller frees it by writeback_free_list.  NULL: none.
 */
extern struct freed_list *writeback_next_freed (struct writeback *c);
extern void writeback_free_list (struct writeback *c, struct freed_list *l);

/* Whether anything that was given up in batches up to this one, which has
 * ended, waits for its turn to be taken.
 */
extern bool writeback_has_freed (struct writeback *c, uint64_t batch);

/* From now on, whoever has clusters that could seem to be leaked says so to
 * these: who gives them up, and by the two functions below.  Returns the
 * number of the last batch of what was given up before.  NULL: not any more,
 * and nobody uses those from before.
 */
extern uint64_t writeback_set_suspects (struct writeback *c, struct suspects *s);
extern void writeback_not_leaked (struct writeback *c, struct host_off host,
                               uint64_t nr);
extern void writeback_table_not_leaked (struct writeback *c,
                                     const struct entry_format *f,
                                     const uint64_t *words, uint64_t nr_words);

/* Nothing may be written any more, for the reason that is set as error. */
extern void writeback_fail (struct writeback *c);

/* The same because metadata was found where it can't be. */
extern void writeback_fail_corrupt (struct writeback *c);

/* Returns -1 with the error set to EIO if nothing may be written. */
extern int writeback_check (struct writeback *c);

#endif /* CORE_QCOW2_WRITE_WRITEBACK_H */
