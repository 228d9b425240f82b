/* SPDX-License-Identifier: BSD-3-Clause */

/* An image that is written, zeroed, trimmed and flushed here and there, closed,
 * and opened again.  What must be true of it then depends on how sound it was
 * at first, by an independent check:
 *
 *  - if it was sound, then it still is, what was written is there, and all
 *    else is as it was;
 *  - if it was damaged, then what nobody wrote is as it was, wherever the
 *    tables that lead there and the refcounts of all that is on the way are
 *    right.
 *
 * Half of all inputs are written compressed, or zeros are looked for, or both.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "disk.h"
#include "disk/read.h"
#include "image-check.h"
#include "image.h"
#include "memory-storage.h"
#include "mutate.h"
#include "promise.h"
#include "qcow2/snapshot.h"
#include "random.h"
#include "target.h"

/* Requests stay within windows of the disk, whose contents are known; and
 * probes elsewhere, and in snapshots, must not change.
 */
#define MAX_WINDOWS 4
#define WINDOW 32768
#define MAX_PROBES 12
#define PROBE 1024
#define MAX_REQUESTS 40
#define MAX_VIEWS 3

/* The file may grow by this much. */
#define MAX_GROWTH (UINT64_C (4) << 20)

/* A disk: the live one, and some snapshots.  A bitmap's export has the data of
 * the live disk, which is written: it is none of them.
 */
struct view {
  char *export;
  struct layer *disk;
  struct reference reference; /* of the image as it was at first */
};

struct place {
  unsigned view;
  uint64_t offset;
  size_t count;
  bool known; /* its content is */
  bool sound; /* so it was at first */
  uint8_t content[WINDOW];
};

static struct {
  const uint8_t *data; /* the image as it was at first */
  uint64_t size;
  struct memory_disk disk;
  struct memory_control control;
  struct image *im;
  unsigned nr_views;
  struct view view[MAX_VIEWS];
  struct layer *live;
  uint64_t state;
  bool patterned; /* what is written is not noise alone */
  bool sound;    /* all of it was at first */
  bool failed;   /* a request did */
  unsigned nr_requests;
  unsigned nr_windows, nr_probes;
  struct place window[MAX_WINDOWS];
  struct place probe[MAX_PROBES];
} x;

static uint64_t
below (uint64_t limit)
{
  return random_below (&x.state, limit);
}

/* --------------------------------------------------------------- soundness */

/* What the host clusters are, at first; all that is here ends with it. */
static struct {
  struct image_refs refs;
  bool *wrong; /* an entry of the live disk calls it COPIED: it is not */
  bool shared; /* some of the live disk's are */
} was;

/* A word of the live disk's tables. */
static void
look_at_word (uint64_t word)
{
  const struct reference *r = &x.view[0].reference;
  const uint64_t c = (word & QCOW2_ENTRY_OFFSET_MASK) >> r->bits;

  if ((word & QCOW2_L2_COMPRESSED) || c == 0 || c >= was.refs.nr)
    return;
  if ((word & QCOW2_ENTRY_COPIED) && was.refs.count[c] != 1)
    was.wrong[c] = true;
  was.shared |= was.refs.count[c] > 1;
}

static uint64_t
word_at (uint64_t offset)
{
  return offset <= x.size && x.size - offset >= 8
    ? get_be64 (x.data + offset) : 0;
}

static void
look_at_words (void)
{
  const struct reference *r = &x.view[0].reference;
  uint64_t i, j;

  for (i = 0; i < r->l1_size; ++i) {
    const uint64_t l1 = word_at (r->l1_offset + 8 * i);
    const uint64_t table = l1 & QCOW2_ENTRY_OFFSET_MASK;

    look_at_word (l1);
    for (j = 0; table != 0 && j < r->cluster_size; j += r->extended ? 16 : 8)
      look_at_word (word_at (table + j));
  }
}

/* Whether these host clusters are one thing each, as often referred to as the
 * refcounts say, at most, and are not taken to be somebody's own when they are
 * not.
 */
