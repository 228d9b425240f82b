/* SPDX-License-Identifier: BSD-3-Clause */

/* A write goes in place where nothing else refers to the host cluster.
 * Elsewhere it maps clusters anew, those of one slice of an L2 table at a
 * time, in this order:
 *
 *  1. enter the range of guest clusters, so that nobody else maps them;
 *  2. take host clusters, unless the old ones can be kept;
 *  3. write the data, and the fill: what the guest sees in the rest of the
 *     subclusters (clusters, without extended L2) that are allocated by it;
 *  4. change the L2 entries, giving up the old clusters.
 *
 * The change is ordered behind data and refcounts (I5), but where all that
 * was there before, and all that is in the host cluster without the data,
 * are zeros, durably: a crash then shows the guest zeros or its data.
 */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "disk/read.h"
#include "qcow2/write/compress.h"
#include "qcow2/write/write.h"

/* What an entry says, in one form for all kinds: a cluster without extended
 * L2 is one of a single subcluster.
 */
struct target {
  struct host_off host;     /* or HOST_NONE */
  bool keep;                /* it may be written in place */
  bool compressed;
  uint32_t compressed_size;
  uint32_t allocated, zero; /* bitmaps */
};

/* A write that maps clusters anew. */
struct step {
  struct writer *w;
  const uint8_t *buf; /* NULL: zeros */
  bool punch;
  struct guest_off start;
  uint64_t end;     /* of the guest's bytes */
  uint64_t cluster; /* the guest offset of the first cluster */
  uint64_t nr;      /* clusters */
  struct map_l2 l2;
  struct target *target; /* nr */

  struct host_off host; /* of the first cluster; contiguous */
  bool keep;            /* all targets' host clusters are kept */
  bool zero, durable;   /* see alloc_clusters; false if kept */
  bool was_zero;        /* all of the clusters read as zeros before */
};

static inline uint32_t
all_subclusters (const struct map *m)
{
  return m->format.extended_l2 ? UINT32_MAX : 1;
}

static struct target
make_target (const struct map *m, const struct l2_entry *e)
{
  struct target t = { .host = e->host };

  switch (e->kind) {
  case CLUSTER_UNALLOCATED:
    break;
  case CLUSTER_ZERO_PLAIN:
  case CLUSTER_ZERO_ALLOC:
    t.zero = all_subclusters (m);
    break;
  case CLUSTER_STANDARD:
    t.allocated = all_subclusters (m);
    break;
  case CLUSTER_SUBCLUSTERS:
    t.allocated = e->allocated;
    t.zero = e->zero;
    break;
  case CLUSTER_COMPRESSED:
    t.compressed = true;
    t.compressed_size = e->compressed_size;
    t.allocated = all_subclusters (m);
    break;
  case CLUSTER_INVALID:
    abort ();
  }
  t.keep = !host_is_none (t.host) && e->copied && !t.compressed;
  return t;
}

static inline const struct map *
map_of (const struct step *s)
{
  return &s->w->disk->map;
}

/* The subclusters of the i-th cluster that the write touches. */
static uint32_t
touched (const struct step *s, uint64_t i)
{
  const struct map *m = map_of (s);
  const uint64_t cluster = s->cluster + i * m->cluster_size;
  const uint64_t from = s->start.v > cluster ? s->start.v - cluster : 0;
  const uint64_t to = s->end - cluster < m->cluster_size
    ? s->end - cluster : m->cluster_size;
  const unsigned first = from >> m->subcluster_bits;
  const unsigned last = (to - 1) >> m->subcluster_bits;

  return (UINT32_MAX >> (31 - (last - first))) << first;
}

/* The subclusters that are allocated after it: those, and of a cluster that is
 * replaced all that were.
 */
static uint32_t
allocated_after (const struct step *s, uint64_t i)
{
  return s->target[i].allocated | touched (s, i);
}

/* ----------------------------------------------------------------- planning */

/* Decode the entries as far as they can be treated alike: the host clusters
 * of all are kept, and contiguous, or those of none.
 */
static int
decode_targets (struct step *s)
{
  const struct map *m = map_of (s);
  uint64_t i;

  for (i = 0; i < s->nr; ++i) {
    struct target *t = &s->target[i];
    struct l2_entry e;

    if (map_l2_decode (m, &s->l2, i, &e) == -1) {
      if (i == 0)
        return -1;
      break; /* the next step will meet it */
    }
    *t = make_target (m, &e);
    if (i > 0 && (t->keep != s->target[0].keep ||
                  (t->keep && t->host.v != s->target[0].host.v +
                   i * m->cluster_size)))
      break;
  }
  s->nr = i;
  s->keep = s->target[0].keep;
  return 0;
}

