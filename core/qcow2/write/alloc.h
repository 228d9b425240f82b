/* SPDX-License-Identifier: BSD-3-Clause */

/* Host clusters: handed out to requests, and taken back.
 *
 * Clusters are reserved in batches: their refcounts are raised to 1 before
 * anybody wants them, so that the refcount of a cluster that is handed out is
 * mostly durable already, and mapping it needs no order.  After a crash the
 * reserved ones are leaks, two batches and the ballast at most; alloc_close gives
 * them back.
 *
 * Contiguous guest clusters get contiguous host clusters: once writes go on
 * where others ended, a window of host clusters is set apart for the guest
 * clusters that follow, in whatever order several writers come to them.
 *
 * Invariants:
 *
 *  P1  What is handed out has refcount 1 in memory, nobody else has it, and
 *      it holds no metadata (I7).
 *  P2  Said to be zero is only what no one can have written since it was
 *      made zeros: beyond the end of the file, or by punching a hole.
 *  P3  A cluster's refcount is lowered to 0, so that it can be reserved, only
 *      when qcow2/write/writeback.h passes it on and its hole was punched (I4, I6).
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

/* Reserved clusters that follow each other; numbered from the file's start. */
struct alloc_run {
  uint64_t first, nr;
  uint64_t batch; /* that their refcounts are part of */
  bool zero;      /* P2 */
};

/* Host clusters set apart for guest clusters. */
struct alloc_window {
  uint64_t guest; /* that its first cluster is for */
  struct alloc_run run;
  uint64_t used;  /* bit i: cluster i was handed out */
  uint64_t last_use;
};

struct alloc {
  struct writeback *writeback;
  struct overlap *overlap;
  struct cluster_cache *clusters; /* of compressed clusters in here; or NULL */
  unsigned cluster_bits;
  bool keep_discarded;  /* punch no holes */
  _Atomic uint64_t batch_size; /* clusters; refcounts_lock, to change it */
  uint64_t min_batch_size, max_batch_size;
  uint64_t first_window, max_window; /* clusters, 64 at most */
  uint64_t opened_size; /* of the file, in bytes */

  /* Held around I/O of metadata; taken before lock. */
  pthread_mutex_t refcounts_lock;
  struct refcounts refcounts;

  /* Where compressed clusters go, one behind the other: byte offsets in the
   * file.  Each cluster that has some has one reference for each; those that
   * have none yet are reserved.  refcounts_lock.
   */
  uint64_t pack_at, pack_end;

  struct alloc_run ballast; /* reserved for qcow2/write/writeback.h; refcounts_lock */

  /* The last try to lower refcounts failed: waiting for it is of no use. */
  _Atomic bool stuck;

  pthread_mutex_t lock; /* of what follows; held for moments */
  unsigned nr_runs;
  struct alloc_run run[ALLOC_MAX_RUNS];
  uint64_t in_runs;     /* clusters */
  struct alloc_window window[ALLOC_WINDOWS];
  uint64_t in_windows;  /* clusters that were not handed out */
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
  bool durable; /* so do they after a crash, with a refcount of 1 */
};

/* Hand out up to nr (> 0) contiguous clusters, at least one, for the guest's
 * clusters from that number on; ALLOC_NO_GUEST: for a table.  Takes both
 * locks.  Returns -1 with the error set: ENOSPC, EIO, ENOMEM.  It may have
 * found the image to be corrupt.
 */
#define ALLOC_NO_GUEST UINT64_MAX
extern int alloc_take (struct alloc *s, uint64_t guest, uint64_t nr,
                       struct alloc_clusters *out);

/* Hand out room for so many bytes (at most a cluster's) of compressed data:
 * one reference to each cluster that they touch.  They are taken back by
 * writeback_free.  Takes both locks.  Errors as with alloc_take.
 */
extern int alloc_take_bytes (struct alloc *s, uint64_t bytes,
                             struct host_off *host);

/* Take back, into the reserve, what was handed out and not mapped.  It may
 * have been written.
 */
extern void alloc_give_back (struct alloc *s, struct host_off host,
                             uint64_t nr);

/* The refcount of one cluster.  Returns -1 with the error set. */
extern int alloc_refcount (struct alloc *s, struct host_off host,
                           uint64_t *refcount);

/* Lower the refcounts of what was given up, as far as P3 allows by now. */
extern void alloc_reclaim (struct alloc *s);

/* The same; then whether that was all of what was given up in batches up to
 * this one, which has ended.  May wait for refcounts_lock.
 */
extern bool alloc_has_reclaimed (struct alloc *s, uint64_t batch);

/* Have nobody take the reserve, wherever it is, for leaked: see
 * writeback_set_suspects.  Takes both locks.
 */
extern void alloc_not_leaked (struct alloc *s);

/* The next refcount block, and the first cluster that it describes, from that
 * of *cluster on.  A block stays where it is.  Returns 1, 0 if there is none,
 * or -1 with the error set.
 */
extern int alloc_next_block (struct alloc *s, uint64_t *cluster,
                             struct host_off *block);

/* Give back the reserve, and lower all refcounts that are to be lowered.  No
 * request may be running.  Returns -1 with the error set.
 */
extern int alloc_close (struct alloc *s);

#endif /* CORE_QCOW2_WRITE_ALLOC_H */
