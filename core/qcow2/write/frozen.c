/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/write/frozen.h"
#include "qcow2/write/remap.h"
#include "qcow2/write/steps.h"

/* The guest's bytes that a slice maps. */
static inline uint64_t
slice_bytes (const struct map *m)
{
  return map_slice_end (m, (struct guest_off) { 0 });
}

static inline uint64_t
entries_of_slice (const struct map *m)
{
  return slice_bytes (m) >> m->format.cluster_bits;
}

/* ---------------------------------------------------------------- capturing */

/* The entries of a whole slice; of what the L1 table has no table for there are
 * none.
 */
static int
read_slice (const struct map *m, struct host_off table, struct guest_off offset,
            struct map_l2 *l2)
{
  const struct guest_off start = { offset.v & -slice_bytes (m) };

  return map_l2_entries (m, table, start, entries_of_slice (m), l2);
}

int
frozen_capture (struct writer *w, struct host_off table,
                struct guest_off offset)
{
  const struct map *m = qcow2_map (w->disk);
  const uint64_t slice = map_slice_number (m, offset);
  uint64_t disk_order[MAP_MAX_WORDS];
  struct map_l2 l2;
  unsigned i;

  if (!points_want (w->points, slice))
    return 0;
  if (read_slice (m, table, offset, &l2) == -1)
    return -1;
  if (!points_capture (w->points, m, slice, l2.slice, l2.words))
    return 0;
  for (i = 0; i < l2.nr_words; ++i)
    disk_order[i] = htobe64 (l2.words[i]);
  writeback_table_not_leaked (&w->writeback, &m->format, disk_order,
                              l2.nr_words);
  return 0;
}

struct not_leaked {
  const struct writer *w;
  struct suspects *suspects;
};

static void
clear_suspects (void *opaque, const uint64_t *words, uint64_t nr)
{
  const struct not_leaked *n = opaque;

  suspects_clear_table (n->suspects, &qcow2_map (n->w->disk)->format, words,
                        nr);
}

void
frozen_not_leaked (struct writer *w, struct suspects *suspects)
{
  struct not_leaked n = { w, suspects };

  if (points_are_held (w->points))
    points_each (w->points, qcow2_map (w->disk), clear_suspects, &n);
}

/* --------------------------------------------------------------- what is held */

bool
frozen_host (struct writer *w, struct guest_off offset, uint64_t word)
{
  const struct map *m = qcow2_map (w->disk);

  return points_are_held (w->points) && entry_reference (word) != 0 &&
    points_have (w->points, map_slice_number (m, offset),
                 map_slice_word (m, offset), entry_reference (word));
}

bool
frozen_reference (struct writer *w, struct guest_off offset, uint64_t word)
{
  const struct map *m = qcow2_map (w->disk);

  return points_are_held (w->points) &&
    points_keep (w->points, map_slice_number (m, offset),
                 map_slice_word (m, offset), entry_reference (word));
}

void
frozen_clip (struct writer *w, struct guest_off offset, struct run *run)
{
  const struct map *m = qcow2_map (w->disk);
  const uint64_t mask = m->cluster_size - 1;
  const uint64_t first_host = run->host.v - (offset.v & mask);
  uint64_t done = 0;
  bool first = false;

  if (!points_are_held (w->points) || run->kind != RUN_DATA || !run->in_place)
    return;
  while (done < run->length) {
    const struct guest_off at = { offset.v + done };
    const uint64_t clusters = (at.v | mask) - (offset.v | mask);
    const bool frozen = frozen_host (w, at, first_host + clusters);

    if (done == 0)
      first = frozen;
    else if (frozen != first)
      break;
    done = (at.v | mask) + 1 - offset.v;
  }
  if (run->length > done)
    run->length = done;
  run->in_place = !first;
}

/* ---------------------------------------------------------------- releasing */

/* A step releases what no point needs of one slice; at is the bucket. */
struct releasing {
  struct steps steps;
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
  if (nr > 0 && writeback_free (&rl->steps.w->writeback, freed, nr) == -1)
    rl->leaked = true;
}

/* Of one slice, whose range is entered. */
static void
release_slice (struct releasing *rl, uint64_t slice, struct guest_off start)
{
  struct writer *w = rl->steps.w;
  const struct map *m = qcow2_map (w->disk);
  uint64_t lost[MAP_MAX_WORDS];
  struct map_l2 live;
  struct map_l1 l1;
  bool known;

  known = map_l1_entry (m, start, &l1) == 0 && l1.table.v != 0 &&
    read_slice (m, l1.table, start, &live) == 0;
  if (!known)
    memset (live.words, 0, sizeof live.words);
  while (points_remove (w->points, m, slice, live.words, lost)) {
    if (known)
      give_up (rl, m, lost);
    else /* nor is it known what the live table has */
      rl->leaked = true;
  }
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
  start.v = slice * slice_bytes (m);
  range.first = slice * entries_of_slice (m);
  range.last = range.first + entries_of_slice (m) - 1;
  token = epoch_enter (s->w->disk->shared->epoch);
  inflight_enter (&s->w->inflight, &range);
  release_slice ((struct releasing *) s, slice, start);
  inflight_leave (&s->w->inflight, &range);
  epoch_leave (s->w->disk->shared->epoch, token);
  return 0;
}

void
frozen_release (struct writer *w)
{
  struct releasing rl = {
    .steps = {
      .w = w, .end = UINT64_C (1) << w->points->bucket_bits,
      .step = release_next,
    },
  };

  /* Where nothing can be written any more memory is given back all the same. */
  while (rl.steps.at < rl.steps.end)
    (void) steps_run (&rl.steps);
  if (rl.leaked)
    atomic_store (&w->leaked, true);
  points_settle (w->points);
}