/* Whether there is nothing to do but to write in place: another request has
 * mapped it meanwhile.
 */
static bool
is_mapped (const struct step *s)
{
  return s->keep && (touched (s, 0) & ~s->target[0].allocated) == 0;
}

/* Whether the clusters read as zeros now. */
static int
look_for_zeros (struct step *s)
{
  const struct layer *disk = s->w->disk;
  struct guest_off at = { s->cluster };
  uint64_t end = s->cluster + s->nr * map_of (s)->cluster_size;

  if (end > disk->size)
    end = disk->size;
  while (at.v < end) {
    const struct layer *owner;
    struct run run;

    if (layer_lookup (disk, at, end - at.v, &run, &owner) == -1)
      return -1;
    if (run.kind != RUN_ZERO_PLAIN && run.kind != RUN_ZERO_ALLOC)
      return 0;
    at.v += run.length;
  }
  s->was_zero = true;
  return 0;
}

/* Whose neighbours host clusters should be.  Most of what is written is stored
 * elsewhere while clusters are compressed: what is set apart would be left over.
 */
static inline uint64_t
neighbours (const struct step *s)
{
  return s->w->compress_level != 0 ? ALLOC_NO_GUEST
    : s->cluster >> map_of (s)->format.cluster_bits;
}

/* Where the host clusters are: sets host, zero, durable; and fewer clusters
 * if there are not so many in a row.
 */
static int
choose_host (struct step *s)
{
  const struct map *m = map_of (s);
  struct alloc_clusters c;

  if (s->keep)
    s->host = s->target[0].host;
  else {
    if (writer_take (s->w, neighbours (s), s->nr, &c) == -1)
      return -1;
    s->host = c.host;
    s->nr = c.nr;
    s->zero = c.zero && storage_holes_read_zero (s->w->disk->data);
    s->durable = c.durable;
  }
  if (s->end > s->cluster + s->nr * m->cluster_size)
    s->end = s->cluster + s->nr * m->cluster_size;
  return 0;
}

/* --------------------------------------------------------------------- data */

static inline struct host_off
host_of (const struct step *s, uint64_t guest)
{
  return (struct host_off) { s->host.v + (guest - s->cluster) };
}

/* What the guest sees in this range now; zeros past the disk's end. */
static int
read_fill (const struct step *s, uint8_t *buf, uint64_t from, uint64_t to)
{
  const struct layer *disk = s->w->disk;
  const struct guest_off at = { from };
  uint64_t count = to - from, inside = 0;

  if (from < disk->size)
    inside = to < disk->size ? count : disk->size - from;
  memset (buf + inside, 0, count - inside);
  return inside == 0 ? 0 : layer_read (disk, buf, inside, at);
}

/* Where the fill before the data starts, and that behind it ends. */
struct fill {
  uint64_t from, to;
};

static struct fill
plan_fill (const struct step *s)
{
  const struct map *m = map_of (s);
  const uint64_t size = UINT64_C (1) << m->subcluster_bits;
  const uint64_t last = s->nr - 1;
  const uint64_t first_bit =
    (s->start.v - s->cluster) >> m->subcluster_bits;
  const uint64_t last_bit =
    (s->end - 1 - s->cluster - last * m->cluster_size) >> m->subcluster_bits;
  struct fill f = { s->start.v, s->end };

  if (s->zero && s->was_zero) /* the host cluster holds that already */
    return f;
  if (!s->keep || !(s->target[0].allocated >> first_bit & 1))
    f.from = s->start.v & -size;
  if (!s->keep || !(s->target[last].allocated >> last_bit & 1))
    f.to = (s->end + size - 1) & -size;
  return f;
}

/* Write data without a buffer: zeros. */
static int
write_zeros (struct step *s)
{
  if (s->zero)
    return 0;
  return storage_zero (s->w->disk->data, host_of (s, s->start.v),
                       s->end - s->start.v, s->punch);
}

/* Data of up to this is read as well, with the fills around it, and then
 * replaced in memory: copying it costs less than a second system call.
 */
#define READ_OVER 32768

