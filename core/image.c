/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "base/advice.h"
#include "base/error.h"
#include "base/gate.h"
#include "formats.h"
#include "image.h"
#include "qcow2/check/check.h"
#include "qcow2/check/size.h"
#include "qcow2/codec.h"
#include "qcow2/disk.h"
#include "qcow2/qcow2.h"
#include "qcow2/snapshot.h"
#include "qcow2/write/leaks.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"
#include "storage/open.h"

/* Why an image can't be written: found out at some cost, which another client
 * does not have to cause again.  It holds as long as the file is as it was
 * then, by its inode, size and times.  Should something have changed that
 * these don't tell (within one tick of the file system's clock, or on a block
 * device) then an image stays refused that need not be; that it is sound is
 * never taken from here, so nothing is written that should not be.
 */
struct verdict {
  bool known;
  struct storage_stamp stamp;
  int err;
  char message[1024];
};

struct image {
  struct shared shared;
  struct epoch epoch;
  struct chain chain;
  struct snapshots snapshots;

  struct gate gate; /* of requests that change something, and of flushes */
  pthread_mutex_t writer_lock;
  struct writer *_Atomic writer; /* NULL: not writable */
  _Atomic uint64_t full; /* see no_space_once */
  struct leaks *leaks; /* writer_lock; NULL: none are looked for */
  bool leaks_begun;    /* writer_lock; or are not to be looked for */
  enum detect_zeroes detect_zeroes;
  bool repaired;      /* writer_lock; or found to need no repair */
  bool counted;       /* writer_lock; excess references were lowered */
  bool repair_failed; /* writer_lock; nothing is written any more (I10) */
  uint64_t check_memory;
  struct verdict verdict; /* writer_lock */
};

static const struct qcow2_file *
top (const struct image *im)
{
  return qcow2_file (im->chain.layer[0]);
}

void
image_each_warning (const struct image *im, image_warning_fn *fn,
                    void *opaque)
{
  char text[512];
  unsigned i;

  for (i = 0; i < im->chain.nr; ++i) {
    const struct layer *l = im->chain.layer[i];

    if (l->format->warning != NULL &&
        l->format->warning (l, text, sizeof text))
      fn (opaque, text);
  }
}

