/* SPDX-License-Identifier: BSD-3-Clause */

/* Changing L2 entries: the one way to do it.  A step of a request
 *
 *   remap_begin   enters an epoch and a range of clusters, and finds their
 *                 entries,
 *   remap_entry   looks at them,
 *   remap_take    has host clusters, if it wants some, and writes them,
 *   remap_set     says what an entry becomes, from the first one on, and
 *   remap_end     makes the change, or remap_abort leaves all as it was.
 *
 * Invariants:
 *
 *  R1  One step at a time has a cluster of the guest, from remap_enter to its
 *      end: nobody else changes its entry meanwhile.
 *  R2  What an entry referred to is given up, once, by the change that unlinks
 *      it, and by nothing else; what the new entry refers to as well is kept.
 *      qcow2/write/writeback.h holds it back until that change is durable and
 *      nobody can see what was before (I4, I6).  In an external data file it is
 *      nobody else's, and is released before the step ends.
 *  R3  Nothing is given up where metadata is: then nothing is changed, and the
 *      image is corrupt (I7).  But what bitmaps have may lose a reference that
 *      was not COPIED if the refcount leaves it another one.
 *  R4  An entry is changed after the host was handed what the guest sees there
 *      from then on, and the change is ordered behind that and the refcounts
 *      (I5).  It needs no order if the new place is zeros, durably, and the
 *      guest saw zeros there before or is to see nothing else; nor if it only
 *      takes away.
 *  R5  A step is of WRITER_MAX_STEP bytes of the guest's disk at most, or of
 *      one cluster, within one slice of an L2 table, and gives up as much at
 *      most, and a cluster (I13).  Others wait no longer than that for it.
 *  R6  All of a step's entries are changed, at one moment, or none.  What was
 *      taken and not mapped is given back before the epoch is left, so that the
 *      search for leaks can't take it for one.
 *  R7  A slice is captured before its entries change, if a point in time wants
 *      that; and what a point has is not given up (qcow2/write/frozen.h).
 */

#ifndef CORE_QCOW2_WRITE_REMAP_H
#define CORE_QCOW2_WRITE_REMAP_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/write/writer.h"

/* A step.  It is the caller's, and needs no setting up; some 20 KiB. */
struct remap {
  struct writer *w;
  struct guest_off from; /* the range of the step, as far as it got one */
  uint64_t to;
  uint64_t cluster;      /* the guest offset of the first cluster */
  unsigned nr;           /* clusters */

  /* What follows is for qcow2/write/remap.c. */
  unsigned token;        /* of the epoch */
  struct inflight_range range;
  struct map_l2 l2;      /* the entries, changed as far as they were set */
  unsigned nr_set;       /* entries */
  struct host_off taken;
  uint64_t taken_clusters, taken_bytes; /* one of them, or neither */
  uint64_t bytes_freed;
  unsigned nr_freed;
  struct freed freed[MAP_MAX_WORDS];
  bool held[MAP_MAX_WORDS]; /* it is not given up, for a point in time (R7) */
};

/* Enter an epoch, and the range from there to to, or the first part of it (R5).
 * Waits for others in it.  The caller holds nothing.
 */
extern void remap_enter (struct remap *r, struct writer *w,
                         struct guest_off from, uint64_t to);

/* Then find the entries of all clusters that the range touches: in a table that
 * may be changed, which is made or copied if need be.  Returns -1 with the
 * error set; the step is to be aborted then.
 */
extern int remap_find (struct remap *r);

/* Both.  Returns -1 with the error set, and nothing is entered. */
extern int remap_begin (struct remap *r, struct writer *w,
                        struct guest_off from, uint64_t to);

/* Decode the i-th entry, which was not set yet.  Returns -1 with the error set
 * if it is damaged.
 */
extern int remap_entry (const struct remap *r, unsigned i,
                        struct l2_entry *e);

/* Have clusters for those of the guest from the i-th on: see struct placement.
 * Once in a step.
 */
extern int remap_take (struct remap *r, unsigned i, uint64_t nr,
                       struct placed *out);

/* Have room for compressed data: see alloc_take_bytes.  Once in a step. */
extern int remap_take_bytes (struct remap *r, uint64_t bytes,
                             struct host_off *host);

/* Set the i-th entry: see entry_encode_l2.  It was looked at, and was not
 * damaged; those before it were set.
 */
extern void remap_set (struct remap *r, unsigned i, struct host_off host,
                       bool copied, uint32_t allocated, uint32_t zero);

/* The same: see entry_encode_compressed. */
extern void remap_set_compressed (struct remap *r, unsigned i,
                                  struct host_off host, uint32_t bytes);

/* The references that an entry which is not damaged, and refers to something,
 * has: they are given up with it.
 */
extern struct freed remap_references (const struct map *m,
                                      const struct l2_entry *e);

/* Whether so much is given up by what was set that no more may be (R5). */
static inline bool
remap_is_full (const struct remap *r)
{
  return r->bytes_freed >= WRITER_MAX_STEP;
}

/* Make the change, and leave.  ordered: see R4.  If no entry was set it is the
 * same as remap_abort; after an error, too.  Returns -1 with the error set.
 */
extern int remap_end (struct remap *r, bool ordered);

/* The same, ordered, and durable before the range is left: nobody else sees to
 * it meanwhile.
 */
extern int remap_end_durably (struct remap *r);

/* Leave without a change. */
extern void remap_abort (struct remap *r);

#endif /* CORE_QCOW2_WRITE_REMAP_H */
