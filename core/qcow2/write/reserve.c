/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "qcow2/write/alloc-parts.h"

/* A window that was not used while others were, this many times, is closed. */
#define STALE_WINDOW 256

/* ------------------------------------------------------------- the reserve */

/* Add to the runs.  Returns false if there are too many.  lock held. */
bool
reserve_add (struct alloc *s, const struct alloc_run *r)
{
  unsigned i;

  if (r->nr == 0)
    return true;
  for (i = 0; i < s->nr_runs; ++i) {
    struct alloc_run *p = &s->run[i];

    if (p->first + p->nr == r->first && p->zero == r->zero &&
        p->batch == r->batch) {
      p->nr += r->nr;
      s->in_runs += r->nr;
      return true;
    }
  }
  if (s->nr_runs == ALLOC_MAX_RUNS)
    return false;
  s->run[s->nr_runs++] = *r;
  s->in_runs += r->nr;
  return true;
}

/* Take up to nr clusters from the oldest run that has nr, else from the
 * longest.  lock held, and runs must not be empty.
 */
struct alloc_run
reserve_take_run (struct alloc *s, uint64_t nr)
{
  struct alloc_run r;
  unsigned i, best = 0;

  for (i = 0; i < s->nr_runs && s->run[best].nr < nr; ++i) {
    if (s->run[i].nr > s->run[best].nr)
      best = i;
  }
  r = s->run[best];
  if (r.nr > nr)
    r.nr = nr;
  s->run[best].first += r.nr;
  s->run[best].nr -= r.nr;
  s->in_runs -= r.nr;
  if (s->run[best].nr == 0) {
    s->nr_runs--;
    memmove (&s->run[best], &s->run[best + 1],
             (s->nr_runs - best) * sizeof s->run[0]);
  }
  return r;
}

/* ----------------------------------------------------------------- windows */

/* Take up to nr clusters from the window for these guest clusters; nr is 0 in
 * the result if there is none.  lock held.
 */
static struct alloc_run
take_from_window (struct alloc *s, uint64_t guest, uint64_t nr)
{
  struct alloc_run r = { 0 };
  unsigned i;

  for (i = 0; i < ALLOC_WINDOWS; ++i) {
    struct alloc_window *w = &s->window[i];
    const uint64_t at = guest - w->guest;

    if (guest < w->guest || at >= w->run.nr || w->used >> at & 1)
      continue;
    r = w->run;
    r.first += at;
    for (r.nr = 0; r.nr < nr && at + r.nr < w->run.nr &&
           !(w->used >> (at + r.nr) & 1); ++r.nr)
      w->used |= UINT64_C (1) << (at + r.nr);
    s->in_windows -= r.nr;
    w->last_use = ++s->clock;
    break;
  }
  return r;
}

/* Return the rest of a window to the runs, and give up what has no place
 * there.  lock held.
 */
void
reserve_close_window (struct alloc *s, struct alloc_window *w)
{
  uint64_t i;

  for (i = 0; i < w->run.nr; ++i) {
    struct alloc_run r = w->run;
    const struct freed lost = {
      .host = alloc_offset (s, w->run.first + i), .nr = 1,
      .bytes = UINT64_C (1) << s->cluster_bits,
    };

    if (w->used >> i & 1)
      continue;
    s->in_windows--;
    r.first += i;
    r.nr = 1;
    if (!reserve_add (s, &r))
      (void) writeback_free (s->writeback, &lost, 1); /* or lost */
  }
  w->run.nr = 0;
}

/* How many more clusters windows may hold.  lock held. */
static uint64_t
left_for_windows (const struct alloc *s)
{
  const uint64_t most = atomic_load (&s->batch_size);

  return s->in_windows < most ? most - s->in_windows : 0;
}

/* lock held */
static void
close_stale_windows (struct alloc *s)
{
  unsigned i;

  for (i = 0; i < ALLOC_WINDOWS; ++i) {
    if (s->clock - s->window[i].last_use > STALE_WINDOW)
      reserve_close_window (s, &s->window[i]);
  }
}

/* Open a window for the guest clusters from the given one on, in place of the
 * least recently used one; but not if it would be no larger than nr, which are
 * wanted now.  lock held.
 */
static void
open_window (struct alloc *s, uint64_t guest, uint64_t size, uint64_t nr)
{
  struct alloc_window *w = &s->window[0];
  unsigned i;

  if (left_for_windows (s) < size) {
    close_stale_windows (s);
    size = clamp (size, 0, left_for_windows (s));
  }
  if (size <= nr)
    return;
  for (i = 1; i < ALLOC_WINDOWS && w->run.nr > 0; ++i) {
    if (s->window[i].run.nr == 0 || s->window[i].last_use < w->last_use)
      w = &s->window[i];
  }
  reserve_close_window (s, w);
  if (s->in_runs == 0)
    return;
  *w = (struct alloc_window) {
    .guest = guest,
    .run = reserve_take_run (s, size),
    .last_use = ++s->clock,
  };
  s->in_windows += w->run.nr;
}

/* The size of a window to open at this guest cluster: larger than the window
 * that ends there; small where another write ended; 0 if neither.  nr clusters
 * are wanted now.  lock held.
 */
static uint64_t
window_size (const struct alloc *s, uint64_t guest, uint64_t nr)
{
  const uint64_t first = clamp (nr * 2, s->first_window, s->max_window);
  unsigned i;

  for (i = 0; i < ALLOC_WINDOWS; ++i) {
    const struct alloc_window *w = &s->window[i];

    if (w->run.nr > 0 && w->guest + w->run.nr == guest)
      return clamp (w->run.nr * 2, 1, s->max_window);
  }
  for (i = 0; i < ALLOC_RECENT; ++i) {
    if (s->recent[i] == guest)
      return first;
  }
  return 0;
}

/* Take up to nr clusters from the reserve; nr is 0 in the result if it is
 * empty.  lock held.
 */
struct alloc_run
reserve_take (struct alloc *s, uint64_t guest, uint64_t nr)
{
  struct alloc_run r = { 0 };
  uint64_t size = 0;

  if (guest != ALLOC_NO_GUEST) {
    r = take_from_window (s, guest, nr);
    size = window_size (s, guest, nr);
  }
  if (r.nr == 0 && size > nr) {
    open_window (s, guest, size, nr);
    r = take_from_window (s, guest, nr);
  }
  if (r.nr == 0 && s->in_runs > 0)
    r = reserve_take_run (s, nr);
  if (r.nr > 0 && guest != ALLOC_NO_GUEST)
    s->recent[s->next_recent++ % ALLOC_RECENT] = guest + r.nr;
  return r;
}
