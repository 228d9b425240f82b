/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "content.h"
#include "disk/read.h"
#include "guest.h"
#include "image-parts.h"
#include "must-have.h"
#include "no-memory.h"
#include "qcow2/write/follow.h"

/* As small as it can be, so that tables leave it. */
#define CACHE_SIZE CACHE_MIN_BYTES

static bool __attribute__ ((__format__ (__printf__, 2, 3), __cold__))
wrong (struct guest *r, const char *fmt, ...)
{
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (r->why, sizeof r->why, fmt, ap);
  va_end (ap);
  return false;
}

void
guest_init (struct guest *r, const struct made *m)
{
  memset (r, 0, sizeof *r);
  r->m = m;
  r->disk = must_have (malloc (sizeof *r->disk));
  r->history = must_have (calloc (1, sizeof *r->history));
  crash_disk_init (r->disk, m->bytes, m->size);
  crash_disk_init (&r->backing, m->backing, m->backing_size);
  r->disk->no_zero = m->no_zero;
  r->expect = must_have (malloc (m->disk_size));
  r->buf = must_have (malloc (m->disk_size));
  r->buf2 = must_have (malloc (m->disk_size));
}

void
guest_free (struct guest *r)
{
  if (r->im != NULL)
    (void) guest_close (r);
  crash_disk_free (r->disk);
  free (r->disk);
  crash_disk_free (&r->backing);
  history_free (r->history);
  free (r->history);
  free (r->expect);
  free (r->buf);
  free (r->buf2);
  memset (r, 0, sizeof *r);
}

static bool
open_image (struct guest *r)
{
  struct storage *s[2];
  unsigned nr = 0;

  s[nr++] = crash_storage_open (r->disk, "test");
  if (r->m->backing != NULL)
    s[nr++] = crash_storage_open_readonly (&r->backing, "backing");
  r->writable = false;
  r->im = r->m->aes
    ? image_open_encrypted (s, nr, CACHE_SIZE, &made_passphrases)
    : image_open_storages (s, nr, CACHE_SIZE);
  if (r->im == NULL)
    return wrong (r, "it does not open: %s", error_message ());
  return guest_allow_points (r);
}

bool
guest_start (struct guest *r, const void *bytes, uint64_t size)
{
  if (r->im != NULL)
    (void) guest_close (r);
  crash_disk_reset (r->disk, bytes, size);
  r->disk->fault = r->next_fault;
  r->failed_requests = 0;
  r->sticky = r->blind = r->given_up = r->unclean = false;
  r->why[0] = '\0';
  return open_image (r);
}

/* Read a range of a disk of the image. */
static bool
read_range (struct guest *r, const char *export, void *buf, uint64_t count,
            uint64_t offset)
{
  struct layer *disk = image_open_disk (r->im, export);
  int ret;

  if (disk == NULL)
    return wrong (r, "\"%s\" is not there: %s", export, error_message ());
  if (disk->size != r->m->disk_size) {
    const uint64_t size = disk->size;

    image_close_disk (disk);
    return wrong (r, "\"%s\" has %" PRIu64 " bytes", export, size);
  }
  ret = layer_read (disk, buf, count, (struct guest_off) { offset });
  image_close_disk (disk);
  if (ret == -1)
    return wrong (r, "reading \"%s\" at %" PRIu64 ", %" PRIu64 " bytes: %s",
                  export, offset, count, error_message ());
  return true;
}

bool
guest_read (struct guest *r)
{
  return read_range (r, "", r->buf, r->m->disk_size, 0);
}

void
guest_believe (struct guest *r)
{
  memcpy (r->expect, r->buf, r->m->disk_size);
  history_free (r->history);
  history_init (r->history, r->buf, r->m->disk_size / SECTOR);
}

/* Compare sectors of a disk. */
static bool
compare (struct guest *r, const char *what, const uint8_t *is,
         const uint8_t *should, uint64_t first, uint64_t count)
{
  char is_name[160], should_name[160];
  uint64_t i;

  if (memcmp (is, should, count) == 0)
    return true;
  for (i = 0; memcmp (is + i, should + i, SECTOR) == 0; i += SECTOR)
    ;
  return wrong (r, "%s: sector %" PRIu64 " holds %s; it should be %s", what,
                (first + i) / SECTOR,
                content_name (is + i, is_name, sizeof is_name),
                content_name (should + i, should_name, sizeof should_name));
}

