/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts and failing storage while an internal snapshot is made of a disk that
 * is served, and written before, meanwhile and after.  In each state the image is
 * sound but for leaks, or dirty; the snapshot is not there, or is whole: then it
 * has what the disk had when it was asked for, and that is durable in the disk,
 * too.  All of that is so after a repair and further requests as well.
 *
 * With "+rotate" a bitmap begins with the snapshot, and ends another one if there are
 * some.  The two are there as the snapshot is: then the new one has what changed after
 * the point, and the old one is disabled, and has what changed up to that.  Before,
 * and whatever becomes of the others, each has all that changed.
 *
 * With "+refused" it can't be made, since refcounts are as large as they can be.
 *
 *   test-take-cuts [IMAGE[+rotate|+refused]]
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "bits-view.h"
#include "check.h"
#include "checker.h"
#include "content.h"
#include "crash-storage.h"
#include "disk/read.h"
#include "everywhere.h"
#include "image-check.h"
#include "image-parts.h"
#include "maker.h"
#include "memory-storage.h"
#include "must-have.h"
#include "qcow2/write/follow.h"
#include "qcow2/write/writer-parts.h"
#include "random.h"
#include "seconds.h"
#include "seen.h"
#include "take-wrap.h"
#include "verdict.h"

#define POINTS_MEMORY (UINT64_C (1) << 20)

static char what[256]; /* is looked at */
static const struct made *made;
static bool rotates, refused;

/* ------------------------------------------------------- what the disk may hold */

/* All that a sector was given, in order. */
struct version {
  struct version *next; /* the one before */
  unsigned moment;
  uint8_t bytes[SECTOR];
};

static struct version **version; /* of each sector, the last one */
static unsigned moment;
static uint8_t *at_point;        /* the disk, when the snapshot was asked for */
static unsigned point_moment;
static bool point_is_known;
static struct seen seen;         /* of the disk after these requests */

static void
note_content (uint64_t sector, const uint8_t *bytes)
{
  struct version *v = must_have (malloc (sizeof *v));

  v->next = version[sector];
  v->moment = moment;
  memcpy (v->bytes, bytes, SECTOR);
  version[sector] = v;
}

static void
forget_contents (void)
{
  uint64_t i;

  for (i = 0; i < made->disk_size / SECTOR; ++i) {
    struct version *v;

    while ((v = version[i]) != NULL) {
      version[i] = v->next;
      free (v);
    }
  }
}

static void
start_contents (void)
{
  uint64_t i;

  forget_contents ();
  seen_forget (&seen);
  moment = 0;
  point_is_known = false;
  for (i = 0; i < made->disk_size / SECTOR; ++i)
    note_content (i, made->content + i * SECTOR);
}

/* Whether a sector may hold this; with the snapshot, only what it has or what came
 * later.
 */
static bool
may_hold (uint64_t sector, const uint8_t *bytes, bool snapshot)
{
  const struct version *v;

  for (v = version[sector]; v != NULL; v = v->next) {
    if (snapshot && point_is_known && v->moment <= point_moment)
      return memcmp (at_point + sector * SECTOR, bytes, SECTOR) == 0;
    if (memcmp (v->bytes, bytes, SECTOR) == 0)
      return true;
  }
  return false;
}

/* ------------------------------------------------------------------- requests */

static struct image *image;

