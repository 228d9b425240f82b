/* SPDX-License-Identifier: BSD-3-Clause */

/* A repair goes through these steps, each durable before the next begins:
 *
 * 1. Unknown autoclear bits are cleared, and that of bitmaps that are damaged or
 *    have clusters with another use; these become leaks.
 * 2. Entries are fixed up or dropped (qcow2/check/fix-up.h).  First, since
 *    entries beyond the end of the file would refer to other data once it
 *    grows.  Nothing can be reached through a dropped entry.
 * 3. Refcounts that are too low are raised.
 * 4. COPIED flags of clusters with several references are cleared.
 * 5. Refcounts that are too high are lowered.
 * 6. COPIED flags of clusters with one reference are set.
 * 7. The image is checked again.  If it is sound, the dirty and corrupt bits
 *    are cleared.
 *
 * After each step, and after a crash within one, no cluster has a lower
 * refcount than references unless it had before; everything that could be read
 * reads the same (except for compressed data cut off by the end of the file,
 * which decodes, with zeros for the missing part, to something arbitrary); and
 * another repair leads to the same result.
 *
 * Where a refcount block is missing, unusable or has another use as well,
 * steps 3 and 5 are replaced by writing a new table and all blocks to space
 * that nothing refers to, and switching the header over to them.
 *
 * Entries of the snapshot table with too much or too little extra data are
 * corrected last, if nothing else is wrong (qcow2/check/repair-snapshots.h);
 * the clusters of the old table are freed by going through the steps again.
 *
 * What can't be decided is left alone and stays an error.  Other metadata that
 * has another use as well is not written at all, since it is unknown which use is
 * right; QEMU's repair writes it and damages data.  Refcounts that are too
 * narrow stay an error, too.  If a snapshot's L1 table or the snapshot table
 * can't be read completely nothing is repaired, since what it refers to would
 * be freed.
 *
 * Before all of this the active L1 table is completed if the end of the file
 * cuts it off (qcow2/check/repair-l1.h).  If no cluster is leaked that guesses
 * nothing: the missing part referred to nothing.  Otherwise this repair keeps
 * the leaks, so that lost data can be searched for; the next repair can't tell
 * them from other leaks.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/bitmaps.h"
#include "qcow2/check/check.h"
#include "qcow2/check/repair-entries.h"
#include "qcow2/check/repair-l1.h"
#include "qcow2/check/repair-refcounts.h"
#include "qcow2/check/repair-snapshots.h"
#include "qcow2/check/repair.h"

#define DIRTY_OR_CORRUPT (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT)

static const char hidden[] =
  "damaged tables hide what is in use, which a repair would free";
static const char has_errors[] =
  "leaks are not freed as long as there are errors, since they may be what a "
  "damaged entry should refer to";
static const char maybe_missed[] =
  "leaks are not freed yet, since they may be what the missing part of the L1 "
  "table referred to: another repair frees them";
static const char not_written[] =
  "metadata that is used as something else as well is not written";

static int
write_features (struct storage *s, const struct header *h)
{
  uint8_t buf[HEADER_FEATURES_BYTES];
  const struct host_off field = { HEADER_FEATURES_OFFSET };

  header_encode_features (h, buf);
  if (storage_write (s, buf, sizeof buf, field) == -1)
    return -1;
  return storage_flush (s);
}

/* Whether the guest may see other data after the repair: refcounts and COPIED
 * flags are nothing to it.
 */
static bool
changes_disk (const struct check_report *before)
{
  return before->l1_cut ||
    before->corruptions > before->found[CHECK_REFCOUNT] +
                          before->found[CHECK_COPIED];
}

/* Whether a cluster has two uses: overlaps are only told of those whose
 * refcounts agree.
 */
static bool
may_be_shared (const struct check_report *before)
{
  return before->found[CHECK_OVERLAP] > 0 ||
    before->found[CHECK_REFCOUNT] > 0 || before->found[CHECK_OVERFLOW] > 0;
}

/* Whether no bitmap is kept: they are damaged, or have to be marked, and may be
 * in clusters that have another use as well, where nothing is written.
 */
static int
must_give_up_bitmaps (const struct repair *r, const struct check_report *before,
                      bool *give_up)
{
  bool any;

  *give_up = before->bitmaps_damaged;
  if (*give_up || !changes_disk (before))
    return 0;
  if (bitmaps_must_follow (r->c.storage, &r->c.h, &any) == 0)
    *give_up = any && may_be_shared (before);
  else if (error_errno () == EINVAL)
    *give_up = true;
  else
    return -1;
  return 0;
}

