/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts with two files, an image and its external data file, each with
 * its own unflushed writes: random requests, and at each call of either storage
 * several states of both.  Each must be sound, hold what was flushed or given
 * later, and, if the data file is a raw image, be the same through the image and
 * without it.
 *
 *   test-data-file [WORKLOADS [SEED]]
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "build.h"
#include "check.h"
#include "content.h"
#include "crash-storage.h"
#include "disk/read.h"
#include "history.h"
#include "image-check.h"
#include "image.h"
#include "must-have.h"
#include "power-cut.h"
#include "random.h"
#include "seconds.h"

#define CLUSTERS 12
#define REQUESTS 14
#define TABLES 0
#define DATA 1

struct form {
  const char *what;
  unsigned bits;
  bool extended, backing, raw, garbage, aes;
};

static const struct form forms[] = {
  { "data file", 12, false, false, false, true },
  { "data file over a base", 12, false, true, false, true },
  { "data file, extended", 14, true, true, false, true },
  { "small clusters", 9, false, true, false, true },
  { "raw data file", 12, false, false, true, false },
  { "raw data file, extended", 14, true, false, true, false },
#ifdef HAVE_GNUTLS
  { "data file, encrypted", 12, false, false, false, true, true },
  { "data file, encrypted, extended", 14, true, true, false, true, true },
#endif
};
#define NR_FORMS (sizeof forms / sizeof forms[0])

static const struct form *form;
static uint64_t size; /* of the disk */
static uint8_t *first[2]; /* what the files held at first */
static uint64_t first_size[2];
static struct crash_disk disk[2];
static _Atomic uint64_t now;
static uint8_t *content, *view, *base;
static struct history history;
static uint64_t states, cuts, violations;

/* ------------------------------------------------------------------ an image */

static void
make_files (uint64_t seed)
{
  struct builder b;
  uint64_t bytes;

  build_start (&b, 3, form->bits, form->extended, COMPRESSION_DEFLATE,
               (CLUSTERS << form->bits) - 3 * SECTOR);
  build_l2_place (&b, 0);
  if (form->backing)
    build_backing (&b, "raw");
  build_finish (&b);
  put_be64 (b.data + 72, get_be64 (b.data + 72) | QCOW2_INCOMPAT_DATA_FILE);
  if (form->raw)
    put_be64 (b.data + 88, QCOW2_AUTOCLEAR_RAW_DATA_FILE);
  if (form->aes)
    put_be32 (b.data + 32, ENCRYPTION_AES);
  size = b.disk_size;
  bytes = (uint64_t) CLUSTERS << form->bits;
  first_size[TABLES] = b.size;
  first[TABLES] = must_have (malloc (b.size));
  memcpy (first[TABLES], b.data, b.size);
  build_free (&b);
  /* A part of it is missing: of a raw file, which is not larger than the disk,
   * whole sectors.
   */
  first_size[DATA] = bytes * (seed / NR_FORMS % 4) / 3;
  if (form->raw)
    first_size[DATA] = first_size[DATA] > size ? size
      : first_size[DATA] / SECTOR * SECTOR;
  first[DATA] = must_have (calloc (1, bytes));
  if (form->garbage)
    content_fill_many (first[DATA], bytes, CONTENT_GARBAGE, 0, 0);
  content = must_have (calloc (1, bytes));
  view = must_have (malloc (bytes));
  base = must_have (malloc (bytes));
  content_fill_many (base, bytes, CONTENT_BACKING, 0, 0);
  if (form->backing)
    memcpy (content, base, size);
}

static void
free_files (void)
{
  unsigned i;

  for (i = 0; i < 2; ++i) {
    crash_disk_free (&disk[i]);
    free (first[i]);
  }
  free (content);
  free (view);
  free (base);
}

static const struct passphrases passphrases = { .image = { "secret", 6 } };

static struct image *
open_image (struct crash_disk d[2])
{
  struct storage *s[] = {
    crash_storage_open (&d[TABLES], "image"),
    crash_storage_open (&d[DATA], "data"),
    form->backing ? memory_storage_new ("base", base, size, NULL) : NULL,
  };

  return image_open_encrypted (s, form->backing ? 3 : 2, CACHE_MIN_BYTES,
                               form->aes ? &passphrases : NULL);
}

static bool
read_view (struct image *im)
{
  struct layer *l = image_open_disk (im, "");
  const bool r = l != NULL &&
    layer_read (l, view, size, (struct guest_off) { 0 }) == 0;

  image_close_disk (l);
  return r;
}

/* ------------------------------------------------------------------ requests */

static void
note_values (uint32_t request, uint64_t at, uint64_t count)
{
  uint64_t i;

  for (i = 0; i < count; i += SECTOR)
    history_value (&history, request, (at + i) / SECTOR, content + at + i);
}

static void
flush (struct image *im)
{
  const uint64_t issued = history_moment (&history, now);

  CHECK_OK (image_flush (im));
  history_flushed (&history, issued, now);
}

