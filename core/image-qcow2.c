/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2 images: snapshots, feature bits, and the writer of the live disk. */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <time.h>

#include "base/error.h"
#include "image-parts.h"
#include "qcow2/bitmap-disk.h"
#include "qcow2/changed-disk.h"
#include "qcow2/check/check.h"
#include "qcow2/check/repair.h"
#include "qcow2/check/size.h"
#include "qcow2/disk.h"
#include "qcow2/point-disk.h"
#include "qcow2/qcow2.h"
#include "qcow2/write/follow.h"
#include "qcow2/write/take.h"
#include "qcow2/write/unfreeze.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"

static inline const struct qcow2_file *
image_top (const struct image *im)
{
  return qcow2_file (im->chain.layer[0]);
}

/* ------------------------------------------------------------------ opening */

static int
qcow2_opened (struct image *im)
{
  const struct header *h = &image_top (im)->header;

  im->cluster_size = h->cluster_size;
  im->preferred_size = h->subcluster_size;
  return snapshots_read (&im->snapshots, h, image_storage (im));
}

static struct layer *
qcow2_new_disk (const struct image *im, const struct snapshot *sn)
{
  const struct qcow2_file *f = image_top (im);
  struct qcow2_disk *disk;

  if (sn != NULL && snapshot_check (sn, &f->header, f->layer.tables) == -1) {
    const uint64_t index = sn - im->snapshots.snapshot;

    /* Clients that list the exports try this one each time. */
    if (!damage_is_new (f->layer.damage,
                        f->header.snapshots_offset.v + index))
      error_set_repeated ();
    return NULL;
  }
  disk = malloc (sizeof *disk);
  if (disk == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  *disk = f->disk;
  if (sn != NULL) {
    disk->layer.size = sn->disk_size / 512 * 512;
    disk->map.l1_offset = sn->l1_offset;
    disk->map.l1_size = sn->l1_size;
  }
  return &disk->layer;
}

static struct layer *
qcow2_new_bitmap_disk (const struct image *im, const char *name,
                       const struct snapshot *sn, struct point *point)
{
  struct layer *disk = sn == NULL ? NULL : qcow2_new_disk (im, sn), *r = NULL;

  if (sn == NULL || disk != NULL)
    r = bitmap_disk_new (image_top (im), name,
                         disk == NULL ? NULL : qcow2_disk (disk), point);
  free (disk);
  return r;
}

static struct layer *
qcow2_new_changed_disk (const struct image *im, const struct snapshot *from,
                        const struct snapshot *to, struct point *point)
{
  struct layer *a = qcow2_new_disk (im, from);
  struct layer *b = a != NULL ? qcow2_new_disk (im, to) : NULL;
  struct layer *r = NULL;

  if (b != NULL && point != NULL)
    r = changed_disk_frozen (qcow2_disk (a), image_top (im), point);
  else if (b != NULL)
    r = changed_disk_new (qcow2_disk (a), qcow2_disk (b));
  free (a);
  free (b);
  return r;
}

/* A repair may have changed the header since the image was opened, or a bitmap have
 * begun: in the epoch the directory stays that it leads to.
 */
static int
qcow2_list_bitmaps (const struct image *im, bitmaps_list_fn *fn, void *opaque)
{
  const unsigned token = epoch_enter (im->shared.epoch);
  struct header h;
  int r = qcow2_read_header (image_storage (im), &h);

  if (r == 0)
    r = bitmaps_list (image_storage (im), &h, fn, opaque);
  epoch_leave (im->shared.epoch, token);
  return r;
}

/* What is written with an external data file goes where it is. */
static struct points *
qcow2_points (const struct image *im)
{
  const struct qcow2_file *f = image_top (im);

  if (!f->header.has_data_file)
    return f->points;
  error_set (ENOTSUP, "%s: there are no points in time with an external data "
             "file (incompatible feature bit 2)", image_storage (im)->name);
  return NULL;
}

static struct layer *
qcow2_new_point_disk (const struct image *im, struct point *point)
{
  return point_disk_new (image_top (im), point);
}

static void
qcow2_release_points (struct image *im)
{
  unfreeze (im->writer);
}

static bool
qcow2_keep_bits (struct image *im, const struct layer *disk, unsigned *at)
{
  struct writer *w = atomic_load (&im->writer);

  return w != NULL && follow_keep_bits (w, bitmap_disk_table (disk), at);
}

static int
qcow2_take_snapshot (struct image *im, const struct point *point,
                     const char *name, const struct timespec *date,
                     const struct bitmap_header *bitmaps,
                     struct snapshots *made)
{
  return take_snapshot (im->writer, point, name, date, &im->snapshots, bitmaps,
                        made);
}

static struct rotation *
qcow2_new_rotation (struct image *im, const struct rotation_wanted *wanted)
{
  return rotation_new (im->writer, wanted);
}

bool
image_compression (const struct image *im, enum compression *compression)
{
  if (im->kind != &image_qcow2)
    return false;
  *compression = image_top (im)->disk.compression;
  return true;
}

/* --------------------------------------------------------------- repairing */

static bool
qcow2_is_to_be_repaired (const struct image *im, enum image_repair mode)
{
  const struct header *h = &image_top (im)->header;
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
  struct qcow2_file *f = qcow2_file (im->chain.layer[0]);
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
  image_forget_tables (im, f->disk.map.id);
  return 0;
}

static void
debug_finding (void *opaque, enum check_kind kind, const char *text)
{
  debug_message ("%s: %s", (const char *) opaque, text);
}

static void
fill_repaired (const struct repair_report *r, bool all, struct repaired *out)
{
  const struct check_report *b = &r->before, *a = &r->after;

  *out = (struct repaired) {
    .errors = b->corruptions + b->check_errors,
    .leaks = b->leaks,
    .errors_left = a->corruptions + a->check_errors,
    .leaks_left = a->leaks,
    .marked = b->dirty || b->corrupt || b->l1_cut,
    .why_not = r->why_not,
    .advice = all ? ADVICE_READ_ONLY : ADVICE_REPAIR,
  };
}

static int
qcow2_repair (struct image *im, enum image_repair mode, struct repaired *out)
{
  struct storage *s = image_storage (im);
  const struct check_options options = {
    .memory = im->check_memory,
    .messages = CHECK_MAX_MESSAGES, .found = debug_finding, .opaque = s->name,
  };
  const bool all = mode != IMAGE_REPAIR_LEAKS ||
    (image_top (im)->header.incompatible & QCOW2_INCOMPAT_DIRTY);
  struct repair_report r;

  if (repair_storage (s, all ? REPAIR_ALL : REPAIR_LEAKS, &options,
                      &r) == -1 ||
      read_anew (im) == -1)
    return -1;
  fill_repaired (&r, all, out);
  return 0;
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
  struct storage *s = image_storage (im);
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
  struct storage *s = image_storage (im);
  struct repair_report r;

  if (!may_have_excess (im) || image_check_may_write (im) == -1 ||
      !has_excess (im) || image_lock_for_writing (im) == -1)
    return 0;
  if (repair_storage (s, REPAIR_EXCESS, &options, &r) == 0 &&
      read_anew (im) == 0)
    return 0;
  return -1;
}

/* ------------------------------------------------------------ made writable */

static int
qcow2_check (const struct image *im, const struct writer_options *options,
             bool repaired, enum image_repair mode)
{
  struct header h = image_top (im)->header;

  if (repaired) {
    h.incompatible &= ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    if (mode == IMAGE_REPAIR_ALL)
      h.l1_missing = 0;
  }
  return writer_check_header (image_storage (im), &h, options);
}

/* Whether a data file reads as zeros where a run says so. */
static int
is_zero_there (const struct layer *l, struct guest_off at,
               const struct run *run, bool *zero)
{
  const uint64_t size = atomic_load (&l->data_file->size);
  uint64_t bytes = run->length;

  *zero = at.v >= size;
  if (*zero)
    return 0;
  if (bytes > size - at.v)
    bytes = size - at.v;
  return storage_is_zero (l->data, (struct host_off) { at.v }, bytes, zero);
}

/* A data file that lacks data must not grow: what is missing would seem to be
 * zeros then.  One that is raw is not written if it has data where the image
 * says that there are zeros: which of the two is right is not known.
 */
static int
check_run (const struct layer *l, bool raw, struct guest_off at,
           const struct run *run)
{
  const char *image = l->tables->name, *data = l->data->name;
  bool zero = true;

  if (raw && run->kind != RUN_DATA && run->kind != RUN_DAMAGED &&
      is_zero_there (l, at, run, &zero) == -1)
    return -1;
  if (run->kind == RUN_DAMAGED)
    error_append (" (%s has %" PRIu64 " bytes; if that is too short, what it "
                  "lacks is zeros once it is enlarged)", data,
                  atomic_load (&l->data_file->size));
  else if (!zero)
    error_set (ENOTSUP, "%s: the raw data file %s has data from offset 0x%"
               PRIx64 " on, where zeros should be, so that it can only be read",
               image, data, at.v);
  else
    return 0;
  advise (ADVICE_READ_ONLY);
  return -1;
}

/* How many runs the tables of a file of this size can describe, if none of them
 * has several uses.  An entry with subclusters may be a run for each of those.
 */
static uint64_t
most_runs (const struct header *h, uint64_t bytes)
{
  return h->extended_l2 ? bytes / 16 * QCOW2_SUBCLUSTERS : bytes / 8;
}

/* No more than that are looked up: tables with several uses could make them
 * very many.
 */
static int
qcow2_check_data (const struct image *im)
{
  const struct layer *l = &image_top (im)->layer;
  const struct map *m = qcow2_map (l);
  const bool raw = image_top (im)->header.raw_data;
  uint64_t size, left = most_runs (&image_top (im)->header,
                                   atomic_load (&l->tables->size));
  struct guest_off at = { 0 };
  struct run run;
  int r = 0;

  if (!m->format.data_file)
    return 0;
  storage_see_growth (l->data_file);
  size = atomic_load (&l->data_file->size);
  if (!raw)
    at.v = (size + m->cluster_size - 1) & -m->cluster_size;
  for (; r == 0 && at.v < l->size; at.v += run.length) {
    const unsigned token = epoch_enter (l->shared->epoch);

    r = map_lookup (m, at, l->size - at.v, &run);
    if (r == 0)
      r = check_run (l, raw, at, &run);
    epoch_leave (l->shared->epoch, token);
    if (r == 0 && left-- == 0) {
      error_set (EIO, "%s: its tables have more than one use", l->tables->name);
      advise (ADVICE_REPAIR);
      r = -1;
    }
  }
  return r;
}

static void *
qcow2_open_writer (struct image *im, const struct writer_options *options)
{
  const struct qcow2_file *f = image_top (im);
  struct writer *w = writer_open (&f->layer, &f->header, &im->snapshots,
                                  options);

  if (w != NULL)
    w->points = f->points;
  if (w == NULL || follow_open (w) == 0)
    return w;
  (void) writer_close (w); /* which has nothing to write */
  return NULL;
}

/* By the hint, where there is one. */
static bool
may_have_leaks (const struct header *h)
{
  return h->hint.v == 0 || h->hint_set;
}

static struct leaks *
qcow2_find_leaks (struct image *im)
{
  return may_have_leaks (&image_top (im)->header)
    ? leaks_start (im->writer, &im->snapshots, im->check_memory) : NULL;
}

/* ----------------------------------------------------------------- requests */

static unsigned
disk_flags (unsigned flags)
{
  return (flags & IMAGE_FUA ? DISK_FUA : 0) |
    (flags & IMAGE_MAY_TRIM ? DISK_MAY_TRIM : 0) |
    (flags & IMAGE_FAST ? DISK_FAST : 0) |
    (flags & IMAGE_HIDE ? DISK_HIDE : 0);
}

static int
qcow2_write (void *writer, const void *buf, uint64_t count,
             struct guest_off offset, unsigned flags)
{
  struct writer *w = writer;

  return w->follow == NULL
    ? disk_write (w, buf, count, offset, disk_flags (flags))
    : follow_write (w, buf, count, offset, disk_flags (flags));
}

static int
qcow2_zero (void *writer, uint64_t count, struct guest_off offset,
            unsigned flags)
{
  struct writer *w = writer;

  return w->follow == NULL
    ? disk_zero (w, count, offset, disk_flags (flags))
    : follow_zero (w, count, offset, disk_flags (flags));
}

static int
qcow2_trim (void *writer, uint64_t count, struct guest_off offset,
            unsigned flags)
{
  struct writer *w = writer;

  return w->follow == NULL
    ? disk_trim (w, count, offset, disk_flags (flags))
    : follow_trim (w, count, offset, disk_flags (flags));
}

static int
qcow2_flush (void *writer)
{
  return writer_flush (writer);
}

static uint64_t
qcow2_taken (void *writer)
{
  return atomic_load (&((struct writer *) writer)->taken);
}

static int
qcow2_close_writer (void *writer, bool no_leaks)
{
  if (no_leaks)
    writer_no_leaks (writer);
  follow_close (writer);
  return writer_close (writer);
}

const struct image_kind image_qcow2 = {
  .format = &qcow2_format,
  .opened = qcow2_opened,
  .new_disk = qcow2_new_disk,
  .new_bitmap_disk = qcow2_new_bitmap_disk,
  .new_changed_disk = qcow2_new_changed_disk,
  .list_bitmaps = qcow2_list_bitmaps,
  .points = qcow2_points,
  .new_point_disk = qcow2_new_point_disk,
  .release_points = qcow2_release_points,
  .keep_bits = qcow2_keep_bits,
  .take_snapshot = qcow2_take_snapshot,
  .new_rotation = qcow2_new_rotation,
  .is_to_be_repaired = qcow2_is_to_be_repaired,
  .check = qcow2_check,
  .check_data = qcow2_check_data,
  .repair = qcow2_repair,
  .mend = lower_excess,
  .find_leaks = qcow2_find_leaks,
  .open_writer = qcow2_open_writer,
  .write = qcow2_write,
  .zero = qcow2_zero,
  .trim = qcow2_trim,
  .flush = qcow2_flush,
  .taken = qcow2_taken,
  .close_writer = qcow2_close_writer,
};