/* Read the fills into a buffer for everything from f->from to f->to. */
static int
read_fills (const struct step *s, const struct fill *f, uint8_t *buf)
{
  const uint64_t head = s->start.v - f->from, count = s->end - s->start.v;

  /* What is replaced need not be readable: then try without it. */
  if (head > 0 && f->to > s->end && count <= READ_OVER &&
      read_fill (s, buf, f->from, f->to) == 0)
    return 0;
  if (read_fill (s, buf, f->from, s->start.v) == -1)
    return -1;
  return read_fill (s, buf + head + count, s->end, f->to);
}

/* Write the data, in the middle, and its fills: in one go. */
static int
write_filled (struct step *s, const struct fill *f)
{
  struct storage *storage = s->w->disk->data;
  const uint64_t head = s->start.v - f->from, count = s->end - s->start.v;
  uint8_t *buf = malloc (f->to - f->from);
  struct iovec iov[3];
  int r = -1;

  if (buf == NULL) {
    error_set (ENOMEM, "%s: out of memory", storage->name);
    return -1;
  }
  if (read_fills (s, f, buf) == 0) {
    iov[0] = (struct iovec) { buf, head };
    iov[1] = (struct iovec) { (void *) s->buf, count };
    iov[2] = (struct iovec) { buf + head + count, f->to - s->end };
    if (s->buf == NULL) { /* zeros: at most what the clusters have room for */
      memset (buf + head, 0, count);
      iov[1].iov_base = buf + head;
    }
    r = storage_writev (storage, iov, 3, host_of (s, f->from), false);
  }
  free (buf);
  return r;
}

static int
write_data (struct step *s)
{
  const struct fill f = plan_fill (s);

  if (f.from != s->start.v || f.to != s->end)
    return write_filled (s, &f);
  if (s->buf == NULL)
    return write_zeros (s);
  return storage_write (s->w->disk->data, s->buf, s->end - s->start.v,
                        host_of (s, s->start.v));
}

/* Copy subclusters of the i-th cluster that the write does not touch, from
 * the old host cluster to the new one.
 */
static int
carry_subclusters (struct step *s, uint64_t i)
{
  const struct map *m = map_of (s);
  const uint64_t cluster = s->cluster + i * m->cluster_size;
  uint32_t left = s->target[i].allocated & ~touched (s, i);
  uint8_t *buf;
  int r = 0;

  if (left == 0)
    return 0;
  buf = malloc (m->cluster_size);
  if (buf == NULL) {
    error_set (ENOMEM, "%s: out of memory", s->w->disk->data->name);
    return -1;
  }
  while (left != 0 && r == 0) {
    const unsigned first = __builtin_ctz (left);
    unsigned end = first;
    uint64_t from, to;

    for (; end < QCOW2_SUBCLUSTERS && left >> end & 1; ++end)
      left &= ~(UINT32_C (1) << end);
    from = cluster + ((uint64_t) first << m->subcluster_bits);
    to = cluster + ((uint64_t) end << m->subcluster_bits);
    r = read_fill (s, buf, from, to);
    if (r == 0)
      r = storage_write (s->w->disk->data, buf, to - from, host_of (s, from));
  }
  free (buf);
  return r;
}

/* Only the first and the last cluster can be written in part. */
static int
carry (struct step *s)
{
  if (s->keep || (s->zero && s->was_zero))
    return 0;
  if (carry_subclusters (s, 0) == -1)
    return -1;
  return s->nr > 1 ? carry_subclusters (s, s->nr - 1) : 0;
}

/* ------------------------------------------------------------------ mapping */

/* What a target's entry refers to, to be given up. */
static struct freed
freed_of (const struct step *s, const struct target *t)
{
  const struct map *m = map_of (s);

  /* What only this disk has is kept, if it is not compressed. */
  return t->compressed
    ? writer_references (m, t->host, t->compressed_size, false)
    : writer_references (m, t->host, m->cluster_size, true);
}

static void
encode_entry (const struct step *s, uint64_t i, uint64_t *words)
{
  const struct map *m = map_of (s);
  const struct host_off host = { s->host.v + i * m->cluster_size };
  const uint32_t allocated = allocated_after (s, i);
  uint64_t both[2];

  entry_encode_l2 (&m->format, host, true, allocated,
                   s->target[i].zero & ~allocated, both);
  memcpy (words, both, sizeof *words << m->l2_word_bits);
}

/* I5.  Clusters that are zeros and were zeros need no order, if that is
 * durable; nor do zeros written by mapping such clusters.
 */
