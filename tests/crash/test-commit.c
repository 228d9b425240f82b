/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts and failing storage while an image is committed into its backing
 * file.  In each state of both files the image reads as at the start, and both
 * are sound; at the end the backing file has all of it.
 *
 *   test-commit [IMAGE]
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "check.h"
#include "checker.h"
#include "commit.h"
#include "crash-storage.h"
#include "disk/read.h"
#include "image.h"
#include "maker.h"
#include "must-have.h"
#include "power-cut.h"
#include "random.h"
#include "seconds.h"
#include "verdict.h"

enum { TOP, BASE };

static char what[256]; /* is looked at */
static struct made made;
static bool raw;      /* the base is */
static uint64_t size; /* of the disk */
static uint8_t *view;
static struct crash_disk disk[2];
static _Atomic uint64_t now;
static uint64_t states, emptied, failures, told;

static const uint8_t *
first (unsigned which, uint64_t *bytes)
{
  *bytes = which == TOP ? made.size : made.backing_size;
  return which == TOP ? made.bytes : made.backing;
}

/* Memory is kept for the next time. */
static void
renew (struct crash_disk *d, const uint8_t *bytes, uint64_t length)
{
  if (d->bytes == NULL)
    crash_disk_init (d, bytes, length);
  else
    crash_disk_reset (d, bytes, length);
}

static void
start (void)
{
  unsigned i;

  now = 0;
  for (i = 0; i < 2; ++i) {
    uint64_t bytes;
    const uint8_t *p = first (i, &bytes);

    renew (&disk[i], p, bytes);
    disk[i].clock = &now;
    disk[i].fault = (struct crash_fault) { 0 };
  }
}

static struct image *
open_image (struct crash_disk d[2])
{
  struct storage *s[] = {
    crash_storage_open (&d[TOP], "top"), crash_storage_open (&d[BASE], "base"),
  };

  return image_open_encrypted (s, 2, CACHE_MIN_BYTES, made_unlock (&made));
}

/* As the tool does it. */
static int
commit (bool keep)
{
  const struct commit_options options = { .keep = keep };
  struct image *im = open_image (disk);
  bool grown = false;
  int r = im == NULL ? -1 : commit_grow_base (im, 1, &options, &grown);

  if (r == 0 && grown) {
    (void) image_close (im);
    im = open_image (disk);
    r = im == NULL ? -1 : 0;
  }
  if (r == 0)
    r = commit_image (im, 1, &options);
  (void) image_close (im);
  return r;
}

/* ------------------------------------------------------------------ verdicts */

static bool
reads_right (struct image *im)
{
  struct layer *l = im != NULL ? image_open_disk (im, "") : NULL;
  const bool r = l != NULL && l->size == size &&
    layer_read (l, view, size, (struct guest_off) { 0 }) == 0 &&
    memcmp (view, made.content, size) == 0;

  image_close_disk (l);
  return r;
}

static void
check_sound (const uint8_t *bytes, uint64_t length, const char *which,
             uint64_t *leaks)
{
  struct check_result r;

  check_image (bytes, length, 0, &r);
  *leaks = r.leaks;
  if (r.dirty)
    check_image (bytes, length, CHECK_ANY_REFCOUNTS, &r);
  if (!check_is_sound (&r))
    check_failed (__FILE__, __LINE__, "%s: the %s: %s", what, which, r.why);
}

/* The base alone: a raw one as it is, of an image the disk. */
static bool
base_is_right (void)
{
  struct storage *s;
  struct image *im;
  struct layer *l;
  bool ok;

  if (raw)
    return disk[BASE].size >= size &&
      memcmp (disk[BASE].bytes, made.content, size) == 0;
  s = crash_storage_open (&disk[BASE], "base");
  im = image_open_encrypted (&s, 1, CACHE_MIN_BYTES,
                             made.locked_below ? &made_passphrases_below : NULL);
  l = im != NULL ? image_open_disk (im, "") : NULL;
  ok = l != NULL && l->size >= size &&
    layer_read (l, view, size, (struct guest_off) { 0 }) == 0 &&
    memcmp (view, made.content, size) == 0;
  image_close_disk (l);
  (void) image_close (im);
  return ok;
}

