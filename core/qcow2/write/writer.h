/* SPDX-License-Identifier: BSD-3-Clause */

/* All that it takes to write an image: made when the image is first wanted for
 * writing, and shared by all requests.
 *
 * Lock order.  A thread takes one only while it holds none that stands below
 * it; none is held around the I/O of guest data (I12).
 *
 *   image.gate              around the whole of a request
 *   bit_slots.lock          moments
 *   bit_slot.lock           marking bits of bitmaps; I/O of bits and tables
 *   bit_parts.lock          entries of bitmap tables; likewise
 *   a range of inflight     around the whole of a step (see remap.h)
 *   writer.tables           making or copying an L2 table, and clearing COPIED in
 *                           one; I/O of tables
 *   alloc.refcounts_turn    to wait for the next one
 *   alloc.refcounts_lock    refcounts; I/O of tables
 *   writer.begin_lock       the header's feature bits; I/O of the header
 *   writeback.header_lock   the header's first sector as a whole, and the place of
 *                           the refcount table there; I/O of the header
 *   writeback.space_lock    space for tables on the host; I/O of tables
 *   writeback.lock          moments; a writeback that runs holds none
 *   alloc.lock              moments
 *   writeback.changes       moments
 *   writeback.freed_lock    moments
 *   points.lock             moments
 *   points.stripe           moments; suspects are cleared within
 *   points.bits_lock        moments
 *   epoch.lock              moments
 *   cache.lock              moments
 *   overlap.lock            moments
 *   cluster_cache.lock      moments
 *   coalesce.lock           moments; alone
 */

#ifndef CORE_QCOW2_WRITE_WRITER_H
#define CORE_QCOW2_WRITE_WRITER_H

#include <limits.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "base/coalesce.h"
#include "base/inflight.h"
#include "qcow2/disk.h"
#include "qcow2/header.h"
#include "qcow2/points.h"
#include "qcow2/snapshot.h"
#include "qcow2/write/alloc.h"
#include "qcow2/write/overlap.h"
#include "qcow2/write/placement.h"
#include "qcow2/write/writeback.h"

struct following;

#define BITMAP_IDLE 5000
#define BITMAP_NEVER_IDLE UINT_MAX

struct writer_options {
  bool keep_discarded;     /* punch no holes into the file */
  bool invalidate_bitmaps; /* enabled persistent bitmaps are made useless,
                            * rather than kept up to date */
  unsigned bitmap_pages;   /* of bitmaps that are kept in memory: 0: as many as
                            * are good (qcow2/write/bit-slots.h) */
  unsigned bitmap_idle;    /* milliseconds after which what was marked ahead is
                            * taken back; 0: BITMAP_IDLE; BITMAP_NEVER_IDLE */
  unsigned compress_level; /* of whole clusters; 0: none.  See qcow2/codec.h */
  uint64_t max_freed;      /* bytes given up that may wait until they are
                            * reusable; 0: by the file's size (writeback.h, T5)
                            */
};

struct writer {
  const struct layer *disk; /* the live one */
  struct header header;     /* as it is on disk, but for refcount_table_* */
  struct writer_options options; /* that it was opened with */
  struct writeback writeback;
  struct overlap overlap;
  struct alloc alloc;
  union {
    struct alloc_placement allocated;
    struct identity_placement identical; /* with an external data file */
  } places;
  struct placement *placement; /* of the guest's clusters: one of these */

  /* Which clusters are metadata, of the file that data is in: overlap, or
   * nothing if that is a file of its own.
   */
  struct overlap *forbidden;
  struct overlap nothing;
  struct inflight inflight; /* in clusters of the guest */
  struct points *points;    /* of the disk: see qcow2/write/frozen.h; or NULL,
                             * which is for whoever has opened it to change */
  unsigned compress_level;  /* 0: clusters are not compressed */
  struct coalesce coalesce;     /* of what is to be compressed */

  /* Writes in place take turns with other requests: always while clusters are
   * compressed (qcow2/write/compress.h) and with AES, where a view of the data
   * is wanted; and with a raw data file while something is about to be mapped
   * (qcow2/write/raw-data.h).
   */
  _Atomic unsigned in_turn;
  _Atomic uint64_t taken;   /* how often host clusters were handed out */
  pthread_mutex_t tables;   /* of changes to the L1 table */