static int
clear_autoclear (struct repair *r, const struct check_report *before)
{
  struct header *h = &r->c.h;
  uint64_t keep = QCOW2_AUTOCLEAR_BITMAPS |
    (h->raw_data ? QCOW2_AUTOCLEAR_RAW_DATA_FILE : 0);
  bool give_up;

  if (must_give_up_bitmaps (r, before, &give_up) == -1)
    return -1;
  if (give_up)
    keep &= ~QCOW2_AUTOCLEAR_BITMAPS;
  if ((h->autoclear & ~keep) == 0)
    return 0;
  h->autoclear &= keep;
  return write_features (r->c.storage, h);
}

/* Look at the image as it would be without bitmaps, or as it is. */
static int
survey (struct repair *r, bool bitmaps)
{
  struct header *h = &r->c.h;

  if (bitmaps)
    h->autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
  else
    h->autoclear &= ~QCOW2_AUTOCLEAR_BITMAPS;
  repair_recount (r);
  return repair_survey (r);
}

/* Bitmaps are given up, before anything else is changed, if what they have is
 * used as something else as well: what is in there may be no bits, and a backup
 * by them would lack something.  All are, since the image has one bit for that.
 */
static int
survey_bitmaps (struct repair *r)
{
  const bool had = r->c.h.autoclear & QCOW2_AUTOCLEAR_BITMAPS;
  uint64_t shared;

  if (survey (r, had) == -1)
    return -1;
  shared = r->all_shared;
  if (had && shared > 0) {
    if (survey (r, false) == -1)
      return -1;
    if (r->all_shared < shared)
      return write_features (r->c.storage, &r->c.h);
    return survey (r, true);
  }
  return 0;
}

static int
survey_all (struct repair *r)
{
  if (survey_bitmaps (r) == -1)
    return -1;
  if (r->all_shared == r->nr_shared)
    return 0;
  error_set (EIO, "%s: more than %d clusters of metadata are used as something "
             "else as well: this can't be repaired", r->c.storage->name,
             REPAIR_MAX_SHARED);
  return -1;
}

/* Bitmaps that record changes would not know of the repair's, and a backup by
 * them would lack those: nobody is to trust them any more.
 */
static int
mark_bitmaps (struct repair *r, const struct check_report *before)
{
  bool written;

  return !changes_disk (before) ? 0
    : bitmaps_mark_in_use (r->c.storage, &r->c.h, &written);
}

static int
repair_refcounts (struct repair *r)
{
  if (r->rebuild)
    return repair_rebuild (r) == -1 ||
      repair_clear_copied (r) == -1 ? -1 : repair_flush (r);
  if ((r->raise && repair_raise (r) == -1) || repair_flush (r) == -1 ||
      repair_clear_copied (r) == -1 || repair_flush (r) == -1 ||
      (r->lower && !r->keep_leaks && repair_lower (r) == -1))
    return -1;
  return repair_flush (r);
}

static int
run_steps (struct repair *r, struct repair_report *report)
{
  if (clear_autoclear (r, &report->before) == -1 ||
      survey_all (r) == -1 || mark_bitmaps (r, &report->before) == -1 ||
      repair_fix_entries (r) == -1 || repair_flush (r) == -1)
    return -1;
  report->why_not = r->nr_shared > 0 ? not_written : NULL;
  if (r->not_fixed > 0 && r->rebuild) {
    report->why_not = not_written;
    return 0;
  }
  if (repair_refcounts (r) == -1 || repair_set_copied (r) == -1)
    return -1;
  return repair_flush (r);
}

static int
start (struct repair *r, struct storage *s,
       const struct check_options *options)
{
  if (check_start (&r->c, s, options) == -1)
    return -1;
  r->c.fixed_up = true;
  r->c.counts.max = UINT64_MAX;
  return 0;
}

/* Complete the L1 table, if the end of the file cuts it off. */
static int
complete_l1 (struct storage *s, const struct check_options *options,
             struct repair_report *report)
{
  struct repair r = { 0 };
  int ret;

  if (!report->before.l1_cut)
    return 0;
  if (start (&r, s, options) == -1)
    return -1;
  ret = repair_complete_l1 (&r, report->before.leaks > 0, &report->why_not);
  check_end (&r.c);
  free (r.shared);
  return ret;
}

