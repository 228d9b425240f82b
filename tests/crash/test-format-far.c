/* SPDX-License-Identifier: BSD-3-Clause */

/* Power cuts of a server while it is formatted: a device of fixed size, with
 * zeros, garbage or an old image on it.  What is found is what was there, all of
 * the new image, or nothing that could be taken for one; and it can be formatted
 * again.
 */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "check.h"
#include "crash-storage.h"
#include "image.h"
#include "manage/create.h"
#include "memory-storage.h"
#include "power-cut.h"
#include "random.h"
#include "seconds.h"

#define DEVICE (UINT64_C (512) << 10)
#define SECTOR 512
#define TORN 8 /* states of each cut */

static uint8_t before[DEVICE], now[DEVICE];
static struct create_options options;
static char what[100];
static uint64_t states, old_ones, new_ones, again;

/* Format the device, which has these bytes, and keep its log. */
static void
format (struct crash_disk *d, const struct create_options *o)
{
  struct storage *s = crash_storage_open (d, "device");

  CHECK_OK (create_image (s, o));
  storage_close (s);
  CHECK_EQ (d->size, DEVICE); /* it can't grow */
}

static bool
is_image (const uint8_t *bytes)
{
  struct image *im =
    image_open_storage (memory_storage_new ("state", bytes, DEVICE, NULL),
                        CACHE_MIN_BYTES);
  const bool r = im != NULL || strstr (error_message (), "backing") != NULL;

  (void) image_close (im);
  return r;
}

/* Whatever the cut has left does not keep it from being formatted. */
static void
format_again (const struct disk_state *state)
{
  struct crash_disk d;

  crash_disk_init (&d, state->bytes, state->size);
  format (&d, &options);
  CHECK (memcmp (d.bytes, now, options.cluster_size) == 0);
  CHECK (is_image (d.bytes));
  crash_disk_free (&d);
  again++;
}

static void
check_state (struct cut *c, uint64_t k, struct landed l,
             struct disk_state *state)
{
  char how[64];

  cut_state (c, l, state);
  if (state->size != DEVICE)
    check_failed (__FILE__, __LINE__, "%s: another size", what);
  else if (memcmp (state->bytes, before, DEVICE) == 0)
    old_ones++;
  else if (memcmp (state->bytes, now, DEVICE) == 0)
    new_ones++;
  else if (is_image (state->bytes))
    check_failed (__FILE__, __LINE__, "%s: power cut before call %" PRIu64
                  ", %s: neither the old nor the new image", what, k,
                  landed_format (l, how, sizeof how));
  if (states++ % 16 == 0)
    format_again (state);
}

static void
cut_at (struct cut *c, uint64_t k, struct disk_state *state)
{
  const unsigned nr = cut_pending (c);
  unsigned i;

  check_state (c, k, (struct landed) { LANDED_NONE, 0 }, state);
  if (nr == 0)
    return;
  check_state (c, k, (struct landed) { LANDED_ALL, 0 }, state);
  for (i = 0; i < nr; ++i) {
    check_state (c, k, (struct landed) { LANDED_ONLY, i }, state);
    check_state (c, k, (struct landed) { LANDED_NOT, i }, state);
  }
  for (i = 0; i < TORN; ++i)
    check_state (c, k, (struct landed) { LANDED_TORN, k * TORN + i }, state);
}

static void
cut_everywhere (const struct crash_disk *d)
{
  struct cut *c = cut_new (before, DEVICE, d->op, d->nr);
  struct disk_state state = { 0 };
  uint64_t k;

  for (k = 0; k <= d->nr; ++k) {
    cut_advance (c, k);
    cut_at (c, k, &state);
  }
  disk_state_free (&state);
  cut_free (c);
}

enum content { ZEROS, GARBAGE, IMAGE, NR_CONTENTS };

/* The names in an old header go beyond its first sector. */
static void
fill (enum content content, unsigned bits)
{
  static const char name[] = "/the/old/backing/file/has/a/name/that/is/long/"
    "enough/for/the/header/to/go/on/in/the/second/sector/of/it/when/there/are/"
    "the/names/of/features/before/that";
  struct create_options o = CREATE_DEFAULTS;
  uint64_t state = bits;
  struct crash_disk d;

  memset (before, 0, DEVICE);
  if (content != ZEROS)
    random_fill (&state, before, DEVICE);
  if (content != IMAGE)
    return;
  o.size = 300000;
  o.cluster_size = UINT64_C (1) << bits;
  o.backing = name;
  o.backing_format = "raw";
  crash_disk_init (&d, before, DEVICE);
  format (&d, &o);
  memcpy (before, d.bytes, DEVICE);
  crash_disk_free (&d);
}

static void
test (enum content content, unsigned bits, bool backing, bool no_zero)
{
  static const char *const names[] = { "zeros", "garbage", "an image" };
  struct crash_disk d;

  snprintf (what, sizeof what, "clusters of 2^%u over %s%s%s", bits,
            names[content], backing ? ", backing" : "",
            no_zero ? ", which can't be zeroed" : "");
  fill (content, 21 - bits);
  options = (struct create_options) CREATE_DEFAULTS;
  options.size = 200000;
  options.cluster_size = UINT64_C (1) << bits;
  options.must_fit = !backing;
  if (backing) {
    options.backing = "nbd://base.example.com/disk";
    options.backing_format = "raw";
  }
  crash_disk_init (&d, before, DEVICE);
  d.no_zero = no_zero;
  format (&d, &options);
  memcpy (now, d.bytes, DEVICE);
  cut_everywhere (&d);
  crash_disk_free (&d);
}

int
main (void)
{
  static const unsigned bits[] = { 9, 12 };
  unsigned i, k, n = 0;

  check_time_limit (300);
  (void) unsetenv (MEMORY_BLOCK_VARIABLE);
  for (i = 0; i < 2; ++i)
    for (k = 0; k < NR_CONTENTS; ++k)
      for (n = 0; n < 4; ++n)
        test (k, bits[i], n & 1, n & 2);
  CHECK (old_ones > 0 && new_ones > 0 && again > 0 &&
         states > old_ones + new_ones);
  printf ("%" PRIu64 " states: %" PRIu64 " as before, %" PRIu64 " the new "
          "image\n", states, old_ones, new_ones);
  return check_result ();
}