/* Requests may fail: the sectors hold one of both then. */
static void
change (uint64_t seed, unsigned nr)
{
  const uint64_t sectors = made->disk_size / SECTOR;
  uint8_t *buf = must_have (malloc (made->disk_size));
  uint64_t state = mix (seed), i, k;

  for (i = 0; i < nr; ++i) {
    const uint64_t first = random_below (&state, sectors);
    uint64_t n = 1 + random_below (&state, 2 * made->cluster_size / SECTOR);
    const unsigned kind = random_below (&state, 5);
    const struct guest_off at = { first * SECTOR };

    if (n > sectors - first)
      n = sectors - first;
    moment++;
    for (k = 0; k < n; ++k) {
      memset (buf + k * SECTOR, 0, SECTOR);
      if (kind > 1)
        put_be64 (buf + k * SECTOR + 8, seed << 32 | i << 16 | k | 1ULL << 63);
      note_content (first + k, buf + k * SECTOR);
    }
    if (kind == 0)
      (void) image_zero (image, n * SECTOR, at, 0);
    else if (kind == 1)
      (void) image_zero (image, n * SECTOR, at, IMAGE_MAY_TRIM);
    else
      (void) image_write (image, buf, n * SECTOR, at, 0);
  }
  free (buf);
}

/* What was marked ahead of changes isn't any more, so that later ones have to. */
static void
mark_exactly (void)
{
  struct writer *w = image->writer;

  if (rotates && w != NULL)
    follow_settle (w, 0);
}

static void
flush (void)
{
  (void) image_flush (image);
}

/* Requests while the snapshot is made; nothing is held then. */
int
__wrap_features_begin_take (struct writer *w)
{
  const int r = __real_features_begin_take (w);
  struct error_kept kept;

  error_keep (&kept);
  change (2, 5);
  flush ();
  change (3, 3);
  error_restore (&kept);
  return r;
}

int
__wrap_features_switch_snapshots (struct writer *w, uint32_t nr,
                                  struct host_off table,
                                  const struct bitmap_header *bitmaps)
{
  change (4, 3);
  return __real_features_switch_snapshots (w, nr, table, bitmaps);
}

/* ------------------------------------------------------------------ the command */

static struct image *
open_image (struct storage *s)
{
  struct storage *storages[2] = { s };
  unsigned nr = 1;

  if (made->backing != NULL)
    storages[nr++] = memory_storage_new ("backing", made->backing,
                                         made->backing_size, NULL);
  return image_open_encrypted (storages, nr, CACHE_MIN_BYTES,
                               made->aes ? &made_passphrases : NULL);
}

static bool
read_all (struct layer *disk, uint8_t *buf)
{
  return disk != NULL &&
    layer_read (disk, buf, made->disk_size, (struct guest_off) { 0 }) == 0;
}

static bool
read_export (const struct image *im, const char *export, uint8_t *buf)
{
  struct layer *disk = image_open_disk (im, export);
  const bool ok = read_all (disk, buf);

  image_close_disk (disk);
  return ok;
}

struct outcome {
  bool asked, made;
  int err;      /* why it was not made */
  bool sticks;  /* nothing is written any more, for this reason */
  char why[512];
  bool closed;  /* well: else its reserve may be leaked */
};

/* Open, write, make a snapshot, write, and close. */
static void
run (struct storage *s, struct outcome *o)
{
  const struct writer_options options = {
    .compress_level = made->zip, .keep_discarded = made->keep,
    .bitmap_idle = BITMAP_NEVER_IDLE,
  };
  uint8_t *buf = must_have (malloc (made->disk_size));
  struct layer *disk = NULL;
  unsigned i;

  *o = (struct outcome) { .sticks = true };
  image = open_image (s);
  if (image != NULL && image_allow_points (image, 0, POINTS_MEMORY) == 0 &&
      image_make_writable (image, &options) == 0) {
    change (1, 6);
    mark_exactly ();
    point_moment = moment;
    point_is_known = read_export (image, "", at_point);
    o->asked = true;
    disk = image_open_disk (image, !rotates ? IMAGE_TAKE_PREFIX "new"
                            : made->bitmaps ? IMAGE_TAKE_PREFIX
                            "new?bitmap=fresh&disable=clean"
                            : IMAGE_TAKE_PREFIX "new?bitmap=fresh");
    o->made = disk != NULL;
    o->err = disk == NULL ? error_errno () : 0;
    if (point_is_known && read_all (disk, buf) &&
        memcmp (buf, at_point, made->disk_size) != 0)
      check_failed (__FILE__, __LINE__, "%s: the snapshot is wrong", what);
    image_close_disk (disk);
    while (!image_points_have_ended (image))
      sched_yield ();
    change (5, 4);
    for (i = 0; i < 3 && o->sticks; ++i)
      o->sticks = image_flush (image) == -1;
    if (o->sticks)
      snprintf (o->why, sizeof o->why, "%s", error_message ());
    change (6, 2);
  }
  o->closed = image_close (image) == 0;
  free (buf);
}