static bool
needs_order (const struct step *s)
{
  const uint64_t bytes = s->nr * map_of (s)->cluster_size;

  if (!s->zero || !s->durable)
    return true;
  return !s->was_zero &&
    (s->buf != NULL || s->end - s->start.v < bytes);
}

static int
link_clusters (struct step *s)
{
  const struct map *m = map_of (s);
  struct freed freed[MAP_MAX_WORDS];
  uint64_t words[MAP_MAX_WORDS];
  struct change ch = {
    .slice = s->l2.slice,
    .first = s->l2.first_word,
    .nr = s->nr << m->l2_word_bits,
    .words = words,
    .order = CACHE_SECOND,
    .ordered = needs_order (s),
    .freed = freed,
  };
  uint64_t i;

  for (i = 0; i < s->nr; ++i) {
    encode_entry (s, i, words + (i << m->l2_word_bits));
    if (!s->keep && !host_is_none (s->target[i].host))
      freed[ch.nr_freed++] = freed_of (s, &s->target[i]);
  }
  if (writer_check_freed (s->w, freed, ch.nr_freed) == -1)
    return -1;
  return writeback_change (&s->w->writeback, &ch, NULL);
}

/* Write, then map. */
static int
write_and_link (struct step *s)
{
  if (writer_check_overlap (s->w, s->host,
                            s->nr * map_of (s)->cluster_size) == -1 ||
      look_for_zeros (s) == -1 || carry (s) == -1 || write_data (s) == -1)
    return -1;
  writeback_note_data (&s->w->writeback);
  return link_clusters (s);
}

/* The range is entered.  *done: the bytes written, 0 if they are mapped and
 * can be written in place.
 */
static int
run_step (struct step *s, uint64_t *done)
{
  const struct map *m = map_of (s);
  const struct guest_off cluster = { s->cluster };
  struct target target[MAP_MAX_WORDS];
  struct host_off table;

  *done = 0;
  s->target = target;
  if (writer_table (s->w, s->start, &table) == -1 ||
      map_l2_entries (m, table, cluster, s->nr, &s->l2) == -1 ||
      decode_targets (s) == -1)
    return -1;
  if (is_mapped (s))
    return 0;
  if (choose_host (s) == -1)
    return -1;
  if (write_and_link (s) == -1) {
    if (!s->keep)
      alloc_give_back (&s->w->alloc, s->host, s->nr);
    return -1;
  }
  *done = s->end - s->start.v;
  return 0;
}

static int
map_anew (struct writer *w, const uint8_t *buf, uint64_t count,
          struct guest_off offset, bool punch, uint64_t *done)
{
  const struct map *m = &w->disk->map;
  const unsigned cluster_bits = m->format.cluster_bits;
  const uint64_t slice_end = map_slice_end (m, offset);
  const uint64_t step_end = (offset.v + WRITER_MAX_STEP) & -m->cluster_size;
  struct step s = {
    .w = w, .buf = buf, .punch = punch, .start = offset,
    .end = offset.v + count,
  };
  struct inflight_range range;
  int r;

  if (s.end > slice_end)
    s.end = slice_end;
  if (s.end > step_end)
    s.end = step_end;
  range.first = offset.v >> cluster_bits;
  range.last = (s.end - 1) >> cluster_bits;
  s.cluster = range.first << cluster_bits;
  s.nr = range.last - range.first + 1;
  inflight_enter (&w->inflight, &range);
  r = run_step (&s, done);
  inflight_leave (&w->inflight, &range);
  return r;
}

/* ------------------------------------------------------------------ writing */

/* A durable write in place.  It is a flush, too, so that its failure sticks;
 * but for the lack of space, if that is met by the mere write as well.
 */
static int
write_durably (struct writer *w, const struct run *run, const uint8_t *buf)
{
  struct storage *storage = w->disk->data;
  struct iovec iov = { (void *) buf, run->length };

  if (storage_writev (storage, &iov, 1, run->host, true) == 0)
    return 0;
  if (error_errno () != ENOSPC ||
      storage_write (storage, buf, run->length, run->host) == 0)
    writeback_fail (&w->writeback);
  return -1;
}

