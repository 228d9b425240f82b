/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "qcow2/write/remap.h"
#include "qcow2/write/steps.h"
#include "qcow2/write/take-parts.h"
#include "qcow2/write/writer-parts.h"

/* Of lowering refcounts, and where there is no space. */
#define MAX_TRIES 3

/* A step gives up what a slice of a copy refers to; at counts slices. */
struct undoing {
  struct steps steps;
  struct take *t;
  bool failed; /* some could not be written */
};

static void
give_up (struct take *t, const struct freed *freed, unsigned nr)
{
  if (nr > 0)
    (void) writeback_free (&t->w->writeback, freed, nr); /* or lost */
}

/* A slice of the copy of a table, which is in the file once it is filled. */
static int
read_copy (struct take *t, uint64_t table, uint64_t slice, uint64_t *words)
{
  const struct map *m = take_map (t);
  const uint64_t at = slice * m->slice_bytes;
  const struct host_off place = { t->table[table].host.v + at };

  if (table < t->nr_filled)
    return storage_read (m->tables, words, m->slice_bytes, place);
  memcpy (words, (const char *) t->copy + at, m->slice_bytes);
  return 0;
}

/* What the words of a slice of a copy refer to, which it had besides the disk. */
static void
give_up_words (struct take *t, const uint64_t *words)
{
  const struct map *m = take_map (t);
  const unsigned step = 1U << m->l2_word_bits;
  struct freed freed[MAP_MAX_WORDS];
  unsigned i, nr = 0;

  for (i = 0; i < m->slice_bytes / sizeof words[0]; i += step) {
    const struct l2_entry e =
      entry_decode_l2 (&m->format, be64toh (words[i]),
                       step == 2 ? be64toh (words[i + 1]) : 0);

    if (e.kind == CLUSTER_INVALID || host_is_none (e.host))
      continue;
    freed[nr] = remap_references (m, &e);
    freed[nr++].bytes = 0; /* the disk, or a point, has it still */
  }
  give_up (t, freed, nr);
}

static int
give_up_slice (struct steps *s, bool *remapped)
{
  const struct undoing *u = (const struct undoing *) s;
  struct take *t = u->t;
  const uint64_t at = s->at++;
  uint64_t words[MAP_MAX_WORDS];

  if (!steps_may_give_up (s, u->failed)) {
    atomic_store (&t->w->leaked, true);
    t->mismatched = true; /* some of them may have COPIED still */
  }
  else if (read_copy (t, at / take_slices (t), at % take_slices (t),
                      words) == -1)
    atomic_store (&t->w->leaked, true);
  else {
    give_up_words (t, words);
    *remapped = true;
  }
  return 0;
}

/* Those that were not written, and may be in the reserve again at once. */
static void
give_back_tables (struct take *t, uint64_t from)
{
  for (; from < t->nr_tables; ++from)
    alloc_give_back (&t->w->alloc, t->table[from].host, 1);
}

static void
give_up_space (struct take *t, const struct alloc_clusters *space)
{
  const struct freed f = {
    .host = space->host, .nr = space->nr, .is_table = true,
    .bytes = space->nr << take_map (t)->format.cluster_bits,
  };

  give_up (t, &f, space->nr > 0);
}

/* That of the one that is being filled may be in the overlap table. */
static void
give_up_tables (struct take *t)
{
  uint64_t nr = t->nr_raised > 0 ? t->nr_filled + 1 : t->nr_filled, i;

  for (i = 0; i < nr; ++i)
    give_up_space (t, &(struct alloc_clusters) {
        .host = t->table[i].host, .nr = 1 });
  give_back_tables (t, nr);
  give_up_space (t, &t->l1_space);
  give_up_space (t, &t->table_space);
}

/* Where there is no space, more than once. */
static int
flush (struct writer *w)
{
  unsigned tries;

  for (tries = 1; writer_flush (w) == -1; ++tries) {
    if (error_errno () != ENOSPC || tries == MAX_TRIES)
      return -1;
  }
  return 0;
}

/* Wait until what was given up in batches up to this one is lowered, or is given up
 * again.
 */
static int
wait_for_batch (struct writer *w, uint64_t batch)
{
  static const struct timespec pause_between = { .tv_nsec = 1000000 };

  while (!alloc_has_reclaimed (&w->alloc, batch)) {
    nanosleep (&pause_between, NULL);
    if (writeback_check (&w->writeback) == -1)
      return -1;
  }
  return 0;
}

