/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts and failing storage while an image that nobody serves is changed
 * (core/manage).  Each state reads as the image before or after the command, its
 * snapshots and bitmaps included, and goes on doing so when it is repaired and
 * written.
 * Refcounts are never less than the references; until a version 3 image is
 * marked as dirty it is sound, but for leaks.
 *
 *   test-manage [IMAGE [COMMAND [NAME]]]
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "checker.h"
#include "crash-storage.h"
#include "disk/read.h"
#include "everywhere.h"
#include "image-check.h"
#include "image.h"
#include "maker.h"
#include "manage/amend.h"
#include "manage/bitmap-change.h"
#include "manage/bitmap-ranges.h"
#include "manage/compact.h"
#include "manage/door.h"
#include "manage/resize.h"
#include "manage/snapshots.h"
#include "memory-storage.h"
#include "must-have.h"
#include "qcow2/qcow2.h"
#include "seconds.h"
#include "seen.h"
#include "verdict.h"
#include "view.h"

static char what[256]; /* is looked at */
static const struct made *made;

/* ----------------------------------------------------------------- commands
 */

struct command {
  const char *name;
  int (*run) (struct storage *s, const char *argument);
  const char *argument; /* NULL: each snapshot's name, or a new one */
  bool whole;           /* without power cuts, for images of many clusters */
};

static int
create (struct storage *s, const char *name)
{
  const struct timespec date = { 1700000000, 123456789 };

  return snapshot_create (s, name, &date);
}

/* By a part of the disk, or by some hundred KiB. */
static uint64_t
new_size (const char *how)
{
  const uint64_t size = made->disk_size / 512 * 512;
  uint64_t more = UINT64_C (5) << (2 * made->cluster_bits - 3);

  if (more > 300 << 10)
    more = 300 << 10;
  if (strlen (how) == 3)
    more = made->cluster_size - 512;
  return *how == '+' ? size + more + 512
    : *how == '-' ? size / 8 / 512 * 512 + 512 : 512;
}

/* To its data, if that is encrypted. */
static int
open_door (struct storage *s, struct storage **data)
{
  static const struct passphrases none;

  return door_open (s, made->aes || made->luks ? &made_passphrases : &none,
                    data);
}

/* The disk over its backing file is that of a copy.  + may be followed by how new
 * clusters are allocated, and that it is one, which finds room before the end.
 */
static int
resize (struct storage *s, const char *how)
{
  static const char modes[] = {
    [PREALLOCATION_METADATA] = 'm', [PREALLOCATION_FALLOC] = 'a',
    [PREALLOCATION_FULL] = 'f',
  };
  struct image *im = view_open (made, memory_storage_new ("copy", made->bytes,
                                                          made->size, NULL));
  struct resize_options o = { .size = new_size (how) };
  struct layer *disk = image_open_disk (im, "");
  int r;

  while (*how == '+' && modes[o.preallocation] != how[1])
    o.preallocation++;
  o.disk = disk;
  r = open_door (s, &o.data) == -1 ? -1 : resize_disk (s, &o);
  storage_close (o.data);
  image_close_disk (disk);
  (void) image_close (im);
  return r;
}

static int
compact (struct storage *s, const char *argument)
{
  struct compact_options options = { .progress = NULL };
  int r;

  (void) argument;
  r = open_door (s, &options.data) == -1 ? -1 : compact_image (s, &options);
  storage_close (options.data);
  return r;
}

/* Whole blocks of refcounts become empty. */
static int
empty_and_compact (struct storage *s, const char *argument)
{
  if (resize (s, "0") == -1)
    return -1;
  if (compact (s, argument) == 0)
    return 0;
  error_append (" (resized, and leaked perhaps)");
  return -1;
}

/* Another width, in bits. */
static int
refcounts (struct storage *s, const char *bits)
{
  const struct amend_options o = {
    .refcount_bits = strtoul (bits, NULL, 10),
  };

  return amend_image (s, &o);
}

static int
bitmap_add (struct storage *s, const char *name)
{
  static const struct bitmap_action actions[] = { { BITMAP_ADD, NULL } };
  const struct bitmap_change c = {
    .name = name, .action = actions, .nr = 1, .granularity = 512,
  };

  return bitmap_change (s, &c);
}

