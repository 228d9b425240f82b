/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/write/compress.h"
#include "qcow2/write/raw-zero.h"
#include "qcow2/write/remap.h"
#include "qcow2/write/steps.h"
#include "qcow2/write/zero.h"

/* A request.  Granules are what can be marked as zeros: clusters or
 * subclusters; the disk's end also ends one.
 */
struct zeroing {
  struct writer *w;
  bool may_trim;
  bool hides;   /* as if something lay below everywhere */
  bool is_trim; /* advice: what would have to be written stays as it is */
};

static inline const struct map *
zeroing_map (const struct zeroing *z)
{
  return qcow2_map (z->w->disk);
}

static inline uint64_t
granule (const struct zeroing *z)
{
  return UINT64_C (1) << zeroing_map (z)->subcluster_bits;
}

/* Whether entries can say that something reads as zeros. */
static inline bool
has_zero_flag (const struct zeroing *z)
{
  return zeroing_map (z)->format.version >= 3;
}

/* Whether something lies below the disk here, that would show through if it
 * were unmapped.
 */
static inline bool
has_below (const struct zeroing *z, uint64_t offset)
{
  const struct layer *backing = z->w->disk->backing;

  return backing != NULL && offset < backing->size;
}

/* Punching holes into clusters that stay mapped. */
static inline bool
may_punch (const struct zeroing *z)
{
  return z->may_trim && !z->w->alloc.keep_discarded;
}

static int
write_granule_zeros (const struct zeroing *z, uint64_t from, uint64_t to)
{
  const struct guest_off at = { from };

  return disk_write (z->w, NULL, to - from, at,
                     may_punch (z) ? DISK_PUNCH : 0);
}

/* ---------------------------------------------------------------- clusters */

/* The subclusters of the i-th cluster that are in the range, which goes on
 * past the disk's end.
 */
static uint32_t
subclusters_of (const struct zeroing *z, const struct remap *r, uint64_t i)
{
  const struct map *m = zeroing_map (z);
  const uint64_t cluster = r->cluster + i * m->cluster_size;
  const uint64_t from = r->from.v > cluster ? r->from.v - cluster : 0;
  const bool whole = r->to == z->w->disk->size ||
    r->to - cluster > m->cluster_size;
  const uint64_t to = whole ? m->cluster_size : r->to - cluster;
  const unsigned first = from >> m->subcluster_bits;
  const unsigned last = (to - 1) >> m->subcluster_bits;

  return (UINT32_MAX >> (31 - (last - first))) << first;
}

/* Set the i-th entry where entries have a zero flag.  False if it takes zeros
 * that are written: part of a compressed cluster.
 */
static bool
zero_entry_v3 (const struct zeroing *z, struct remap *r, uint64_t i,
               const struct l2_entry *e)
{
  const struct map *m = zeroing_map (z);
  const uint32_t all = m->format.extended_l2 ? UINT32_MAX : 1;
  const uint32_t range = subclusters_of (z, r, i);
  const bool below = z->hides ||
    has_below (z, r->cluster + i * m->cluster_size);
  struct host_off host = e->host;
  uint32_t allocated = 0, zero = 0;

  switch (e->kind) {
  case CLUSTER_UNALLOCATED:
    break;
  case CLUSTER_ZERO_PLAIN:
  case CLUSTER_ZERO_ALLOC:
    zero = all;
    break;
  case CLUSTER_STANDARD:
    allocated = all;
    break;
  case CLUSTER_SUBCLUSTERS:
    allocated = e->allocated;
    zero = e->zero;
    break;
  case CLUSTER_COMPRESSED:
    if (range != all)
      return false;
    host = HOST_NONE;
    allocated = all;
    break;
  case CLUSTER_INVALID:
    abort ();
  }
  /* What nothing lies below reads as zeros if it is unallocated. */
  zero |= below ? range : range & allocated;
  allocated &= ~range;
  if (allocated == 0 && (z->may_trim || !e->copied))
    host = HOST_NONE;
  remap_set (r, i, host, e->copied, allocated, zero);
  return true;
}

