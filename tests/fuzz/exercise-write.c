/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "exercise.h"
#include "image.h"
#include "image-check.h"
#include "memory-storage.h"
#include "random.h"
#include "read.h"

/* Requests stay within windows of the disk, whose contents are known; and
 * probes elsewhere must not change.
 */
#define MAX_WINDOWS 4
#define WINDOW 32768
#define MAX_PROBES 8
#define PROBE 1024
#define REQUESTS 40

/* The file may grow by this much. */
#define MAX_GROWTH (UINT64_C (4) << 20)

struct place {
  uint64_t offset;
  size_t count;
  bool known; /* its content is */
  uint8_t content[WINDOW];
};

static struct {
  struct memory_disk disk;
  struct memory_control control;
  struct image *im;
  struct layer *live;
  uint64_t state;
  bool sound;  /* at first: then nothing must be lost */
  bool failed; /* a request did */
  unsigned nr_windows, nr_probes;
  struct place window[MAX_WINDOWS];
  struct place probe[MAX_PROBES];
} x;

static void __attribute__ ((__noreturn__))
broken (const char *what)
{
  fprintf (stderr, "broken promise: %s (last error: %s)\n", what,
           error_message ());
  abort ();
}

static void
expect (bool ok, const char *what)
{
  if (!ok)
    broken (what);
}

static uint64_t
below (uint64_t limit)
{
  return random_below (&x.state, limit);
}

static void
expect_error (void)
{
  const int err = error_errno ();

  expect (err == EIO || err == ENOSPC || err == ENOTSUP || err == EINVAL ||
          err == ENOMEM, "an unexpected errno");
  expect (error_message ()[0] != '\0', "a failure without a message");
}

/* ------------------------------------------------------------------ places */

static void
read_place (struct place *p)
{
  const struct guest_off at = { p->offset };

  p->known = layer_read (x.live, p->content, p->count, at) == 0;
}

static void
compare_place (const struct place *p, const char *what)
{
  static uint8_t buf[WINDOW];

  if (!p->known || !x.sound)
    return;
  if (layer_read (x.live, buf, p->count, (struct guest_off) { p->offset }) ==
      -1)
    broken (what);
  expect (memcmp (buf, p->content, p->count) == 0, what);
}

static bool
is_apart (const struct place *places, unsigned nr, const struct place *p)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    if (places[i].offset < p->offset + p->count &&
        p->offset < places[i].offset + places[i].count)
      return false;
  }
  return true;
}

/* Somewhere on the disk: at an end, near the end of a table, anywhere. */
static uint64_t
some_offset (void)
{
  const uint64_t table = UINT64_C (1) << x.live->map.l1_shift;
  const uint64_t size = x.live->size;
  uint64_t at = below (size);

  switch (below (4)) {
  case 0: at = below (8) * x.live->map.cluster_size; break;
  case 1: at = table * (1 + below (2)) - below (WINDOW); break;
  case 2: at = size - 1 - below (size < WINDOW ? size : WINDOW); break;
  }
  return at < size ? at / 512 * 512 : 0;
}

static void
add_place (struct place *places, unsigned *nr, size_t count)
{
  struct place *p = &places[*nr];

  p->offset = some_offset ();
  p->count = count < x.live->size - p->offset ? count
    : x.live->size - p->offset;
  if (!is_apart (x.window, x.nr_windows, p) ||
      !is_apart (x.probe, x.nr_probes, p))
    return;
  ++*nr;
  read_place (p);
}

static void
choose_places (void)
{
  unsigned i;

  x.nr_windows = x.nr_probes = 0;
  for (i = 0; i < 2 * MAX_WINDOWS && x.nr_windows < MAX_WINDOWS; ++i)
    add_place (x.window, &x.nr_windows, 1 + below (WINDOW));
  for (i = 0; i < 2 * MAX_PROBES && x.nr_probes < MAX_PROBES; ++i)
    add_place (x.probe, &x.nr_probes, PROBE);
}

/* --------------------------------------------------------------- opening */

static bool
open_image (void)
{
  x.im = image_open_storage (memory_disk_open (&x.disk, "input", &x.control),
                             CACHE_MIN_BYTES);
  if (x.im == NULL) {
    expect (error_errno () != 0 && error_message ()[0] != '\0',
            "a failure without a reason");
    return false;
  }
  x.live = image_open_disk (x.im, "");
  expect (x.live != NULL, "the live disk can't be opened");
  return true;
}

static int
close_image (void)
{
  image_close_disk (x.live);
  return image_close (x.im);
}

/* ---------------------------------------------------------------- requests */

