/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/write/compress.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"

/* A request.  Granules are what can be marked as zeros: clusters or
 * subclusters; the disk's end also ends one.
 */
struct zeroing {
  struct writer *w;
  bool may_trim;
  bool is_trim; /* advice: what would have to be written stays as it is */
};

static inline const struct map *
map_of (const struct zeroing *z)
{
  return &z->w->disk->map;
}

static inline uint64_t
granule (const struct zeroing *z)
{
  return UINT64_C (1) << map_of (z)->subcluster_bits;
}

/* Whether entries can say that something reads as zeros. */
static inline bool
has_zero_flag (const struct zeroing *z)
{
  return map_of (z)->format.version >= 3;
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
write_zeros (const struct zeroing *z, uint64_t from, uint64_t to)
{
  const struct guest_off at = { from };

  return disk_write (z->w, NULL, to - from, at, may_punch (z), false);
}

/* ---------------------------------------------------------------- clusters */

/* Some whole granules, within one slice of an L2 table. */
struct step {
  const struct zeroing *z;
  uint64_t from, to; /* guest */
  uint64_t cluster;  /* the guest offset of the first cluster */
  uint64_t nr;       /* clusters */
  struct map_l2 l2;
  struct freed freed[MAP_MAX_WORDS];
  unsigned nr_freed;
  uint64_t bytes_freed;
};

/* The subclusters of the i-th cluster that are in the range, which goes on
 * past the disk's end.
 */
static uint32_t
subclusters_of (const struct step *s, uint64_t i)
{
  const struct map *m = map_of (s->z);
  const uint64_t cluster = s->cluster + i * m->cluster_size;
  const uint64_t from = s->from > cluster ? s->from - cluster : 0;
  const bool whole = s->to == s->z->w->disk->size ||
    s->to - cluster > m->cluster_size;
  const uint64_t to = whole ? m->cluster_size : s->to - cluster;
  const unsigned first = from >> m->subcluster_bits;
  const unsigned last = (to - 1) >> m->subcluster_bits;

  return (UINT32_MAX >> (31 - (last - first))) << first;
}

static void
give_up (struct step *s, const struct l2_entry *e)
{
  const struct map *m = map_of (s->z);
  const struct freed f = e->kind == CLUSTER_COMPRESSED
    ? writer_references (m, e->host, e->compressed_size, false)
    : writer_references (m, e->host, m->cluster_size, !e->copied);

  s->freed[s->nr_freed++] = f;
  s->bytes_freed += f.bytes;
}

/* What the i-th entry becomes where entries have a zero flag.  False if it
 * takes zeros that are written: part of a compressed cluster.
 */
static bool
zero_entry_v3 (struct step *s, uint64_t i, const struct l2_entry *e,
               uint64_t words[2])
{
  const struct map *m = map_of (s->z);
  const uint32_t all = m->format.extended_l2 ? UINT32_MAX : 1;
  const uint32_t range = subclusters_of (s, i);
  const bool below = has_below (s->z, s->cluster + i * m->cluster_size);
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
    give_up (s, e);
    host = HOST_NONE;
    allocated = all;
    break;
  case CLUSTER_INVALID:
    abort ();
  }
  /* What nothing lies below reads as zeros if it is unallocated. */
  zero |= below ? range : range & allocated;
  allocated &= ~range;
  if (!host_is_none (host) && allocated == 0 && (s->z->may_trim || !e->copied)) {
    give_up (s, e);
    host = HOST_NONE;
  }
  entry_encode_l2 (&m->format, host, e->copied, allocated, zero, words);
  return true;
}

/* The same in version 2: unmapped, if that reads as zeros. */
static bool
zero_entry_v2 (struct step *s, uint64_t i, const struct l2_entry *e,
               uint64_t words[2])
{
  const struct map *m = map_of (s->z);

  if (has_below (s->z, s->cluster + i * m->cluster_size) || !s->z->may_trim)
    return false;
  if (!host_is_none (e->host))
    give_up (s, e);
  words[0] = words[1] = 0;
  return true;
}

/* The range is entered.  *done: the guest's end of what was zeroed; where it
 * started if the first cluster takes zeros that are written.
 */
static int
run_step (struct step *s, uint64_t *done)
{
  const struct map *m = map_of (s->z);
  const struct guest_off cluster = { s->cluster };
  struct change ch = { .order = CACHE_SECOND, .freed = s->freed };
  struct host_off table;
  struct l2_entry e;
  uint64_t both[2], i;

  if (writer_table (s->z->w, cluster, &table) == -1 ||
      map_l2_entries (m, table, cluster, s->nr, &s->l2) == -1)
    return -1;
  for (i = 0; i < s->nr && s->bytes_freed < WRITER_MAX_STEP; ++i) {
    if (map_l2_decode (m, &s->l2, i, &e) == -1)
      return -1;
    if (!(has_zero_flag (s->z) ? zero_entry_v3 : zero_entry_v2) (s, i, &e,
                                                                both))
      break;
    memcpy (&s->l2.words[i << m->l2_word_bits], both,
            sizeof both[0] << m->l2_word_bits);
  }
  *done = s->from;
  if (i == 0)
    return 0;
  ch.slice = s->l2.slice;
  ch.first = s->l2.first_word;
  ch.nr = i << m->l2_word_bits;
  ch.words = s->l2.words;
  ch.nr_freed = s->nr_freed;
  if (writer_check_freed (s->z->w, s->freed, s->nr_freed) == -1 ||
      writeback_change (&s->z->w->writeback, &ch, NULL) == -1)
    return -1;
  *done = s->cluster + i * m->cluster_size;
  if (*done > s->to)
    *done = s->to;
  return 0;
}

