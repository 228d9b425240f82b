/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/advice.h"
#include "base/error.h"
#include "image-parts.h"
#include "qcow2/check/check.h"
#include "qcow2/check/repair.h"
#include "qcow2/check/size.h"
#include "qcow2/qcow2.h"

/* Keep the error just set.  writer_lock held. */
static void
keep_verdict (struct image *im)
{
  struct verdict *v = &im->verdict;

  v->err = error_errno ();
  snprintf (v->message, sizeof v->message, "%s", error_message ());
  v->known = v->err != ENOMEM &&
    storage_stamp (image_top (im)->layer.tables, &v->stamp);
}

/* Whether it is known that the image can't be written: then the error is set.
 * writer_lock held.
 */
static bool
has_verdict (const struct image *im)
{
  const struct verdict *v = &im->verdict;
  struct storage_stamp now;

  if (!v->known || !storage_stamp (image_top (im)->layer.tables, &now) ||
      !storage_stamps_equal (&now, &v->stamp))
    return false;
  error_set (v->err, "%s", v->message);
  return true;
}

/* The permissions that QEMU takes on an image it writes. */
static int
lock_for_writing (struct storage *s)
{
  return storage_make_writable (s, STORAGE_CONSISTENT_READ | STORAGE_WRITE |
                                STORAGE_RESIZE,
                                STORAGE_WRITE | STORAGE_RESIZE);
}

/* writer_lock held. */
static int
check_may_write (const struct image *im)
{
  struct storage *s = image_top (im)->layer.tables;

  if (im->repair_failed)
    error_set (EIO, "%s: a repair failed: nothing is written until it is "
               "opened anew", s->name);
  else if (im->chain.force_share) /* another process may write it */
    error_set (EROFS, "%s: it is shared with who writes it, so that it can "
               "only be read", s->name);
  else
    return storage_check_writable (s);
  return -1;
}

/* writer_lock held. */
static int
make_writable (struct image *im, const struct writer_options *options)
{
  const struct qcow2_file *f = image_top (im);
  struct writer *w;

  if (check_may_write (im) == -1 ||
      writer_check_header (f->layer.tables, &f->header, options) == -1 ||
      has_verdict (im))
    return -1;
  /* The locks come last, since they stay; what is looked at before can't
   * change under those of a reader.
   */
  w = writer_open (&f->layer, &f->header, &im->snapshots, options);
  if (w == NULL) {
    if (error_errno () != ENOMEM)
      advise (ADVICE_REPAIR);
    keep_verdict (im);
    return -1;
  }
  if (lock_for_writing (f->layer.tables) == -1) {
    (void) writer_close (w); /* which has nothing to write */
    return -1;
  }
  atomic_store (&im->writer, w);
  return 0;
}

/* --------------------------------------------------------------- repairing */

static bool
is_to_be_repaired (const struct header *h, enum image_repair mode)
{
  const bool dirty = h->incompatible & QCOW2_INCOMPAT_DIRTY;
  const bool corrupt = h->incompatible & QCOW2_INCOMPAT_CORRUPT;

  if (h->l1_missing > 0) /* what is lost, if anything, nobody knows */
    return mode == IMAGE_REPAIR_ALL;
  switch (mode) {
  case IMAGE_REPAIR_NONE:
    return false;
  case IMAGE_REPAIR_DIRTY:
    return dirty && !corrupt;
  case IMAGE_REPAIR_LEAKS:
    return !corrupt;
  case IMAGE_REPAIR_ALL:
    return true;
  }
  abort ();
}

/* What the image was is in memory in many places.  What it is now is read
 * again, once all requests that may have read something else have ended.
 */
