/* SPDX-License-Identifier: BSD-3-Clause */

/* A write goes in place where nothing else refers to the host cluster, nor a
 * point in time has it (qcow2/write/frozen.h).  Elsewhere: write-step.c.
 */

#include <config.h>

#include "base/error.h"
#include "qcow2/write/compress.h"
#include "qcow2/write/frozen.h"
#include "qcow2/write/remap.h"
#include "qcow2/write/steps.h"
#include "qcow2/write/write-parts.h"
#include "storage/durable.h"

/* A durable write in place.  It is a flush, too, so that its failure sticks;
 * but for a mere lack of space.
 */
static int
write_durably (struct writer *w, struct storage *storage, const struct run *run,
               const uint8_t *buf)
{
  bool sticks;

  if (storage_write_durably (storage, buf, run->length, run->host,
                             &sticks) == 0)
    return 0;
  if (sticks)
    writeback_fail (&w->writeback);
  return -1;
}

static int
write_in_place (struct writer *w, struct storage *storage, const uint8_t *buf,
                const struct run *run, unsigned flags)
{
  if (writer_check_overlap (w, run->host, run->length) == -1)
    return -1;
  if (buf != NULL && (flags & DISK_FUA))
    return write_durably (w, storage, run, buf);
  if (buf == NULL) {
    if (storage_zero (storage, run->host, run->length,
                      (flags & DISK_PUNCH) != 0) == -1)
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

/* The same in turns with others (see struct writer).  *done is 0 if one has
 * changed the mapping before.
 */
static int
write_in_turn (struct writer *w, const uint8_t *buf, uint64_t count,
               struct guest_off offset, unsigned flags, uint64_t *done)
{
  struct crypt_view view;
  struct remap remap;
  struct run run;
  int r;

  *done = 0;
  remap_enter (&remap, w, offset, offset.v + count);
  r = map_lookup (qcow2_map (w->disk), offset, remap.to - offset.v, &run);
  if (r == 0)
    frozen_clip (w, offset, &run);
  if (r == 0 && is_in_place (&run)) {
    r = write_in_place (w, write_data_at (w, run.host, offset.v, &view), buf,
                        &run, flags);
    *done = run.length;
  }
  remap_abort (&remap);
  return r;
}

/* Look at what is there, and write it in place if that can be done at once:
 * *done is 0 where it can't.
 */
static int
write_at_once (struct writer *w, const uint8_t *buf, uint64_t count,
               struct guest_off offset, unsigned flags, struct run *run,
               uint64_t *done)
{
  const unsigned token = epoch_enter (w->disk->shared->epoch);
  int r = map_lookup (qcow2_map (w->disk), offset, count, run);

  *done = 0;
  if (r == 0 && run->kind == RUN_DAMAGED)
    r = layer_damaged (w->disk, run->host);
  if (r == 0)
    frozen_clip (w, offset, run);
  if (r == 0 && is_in_place (run) && w->in_turn == 0 &&
      frozen_no_more (w, offset, run)) {
    r = write_in_place (w, w->disk->data, buf, run, flags);
    *done = run->length;
  }
  epoch_leave (w->disk->shared->epoch, token);
  return r;
}

/* Write some of it: *done bytes.  *in_place: and nothing else is to be flushed
 * for these to be durable.
 */
static int
write_some (struct writer *w, const uint8_t *buf, uint64_t count,
            struct guest_off offset, unsigned flags, uint64_t *done,
            bool *in_place)
{
  struct run run;

  *in_place = false;
  if (write_at_once (w, buf, count, offset, flags, &run, done) == -1)
    return -1;
  *in_place = is_in_place (&run);
  if (*done > 0)
    return 0;
  return *in_place
    ? write_in_turn (w, buf, run.length, offset, flags, done)
    : write_elsewhere (w, buf, count, offset, flags, done);
}

/* The same while clusters are compressed: one cluster at most. */
static int
write_some_compressed (struct writer *w, const uint8_t *buf, uint64_t count,
                       struct guest_off offset, unsigned flags, uint64_t *done,
                       bool *in_place)
{
  const uint64_t cluster_size = qcow2_map (w->disk)->cluster_size;
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
  if (write_some (w, buf, n, offset, flags, done, in_place) == -1)
    return -1;
  if (whole)
    return 0;
  if (compress_written (w, offset, *done, &stored) == -1)
    return -1;
  *in_place &= !stored;
  return 0;
}

/* A write, and what of it is left to be done. */
struct writing {
  struct steps steps;
  const uint8_t *buf; /* NULL: zeros */
  unsigned flags;     /* as of disk_write */
  bool all_in_place;  /* nothing else is to be flushed for all to be durable */
};

static int
write_next (struct steps *s, bool *remapped)
{
  struct writing *wr = (struct writing *) s;
  const struct guest_off offset = { s->at };
  const uint64_t count = s->end - s->at;
  uint64_t done;
  bool in_place;
  const int r = s->w->compress_level != 0 && wr->buf != NULL
    ? write_some_compressed (s->w, wr->buf, count, offset, wr->flags, &done,
                             &in_place)
    : write_some (s->w, wr->buf, count, offset, wr->flags, &done, &in_place);

  if (r == -1)
    return -1;
  if (wr->buf != NULL)
    wr->buf += done;
  s->at += done;
  wr->all_in_place &= in_place;
  *remapped = !in_place;
  return 0;
}

int
disk_write (struct writer *w, const void *buf, uint64_t count,
            struct guest_off offset, unsigned flags)
{
  struct writing wr = {
    .steps = {
      .w = w, .at = offset.v, .end = offset.v + count, .step = write_next,
    },
    .buf = buf,
    .flags = flags,
    .all_in_place = true,
  };

  if (writer_begin (w, offset, count) == -1 || steps_run (&wr.steps) == -1)
    return -1;
  /* In place, data is durable already; so is its mapping, if all are. */
  if (!(flags & DISK_FUA) ||
      (buf != NULL && wr.all_in_place && writeback_is_clean (&w->writeback)))
    return 0;
  return writer_flush (w);
}
