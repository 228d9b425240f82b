/* SPDX-License-Identifier: BSD-3-Clause */

/* A write goes in place where there is one.  Elsewhere clusters get entries in
 * steps, each within a slice of an L2 table and a range of inflight:
 *
 *  1. take clusters at the end of the file;
 *  2. write the data, and what the guest sees in the rest of the first and the
 *     last cluster, unless that is zeros there already;
 *  3. change the entries.
 *
 * If that fails the guest sees what it saw before.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "disk/read.h"
#include "qed/write.h"
#include "storage/durable.h"

/* The most bytes of a step, but for a single cluster. */
#define MAX_STEP (UINT64_C (16) << 20)

/* What is copied around data is read as a whole up to this size, and by pieces
 * of it beyond that (I11): clusters may be of 64 MiB.
 */
#define COPY_BYTES (UINT64_C (256) << 10)

/* Trims are rounded to this, which the blocks of file systems are. */
#define TRIM_ALIGN UINT64_C (4096)

/* Zeros of fewer bytes are written: see storage_zero. */
#define FAST_BYTES 32768

struct qed_step {
  struct qed_writer *w;
  struct guest_off start; /* of the bytes that change */
  uint64_t end;
  uint64_t cluster;       /* the guest offset of the first cluster */
  uint64_t nr;            /* clusters */
  enum run_kind kind;     /* of all of them now */
  struct host_off host;
  struct inflight_range range;
};

static inline uint64_t
cluster_size (const struct qed_writer *w)
{
  return w->header->cluster_size;
}

static inline uint64_t
disk_end (const struct qed_writer *w, uint64_t offset)
{
  return offset < w->disk->size ? offset : w->disk->size;
}

static int
damage (const struct qed_writer *w, const struct run *run)
{
  return layer_damaged (w->disk, run->host);
}

/* Whether the guest sees zeros from offset on, and in *length for how long that
 * is so, or not: up to max.  The chain is looked at, which needs the epoch.
 */
static int
reads_zero (const struct qed_writer *w, uint64_t offset, uint64_t max,
            bool *zero, uint64_t *length)
{
  struct epoch *epoch = w->disk->shared->epoch;
  const unsigned token = epoch_enter (epoch);
  const struct layer *owner;
  struct run run;
  const int r = layer_lookup (w->disk, (struct guest_off) { offset }, max,
                              &run, &owner);

  epoch_leave (epoch, token);
  if (r == -1)
    return -1;
  *zero = run.kind == RUN_ZERO_PLAIN || run.kind == RUN_ZERO_ALLOC;
  *length = run.length;
  return 0;
}

/* Whether all of it is zeros. */
static int
is_all_zero (const struct qed_writer *w, uint64_t from, uint64_t to,
             bool *zero)
{
  uint64_t length;

  *zero = true;
  for (to = disk_end (w, to); *zero && from < to; from += length)
    if (reads_zero (w, from, to - from, zero, &length) == -1)
      return -1;
  return 0;
}

/* ------------------------------------------------------------------- steps */

/* Begin a step for these bytes, as far as it can go: from clusters that are
 * all unallocated, or all zeros.  False: there are none any more, since another
 * request has mapped them, or the error is set and *r is -1.  The range is
 * entered only if it returns true.
 */
static bool
begin_step (struct qed_step *s, struct qed_writer *w, struct guest_off start,
            uint64_t end, int *r)
{
  const uint64_t size = cluster_size (w);
  const uint64_t max = MAX_STEP > size ? MAX_STEP / size : 1;
  const uint64_t left =
    QED_SLICE_ENTRIES - qed_l2_index (w->header, start) % QED_SLICE_ENTRIES;
  struct run run;

  s->w = w;
  s->start = start;
  s->cluster = start.v & -size;
  s->nr = (end - s->cluster + size - 1) / size;
  s->nr = s->nr < max ? s->nr : max;
  s->nr = s->nr < left ? s->nr : left;
  s->range = (struct inflight_range) {
    .first = s->cluster / size, .last = s->cluster / size + s->nr - 1,
  };
  inflight_enter (&w->inflight, &s->range);
  *r = qed_map_lookup (w->map, (struct guest_off) { s->cluster },
                       disk_end (w, s->cluster + s->nr * size) - s->cluster,
                       &run);
  s->kind = run.kind;
  if (*r == 0 && run.kind == RUN_DAMAGED)
    *r = damage (w, &run);
  if (*r == -1 || run.kind == RUN_DATA) {
    inflight_leave (&w->inflight, &s->range);
    return false;
  }
  s->nr = (run.length + size - 1) / size;
  s->end = s->cluster + s->nr * size;
  s->end = end < s->end ? end : s->end;
  return true;
}