  pthread_mutex_t begin_lock; /* of what changes the header's feature bits */
  _Atomic bool begun;         /* something was or will be written */
  bool dirty;                 /* begin_lock; we set the dirty bit */
  bool mismatched;            /* begin_lock; it stays dirty: a snapshot could not
                               * be undone */
  bool leaks_left;            /* there may be some from before it was opened */
  _Atomic bool leaked;        /* something could not be given up; or it was lost:
                               * see writeback.lost */
  uint64_t raw_seen;          /* begin_lock; as far as a raw data file is known
                               * to have nothing where nothing is mapped */
  uint64_t raw_size;          /* begin_lock; its size when that was looked at */
  _Atomic bool raw_whole;     /* it was made as large as the disk, durably */
  _Atomic bool found_corrupt; /* by what no request was waiting for */

  /* Of bitmaps: see qcow2/write/follow.h.  NULL: none follow what is written. */
  struct following *follow;
  bool bitmaps_shared; /* a cluster of theirs has more than one use */
};

/* Whether there are bitmaps that the header says can be believed. */
static inline bool
writer_has_bitmaps (const struct header *h)
{
  return (h->autoclear & QCOW2_AUTOCLEAR_BITMAPS) && h->nr_bitmaps > 0;
}

/* Whether an image with this header may be written: not if it is marked as
 * dirty or corrupt, has bitmaps that can't follow, or lacks a part of its L1
 * table; nor with compression if it is encrypted, since compressed clusters
 * are not (I15).  Returns -1 with the error set: ENOTSUP, or EIO, EINVAL if that
 * can't be told.
 */
extern int writer_check_header (struct storage *s, const struct header *h,
                                const struct writer_options *options);

/* For messages. */
static inline const char *
writer_name (const struct writer *w)
{
  return w->disk->tables->name;
}

/* Make an image writable that writer_check_header has found to be so: nothing
 * is written yet.  disk, and the epoch that all of its readers enter, must
 * outlive the writer.  Returns NULL with the error set: EIO or EINVAL for
 * damage, ENOMEM.
 */
extern struct writer *writer_open (const struct layer *disk,
                                   const struct header *h,
                                   const struct snapshots *snapshots,
                                   const struct writer_options *options);

/* There are no leaks from before the writer was opened, any more. */
static inline void
writer_no_leaks (struct writer *w)
{
  w->leaks_left = false;
}

/* Write what is left to be written, and leave the image as it should be: no
 * leaks, not dirty.  No request may be running.  Returns -1 with the error
 * set; the writer is gone all the same.  NULL is allowed.
 */
extern int writer_close (struct writer *w);

/* To be called before anything is changed, with the range of the guest's disk
 * that is about to change; count 0: none.  Nothing depends on the range yet:
 * it is for what has to know of changes before they happen, as bitmaps do.
 * The first time, the header's feature bits are changed as they must be:
 * durably.  Returns -1 with the error set if nothing may be written.
 */
extern int writer_begin (struct writer *w, struct guest_off offset,
                         uint64_t count);

/* Check that bytes at this host offset are not metadata (I7).  If they are,
 * the image is marked as corrupt, and nothing is written any more: returns
 * -1 with the error set.
 */
extern int writer_check_overlap (struct writer *w, struct host_off offset,
                                 uint64_t bytes);

/* Nothing may be written any more, since something, what, was about to happen
 * to metadata of this kind, within these bytes: the image is marked as corrupt.
 * Returns -1 with the error set.
 */
extern int writer_found_corrupt (struct writer *w, const char *what,
                                 enum metadata kind, struct host_off offset,
                                 uint64_t bytes);

/* An error was set: if it is that the image was found to be corrupt, by
 * something that no request was waiting for, mark it.  Returns -1 with the
 * error set.
 */
extern int writer_failed (struct writer *w);

/* alloc_take, which marks the image as corrupt if it has found it to be. */
extern int writer_take (struct writer *w, uint64_t guest, uint64_t nr,
                        struct alloc_clusters *out);

/* The same for struct placement's take. */
extern int writer_place (struct writer *w, uint64_t guest, uint64_t nr,
                         struct placed *out);

/* The same for alloc_take_bytes. */
extern int writer_take_bytes (struct writer *w, uint64_t bytes,
                              struct host_off *host);

/* The most bytes that one step changes the mapping of, or gives up, but for a
 * single cluster: so much more than the bound may wait to be had again, for
 * each thread (I13).
 */
#define WRITER_MAX_STEP (UINT64_C (16) << 20)

/* Find the L2 table that maps offset, to be changed in place: made or copied
 * if need be.  The caller has entered an in-flight range.  Returns -1 with
 * the error set.
 */
extern int writer_table (struct writer *w, struct guest_off offset,
                         struct host_off *table);

/* Make all that was answered durable. */
extern int writer_flush (struct writer *w);

#endif /* CORE_QCOW2_WRITE_WRITER_H */
