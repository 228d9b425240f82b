/* SPDX-License-Identifier: BSD-3-Clause */

/* Each allocation fails in turn while an image that nobody serves is changed
 * (core/manage, image-rebase): the command says so, the image stays sound, and
 * its disk reads as before, or as the command has it.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "checker.h"
#include "crash-storage.h"
#include "disk/read.h"
#include "image-rebase.h"
#include "maker.h"
#include "manage/amend.h"
#include "manage/header-change.h"
#include "manage/resize.h"
#include "manage/snapshots.h"
#include "memory-storage.h"
#include "must-have.h"
#include "no-memory.h"
#include "qcow2/qcow2.h"
#include "seconds.h"
#include "view.h"

static const struct made *made;
static unsigned failed;

/* ----------------------------------------------------------------- commands */

static int
create (struct storage *s)
{
  const struct timespec date = { 1700000000, 0 };

  return snapshot_create (s, "new", &date);
}

static int
apply (struct storage *s)
{
  return snapshot_apply (s, made->snapshot_name[0]);
}

static int
delete (struct storage *s)
{
  return snapshot_delete (s, made->snapshot_name[0]);
}

/* The disk over its backing file is that of a copy. */
static int
grow (struct storage *s)
{
  const bool was = memory_pause ();
  struct image *im = view_open (made, memory_storage_new ("copy", made->bytes,
                                                          made->size, NULL));
  struct layer *disk = image_open_disk (im, "");
  const struct resize_options o = {
    .size = made->disk_size / 512 * 512 + (1 << 20), .disk = disk,
  };
  int r;

  memory_resume (was);
  r = resize_disk (s, &o);
  image_close_disk (disk);
  (void) image_close (im);
  return r;
}

static int
shrink (struct storage *s)
{
  const struct resize_options o = { .size = 512 };

  return resize_disk (s, &o);
}

static int
rename_backing (struct storage *s)
{
  return header_change_backing (s, "backing", "qcow2");
}

static int
amend (struct storage *s)
{
  static const bool lazy = true;
  static const enum compression zstd = COMPRESSION_ZSTD;
  const struct amend_options o = {
    .version = 3, .lazy = &lazy, .compression = &zstd,
  };

  return amend_image (s, &o);
}

static bool
go_on (void *opaque, uint64_t done, uint64_t total)
{
  (void) opaque;
  (void) done;
  (void) total;
  return true;
}

static int
flatten (struct storage *s)
{
  const struct writer_options options = { .keep_discarded = false };
  struct storage *storages[2] = { s };
  const bool was = memory_pause ();
  struct image *im;

  storages[1] = memory_storage_new ("backing", made->backing,
                                    made->backing_size, NULL);
  memory_resume (was);
  im = image_open_storages (storages, 2, CACHE_MIN_BYTES);
  if (im == NULL)
    return -1;
  if (image_make_writable (im, &options) == -1) {
    (void) image_close (im);
    return -1;
  }
  return image_rebase (im, NULL, "", "", go_on, NULL);
}

struct command {
  const char *name;
  int (*run) (struct storage *s);
  bool owns; /* closes the storage */
};

static const struct command
  snapshots[] = {
    { "create", create }, { "apply", apply }, { "delete", delete },
  },
  sizes[] = { { "grow", grow }, { "shrink", shrink } },
  headers[] = {
    { "rename", rename_backing }, { "amend", amend },
    { "flatten", flatten, true },
  };

/* ------------------------------------------------------------------ verdicts */

/* Over the old backing file, unless the header says that there is none. */
static void
check_disk (const struct crash_disk *d, const struct command *c)
{
  struct storage *s = memory_storage_new ("state", d->bytes, d->size, NULL);
  struct storage *storages[2] = { s };
  struct header h;
  struct image *im;
  struct layer *disk;
  uint8_t *buf = must_have (malloc (made->disk_size));

  CHECK_OK (qcow2_read_header (s, &h));
  if (h.backing_name[0] != '\0')
    storages[1] = memory_storage_new ("backing", made->backing,
                                      made->backing_size, NULL);
  im = must_have (image_open_storages (storages, storages[1] != NULL ? 2 : 1,
                                       CACHE_MIN_BYTES));
  disk = must_have (image_open_disk (im, ""));
  if (disk->size == made->disk_size) {
    CHECK_OK (layer_read (disk, buf, disk->size, (struct guest_off) { 0 }));
    if (c->run != apply &&
        memcmp (buf, made->content, made->disk_size) != 0)
      check_failed (__FILE__, __LINE__, "%s %s: allocation %u: it reads "
                    "otherwise", made->name, c->name, memory_fail_at);
  }
  image_close_disk (disk);
  (void) image_close (im);
  free (buf);
}

static void
judge (const struct crash_disk *disk, const struct command *c)
{
  struct check_result r;

  check_image (disk->bytes, disk->size, 0, &r);
  /* Version 2 can't tell that COPIED flags are wrong. */
  if (r.dirty || made->version == 2)
    check_image (disk->bytes, disk->size, CHECK_ANY_REFCOUNTS, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s %s: allocation %u: %s", made->name,
                  c->name, memory_fail_at, r.why);
  check_disk (disk, c);
}

/* Returns whether an allocation has failed. */
static bool
fail_one (const struct command *c, unsigned n)
{
  struct crash_disk disk;
  struct storage *s;
  int r;

  crash_disk_init (&disk, made->bytes, made->size);
  s = crash_storage_open (&disk, "test");
  memory_fail_at = n;
  memory_calls = 0;
  error_set (0, "none");
  memory_armed = true;
  r = c->run (s);
  memory_armed = false;
  if (!c->owns)
    storage_close (s);
  if (r == -1 && error_errno () != ENOMEM)
    check_failed (__FILE__, __LINE__, "%s %s: allocation %u: errno %d: %s",
                  made->name, c->name, n, error_errno (), error_message ());
  failed += r == -1;
  if (r == -1 && strstr (error_message (), "memory") == NULL)
    check_failed (__FILE__, __LINE__, "%s", error_message ());
  judge (&disk, c);
  crash_disk_free (&disk);
  return memory_calls >= n;
}

static void
try_image (const char *name, const struct command *commands, unsigned nr)
{
  struct made m;
  unsigned i, n;

  if (!made_image (&m, name))
    abort ();
  made = &m;
  for (i = 0; i < nr; ++i)
    for (n = 1; fail_one (&commands[i], n) && !check_any_failed ();
         n += TEST_EACH (3))
      continue;
  made_free (&m);
}

#define TRY(image, commands) \
  try_image (image, commands, sizeof commands / sizeof commands[0])

int
main (void)
{
  check_time_limit (300);
  TRY ("v3-c512-snap-comp", snapshots);
  TRY ("v2-c512-snapall-holes", snapshots);
  TRY ("v3-c16k-ext-snap-holes", snapshots);
  TRY ("v3-c512-snap-comp", sizes);
  TRY ("v2-c512-holes", sizes);
  TRY ("v3-c1k-snapall-longback-tail", sizes);
  TRY ("v3-c16k-ext-snap-holes", sizes);
  TRY ("v3-c512-qback", headers);
  TRY ("v2-c1k-qback", headers);
  printf ("%u allocations have failed\n", failed);
  CHECK (failed > 100);
  return check_result ();
}