static int
do_write (struct place *p, uint64_t from, uint64_t count, unsigned flags)
{
  static uint8_t buf[WINDOW];
  uint64_t i;
  int r;

  for (i = 0; i < count; ++i)
    buf[i] = mix (x.state + i / 8) >> (i % 8 * 8);
  r = image_write (x.im, buf, count, (struct guest_off) { p->offset + from },
                   flags);
  if (r == 0)
    memcpy (p->content + from, buf, count);
  return r;
}

static int
do_zero (struct place *p, uint64_t from, uint64_t count, unsigned flags)
{
  const int r = image_zero (x.im, count, (struct guest_off) {
      p->offset + from }, flags);

  if (r == 0)
    memset (p->content + from, 0, count);
  return r;
}

/* Whole granules alone. */
static int
do_trim (struct place *p, uint64_t offset, uint64_t count, unsigned flags)
{
  const uint64_t granule = UINT64_C (1) << x.live->map.subcluster_bits;
  const uint64_t at = p->offset + offset;
  const uint64_t from = (at + granule - 1) & -granule;
  const uint64_t to = at + count == x.live->size ? at + count
    : (at + count) & -granule;
  const int r = image_trim (x.im, count, (struct guest_off) { at }, flags);

  if (r == 0 && from < to)
    memset (p->content + (from - p->offset), 0, to - from);
  return r;
}

static void
one_request (void)
{
  const unsigned fua = below (8) ? 0 : IMAGE_FUA;
  struct place *p = &x.window[below (x.nr_windows)];
  uint64_t from = below (p->count), count;
  int r;

  if (below (2))
    from = from / 512 * 512;
  count = 1 + below (p->count - from);
  switch (below (8)) {
  case 0: case 1: case 2:
    r = do_write (p, from, count, fua);
    break;
  case 3:
    r = do_zero (p, from, count, fua);
    break;
  case 4:
    r = do_zero (p, from, count, fua | IMAGE_MAY_TRIM);
    break;
  case 5:
    r = do_zero (p, from, count, fua | IMAGE_FAST | IMAGE_MAY_TRIM);
    break;
  case 6:
    r = do_trim (p, from, count, fua);
    break;
  default:
    r = image_flush (x.im);
    p = NULL;
    break;
  }
  if (r == 0)
    return;
  expect_error ();
  if (error_errno () == ENOTSUP) /* nothing has changed */
    return;
  x.failed = true;
  if (p != NULL)
    p->known = false;
}

static void
compare_places (const char *window, const char *probe)
{
  unsigned i;

  for (i = 0; i < x.nr_windows; ++i)
    compare_place (&x.window[i], window);
  for (i = 0; i < x.nr_probes; ++i)
    compare_place (&x.probe[i], probe);
}

static void
write_here_and_there (void)
{
  unsigned i;

  choose_places ();
  for (i = 0; i < REQUESTS && x.nr_windows > 0; ++i)
    one_request ();
  compare_places ("what was written is not there",
                  "what nobody wrote has changed");
}

/* ------------------------------------------------------------------- image */

/* It was written, and is closed: see what is left of it. */
static void
look_again (const struct image_check *before, int closed)
{
  struct image_check after;

  if (x.sound) {
    after = image_check_quietly (x.disk.data, atomic_load (&x.disk.size));
    expect (after.errors == 0, "a sound image is not sound any more");
    if (closed == 0 && !x.failed)
      expect (after.leaks <= before->leaks, "clusters are leaked");
  }
  if (!open_image ())
    broken ("the image can't be opened any more");
  compare_places ("what was written is gone after closing",
                  "what nobody wrote has changed after closing");
  expect (close_image () == 0, "an image that was only read can't be closed");
}

static bool
write_image (const uint8_t *data, size_t size)
{
  const struct writer_options options = {
    .keep_discarded = below (4) == 0, .invalidate_bitmaps = true,
  };
  struct image_check before = { 0 };
  int closed;

  if (!open_image ())
    return false;
  if (x.live->size == 0 || image_make_writable (x.im, &options) == -1) {
    if (x.live->size > 0)
      expect_error ();
    (void) close_image ();
    expect (memcmp (x.disk.data, data, size) == 0 &&
            atomic_load (&x.disk.size) == size,
            "an image that is only read has changed");
    return false;
  }
  before = image_check_quietly (data, size);
  x.sound = before.errors == 0;
  write_here_and_there ();
  closed = close_image ();
  if (closed == -1)
    expect_error ();
  look_again (&before, closed);
  return true;
}

bool
exercise_write (const uint8_t *data, size_t size)
{
  bool written;
  size_t i;

  memset (&x.control, 0, sizeof x.control);
  x.state = size;
  for (i = 0; i < size && i < 128; ++i)
    x.state = mix (x.state + data[i]);
  x.sound = x.failed = false;
  error_set (0, "%s", "");
  memory_disk_init (&x.disk, data, size);
  x.control.limit = size + MAX_GROWTH;
  written = write_image (data, size);
  memory_disk_free (&x.disk);
  return written;
}
