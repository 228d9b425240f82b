/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts and failing storage while an image gets another backing file, or
 * none: the disk reads the same in each state, over the backing file that the
 * header names then, and the image is sound, but for leaks.  If only names are
 * recorded, they and the formats belong together.
 *
 * An encrypted image has nothing of its disk in the clear.
 *
 *   test-manage-rebase [IMAGE [BACKING] | names | refused]
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
#include "everywhere.h"
#include "image-rebase.h"
#include "maker.h"
#include "manage/header-change.h"
#include "memory-storage.h"
#include "must-have.h"
#include "qcow2/qcow2.h"
#include "seconds.h"
#include "verdict.h"

static char what[256]; /* is looked at */
static const char *subject;
static const struct made *made;
static uint64_t states, switched;

/* The other backing file, which is raw: in part as the disk is, in part zeros,
 * in part something else.
 */
static const char other_name[] = "another";
static uint8_t *other;
static uint64_t other_size;
static const char *other_format;

/* The same, but encrypted, as the one now is: some clusters are as there. */
static void
make_other_encrypted (void)
{
  struct made m;
  char name[64];

  snprintf (name, sizeof name, "v3-c%u-luks-below-s8", 1U << made->cluster_bits);
  if (!made_image (&m, name))
    abort ();
  other = m.bytes;
  other_size = m.size;
  other_format = "qcow2";
  m.bytes = NULL;
  made_free (&m);
}

static void
make_other (void)
{
  const uint64_t part = made->disk_size / 5 / 512 * 512 + 512;
  uint64_t i;

  other_format = "raw";
  other_size = made->disk_size - part / 2;
  other = must_have (malloc (other_size));
  memcpy (other, made->content, other_size);
  for (i = 0; i < other_size; ++i)
    if (i / part == 1)
      other[i] = 0;
    else if (i / part >= 3)
      other[i] ^= 0x55;
}

/* ------------------------------------------------------------------- contents */

/* What an image names is below it. */
static struct image *
open_image (struct storage *s)
{
  struct storage *storages[2] = { s };
  struct header h;
  unsigned nr = 1;

  if (qcow2_read_header (s, &h) == -1) {
    storage_close (s);
    return NULL;
  }
  if (strcmp (h.backing_name, other_name) == 0)
    storages[nr++] = memory_storage_new ("other", other, other_size, NULL);
  else if (h.backing_name[0] != '\0')
    storages[nr++] = memory_storage_new ("backing", made->backing,
                                         made->backing_size, NULL);
  switched += strcmp (h.backing_name, made->backing != NULL ? "backing"
                      : "") != 0;
  return image_open_encrypted (storages, nr, CACHE_MIN_BYTES,
                               made_unlock (made));
}

static bool
is_the_same (const struct image *im)
{
  struct layer *disk = image_open_disk (im, "");
  uint8_t *buf = must_have (malloc (made->disk_size));
  bool same = false;

  if (disk != NULL && disk->size == made->disk_size &&
      layer_read (disk, buf, disk->size, (struct guest_off) { 0 }) == 0)
    same = memcmp (buf, made->content, disk->size) == 0;
  else
    check_failed (__FILE__, __LINE__, "%s: %s", what, error_message ());
  free (buf);
  image_close_disk (disk);
  return same;
}