bool
guest_check_snapshots (struct guest *r)
{
  char name[64];
  unsigned i;

  for (i = 0; i < r->m->nr_snapshots; ++i) {
    snprintf (name, sizeof name, "%s%s", IMAGE_SNAPSHOT_PREFIX,
              r->m->snapshot_name[i]);
    if (!read_range (r, name, r->buf2, r->m->disk_size, 0) ||
        !compare (r, name, r->buf2, r->m->snapshot_content[i], 0,
                  r->m->disk_size))
      return false;
  }
  return true;
}

bool
guest_make_writable (struct guest *r)
{
  const struct writer_options options = {
    .invalidate_bitmaps = r->m->give_up,
    .bitmap_pages = MADE_BITMAPS, /* one of each */
    .bitmap_idle = BITMAP_NEVER_IDLE, /* but where a flush says so */
    .keep_discarded = r->m->keep,
    .compress_level = r->m->zip,
    .max_freed = r->m->tight ? 4 * r->m->cluster_size : 0,
  };
  int ret;

  r->why[0] = '\0';
  memory_armed = true;
  ret = image_make_writable (r->im, &options);
  memory_armed = false;
  if (ret == 0) {
    if (r->m->zip) /* as the plugin does unless told otherwise */
      image_detect_zeroes (r->im, DETECT_ZEROES_ON);
    r->writable = true;
    if (r->free_leaks)
      image_free_leaks (r->im);
    return true;
  }
  if (error_errno () == ENOTSUP && r->m->lazy)
    return false;
  return wrong (r, "it can't be made writable: %s", error_message ());
}

/* Several threads: each sector is only one request's at a time, so that it is
 * known which came last.  Requests beside each other do run at the same time.
 * Or they overlap: then the last one may be any that ran last.
 */
struct sharing {
  bool overlap;
  pthread_mutex_t lock; /* of the history, and of this */
  pthread_cond_t freed;
  bool *busy;           /* sectors */
};

static void
lock (struct guest *r)
{
  if (r->sharing != NULL)
    pthread_mutex_lock (&r->sharing->lock);
}

static void
unlock (struct guest *r)
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
  lock (r);
  while (is_busy (r, start, end))
    pthread_cond_wait (&r->sharing->freed, &r->sharing->lock);
  memset (r->sharing->busy + start / SECTOR, true, (end - start) / SECTOR);
  unlock (r);
}

static void
leave (struct guest *r, uint64_t start, uint64_t end)
{
  if (r->sharing == NULL || r->sharing->overlap)
    return;
  lock (r);
  memset (r->sharing->busy + start / SECTOR, false, (end - start) / SECTOR);
  pthread_cond_broadcast (&r->sharing->freed);
  unlock (r);
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

/* I10: reads go on, unless reading itself fails. */
static bool
reads_may_fail (const struct guest *r)
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
  if (!read_range (r, "", r->buf2, end - start, start)) {
    r->blind = true;
    for (at = start; at < end; at += SECTOR) {
      history_value (r->history, number, at / SECTOR, r->expect + at);
      history_value (r->history, number, at / SECTOR, after + (at - start));
    }
    return reads_may_fail (r);
  }
  for (at = start; at < end; at += SECTOR) {
    const uint8_t *is = r->buf2 + (at - start);

    if (memcmp (is, r->expect + at, SECTOR) != 0 &&
        !compare (r, "either", is, after + (at - start), at, SECTOR))
      return false;
    memcpy (r->expect + at, is, SECTOR);
    history_value (r->history, number, at / SECTOR, is);
  }
  return true;
}

