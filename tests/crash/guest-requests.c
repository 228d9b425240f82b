/* SPDX-License-Identifier: BSD-3-Clause */

/* One request after the other, and what the disk holds then. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "content.h"
#include "disk/read.h"
#include "guest-parts.h"
#include "image-parts.h"
#include "no-memory.h"
#include "qcow2/write/follow.h"
#include "takes.h"

void
guest_lock (struct guest *r)
{
  if (r->sharing != NULL)
    pthread_mutex_lock (&r->sharing->lock);
}

void
guest_unlock (struct guest *r)
{
  if (r->sharing != NULL)
    pthread_mutex_unlock (&r->sharing->lock);
}

/* The lock is held. */
static bool
is_busy (const struct guest *r, uint64_t start, uint64_t end)
{
  uint64_t i;

  for (i = start / SECTOR; i < end / SECTOR; ++i) {
    if (r->sharing->busy[i])
      return true;
  }
  return false;
}

static void
enter (struct guest *r, uint64_t start, uint64_t end)
{
  if (r->sharing == NULL || r->sharing->overlap)
    return;
  guest_lock (r);
  while (is_busy (r, start, end))
    pthread_cond_wait (&r->sharing->freed, &r->sharing->lock);
  memset (r->sharing->busy + start / SECTOR, true, (end - start) / SECTOR);
  guest_unlock (r);
}

static void
leave (struct guest *r, uint64_t start, uint64_t end)
{
  if (r->sharing == NULL || r->sharing->overlap)
    return;
  guest_lock (r);
  memset (r->sharing->busy + start / SECTOR, false, (end - start) / SECTOR);
  pthread_cond_broadcast (&r->sharing->freed);
  guest_unlock (r);
}

/* The whole sectors that a range touches. */
static void
sectors_of (const struct request *q, uint64_t *start, uint64_t *end)
{
  *start = q->offset / SECTOR * SECTOR;
  *end = (q->offset + q->count + SECTOR - 1) / SECTOR * SECTOR;
}

/* Put what these sectors will hold to buf, for a write also what is to be
 * written.
 */
static void
prepare (struct guest *r, const struct request *q, uint32_t number,
         uint8_t *buf)
{
  uint64_t start, end;

  sectors_of (q, &start, &end);
  memcpy (buf, r->expect + start, end - start);
  if (q->kind != REQUEST_WRITE) {
    memset (buf + (q->offset - start), 0, q->count);
    return;
  }
  content_fill_many (r->buf2, end - start, CONTENT_WRITTEN,
                     r->first_number + number, start / SECTOR);
  memcpy (buf + (q->offset - start), r->buf2 + (q->offset - start), q->count);
}

/* With "idle", whatever was marked ahead is taken back after each. */
static int
flush (struct guest *r)
{
  const int ret = image_flush (r->im);

  if (r->m->idle && r->im->writer != NULL)
    follow_settle (r->im->writer, 0);
  return ret;
}

static int
call_core (struct guest *r, const struct request *q, const uint8_t *data)
{
  const struct guest_off at = { q->offset };
  const unsigned fua = q->fua ? IMAGE_FUA : 0;

  switch (q->kind) {
  case REQUEST_WRITE:
    return image_write (r->im, data, q->count, at, fua);
  case REQUEST_ZERO:
    return image_zero (r->im, q->count, at, fua |
                       (q->may_trim ? IMAGE_MAY_TRIM : 0) |
                       (q->fast ? IMAGE_FAST : 0));
  case REQUEST_TRIM:
    return image_trim (r->im, q->count, at, fua);
  case REQUEST_FLUSH:
    return flush (r);
  case REQUEST_REOPEN:
  case REQUEST_TAKE:
  case REQUEST_END:
  case REQUEST_SNAPSHOT:
    break;
  }
  abort ();
}

static int
call (struct guest *r, const struct request *q, const uint8_t *data)
{
  int ret;

  memory_armed = true;
  ret = call_core (r, q, data);
  memory_armed = false;
  if (ret == -1)
    r->given_up |= strstr (error_message (), "nothing is written any more")
      != NULL;
  return ret;
}

bool
guest_reads_may_fail (const struct guest *r)
{
  return (r->disk->failed_kinds & FAULT_READ) != 0;
}

/* A sector may hold one of two: take what it does hold for granted. */
static bool
take_either (struct guest *r, const struct request *q, uint32_t number,
             const uint8_t *after)
{
  uint64_t start, end, at;

  sectors_of (q, &start, &end);
  if (!guest_read_range (r, "", r->buf2, end - start, start)) {
    r->blind = true;
    for (at = start; at < end; at += SECTOR) {
      history_value (r->history, number, at / SECTOR, r->expect + at);
      history_value (r->history, number, at / SECTOR, after + (at - start));
    }
    return guest_reads_may_fail (r);
  }
  for (at = start; at < end; at += SECTOR) {
    const uint8_t *is = r->buf2 + (at - start);

    if (memcmp (is, r->expect + at, SECTOR) != 0 &&
        !guest_compare_range (r, "either", is, after + (at - start), at,
                              SECTOR))
      return false;
    memcpy (r->expect + at, is, SECTOR);
    history_value (r->history, number, at / SECTOR, is);
  }
  return true;
}

