/* SPDX-License-Identifier: BSD-3-Clause */

/* Tables of an image that is being checked.  Many of them may share bytes of
 * the file, which are split into intervals whose bytes all belong to the same
 * tables, so that each byte is looked at once.  Knows nothing of qcow2.
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

/* How many ranges an interval belongs to, and how many of those are active. */
struct check_paths {
  uint64_t all;
  uint64_t active;
};

/* Returns -1 with the error set. */
extern int check_ranges_add (struct check_ranges *r, uint64_t offset,
                             uint64_t bytes, bool active);
extern void check_ranges_free (struct check_ranges *r);

/* Call fn, in ascending order, for each interval that belongs to at least one
 * range; ranges are taken as extended to multiples of unit (a power of two).
 * There are fewer than two intervals for each range.  Stops when fn returns
 * -1, and returns -1; otherwise returns -1 with the error set.
 */
typedef int check_interval_fn (void *opaque, uint64_t start, uint64_t end,
                               struct check_paths paths);
extern int check_each_interval (const struct check_ranges *r, uint64_t unit,
                                check_interval_fn *fn, void *opaque);

#endif /* CORE_QCOW2_CHECK_RANGES_H */