/* Of an encrypted file no sector is one that the disk shows (I15). */
static void
check_enciphered (const struct disk_state *s, const char *which)
{
  uint64_t at, sector;

  if (verdict_is_enciphered (s->bytes, s->size, made.content, size, &at, &sector))
    return;
  check_failed (__FILE__, __LINE__, "%s: the %s has sector %" PRIu64
                " of the disk in the clear, at %" PRIu64, what, which, sector, at);
}

static void
judge (const struct disk_state s[2])
{
  static struct crash_disk d[2];
  struct image *im;
  uint64_t leaks;
  unsigned i;

  states++;
  emptied += memcmp (s[TOP].bytes, made.bytes,
                     s[TOP].size < made.size ? s[TOP].size : made.size) != 0;
  check_sound (s[TOP].bytes, s[TOP].size, "image", &leaks);
  if (!raw)
    check_sound (s[BASE].bytes, s[BASE].size, "base", &leaks);
  if (made.aes || made.luks)
    check_enciphered (&s[TOP], "image");
  if (made.locked_below)
    check_enciphered (&s[BASE], "base");
  for (i = 0; i < 2; ++i)
    renew (&d[i], s[i].bytes, s[i].size);
  im = open_image (d);
  if (!reads_right (im))
    check_failed (__FILE__, __LINE__, "%s: it does not read as before: %s",
                  what, im == NULL ? error_message () : "");
  (void) image_close (im);
}

/* ---------------------------------------------------------------- power cuts */

/* How each of the files may be: the first ones beside each other. */
static struct landed
choose (unsigned which, unsigned i, uint64_t *state)
{
  static const enum landed_kind kinds[4][2] = {
    { LANDED_NONE, LANDED_NONE }, { LANDED_ALL, LANDED_ALL },
    { LANDED_ALL, LANDED_NONE }, { LANDED_NONE, LANDED_ALL },
  };

  if (i < 4)
    return (struct landed) { kinds[i][which], 0 };
  return (struct landed) { LANDED_TORN, random_next (state) };
}

static void
cut_at (struct cut *c[2], struct disk_state s[2], uint64_t moment,
        uint64_t *state)
{
  unsigned i, n;

  for (n = 0; n < 7; ++n) {
    char text[2][64];

    for (i = 0; i < 2; ++i) {
      const struct landed l = choose (i, n, state);

      landed_format (l, text[i], sizeof text[i]);
      cut_state (c[i], l, &s[i]);
    }
    snprintf (what, sizeof what, "%s, cut %" PRIu64 ", image %s, base %s",
              made.name, moment, text[TOP], text[BASE]);
    judge (s);
  }
}

static void
cut_everywhere (void)
{
  struct disk_state s[2] = { { 0 } };
  uint64_t k[2] = { 0, 0 }, state = 1, moment;
  struct cut *c[2];
  unsigned i;

  for (i = 0; i < 2; ++i) {
    uint64_t bytes;
    const uint8_t *p = first (i, &bytes);

    c[i] = cut_new (p, bytes, disk[i].op, disk[i].nr);
  }
  for (moment = 0; moment <= now && !check_any_failed (); ++moment) {
    for (i = 0; i < 2; ++i) {
      while (k[i] < disk[i].nr && disk[i].op[k[i]].moment < moment)
        k[i]++;
      cut_advance (c[i], k[i]);
    }
    if (moment % TEST_EACH (4) == 0)
      cut_at (c, s, moment, &state);
  }
  for (i = 0; i < 2; ++i) {
    cut_free (c[i]);
    disk_state_free (&s[i]);
  }
}

/* ----------------------------------------------------------- failing storage */

static void
judge_now (void)
{
  const struct disk_state s[2] = {
    { .bytes = disk[TOP].bytes, .size = disk[TOP].size },
    { .bytes = disk[BASE].bytes, .size = disk[BASE].size },
  };

  judge (s);
}

/* If the base is not right the image has not been touched, and the error tells of
 * what was done.
 */
static void
check_failure (unsigned which, int r)
{
  if (r == 0 && !base_is_right ())
    check_failed (__FILE__, __LINE__, "%s: not reported", what);
  if (r == -1 && which == BASE &&
      (disk[TOP].size != made.size ||
       memcmp (disk[TOP].bytes, made.bytes, made.size) != 0))
    check_failed (__FILE__, __LINE__, "%s: the image is another", what);
  told += r == -1;
  judge_now ();
}

