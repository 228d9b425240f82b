/* SPDX-License-Identifier: BSD-3-Clause */

/* The bits of bitmaps that follow what is written, on the disk: the entries of
 * their tables, and the clusters with the bits.  At any moment, and after a cut
 * at any storage call, what is there has each bit that was ever marked here.
 *
 * A part whose entry has no cluster gets one before its first mark: refcount,
 * content and entry are durable one after the other.  Where there is no space
 * for that the entry says that all of the part is dirty, and stays so.
 *
 * Spec: Bitmap table, Bitmap data.
 */

#ifndef CORE_QCOW2_WRITE_BIT_PARTS_H
#define CORE_QCOW2_WRITE_BIT_PARTS_H

#include <pthread.h>

#include "qcow2/bitmaps.h"
#include "qcow2/entry.h"
#include "qcow2/write/writer.h"

/* Bits are handled in pages of this many bytes, or of a cluster if that is
 * smaller: each is in one cluster.
 */
#define BIT_PAGE 4096
#define BIT_SECTOR 512
#define BIT_LOCKS 64

/* What becomes of a bitmap while a snapshot is made: see qcow2/write/rotate.h.  It
 * changes while no request is running, but for the last step of each.
 */
enum follow_state {
  FOLLOW_NOT,    /* the place is free */
  FOLLOW_ALL,    /* requests mark it */
  FOLLOW_ENDING, /* they do so on the disk only: what is exact stays as it was */
  FOLLOW_AGAIN,  /* they mark it, but what is exact may lack earlier marks */
  FOLLOW_ENDED,  /* they don't: what is exact is to be written */
  FOLLOW_GONE,   /* nor is it */
};

/* One more than can follow: a bitmap begins before another one ends. */
#define FOLLOW_PLACES (BITMAPS_MAX_FOLLOWED + 1)

struct followed {
  _Atomic enum follow_state state;
  uint64_t nr_bits;
  unsigned granularity_bits;
  struct host_off table;
  uint32_t nr_parts; /* entries of it */
  uint64_t ends_at;  /* of FOLLOW_ENDING: the generation of the point */
};

struct bit_parts {
  struct writer *w;
  unsigned nr; /* places up to the last one that was taken */
  struct followed bitmap[FOLLOW_PLACES];

  /* Of the entries, by their hashes: held to write while one is changed, and
   * to read while bits of its cluster are read or written; around I/O.
   */
  pthread_rwlock_t lock[BIT_LOCKS];

  /* Clusters that no entry refers to any more, to be given up at the end. */
  pthread_mutex_t unlinked_lock;
  struct host_off *unlinked;
  size_t nr_unlinked, max_unlinked;
};

/* Whether requests hold its pages. */
static inline bool
bit_parts_follows (const struct bit_parts *p, unsigned i)
{
  const enum follow_state state =
    atomic_load_explicit (&p->bitmap[i].state, memory_order_relaxed);

  return state == FOLLOW_ALL || state == FOLLOW_ENDING ||
    state == FOLLOW_AGAIN;
}

extern void bit_parts_init (struct bit_parts *p, struct writer *w);
extern void bit_parts_destroy (struct bit_parts *p);

/* In bytes: BIT_PAGE, or a cluster's size. */
extern uint32_t bit_parts_page (const struct bit_parts *p);

/* What the i-th bitmap's bits are in this page: whole pages, of zeros past the
 * bitmap's end.  Returns -1 with the error set: EIO.
 */
extern int bit_parts_load (struct bit_parts *p, unsigned i, uint64_t page,
                           uint8_t *bytes);

/* Write some sectors (of BIT_SECTOR bytes) of a page, durably; bytes is the
 * whole of it.  The caller writes no others of this page meanwhile.  If *all is
 * set on return, nothing had to be written, or could be: all of the page is
 * dirty now, and stays so.  The caller holds no lock but that of the page.
 * Returns -1 with the error set: ENOSPC, after which writing may go on; EIO.
 */
extern int bit_parts_mark (struct bit_parts *p, unsigned i, uint64_t page,
                           const uint8_t *bytes, unsigned first, unsigned nr,
                           bool *all);

/* Write sectors (bit x: the x-th) with fewer bits than there are, where
 * nobody marks any at that time.  Nothing depends on it: errors are none.
 * Returns those that may have more bits on the disk than these.
 */
extern unsigned bit_parts_store (struct bit_parts *p, unsigned i,
                                 uint64_t page, const uint8_t *bytes,
                                 unsigned sectors);

/* See to it that entries can be changed on a full file system, and that what
 * is read of them is durable.  No content changes.  The storage is writable by
 * now, nobody else uses the bits yet.  Returns -1 with the error set: ENOSPC,
 * after which it may be tried again; EIO.
 */
extern int bit_parts_prepare (struct bit_parts *p);

/* Give up what is not referred to any more.  No request may be running. */
extern void bit_parts_give_up (struct bit_parts *p);

/* Give up the clusters with the bits of a bitmap that nothing leads to, and which
 * nobody uses any more; its table is the caller's.  What can't be read leaks.
 */
extern void bit_parts_give_up_bits (struct bit_parts *p,
                                    const struct followed *b);

#endif /* CORE_QCOW2_WRITE_BIT_PARTS_H */
