/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/write/frozen.h"

/* ---------------------------------------------------------------- capturing */

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
  if (map_l2_slice (m, table, offset, &l2) == -1)
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

/* Points may have ended since run was looked up, after a step had replaced what
 * they have: so it is looked up again, now that it is known to be theirs no more.
 */
bool
frozen_no_more (struct writer *w, struct guest_off offset,
                const struct run *run)
{
  struct run again;

  if (!points_are_held (w->points))
    return true;
  return !atomic_load (&w->points->in_turn) &&
    map_lookup (qcow2_map (w->disk), offset, run->length, &again) == 0 &&
    again.kind == RUN_DATA && again.in_place &&
    again.host.v == run->host.v && again.length == run->length;
}
