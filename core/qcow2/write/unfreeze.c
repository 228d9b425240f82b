/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "qcow2/write/remap.h"
#include "qcow2/write/steps.h"
#include "qcow2/write/unfreeze.h"

/* A step releases a shadow that no point needs; at is the bucket. */
struct releasing {
  struct steps steps;
  bool failed; /* what is given up can't be written, or not all of it */
  bool leaked;
};

static void
give_up (struct releasing *rl, const struct map *m, const uint64_t *lost)
{
  const unsigned step = 1U << m->l2_word_bits;
  struct freed freed[MAP_MAX_WORDS];
  unsigned i, nr = 0;

  for (i = 0; i < m->slice_bytes / sizeof *lost; i += step) {
    const struct l2_entry e =
      entry_decode_l2 (&m->format, lost[i], step == 2 ? lost[i + 1] : 0);

    if (lost[i] != 0 && e.kind != CLUSTER_INVALID)
      freed[nr++] = remap_references (m, &e);
  }
  if (nr > 0 && (!steps_may_give_up (&rl->steps, rl->failed) ||
                 writeback_free (&rl->steps.w->writeback, freed, nr) == -1))
    rl->leaked = true;
}

/* The live entries of a slice.  What can't be read may be so the next time. */
#define TRIES 3

static bool
read_live (const struct map *m, struct guest_off start, struct map_l2 *live)
{
  struct map_l1 l1;
  unsigned i;

  for (i = 0; i < TRIES; ++i) {
    if (map_l1_entry (m, start, &l1) == 0 && l1.table.v != 0 &&
        map_l2_slice (m, l1.table, start, live) == 0)
      return true;
  }
  return false;
}

/* One shadow of a slice, whose range is entered: there is a bound to what waits to
 * be had again (I13).
 */
static void
release_slice (struct releasing *rl, uint64_t slice, struct guest_off start)
{
  struct writer *w = rl->steps.w;
  const struct map *m = qcow2_map (w->disk);
  uint64_t lost[MAP_MAX_WORDS];
  struct map_l2 live;
  const bool known = read_live (m, start, &live);

  if (!known)
    memset (live.words, 0, sizeof live.words);
  if (!points_remove (w->points, m, slice, live.words, lost))
    return;
  if (known)
    give_up (rl, m, lost);
  else /* nor is it known what the live table has */
    rl->leaked = true;
}

/* Requests that change the slice wait meanwhile: until its shadow has gone they
 * rely on it to have what they take away.
 */
static int
release_next (struct steps *s, bool *remapped)
{
  const struct map *m = qcow2_map (s->w->disk);
  struct inflight_range range;
  struct guest_off start;
  uint64_t slice;
  unsigned token;

  *remapped = true;
  if (!points_next_unneeded (s->w->points, &s->at, &slice))
    return 0;
  start.v = slice * map_slice_clusters (m) << m->format.cluster_bits;
  range.first = slice * map_slice_clusters (m);
  range.last = range.first + map_slice_clusters (m) - 1;
  token = epoch_enter (s->w->disk->shared->epoch);
  inflight_enter (&s->w->inflight, &range);
  release_slice ((struct releasing *) s, slice, start);
  inflight_leave (&s->w->inflight, &range);
  epoch_leave (s->w->disk->shared->epoch, token);
  return 0;
}

void
unfreeze (struct writer *w)
{
  struct releasing rl = {
    .steps = {
      .w = w, .end = UINT64_C (1) << w->points->bucket_bits,
      .step = release_next,
    },
  };

  points_release_bits (w->points);
  /* Where nothing can be written any more memory is given back all the same. */
  while (rl.steps.at < rl.steps.end)
    rl.failed |= steps_run (&rl.steps) == -1;
  if (rl.leaked)
    atomic_store (&w->leaked, true);
}