/* The same in version 2: unmapped, if that reads as zeros. */
static bool
zero_entry_v2 (const struct zeroing *z, struct remap *r, uint64_t i)
{
  const struct map *m = zeroing_map (z);

  if (has_below (z, r->cluster + i * m->cluster_size) || !z->may_trim)
    return false;
  remap_set (r, i, HOST_NONE, false, 0, 0);
  return true;
}

/* Set the entries of a step, up to the first one that takes zeros which are
 * written.  Returns how many, or -1 with the error set.
 */
static int
zero_entries (const struct zeroing *z, struct remap *r)
{
  struct l2_entry e;
  unsigned i;

  for (i = 0; i < r->nr && !remap_is_full (r); ++i) {
    if (remap_entry (r, i, &e) == -1) {
      if (i == 0)
        return -1;
      break; /* the next step will meet it */
    }
    if (!(has_zero_flag (z) ? zero_entry_v3 (z, r, i, &e)
          : zero_entry_v2 (z, r, i)))
      break;
  }
  return i;
}

/* *done: the guest's end of what was zeroed; where it started if the first
 * cluster takes zeros that are written.
 */
static int
map_as_zeros (const struct zeroing *z, uint64_t from, uint64_t to,
              uint64_t *done)
{
  struct remap r;
  int nr;

  if (remap_begin (&r, z->w, (struct guest_off) { from }, to) == -1)
    return -1;
  nr = zero_entries (z, &r);
  if (nr == -1) {
    remap_abort (&r);
    return -1;
  }
  *done = nr == 0 ? from : r.cluster + nr * zeroing_map (z)->cluster_size;
  if (*done > r.to)
    *done = r.to;
  return remap_end (&r, false);
}

/* ------------------------------------------------------------------- ranges */

/* How far nothing needs to be done from here on: 0, if something must.
 * Returns -1 with the error set.
 */
static int
skip_zeros (const struct zeroing *z, uint64_t from, uint64_t to,
            uint64_t *length)
{
  const struct guest_off at = { from };
  const unsigned token = epoch_enter (z->w->disk->shared->epoch);
  struct run run;
  int r;

  r = map_lookup (zeroing_map (z), at, to - from, &run);
  epoch_leave (z->w->disk->shared->epoch, token);
  if (r == 0 && run.kind == RUN_DAMAGED)
    r = layer_damaged (z->w->disk, run.host);
  if (r == -1)
    return -1;
  *length = 0;
  if (run.kind == RUN_ZERO_PLAIN ||
      (run.kind == RUN_ZERO_ALLOC && !z->may_trim) ||
      (run.kind == RUN_UNALLOCATED && !z->hides && !has_below (z, from)))
    *length = run.length;
  return 0;
}

/* The cluster at from can't be mapped as zeros. */
static int
zero_by_writing (const struct zeroing *z, uint64_t from, uint64_t to,
                 uint64_t *done)
{
  const uint64_t cluster_size = zeroing_map (z)->cluster_size;
  const uint64_t end = (from & -cluster_size) + cluster_size;

  *done = end < to ? end : to;
  return z->is_trim ? 0 : write_granule_zeros (z, from, *done);
}

/* How far a trim does nothing, since entries have nothing that hides what lies
 * below: not even a table is made for that.
 */
static uint64_t
skip_advice (const struct zeroing *z, uint64_t from)
{
  if (!z->is_trim || has_zero_flag (z) || !has_below (z, from))
    return 0;
  /* The last cluster may reach beyond the end of the backing file. */
  return ((z->w->disk->backing->size - 1) |
          (zeroing_map (z)->cluster_size - 1)) + 1 - from;
}

/* Some whole granules: *done is where they end. */
static int
zero_some (const struct zeroing *z, uint64_t from, uint64_t to,
           uint64_t *done)
{
  uint64_t length = skip_advice (z, from);

  *done = from + length;
  if (length > 0)
    return 0;
  if (skip_zeros (z, from, to, &length) == -1)
    return -1;
  *done = from + length;
  if (length > 0)
    return 0;
  if (map_as_zeros (z, from, to, done) == -1)
    return -1;
  return *done > from ? 0 : zero_by_writing (z, from, to, done);
}

