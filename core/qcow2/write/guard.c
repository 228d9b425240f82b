/* SPDX-License-Identifier: BSD-3-Clause */

/* I7: what becomes of an image that is found to be corrupt. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>

#include "base/error.h"
#include "qcow2/write/writer-parts.h"

/* What became of a corrupt image. */
static const char *
consequence (const struct writer *w)
{
  return w->header.incompatible & QCOW2_INCOMPAT_CORRUPT
    ? "it is marked as corrupt" : "nothing is written any more";
}

/* Version 2 has no bit for that.  Nor is it set where something has failed
 * before: then nothing is written any more, the header included (I10).
 */
static void
mark_corrupt (struct writer *w)
{
  pthread_mutex_lock (&w->begin_lock);
  if (w->header.version >= 3 && !writeback_has_failed (&w->writeback) &&
      !(w->header.incompatible & QCOW2_INCOMPAT_CORRUPT)) {
    w->header.incompatible |= QCOW2_INCOMPAT_CORRUPT;
    if (features_write (w) == -1) /* the error will be about the overlap */
      w->header.incompatible &= ~QCOW2_INCOMPAT_CORRUPT;
  }
  pthread_mutex_unlock (&w->begin_lock);
}

/* An error, which may be that the image was found to be corrupt: the first
 * request that learns of it says so.
 */
int
writer_failed (struct writer *w)
{
  if (atomic_load (&w->writeback.corrupt) &&
      !atomic_exchange (&w->found_corrupt, true)) {
    mark_corrupt (w);
    error_set (EIO, "%s: %s", w->writeback.message, consequence (w));
  }
  return -1;
}

/* Nothing may be written any more, and everybody shall know.  what was about
 * to happen to metadata of this kind.
 */
int
writer_found_corrupt (struct writer *w, const char *what, enum metadata kind,
                      struct host_off offset, uint64_t bytes)
{
  atomic_store (&w->found_corrupt, true);
  mark_corrupt (w);
  error_set (EIO, "%s: damaged: %s %s, within %" PRIu64 " bytes at offset "
             "0x%" PRIx64 ": %s", writer_name (w), what, overlap_name (kind),
             bytes, offset.v, consequence (w));
  writeback_fail_corrupt (&w->writeback);
  return -1;
}

int
writer_check_overlap (struct writer *w, struct host_off offset, uint64_t bytes)
{
  const enum metadata kind = overlap_find (w->forbidden, offset, bytes);

  if (kind == METADATA_NONE)
    return 0;
  return writer_found_corrupt (w, "data would be written over", kind, offset,
                               bytes);
}

int
writer_take (struct writer *w, uint64_t guest, uint64_t nr,
             struct alloc_clusters *out)
{
  if (alloc_take (&w->alloc, guest, nr, out) == -1)
    return writer_failed (w);
  atomic_fetch_add_explicit (&w->taken, 1, memory_order_relaxed);
  return 0;
}

int
writer_place (struct writer *w, uint64_t guest, uint64_t nr,
              struct placed *out)
{
  if (w->placement->take (w->placement, guest, nr, out) == -1)
    return writer_failed (w);
  atomic_fetch_add_explicit (&w->taken, 1, memory_order_relaxed);
  return 0;
}

int
writer_take_bytes (struct writer *w, uint64_t bytes, struct host_off *host)
{
  if (alloc_take_bytes (&w->alloc, bytes, host) == -1)
    return writer_failed (w);
  atomic_fetch_add_explicit (&w->taken, 1, memory_order_relaxed);
  return 0;
}