/* -------------------------------------------------------------------- verdicts */

static uint64_t states, with, without, dirty_ones;

static bool
check_metadata (const uint8_t *bytes, uint64_t size)
{
  const bool dirty = verdict_metadata (made, bytes, size, what);

  if (!made->lazy)
    verdict_references (made, bytes, size, what);
  return dirty;
}

static int
find_new (void *opaque, const char *name, const char *description)
{
  bool *found = opaque;

  (void) description;
  *found |= strcmp (name, IMAGE_SNAPSHOT_PREFIX "new") == 0;
  return 0;
}

/* The snapshots; buf is of the disk's size.  Returns whether the new one is
 * there.
 */
static bool
check_snapshots (const struct image *im, uint8_t *buf)
{
  char name[64];
  bool found = false;
  unsigned i;

  CHECK_OK (image_list (im, find_new, &found));
  if (found && (!read_export (im, IMAGE_SNAPSHOT_PREFIX "new", buf) ||
                (point_is_known &&
                 memcmp (buf, at_point, made->disk_size) != 0)))
    check_failed (__FILE__, __LINE__, "%s: the snapshot is wrong", what);
  for (i = 0; i < made->nr_snapshots; ++i) {
    snprintf (name, sizeof name, IMAGE_SNAPSHOT_PREFIX "%s",
              made->snapshot_name[i]);
    if (!read_export (im, name, buf) ||
        memcmp (buf, made->snapshot_content[i], made->disk_size) != 0)
      check_failed (__FILE__, __LINE__, "%s: %s is wrong", what, name);
  }
  return found;
}

static void
check_live (const struct image *im, uint8_t *buf, bool snapshot)
{
  char text[160];
  uint64_t i;

  if (!read_export (im, "", buf)) {
    check_failed (__FILE__, __LINE__, "%s: it can't be read: %s", what,
                  error_message ());
    return;
  }
  for (i = 0; i < made->disk_size / SECTOR; ++i) {
    if (may_hold (i, buf + i * SECTOR, snapshot))
      continue;
    check_failed (__FILE__, __LINE__, "%s: sector %" PRIu64 " holds %s", what,
                  i, content_name (buf + i * SECTOR, text, sizeof text));
    return;
  }
}

/* What differs from one content to another is dirty. */
static void
check_bitmap (const uint8_t *bytes, uint64_t size, const char *name,
              bool enabled, const uint8_t *from, const uint8_t *to)
{
  struct bits_view v;
  uint64_t i;

  if (!bits_view_find (&v, bytes, size, name) ||
      !(enabled ? bits_view_is_enabled (&v) : bits_view_is_disabled (&v))) {
    check_failed (__FILE__, __LINE__, "%s: the bitmap %s is not valid, or not as it "
                  "should be", what, name);
    return;
  }
  for (i = 0; i < made->disk_size / SECTOR; ++i) {
    if (memcmp (from + i * SECTOR, to + i * SECTOR, SECTOR) == 0 ||
        bits_view_has (&v, i * SECTOR))
      continue;
    check_failed (__FILE__, __LINE__, "%s: sector %" PRIu64 " has changed, and is "
                  "clean in %s", what, i, name);
    return;
  }
}