/* Whole granules. */
struct zero_steps {
  struct steps steps;
  const struct zeroing *z;
};

static int
zero_next (struct steps *s, bool *remapped)
{
  const struct zeroing *z = ((struct zero_steps *) s)->z;
  uint64_t done;

  if (zero_some (z, s->at, s->end, &done) == -1)
    return -1;
  s->at = done;
  *remapped = true;
  return 0;
}

/* A table that would be needed finds no room: then not here. */
static void
skip_slice (struct steps *s)
{
  const struct zeroing *z = ((struct zero_steps *) s)->z;

  s->at = map_slice_end (zeroing_map (z), (struct guest_off) { s->at });
}

static int
zero_granules (const struct zeroing *z, uint64_t from, uint64_t to)
{
  struct zero_steps zs = {
    .steps = {
      .w = z->w, .at = from, .end = to, .step = zero_next,
      .skip = z->is_trim ? skip_slice : NULL,
    },
    .z = z,
  };

  return steps_run (&zs.steps);
}

/* Whether all of this range reads as zeros. */
static int
reads_as_zeros (const struct zeroing *z, uint64_t from, uint64_t to,
                bool *yes)
{
  const unsigned token = epoch_enter (z->w->disk->shared->epoch);
  struct guest_off at = { from };
  int r = 0;

  *yes = true;
  while (at.v < to && *yes) {
    const struct layer *owner;
    struct run run;

    r = layer_lookup (z->w->disk, at, to - at.v, &run, &owner);
    if (r == -1) /* there may be no run */
      break;
    *yes = run.kind == RUN_ZERO_PLAIN || run.kind == RUN_ZERO_ALLOC;
    at.v += run.length;
  }
  epoch_leave (z->w->disk->shared->epoch, token);
  return r;
}

/* Part of a granule. */
static int
zero_part (const struct zeroing *z, uint64_t from, uint64_t to)
{
  bool zero;

  if (from == to)
    return 0;
  if (reads_as_zeros (z, from, to, &zero) == -1)
    return -1;
  return zero ? 0 : write_granule_zeros (z, from, to);
}

/* A range, in parts: a part of a granule, whole ones, and a part again. */
struct parts {
  uint64_t from, whole_from, whole_to, to;
};

static struct parts
split (const struct zeroing *z, uint64_t from, uint64_t to)
{
  const uint64_t size = granule (z);
  struct parts p = { from, (from + size - 1) & -size, to & -size, to };

  if (to == z->w->disk->size)
    p.whole_to = to;
  if (p.whole_from >= p.whole_to) /* all of it is part of one, or two */
    p.whole_from = p.whole_to = p.whole_from < to ? p.whole_from : to;
  return p;
}

/* ------------------------------------------------------------- fast zeroing */

/* Whether zeros would have to be written to this range of whole granules. */
static int
granules_are_fast (const struct zeroing *z, uint64_t from, uint64_t to,
                   bool *fast)
{
  const uint64_t mask = zeroing_map (z)->cluster_size - 1;
  const unsigned token = epoch_enter (z->w->disk->shared->epoch);
  struct guest_off at = { from };
  int r = 0;

  *fast = true;
  /* Only of version 2, and of compressed clusters in part, is there doubt. */
  if (has_zero_flag (z) && !zeroing_map (z)->format.extended_l2)
    at.v = to;
  while (at.v < to && *fast) {
    struct run run;

    r = map_lookup (zeroing_map (z), at, to - at.v, &run);
    if (r == -1)
      break;
    if (run.kind == RUN_COMPRESSED && has_zero_flag (z))
      *fast = (at.v & mask) == 0 &&
        (run.length == mask + 1 || at.v + run.length == z->w->disk->size);
    else if (!has_zero_flag (z))
      *fast = !has_below (z, at.v) &&
        (run.kind == RUN_UNALLOCATED || z->may_trim);
    at.v += run.length;
  }
  epoch_leave (z->w->disk->shared->epoch, token);
  return r;
}