/* *again: the refcounts were moved out of clusters that had another use as well,
 * so that another run may write these.
 */
static int
run_once (struct storage *s, enum repair_mode mode,
          const struct check_options *options,
          struct repair_report *report, bool *again)
{
  struct repair r = { 0 };
  int ret;

  if (start (&r, s, options) == -1)
    return -1;
  r.keep_leaks = report->before.l1_cut && report->before.leaks > 0;
  r.keep_one = mode == REPAIR_EXCESS;
  ret = run_steps (&r, report);
  *again = r.rebuild && r.nr_shared > 0 && r.not_fixed == 0;
  check_end (&r.c);
  free (r.shared);
  return ret;
}

static int
run (struct storage *s, enum repair_mode mode,
     const struct check_options *options, struct repair_report *report)
{
  bool again;

  if (complete_l1 (s, options, report) == -1)
    return -1;
  if (report->why_not != NULL)
    return 0;
  if (run_once (s, mode, options, report, &again) == -1)
    return -1;
  return again ? run_once (s, mode, options, report, &again) : 0;
}

/* Write a new snapshot table, if nothing else is left to be repaired. */
static int
fix_snapshots (struct storage *s, const struct check_options *options,
                struct repair_report *report)
{
  const struct check_report *a = &report->after;
  struct repair r = { 0 };
  int ret;

  if (report->why_not != NULL || a->odd_snapshots == 0 ||
      a->corruptions != a->odd_snapshots || a->check_errors > 0)
    return 0;
  if (start (&r, s, options) == -1)
    return -1;
  ret = repair_snapshots (&r);
  check_end (&r.c);
  free (r.shared);
  if (ret == -1 || run (s, REPAIR_ALL, options, report) == -1)
    return -1;
  return check_storage (s, options, &report->after);
}

/* The image is sound: clear the dirty and corrupt bits. */
static int
clear_marks (struct storage *s, const struct check_options *options)
{
  struct check c;
  int r;

  if (check_start (&c, s, options) == -1)
    return -1;
  c.h.incompatible &= ~DIRTY_OR_CORRUPT;
  r = write_features (s, &c.h);
  check_end (&c);
  return r;
}

/* Whether refcounts are wrong where the check does not look: of a dirty image, since
 * nobody will look for them once it is not.
 */
static int
look_beyond (struct storage *s, const struct check_options *options,
             const struct check_report *before, bool *beyond)
{
  struct check c;
  int r;

  *beyond = false;
  if (!before->dirty)
    return 0;
  if (check_start (&c, s, options) == -1)
    return -1;
  r = repair_find_beyond (&c, beyond);
  check_end (&c);
  return r;
}

/* Whether there is anything to do that this mode allows. */
static bool
is_to_do (enum repair_mode mode, bool beyond, struct repair_report *r)
{
  const struct check_report *b = &r->before;

  if (check_report_is_sound (b) && b->leaks == 0 && !b->l1_cut && !beyond)
    return false;
  if (b->blind || (b->l1_cut && mode != REPAIR_ALL))
    r->why_not = hidden;
  else if (mode == REPAIR_LEAKS &&
           (b->corruptions > b->found[CHECK_COPIED] || b->check_errors > 0))
    r->why_not = has_errors;
  else if (mode == REPAIR_EXCESS && !check_report_is_sound (b))
    r->why_not = has_errors;
  return r->why_not == NULL;
}

int
repair_storage (struct storage *s, enum repair_mode mode,
                const struct check_options *options, struct repair_report *r)
{
  bool beyond;

  *r = (struct repair_report) { 0 };
  if (check_storage (s, options, &r->before) == -1 ||
      look_beyond (s, options, &r->before, &beyond) == -1)
    return -1;
  r->after = r->before;
  if (is_to_do (mode, beyond, r) &&
      (run (s, mode, options, r) == -1 ||
       check_storage (s, options, &r->after) == -1 ||
       (mode == REPAIR_ALL && fix_snapshots (s, options, r) == -1)))
    return -1;
  if (r->before.l1_cut && r->after.leaks > 0 && r->why_not == NULL)
    r->why_not = maybe_missed;
  if (check_report_is_sound (&r->after) && !r->after.l1_cut &&
      (r->after.dirty || r->after.corrupt)) {
    if (clear_marks (s, options) == -1)
      return -1;
    r->after.dirty = r->after.corrupt = false;
  }
  return 0;
}