static int
read_anew (struct image *im)
{
  const struct timespec pause = { .tv_nsec = 1000000 };
  struct qcow2_file *f = qcow2_file (im->chain.layer[0]);
  const uint64_t then = epoch_now (&im->epoch);
  struct header h = { 0 };
  struct snapshots t;

  if (qcow2_read_header (f->layer.tables, &h) == -1 ||
      snapshots_read (&t, &h, f->layer.tables) == -1)
    return -1;
  /* The rest stays as it was, and has readers. */
  f->header.incompatible = h.incompatible;
  f->header.autoclear = h.autoclear;
  f->header.l1_missing = h.l1_missing;
  f->header.snapshots_offset = h.snapshots_offset;
  im->snapshots.table_bytes = t.table_bytes;
  snapshots_free (&t);
  f->header.refcount_table_offset = h.refcount_table_offset;
  f->header.refcount_table_clusters = h.refcount_table_clusters;
  for (;;) {
    epoch_advance (&im->epoch, then);
    if (epoch_is_past (&im->epoch, then))
      break;
    nanosleep (&pause, NULL);
  }
  cache_forget_storage (im->shared.cache, f->disk.map.id);
  return 0;
}

static void
summarize (const struct image *im, const struct repair_report *r,
           char *summary, size_t len)
{
  const struct check_report *b = &r->before, *a = &r->after;
  char name[1024];

  if (b->corruptions == 0 && b->leaks == 0 && b->check_errors == 0 &&
      !b->dirty && !b->corrupt && !b->l1_cut)
    return;
  snprintf (summary, len, "%s: repaired: %" PRIu64 " errors and %" PRIu64
            " leaked clusters were found, %" PRIu64 " and %" PRIu64
            " are left",
            error_printable (name, sizeof name,
                             image_top (im)->layer.tables->name),
            b->corruptions + b->check_errors, b->leaks,
            a->corruptions + a->check_errors, a->leaks);
}

static void
debug_finding (void *opaque, enum check_kind kind, const char *text)
{
  debug_message ("%s: %s", (const char *) opaque, text);
}

/* writer_lock held. */
static int
repair (struct image *im, enum image_repair mode, char *summary, size_t len)
{
  struct storage *s = image_top (im)->layer.tables;
  const struct check_options options = {
    .memory = im->check_memory,
    .messages = CHECK_MAX_MESSAGES, .found = debug_finding, .opaque = s->name,
  };
  const bool all = mode != IMAGE_REPAIR_LEAKS ||
    (image_top (im)->header.incompatible & QCOW2_INCOMPAT_DIRTY);
  struct repair_report r;

  if (check_may_write (im) == -1 || has_verdict (im) ||
      lock_for_writing (s) == -1)
    return -1;
  if (repair_storage (s, all ? REPAIR_ALL : REPAIR_LEAKS, &options,
                      &r) == -1 ||
      read_anew (im) == -1) {
    /* What can be read now may not be on the disk. */
    im->repair_failed = true;
    return -1;
  }
  summarize (im, &r, summary, len);
  /* Leaks that a repair keeps are for somebody to look at: the search, which
   * can't tell them from others, must not free them at once.
   */
  if (r.after.leaks > 0)
    im->leaks_begun = true;
  if (check_report_is_sound (&r.after))
    return 0;
  error_set (EIO, "%s: %" PRIu64 " errors are left after a repair%s%s: it is "
             "not written", s->name,
             r.after.corruptions + r.after.check_errors,
             r.why_not != NULL ? ", since " : "",
             r.why_not != NULL ? r.why_not : "");
  advise (all ? ADVICE_READ_ONLY : ADVICE_REPAIR);
  keep_verdict (im);
  return -1;
}

/* The tables that are read before an image is served, and the time that it may
 * take to look for excess references: beyond that they stay.  To lower them
 * takes some five times as long.
 */
#define EXCESS_MAX_BYTES (UINT64_C (64) << 20)
#define EXCESS_MAX_NS UINT64_C (200000000)

static uint64_t
nanoseconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

/* A check's progress: false once it is too late. */
static bool
is_in_time (void *opaque, uint64_t done, uint64_t total)
{
  const uint64_t *end = opaque;

  (void) done;
  (void) total;
  return nanoseconds () < *end;
}

/* Whether a writer that was killed may have left refcounts that are higher than
 * the references, but not leaks alone: where it copied from a snapshot, or had
 * several compressed clusters in one.  The bitmaps of one that has some are
 * looked at when it is made writable, and only then.
 */
static bool
may_have_excess (const struct image *im)
{
  const struct header *h = &image_top (im)->header;

  if (h->has_unknown || im->snapshots.has_unknown || h->nr_bitmaps > 0 ||
      h->l1_missing > 0 ||
      (h->incompatible & (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT)))
    return false;
  return h->hint.v != 0 ? h->hint_set : h->nr_snapshots > 0;
}

