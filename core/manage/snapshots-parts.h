/* SPDX-License-Identifier: BSD-3-Clause */

/* What the parts of the snapshots' commands have in common: snapshots.c, which
 * makes and deletes them, and
 *
 *   snapshots-apply.c   applies them
 */

#ifndef CORE_MANAGE_SNAPSHOTS_PARTS_H
#define CORE_MANAGE_SNAPSHOTS_PARTS_H

#include "manage/edit.h"
#include "manage/snapshots.h"
#include "manage/tables.h"

/* The tables of the live disk, and of a snapshot: see tables_read. */
extern int snapshot_read_live (const struct edit *e, struct tables *t);
extern int snapshot_read_tables (const struct edit *e,
                                 const struct snapshot *sn, struct tables *t);

/* The first with this name; NULL with the error set to ENOENT. */
extern const struct snapshot *snapshot_find_by_name (const struct edit *e,
                                                     const char *name);

#endif /* CORE_MANAGE_SNAPSHOTS_PARTS_H */