/* live is what the disk has. */
static void
check_bitmaps (const uint8_t *bytes, uint64_t size, const uint8_t *live,
               bool snapshot)
{
  struct bits_view v;

  if (!rotates || (snapshot && !point_is_known)) /* as a read of it has failed */
    return;
  if (snapshot)
    check_bitmap (bytes, size, "fresh", true, at_point, live);
  else if (bits_view_find (&v, bytes, size, "fresh"))
    check_failed (__FILE__, __LINE__, "%s: there is the bitmap alone", what);
  if (!made->bitmaps)
    return;
  check_bitmap (bytes, size, "clean", !snapshot, made->content,
                snapshot ? at_point : live);
  check_bitmap (bytes, size, "dirty", true, made->content, live);
  check_bitmap (bytes, size, "parts", true, made->content, live);
}

/* Repair it if that is due, write all of the disk, and close it: then it is sound,
 * and no snapshot has changed.
 */
static void
go_on (const uint8_t *bytes, uint64_t size, uint8_t *buf, bool snapshot)
{
  const struct writer_options options = { .invalidate_bitmaps = true };
  struct crash_disk disk;
  struct check_result r;
  char summary[1024];
  struct image *im;

  crash_disk_init (&disk, bytes, size);
  disk.logging = false;
  im = open_image (crash_storage_open (&disk, "state"));
  CHECK_OK (image_repair (im, IMAGE_REPAIR_DIRTY, summary, sizeof summary));
  CHECK_OK (image_make_writable (im, &options));
  CHECK (check_snapshots (im, buf) == snapshot);
  check_live (im, buf, snapshot);
  memset (buf, 0x5a, made->disk_size);
  CHECK_OK (image_write (im, buf, made->disk_size, (struct guest_off) { 0 },
                         0));
  CHECK (check_snapshots (im, buf) == snapshot);
  CHECK_OK (image_close (im));
  check_image (disk.bytes, disk.size,
               made->version == 2 ? CHECK_ANY_REFCOUNTS : 0, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s, written: %s", what, r.why);
  verdict_references (made, disk.bytes, disk.size, what);
  crash_disk_free (&disk);
}

static void
judge (const uint8_t *bytes, uint64_t size)
{
  uint8_t *buf;
  struct image *im;
  bool dirty;

  if (seen_before (&seen, bytes, size))
    return;
  buf = must_have (malloc (made->disk_size));
  dirty = check_metadata (bytes, size);
  im = open_image (memory_storage_new ("state", bytes, size, NULL));
  if (im == NULL)
    check_failed (__FILE__, __LINE__, "%s: it does not open: %s", what,
                  error_message ());
  else {
    const bool found = check_snapshots (im, buf);

    check_live (im, buf, found);
    check_bitmaps (bytes, size, buf, found);
    if (states % TEST_EACH (8) == 0 ||
        (dirty && states % TEST_EACH (4) == 0))
      go_on (bytes, size, buf, found);
    with += found;
    without += !found;
  }
  (void) image_close (im);
  free (buf);
  states++;
  dirty_ones += dirty;
}

/* ---------------------------------------------------------------- failing storage */

/* Without space nothing is lost, and the take is undone: no leaks are left.  Those that
 * are refused have cleared no flag, so that the end makes up for what fails (K6).
 */
static void
check_undone (const struct crash_disk *disk, const struct outcome *o)
{
  struct check_result r0, r;

  check_image (made->bytes, made->size, 0, &r0);
  check_image (disk->bytes, disk->size, 0, &r);
  if (o->sticks)
    check_failed (__FILE__, __LINE__, "%s: %s", what, o->why);
  else if (!check_is_sound (&r) || r.dirty || r.leaks > r0.leaks)
    check_failed (__FILE__, __LINE__, "%s: leaks %" PRIu64 ", dirty %d: %s",
                  what, r.leaks, r.dirty, r.why);
}

static bool
fail_call (void *opaque, const struct crash_fault *fault)
{
  struct crash_disk disk;
  struct outcome o;
  bool failed;

  (void) opaque;
  start_contents ();
  crash_disk_init (&disk, made->bytes, made->size);
  disk.no_zero = made->no_zero;
  disk.fault = *fault;
  run (crash_storage_open (&disk, "test"), &o);
  failed = disk.failures > 0;
  if (failed) {
    judge (disk.bytes, disk.size);
    if (o.asked && o.closed && fault->err == ENOSPC && !fault->forever)
      check_undone (&disk, &o);
  }
  crash_disk_free (&disk);
  return failed;
}

/* --------------------------------------------------------------------- images */

/* One run in which nothing fails; then cuts at each of its calls, and failures. */
static void
try_image (const char *name)
{
  const char *plus = strchr (name, '+');
  char made_name[96];
  struct crash_disk disk;
  struct check_result r0, r;
  struct outcome o;
  struct made m;
  struct everywhere e = {
    .subject = name, .torn = 4, .what = what, .what_size = sizeof what,
    .judge = judge,
  };

  snprintf (made_name, sizeof made_name, "%.*s",
            (int) (plus == NULL ? strlen (name) : (size_t) (plus - name)), name);
  if (!made_image (&m, made_name))
    abort ();
  made = &m;
  rotates = plus != NULL && strcmp (plus, "+rotate") == 0;
  refused = plus != NULL && strcmp (plus, "+refused") == 0;
  e.bytes = m.bytes;
  e.size = m.size;
  version = must_have (calloc (m.disk_size / SECTOR, sizeof *version));
  at_point = must_have (malloc (m.disk_size));
  snprintf (what, sizeof what, "%s", name);
  start_contents ();
  crash_disk_init (&disk, m.bytes, m.size);
  disk.no_zero = m.no_zero;
  run (crash_storage_open (&disk, "test"), &o);
  if (refused ? o.made || o.err != ENOTSUP : !o.made)
    check_failed (__FILE__, __LINE__, "%s: snapshot %d: errno %d", name, o.made,
                  o.err);
  check_image (m.bytes, m.size, 0, &r0);
  check_image (disk.bytes, disk.size, 0, &r);
  if (!check_is_sound (&r) || r.dirty || r.leaks > r0.leaks)
    check_failed (__FILE__, __LINE__, "%s: leaks %" PRIu64 ", dirty %d: %s",
                  name, r.leaks, r.dirty, r.why);
  cut_everywhere (&e, &disk);
  crash_disk_free (&disk);
  fail_everywhere (&e, fail_call, NULL);
  forget_contents ();
  free (version);
  free (at_point);
  made_free (&m);
}

static const char *const images[] = {
  "v3-c512-snap-comp", "v2-c512-snap-comp-holes", "v3-c512-r8-snap-comp-back",
  "v3-c512-snapall-snap2-holes", "v2-c512-snapall-back", "v3-c512-lazy-snap",
  "v3-c512-r64-brim-snap2", "v3-c1k-r4-comp-holes-tail-autoclear",
  "v3-c512-many-bitmap", "v3-c512-zip-comp-back", "v3-c16k-ext-snap-comp-holes",
  "v3-c512-full-nozero",
  "v3-c512-many-bitmap+rotate", "v3-c512-bitmap-holes-comp-snap-back+rotate",
  "v3-c512-r64-brim-snap2+rotate", "v3-c4k-snap-comp-holes-back+rotate",
  "v3-c4k-bitmap-zip-lazy-autoclear+rotate", "v3-c16k-bitmap-ext-holes-tail+rotate",
  "v3-c512-full-nozero+rotate",
  "v3-c512-r2-snap2+refused", "v3-c1k-zip-r2-full+refused",
#ifdef HAVE_GNUTLS
  "v3-c512-aes-holes-snap-comp-back",
#endif
};

int
main (int argc, char *argv[])
{
  check_time_limit (600);
  try_images (argc, argv, images, sizeof images / sizeof images[0], try_image);
  printf ("%" PRIu64 " states, %" PRIu64 " with the snapshot, %" PRIu64
          " without, %" PRIu64 " dirty\n", states, with, without, dirty_ones);
  CHECK (argc > 1 || (with > 0 && without > 0));
  return check_result ();
}