bool
guest_verify (struct guest *r, const char *what, uint64_t start, uint64_t end)
{
  if (!r->careless) {
    start = 0;
    end = r->m->disk_size;
  }
  if (start == end || r->blind)
    return true;
  if (!guest_read_range (r, "", r->buf2, end - start, start))
    return guest_reads_may_fail (r);
  return guest_compare_range (r, what, r->buf2, r->expect + start, start,
                              end - start);
}

static void
note_values (struct guest *r, uint32_t number, uint64_t start, uint64_t end,
             const uint8_t *content)
{
  uint64_t at;

  for (at = start; at < end; at += SECTOR)
    history_value (r->history, number, at / SECTOR, content + (at - start));
  memcpy (r->expect + start, content, end - start);
}

/* A write or flush went well that should not have. */
static bool
check_sticky (struct guest *r, const struct request *q, bool was_sticky,
              int ret)
{
  if (!was_sticky ||
      (q->kind != REQUEST_WRITE && q->kind != REQUEST_FLUSH))
    return true;
  if (ret == 0)
    return guest_wrong (r, "a %s succeeded after metadata (at 0x%" PRIx64 ") "
                        "or a flush had failed",
                        q->kind == REQUEST_WRITE ? "write" : "flush",
                        r->disk->failed_offset);
  if (error_errno () != EIO)
    return guest_wrong (r, "after metadata or a flush had failed, not EIO: %s",
                        error_message ());
  return true;
}

/* Whether the storage has failed so that nothing may be written any more. */
static void
note_sticky (struct guest *r)
{
  const struct crash_disk *d = r->disk;
  const int err = d->fault.err;

  if ((d->failed_kinds & FAULT_FLUSH) ||
      (d->failed_metadata_write && err != ENOSPC && err != EINTR))
    r->sticky = true;
}

bool
guest_flush (struct guest *r, const struct request *q)
{
  const bool was_sticky = r->sticky;
  uint64_t issued;
  int ret;

  guest_lock (r);
  issued = history_moment (r->history, crash_disk_now (r->disk));
  guest_unlock (r);
  ret = call (r, q, NULL);

  note_sticky (r);
  if (ret == 0) {
    guest_lock (r);
    history_flushed (r->history, issued, crash_disk_now (r->disk));
    guest_unlock (r);
  }
  else {
    r->failed_requests++;
    if (!r->failing)
      return guest_wrong (r, "flush: %s", error_message ());
  }
  if (!check_sticky (r, q, was_sticky, ret))
    return false;
  return guest_verify (r, "after a flush", 0, 0);
}

static bool
do_reopen (struct guest *r)
{
  if (guest_close (r) == -1 && !r->failing)
    return guest_wrong (r, "close: %s", error_message ());
  if (r->failing) /* what a failed storage holds is seen when it is over */
    return true;
  return guest_open (r) && guest_make_writable (r) &&
    guest_verify (r, "opened again", 0, r->m->disk_size);
}

static const char *
request_name (const struct request *q)
{
  return q->kind == REQUEST_WRITE ? "write" : q->kind == REQUEST_TRIM ? "trim"
    : "zero";
}

/* What it should have done may be there now, or come with a crash. */
static bool
do_failed (struct guest *r, const struct request *q, uint32_t number)
{
  uint64_t start, end, at;

  sectors_of (q, &start, &end);
  for (at = start; at < end; at += SECTOR)
    history_value (r->history, number, at / SECTOR, r->buf + (at - start));
  history_fail (r->history, number, crash_disk_now (r->disk));
  return take_either (r, q, number, r->buf);
}

/* The request returned; the lock is held. */
static bool
note_change (struct guest *r, const struct request *q, uint32_t number,
             int ret)
{
  const bool changed = ret == 0;
  uint64_t start, end;

  sectors_of (q, &start, &end);
  if (ret == -1 && !(q->fast && error_errno () == ENOTSUP)) {
    r->failed_requests++;
    if (!r->failing)
      return guest_wrong (r, "%s at %" PRIu64 ", %" PRIu64 " bytes: %s",
                          request_name (q), q->offset, q->count,
                          error_message ());
    return do_failed (r, q, number);
  }
  if (changed && q->kind == REQUEST_TRIM) {
    if (!take_either (r, q, number, r->buf))
      return false;
  }
  else if (changed)
    note_values (r, number, start, end, r->buf);
  history_answer (r->history, number, crash_disk_now (r->disk),
                  changed && q->fua);
  return true;
}