static int
bitmap_remove (struct storage *s, const char *name)
{
  static const struct bitmap_action actions[] = { { BITMAP_REMOVE, NULL } };
  const struct bitmap_change c = { .name = name, .action = actions, .nr = 1 };

  return bitmap_change (s, &c);
}

static int
bitmap_clear (struct storage *s, const char *name)
{
  static const struct bitmap_action actions[] = {
    { BITMAP_CLEAR, NULL }, { BITMAP_DISABLE, NULL },
  };
  const struct bitmap_change c = { .name = name, .action = actions, .nr = 2 };

  return bitmap_change (s, &c);
}

/* Another one is merged into it. */
static int
bitmap_merge (struct storage *s, const char *name)
{
  static const struct bitmap_action actions[] = { { BITMAP_MERGE, "parts" } };
  const struct bitmap_change c = { .name = name, .action = actions, .nr = 1 };

  return bitmap_change (s, &c);
}

/* And it is made again of several, with other bits. */
static int
bitmap_again (struct storage *s, const char *name)
{
  static const struct bitmap_action actions[] = {
    { BITMAP_REMOVE, NULL }, { BITMAP_ADD, NULL }, { BITMAP_MERGE, "clean" },
    { BITMAP_MERGE, "parts" },
  };
  const struct bitmap_change c = {
    .name = name, .action = actions, .nr = 4, .granularity = 4096,
  };

  return bitmap_change (s, &c);
}

static const struct command commands[] = {
  { "create", create, "new" },
  { "apply", snapshot_apply, NULL },
  { "delete", snapshot_delete, NULL },
  { "grow", resize, "+" },
  { "grow-metadata", resize, "+m" },
  { "grow-one", resize, "+m1" },
  { "grow-falloc", resize, "+a" },
  { "grow-full", resize, "+f" },
  { "shrink", resize, "-" },
  { "shrink-all", resize, "0" },
  { "compact", compact, "" },
  { "empty-compact", empty_and_compact, "" },
  { "empty-compact-whole", empty_and_compact, "", true },
  { "refcounts", refcounts, "64" },
  { "refcounts", refcounts, "8" },
  { "refcounts-all", refcounts, "1" },
  { "refcounts-all", refcounts, "2" },
  { "refcounts-all", refcounts, "4" },
  { "refcounts-all", refcounts, "16" },
  { "refcounts-all", refcounts, "32" },
  { "bitmap-add", bitmap_add, "added" },
  { "bitmap-remove", bitmap_remove, "dirty" },
  { "bitmap-remove", bitmap_remove, "parts" },
  { "bitmap-remove", bitmap_remove, "only" },
  { "bitmap-clear", bitmap_clear, "parts" },
  { "bitmap-clear", bitmap_clear, "only" },
  { "bitmap-merge", bitmap_merge, "clean" },
  { "bitmap-again", bitmap_again, "dirty" },
};

/* ----------------------------------------------------------------- contents */

static struct view before, after;

static bool
view_bytes (const void *bytes, uint64_t size, struct view *v)
{
  if (view_state (made, bytes, size, v))
    return true;
  check_failed (__FILE__, __LINE__, "%s: it can't be read: %s", what,
                error_message ());
  return false;
}

/* -------------------------------------------------------------------- bitmaps
 */

/* opaque: whether a sector is not dirty yet. */
static int
take_off (void *opaque, uint64_t start, uint64_t length)
{
  uint8_t *clean = opaque;

  memset (clean + start / 512, 0, (length + 511) / 512);
  return 0;
}

/* Whether the sector reads otherwise now, or was not there. */
static bool
has_changed (uint64_t sector)
{
  const uint64_t at = sector * 512;

  return at + 512 > before.size[0] ||
    memcmp (before.content[0] + at, after.content[0] + at, 512) != 0;
}

struct bitmaps_of {
  struct storage *storage;
  struct header header;
};

static int
check_bitmap (void *opaque, const struct bitmap_info *b)
{
  const struct bitmaps_of *v = opaque;
  const uint64_t nr = after.size[0] / 512;
  uint8_t *clean = must_have (malloc (nr + 1));
  uint64_t i;

  memset (clean, 1, nr);
  CHECK_OK (bitmap_ranges (v->storage, &v->header, b->name, take_off, clean));
  for (i = 0; b->state == BITMAP_ENABLED && i < nr; ++i)
    if (clean[i] && has_changed (i))
      check_failed (__FILE__, __LINE__, "%s: sector %" PRIu64 " has changed, "
                    "and bitmap %s does not tell", what, i, b->name);
  free (clean);
  return 0;
}

