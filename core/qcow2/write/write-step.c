/* SPDX-License-Identifier: BSD-3-Clause */

/* Where a write can't go in place its clusters get new entries, in steps (qcow2/write/remap.h), each
 * in this order:
 *
 *  1. take host clusters, unless the old ones can be kept;
 *  2. write the data, and the fill: what the guest sees in the rest of the
 *     subclusters (clusters, without extended L2) that are allocated by it;
 *  3. change the L2 entries, giving up the old clusters.
 *
 * The change is ordered behind data and refcounts (I5), but where all that
 * was there before, and all that is in the host cluster without the data,
 * are zeros, durably: a crash then shows the guest zeros or its data.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "disk/read.h"
#include "qcow2/write/frozen.h"
#include "qcow2/write/raw-data.h"
#include "qcow2/write/remap.h"
#include "qcow2/write/write-parts.h"

/* What an entry says, in one form for all kinds: a cluster without extended
 * L2 is one of a single subcluster.
 */
struct target {
  struct host_off host;     /* or HOST_NONE */
  bool keep;                /* it may be written in place */
  uint32_t allocated, zero; /* bitmaps */
};

/* A step of a write that changes mappings. */
struct write_step {
  struct writer *w;
  const uint8_t *buf; /* NULL: zeros */
  unsigned flags;     /* as of disk_write */
  struct guest_off start;
  uint64_t end;       /* of the guest's bytes */
  uint64_t cluster;   /* the guest offset of the first cluster */
  uint64_t nr;        /* clusters */
  struct remap *remap;
  struct target *target; /* nr */

  struct host_off host; /* of the first cluster; contiguous */
  struct storage *data; /* that they are written to */
  struct crypt_view view;
  bool keep;            /* all targets' host clusters are kept */
  bool zero, durable;   /* see struct placed; false if kept */
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
    t.allocated = all_subclusters (m);
    break;
  case CLUSTER_INVALID:
    abort ();
  }
  t.keep = !host_is_none (t.host) && e->copied &&
    e->kind != CLUSTER_COMPRESSED;
  return t;
}

static inline const struct map *
write_map (const struct write_step *s)
{
  return qcow2_map (s->w->disk);
}