/* Its sectors are entered. */
static bool
do_entered (struct guest *r, const struct request *q, uint64_t start)
{
  const bool was_sticky = r->sticky;
  uint32_t number;
  bool ok;
  int ret;

  guest_lock (r);
  number = history_begin (r->history, crash_disk_now (r->disk));
  guest_unlock (r);
  prepare (r, q, number, r->buf);
  ret = call (r, q, r->buf + (q->offset - start));
  note_sticky (r);
  if (!check_sticky (r, q, was_sticky, ret))
    return false;
  guest_lock (r);
  ok = note_change (r, q, number, ret);
  guest_unlock (r);
  return ok;
}

/* Where requests overlap they are of whole sectors, and a trim is of whole
 * clusters: what they do does not depend on what was there.
 */
static struct request
rounded (const struct made *m, const struct request *q)
{
  const uint64_t unit = q->kind == REQUEST_TRIM ? m->cluster_size : SECTOR;
  struct request r = *q;
  uint64_t end = (q->offset + q->count + unit - 1) / unit * unit;

  r.offset = q->offset / unit * unit;
  if (end > m->disk_size)
    end = m->disk_size;
  r.count = end - r.offset;
  return r;
}

/* Sectors that others may be writing hold something that was given to them
 * at some time.
 */
static bool
compare_loosely (struct guest *r, const struct request *q)
{
  char name[160];
  uint64_t i;
  bool ok = true;

  if (!guest_read_range (r, "", r->buf2, q->count, q->offset))
    return false;
  guest_lock (r);
  for (i = 0; ok && i < q->count; i += SECTOR) {
    if (!history_has_ever (r->history, (q->offset + i) / SECTOR,
                           r->buf2 + i))
      ok = guest_wrong (r, "sector %" PRIu64 " reads as %s, which it never "
                        "was",
                        (q->offset + i) / SECTOR,
                        content_name (r->buf2 + i, name, sizeof name));
  }
  guest_unlock (r);
  return ok;
}

/* Whether it may leave what it is about as it is: zeros would be written. */
static bool
is_advice (const struct made *m, const struct request *q)
{
  return q->kind == REQUEST_TRIM && m->version == 2 && m->backing != NULL;
}

static bool
do_overlapping (struct guest *r, const struct request *unrounded)
{
  const struct request q = rounded (r->m, unrounded);
  uint32_t number;
  uint64_t i;
  int ret;

  guest_lock (r);
  number = history_begin (r->history, crash_disk_now (r->disk));
  memset (r->buf, 0, q.count);
  if (q.kind == REQUEST_WRITE)
    content_fill_many (r->buf, q.count, CONTENT_WRITTEN,
                       r->first_number + number, q.offset / SECTOR);
  for (i = 0; i < q.count; i += SECTOR)
    history_value (r->history, number, (q.offset + i) / SECTOR, r->buf + i);
  guest_unlock (r);
  ret = call (r, &q, r->buf);
  if (ret == -1 && !(q.fast && error_errno () == ENOTSUP))
    return guest_wrong (r, "%s at %" PRIu64 ", %" PRIu64 " bytes: %s",
                        request_name (&q), q.offset, q.count,
                        error_message ());
  guest_lock (r);
  if (ret == 0 && !is_advice (r->m, &q))
    history_answer (r->history, number, crash_disk_now (r->disk), q.fua);
  else
    history_fail (r->history, number, crash_disk_now (r->disk));
  guest_unlock (r);
  return compare_loosely (r, &q);
}

static bool
do_change (struct guest *r, const struct request *q)
{
  uint64_t start, end;
  bool ok;

  if (r->sharing != NULL && r->sharing->overlap)
    return do_overlapping (r, q);
  sectors_of (q, &start, &end);
  enter (r, start, end);
  ok = do_entered (r, q, start) &&
    guest_verify (r, request_name (q), start, end);
  leave (r, start, end);
  return ok;
}

static bool
do_request (struct guest *r, const struct request *q)
{
  switch (q->kind) {
  case REQUEST_FLUSH:
    return guest_flush (r, q);
  case REQUEST_REOPEN:
    return do_reopen (r);
  case REQUEST_WRITE:
  case REQUEST_ZERO:
  case REQUEST_TRIM:
    return do_change (r, q) && guest_check_points (r);
  case REQUEST_TAKE:
    return guest_take_point (r);
  case REQUEST_END:
    guest_end_point (r, q->offset);
    return guest_check_points (r);
  case REQUEST_SNAPSHOT:
    return guest_make_snapshot (r) && guest_check_points (r);
  }
  abort ();
}

bool
guest_request (struct guest *r, const struct request *q)
{
  const unsigned failed = r->failed_requests;

  if (!do_request (r, q))
    return false;
  if (!r->retry || r->failed_requests == failed || r->im == NULL || r->blind)
    return true;
  /* It goes well now, or none will any more (I10). */
  if (!do_request (r, q))
    return false;
  if (r->failed_requests > failed + 1 && !r->given_up)
    return guest_wrong (r, "it fails again: %s", error_message ());
  return !r->given_up || r->disk->failed_other ||
    guest_wrong (r, "given up, though neither metadata nor a flush had failed");
}