static bool
clusters_are_sound (uint64_t offset, uint64_t count)
{
  const unsigned bits = x.view[0].reference.bits;
  uint64_t c;

  for (c = offset >> bits; c <= (offset + count - 1) >> bits; ++c) {
    if (c >= was.refs.nr || was.wrong[c] ||
        was.refs.kind[c] == IMAGE_REFS_MIXED ||
        image_refcount (x.data, x.size, c) < was.refs.count[c])
      return false;
  }
  return true;
}

/* Whether all that leads to the data at an offset is, and the data itself.  The
 * tables of the live disk are protected whatever the image says (I7).
 */
static bool
offset_is_sound (const struct view *v, uint64_t offset)
{
  const struct reference_place p = reference_find (&v->reference, offset);
  const bool is_live = v == &x.view[0];

  if (!is_live && ((p.l1 != 0 && !clusters_are_sound (p.l1, 8)) ||
                   (p.table != 0 && !clusters_are_sound (p.table, 1))))
    return false;
  switch (p.kind) {
  case REFERENCE_UNALLOCATED:
  case REFERENCE_ZERO:
  case REFERENCE_ZERO_ALLOC:
    return true;
  case REFERENCE_DATA:
    return clusters_are_sound (p.host, 1);
  case REFERENCE_COMPRESSED:
    return clusters_are_sound (p.host, p.bytes);
  case REFERENCE_DAMAGED:
    break;
  }
  return false;
}

static bool
place_is_sound (const struct place *p)
{
  const struct view *v = &x.view[p->view];
  const uint64_t granule = v->reference.granule;
  uint64_t at = p->offset;

  for (; at < p->offset + p->count; at = (at / granule + 1) * granule) {
    if (!offset_is_sound (v, at))
      return false;
  }
  return true;
}

/* Find what is sound, before anything is written. */
static void
find_sound_places (void)
{
  unsigned i;

  was.shared = false;
  if (image_refs_count_quietly (&was.refs, x.data, x.size)) {
    was.wrong = calloc (was.refs.nr + 1, sizeof *was.wrong);
    if (was.wrong == NULL)
      abort ();
    look_at_words ();
    for (i = 0; i < x.nr_probes; ++i)
      x.probe[i].sound = place_is_sound (&x.probe[i]);
    free (was.wrong);
  }
  image_refs_free (&was.refs);
}

/* ------------------------------------------------------------------ places */

static void
read_place (struct place *p)
{
  const struct guest_off at = { p->offset };

  p->known = layer_read (x.view[p->view].disk, p->content, p->count, at) == 0;
}

static void
compare_place (const struct place *p, const char *what)
{
  static uint8_t buf[WINDOW];

  if (!p->known || !(x.sound || p->sound))
    return;
  if (layer_read (x.view[p->view].disk, buf, p->count,
                  (struct guest_off) { p->offset }) == -1)
    broken (what);
  expect (memcmp (buf, p->content, p->count) == 0, what);
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

static bool
is_apart (const struct place *places, unsigned nr, const struct place *p)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    if (places[i].view == p->view &&
        places[i].offset < p->offset + p->count &&
        p->offset < places[i].offset + places[i].count)
      return false;
  }
  return true;
}

/* Somewhere on a disk: at an end, near the end of a table, anywhere. */
static uint64_t
some_offset (const struct layer *disk)
{
  const uint64_t table = UINT64_C (1) << qcow2_map (disk)->l1_shift;
  const uint64_t size = disk->size;
  uint64_t at = below (size);

  switch (below (4)) {
  case 0: at = below (8) * qcow2_map (disk)->cluster_size; break;
  case 1: at = table * (1 + below (2)) - below (WINDOW); break;
  case 2: at = size - 1 - below (size < WINDOW ? size : WINDOW); break;
  }
  return at < size ? at / 512 * 512 : 0;
}