/* The subclusters of the i-th cluster that the write touches. */
static uint32_t
touched (const struct write_step *s, uint64_t i)
{
  const struct map *m = write_map (s);
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
allocated_after (const struct write_step *s, uint64_t i)
{
  return s->target[i].allocated | touched (s, i);
}

/* ----------------------------------------------------------------- planning */

/* Decode the entries as far as they can be treated alike: the host clusters
 * of all are kept, and contiguous, or those of none.
 */
static int
decode_targets (struct write_step *s)
{
  const struct map *m = write_map (s);
  uint64_t i;

  for (i = 0; i < s->nr; ++i) {
    struct target *t = &s->target[i];
    struct l2_entry e;

    if (remap_entry (s->remap, i, &e) == -1) {
      if (i == 0)
        return -1;
      break; /* the next step will meet it */
    }
    *t = make_target (m, &e);
    t->keep = t->keep &&
      !frozen_host (s->w, (struct guest_off) { s->cluster +
                                               i * m->cluster_size },
                    t->host.v);
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
is_mapped (const struct write_step *s)
{
  return s->keep && (touched (s, 0) & ~s->target[0].allocated) == 0;
}

/* Whether the clusters read as zeros now. */
static int
look_for_zeros (struct write_step *s)
{
  const struct layer *disk = s->w->disk;
  struct guest_off at = { s->cluster };
  uint64_t end = s->cluster + s->nr * write_map (s)->cluster_size;

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

struct storage *
write_data_at (const struct writer *w, struct host_off host, uint64_t guest,
               struct crypt_view *view)
{
  if (w->header.encryption != ENCRYPTION_AES)
    return w->disk->data;
  storage_crypt_view (view, w->disk->data, guest - host.v);
  return &view->storage;
}

/* Where the host clusters are: sets host, data, zero, durable; and fewer
 * clusters if there are not so many in a row.
 */
static int
choose_host (struct write_step *s)
{
  const struct map *m = write_map (s);
  struct placed p;

  if (s->keep)
    s->host = s->target[0].host;
  else {
    if (remap_take (s->remap, 0, s->nr, &p) == -1)
      return -1;
    s->host = p.host;
    s->nr = p.nr;
    s->zero = p.zero;
    s->durable = p.durable;
  }
  if (s->end > s->cluster + s->nr * m->cluster_size)
    s->end = s->cluster + s->nr * m->cluster_size;
  s->data = write_data_at (s->w, s->host, s->cluster, &s->view);
  return 0;
}

/* --------------------------------------------------------------------- data */

static inline struct host_off
host_of (const struct write_step *s, uint64_t guest)
{
  return (struct host_off) { s->host.v + (guest - s->cluster) };
}

/* What the guest sees in this range now; zeros past the disk's end. */
static int
read_fill (const struct write_step *s, uint8_t *buf, uint64_t from, uint64_t to)
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

/* An external data file need not be larger than the disk, and a block device
 * may not be: what the disk's end cuts off of its last cluster is zeros, in
 * case it grows, as far as the file reaches; and beyond that anyway.  If it is
 * encrypted, what a file has not is no zeros: there all of the cluster is
 * written.  A device's end is the end even so: a disk that grows beyond it has
 * no room for data, either.
 */
static void
clip_fill (const struct write_step *s, struct fill *f)
{
  const struct layer *disk = s->w->disk;
  const uint64_t size = atomic_load (&disk->data_file->size);
  const uint64_t end = size > disk->size ? size : disk->size;

  if (!storage_holes_read_zero (disk->data) && !disk->data_file->fixed_size)
    return;
  if (f->to > end)
    f->to = end;
}

static struct fill
plan_fill (const struct write_step *s)
{
  const struct map *m = write_map (s);
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
  if (m->format.data_file)
    clip_fill (s, &f);
  return f;
}

/* Write data without a buffer: zeros. */
static int
write_zero_data (struct write_step *s)
{
  if (s->zero)
    return 0;
  return storage_zero (s->data, host_of (s, s->start.v),
                       s->end - s->start.v,
                       (s->flags & DISK_PUNCH) != 0);
}

/* Data of up to this is read as well, with the fills around it, and then
 * replaced in memory: copying it costs less than a second system call.
 */
#define READ_OVER 32768

/* Read the fills into a buffer for everything from f->from to f->to. */
static int
read_fills (const struct write_step *s, const struct fill *f, uint8_t *buf)
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
write_filled (struct write_step *s, const struct fill *f)
{
  struct storage *storage = s->data;
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
write_data (struct write_step *s)
{
  const struct fill f = plan_fill (s);

  if (f.from != s->start.v || f.to != s->end)
    return write_filled (s, &f);
  if (s->buf == NULL)
    return write_zero_data (s);
  return storage_write (s->data, s->buf, s->end - s->start.v,
                        host_of (s, s->start.v));
}

/* Copy subclusters of the i-th cluster that the write does not touch, from
 * the old host cluster to the new one.
 */
static int
carry_subclusters (struct write_step *s, uint64_t i)
{
  const struct map *m = write_map (s);
  const uint64_t cluster = s->cluster + i * m->cluster_size;
  uint32_t left = s->target[i].allocated & ~touched (s, i);
  uint8_t *buf;
  int r = 0;

  if (left == 0)
    return 0;
  buf = malloc (m->cluster_size);
  if (buf == NULL) {
    error_set (ENOMEM, "%s: out of memory", s->data->name);
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
      r = storage_write (s->data, buf, to - from, host_of (s, from));
  }
  free (buf);
  return r;
}

/* Only the first and the last cluster can be written in part. */
static int
carry (struct write_step *s)
{
  if (s->keep || (s->zero && s->was_zero))
    return 0;
  if (carry_subclusters (s, 0) == -1)
    return -1;
  return s->nr > 1 ? carry_subclusters (s, s->nr - 1) : 0;
}

/* ------------------------------------------------------------------ mapping */

/* R4.  Clusters that are zeros and were zeros need no order, if that is
 * durable; nor do zeros written by mapping such clusters.
 */
static bool
needs_order (const struct write_step *s)
{
  const uint64_t bytes = s->nr * write_map (s)->cluster_size;

  if (!s->zero || !s->durable)
    return true;
  return !s->was_zero &&
    (s->buf != NULL || s->end - s->start.v < bytes);
}

static void
link_clusters (struct write_step *s)
{
  const uint64_t cluster_size = write_map (s)->cluster_size;
  uint64_t i;

  for (i = 0; i < s->nr; ++i) {
    const struct host_off host = { s->host.v + i * cluster_size };
    const uint32_t allocated = allocated_after (s, i);

    remap_set (s->remap, i, host, true, allocated,
               s->target[i].zero & ~allocated);
  }
}

/* Write, then map. */
static int
write_and_link (struct write_step *s)
{
  if (choose_host (s) == -1 ||
      writer_check_overlap (s->w, s->host,
                            s->nr * write_map (s)->cluster_size) == -1 ||
      look_for_zeros (s) == -1 || carry (s) == -1 || write_data (s) == -1)
    return -1;
  writeback_note_data (&s->w->writeback);
  link_clusters (s);
  return 0;
}

int
write_elsewhere (struct writer *w, const uint8_t *buf, uint64_t count,
                 struct guest_off offset, unsigned flags, uint64_t *done)
{
  struct target target[MAP_MAX_WORDS];
  struct remap remap;
  struct write_step s = {
    .w = w, .buf = buf, .flags = flags, .start = offset, .remap = &remap,
    .target = target,
  };
  bool mapped;
  int r;

  if (w->header.raw_data) { /* then it can be written in place */
    *done = 0;
    return raw_data_map (w, offset);
  }
  if (remap_begin (&remap, w, offset, offset.v + count) == -1)
    return -1;
  s.end = remap.to;
  s.cluster = remap.cluster;
  s.nr = remap.nr;
  r = decode_targets (&s);
  mapped = r == 0 && is_mapped (&s);
  if (r == 0 && !mapped)
    r = write_and_link (&s);
  if (r == -1) {
    remap_abort (&remap);
    return -1;
  }
  *done = mapped ? 0 : s.end - s.start.v;
  return remap_end (&remap, needs_order (&s));
}
