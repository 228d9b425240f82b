/* SPDX-License-Identifier: BSD-3-Clause */

/* The allocator: hands out host clusters to requests, and takes them back.
 *
 * Clusters are reserved in batches: their refcounts are raised to 1 before
 * they are needed, so that the refcount of a cluster is mostly durable by the
 * time it is handed out, and mapping it needs no order.  After a crash the
 * reserve is leaked, two batches and the ballast at most; alloc_close gives it
 * back.
 *
 * Contiguous guest clusters get contiguous host clusters: once writes continue
 * where earlier ones ended, a window of host clusters is set apart for the
 * guest clusters that follow, whatever order several writers reach them in.
 *
 * Invariants:
 *
 *  P1  A cluster that is handed out has refcount 1 in memory, is handed out to
 *      nothing else, and holds no metadata (I7).
 *  P2  Only clusters that can't have been written since they became zeros are
 *      called zero: beyond the end of the file, or by punching a hole.
 *  P3  A cluster's refcount is lowered to 0, so that it can be reserved, only
 *      after qcow2/write/writeback.h passes it on and its hole is punched (I4,
 *      I6).
 */

#ifndef CORE_QCOW2_WRITE_ALLOC_H
#define CORE_QCOW2_WRITE_ALLOC_H

#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>

#include "cache/clusters.h"
#include "qcow2/write/overlap.h"
#include "qcow2/write/refcount.h"
#include "qcow2/write/writeback.h"

#define ALLOC_MAX_RUNS 256
#define ALLOC_WINDOWS 16
#define ALLOC_RECENT 16

/* Contiguous reserved clusters, numbered from the file's start. */
struct alloc_run {
  uint64_t first, nr;
  uint64_t batch; /* the one that has their refcounts */
  bool zero;      /* P2 */
};

/* Host clusters set apart for guest clusters. */
struct alloc_window {
  uint64_t guest; /* the guest cluster that its first one is for */
  struct alloc_run run;
  uint64_t used;  /* bit i: cluster i was handed out */
  uint64_t last_use;
};

struct alloc {
  struct writeback *writeback;
  struct overlap *overlap;
  struct cluster_cache *clusters; /* of compressed clusters; or NULL */
  unsigned cluster_bits;
  bool keep_discarded;  /* punch no holes */
  _Atomic uint64_t batch_size; /* clusters; refcounts_lock, to change it */
  uint64_t min_batch_size, max_batch_size;
  uint64_t first_window, max_window; /* clusters, 64 at most */
  uint64_t opened_size; /* of the file, in bytes */

  /* refcounts_lock is held around I/O of metadata, and taken before lock.  A
   * thread that wants it holds refcounts_turn until it has it: so one that takes
   * it again and again, for many slices, can't overtake those that wait.
   */
  pthread_mutex_t refcounts_lock, refcounts_turn;
  struct refcounts refcounts;

  /* Where compressed data is appended: byte offsets in the file.  A host
   * cluster has one reference for each compressed cluster that it holds part
   * of; those that hold none yet are reserved.  refcounts_lock.
   */
  uint64_t pack_at, pack_end;

  struct alloc_run ballast; /* for qcow2/write/writeback.h; refcounts_lock */

  /* The last attempt to lower refcounts failed: don't wait for it. */
  _Atomic bool stuck;

  /* How many attempts have: counted when what is left was given up again, with
   * refcounts_lock held.
   */
  _Atomic uint64_t failures;

  pthread_mutex_t lock; /* for what follows; held briefly */
  unsigned nr_runs;
  struct alloc_run run[ALLOC_MAX_RUNS];
  uint64_t in_runs;     /* clusters */
  struct alloc_window window[ALLOC_WINDOWS];
  uint64_t in_windows;  /* clusters not handed out */
  uint64_t recent[ALLOC_RECENT]; /* guest clusters where writes ended */
  unsigned next_recent;
  uint64_t clock;
};

