/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>

#include "base/error.h"
#include "qcow2/write/raw-zero.h"
#include "qcow2/write/write.h"

/* The run at an offset, of a map that others may change at any time.  Returns
 * -1 with the error set.
 */
static int
look_up (const struct writer *w, uint64_t at, uint64_t end, struct run *run)
{
  if (map_lookup (qcow2_map (w->disk), (struct guest_off) { at }, end - at,
                  run) == -1)
    return -1;
  return run->kind == RUN_DAMAGED ? layer_damaged (w->disk, run->host) : 0;
}

/* Do this to all data of a range; what is not mapped is zeros. */
typedef int raw_run_fn (struct writer *w, const struct run *run, uint64_t at,
                        unsigned flags);

static int
each_data_run (struct writer *w, uint64_t from, uint64_t to, raw_run_fn *fn,
               unsigned flags)
{
  struct run run;
  uint64_t at;

  for (at = from; at < to; at += run.length) {
    const unsigned token = epoch_enter (w->disk->shared->epoch);
    const int r = look_up (w, at, to, &run);

    epoch_leave (w->disk->shared->epoch, token);
    if (r == -1 ||
        (run.kind == RUN_DATA && fn (w, &run, at, flags) == -1))
      return -1;
  }
  return 0;
}

static int
fail_fast (struct writer *w, const struct run *run, uint64_t at, unsigned flags)
{
  (void) run;
  (void) at;
  (void) flags;
  error_set (ENOTSUP, "%s: zeros would have to be written", writer_name (w));
  error_set_repeated ();
  return -1;
}

/* What is mapped behind the end of the file is zeros already, and takes no
 * space (D4).  What is before that, of a range that goes beyond the end, may be
 * little: but is punched as well, since to write zeros there wants space (I13).
 */
static int
zero_run (struct writer *w, const struct run *run, uint64_t at, unsigned flags)
{
  const bool punch = (flags & DISK_MAY_TRIM) && !w->alloc.keep_discarded;
  const uint64_t end = atomic_load (&w->disk->data_file->size);
  uint64_t count = run->length;

  if (run->host.v >= end)
    return 0;
  if (count > end - run->host.v) {
    count = end - run->host.v;
    if (punch && storage_punch (w->disk->data_file, run->host, count)) {
      writeback_note_data (&w->writeback);
      return 0;
    }
  }
  return disk_write (w, NULL, count, (struct guest_off) { at },
                     punch ? DISK_PUNCH : 0);
}

/* What is data stays that, so that it is punched wherever it is. */
static int
trim_run (struct writer *w, const struct run *run, uint64_t at, unsigned flags)
{
  (void) at;
  (void) flags;
  (void) storage_punch (w->disk->data_file, run->host, run->length);
  writeback_note_data (&w->writeback);
  return 0;
}

int
raw_zero_is_fast (struct writer *w, uint64_t count, struct guest_off offset)
{
  return each_data_run (w, offset.v, offset.v + count, fail_fast, 0);
}

int
raw_zero (struct writer *w, uint64_t count, struct guest_off offset,
          unsigned flags)
{
  const uint64_t end = offset.v + count;

  storage_see_growth (w->disk->data_file);
  if (((flags & DISK_FAST) && raw_zero_is_fast (w, count, offset) == -1) ||
      writer_begin (w, offset, count) == -1 ||
      each_data_run (w, offset.v, end, zero_run, flags) == -1)
    return -1;
  return flags & DISK_FUA ? writer_flush (w) : 0;
}

int
raw_trim (struct writer *w, uint64_t count, struct guest_off offset,
          unsigned flags)
{
  if (writer_begin (w, offset, count) == -1 ||
      (!w->alloc.keep_discarded &&
       each_data_run (w, offset.v, offset.v + count, trim_run, flags) == -1))
    return -1;
  return flags & DISK_FUA ? writer_flush (w) : 0;
}