/* Everything but the chain and what depends on it. */
static struct image *
image_new (uint64_t cache_size)
{
  struct image *im = calloc (1, sizeof *im);

  if (im == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  epoch_init (&im->epoch);
  gate_init (&im->gate);
  pthread_mutex_init (&im->writer_lock, NULL);
  im->check_memory = IMAGE_DEFAULT_CHECK_MEMORY;
  im->shared.formats = all_formats;
  im->shared.epoch = &im->epoch;
  im->shared.cache = cache_new (cache_size);
  if (im->shared.cache != NULL)
    im->shared.clusters = cluster_cache_new ();
  if (im->shared.clusters != NULL)
    im->shared.codecs = codec_pool_new ();
  if (im->shared.codecs == NULL) {
    (void) image_close (im);
    return NULL;
  }
  return im;
}

static struct image *
read_snapshots (struct image *im)
{
  if (snapshots_read (&im->snapshots, &top (im)->header,
                      top (im)->layer.tables) == -1) {
    (void) image_close (im);
    return NULL;
  }
  return im;
}

struct image *
image_open (const struct image_options *options)
{
  struct image *im = image_new (options->cache_size);

  if (im == NULL)
    return NULL;
  if (options->check_memory != 0)
    im->check_memory = options->check_memory;
  if (chain_open (&im->chain, &qcow2_format, &options->chain,
                  &im->shared) == -1) {
    (void) image_close (im);
    return NULL;
  }
  return read_snapshots (im);
}

struct image *
image_open_storages (struct storage *const *storages, unsigned nr,
                     uint64_t cache_size)
{
  struct image *im = image_new (cache_size);
  unsigned i;

  if (im == NULL) {
    for (i = 0; i < nr; ++i)
      storage_close (storages[i]);
    return NULL;
  }
  if (chain_open_storages (&im->chain, &qcow2_format, storages, nr,
                           &im->shared) == -1) {
    (void) image_close (im);
    return NULL;
  }
  return read_snapshots (im);
}

struct image *
image_open_storage (struct storage *s, uint64_t cache_size)
{
  return image_open_storages (&s, 1, cache_size);
}

/* The image itself must not be its own backing file, nor below that: once it
 * is made anew its data would be lost.  Returns -1 with the error set.
 */
static int
check_is_not (const struct storage *backing, const char *file)
{
  struct storage *s = storage_open (file);
  const bool same = s != NULL && storage_same (backing, s);

  storage_close (s);
  if (same)
    error_set (EINVAL, "%s: can't be its own backing file", file);
  return same ? -1 : 0;
}

static int
check_chain_is_not (const struct chain *c, const char *file)
{
  unsigned i;

  for (i = 0; i < c->nr; ++i) {
    if (check_is_not (c->layer[i]->tables, file) == -1)
      return -1;
  }
  return 0;
}

static int
qcow2_size (const struct chain_options *options, uint64_t *size)
{
  const char *const *formats = options->lower_formats;
  const bool given = formats != NULL && formats[0] != NULL;
  const struct image_options backing = {
    .chain.file = options->backing,
    .chain.follow = options->follow,
    .chain.backing_format = given ? formats[0] : NULL,
    .chain.lower_formats = given ? formats + 1 : NULL,
    .chain.force_share = options->force_share,
    .chain.locking = options->locking,
    .cache_size = CACHE_MIN_BYTES,
  };
  struct image *im = image_open (&backing);
  int r = -1;

  if (im != NULL && check_chain_is_not (&im->chain, options->file) == 0) {
    *size = top (im)->layer.size;
    r = 0;
  }
  (void) image_close (im); /* it was only read */
  return r;
}

static int
raw_size (const struct chain_options *options, uint64_t *size)
{
  struct storage *s = storage_open (options->backing);
  int r = -1;

  if (s != NULL && check_is_not (s, options->file) == 0) {
    *size = (atomic_load (&s->size) + 511) & ~UINT64_C (511);
    r = 0;
  }
  storage_close (s);
  return r;
}

int
image_backing_size (const struct chain_options *options, uint64_t *size)
{
  return strcmp (options->backing_format, "raw") == 0
    ? raw_size (options, size) : qcow2_size (options, size);
}

int
image_close (struct image *im)
{
  int r;

  if (im == NULL)
    return 0;
  if (leaks_stop (im->leaks))
    writer_no_leaks (im->writer);
  r = writer_close (im->writer);
  snapshots_free (&im->snapshots);
  chain_close (&im->chain);
  codec_pool_free (im->shared.codecs);
  cluster_cache_free (im->shared.clusters);
  cache_free (im->shared.cache);
  pthread_mutex_destroy (&im->writer_lock);
  gate_destroy (&im->gate);
  epoch_destroy (&im->epoch);
  free (im);
  return r;
}

/* Keep the error just set.  writer_lock held. */
static void
keep_verdict (struct image *im)
{
  struct verdict *v = &im->verdict;

  v->err = error_errno ();
  snprintf (v->message, sizeof v->message, "%s", error_message ());
  v->known = v->err != ENOMEM &&
    storage_stamp (top (im)->layer.tables, &v->stamp);
}

/* Whether it is known that the image can't be written: then the error is set.
 * writer_lock held.
 */
static bool
has_verdict (const struct image *im)
{
  const struct verdict *v = &im->verdict;
  struct storage_stamp now;

  if (!v->known || !storage_stamp (top (im)->layer.tables, &now) ||
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
  struct storage *s = top (im)->layer.tables;

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
  const struct qcow2_file *f = top (im);
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
            error_printable (name, sizeof name, top (im)->layer.tables->name),
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
  struct storage *s = top (im)->layer.tables;
  const struct check_options options = {
    .memory = im->check_memory,
    .messages = CHECK_MAX_MESSAGES, .found = debug_finding, .opaque = s->name,
  };
  const bool all = mode != IMAGE_REPAIR_LEAKS ||
    (top (im)->header.incompatible & QCOW2_INCOMPAT_DIRTY);
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
  const struct header *h = &top (im)->header;

  if (h->has_unknown || im->snapshots.has_unknown || h->nr_bitmaps > 0 ||
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
  struct storage *s = top (im)->layer.tables;
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
  struct storage *s = top (im)->layer.tables;
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
      is_to_be_repaired (&top (im)->header, mode)) {
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
  struct header h = top (im)->header;
  const bool repaired = is_to_be_repaired (&h, mode);
  int r;

  pthread_mutex_lock (&im->writer_lock);
  r = check_may_write (im);
  pthread_mutex_unlock (&im->writer_lock);
  if (r == -1)
    return 0;
  if (repaired) {
    h.incompatible &= ~(QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT);
    if (mode == IMAGE_REPAIR_ALL)
      h.l1_missing = 0;
  }
  r = writer_check_header (top (im)->layer.tables, &h, options);
  /* What is damaged the repair may mend. */
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
    if (may_have_leaks (&top (im)->header))
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

void
image_detect_zeroes (struct image *im, enum detect_zeroes detect)
{
  im->detect_zeroes = detect;
}

enum compression
image_compression (const struct image *im)
{
  return top (im)->disk.compression;
}

/* Requests fail by the thousand once there is no space.  The first is logged,
 * and another only after a request that was given some has gone well: mere
 * overwriting goes well all the time.  full is 0, or one more than writer.taken
 * was at the last failure.  r is the result of a request, and returned.
 */
static int
no_space_once (struct image *im, int r)
{
  uint64_t full = atomic_load_explicit (&im->full, memory_order_relaxed);
  const bool failed = r == -1 && error_errno () == ENOSPC;

  if (full != 0 || failed) {
    const uint64_t now = atomic_load (&im->writer->taken) + 1;

    if (failed && atomic_exchange (&im->full, now) != 0)
      error_set_repeated ();
    else if (failed)
      error_append (" (logged once until there is room again)");
    else if (r == 0 && full != now)
      atomic_compare_exchange_strong (&im->full, &full, 0);
  }
  return r;
}

static bool
is_zero (const uint8_t *p, uint64_t count)
{
  return p[0] == 0 && memcmp (p, p + 1, count - 1) == 0;
}

/* How many of the bytes from here on are of one kind: zeros or not, in pieces
 * that end where clusters do.
 */
static uint64_t
same_kind (const struct image *im, const uint8_t *p, uint64_t count,
           struct guest_off offset, bool *zero)
{
  const uint64_t mask = top (im)->header.cluster_size - 1;
  uint64_t done, piece;

  for (done = 0; done < count; done += piece) {
    bool z;

    piece = mask + 1 - ((offset.v + done) & mask);
    if (piece > count - done)
      piece = count - done;
    z = is_zero (p + done, piece);
    if (done == 0)
      *zero = z;
    else if (z != *zero)
      break;
  }
  return done;
}

static int
write_or_zero (struct image *im, const uint8_t *p, uint64_t count,
               struct guest_off offset)
{
  while (count > 0) {
    bool zero = false;
    const uint64_t n = same_kind (im, p, count, offset, &zero);
    const int r = zero
      ? disk_zero (im->writer, n, offset,
                   im->detect_zeroes == DETECT_ZEROES_UNMAP
                   ? DISK_MAY_TRIM : 0)
      : disk_write (im->writer, p, n, offset, 0);

    if (r == -1)
      return -1;
    p += n;
    offset.v += n;
    count -= n;
  }
  return 0;
}

static unsigned
disk_flags (unsigned flags)
{
  return (flags & IMAGE_FUA ? DISK_FUA : 0) |
    (flags & IMAGE_MAY_TRIM ? DISK_MAY_TRIM : 0) |
    (flags & IMAGE_FAST ? DISK_FAST : 0);
}

static int
write_request (struct image *im, const void *buf, uint64_t count,
               struct guest_off offset, unsigned flags)
{
  if (im->detect_zeroes == DETECT_ZEROES_OFF)
    return disk_write (im->writer, buf, count, offset, disk_flags (flags));
  if (write_or_zero (im, buf, count, offset) == -1)
    return -1;
  return flags & IMAGE_FUA ? writer_flush (im->writer) : 0;
}

int
image_write (struct image *im, const void *buf, uint64_t count,
             struct guest_off offset, unsigned flags)
{
  const unsigned token = gate_enter (&im->gate);
  const int r = write_request (im, buf, count, offset, flags);

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_zero (struct image *im, uint64_t count, struct guest_off offset,
            unsigned flags)
{
  const unsigned token = gate_enter (&im->gate);
  const int r = disk_zero (im->writer, count, offset, disk_flags (flags));

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_trim (struct image *im, uint64_t count, struct guest_off offset,
            unsigned flags)
{
  const unsigned token = gate_enter (&im->gate);
  const int r = disk_trim (im->writer, count, offset, disk_flags (flags));

  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

int
image_flush (struct image *im)
{
  struct writer *w = im->writer;
  unsigned token;
  int r;

  if (w == NULL)
    return 0;
  token = gate_enter (&im->gate);
  r = writer_flush (w);
  gate_leave (&im->gate, token);
  return no_space_once (im, r);
}

static void
describe_snapshot (const struct snapshot *sn, char *buf, size_t len)
{
  const time_t t = sn->date_sec;
  char date[64] = "";
  char vm_state[64] = "";
  struct tm tm;

  if (gmtime_r (&t, &tm) != NULL)
    strftime (date, sizeof date, "%Y-%m-%d %H:%M:%S UTC", &tm);
  if (sn->vm_state_size > 0)
    snprintf (vm_state, sizeof vm_state, ", with %" PRIu64
              " bytes of VM state", sn->vm_state_size);
  snprintf (buf, len, "internal snapshot of %s, disk size %" PRIu64 "%s",
            date, sn->disk_size, vm_state);
}

int
image_list (const struct image *im, export_fn fn, void *opaque)
{
  char description[256];
  uint32_t i;

  if (image_describe (im, "", description, sizeof description) == -1 ||
      fn (opaque, "", description) == -1)
    return -1;
  for (i = 0; i < im->snapshots.nr; ++i) {
    const struct snapshot *sn = &im->snapshots.snapshot[i];
    char *name;
    int r;

    if (sn->label == NULL)
      continue;
    if (asprintf (&name, IMAGE_SNAPSHOT_PREFIX "%s", sn->label) == -1) {
      error_set (ENOMEM, "out of memory");
      return -1;
    }
    describe_snapshot (sn, description, sizeof description);
    r = fn (opaque, name, description);
    free (name);
    if (r == -1)
      return -1;
  }
  return 0;
}

/* The snapshot behind an export other than "", or NULL with the error set. */
static const struct snapshot *
find_snapshot (const struct image *im, const char *export)
{
  const size_t prefix = strlen (IMAGE_SNAPSHOT_PREFIX);
  const struct snapshot *sn = NULL;

  if (strncmp (export, IMAGE_SNAPSHOT_PREFIX, prefix) == 0)
    sn = snapshots_find (&im->snapshots, export + prefix);
  if (sn != NULL)
    return sn;
  error_set (ENOENT, "%s: there is no export \"%.256s\"",
             top (im)->layer.tables->name, export);
  if (snapshots_find (&im->snapshots, export) != NULL)
    error_append (": that snapshot is \"" IMAGE_SNAPSHOT_PREFIX "%.256s\"",
                  export);
  return NULL;
}

int
image_describe (const struct image *im, const char *export,
                char *buf, size_t len)
{
  const struct snapshot *sn;

  if (export[0] == '\0') {
    snprintf (buf, len, "live disk, size %" PRIu64, top (im)->layer.size);
    return 0;
  }
  sn = find_snapshot (im, export);
  if (sn == NULL)
    return -1;
  describe_snapshot (sn, buf, len);
  return 0;
}

struct layer *
image_open_disk (const struct image *im, const char *export)
{
  const struct qcow2_file *f = top (im);
  const struct snapshot *sn = NULL;
  struct qcow2_disk *disk;

  if (export[0] != '\0') {
    sn = find_snapshot (im, export);
    if (sn == NULL)
      return NULL;
    if (snapshot_check (sn, &f->header, f->layer.tables) == -1) {
      const uint64_t index = sn - im->snapshots.snapshot;

      /* Clients that list the exports try this one each time. */
      if (!damage_is_new (f->layer.damage,
                          f->header.snapshots_offset.v + index))
        error_set_repeated ();
      return NULL;
    }
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

void
image_close_disk (struct layer *disk)
{
  free (disk); /* the first member of what image_open_disk made */
}

uint32_t
image_preferred_size (const struct image *im)
{
  return top (im)->header.subcluster_size;
}