/* Returns -1 with the error set. */
extern int alloc_init (struct alloc *s, const struct header *h,
                       struct writeback *writeback, struct overlap *overlap,
                       bool keep_discarded);
extern void alloc_destroy (struct alloc *s);

/* Clusters handed out. */
struct alloc_clusters {
  struct host_off host;
  uint64_t nr;
  bool zero;    /* they read as zeros */
  bool durable; /* after a crash, too, with a refcount of 1 */
};

/* Hand out from one to nr (> 0) contiguous clusters for the guest's clusters
 * from the given one on; ALLOC_NO_GUEST: for a table.  Takes both locks.
 * Returns -1 with the error set: ENOSPC, ENOMEM, EIO, which may mean that the
 * image turned out to be corrupt.
 */
#define ALLOC_NO_GUEST UINT64_MAX
extern int alloc_take (struct alloc *s, uint64_t guest, uint64_t nr,
                       struct alloc_clusters *out);

/* Hand out exactly nr (> 0) contiguous clusters for a table or the like.  They
 * are taken back by writeback_free.  Takes both locks.  Errors as with
 * alloc_take; on ENOSPC nothing was taken.
 */
extern int alloc_take_contiguous (struct alloc *s, uint64_t nr,
                                  struct alloc_clusters *out);

/* Hand out space for compressed data of this many bytes (a cluster at most),
 * with one reference to each cluster that it touches.  writeback_free takes
 * them back.  Takes both locks.  Errors as with alloc_take.
 */
extern int alloc_take_bytes (struct alloc *s, uint64_t bytes,
                             struct host_off *host);

/* Take back into the reserve what was handed out and not mapped.  It may have
 * been written.
 */
extern void alloc_give_back (struct alloc *s, struct host_off host,
                             uint64_t nr);

/* Get the refcount of one cluster.  Returns -1 with the error set. */
extern int alloc_refcount (struct alloc *s, struct host_off host,
                           uint64_t *refcount);

/* Add one to the refcounts of these clusters, in ascending order, in which one may
 * occur several times.  *done is how many of them have it, also after an error;
 * each is given up again by writeback_free.  Takes refcounts_lock once for each
 * slice of refcounts, and lets requests that wait have it between.  Returns -1 with the
 * error set, as refcount_raise.
 */
extern int alloc_raise (struct alloc *s, const uint64_t *cluster, size_t nr,
                        size_t *done);

/* Find the first cluster within these bytes (> 0) whose refcount is 0;
 * HOST_NONE if there is none.  Returns -1 with the error set.
 */
extern int alloc_find_free (struct alloc *s, struct host_off host,
                            uint64_t bytes, struct host_off *free);

/* Lower the refcounts of what was given up, as far as P3 allows by now: unless
 * refcounts_lock is held by another thread.
 */
extern void alloc_reclaim (struct alloc *s);

/* The same, after waiting for refcounts_lock, in turn: for requests that can't go on
 * before.  A take has the lock nearly always while it raises references.
 */
extern void alloc_reclaim_in_turn (struct alloc *s);

/* The same; then tell whether all that was given up in batches up to this one,
 * which has ended, is reclaimed, or was given up again, as alloc.failures tells.
 * May wait for refcounts_lock.
 */
extern bool alloc_has_reclaimed (struct alloc *s, uint64_t batch);

/* Clear all of the reserve of suspicion: see writeback_set_suspects.  Takes
 * both locks.
 */
extern void alloc_not_leaked (struct alloc *s);

/* Find the first refcount block from that of *cluster on, and set *cluster to
 * the first cluster that it describes.  Blocks never move.  Returns 1, 0 if
 * there is none, or -1 with the error set.
 */
extern int alloc_next_block (struct alloc *s, uint64_t *cluster,
                             struct host_off *block);

/* Give back the reserve, and lower all refcounts that are due.  No request may
 * be running.  Returns -1 with the error set.
 */
extern int alloc_close (struct alloc *s);

#endif /* CORE_QCOW2_WRITE_ALLOC_H */
