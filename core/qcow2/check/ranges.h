/* SPDX-License-Identifier: BSD-3-Clause */

/* Tables of an image that is being checked, many of which may share the same
 * bytes of the file: intervals, in each of which all bytes belong to the same
 * tables, so that they are looked at once.  Knows nothing of qcow2.
 */

#ifndef CORE_QCOW2_CHECK_RANGES_H
#define CORE_QCOW2_CHECK_RANGES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct check_range {
  uint64_t offset, bytes; /* their sum is at most UINT64_MAX */
  bool active;            /* belongs to the active L1 table */
};

/* Initially all zeros. */
struct check_ranges {
  struct check_range *range;
  size_t nr, capacity;
};

/* How many ranges an interval is in, and how many of those are active. */
struct check_paths {
  uint64_t all;
  uint64_t active;
};

/* Returns -1 with the error set. */
extern int check_ranges_add (struct check_ranges *r, uint64_t offset,
                             uint64_t bytes, bool active);
extern void check_ranges_free (struct check_ranges *r);

/* Call fn for each interval that is in one range at least, in ascending order,
 * as if offsets were rounded down and ends rounded up to multiples of unit (a
 * power of two).  There are less than two for each range.  Stops when fn
 * returns -1, with -1; or with the error set.
 */
typedef int check_interval_fn (void *opaque, uint64_t start, uint64_t end,
                               struct check_paths paths);
extern int check_each_interval (const struct check_ranges *r, uint64_t unit,
                                check_interval_fn *fn, void *opaque);

#endif /* CORE_QCOW2_CHECK_RANGES_H */
