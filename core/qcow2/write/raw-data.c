/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/write/raw-data.h"
#include "qcow2/write/remap.h"

/* The subclusters of an entry that hold data. */
static uint32_t
allocated_in (const struct l2_entry *e, uint32_t all)
{
  switch (e->kind) {
  case CLUSTER_UNALLOCATED:
  case CLUSTER_ZERO_PLAIN:
  case CLUSTER_ZERO_ALLOC:
    return 0;
  case CLUSTER_STANDARD:
    return all;
  case CLUSTER_SUBCLUSTERS:
    return e->allocated;
  case CLUSTER_COMPRESSED:
  case CLUSTER_INVALID:
    break;
  }
  abort ();
}

/* ---------------------------------------------------------------- growing */

/* What is said once, and not for each request: by fields of the header, which
 * no other message is about.
 */
enum {
  TOLD_NO_GROWTH = HEADER_FEATURES_OFFSET,
  TOLD_APPENDED = HEADER_FEATURES_OFFSET + sizeof (uint64_t),
};

/* Look at one run from raw_seen on.  *zero: it is zeros, or the disk's. */
static int
look_at_run (struct writer *w, uint64_t end, bool *zero)
{
  const uint64_t at = w->raw_seen;
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  struct run run;
  uint64_t n;
  int r;

  r = map_lookup (qcow2_map (w->disk), (struct guest_off) { at }, end - at,
                  &run);
  epoch_leave (w->disk->shared->epoch, token);
  if (r == 0 && run.kind == RUN_DAMAGED)
    r = layer_damaged (w->disk, run.host);
  if (r == -1)
    return -1;
  n = run.length;
  if (run.kind != RUN_DATA &&
      storage_zeros (w->disk->data_file, (struct host_off) { at }, run.length,
                     &n) == -1)
    return -1;
  w->raw_seen += n;
  *zero = n == run.length;
  return 0;
}

/* How large the file is.  The size that reads and writes know can only be
 * lowered before anything is written: later a write may be making it larger.
 */
static uint64_t
size_now (struct writer *w)
{
  struct storage *data = w->disk->data_file;
  struct storage_stamp now;

  if (w->begun)
    storage_see_growth (data);
  else
    storage_see_size (data);
  return storage_stamp (data, &now) ? now.size : atomic_load (&data->size);
}

/* If it has become longer again since, nothing tells where it was cut off: all of
 * it is looked at again.
 */
static void
see_cut (struct writer *w, uint64_t end)
{
  if (end < w->raw_size)
    w->raw_seen = 0;
  w->raw_size = end;
}

int
raw_data_look (struct writer *w)
{
  struct storage *data = w->disk->data_file;
  uint64_t end = size_now (w);
  bool zero = true;

  see_cut (w, end);
  if (end > w->disk->size)
    end = w->disk->size;
  while (zero && w->raw_seen < end) {
    /* Twice: another request may have mapped and written it meanwhile. */
    if (look_at_run (w, end, &zero) == -1 ||
        (!zero && look_at_run (w, end, &zero) == -1))
      return -1;
  }
  if (zero)
    return 0;
  error_set (EIO, "%s: the raw data file %s was made longer by another "
             "program since it was opened, with data between the offsets 0x%"
             PRIx64 " and 0x%" PRIx64 ", where zeros should be: it is not "
             "written while they are there", writer_name (w), data->name,
             w->raw_seen, end);
  return layer_damaged (w->disk, (struct host_off) { TOLD_APPENDED });
}

/* D4.  What others append at the same time is looked at once the file is as
 * large as the disk, since from then on it is theirs to write where the disk has
 * its data.  begin_lock held.
 */
static int
grow (struct writer *w)
{
  struct storage *data = w->disk->data_file;

  if (raw_data_look (w) == -1)
    return -1;
  if (storage_extend (data, w->disk->size) == -1)
    return layer_damaged (w->disk, (struct host_off) { TOLD_NO_GROWTH });
  if (raw_data_look (w) == -1)
    return -1;
  if (storage_flush (data) == -1) {
    writeback_fail (&w->writeback);
    return -1;
  }
  atomic_store (&w->raw_whole, true);
  return 0;
}

/* Whether it is as large as the disk, and others have not cut it off since. */
static bool
is_whole (const struct writer *w)
{
  struct storage_stamp now;

  return atomic_load (&w->raw_whole) &&
    storage_stamp (w->disk->data_file, &now) && now.size >= w->disk->size;
}

static int
grow_once (struct writer *w)
{
  int r;

  if (is_whole (w))
    return 0;
  pthread_mutex_lock (&w->begin_lock);
  r = is_whole (w) ? 0 : grow (w);
  pthread_mutex_unlock (&w->begin_lock);
  return r;
}

/* ---------------------------------------------------------------- mapping */

/* D2, as far as the disk goes: what is behind its end is not ours.  The file
 * ends there, or later (D4).
 */
static int
zero_data (struct writer *w, uint64_t from, uint64_t to)
{
  struct storage *data = w->disk->data_file;

  if (to > w->disk->size)
    to = w->disk->size;
  return from >= to ? 0
    : storage_zero (data, (struct host_off) { from }, to - from,
                    !w->places.identical.keep_discarded);
}

/* Zero the subclusters of a cluster that don't hold data. */
static int
zero_rest (struct writer *w, uint64_t cluster, uint32_t allocated)
{
  const struct map *m = qcow2_map (w->disk);
  const unsigned nr = m->format.extended_l2 ? QCOW2_SUBCLUSTERS : 1;
  unsigned i, n;

  for (i = 0; i < nr; i += n) {
    n = 1;
    if (allocated >> i & 1)
      continue;
    while (i + n < nr && !(allocated >> (i + n) & 1))
      n++;
    if (zero_data (w, cluster + ((uint64_t) i << m->subcluster_bits),
                   cluster + ((uint64_t) (i + n) << m->subcluster_bits)) == -1)
      return -1;
  }
  return 0;
}

/* Set entries, as far as none is damaged.  *changed: there is something to do.
 */
static int
map_entries (struct remap *r, bool *changed)
{
  const struct map *m = qcow2_map (r->w->disk);
  const uint32_t all = m->format.extended_l2 ? UINT32_MAX : 1;
  unsigned i;

  for (i = 0; i < r->nr; ++i) {
    const uint64_t cluster = r->cluster + i * m->cluster_size;
    struct l2_entry e;
    uint32_t allocated;

    if (remap_entry (r, i, &e) == -1)
      return i == 0 ? -1 : 0; /* the next step will meet it */
    allocated = allocated_in (&e, all);
    if (allocated != all && zero_rest (r->w, cluster, allocated) == -1)
      return -1;
    *changed |= allocated != all || !e.copied;
    remap_set (r, i, (struct host_off) { cluster }, true, all, 0);
  }
  return 0;
}

/* D3 */
static int
map_step (struct writer *w, struct guest_off offset)
{
  struct remap r;
  bool changed = false;
  int result;

  if (remap_begin (&r, w, offset, w->disk->size) == -1)
    return -1;
  result = map_entries (&r, &changed);
  if (result == -1 || !changed) {
    remap_abort (&r);
    return result == -1 ? -1 : writeback_check (&w->writeback);
  }
  writeback_note_data (&w->writeback);
  return remap_end_durably (&r);
}

int
raw_data_map (struct writer *w, struct guest_off offset)
{
  int r;

  if (grow_once (w) == -1)
    return -1;
  atomic_fetch_add (&w->in_turn, 1);
  r = map_step (w, offset);
  atomic_fetch_sub (&w->in_turn, 1);
  return r;
}
