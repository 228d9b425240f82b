/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of resizing have in common: resize.c, the order of it, and
 *
 *   resize-new.c   what is mapped where the disk is new
 *
 * L2 tables that change are replaced by new ones, to which the header leads
 * together with the new size.
 */

#ifndef CORE_MANAGE_RESIZE_PARTS_H
#define CORE_MANAGE_RESIZE_PARTS_H

#include "manage/bitmap-set.h"
#include "manage/edit.h"
#include "manage/resize.h"
#include "manage/tables.h"

/* New entries of the disk, for guest clusters by their numbers. */
struct resize_new {
  uint64_t first, end; /* of which clusters; end is not one of them */

  /* Those below it hide what a backing file has; that of the number `first' may
   * be the one which the old end cuts: then `edge' has its content, if it is not
   * zeros.
   */
  uint64_t hidden_end;
  bool is_edge;
  uint8_t *edge;

  uint64_t mapped; /* so many, from the first on, have host clusters */
};

/* What a command is about to do. */
struct resize {
  const struct resize_options *o;
  struct edit *e;
  uint64_t entries;   /* that the L1 table shall have */
  struct tables live; /* as it is */
  struct tables gone; /* the part that is dropped whole */
  struct resize_new new;

  /* The L2 table that maps both what stays and what is dropped or new, if there
   * is something of the latter: it is replaced by a copy without what is
   * dropped.
   */
  uint64_t *cut;       /* its words; NULL: there is none */
  uint64_t cut_first;  /* its first entry that is dropped */
  struct host_off cut_at; /* where it is */

  /* New L2 tables, for entries of the L1 table from this one on. */
  uint64_t first_table, nr_tables;

  bool moves; /* there will be a new L1 table */
  struct bitmap_set bitmaps;
};

static inline uint64_t
resize_per_table (const struct resize *z)
{
  return UINT64_C (1) << (header_l1_shift (&z->e->header) -
                          z->e->header.cluster_bits);
}

/* Find out what is to be mapped.  Returns -1 with the error set: ENOTSUP or
 * EINVAL for what can't be done, else as layer_read.
 */
extern int resize_plan_new (struct resize *z);

/* Write the new L2 tables there, and what their new clusters hold, which are in a
 * row.  alone: nothing else has the table that is cut.  Not durable.  Returns -1
 * with the error set.
 */
extern int resize_fill_tables (const struct resize *z, struct host_off tables,
                               struct host_off data, bool alone);
extern int resize_fill_data (const struct resize *z, struct host_off data);

#endif /* CORE_MANAGE_RESIZE_PARTS_H */
