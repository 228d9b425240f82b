/* SPDX-License-Identifier: BSD-3-Clause */

/* A QED image that is repaired or not, made writable, written, zeroed, trimmed
 * and flushed here and there, closed, and opened again; in some of all inputs
 * something fails on the way:
 *
 *  - only what is sound by an independent judge is written, and what is not is
 *    left as it is, to the byte;
 *  - what was written is there, and all else is as it was;
 *  - the image is sound after any end, without new leaks or with NEED_CHECK;
 *  - the header keeps all but two of its fields (I8).
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "disk.h"
#include "disk/read.h"
#include "image.h"
#include "memory-storage.h"
#include "promise.h"
#include "qed-image.h"
#include "qed-input.h"
#include "random.h"

/* The first half of the places are windows, which requests stay within. */
#define PLACES 8
#define PLACE_BYTES 16384
#define MAX_REQUESTS 40

/* The file may grow by this much. */
#define MAX_GROWTH (UINT64_C (1) << 20)

struct qed_place {
  uint64_t offset;
  size_t count;
  bool known; /* its content is */
  uint8_t content[PLACE_BYTES];
};

static struct {
  struct qed_input *in;
  struct memory_disk disk;
  struct memory_control control;
  struct image *im;
  struct layer *live;
  bool failed; /* a request did */
  unsigned nr_places, nr_requests;
  struct qed_place place[PLACES];
} w;

static uint64_t
below (uint64_t limit)
{
  return random_below (&w.in->state, limit);
}

/* ------------------------------------------------------------------ places */

static uint64_t
some_offset (void)
{
  const uint64_t cluster = qed_input_field (w.in, 4, 4);
  const uint64_t table = qed_input_field (w.in, 8, 4) * cluster / 8 * cluster;
  const uint64_t size = w.live->size;
  uint64_t at = below (size);

  switch (below (4)) {
  case 0: at = below (8) * cluster; break;
  case 1: at = table * (1 + below (2)) - below (PLACE_BYTES); break;
  case 2:
    at = size - 1 - below (size < PLACE_BYTES ? size : PLACE_BYTES);
    break;
  }
  return at < size ? at / 512 * 512 : 0;
}

static void
read_place (struct qed_place *p)
{
  p->known = layer_read (w.live, p->content, p->count,
                         (struct guest_off) { p->offset }) == 0;
}

static void
add_place (void)
{
  struct qed_place *p = &w.place[w.nr_places];
  const uint64_t at = some_offset ();
  const uint64_t left = w.live->size - at, count = 1 + below (PLACE_BYTES);
  unsigned i;

  p->offset = at;
  p->count = count < left ? count : left;
  for (i = 0; i < w.nr_places; ++i)
    if (w.place[i].offset < at + p->count &&
        at < w.place[i].offset + w.place[i].count)
      return;
  w.nr_places++;
  read_place (p);
}

static void
choose_places (void)
{
  unsigned i;

  w.nr_places = 0;
  for (i = 0; i < 2 * PLACES && w.nr_places < PLACES && w.live->size > 0; ++i)
    add_place ();
}

static unsigned
nr_windows (void)
{
  return (w.nr_places + 1) / 2;
}

static void
compare_places (unsigned first, const char *what)
{
  static uint8_t buf[PLACE_BYTES];
  unsigned i;

  for (i = first; i < w.nr_places; ++i) {
    const struct qed_place *p = &w.place[i];

    if (!p->known)
      continue;
    if (layer_read (w.live, buf, p->count,
                    (struct guest_off) { p->offset }) == -1)
      broken (what);
    expect (memcmp (buf, p->content, p->count) == 0, what);
  }
}

/* ---------------------------------------------------------------- requests */

static int
do_write (struct qed_place *p, uint64_t from, uint64_t count, unsigned flags)
{
  static uint8_t buf[PLACE_BYTES];
  int r;

  random_fill (&w.in->state, buf, count);
  r = image_write (w.im, buf, count, (struct guest_off) { p->offset + from },
                   flags);
  if (r == 0)
    memcpy (p->content + from, buf, count);
  return r;
}

static int
do_zero (struct qed_place *p, uint64_t from, uint64_t count, unsigned flags)
{
  const int r = image_zero (w.im, count,
                            (struct guest_off) { p->offset + from }, flags);

  if (r == 0)
    memset (p->content + from, 0, count);
  return r;
}

/* Each byte is zero after it, or as it was. */
static int
do_trim (struct qed_place *p, uint64_t from, uint64_t count, unsigned flags)
{
  const struct guest_off at = { p->offset + from };
  static uint8_t buf[PLACE_BYTES];
  uint64_t i;

  if (image_trim (w.im, count, at, flags) == -1)
    return -1;
  if (!p->known || layer_read (w.live, buf, count, at) == -1)
    return 0;
  for (i = 0; i < count; ++i) {
    expect (buf[i] == 0 || buf[i] == p->content[from + i],
            "a trim makes something else of data");
    p->content[from + i] = buf[i];
  }
  return 0;
}

static int
change_place (struct qed_place *p)
{
  const unsigned fua = below (8) ? 0 : IMAGE_FUA;
  uint64_t from = below (p->count), count;

  if (below (2))
    from = from / 4096 * 4096;
  count = 1 + below (p->count - from);
  switch (below (7)) {
  case 0: case 1: case 2: return do_write (p, from, count, fua);
  case 3: return do_zero (p, from, count, fua);
  case 4: return do_zero (p, from, count, fua | IMAGE_MAY_TRIM);
  case 5: return do_zero (p, from, count, fua | IMAGE_FAST | IMAGE_MAY_TRIM);
  default: return do_trim (p, from, count, fua);
  }
}