static void
end_step (struct qed_step *s)
{
  inflight_leave (&s->w->inflight, &s->range);
}

/* -------------------------------------------------------------------- data */

static struct host_off
host_at (const struct qed_step *s, uint64_t guest)
{
  return (struct host_off) { s->host.v + (guest - s->cluster) };
}

/* What the guest sees in this range now; zeros past the disk's end. */
static int
read_around (const struct qed_step *s, uint8_t *buf, uint64_t from, uint64_t to)
{
  const uint64_t end = disk_end (s->w, to);
  const uint64_t inside = from < end ? end - from : 0;

  memset (buf + inside, 0, to - from - inside);
  return inside == 0 ? 0
    : layer_read (s->w->disk, buf, inside, (struct guest_off) { from });
}

static void *
get_buffer (const struct qed_step *s, uint64_t bytes)
{
  void *p = malloc (bytes);

  if (p == NULL)
    error_set (ENOMEM, "%s: out of memory", s->w->storage->name);
  return p;
}

/* Copy a range to its new place, piece by piece. */
static int
copy_range (const struct qed_step *s, uint64_t from, uint64_t to)
{
  uint8_t *buf;
  uint64_t n;
  int r = 0;

  if (from == to)
    return 0;
  buf = get_buffer (s, COPY_BYTES);
  if (buf == NULL)
    return -1;
  for (; r == 0 && from < to; from += n) {
    n = to - from < COPY_BYTES ? to - from : COPY_BYTES;
    r = read_around (s, buf, from, from + n);
    if (r == 0)
      r = storage_write (s->w->storage, buf, n, host_at (s, from));
  }
  free (buf);
  return r;
}

/* Data with little around it: in one go. */
static int
write_together (const struct qed_step *s, const void *data, uint64_t from,
                uint64_t to)
{
  const uint64_t head = s->start.v - from, count = s->end - s->start.v;
  uint8_t *buf = get_buffer (s, head + (to - s->end) + 1);
  struct iovec iov[3] = {
    { buf, head }, { (void *) data, count }, { buf + head, to - s->end },
  };
  int r = -1;

  if (buf == NULL)
    return -1;
  if (read_around (s, buf, from, s->start.v) == 0 &&
      read_around (s, buf + head, s->end, to) == 0)
    r = storage_writev (s->w->storage, iov, 3, host_at (s, from), false);
  free (buf);
  return r;
}

/* data NULL: zeros.  clean: what is around it is there already. */
static int
write_step_data (const struct qed_step *s, const void *data, bool clean)
{
  const uint64_t from = clean ? s->start.v : s->cluster;
  const uint64_t to = clean ? s->end
    : s->cluster + s->nr * cluster_size (s->w);
  const uint64_t around = (s->start.v - from) + (to - s->end);

  if (data != NULL && around == 0)
    return storage_write (s->w->storage, data, s->end - s->start.v,
                          host_at (s, s->start.v));
  if (data != NULL && around <= COPY_BYTES)
    return write_together (s, data, from, to);
  if (copy_range (s, from, s->start.v) == -1 ||
      copy_range (s, s->end, to) == -1)
    return -1;
  return data != NULL
    ? storage_write (s->w->storage, data, s->end - s->start.v,
                     host_at (s, s->start.v))
    : storage_zero (s->w->storage, host_at (s, s->start.v),
                    s->end - s->start.v, false);
}

/* Take clusters: as many as there are, and the step gets shorter. */
static int
take_clusters (struct qed_step *s, struct qed_clusters *c, bool *zero)
{
  const uint64_t size = cluster_size (s->w);

  c->nr = s->nr;
  if (qed_writer_take (s->w, false, c, zero) == -1)
    return -1;
  s->host = c->host;
  s->nr = c->nr;
  if (s->end > s->cluster + s->nr * size)
    s->end = s->cluster + s->nr * size;
  return 0;
}

