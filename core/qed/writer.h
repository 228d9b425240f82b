/* SPDX-License-Identifier: BSD-3-Clause */

/* All that it takes to write a QED image.
 *
 * QED only ever appends: a cluster that has a place keeps it, there are no
 * refcounts, and what has no entry is lost to everybody.  So little order is
 * needed.  Invariants:
 *
 *  W1  When the writer is opened the image is sound (qed/check.h): no cluster
 *      is used twice, and no entry leads beyond the end of the file, to where
 *      new clusters will be.  So writing in place can't hit metadata (I7).
 *  W2  Clusters are handed out of the file's end, once it is durably as long as
 *      that: they read as zeros then, durably, and NEED_CHECK is set, durably.
 *      So neither an entry nor a new table can become durable before what it
 *      leads to is there (I5), and no order is wanted between L1 and L2.
 *  W3  Where what the guest saw was not zeros, or the cluster is not, the data
 *      is durable before the entry: the batch is ordered (I2).
 *  W4  An entry changes from unallocated or zero to what is not, or from
 *      unallocated to zero, and never back: what is mapped stays where it is.
 *      Zeroing and trimming of that happens in place, as holes of the file.
 *  W5  At the end the file is cut behind the last cluster that was handed out,
 *      and NEED_CHECK cleared, each durably.
 *
 * Lock order.  A thread takes one only while it holds none that stands below
 * it; none is held around the I/O of guest data (I12).
 *
 *   image.gate           around the whole of a request
 *   a range of inflight  around a step
 *   tables               making an L2 table; I/O of the file's length
 *   grow                 clusters and the file's length; I/O of that, and of
 *                        the header
 *   space                space for tables on the host; I/O of that
 *   commit               moments; a commit that runs holds none
 *   changes              moments
 *   cache.lock           moments
 */

#ifndef CORE_QED_WRITER_H
#define CORE_QED_WRITER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/inflight.h"
#include "cache/tables.h"
#include "qed/qed.h"

struct qed_clusters {
  struct host_off host;
  uint64_t nr;
};

struct qed_writer {
  const struct layer *disk; /* the live one */
  const struct qed_map *map;
  const struct qed_header *header;
  struct storage *storage;
  bool keep_discarded;
  struct inflight inflight; /* in clusters of the guest */
  _Atomic bool failed;      /* nothing may be written any more (I10) */
  _Atomic bool used;        /* a request may have changed something */
  _Atomic uint64_t taken;   /* how often clusters were handed out */

  pthread_mutex_t tables;

  pthread_mutex_t grow;
  _Atomic bool begun;       /* the header has no unknown autoclear bits */
  bool marked;              /* grow; NEED_CHECK is set by us */
  bool taken_back;          /* grow; and was once cleared again */
  uint64_t features;        /* grow; as in the header now */
  uint64_t next, end;       /* grow; clusters between them are zeros (W2) */
  struct qed_clusters *back; /* grow; handed out, and not used in the end */
  size_t nr_back, max_back;

  pthread_mutex_t space;

  pthread_mutex_t commit;
  pthread_cond_t committed;
  bool running;               /* commit */
  uint64_t started, finished; /* commit; commits */

  pthread_mutex_t changes;  /* of entries in the cache */
  bool ordered;             /* changes; W3 */
  struct cache_batch batch; /* of the commit that runs */
};

/* Make an image writable, whose header forbids nothing.  Checks it first.
 * Nothing is written yet.  disk must outlive the writer.  Returns NULL with the
 * error set: EIO if it is not sound, EBUSY, ENOMEM.
 */
extern struct qed_writer *qed_writer_open (const struct layer *disk,
                                           bool keep_discarded);

/* Write what is left, and settle the image (W5).  No request may be running.
 * Returns -1 with the error set; the writer is gone all the same.
 */
extern int qed_writer_close (struct qed_writer *w);

/* After a failure that sticks (I10): nothing is written any more. */
extern void qed_writer_fail (struct qed_writer *w);

/* Returns -1 with the error set after such a failure. */
extern int qed_writer_check (const struct qed_writer *w);

/* To be called before anything is changed.  Returns -1 with the error set if
 * nothing may be written.
 */
extern int qed_writer_begin (struct qed_writer *w);

/* Hand out at most out->nr (> 0) clusters, in a row.  *zero tells that they are
 * zeros, durably; only such if wanted is set, and then all of them.  Returns -1
 * with the error set: ENOSPC, EIO.
 */
extern int qed_writer_take (struct qed_writer *w, bool wanted,
                            struct qed_clusters *out, bool *zero);

/* They were not used, but may have been written. */
extern void qed_writer_give_back (struct qed_writer *w,
                                  const struct qed_clusters *clusters);

/* Find the L2 table that maps offset.  With make set, one is made if there is
 * none; else *table is 0 then.  The caller is in a range of inflight.
 */
extern int qed_writer_table (struct qed_writer *w, struct guest_off offset,
                             bool make, struct host_off *table);

/* Set nr entries of an L2 table, which are within one slice, from that with
 * this index on: to consecutive clusters from host on, or all to QED_ZERO if
 * that is host.  ordered: W3.
 */
extern int qed_writer_set (struct qed_writer *w, struct host_off table,
                           uint64_t index, uint64_t nr, uint64_t host,
                           bool ordered);

/* Make all that was answered durable. */
extern int qed_writer_flush (struct qed_writer *w);

/* Whether all entries are on the disk, so that data in place is all there is to
 * be made durable.
 */
static inline bool
qed_writer_is_clean (const struct qed_writer *w)
{
  return cache_is_clean (w->map->cache, w->map->id);
}

#endif /* CORE_QED_WRITER_H */