static void
judge (const uint8_t *bytes, uint64_t size)
{
  struct image *im = open_image (memory_storage_new ("state", bytes, size,
                                                     NULL));
  struct check_result r;
  uint64_t at, sector;

  if (im == NULL)
    check_failed (__FILE__, __LINE__, "%s: %s", what, error_message ());
  else if (!is_the_same (im))
    check_failed (__FILE__, __LINE__, "%s: it reads otherwise", what);
  (void) image_close (im);
  check_image (bytes, size, 0, &r);
  if (r.dirty)
    check_image (bytes, size, CHECK_ANY_REFCOUNTS, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s: %s", what, r.why);
  if ((made->aes || made->luks) &&
      !verdict_is_enciphered (bytes, size, made->content, made->disk_size, &at,
                              &sector))
    check_failed (__FILE__, __LINE__, "%s: sector %" PRIu64
                  " of the disk is in the clear, at %" PRIu64, what, sector, at);
  states++;
}

/* -------------------------------------------------------------------- rebasing */

static bool
go_on (void *opaque, uint64_t done, uint64_t total)
{
  uint64_t *left = opaque;

  (void) done;
  (void) total;
  return left == NULL || (*left)-- > 0;
}

static struct made carrier; /* an image over a file of that kind */

/* What will be below: it is below the carrier for now. */
static struct image *
open_below (const char *name)
{
  struct storage *storages[2];

  if (name[0] == '\0')
    return NULL;
  storages[0] = memory_storage_new ("carrier", carrier.bytes, carrier.size,
                                    NULL);
  storages[1] = memory_storage_new ("other", other, other_size, NULL);
  return must_have (image_open_encrypted (storages, 2, CACHE_MIN_BYTES,
                                          made_unlock (&carrier)));
}

/* left: how often go_on lets it; NULL: always. */
static int
rebase (struct crash_disk *disk, const char *name, uint64_t *left)
{
  const struct writer_options options = { .keep_discarded = false };
  struct image *below = open_below (name);
  struct image *im = open_image (crash_storage_open (disk, "test"));
  int r = -1;

  if (im != NULL && image_make_writable (im, &options) == 0)
    r = image_rebase (im, below, name, name[0] != '\0' ? other_format : "",
                      go_on, left);
  else
    (void) image_close (im);
  (void) image_close (below);
  return r;
}

/* ------------------------------------------------------- power cuts, failures */

static struct everywhere
everywhere (void (*how) (const uint8_t *bytes, uint64_t size))
{
  return (struct everywhere) {
    .bytes = made->bytes, .size = made->size, .subject = subject,
    .torn = 3, .what = what, .what_size = sizeof what, .judge = how,
  };
}

/* opaque: the new name. */
static bool
fail_call (void *opaque, const struct crash_fault *fault)
{
  struct crash_disk disk;
  uint64_t failures, before = switched;
  int r;

  crash_disk_init (&disk, made->bytes, made->size);
  disk.no_zero = made->no_zero;
  disk.fault = *fault;
  r = rebase (&disk, opaque, NULL);
  failures = disk.failures;
  before = switched;
  if (failures > 0)
    judge (disk.bytes, disk.size);
  if (failures > 0 && r == -1 && switched > before &&
      strstr (error_message (), "may have changed") == NULL)
    check_failed (__FILE__, __LINE__, "%s: the header has changed: %s", what,
                  error_message ());
  crash_disk_free (&disk);
  return failures > 0;
}

/* It is stopped after so many steps: the image is as sound as after the end. */
static void
stop_everywhere (const char *name)
{
  struct crash_disk disk;
  struct check_result r, r0;
  uint64_t n, left;
  bool stopped = true;

  check_image (made->bytes, made->size, 0, &r0);
  for (n = 0; stopped && !check_any_failed (); ++n) {
    const uint64_t before = switched;

    snprintf (what, sizeof what, "%s, stopped after %" PRIu64, subject, n);
    crash_disk_init (&disk, made->bytes, made->size);
    left = n;
    stopped = rebase (&disk, name, &left) == -1;
    if (stopped)
      CHECK_ERROR (ECANCELED, "interrupted");
    judge (disk.bytes, disk.size);
    check_image (disk.bytes, disk.size, 0, &r);
    CHECK_EQ (r.leaks, r0.leaks);
    CHECK_EQ (r.dirty, false);
    CHECK_EQ (switched > before, !stopped);
    crash_disk_free (&disk);
  }
  CHECK (n > 1);
}

/* --------------------------------------------------------------------- images */

static void
try_rebase (const char *name)
{
  static char text[200];
  struct crash_disk disk;
  struct everywhere e;

  snprintf (text, sizeof text, "%s to '%s'", made->name, name);
  subject = text;
  snprintf (what, sizeof what, "%s", text);
  crash_disk_init (&disk, made->bytes, made->size);
  disk.no_zero = made->no_zero;
  CHECK_OK (rebase (&disk, name, NULL));
  judge (disk.bytes, disk.size);
  e = everywhere (judge);
  cut_everywhere (&e, &disk);
  crash_disk_free (&disk);
  fail_everywhere (&e, fail_call, (void *) name);
  stop_everywhere (name);
}

static void
start_carrier (const char *name)
{
  made_free (&carrier);
  if (!made_image (&carrier, name))
    abort ();
}

/* Over another encrypted file. */
static void
try_encrypted (void)
{
  free (other);
  make_other_encrypted ();
  start_carrier ("v3-c512-luksback");
  try_rebase (other_name);
  start_carrier ("v3-c512-back");
}

static void
try_image (const char *name, const char *which)
{
  struct made m;

  if (!made_image (&m, name))
    abort ();
  made = &m;
  make_other ();
  if (which == NULL || which[0] == '\0')
    if (m.backing != NULL)
      try_rebase ("");
  if (which == NULL || which[0] != '\0')
    try_rebase (other_name);
  if (m.luks && m.locked_below && which == NULL)
    try_encrypted ();
  free (other);
  made_free (&m);
}

/* ----------------------------------------------------------------- names alone */

static char new_name[QCOW2_MAX_BACKING_NAME + 1];
static uint64_t renamed;

static void
judge_names (const uint8_t *bytes, uint64_t size)
{
  struct storage *s = memory_storage_new ("state", bytes, size, NULL);
  const bool had = made->backing != NULL;
  struct check_result r;
  struct header h;

  CHECK_OK (qcow2_read_header (s, &h));
  storage_close (s);
  if ((had || new_name[0] != '\0') && strcmp (h.backing_name, new_name) == 0) {
    CHECK_STR (h.backing_format, new_name[0] != '\0' ? "qed" : "");
    CHECK_EQ (h.autoclear & ~QCOW2_AUTOCLEAR_BITMAPS, 0);
    renamed++;
  }
  else {
    CHECK_STR (h.backing_name, had ? "backing" : "");
    CHECK_STR (h.backing_format, had ? "raw" : "");
  }
  check_image (bytes, size, 0, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s: %s", what, r.why);
  states++;
}

static int
rename_it (struct crash_disk *disk)
{
  struct storage *s = crash_storage_open (disk, "test");
  const int r = header_change_backing (s, new_name, "qed");

  storage_close (s);
  return r;
}

static void
fail_names (void)
{
  struct crash_disk disk;
  uint64_t call = 1, failures;
  int r;

  do {
    crash_disk_init (&disk, made->bytes, made->size);
    disk.fault = (struct crash_fault) {
      .call = call++, .kinds = FAULT_WRITE | FAULT_FLUSH, .err = EIO,
    };
    r = rename_it (&disk);
    failures = disk.failures;
    if (failures > 0 && r == 0)
      check_failed (__FILE__, __LINE__, "%s: call %" PRIu64 ": no error", what,
                    call - 1);
    judge_names (disk.bytes, disk.size);
    crash_disk_free (&disk);
  } while (failures > 0 && !check_any_failed ());
}

static void
try_names (const char *name)
{
  static const size_t lengths[] = { 0, 1, 7, 90, 400, 700 };
  struct crash_disk disk;
  struct everywhere e;
  struct made m;
  unsigned i;

  if (!made_image (&m, name))
    abort ();
  made = &m;
  subject = name;
  e = everywhere (judge_names);
  for (i = 0; i < sizeof lengths / sizeof lengths[0]; ++i) {
    memset (new_name, 'n', lengths[i]);
    new_name[lengths[i]] = '\0';
    snprintf (what, sizeof what, "%s, a name of %zu bytes", name, lengths[i]);
    crash_disk_init (&disk, m.bytes, m.size);
    if (rename_it (&disk) == 0) {
      judge_names (disk.bytes, disk.size);
      cut_everywhere (&e, &disk);
      fail_names ();
    }
    else {
      CHECK_ERROR (ENOTSUP, "");
      CHECK_EQ (disk.changes, 0);
      CHECK (lengths[i] + 200 > m.cluster_size);
    }
    crash_disk_free (&disk);
  }
  made_free (&m);
}

/* Marked as dirty. */
static void
try_dirty (void)
{
  struct crash_disk disk;
  struct made m;

  if (!made_image (&m, "v3-c512-back"))
    abort ();
  m.bytes[HEADER_FEATURES_OFFSET + 7] |= QCOW2_INCOMPAT_DIRTY;
  crash_disk_init (&disk, m.bytes, m.size);
  CHECK_EQ (rename_it (&disk), -1);
  CHECK_ERROR (ENOTSUP, "dirty");
  CHECK_EQ (disk.changes, 0);
  crash_disk_free (&disk);
  made_free (&m);
}

/* --------------------------------------------------------------------- the rest */

/* It is refused, and nothing changes. */
static void
try_refused (const char *name, const char *why)
{
  struct crash_disk disk;
  struct made m;

  if (!made_image (&m, name))
    abort ();
  made = &m;
  make_other ();
  crash_disk_init (&disk, m.bytes, m.size);
  CHECK_EQ (rebase (&disk, "", NULL), -1);
  CHECK_ERROR (ENOTSUP, why);
  CHECK_EQ (disk.changes, 0);
  crash_disk_free (&disk);
  free (other);
  made_free (&m);
}

static const char *const images[] = {
  "v3-c512-comp-back-holes", "v2-c512-back-holes", "v3-c1k-r4-comp-back-tail",
  "v3-c512-comp-zstd-shortback-tail", "v3-c512-lazy-back", "v3-c512-qback",
  "v3-c512-bitmap-back", "v3-c16k-ext-comp-back", "v2-c512-holes",
  "v3-c512-known-holes", "v3-c512-nozero-back",
#ifdef HAVE_GNUTLS
  "v3-c4k-luks-holes-luksback", "v3-c512-luks-comp-holes-luksback",
#endif
};

static const char *const renamed_images[] = {
  "v3-c512-back", "v2-c512-back", "v3-c1k-r4-comp-holes-tail-autoclear",
  "v3-c4k-back-holes", "v3-c4k-r32-snap2-bitmap", "v2-c1k-comp",
  "v3-c16k-ext-comp-back",
};

static void
try_all_names (void)
{
  unsigned i;

  for (i = 0; i < sizeof renamed_images / sizeof renamed_images[0]; ++i)
    try_names (renamed_images[i]);
  try_dirty ();
  CHECK (renamed > 0);
}

/* A snapshot would change, and stays.  Data that is encrypted would be in the clear,
 * or it is not known whether it was deciphered.
 */
static void
try_all_refused (void)
{
  try_refused ("v3-c512-r8-snap-comp-back", "internal snapshots");
#ifdef HAVE_GNUTLS
  try_refused ("v3-c512-luksback", "in the clear");
  try_refused ("v3-c512-aes-back", "AES");
  try_refused ("v3-c512-aes-luksback", "AES");
  try_refused ("v3-c512-luks-aesback", "AES");
#endif
}

int
main (int argc, char *argv[])
{
  const bool names = argc > 1 && strcmp (argv[1], "names") == 0;
  const bool refused = argc > 1 && strcmp (argv[1], "refused") == 0;
  unsigned i;

  check_time_limit (600);
  start_carrier ("v3-c512-back");
  if (argc > 1 && !names && !refused)
    try_image (argv[1], argc > 2 ? argv[2] : NULL);
  for (i = 0; argc == 1 && i < sizeof images / sizeof images[0]; ++i)
    try_image (images[i], NULL);
  if (argc == 1 || names)
    try_all_names ();
  if (argc == 1 || refused)
    try_all_refused ();
  made_free (&carrier);
  printf ("%" PRIu64 " states, %" PRIu64 " with another backing file\n",
          states, switched);
  CHECK (names || refused || (switched > 0 && switched < states));
  return check_result ();
}