/* Compare a range, or everything, with what it should be. */
static bool
verify (struct guest *r, const char *what, uint64_t start, uint64_t end)
{
  if (!r->careless) {
    start = 0;
    end = r->m->disk_size;
  }
  if (start == end || r->blind)
    return true;
  if (!read_range (r, "", r->buf2, end - start, start))
    return reads_may_fail (r);
  return compare (r, what, r->buf2, r->expect + start, start, end - start);
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
    return wrong (r, "a %s succeeded after metadata (at 0x%" PRIx64 ") or a "
                  "flush had failed",
                  q->kind == REQUEST_WRITE ? "write" : "flush",
                  r->disk->failed_offset);
  if (error_errno () != EIO)
    return wrong (r, "after metadata or a flush had failed, not EIO: %s",
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

static bool
do_flush (struct guest *r, const struct request *q)
{
  const bool was_sticky = r->sticky;
  uint64_t issued;
  int ret;

  lock (r);
  issued = history_moment (r->history, crash_disk_now (r->disk));
  unlock (r);
  ret = call (r, q, NULL);

  note_sticky (r);
  if (ret == 0) {
    lock (r);
    history_flushed (r->history, issued, crash_disk_now (r->disk));
    unlock (r);
  }
  else {
    r->failed_requests++;
    if (!r->failing)
      return wrong (r, "flush: %s", error_message ());
  }
  if (!check_sticky (r, q, was_sticky, ret))
    return false;
  return verify (r, "after a flush", 0, 0);
}

static bool
do_reopen (struct guest *r)
{
  if (guest_close (r) == -1 && !r->failing)
    return wrong (r, "close: %s", error_message ());
  if (r->failing) /* what a failed storage holds is seen when it is over */
    return true;
  return open_image (r) && guest_make_writable (r) &&
    verify (r, "opened again", 0, r->m->disk_size);
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
      return wrong (r, "%s at %" PRIu64 ", %" PRIu64 " bytes: %s",
                    request_name (q), q->offset, q->count, error_message ());
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

  lock (r);
  number = history_begin (r->history, crash_disk_now (r->disk));
  unlock (r);
  prepare (r, q, number, r->buf);
  ret = call (r, q, r->buf + (q->offset - start));
  note_sticky (r);
  if (!check_sticky (r, q, was_sticky, ret))
    return false;
  lock (r);
  ok = note_change (r, q, number, ret);
  unlock (r);
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

  if (!read_range (r, "", r->buf2, q->count, q->offset))
    return false;
  lock (r);
  for (i = 0; ok && i < q->count; i += SECTOR) {
    if (!history_has_ever (r->history, (q->offset + i) / SECTOR,
                           r->buf2 + i))
      ok = wrong (r, "sector %" PRIu64 " reads as %s, which it never was",
                  (q->offset + i) / SECTOR,
                  content_name (r->buf2 + i, name, sizeof name));
  }
  unlock (r);
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

  lock (r);
  number = history_begin (r->history, crash_disk_now (r->disk));
  memset (r->buf, 0, q.count);
  if (q.kind == REQUEST_WRITE)
    content_fill_many (r->buf, q.count, CONTENT_WRITTEN,
                       r->first_number + number, q.offset / SECTOR);
  for (i = 0; i < q.count; i += SECTOR)
    history_value (r->history, number, (q.offset + i) / SECTOR, r->buf + i);
  unlock (r);
  ret = call (r, &q, r->buf);
  if (ret == -1 && !(q.fast && error_errno () == ENOTSUP))
    return wrong (r, "%s at %" PRIu64 ", %" PRIu64 " bytes: %s",
                  request_name (&q), q.offset, q.count, error_message ());
  lock (r);
  if (ret == 0 && !is_advice (r->m, &q))
    history_answer (r->history, number, crash_disk_now (r->disk), q.fua);
  else
    history_fail (r->history, number, crash_disk_now (r->disk));
  unlock (r);
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
  ok = do_entered (r, q, start) && verify (r, request_name (q), start, end);
  leave (r, start, end);
  return ok;
}

static bool
do_request (struct guest *r, const struct request *q)
{
  switch (q->kind) {
  case REQUEST_FLUSH:
    return do_flush (r, q);
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
    return wrong (r, "it fails again: %s", error_message ());
  return !r->given_up || r->disk->failed_other ||
    wrong (r, "given up, though neither metadata nor a flush had failed");
}

bool
guest_script (struct guest *r, const struct script *s)
{
  unsigned i;

  for (i = 0; i < s->nr && r->im != NULL && !r->blind; ++i) {
    if (!guest_request (r, &s->request[i]))
      return false;
  }
  return true;
}

struct member {
  pthread_t thread;
  struct guest guest; /* with buffers of its own */
  struct script script;
  bool ok;
};

static void *
run_member (void *p)
{
  struct member *b = p;

  b->ok = guest_script (&b->guest, &b->script);
  return NULL;
}

/* Requests are dealt in turn; nobody can open the image anew. */
static void
make_member (struct member *b, struct guest *r, struct sharing *sharing,
             const struct script *s, unsigned number, unsigned nr)
{
  unsigned i;

  b->guest = *r;
  b->guest.sharing = sharing;
  b->guest.careless = true;
  b->guest.buf = must_have (malloc (r->m->disk_size));
  b->guest.buf2 = must_have (malloc (r->m->disk_size));
  for (i = number; i < s->nr; i += nr) {
    if (s->request[i].kind != REQUEST_REOPEN &&
        s->request[i].kind != REQUEST_TAKE && s->request[i].kind != REQUEST_END)
      b->script.request[b->script.nr++] = s->request[i];
  }
}

/* When all overlapping requests are over, each sector holds what one of the
 * last gave it, and goes on holding that.
 */
static bool
settle (struct guest *r)
{
  const struct request flush = { .kind = REQUEST_FLUSH };
  char name[160];
  uint64_t sector;
  bool ok;

  r->careless = true; /* expect is out of date */
  ok = do_flush (r, &flush);
  r->careless = false;
  if (!ok || !guest_read (r))
    return false;
  sector = history_check (r->history, r->buf, crash_disk_now (r->disk));
  if (sector < r->history->nr_sectors)
    return wrong (r, "at the end, sector %" PRIu64 " holds %s", sector,
                  content_name (r->buf + sector * SECTOR, name, sizeof name));
  memcpy (r->expect, r->buf, r->m->disk_size);
  return true;
}

bool
guest_threads (struct guest *r, const struct script *s, unsigned nr,
               bool overlap)
{
  struct member *member = must_have (calloc (nr, sizeof *member));
  struct sharing sharing = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .freed = PTHREAD_COND_INITIALIZER,
    .busy = must_have (calloc (r->m->disk_size / SECTOR, 1)),
    .overlap = overlap,
  };
  bool ok = true;
  unsigned i;

  r->disk->dawdle = true;
  for (i = 0; i < nr; ++i)
    make_member (&member[i], r, &sharing, s, i, nr);
  for (i = 0; i < nr; ++i) {
    if (pthread_create (&member[i].thread, NULL, run_member, &member[i]) != 0)
      abort ();
  }
  for (i = 0; i < nr; ++i) {
    pthread_join (member[i].thread, NULL);
    if (ok && !member[i].ok) {
      memcpy (r->why, member[i].guest.why, sizeof r->why);
      ok = false;
    }
    free (member[i].guest.buf);
    free (member[i].guest.buf2);
  }
  r->disk->dawdle = false;
  free (sharing.busy);
  free (member);
  if (ok && overlap)
    return settle (r);
  return ok;
}

int
guest_close (struct guest *r)
{
  const uint64_t issued = history_moment (r->history,
                                          crash_disk_now (r->disk));
  int ret;

  guest_drop_points (r);
  memory_armed = true;
  ret = image_close (r->im);
  memory_armed = false;
  r->im = NULL;
  r->unclean = ret == -1;
  if (ret == 0 && r->writable)
    history_flushed (r->history, issued, crash_disk_now (r->disk));
  return ret;
}

bool
guest_compare (struct guest *r)
{
  return verify (r, "at the end", 0, r->m->disk_size) &&
    (guest_check_snapshots (r) || reads_may_fail (r));
}

bool
guest_finish (struct guest *r)
{
  if (!guest_compare (r))
    return false;
  if (guest_close (r) == -1)
    return wrong (r, "close: %s", error_message ());
  return true;
}