static void
one_request (void)
{
  struct qed_place *p = &w.place[below (nr_windows ())];
  const bool flush = below (8) == 0;

  if ((flush ? image_flush (w.im) : change_place (p)) == 0)
    return;
  expect_error ();
  if (error_errno () == ENOTSUP) /* nothing has changed */
    return;
  w.failed = true;
  p->known &= flush;
}

static void
write_here_and_there (void)
{
  unsigned i;

  choose_places ();
  w.nr_requests = w.nr_places == 0 || below (8) == 0 ? 0
    : 1 + below (MAX_REQUESTS);
  for (i = 0; i < w.nr_requests; ++i)
    one_request ();
  compare_places (0, "what was written is not there, or something else is");
}

/* --------------------------------------------------------------- the image */

static void
open_image (void)
{
  w.im = disk_open_image (memory_disk_open (&w.disk, "input", &w.control),
                          w.disk.data, w.disk.size);
  expect (w.im != NULL, "an image can't be opened again");
  w.live = image_open_disk (w.im, "");
  expect (w.live != NULL, "the live disk can't be opened again");
}

static int
close_image (void)
{
  image_close_disk (w.live);
  return image_close (w.im);
}

static bool
is_unchanged (void)
{
  return w.disk.size == w.in->size &&
    memcmp (w.disk.data, w.in->data, w.in->size) == 0;
}

/* I8. */
static void
compare_header (void)
{
  const uint64_t header =
    qed_input_field (w.in, 12, 4) * qed_input_field (w.in, 4, 4);
  const uint64_t end = header < w.in->size ? header : w.in->size;
  const uint8_t *a = w.disk.data, *b = w.in->padded;

  expect (memcmp (a, b, 16) == 0 && (a[16] | 2) == (b[16] | 2) &&
          memcmp (a + 17, b + 17, 15) == 0 &&
          memcmp (a + 40, b + 40, end - 40) == 0,
          "something in the header was not kept");
  expect (memcmp (a + 32, b + 32, 8) == 0 || qed_image_get (a, 32, 8) == 0,
          "autoclear bits are neither kept nor cleared");
}

static void
look_again (const struct qed_verdict *before, int closed)
{
  const struct qed_verdict v = qed_image_judge (w.disk.data, w.disk.size);
  const bool fine = closed == 0 && !w.failed;

  expect (v.errors == 0, "a sound image is not sound any more");
  expect (v.leaks <= before->leaks || (!fine && v.need_check) ||
          (closed == 0 && w.failed), "clusters are leaked");
  expect (closed == -1 || !v.need_check, "NEED_CHECK is left");
  compare_header ();
  memset (&w.control, 0, sizeof w.control);
  open_image ();
  /* What was not flushed may be gone. */
  compare_places (closed == -1 ? nr_windows () : 0,
                  "something has changed after closing");
  expect (close_image () == 0, "an image that was only read can't be closed");
}

/* Returns whether it may be written, by what the judge says. */
static bool
make_writable (enum image_repair mode)
{
  const struct writer_options options = { .keep_discarded = below (4) == 0 };
  struct qed_verdict v;
  char summary[512];

  if (image_repair (w.im, mode, summary, sizeof summary) == -1) {
    expect_error ();
    v = qed_image_judge (w.disk.data, w.disk.size);
    expect (v.errors > 0, "a sound image can't be repaired");
    return false;
  }
  v = qed_image_judge (w.disk.data, w.disk.size);
  if (image_make_writable (w.im, &options) == 0) {
    expect (v.errors == 0 && !v.need_check, "an image is written that is not "
            "sound");
    return true;
  }
  expect_error ();
  expect (v.errors > 0 || v.need_check, "a sound image is not written");
  return false;
}

static void
write_image (enum image_repair mode)
{
  struct qed_verdict before;
  int closed;

  open_image ();
  if (!make_writable (mode)) {
    expect (close_image () == 0, "an image that was only read can't be closed");
    expect (mode != IMAGE_REPAIR_NONE || is_unchanged (),
            "an image that is only read has changed");
    return;
  }
  before = qed_image_judge (w.disk.data, w.disk.size);
  if (below (4) == 0)
    memory_fail_ever_after (&w.control, MEMORY_CHANGES, 1 + below (40), EIO);
  write_here_and_there ();
  closed = close_image ();
  if (closed == -1)
    expect_error ();
  if (w.nr_requests == 0 && mode == IMAGE_REPAIR_NONE)
    expect (is_unchanged (), "an image that nobody wrote has changed");
  look_again (&before, closed);
}

void
qed_write_input (struct qed_input *in)
{
  static const enum image_repair modes[] = {
    IMAGE_REPAIR_NONE, IMAGE_REPAIR_NONE, IMAGE_REPAIR_DIRTY,
    IMAGE_REPAIR_ALL,
  };

  w.in = in;
  w.failed = false;
  memset (&w.control, 0, sizeof w.control);
  memory_disk_init (&w.disk, in->data, in->size);
  w.control.holes = below (2);
  w.control.limit = in->size + below (MAX_GROWTH);
  w.control.no_zero = below (8) == 0;
  write_image (modes[below (4)]);
  memory_disk_free (&w.disk);
}