static void
request (struct image *im, uint64_t *state)
{
  const uint64_t cluster = UINT64_C (1) << form->bits;
  const unsigned kind = random_below (state, 10);
  const bool fua = random_below (state, 5) == 0;
  const bool whole = kind == 9 || random_below (state, 3) == 0;
  uint64_t at = random_below (state, size / SECTOR) * SECTOR;
  uint64_t count = (1 + random_below (state, 2 * cluster / SECTOR)) * SECTOR;
  uint32_t number;

  if (whole) {
    at &= -cluster;
    count = (count + cluster - 1) & -cluster;
  }
  if (count > size - at)
    count = size - at;
  if (kind == 0) {
    flush (im);
    return;
  }
  number = history_begin (&history, now);
  if (kind < 6)
    content_fill_many (content + at, count, CONTENT_WRITTEN, number,
                       at / SECTOR);
  else
    memset (content + at, 0, count);
  note_values (number, at, count);
  CHECK_OK (kind < 6
            ? image_write (im, content + at, count, (struct guest_off) { at },
                           fua ? IMAGE_FUA : 0)
            : kind < 9
            ? image_zero (im, count, (struct guest_off) { at },
                          (fua ? IMAGE_FUA : 0) |
                          (kind == 8 ? 0 : IMAGE_MAY_TRIM))
            : image_trim (im, count, (struct guest_off) { at },
                          fua ? IMAGE_FUA : 0));
  history_answer (&history, number, now, fua);
}

/* The same disk again: to have new memory each time takes longer than all the
 * rest.
 */
static void
renew (struct crash_disk *d, const uint8_t *bytes, uint64_t length)
{
  if (d->bytes == NULL)
    crash_disk_init (d, bytes, length);
  else
    crash_disk_reset (d, bytes, length);
}

static void
run_workload (uint64_t seed)
{
  const struct writer_options options = { 0 };
  uint64_t state = seed;
  struct image *im;
  unsigned i;

  for (i = 0; i < 2; ++i) {
    renew (&disk[i], first[i], first_size[i]);
    disk[i].clock = &now;
  }
  now = 0;
  im = must_have (open_image (disk));
  CHECK_OK (image_make_writable (im, &options));
  for (i = 0; i < REQUESTS && !check_any_failed (); ++i)
    request (im, &state);
  CHECK (read_view (im) && memcmp (view, content, size) == 0);
  CHECK_OK (image_close (im));
}

/* -------------------------------------------------------------------- states */

static void
violation (uint64_t seed, uint64_t moment, struct landed l[2], const char *what)
{
  char a[32], b[32];

  violations++;
  check_failed (__FILE__, __LINE__, "%s, seed %" PRIu64 ", cut %" PRIu64
                ", image %s, data %s: %s", form->what, seed, moment,
                landed_format (l[TABLES], a, sizeof a),
                landed_format (l[DATA], b, sizeof b), what);
}

/* Whether a raw file is not the disk: what it lacks is zeros. */
static bool
raw_differs (const struct disk_state *s)
{
  const uint64_t n = s->size < size ? s->size : size;
  uint64_t i = n;

  while (i < size && view[i] == 0)
    i++;
  return i < size || memcmp (view, s->bytes, n) != 0;
}

static void
judge (uint64_t seed, uint64_t moment, struct landed l[2],
       struct disk_state s[2])
{
  static struct crash_disk d[2]; /* memory is kept for the next state */
  struct image_check found;
  struct image *im;
  uint64_t sector;
  unsigned i;

  states++;
  found = image_check_quietly (s[TABLES].bytes, s[TABLES].size);
  if (found.errors > 0)
    violation (seed, moment, l, "it is not sound");
  for (i = 0; i < 2; ++i)
    renew (&d[i], s[i].bytes, s[i].size);
  im = open_image (d);
  if (im == NULL || !read_view (im))
    violation (seed, moment, l, "it can't be read");
  else if ((sector = history_check (&history, view, moment)) <
           history.nr_sectors) {
    violation (seed, moment, l, "a sector is neither old nor new");
    history_explain (&history, sector, moment);
  }
  else if (form->raw && raw_differs (&s[DATA]))
    violation (seed, moment, l, "the data file is not the disk");
  (void) image_close (im);
}

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
cut_everywhere (uint64_t seed)
{
  struct cut *c[2];
  struct disk_state s[2] = { { 0 } };
  uint64_t k[2] = { 0, 0 }, state = seed, moment;
  unsigned i, n;

  for (i = 0; i < 2; ++i)
    c[i] = cut_new (first[i], first_size[i], disk[i].op, disk[i].nr);
  for (moment = 0; moment <= now && violations < 3; ++moment) {
    for (i = 0; i < 2; ++i) {
      while (k[i] < disk[i].nr && disk[i].op[k[i]].moment < moment)
        k[i]++;
      cut_advance (c[i], k[i]);
    }
    cuts++;
    for (n = 0; n < 7; ++n) {
      struct landed l[2];

      for (i = 0; i < 2; ++i) {
        l[i] = choose (i, n, &state);
        cut_state (c[i], l[i], &s[i]);
      }
      judge (seed, moment, l, s);
    }
  }
  for (i = 0; i < 2; ++i) {
    cut_free (c[i]);
    disk_state_free (&s[i]);
  }
}

int
main (int argc, char *argv[])
{
  /* Each form at least twice. */
  const uint64_t nr = argc > 1 ? strtoull (argv[1], NULL, 0)
    : 48 / TEST_EACH (3);
  const uint64_t seed = argc > 2 ? strtoull (argv[2], NULL, 0) : 1;
  uint64_t i;

  for (i = 0; i < nr && violations == 0; ++i) {
    form = &forms[i % NR_FORMS];
    make_files (seed + i);
    history_init (&history, content, size / SECTOR);
    run_workload (seed + i);
    cut_everywhere (seed + i);
    history_free (&history);
    free_files ();
  }
  printf ("%" PRIu64 " workloads, %" PRIu64 " cuts, %" PRIu64 " states of two "
          "files, %" PRIu64 " violations\n", i, cuts, states, violations);
  return check_result ();
}