/* Fail with ENOTSUP if zeros would have to be written. */
static int
check_fast (const struct zeroing *z, const struct parts *p)
{
  bool head, tail, whole;

  if (reads_as_zeros (z, p->from, p->whole_from, &head) == -1 ||
      reads_as_zeros (z, p->whole_to, p->to, &tail) == -1 ||
      granules_are_fast (z, p->whole_from, p->whole_to, &whole) == -1)
    return -1;
  if (head && tail && whole)
    return 0;
  error_set (ENOTSUP, "%s: zeros would have to be written",
             z->w->disk->tables->name);
  error_set_repeated ();
  return -1;
}

/* The cluster that these bytes are a part of may be complete now. */
static int
note_next (struct steps *s, bool *remapped)
{
  const struct guest_off at = { s->at };

  if (compress_written (s->w, at, s->end - s->at, remapped) == -1)
    return -1;
  s->at = s->end;
  return 0;
}

static int
note_part (const struct zeroing *z, uint64_t from, uint64_t to)
{
  struct steps s = { .w = z->w, .at = from, .end = to, .step = note_next };

  return steps_run (&s);
}

/* Zeros complete clusters that are compressed as data does. */
static int
note_zeros (const struct zeroing *z, uint64_t from, uint64_t to)
{
  const uint64_t cluster_size = zeroing_map (z)->cluster_size;
  const uint64_t first_end = (from & -cluster_size) + cluster_size;
  const uint64_t last = to & -cluster_size;

  if (z->w->compress_level == 0)
    return 0;
  if (to < first_end && to != z->w->disk->size)
    return note_part (z, from, to);
  if (from % cluster_size != 0 &&
      note_part (z, from, to < first_end ? to : first_end) == -1)
    return -1;
  if (to == last || to == z->w->disk->size)
    return 0;
  return note_part (z, last, to);
}

int
disk_zero_is_fast (struct writer *w, uint64_t count, struct guest_off offset,
                   unsigned flags)
{
  const struct zeroing z = {
    .w = w, .may_trim = (flags & DISK_MAY_TRIM) != 0,
  };
  const struct parts p = split (&z, offset.v, offset.v + count);

  return w->header.raw_data ? raw_zero_is_fast (w, count, offset)
    : check_fast (&z, &p);
}

int
disk_zero (struct writer *w, uint64_t count, struct guest_off offset,
           unsigned flags)
{
  const struct zeroing z = {
    .w = w, .may_trim = (flags & DISK_MAY_TRIM) != 0,
    .hides = (flags & DISK_HIDE) != 0 && w->header.version >= 3,
  };
  const struct parts p = split (&z, offset.v, offset.v + count);

  if (writeback_check (&w->writeback) == -1)
    return writer_failed (w);
  if (w->header.raw_data)
    return raw_zero (w, count, offset, flags);
  if (((flags & DISK_FAST) && check_fast (&z, &p) == -1) ||
      writer_begin (w, offset, count) == -1 ||
      zero_part (&z, p.from, p.whole_from) == -1 ||
      zero_granules (&z, p.whole_from, p.whole_to) == -1 ||
      zero_part (&z, p.whole_to, p.to) == -1 ||
      note_zeros (&z, p.from, p.to) == -1)
    return -1;
  return flags & DISK_FUA ? writer_flush (w) : 0;
}

int
disk_trim (struct writer *w, uint64_t count, struct guest_off offset,
           unsigned flags)
{
  const struct zeroing z = { .w = w, .may_trim = true, .is_trim = true };
  const struct parts p = split (&z, offset.v, offset.v + count);
  const struct guest_off whole = { p.whole_from };

  if (w->header.raw_data)
    return raw_trim (w, count, offset, flags);
  if (writer_begin (w, whole, p.whole_to - p.whole_from) == -1 ||
      zero_granules (&z, p.whole_from, p.whole_to) == -1)
    return -1;
  return flags & DISK_FUA ? writer_flush (w) : 0;
}