/* I14: enabled ones tell of what is different after the command. */
static void
check_bitmaps (const struct crash_disk *disk)
{
  struct bitmaps_of v = {
    .storage = memory_storage_new ("state", disk->bytes, disk->size, NULL),
  };

  CHECK_OK (qcow2_read_header (v.storage, &v.header));
  CHECK_OK (bitmaps_list (v.storage, &v.header, check_bitmap, &v));
  storage_close (v.storage);
}

/* ------------------------------------------------------------------ verdicts
 */

static void
check_metadata (const uint8_t *bytes, uint64_t size, bool *dirty)
{
  *dirty = verdict_metadata (made, bytes, size, what);
  verdict_references (made, bytes, size, what);
  /* I8 */
  if (made->version >= 3 && (size != made->size ||
                             memcmp (bytes, made->bytes, size) != 0) &&
      (get_be64 (bytes + HEADER_FEATURES_OFFSET + 16) &
       ~QCOW2_AUTOCLEAR_BITMAPS) != 0)
    check_failed (__FILE__, __LINE__, "%s: unknown autoclear bits are set",
                  what);
}

/* Write all of the disk, which must change no snapshot. */
static void
write_all (struct image *im, const struct view *v)
{
  const struct writer_options options = { .invalidate_bitmaps = true };
  uint8_t *buf = must_have (malloc (v->size[0] + 1));
  struct view now;

  memset (buf, 0x5a, v->size[0]);
  if (image_make_writable (im, &options) == -1) {
    check_failed (__FILE__, __LINE__, "%s: it can't be written: %s", what,
                  error_message ());
    free (buf);
    return;
  }
  CHECK_OK (image_write (im, buf, v->size[0], (struct guest_off) { 0 }, 0));
  CHECK_OK (image_flush (im));
  if (view_image (im, &now)) {
    if (!views_equal (&now, v, false))
      check_failed (__FILE__, __LINE__, "%s: writing changes a snapshot", what);
    if (now.nr > 0 && memcmp (now.content[0], buf, v->size[0]) != 0)
      check_failed (__FILE__, __LINE__, "%s: what was written is not there",
                    what);
  }
  view_free (&now);
  free (buf);
}