static int
write_in_place (struct writer *w, const uint8_t *buf, const struct run *run,
                bool punch, bool durable)
{
  struct storage *storage = w->disk->data;

  if (writer_check_overlap (w, run->host, run->length) == -1)
    return -1;
  if (buf != NULL && durable)
    return write_durably (w, run, buf);
  if (buf == NULL) {
    if (storage_zero (storage, run->host, run->length, punch) == -1)
      return -1;
  }
  else if (storage_write (storage, buf, run->length, run->host) == -1)
    return -1;
  writeback_note_data (&w->writeback);
  return 0;
}

static inline bool
is_in_place (const struct run *run)
{
  return run->kind == RUN_DATA && run->in_place;
}

/* The same while others may compress what is there (qcow2/write/compress.h): by turns with
 * them.  *done is 0 if one has done so before.
 */
static int
write_in_turn (struct writer *w, const uint8_t *buf, struct run *run,
               struct guest_off offset, bool punch, bool durable,
               uint64_t *done)
{
  const unsigned cluster_bits = w->disk->map.format.cluster_bits;
  struct inflight_range range = {
    .first = offset.v >> cluster_bits,
    .last = (offset.v + run->length - 1) >> cluster_bits,
  };
  int r;

  *done = 0;
  inflight_enter (&w->inflight, &range);
  r = map_lookup (&w->disk->map, offset, run->length, run);
  if (r == 0 && is_in_place (run)) {
    r = write_in_place (w, buf, run, punch, durable);
    *done = run->length;
  }
  inflight_leave (&w->inflight, &range);
  return r;
}

/* Write some of it: *done bytes.  *mapped: in place, and nothing else is to
 * be flushed for these to be durable.
 */
static int
write_some (struct writer *w, const uint8_t *buf, uint64_t count,
            struct guest_off offset, bool punch, bool fua,
            uint64_t *done, bool *in_place)
{
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  struct run run;
  int r;

  *in_place = false;
  r = map_lookup (&w->disk->map, offset, count, &run);
  if (r == 0 && run.kind == RUN_DAMAGED) {
    if (!damage_is_new (w->disk->damage, run.host.v))
      error_set_repeated ();
    r = -1;
  }
  if (r == 0 && is_in_place (&run)) {
    *in_place = true;
    *done = run.length;
    r = w->compress_level == 0
      ? write_in_place (w, buf, &run, punch, fua)
      : write_in_turn (w, buf, &run, offset, punch, fua, done);
  }
  else if (r == 0)
    r = map_anew (w, buf, count, offset, punch, done);
  epoch_leave (w->disk->shared->epoch, token);
  return r;
}

/* The same while clusters are compressed: one cluster at most. */
static int
write_some_compressed (struct writer *w, const uint8_t *buf, uint64_t count,
                       struct guest_off offset, bool fua, uint64_t *done,
                       bool *in_place)
{
  const uint64_t cluster_size = w->disk->map.cluster_size;
  const uint64_t left = cluster_size - (offset.v & (cluster_size - 1));
  const uint64_t n = count < left ? count : left;
  const bool whole = (offset.v & (cluster_size - 1)) == 0 &&
    (n == cluster_size || offset.v + n == w->disk->size);
  bool stored = false;

  *done = n;
  *in_place = false;
  if (whole && compress_cluster (w, buf, offset, &stored) == -1)
    return -1;
  if (stored)
    return 0;
  if (write_some (w, buf, n, offset, false, fua, done, in_place) == -1)
    return -1;
  if (whole)
    return 0;
  if (compress_written (w, offset, *done, &stored) == -1)
    return -1;
  *in_place &= !stored;
  return 0;
}

int
disk_write (struct writer *w, const void *buf, uint64_t count,
            struct guest_off offset, bool punch, bool fua)
{
  const uint8_t *p = buf;
  bool all_in_place = true, in_place;
  unsigned tries = 0;
  uint64_t done;

  if (writer_begin (w) == -1)
    return -1;
  while (count > 0) {
    const int r = w->compress_level != 0 && buf != NULL
      ? write_some_compressed (w, p, count, offset, fua, &done, &in_place)
      : write_some (w, p, count, offset, punch, fua, &done, &in_place);

    if (r == -1) {
      if (writer_can_retry (w, &tries))
        continue;
      return -1;
    }
    if (!in_place) {
      all_in_place = false;
      if (writer_relieve (w) == -1)
        return -1;
    }
    if (p != NULL)
      p += done;
    offset.v += done;
    count -= done;
  }
  /* In place, data is durable already; so is its mapping, if all are. */
  if (!fua || (buf != NULL && all_in_place && writeback_is_clean (&w->writeback)))
    return 0;
  return writer_flush (w);
}