/* Write data, or zeros, to clusters without a place, and give them one. */
static int
map_clusters (struct qed_step *s, const void *data)
{
  struct qed_writer *w = s->w;
  const struct guest_off at = { s->cluster };
  struct qed_clusters c;
  struct host_off table;
  bool zero, was_zero = true;

  if (qed_writer_table (w, at, true, &table) == -1 ||
      take_clusters (s, &c, &zero) == -1)
    return -1;
  if ((s->kind == RUN_UNALLOCATED &&
       is_all_zero (w, s->cluster, s->cluster + s->nr * cluster_size (w),
                    &was_zero) == -1) ||
      write_step_data (s, data, zero && was_zero) == -1 ||
      qed_writer_set (w, table, qed_l2_index (w->header, at), s->nr,
                      s->host.v, !(zero && was_zero)) == -1) {
    qed_writer_give_back (w, &c);
    return -1;
  }
  return 0;
}

/* ----------------------------------------------------------------- writing */

/* One step: *done bytes were written, which may be 0. */
static int
write_elsewhere (struct qed_writer *w, const void *data,
                 struct guest_off start, uint64_t end, uint64_t *done)
{
  struct qed_step s;
  int r = 0;

  *done = 0;
  if (!begin_step (&s, w, start, end, &r))
    return r;
  r = map_clusters (&s, data);
  end_step (&s);
  *done = s.end - start.v;
  return r;
}

/* Write durably: its failure sticks, like a flush's, since it may stand for
 * data of other requests; but for a mere lack of space.
 */
static int
write_durably (struct qed_writer *w, const void *data, const struct run *run)
{
  bool sticks;

  if (storage_write_durably (w->storage, data, run->length, run->host,
                             &sticks) == 0)
    return 0;
  if (sticks)
    qed_writer_fail (w);
  return -1;
}

int
qed_disk_write (struct qed_writer *w, const void *buf, uint64_t count,
                struct guest_off offset, unsigned flags)
{
  const uint64_t end = offset.v + count;
  const uint8_t *p = buf;
  uint64_t done;

  if (qed_writer_begin (w) == -1)
    return -1;
  for (; offset.v < end; offset.v += done, p += done) {
    struct run run;
    int r;

    if (qed_map_lookup (w->map, offset, end - offset.v, &run) == -1)
      return -1;
    if (run.kind == RUN_DAMAGED)
      return damage (w, &run);
    done = run.length;
    if (run.kind == RUN_DATA) {
      const bool all = (flags & QED_FUA) && done == count &&
        qed_writer_is_clean (w);

      r = all ? write_durably (w, p, &run)
        : storage_write (w->storage, p, run.length, run.host);
      if (r == 0 && all) /* a flush may have failed meanwhile (I10) */
        return qed_writer_check (w);
    }
    else
      r = write_elsewhere (w, p, offset, end, &done);
    if (r == -1)
      return -1;
  }
  return flags & QED_FUA ? qed_writer_flush (w) : 0;
}

/* ----------------------------------------------------------------- zeroing */

/* How a range of zeros is made. */
struct zeroing {
  struct qed_writer *w;
  unsigned flags;
  bool trim; /* only what costs nothing */
  bool dry;  /* only look, and fail if zeros would have to be written */
};

static int
not_fast (const struct zeroing *z)
{
  error_set (ENOTSUP, "%s: zeros would have to be written",
             z->w->storage->name);
  return -1;
}

static int
zero_data (const struct zeroing *z, const struct guest_off at,
           const struct run *run)
{
  struct storage *s = z->w->storage;
  const bool punch = ((z->flags & QED_MAY_TRIM) || z->trim) &&
    !z->w->keep_discarded;
  uint64_t from = at.v, to = at.v + run->length;

  if (z->dry)
    return s->ops->zero == NULL || run->length < FAST_BYTES ? not_fast (z) : 0;
  if (!z->trim)
    return storage_zero (s, run->host, run->length, punch);
  from = (from + TRIM_ALIGN - 1) & -TRIM_ALIGN;
  to &= -TRIM_ALIGN;
  if (punch && from < to) /* else it stays */
    (void) storage_punch (s, (struct host_off) { run->host.v + from - at.v },
                          to - from);
  return 0;
}

