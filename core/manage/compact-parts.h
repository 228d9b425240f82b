/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of compacting have in common: compact.c, the order of it, and
 *
 *   compact-plan.c     what moves where
 *   compact-crypt.c    which of it is enciphered by its place
 *   compact-pack.c     compressed clusters, one by one
 *   compact-tables.c   all that refers to clusters
 *
 * Until the refcounts of the old places are lowered all that was is still there,
 * but for entries that refer to copies: any mixture of old and new entries reads
 * the same, whatever refers to whatever.
 */

#ifndef CORE_MANAGE_COMPACT_PARTS_H
#define CORE_MANAGE_COMPACT_PARTS_H

#include "manage/compact.h"
#include "manage/edit.h"
#include "manage/refs.h"
#include "manage/tables.h"

/* Clusters by their numbers. */
struct compact_run {
  uint64_t first, nr;
};

struct compact_move {
  uint64_t from, to;
};

/* Compressed data, in bytes from the file's start.  Both places are the same in
 * their sectors of 512 bytes, so that entries say as many of these as before.
 */
struct compact_piece {
  uint64_t from, to;
  uint64_t n; /* references */
  uint32_t bytes; /* up to the end of a sector */
};

struct compact {
  struct edit e;
  struct refs refs;
  const struct compact_options *options;
  struct tables_use *l2; /* all L2 tables, sorted, each once */
  size_t nr_l2, max_l2;

  /* What must stay in a row, sorted, without overlaps. */
  struct compact_run *row;
  size_t nr_rows, max_rows;
  struct compact_run pinned; /* the row that stays where it is: the LUKS header */

  struct compact_move *move; /* by from */
  size_t nr_moves, max_moves;
  uint8_t *kind; /* of each move, with LUKS: enum compact_kind; else NULL */
  uint64_t rest; /* clusters in use where, in the end, none should be */

  struct compact_piece *piece; /* that move, by from */
  size_t nr_pieces, max_pieces;
};

/* The move of a cluster; NULL: it does not move. */
extern const struct compact_move *compact_find_move (const struct compact *c,
                                                     uint64_t cluster);

/* Where a cluster is once it has moved. */
extern uint64_t compact_to (const void *c, uint64_t cluster);

/* Find out which clusters that move have data that is enciphered by its place in
 * the file, in an image that is encrypted with LUKS: c->kind.  Compressed data and
 * tables are not enciphered.  Returns -1 with the error set: EIO if one is said to
 * be both.
 */
enum compact_kind { COMPACT_AS_IT_IS = 1, COMPACT_ENCIPHERED = 2 };
extern int compact_find_enciphered (struct compact *c);

/* Through which the i-th move is copied. */
extern struct storage *compact_door (const struct compact *c, size_t i);

/* Find the moves of a round, none if nothing is left to be done, and claim their
 * places in c->refs.  Returns -1 with the error set.
 */
extern int compact_plan (struct compact *c);

/* Find the pieces of a round in which nothing else moves: those at the end of the
 * file, if they are compressed data that is in a row, as many as there is room
 * for before; none if there is not enough to make the file shorter.  Their places
 * are claimed in c->refs.  Returns -1 with the error set.
 */
extern int compact_plan_pieces (struct compact *c);

/* Copy them, not durably; and lower the refcounts of where they were, in c->refs.
 * Return -1 with the error set.
 */
extern int compact_copy_pieces (struct compact *c);
extern int compact_lower_pieces (struct compact *c);

/* Where compressed data from there is, if it is a piece; NULL: it is none. */
extern const struct compact_piece *compact_find_piece (const struct compact *c,
                                                       uint64_t from);

/* The row that a cluster is in; NULL: none. */
extern const struct compact_run *compact_find_row (const struct compact *c,
                                                   uint64_t cluster);

/* The first nr free clusters in a row from this one on that end before end;
 * UINT64_MAX: there are none.  Returns -1 with the error set.
 */
extern int compact_find_free (struct compact *c, uint64_t from, uint64_t nr,
                              uint64_t end, uint64_t *found);

/* Find all L2 tables, and all that must stay in a row, or where it is.  Returns -1 with the
 * error set.
 */
extern int compact_find_tables (struct compact *c);

/* Write copies of tables that move, which refer to the new places of all that
 * does; or change, in those that stay and in the header, what refers to
 * something that moves.  Not durable.  Returns -1 with the error set.
 */
enum compact_pass { COMPACT_COPY, COMPACT_SWITCH };
extern int compact_tables (struct compact *c, enum compact_pass pass);

/* Make room in an array.  Returns NULL with the error set, and the array is as
 * before.
 */
extern void *compact_more (const struct compact *c, void *array, size_t nr,
                           size_t *max, size_t size);

#endif /* CORE_MANAGE_COMPACT_PARTS_H */