static void
add_place (struct place *places, unsigned *nr, unsigned view, size_t count)
{
  const struct layer *disk = x.view[view].disk;
  struct place *p = &places[*nr];

  if (disk->size == 0)
    return;
  p->view = view;
  p->offset = some_offset (disk);
  p->count = count < disk->size - p->offset ? count : disk->size - p->offset;
  p->sound = false;
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
    add_place (x.window, &x.nr_windows, 0, 1 + below (WINDOW));
  for (i = 0; i < 2 * MAX_PROBES && x.nr_probes < MAX_PROBES; ++i)
    add_place (x.probe, &x.nr_probes, below (x.nr_views), PROBE);
}

/* ----------------------------------------------------------------- opening */

static int
take_name (void *opaque, const char *name, const char *description)
{
  const size_t prefix = strlen (IMAGE_BITMAP_PREFIX);

  if (strncmp (name, IMAGE_BITMAP_PREFIX, prefix) != 0 &&
      x.nr_views < MAX_VIEWS) {
    x.view[x.nr_views].export = strdup (name);
    if (x.view[x.nr_views++].export == NULL)
      abort ();
  }
  return 0;
}

/* Choose disks: snapshots that can't be opened are left out. */
static void
choose_views (void)
{
  unsigned i, nr = 0;

  expect (image_list (x.im, take_name, NULL) == 0, "exports can't be listed");
  for (i = 0; i < x.nr_views; ++i) {
    struct layer *disk = image_open_disk (x.im, x.view[i].export);

    if (disk != NULL)
      x.view[nr++].export = x.view[i].export;
    else
      free (x.view[i].export);
    image_close_disk (disk);
  }
  x.nr_views = nr;
}

static void
open_views (void)
{
  unsigned i;

  for (i = 0; i < x.nr_views; ++i) {
    x.view[i].disk = image_open_disk (x.im, x.view[i].export);
    expect (x.view[i].disk != NULL, "a disk can't be opened any more");
  }
  x.live = x.view[0].disk;
}

static bool
open_image (void)
{
  x.im = disk_open_image (memory_disk_open (&x.disk, "input", &x.control),
                          x.disk.data, atomic_load (&x.disk.size));
  if (x.im == NULL) {
    expect_error ();
    return false;
  }
  if (x.nr_views == 0)
    choose_views ();
  open_views ();
  return true;
}

static void
init_references (void)
{
  unsigned i;

  for (i = 0; i < x.nr_views; ++i) {
    struct reference *r = &x.view[i].reference;

    reference_init (r, x.data, x.size);
    r->l1_offset = qcow2_map (x.view[i].disk)->l1_offset.v;
    r->l1_size = qcow2_map (x.view[i].disk)->l1_size;
  }
}

static int
close_image (void)
{
  unsigned i;

  for (i = 0; i < x.nr_views; ++i)
    image_close_disk (x.view[i].disk);
  return image_close (x.im);
}

static void
forget_views (void)
{
  while (x.nr_views > 0)
    free (x.view[--x.nr_views].export);
}

/* ---------------------------------------------------------------- requests */

/* Noise; or what can be compressed, in pieces that are zeros or repeat a word,
 * among others.
 */
static void
make_data (uint8_t *buf, uint64_t count)
{
  const uint64_t piece = x.patterned ? 256 << below (6) : WINDOW;
  enum { NOISE, ZEROS, REPEATED, KINDS } kind = NOISE;
  uint64_t i;

  for (i = 0; i < count; ++i) {
    if (x.patterned && i % piece == 0)
      kind = below (KINDS);
    buf[i] = kind == ZEROS ? 0
      : mix (x.state + (kind == REPEATED ? 0 : i / 8)) >> (i % 8 * 8);
  }
}

/* At once, or so that a cluster is complete only by the second part. */
static int
write_parts (const uint8_t *buf, uint64_t count, uint64_t offset,
             unsigned flags)
{
  const uint64_t first = x.patterned && below (2) ? below (count) : 0;

  if (first > 0 &&
      image_write (x.im, buf, first, (struct guest_off) { offset }, 0) == -1)
    return -1;
  return image_write (x.im, buf + first, count - first,
                      (struct guest_off) { offset + first }, flags);
}

