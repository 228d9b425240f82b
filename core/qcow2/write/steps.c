/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <time.h>

#include "base/error.h"
#include "qcow2/write/steps.h"

/* Between two looks whether requests have ended that may still use what was
 * given up.
 */
static const struct timespec pause_between = { .tv_nsec = 1000000 };

/* Keep bounded what waits for a writeback, and how much space does (I13).  May
 * wait for requests that run.
 */
static int
relieve (struct writer *w)
{
  for (;;) {
    if (writeback_is_wanted (&w->writeback) && writer_flush (w) == -1)
      return -1;
    if (!writeback_is_behind (&w->writeback) || atomic_load (&w->alloc.stuck))
      return 0;
    /* What is durably given up waits for requests to end. */
    alloc_reclaim_in_turn (&w->alloc);
    if (!writeback_is_behind (&w->writeback))
      return 0;
    nanosleep (&pause_between, NULL);
    if (writeback_check (&w->writeback) == -1)
      return writer_failed (w);
  }
}

/* Have something again of what was given up.  False if there was nothing. */
static bool
regain (struct writer *w)
{
  const size_t before = atomic_load (&w->writeback.nr_freed);
  unsigned i;

  if (before == 0 || writeback_flush (&w->writeback) == -1)
    return false;
  /* Requests that may still look at what was given up end soon. */
  for (i = 0; i < 1000; ++i) {
    alloc_reclaim_in_turn (&w->alloc);
    if (atomic_load (&w->writeback.nr_freed) < before)
      return true;
    if (atomic_load (&w->alloc.stuck))
      return false;
    nanosleep (&pause_between, NULL);
  }
  return false;
}

/* A step has failed, with the error set: whether it is worth another try.  It
 * is where there was no space, but some was being given up.  If not, the error
 * is that of the step, whatever has failed meanwhile; repeated: all tries have
 * met what was reported before.
 */
static bool
can_retry (struct writer *w, unsigned *tries, bool repeated)
{
  struct error_kept kept;

  if (error_errno () != ENOSPC)
    return false;
  error_keep (&kept);
  if ((*tries)++ < 3 && regain (w))
    return true;
  kept.repeated = repeated;
  error_restore (&kept);
  return false;
}

int
steps_run (struct steps *s)
{
  unsigned tries = 0;
  bool repeated = true; /* as of can_retry */

  while (s->at < s->end) {
    bool remapped = false;

    if (s->step (s, &remapped) == -1) {
      repeated &= error_repeated ();
      if (can_retry (s->w, &tries, repeated))
        continue;
      if (s->skip == NULL || error_errno () != ENOSPC)
        return -1;
      s->skip (s);
      remapped = true;
    }
    if (remapped && relieve (s->w) == -1)
      return -1;
  }
  return 0;
}

bool
steps_may_give_up (const struct steps *s, bool failed)
{
  struct writeback *c = &s->w->writeback;

  return writeback_check (c) == 0 &&
    !(failed && (writeback_is_behind (c) || writeback_is_wanted (c)));
}