static int
map_as_zeros (const struct zeroing *z, uint64_t from, uint64_t to,
              uint64_t *done)
{
  struct writer *w = z->w;
  const unsigned cluster_bits = map_of (z)->format.cluster_bits;
  const uint64_t slice_end =
    map_slice_end (map_of (z), (struct guest_off) { from });
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  struct inflight_range range;
  struct step s = { .z = z, .from = from, .to = to };
  int r;

  if (s.to > slice_end)
    s.to = slice_end;
  range.first = from >> cluster_bits;
  range.last = (s.to - 1) >> cluster_bits;
  s.cluster = range.first << cluster_bits;
  s.nr = range.last - range.first + 1;
  inflight_enter (&w->inflight, &range);
  r = run_step (&s, done);
  inflight_leave (&w->inflight, &range);
  epoch_leave (w->disk->shared->epoch, token);
  return r;
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

  r = map_lookup (map_of (z), at, to - from, &run);
  epoch_leave (z->w->disk->shared->epoch, token);
  if (r == -1 || run.kind == RUN_DAMAGED)
    return -1;
  *length = 0;
  if (run.kind == RUN_ZERO_PLAIN ||
      (run.kind == RUN_ZERO_ALLOC && !z->may_trim) ||
      (run.kind == RUN_UNALLOCATED && !has_below (z, from)))
    *length = run.length;
  return 0;
}

/* The cluster at from can't be mapped as zeros. */
static int
zero_by_writing (const struct zeroing *z, uint64_t from, uint64_t to,
                 uint64_t *done)
{
  const uint64_t cluster_size = map_of (z)->cluster_size;
  const uint64_t end = (from & -cluster_size) + cluster_size;

  *done = end < to ? end : to;
  return z->is_trim ? 0 : write_zeros (z, from, *done);
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
  return ((z->w->disk->backing->size - 1) | (map_of (z)->cluster_size - 1)) +
    1 - from;
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
static int
zero_granules (const struct zeroing *z, uint64_t from, uint64_t to)
{
  unsigned tries = 0;
  uint64_t done;

  while (from < to) {
    if (zero_some (z, from, to, &done) == -1) {
      if (writer_can_retry (z->w, &tries))
        continue;
      if (!z->is_trim || error_errno () != ENOSPC)
        return -1;
      /* A table that would be needed finds no room: then not here. */
      done = map_slice_end (map_of (z), (struct guest_off) { from });
    }
    if (writer_relieve (z->w) == -1)
      return -1;
    from = done;
  }
  return 0;
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
  while (at.v < to && r == 0 && *yes) {
    const struct layer *owner;
    struct run run;

    r = layer_lookup (z->w->disk, at, to - at.v, &run, &owner);
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
  return zero ? 0 : write_zeros (z, from, to);
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
  const uint64_t mask = map_of (z)->cluster_size - 1;
  const unsigned token = epoch_enter (z->w->disk->shared->epoch);
  struct guest_off at = { from };
  int r = 0;

  *fast = true;
  /* Only of version 2, and of compressed clusters in part, is there doubt. */
  if (has_zero_flag (z) && !map_of (z)->format.extended_l2)
    at.v = to;
  while (at.v < to && r == 0 && *fast) {
    struct run run;

    r = map_lookup (map_of (z), at, to - at.v, &run);
    if (r == 0 && run.kind == RUN_COMPRESSED && has_zero_flag (z))
      *fast = (at.v & mask) == 0 &&
        (run.length == mask + 1 || at.v + run.length == z->w->disk->size);
    else if (r == 0 && !has_zero_flag (z))
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

/* The cluster at from, of which this is a part, may be complete now. */
static int
note_part (const struct zeroing *z, uint64_t from, uint64_t to)
{
  const struct guest_off at = { from };
  bool stored;

  if (compress_written (z->w, at, to - from, &stored) == -1)
    return -1;
  return stored ? writer_relieve (z->w) : 0;
}

/* Zeros complete clusters that are compressed as data does. */
static int
note_zeros (const struct zeroing *z, uint64_t from, uint64_t to)
{
  const uint64_t cluster_size = map_of (z)->cluster_size;
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
disk_zero (struct writer *w, uint64_t count, struct guest_off offset,
           bool may_trim, bool fast, bool fua)
{
  const struct zeroing z = { .w = w, .may_trim = may_trim };
  const struct parts p = split (&z, offset.v, offset.v + count);

  if (writeback_check (&w->writeback) == -1 ||
      (fast && check_fast (&z, &p) == -1) || writer_begin (w) == -1 ||
      zero_part (&z, p.from, p.whole_from) == -1 ||
      zero_granules (&z, p.whole_from, p.whole_to) == -1 ||
      zero_part (&z, p.whole_to, p.to) == -1 ||
      note_zeros (&z, p.from, p.to) == -1)
    return -1;
  return fua ? writer_flush (w) : 0;
}

int
disk_trim (struct writer *w, uint64_t count, struct guest_off offset,
           bool fua)
{
  const struct zeroing z = { .w = w, .may_trim = true, .is_trim = true };
  const struct parts p = split (&z, offset.v, offset.v + count);

  if (writer_begin (w) == -1 ||
      zero_granules (&z, p.whole_from, p.whole_to) == -1)
    return -1;
  return fua ? writer_flush (w) : 0;
}
