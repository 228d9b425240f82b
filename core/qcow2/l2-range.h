/* SPDX-License-Identifier: BSD-3-Clause */

/* Slices of an L2 table as they are now, for reading long ranges or whole
 * tables: around the cache, where they are not in it.
 */

#ifndef CORE_QCOW2_L2_RANGE_H
#define CORE_QCOW2_L2_RANGE_H

#include "qcow2/map.h"

/* Copy nr slices, which all belong to one table, from the one at this place of
 * the file on, to words, in the order of the disk.  What is in the cache, with
 * changes that are not on the disk yet, comes from there; the rest is read
 * together, and not kept, so that no other reader of it is waited for.  Each
 * slice is as it was at some moment of the call, but for entries that change
 * while they are read from the disk.  The caller is in an epoch, or sees to it
 * otherwise that the table is not given another use.  Returns -1 with the error
 * set.
 */
extern int l2_range_read (const struct map *m, struct host_off place,
                          uint64_t nr, uint64_t *words);

/* Copy one slice, through the cache, where it stays.  ahead: how many from this
 * one on will be wanted, as with cache_get.  Returns -1 with the error set.
 */
extern int l2_range_get (const struct map *m, struct host_off place,
                         uint64_t ahead, uint64_t *words);

#endif /* CORE_QCOW2_L2_RANGE_H */