/* Whether there is something to lower, and that may be done.  What can't be
 * checked is served as it is.
 */
static bool
has_excess (struct image *im)
{
  uint64_t end = nanoseconds () + EXCESS_MAX_NS;
  const struct check_options options = {
    .memory = EXCESS_MAX_BYTES, .progress = is_in_time, .opaque = &end,
  };
  struct storage *s = image_top (im)->layer.tables;
  struct check_report report;
  bool fit;

  return check_tables_fit (s, EXCESS_MAX_BYTES, &fit) == 0 && fit &&
    check_storage (s, &options, &report) == 0 &&
    check_report_is_sound (&report) && report.leaks > 0 &&
    (report.compressed_clusters > 0 || im->snapshots.nr > 0);
}

/* Before anybody writes: only then can references be counted.  Failures before
 * something is written are no errors.  writer_lock held.
 */
static int
lower_excess (struct image *im)
{
  const struct check_options options = { .memory = EXCESS_MAX_BYTES };
  struct storage *s = image_top (im)->layer.tables;
  struct repair_report r;

  if (!may_have_excess (im) || check_may_write (im) == -1 ||
      !has_excess (im) || lock_for_writing (s) == -1)
    return 0;
  if (repair_storage (s, REPAIR_EXCESS, &options, &r) == 0 &&
      read_anew (im) == 0)
    return 0;
  im->repair_failed = true;
  return -1;
}

int
image_repair (struct image *im, enum image_repair mode, char *summary,
              size_t len)
{
  int r = 0;

  summary[0] = '\0';
  pthread_mutex_lock (&im->writer_lock);
  if (im->writer == NULL && !im->repaired &&
      is_to_be_repaired (&image_top (im)->header, mode)) {
    r = repair (im, mode, summary, len);
    im->repaired = r == 0;
  }
  else if (im->writer == NULL && !im->repaired && !im->counted &&
           mode != IMAGE_REPAIR_NONE) {
    r = lower_excess (im);
    im->counted = r == 0;
  }
  pthread_mutex_unlock (&im->writer_lock);
  return r;
}

/* ------------------------------------------------------------ made writable */

int
image_look_ahead (struct image *im, enum image_repair mode,
                  const struct writer_options *options)
{
  struct header h = image_top (im)->header;
  const bool repaired = is_to_be_repaired (&h, mode);
  int r;

  pthread_mutex_lock (&im->writer_lock);
  r = check_may_write (im);
  pthread_mutex_unlock (&im->writer_lock);
  if (r == -1) /* a server that can't flush has clients refused */
    return error_errno () == ENOTSUP ? -1 : 0;
  if (repaired) {
    h.incompatible &= ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    if (mode == IMAGE_REPAIR_ALL)
      h.l1_missing = 0;
  }
  r = writer_check_header (image_top (im)->layer.tables, &h, options);
  /* The repair may fix what is damaged. */
  return r == -1 && repaired && error_errno () != ENOTSUP ? 0 : r;
}

int
image_make_writable (struct image *im, const struct writer_options *options)
{
  int r = 0;

  pthread_mutex_lock (&im->writer_lock);
  if (im->writer == NULL)
    r = make_writable (im, options);
  pthread_mutex_unlock (&im->writer_lock);
  return r;
}

/* By the hint, where there is one. */
static bool
may_have_leaks (const struct header *h)
{
  return h->hint.v == 0 || h->hint_set;
}

void
image_free_leaks (struct image *im)
{
  pthread_mutex_lock (&im->writer_lock);
  if (im->writer != NULL && !im->leaks_begun) {
    if (may_have_leaks (&image_top (im)->header))
      im->leaks = leaks_start (im->writer, &im->snapshots);
    im->leaks_begun = true;
  }
  pthread_mutex_unlock (&im->writer_lock);
}

bool
image_leaks_are_done (struct image *im)
{
  bool done;

  pthread_mutex_lock (&im->writer_lock);
  done = im->leaks == NULL || leaks_have_ended (im->leaks);
  pthread_mutex_unlock (&im->writer_lock);
  return done;
}
