/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of making a snapshot have in common: take.c, which goes from its
 * start to the switch of the header, and
 *
 *   take-slices.c   references and copies, slice by slice
 *   take-undo.c     all of that taken back
 *
 * Where that is not said otherwise all return -1 with the error set.
 */

#ifndef CORE_QCOW2_WRITE_TAKE_PARTS_H
#define CORE_QCOW2_WRITE_TAKE_PARTS_H

#include "base/pace.h"
#include "qcow2/snapshot-table.h"
#include "qcow2/write/take.h"

/* A table of the snapshot.  The L1 table, and with it all of these, is in the
 * file, which bounds them.
 */
struct take_table {
  struct host_off host;  /* the cluster that it has, or shall have */
  uint64_t l1_index;     /* of the L1 entry that leads to it, if it is filled */
  uint8_t *cleared;      /* bit i: the live disk's entry i has lost COPIED; NULL:
                          * none has */
};

/* Slices that are looked at together; several, since the refcounts of neighbours
 * mostly are in one slice, and tables are read and written as far as that.
 */
#define TAKE_PIECE CACHE_MAX_AHEAD
#define TAKE_PIECE_WORDS (TAKE_PIECE * MAP_MAX_WORDS)

/* Compressed data is overstated by at most a cluster, and may begin anywhere. */
#define TAKE_MAX_TOUCHED 3

struct take_piece {
  uint64_t first, nr;              /* slices of the table */
  struct host_off live_table;      /* 0: there is none */
  uint64_t words[TAKE_PIECE_WORDS]; /* as the point has them, in the host's order */
  uint64_t live[TAKE_PIECE_WORDS];  /* as the disk has them, big endian */

  /* The clusters that words refer to, in ascending order. */
  size_t nr_references;
  uint64_t cluster[TAKE_PIECE_WORDS * TAKE_MAX_TOUCHED];
};

struct take {
  struct writer *w;
  const struct point *point;
  const struct bitmap_header *bitmaps; /* that the header is to lead to, or NULL */
  uint64_t *l1;             /* the snapshot's, big endian */
  struct take_table *table; /* of which the first ones are filled, */
  uint64_t nr_tables, nr_filled; /* and the next may be, as far as this: */
  uint64_t nr_raised;       /* slices of that one whose references were raised */
  uint64_t *copy;           /* its words, big endian */
  struct take_piece *piece; /* that is being looked at */
  bool dirty;               /* the image is, for this (K4) */

  struct pace pace;
  bool given_up;            /* some were raised, and given up at once, as others of
                             * their piece could not be */
  bool mismatched;          /* flags may not be set again that have to be */
  bool unwritten;           /* those that are may not be written before the end */
  uint64_t lost;            /* writeback.lost before: if there is more, refcounts may
                             * be too high where COPIED is set */

  struct snapshot_table snapshot_table;
  struct alloc_clusters l1_space, table_space; /* nr is 0: not taken */
};

static inline const struct map *
take_map (const struct take *t)
{
  return qcow2_map (t->w->disk);
}

/* The slices of a table; and the clusters of the guest that one of them, of the
 * table of an L1 entry, or several of them map.
 */
static inline uint64_t
take_slices (const struct take *t)
{
  return take_map (t)->cluster_size / take_map (t)->slice_bytes;
}

static inline struct inflight_range
take_range (const struct take *t, uint64_t l1_index, uint64_t slice,
            uint64_t slices)
{
  const uint64_t nr = map_slice_clusters (take_map (t));
  const uint64_t first = (l1_index * take_slices (t) + slice) * nr;

  return (struct inflight_range) {
    .first = first, .last = first + slices * nr - 1,
  };
}

/* The live entries of a slice, whose range and the epoch are entered, change:
 * fn changes the words of one, with its number in the table, and returns whether
 * it did.  Wants neither writer.tables nor what stands below it.
 */
typedef bool take_change_fn (struct take *t, struct take_table *table,
                             uint64_t number, uint64_t reference,
                             uint64_t *word);
extern int take_change_live (struct take *t, struct take_table *table,
                             uint64_t slice, const uint64_t *words,
                             take_change_fn *fn);

/* Fill the tables. */
extern int take_fill_tables (struct take *t);

/* Undo it, after a failure whose error is set and stays (K6). */
extern void take_undo (struct take *t);

#endif /* CORE_QCOW2_WRITE_TAKE_PARTS_H */