/* Make zero clusters of whole ones without a place. */
static int
mark_zero (const struct zeroing *z, struct guest_off at, uint64_t end,
           uint64_t *done)
{
  struct qed_writer *w = z->w;
  struct host_off table;
  struct qed_step s;
  int r = 0;

  *done = 0;
  if (!begin_step (&s, w, at, end, &r))
    return r;
  *done = s.end - at.v;
  if (s.kind == RUN_UNALLOCATED) {
    r = qed_writer_table (w, at, !z->trim, &table);
    if (r == 0 && table.v != 0)
      r = qed_writer_set (w, table, qed_l2_index (w->header, at), s.nr,
                          QED_ZERO, false);
    if (r == -1 && z->trim && error_errno () == ENOSPC)
      r = 0; /* it stays */
  }
  end_step (&s);
  return r;
}

/* Clusters without a place, which are not all zeros: whole ones, or one of
 * which only a part is in the range.
 */
static int
zero_unmapped (const struct zeroing *z, struct guest_off at, uint64_t end,
               uint64_t *done)
{
  const uint64_t size = cluster_size (z->w);
  const uint64_t cluster_end = disk_end (z->w, (at.v / size + 1) * size);
  const uint64_t whole = end == z->w->disk->size ? end : end & -size;

  if (at.v % size == 0 && at.v < whole) {
    *done = whole - at.v;
    return z->dry ? 0 : mark_zero (z, at, whole, done);
  }
  end = end < cluster_end ? end : cluster_end;
  *done = end - at.v;
  if (z->trim)
    return 0;
  return z->dry ? not_fast (z)
    : write_elsewhere (z->w, NULL, at, end, done);
}

/* One run of the range. */
static int
zero_run (const struct zeroing *z, struct guest_off at, uint64_t end,
          uint64_t *done)
{
  uint64_t length;
  struct run run;
  bool zero;

  if (qed_map_lookup (z->w->map, at, end - at.v, &run) == -1)
    return -1;
  *done = run.length;
  switch (run.kind) {
  case RUN_DATA:
    return zero_data (z, at, &run);
  case RUN_ZERO_PLAIN:
    return 0;
  case RUN_DAMAGED:
    return damage (z->w, &run);
  case RUN_UNALLOCATED:
    break;
  case RUN_ZERO_ALLOC:
  case RUN_GUEST_DATA:
  case RUN_COMPRESSED:
    abort ();
  }
  if (reads_zero (z->w, at.v, run.length, &zero, &length) == -1)
    return -1;
  /* A cluster that is zeros in part only is made one as a whole. */
  if (zero && length < run.length) {
    const uint64_t whole = (at.v + length) & -cluster_size (z->w);

    length = whole > at.v ? whole - at.v : 0;
  }
  if (!zero || length == 0)
    return zero_unmapped (z, at, at.v + run.length, done);
  *done = length;
  return 0;
}

static int
zero_all (const struct zeroing *z, uint64_t count, struct guest_off offset)
{
  const uint64_t end = offset.v + count;
  uint64_t done;

  for (; offset.v < end; offset.v += done)
    if (zero_run (z, offset, end, &done) == -1)
      return -1;
  return 0;
}

int
qed_disk_zero (struct qed_writer *w, uint64_t count, struct guest_off offset,
               unsigned flags)
{
  struct zeroing z = { .w = w, .flags = flags, .dry = true };

  if ((flags & QED_FAST) && zero_all (&z, count, offset) == -1)
    return -1;
  z.dry = false;
  if (qed_writer_begin (w) == -1 || zero_all (&z, count, offset) == -1)
    return -1;
  return flags & QED_FUA ? qed_writer_flush (w) : 0;
}

int
qed_disk_trim (struct qed_writer *w, uint64_t count, struct guest_off offset,
               unsigned flags)
{
  const struct zeroing z = { .w = w, .flags = flags, .trim = true };

  if (qed_writer_begin (w) == -1 || zero_all (&z, count, offset) == -1)
    return -1;
  return flags & QED_FUA ? qed_writer_flush (w) : 0;
}