/* Repair it if that is due, and write to it. */
static void
go_on (const uint8_t *bytes, uint64_t size, const struct view *v)
{
  struct crash_disk disk;
  struct image *im;
  struct check_result r;
  char summary[1024];

  crash_disk_init (&disk, bytes, size);
  disk.logging = false;
  im = view_open (made, crash_storage_open (&disk, "state"));
  CHECK_OK (image_repair (im, IMAGE_REPAIR_DIRTY, summary, sizeof summary));
  write_all (im, v);
  CHECK_OK (image_close (im));
  check_image (disk.bytes, disk.size,
               made->version == 2 ? CHECK_ANY_REFCOUNTS : 0, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s, written: %s", what, r.why);
  verdict_references (made, disk.bytes, disk.size, what);
  crash_disk_free (&disk);
}

static uint64_t states, old_ones, new_ones, dirty_ones;
static struct seen seen; /* of this command */

static void
judge (const uint8_t *bytes, uint64_t size)
{
  struct view v;
  bool dirty;

  if (seen_before (&seen, bytes, size))
    return;
  check_metadata (bytes, size, &dirty);
  if (view_bytes (bytes, size, &v)) {
    const bool old = views_equal (&v, &before, true);

    if (!old && !views_equal (&v, &after, true))
      check_failed (__FILE__, __LINE__, "%s: it reads neither as before nor "
                    "as after", what);
    else if (states % TEST_EACH (8) == 0 ||
             (dirty && states % TEST_EACH (4) == 0))
      go_on (bytes, size, &v);
    old_ones += old;
    new_ones += !old;
  }
  view_free (&v);
  states++;
  dirty_ones += dirty;
}

static const char *subject; /* of what */

/* ---------------------------------------------------------- failing storage
 */

/* Nothing is written after a flush has failed (I10). */
static void
check_silence (const struct crash_disk *disk)
{
  uint64_t i;

  for (i = 0; i + 1 < disk->nr; ++i)
    if (disk->op[i].kind == CRASH_FLUSH && disk->op[i].failed)
      check_failed (__FILE__, __LINE__, "%s: it goes on after a failed flush",
                    what);
}

static bool
tells (const char *text)
{
  return strstr (error_message (), text) != NULL;
}

/* Unless an error tells that clusters are leaked all is as before.  If space
 * was short for a moment a command is done or undone, and not left in between.
 */
static void
check_told (const struct crash_disk *disk, const struct crash_fault *fault)
{
  const bool between = tells ("no snapshot was made") ||
    tells ("was not applied");
  struct check_result r0, r;
  struct view v;

  if (fault->err == ENOSPC && !fault->forever && between)
    check_failed (__FILE__, __LINE__, "%s: not undone: %s", what,
                  error_message ());
  if (tells ("leaked") || !view_bytes (disk->bytes, disk->size, &v))
    return;
  check_image (made->bytes, made->size, 0, &r0);
  check_image (disk->bytes, disk->size, 0, &r);
  if (!views_equal (&v, &before, true) || r.dirty || r.leaks != r0.leaks)
    check_failed (__FILE__, __LINE__, "%s: leaks %" PRIu64 ", dirty %d: %s",
                  what, r.leaks, r.dirty, error_message ());
  view_free (&v);
}

struct call {
  const struct command *command;
  const char *argument;
};

static bool
fail_call (void *opaque, const struct crash_fault *fault)
{
  const struct call *c = opaque;
  struct crash_disk disk;
  struct storage *s;
  uint64_t failures;
  int r;

  crash_disk_init (&disk, made->bytes, made->size);
  disk.no_zero = made->no_zero;
  disk.fault = *fault;
  s = crash_storage_open (&disk, "test");
  r = c->command->run (s, c->argument);
  storage_close (s);
  failures = disk.failures;
  if (failures > 0 && r == -1 && fault->err != 0 &&
      error_errno () != fault->err && error_errno () != EIO)
    check_failed (__FILE__, __LINE__, "%s: errno %d: %s", what, error_errno (),
                  error_message ());
  if (failures > 0 && r == -1)
    check_told (&disk, fault);
  if (failures > 0) {
    check_silence (&disk);
    judge (disk.bytes, disk.size);
  }
  crash_disk_free (&disk);
  return failures > 0;
}

/* disk: what the command was done on. */
static void
break_off (const struct command *c, const char *argument,
           const struct crash_disk *disk)
{
  const struct everywhere e = {
    .bytes = made->bytes, .size = made->size, .subject = subject,
    .torn = 4, .what = what, .what_size = sizeof what, .judge = judge,
  };
  struct call call = { c, argument };

  cut_everywhere (&e, disk);
  fail_everywhere (&e, fail_call, &call);
}

/* ------------------------------------------------------------------- images
 */

/* What it gives once no call fails: sound, without new leaks. */
static void
check_result_of (const struct crash_disk *disk)
{
  struct check_result r, r0;

  snprintf (what, sizeof what, "%s", subject);
  check_image (made->bytes, made->size, 0, &r0);
  check_image (disk->bytes, disk->size, 0, &r);
  if (!check_is_sound (&r) || r.dirty)
    check_failed (__FILE__, __LINE__, "%s: %s", what, r.why);
  CHECK_EQ (r.leaks, r0.leaks);
}

/* The disk keeps its content, and what is new is zeros, but for the rest of a
 * cluster that no backing file would show in.
 */
static void
check_resized (void)
{
  const uint64_t old = before.size[0], now = after.size[0];
  const uint64_t rest = made->backing_size > old ? 0
    : -old & (made->cluster_size - 1);
  uint64_t i;

  if (memcmp (before.content[0], after.content[0], old < now ? old : now) != 0)
    check_failed (__FILE__, __LINE__, "%s: its content has changed", what);
  for (i = old + rest; i < now; ++i)
    if (after.content[0][i] != 0)
      break;
  if (i < now)
    check_failed (__FILE__, __LINE__, "%s: what is new is not zeros, at %"
                  PRIu64, what, i);
}

/* Once more it changes nothing. */
static void
compact_again (const struct crash_disk *compacted)
{
  struct crash_disk disk;
  struct storage *s;

  crash_disk_init (&disk, compacted->bytes, compacted->size);
  s = crash_storage_open (&disk, "again");
  CHECK_OK (compact (s, ""));
  storage_close (s);
  CHECK_EQ (disk.changes, 0);
  crash_disk_free (&disk);
}

/* Returns whether the command could be done. */
static bool
try_command (const struct command *c, const char *argument)
{
  struct crash_disk disk;
  struct storage *s;
  bool done;

  crash_disk_init (&disk, made->bytes, made->size);
  disk.no_zero = made->no_zero;
  s = crash_storage_open (&disk, "test");
  done = c->run (s, argument) == 0;
  storage_close (s);
  if (done) {
    check_result_of (&disk);
    view_bytes (disk.bytes, disk.size, &after);
    if ((c->run == compact || c->run == refcounts) &&
        !views_equal (&before, &after, true))
      check_failed (__FILE__, __LINE__, "%s: it reads otherwise", what);
    if (c->run == compact)
      compact_again (&disk);
    if (c->run == resize)
      check_resized ();
    if (c->run == refcounts)
      CHECK_EQ (1U << get_be32 (disk.bytes + HEADER_REFCOUNT_ORDER_OFFSET),
                strtoul (argument, NULL, 10));
    check_bitmaps (&disk);
    if (!c->whole)
      break_off (c, argument, &disk);
    seen_forget (&seen);
    view_free (&after);
  }
  else if (disk.changes > 0 ||
           (error_errno () != ENOTSUP && error_errno () != ENOENT))
    check_failed (__FILE__, __LINE__, "%s: it failed, after %" PRIu64
                  " changes: %s", subject, disk.changes, error_message ());
  crash_disk_free (&disk);
  return done;
}

static bool
wanted (const char *argument, const char *is)
{
  return argument == NULL || strcmp (argument, is) == 0;
}

/* "+" behind a name: the image has got a bitmap "only", some of it dirty. */
static void
add_bitmap (struct made *m)
{
  static const struct bitmap_action actions[] = { { BITMAP_ADD, NULL } };
  const struct bitmap_change c = {
    .name = "only", .action = actions, .nr = 1, .granularity = 512,
  };
  struct crash_disk disk;
  struct storage *s;

  crash_disk_init (&disk, m->bytes, m->size);
  s = crash_storage_open (&disk, "test");
  CHECK_OK (bitmap_change (s, &c));
  storage_close (s);
  free (m->bytes);
  m->bytes = must_have (malloc (disk.size));
  memcpy (m->bytes, disk.bytes, disk.size);
  m->size = disk.size;
  crash_disk_free (&disk);
}

static void
make_image (struct made *m, const char *name)
{
  char is[100];
  const size_t length = strcspn (name, "+");

  snprintf (is, sizeof is, "%.*s", (int) length, name);
  if (!made_image (m, is))
    abort ();
  if (name[length] == '+')
    add_bitmap (m);
}

static unsigned
try_image (const char *name, const char *command, const char *which)
{
  static char text[200];
  struct made m;
  unsigned i, j, done = 0;

  make_image (&m, name);
  made = &m;
  snprintf (what, sizeof what, "%s", name);
  view_bytes (m.bytes, m.size, &before);
  for (i = 0; i < sizeof commands / sizeof commands[0]; ++i) {
    const struct command *c = &commands[i];
    const unsigned nr = c->argument != NULL ? 1 : m.nr_snapshots;

    if (command == NULL &&
        (c->run == empty_and_compact || /* not where one can't be done */
         (c->run == resize && strlen (c->argument) > 1 &&
          strcmp (c->argument, "+m") != 0) ||
         strcmp (c->name, "refcounts-all") == 0))
      continue;
    for (j = 0; j < nr && wanted (command, c->name); ++j) {
      const char *argument = c->argument != NULL ? c->argument
        : m.snapshot_name[j];

      snprintf (text, sizeof text, "%s %s %s", name, c->name, argument);
      subject = text;
      if (wanted (which, argument))
        done += try_command (c, argument);
    }
  }
  view_free (&before);
  made_free (&m);
  return done;
}

static const char *const images[] = {
  "v3-c512-many-bitmap", "v3-c512-snap-comp", "v2-c512-snap-comp-holes",
  "v3-c512-r8-snap-comp-back",
  "v3-c512-snapall-snap2-holes", "v2-c512-snapall-back", "v3-c512-lazy-snap",
  "v3-c512-r1-holes", "v3-c512-r64-full-lazy-snap-comp", "v3-c512-r64-table",
  "v3-c512-r64-brim-snap2",
  "v3-c1k-r4-comp-holes-tail-autoclear", "v3-c4k-r32-snap2-bitmap",
  "v3-c16k-ext-snap-comp-holes-tail", "v3-c512-known-holes",
  "v2-c1k-comp-snap-shortback", "v2-c512-full-snap", "v2-c512-holes",
  "v3-c512-known-holes+", "v3-c512-bitmap-holes-comp-back",
  "v3-c512-snap-comp-bitmap", "v3-c512-snapall-shortback-bitmap-tail",
#ifdef HAVE_GNUTLS
  "v3-c512-aes-holes-snap-comp-back",
#endif
};

/* A backing file that is longer by several L2 tables, at the end of whole and cut
 * clusters, and nothing below; with space allocated.
 */
static const char *const grown[] = {
  "v3-c512-longback", "v3-c1k-snapall-longback-tail",
  "v3-c512-many-holes-nozero", "v2-c512-longback-holes",
  "v2-c1k-longback-tail", "v3-c512-r1-holes",
};

/* The cluster that the end cuts is written again, enciphered. */
static const char *const grown_encrypted[] = {
  "v3-c4k-luks-longback-tail-snap", "v3-c512-luks-snapall-longback-tail",
};

/* Narrow and wide, with and without what can't be counted by few bits. */
static const char *const widened[] = {
  "v3-c512-snap-comp", "v3-c512-r1-holes",
  "v3-c1k-r4-comp-holes-tail-autoclear", "v3-c4k-r32-snap2-bitmap",
};

/* Only there clusters can move: without contents that nobody knows. */
static const char *const compacted[] = {
  "v3-c512-known-snap-comp-holes", "v2-c512-known-snapall-snap2-holes-back",
  "v3-c1k-known-r4-comp-holes-tail", "v3-c512-known-r64-snap2-holes",
  "v3-c4k-known-bitmap-holes-snap", "v3-c16k-known-ext-snap-comp-holes",
  "v3-c512-known-r1-holes-comp-qback", "v3-c512-known-lazy-snap2-holes-comp",
#ifdef HAVE_GNUTLS
  "v3-c512-aes-known-holes-snap-comp",
  "v3-c512-luks-known-holes-snap", "v3-c512-aes-known-holes-snap",
  "v3-c16k-luks-known-ext-holes",
#endif
};

int
main (int argc, char *argv[])
{
  unsigned done = 0, i;

  check_time_limit (600);
  if (argc > 1)
    done = try_image (argv[1], argc > 2 ? argv[2] : NULL,
                      argc > 3 ? argv[3] : NULL);
  for (i = 0; argc == 1 && i < sizeof images / sizeof images[0]; ++i)
    done += try_image (images[i], NULL, NULL);
  for (i = 0; argc == 1 && i < sizeof grown / sizeof grown[0]; ++i)
    done += try_image (grown[i], "grow", NULL) +
      try_image (grown[i], "grow-one", NULL) +
      try_image (grown[i], "grow-falloc", NULL) +
      try_image (grown[i], "grow-full", NULL);
  if (argc == 1)
    done += try_image ("v3-c16k-ext-snap-comp-longback-tail", "grow", NULL);
#ifdef HAVE_GNUTLS
  for (i = 0; argc == 1 && i < sizeof grown_encrypted
         / sizeof grown_encrypted[0]; ++i)
    done += try_image (grown_encrypted[i], "grow", NULL);
#endif
  for (i = 0; argc == 1 && i < sizeof widened / sizeof widened[0]; ++i)
    done += try_image (widened[i], "refcounts-all", NULL);
  for (i = 0; argc == 1 && i < sizeof compacted / sizeof compacted[0]; ++i)
    done += try_image (compacted[i], "compact", NULL);
  if (argc == 1)
    done += try_image ("v3-c512-known-r64-many-holes", "empty-compact", NULL);
#ifdef HAVE_GNUTLS
  if (argc == 1) /* the LUKS header could move, and does not */
    done += try_image ("v3-c4k-luks-late-known-many", "empty-compact-whole",
                       NULL);
#endif
  printf ("%u commands, %" PRIu64 " states, %" PRIu64 " as before, %" PRIu64
          " as after, %" PRIu64 " dirty\n", done, states, old_ones, new_ones,
          dirty_ones);
  CHECK (argc > 1 || (old_ones > 0 && new_ones > 0));
  return check_result ();
}