static int
do_write (struct place *p, uint64_t from, uint64_t count, unsigned flags)
{
  static uint8_t buf[WINDOW];
  int r;

  make_data (buf, count);
  r = write_parts (buf, count, p->offset + from, flags);
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

/* A trim leaves what it would have to write as it was: in version 2 over a
 * backing file, and parts of compressed clusters.
 */
static bool
has_stayed (const struct place *p, uint64_t at, uint64_t count)
{
  const struct entry_format *f = &qcow2_map (x.live)->format;
  static uint8_t buf[WINDOW];

  return (f->extended_l2 || (f->version == 2 && x.live->backing != NULL)) &&
    layer_read (x.live, buf, count, (struct guest_off) { at }) == 0 &&
    memcmp (buf, p->content + (at - p->offset), count) == 0;
}

/* Whole granules alone. */
static int
do_trim (struct place *p, uint64_t offset, uint64_t count, unsigned flags)
{
  const uint64_t granule = UINT64_C (1) << qcow2_map (x.live)->subcluster_bits;
  const uint64_t at = p->offset + offset;
  const uint64_t to = at + count == x.live->size ? at + count
    : (at + count) & -granule;
  const int r = image_trim (x.im, count, (struct guest_off) { at }, flags);
  uint64_t from = (at + granule - 1) & -granule, n;

  for (; r == 0 && from < to; from += n) {
    n = to - from < granule ? to - from : granule;
    if (!has_stayed (p, from, n))
      memset (p->content + (from - p->offset), 0, n);
  }
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
write_here_and_there (void)
{
  unsigned i;

  x.nr_requests = x.nr_windows == 0 || below (8) == 0 ? 0
    : 1 + below (MAX_REQUESTS);
  for (i = 0; i < x.nr_requests; ++i)
    one_request ();
  compare_places ("what was written is not there",
                  "what nobody wrote has changed");
}

/* ------------------------------------------------------------ what is kept */

static bool
is_unchanged (void)
{
  return atomic_load (&x.disk.size) == x.size &&
    memcmp (x.disk.data, x.data, x.size) == 0;
}

static void
expect_kept (uint64_t offset, uint64_t count, const char *what)
{
  if (offset >= x.size)
    return;
  if (count > x.size - offset)
    count = x.size - offset;
  expect (memcmp (x.disk.data + offset, x.data + offset, count) == 0, what);
}

/* I8: the header's cluster but for the feature bits, and for where the refcount
 * table is.
 */
static void
check_header (void)
{
  static const char what[] = "something in the header was not kept";
  const uint64_t may_change = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
  const uint64_t autoclear = get_be64 (x.disk.data + 88);

  expect_kept (0, 48, what);
  expect_kept (60, 12, what);
  if (x.view[0].reference.version == 2) {
    expect_kept (72, x.view[0].reference.cluster_size - 72, what);
    return;
  }
  expect (((get_be64 (x.disk.data + 72) ^ word_at (72)) & ~may_change) == 0,
          what);
  expect_kept (80, 8, what);
  expect (autoclear == word_at (88) ||
          (autoclear & ~(word_at (88) & QCOW2_AUTOCLEAR_BITMAPS)) == 0,
          "autoclear bits are neither kept nor cleared");
  expect_kept (96, x.view[0].reference.cluster_size - 96, what);
}

/* I7: nothing lands on the directory of bitmaps, whose flags may say that the
 * bitmaps are in use.  Spec: Bitmap directory.
 */
static void
check_bitmaps (const struct header *h)
{
  static const char what[] = "the directory of bitmaps has changed";
  uint64_t at = h->bitmap_directory.v;
  uint32_t i;

  if (h->version < 3 || !(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS))
    return;
  for (i = 0; i < h->nr_bitmaps; ++i) {
    const uint64_t lengths = word_at (at + 16); /* 2 bytes of others first */
    const uint64_t bytes = (24 + (lengths & UINT32_MAX) +
                            (lengths >> 32 & 0xffff) + 7) / 8 * 8;

    expect_kept (at, 12, what);
    expect ((get_be32 (x.disk.data + at + 12) | 1) ==
            (get_be32 (x.data + at + 12) | 1), what);
    expect_kept (at + 16, bytes - 16, what);
    at += bytes;
  }
}

/* I7: nothing lands on the snapshot table, nor on L1 tables of snapshots. */
static void
check_snapshots (const struct header *h)
{
  struct storage *s = memory_storage_new ("input", x.data, x.size, NULL);
  struct snapshots t;
  uint32_t i;

  expect (snapshots_read (&t, h, s) == 0, "snapshots can't be read again");
  expect_kept (h->snapshots_offset.v, t.table_bytes,
               "the snapshot table has changed");
  for (i = 0; i < t.nr; ++i) {
    const struct snapshot *sn = &t.snapshot[i];

    if (snapshot_check (sn, h, s) == 0)
      expect_kept (sn->l1_offset.v, sn->l1_size * 8,
                   "an L1 table of a snapshot has changed");
  }
  snapshots_free (&t);
  storage_close (s);
}

/* ------------------------------------------------------------------- image */

/* It was written, and is closed: see what is left of it. */
static void
look_again (const struct image_check *before, int closed)
{
  struct image_check after;
  struct header h;

  if (x.nr_requests == 0)
    expect (is_unchanged (), "an image that nobody wrote has changed");
  if (x.sound) {
    after = image_check_quietly (x.disk.data, atomic_load (&x.disk.size));
    /* Where the live disk has a cluster twice, nobody knows the other place, to
     * set COPIED there when only that is left.
     */
    expect (after.errors == (was.shared ? after.uncopied : 0),
            "a sound image is not sound any more");
    /* Bitmaps that are not well-formed are given up with their bit. */
    if (closed == 0 && !x.failed && get_be64 (x.disk.data + 88) == word_at (88))
      expect (after.leaks <= before->leaks, "clusters are leaked");
  }
  check_header ();
  expect (disk_header (x.data, x.size, &h), "the header is refused now");
  check_snapshots (&h);
  check_bitmaps (&h);
  if (!open_image ())
    broken ("the image can't be opened any more");
  compare_places ("what was written is gone after closing",
                  "what nobody wrote has changed after closing");
  expect (close_image () == 0, "an image that was only read can't be closed");
}

/* By bits of the seed that nothing else depends on. */
static void
choose_how (struct writer_options *options)
{
  const uint64_t how = mix (disk_seed (x.data, x.size)) >> 21;

  x.patterned = how & 1;
  if (!x.patterned)
    return;
  if (how & 6)
    options->compress_level = 1 + (how >> 8) % 6;
  image_detect_zeroes (x.im, (how >> 16) % 3);
}

static void
write_image (void)
{
  struct writer_options options = {
    .keep_discarded = below (4) == 0, .invalidate_bitmaps = true,
  };
  struct image_check before = { 0 };
  int closed;

  if (!open_image ())
    return;
  choose_how (&options);
  if (image_make_writable (x.im, &options) == -1) {
    expect_error ();
    expect (close_image () == 0, "an image that was only read can't be closed");
    expect (is_unchanged (), "an image that is only read has changed");
    return;
  }
  init_references ();
  before = image_check_quietly (x.data, x.size);
  x.sound = before.errors == 0;
  choose_places ();
  find_sound_places ();
  write_here_and_there ();
  closed = close_image ();
  if (closed == -1)
    expect_error ();
  look_again (&before, closed);
}

static void
test_write (const uint8_t *data, size_t size)
{
  memset (&x.control, 0, sizeof x.control);
  x.data = data;
  x.size = size;
  x.state = disk_seed (data, size);
  x.sound = x.failed = false;
  if (disk_is_qed (data, size))
    return;
  error_set (0, "%s", "");
  memory_disk_init (&x.disk, data, size);
  x.control.limit = size + MAX_GROWTH;
  write_image ();
  forget_views ();
  memory_disk_free (&x.disk);
}

static size_t
mutate_write (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  return mutate_image (data, size, max, seed, MUTATE_WRITE);
}

const struct target target_write = {
  .name = "write",
  .max_size = 128 << 10,
  .test = test_write,
  .mutate = mutate_write,
};