static void
fail_everywhere (unsigned which)
{
  static const struct crash_fault faults[] = {
    { .err = EIO }, { .err = EIO, .forever = true },
    { .err = EIO, .kinds = FAULT_WRITE, .partly = true },
    { .err = EIO, .kinds = FAULT_FLUSH },
    { .err = ENOSPC, .kinds = FAULT_WRITE | FAULT_RESIZE | FAULT_ALLOCATE },
    { .err = ENOSPC, .kinds = FAULT_WRITE | FAULT_RESIZE | FAULT_ALLOCATE,
      .forever = true },
  };
  unsigned i;
  uint64_t call;
  int r;

  for (i = 0; i < sizeof faults / sizeof faults[0]; ++i)
    for (call = 1; !check_any_failed (); call += TEST_EACH (4)) {
      snprintf (what, sizeof what, "%s, call %" PRIu64 " of file %u fails (%u)",
                made.name, call, which, i);
      start ();
      disk[which].fault = faults[i];
      disk[which].fault.call = call;
      r = commit (false);
      if (disk[which].failures == 0)
        break;
      disk[which].fault.call = 0;
      failures++;
      check_failure (which, r);
    }
}

/* -------------------------------------------------------------------- images */

static void
try_keeping (void)
{
  start ();
  CHECK_OK (commit (true));
  CHECK (base_is_right ());
  CHECK_EQ (disk[TOP].changes, 0);
}

static void
try_image (const char *name)
{
  uint64_t leaks, bytes;

  if (!made_image (&made, name))
    abort ();
  size = made.disk_size / 512 * 512;
  raw = memcmp (made.backing, "QFI\xfb", 4) != 0;
  view = must_have (malloc (size));
  start ();
  CHECK_OK (commit (false));
  snprintf (what, sizeof what, "%s", name);
  CHECK (base_is_right ());
  judge_now ();
  check_sound (disk[TOP].bytes, disk[TOP].size, "image", &leaks);
  CHECK_EQ (leaks, made.leaks);
  cut_everywhere ();
  bytes = disk[TOP].changes;
  start ();
  fail_everywhere (TOP);
  fail_everywhere (BASE);
  CHECK (bytes > 0);
  try_keeping ();
  free (view);
  made_free (&made);
}

/* It is refused, and nothing changes. */
static void
try_refused (const char *name, bool keep)
{
  if (!made_image (&made, name))
    abort ();
  start ();
  CHECK (commit (keep) == -1 && error_errno () == ENOTSUP);
  CHECK_EQ (disk[TOP].changes + disk[BASE].changes, 0);
  made_free (&made);
}

/* A snapshot reads through the image, too, and would change.  Data that is
 * encrypted would be in the clear, or it is not known whether it was deciphered.
 */
static const char *const refused[] = {
  "v3-c512-snap-back",
#ifdef HAVE_GNUTLS
  "v3-c4k-luks-back", "v3-c512-luks-qback", "v3-c512-aes-aesback",
  "v3-c512-aesback", "v3-c512-aes-luksback",
#endif
};

static const char *const images[] = {
  "v3-c512-comp-holes-back", "v3-c512-comp-qback", "v2-c512-comp-qback-holes",
  "v3-c1k-r4-comp-shortback", "v3-c512-lazy-qback", "v3-c4k-r64-back-autoclear",
  "v3-c16k-ext-comp-back", "v3-c512-bitmap-holes-comp-back",
#ifdef HAVE_GNUTLS
  "v3-c4k-luks-holes-luksback", "v3-c512-holes-comp-luksback",
  "v3-c16k-luks-ext-holes-luksback",
#endif
};

int
main (int argc, char *argv[])
{
  unsigned i;

  check_time_limit (600);
  try_images (argc, argv, images, sizeof images / sizeof images[0], try_image);
  for (i = 0; argc == 1 && i < sizeof refused / sizeof refused[0]; ++i) {
    try_refused (refused[i], false);
    try_refused (refused[i], true);
  }
  for (i = 0; i < 2; ++i)
    crash_disk_free (&disk[i]);
  printf ("%" PRIu64 " states, %" PRIu64 " of them with another image; %" PRIu64
          " failing calls, %" PRIu64 " told\n", states, emptied, failures, told);
  CHECK (emptied > 0 && told > 0);
  return check_result ();
}
