/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/check/repair-entries.h"
#include "qcow2/check/repair-l1.h"
#include "qcow2/check/repair-refcounts.h"

/* The most that a file grows for a table, though it stays sparse.  If the table
 * is farther away, its offset is damaged rather than the file truncated.
 */
#define MAX_GROWTH (UINT64_C (1) << 40)

static int
drop_entries (struct repair *r)
{
  if (repair_survey (r) == -1 || repair_fix_entries (r) == -1)
    return -1;
  return repair_flush (r);
}

int
repair_complete_l1 (struct repair *r, bool hidden, const char **why_not)
{
  struct storage *s = r->c.storage;
  const uint64_t end = r->c.h.l1_offset.v + 8 * r->c.h.l1_size;

  *why_not = NULL;
  if (end > s->size && end - s->size > MAX_GROWTH) {
    *why_not = "the L1 table is too far beyond the end of the file";
    return 0;
  }
  if (drop_entries (r) == -1)
    return -1;
  repair_pretend_size (r, end);
  if (repair_survey (r) == -1)
    return -1;
  if (r->not_fixed > 0) {
    *why_not = "entries that are invalid could not be dropped, and would refer "
      "to what the file grows by";
    return 0;
  }
  if (r->rebuild && hidden) {
    *why_not = "new refcounts are wanted for the L1 table, which is beyond the "
      "end of the file, and would be without those of what it may refer to";
    return 0;
  }
  if ((r->rebuild ? repair_rebuild (r) : repair_raise (r)) == -1 ||
      repair_flush (r) == -1 ||
      (s->size < end && storage_resize (s, end) == -1))
    return -1;
  return storage_flush (s);
}