/* Wait until refcounts have been lowered.  What could not be is in the next batch
 * then, and only the number of failures tells, since lists that go well may follow.
 * Which batch it is that has all is known when one is durable: what is in one that
 * finds no space goes into the next, whoever has begun it.
 */
static int
wait_for_refcounts (struct take *t)
{
  struct writer *w = t->w;
  unsigned tries;

  for (tries = 0; tries < MAX_TRIES; ++tries) {
    const uint64_t failures = atomic_load (&w->alloc.failures);

    if (flush (w) == -1 ||
        wait_for_batch (w, writeback_durable_batch (&w->writeback)) == -1)
      return -1;
    if (atomic_load (&w->alloc.failures) == failures)
      return 0;
  }
  return -1;
}

static bool
set_copied (struct take *t, struct take_table *table, uint64_t number,
            uint64_t reference, uint64_t *word)
{
  const struct host_off host = { *word & QCOW2_ENTRY_OFFSET_MASK };
  uint64_t refcount;

  (void) reference;
  if ((*word & QCOW2_ENTRY_COPIED) ||
      !(table->cleared[number / 8] >> number % 8 & 1))
    return false;
  if (alloc_refcount (&t->w->alloc, host, &refcount) == -1) {
    t->mismatched = true; /* it may be 1 */
    return false;
  }
  if (refcount != 1)
    return false;
  *word |= QCOW2_ENTRY_COPIED;
  return true;
}

static int
set_copied_in_slice (struct take *t, uint64_t at)
{
  struct writer *w = t->w;
  struct take_table *table = &t->table[at / take_slices (t)];
  const uint64_t slice = at % take_slices (t);
  struct inflight_range range = take_range (t, table->l1_index, slice, 1);
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  int r;

  inflight_enter (&w->inflight, &range);
  r = take_change_live (t, table, slice, NULL, set_copied);
  inflight_leave (&w->inflight, &range);
  epoch_leave (w->disk->shared->epoch, token);
  return r;
}

static int
set_copied_again (struct take *t, uint64_t slices)
{
  struct writer *w = t->w;
  unsigned tries = 0;
  uint64_t at = 0;
  int r = 0;

  while (at < slices && r == 0) {
    r = set_copied_in_slice (t, at);
    if (r == 0)
      at++;
    else if (error_errno () == ENOSPC && ++tries < MAX_TRIES)
      r = 0;
  }
  if (r == 0 && writer_flush (w) == -1) {
    t->unwritten = error_errno () == ENOSPC;
    r = t->unwritten ? 0 : -1;
  }
  return r;
}

/* The slices whose flags may have been cleared. */
static uint64_t
raised_slices (const struct take *t)
{
  return t->nr_filled * take_slices (t) + t->nr_raised;
}

static int
undo (struct take *t)
{
  struct undoing u = {
    .steps = { .w = t->w, .step = give_up_slice, .end = raised_slices (t) },
    .t = t,
  };

  while (u.steps.at < u.steps.end)
    u.failed |= steps_run (&u.steps) == -1 && flush (t->w) == -1;
  give_up_tables (t);
  if (u.steps.end == 0 && !t->given_up)
    return 0;
  if (wait_for_refcounts (t) == -1 || set_copied_again (t, u.steps.end) == -1)
    return -1;
  return t->mismatched || atomic_load (&t->w->writeback.lost) != t->lost ? -1 : 0;
}

/* Flags may have to be mended; or what is wrong is written by the end at the latest,
 * which then clears the dirty bit.
 */
static void
leave_dirty (struct writer *w, bool mismatched)
{
  pthread_mutex_lock (&w->begin_lock);
  if (mismatched)
    w->mismatched = true;
  else if (w->header.version >= 3)
    w->dirty = true;
  pthread_mutex_unlock (&w->begin_lock);
}

void
take_undo (struct take *t)
{
  struct writer *w = t->w;
  struct error_kept kept;

  error_keep (&kept);
  if (writeback_check (&w->writeback) == 0) {
    if (undo (t) == -1)
      leave_dirty (w, raised_slices (t) > 0); /* else only refcounts are wrong */
    else if (t->unwritten)
      leave_dirty (w, false);
    if (t->dirty)
      (void) features_end_take (w);
  }
  error_restore (&kept);
}
