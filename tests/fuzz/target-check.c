/* SPDX-License-Identifier: BSD-3-Clause */

/* An image that is checked and repaired: as by `nbdkit-qcow2-tool check', and
 * as by the plugin before it is written.
 *
 * Of a check: nothing is written, and its verdict is that of an independent
 * check, as far as that looks.  Of a repair, the first three of one that fails
 * as well:
 *
 *  - what could be read of any disk reads the same;
 *  - no host cluster has more references than before, but those that had none;
 *  - the header's cluster is kept (I8), but for what a repair changes there;
 *  - what is sound stays as it is (I9), but for a mark as dirty or corrupt;
 *  - what it says is left is what a check finds, and another repair has nothing
 *    to do;
 *  - the plugin comes to the same bytes, and takes an image for writing only if
 *    no errors are left.
 *
 * Not that fewer errors are left than there were: by refcounts that are right,
 * flags are wrong that seemed to be right, and are in tables that are not
 * written.
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
#include "qcow2/check/check.h"
#include "qcow2/check/repair.h"
#include "random.h"
#include "target.h"

#define SECTOR 512
#define MAX_DISKS 4
#define MAX_PROBES 64
#define MAX_STEPS 4096 /* granules of a disk that are looked at */

/* The file may grow by this much. */
#define MAX_GROWTH (UINT64_C (4) << 20)

/* A sector of a disk, as it read at first. */
struct probe {
  unsigned disk;
  uint64_t offset;
  bool readable;
  uint8_t content[SECTOR];
};

static struct {
  const uint8_t *data; /* the image as it was at first */
  uint64_t size;
  uint64_t state;
  enum repair_mode mode;
  struct check_options options;
  bool fixed; /* the file can't grow */
  struct check_report before;
  bool opens; /* the image does; then these are of use */

  unsigned nr_disks;
  char *export[MAX_DISKS];
  unsigned nr_probes;
  uint64_t seen; /* places to choose probes from */
  struct probe probe[MAX_PROBES];
} x;

/* What a repair came to. */
struct outcome {
  int r;
  struct repair_report report;
};

static uint64_t
below (uint64_t limit)
{
  return random_below (&x.state, limit);
}

/* --------------------------------------------------------------- the check */

static void
found (void *opaque, enum check_kind kind, const char *text)
{
  (void) opaque;
  expect (kind < CHECK_KINDS, "a finding of no kind");
  expect (*text != '\0', "a finding without a word");
  for (; *text != '\0'; ++text)
    expect ((unsigned char) *text >= ' ' && *text != 0x7f,
            "a control character in a finding");
}

/* In a storage that has no functions that write. */
static int
check_bytes (const uint8_t *data, uint64_t size, size_t memory,
             struct check_report *report)
{
  struct check_options options = x.options;
  struct storage *s = memory_storage_new ("input", data, size, NULL);
  int r;

  options.memory = memory;
  r = check_storage (s, &options, report);
  storage_close (s);
  return r;
}

static bool
same_reports (const struct check_report *a, const struct check_report *b)
{
  struct check_report copy = *b;

  copy.windows = a->windows;
  copy.counts_memory = a->counts_memory;
  return memcmp (a, &copy, sizeof copy) == 0;
}

static uint64_t
word_at (const uint8_t *data, uint64_t size, uint64_t offset)
{
  return offset <= size && size - offset >= 8 ? get_be64 (data + offset) : 0;
}

/* Whether COPIED is set in a word that refers to nothing. */
static bool
is_flag_alone (uint64_t word)
{
  return !(word & QCOW2_L2_COMPRESSED) && (word & QCOW2_ENTRY_COPIED) &&
    (word & QCOW2_ENTRY_OFFSET_MASK) == 0;
}

/* Such words of the live disk, which only image-check.c minds. */
static uint64_t
flags_alone (const uint8_t *data, uint64_t size)
{
  struct reference r;
  uint64_t i, j, nr = 0;

  reference_init (&r, data, size);
  for (i = 0; i < r.l1_size; ++i) {
    const uint64_t l1 = word_at (data, size, r.l1_offset + 8 * i);
    const uint64_t table = l1 & QCOW2_ENTRY_OFFSET_MASK;

    nr += is_flag_alone (l1);
    for (j = 0; table != 0 && j < r.cluster_size; j += r.extended ? 16 : 8)
      nr += is_flag_alone (word_at (data, size, table + j));
  }
  return nr;
}

/* image-check.c finds nothing.  It does not look at entries of snapshots but
 * for what they refer to, as those with reserved bits alone do not there; nor
 * at what else is wrong with bitmaps; and flags should be as references are,
 * not as refcounts.
 */
static void
compare_with_sound (const struct check_report *r, const uint8_t *data,
                    uint64_t leaks)
{
  const uint64_t flags = leaks > 0 ? r->found[CHECK_COPIED] : 0;

  if (r->found[CHECK_RESERVED] == 0)
    expect (r->found[CHECK_REFCOUNT] == 0 && r->found[CHECK_OVERFLOW] == 0 &&
            r->found[CHECK_REFCOUNT_BLOCK] == 0 &&
            r->found[CHECK_OVERLAP] == 0,
            "a check finds wrong references where none are");
  if (get_be32 (data + 60) == 0 && !r->bitmaps_damaged)
    expect (r->corruptions == flags, "a check does not call sound what is");
}

/* repaired: and something was wrong, so that no leaks are left, not even of
 * clusters behind the end of the file, which a check does not count.
 */
static void
compare_verdicts (const struct check_report *r, const uint8_t *data,
                  uint64_t size, bool repaired)
{
  struct image_check c;
  struct image_refs refs;
  const bool done = image_refs_count_quietly (&refs, data, size);

  image_refs_free (&refs);
  if (!done)
    return;
  c = image_check_quietly (data, size);
  if (check_report_is_sound (r)) {
    if (c.leaks > 0)
      c.errors -= c.uncopied;
    expect (c.errors == flags_alone (data, size),
            "a check calls sound what is not");
    expect (c.leaks >= r->leaks, "a check finds leaks where none are");
    expect (c.leaks == 0 || !repaired, "leaks are left");
  }
  else if (c.errors == 0)
    compare_with_sound (r, data, c.leaks);
}

/* --------------------------------------------------------------- the disks */

static int
take_name (void *opaque, const char *name, const char *description)
{
  (void) opaque;
  (void) description;
  if (x.nr_disks < MAX_DISKS) {
    x.export[x.nr_disks] = strdup (name);
    if (x.export[x.nr_disks++] == NULL)
      abort ();
  }
  return 0;
}

/* Compressed data that reach into a cluster which the file does not have may
 * decode all the same, by the zeros that are read there: their size is mended.
 */
static bool
is_cut_off (const struct reference *r, const struct reference_place *p)
{
  return p->kind == REFERENCE_COMPRESSED &&
    (p->host + p->bytes - 1) / r->cluster_size >
    (r->size - 1) / r->cluster_size;
}

static void
add_probe (unsigned disk, const struct reference *r, uint64_t offset)
{
  const struct reference_place p = reference_find (r, offset);
  uint64_t i;

  if (is_cut_off (r, &p))
    return;
  i = x.nr_probes < MAX_PROBES ? x.nr_probes++ : below (x.seen);
  x.seen++;
  if (i < MAX_PROBES) {
    x.probe[i].disk = disk;
    x.probe[i].offset = offset / SECTOR * SECTOR;
  }
}

/* Some of all places that tables lead to, and a few others. */
static void
choose_probes (unsigned disk, const struct layer *l)
{
  const uint64_t table = UINT64_C (1) << qcow2_map (l)->l1_shift;
  struct reference r;
  uint64_t at = 0;
  unsigned i;

  reference_init (&r, x.data, x.size);
  r.l1_offset = qcow2_map (l)->l1_offset.v;
  r.l1_size = qcow2_map (l)->l1_size;
  for (i = 0; i < MAX_STEPS && at < l->size; ++i) {
    const struct reference_place p = reference_find (&r, at);

    if (p.kind != REFERENCE_UNALLOCATED)
      add_probe (disk, &r, at + below (r.granule));
    at = p.table == 0 ? (at / table + 1) * table : at + r.granule;
  }
  for (i = 0; i < 4 && l->size > 0; ++i)
    add_probe (disk, &r, below (l->size));
}

static bool
read_probe (const struct layer *l, const struct probe *p,
            uint8_t sector[SECTOR])
{
  return p->offset < l->size &&
    layer_read (l, sector, SECTOR, (struct guest_off) { p->offset }) == 0;
}

static void
remember_disk (unsigned disk, const struct layer *l)
{
  unsigned i;

  choose_probes (disk, l);
  for (i = 0; i < x.nr_probes; ++i) {
    struct probe *p = &x.probe[i];

    if (p->disk == disk)
      p->readable = read_probe (l, p, p->content);
  }
}

/* What the disks of the image hold at first.  Those of snapshots that can't be
 * opened are left out.
 */
static void
remember_disks (const struct image *im)
{
  unsigned i, nr = 0;

  expect (image_list (im, take_name, NULL) == 0, "exports can't be listed");
  for (i = 0; i < x.nr_disks; ++i) {
    struct layer *l = image_open_disk (im, x.export[i]);

    if (l == NULL)
      free (x.export[i]);
    else {
      x.export[nr] = x.export[i];
      remember_disk (nr++, l);
    }
    image_close_disk (l);
  }
  x.nr_disks = nr;
}

static void
compare_disk (unsigned disk, const struct layer *l)
{
  uint8_t sector[SECTOR];
  unsigned i;

  for (i = 0; i < x.nr_probes; ++i) {
    const struct probe *p = &x.probe[i];

    if (p->disk != disk || !p->readable)
      continue;
    if (!read_probe (l, p, sector))
      broken ("a repair makes something unreadable");
    expect (memcmp (sector, p->content, SECTOR) == 0,
            "a repair changes what the guest sees");
  }
}

static void
compare_disks (const struct image *im)
{
  unsigned i;

  for (i = 0; i < x.nr_disks; ++i) {
    struct layer *l = image_open_disk (im, x.export[i]);

    expect (l != NULL, "a repaired disk can't be opened any more");
    compare_disk (i, l);
    image_close_disk (l);
  }
}

static void
look_at_first (void)
{
  struct image *im =
    disk_open_image (memory_storage_new ("input", x.data, x.size, NULL),
                     x.data, x.size);

  x.opens = im != NULL;
  if (im == NULL) {
    expect_error ();
    return;
  }
  remember_disks (im);
  expect (image_close (im) == 0, "an image that was read can't be closed");
}

static void
look_again (const struct memory_disk *d)
{
  struct image *im =
    disk_open_image (memory_storage_new ("repaired", d->data, d->size, NULL),
                     d->data, d->size);

  expect (im != NULL, "a repaired image can't be opened any more");
  compare_disks (im);
  expect (image_close (im) == 0, "an image that was read can't be closed");
}

static void
forget_disks (void)
{
  while (x.nr_disks > 0)
    free (x.export[--x.nr_disks]);
}

/* ------------------------------------------------------------ what is kept */

static bool
is_same (const struct memory_disk *d, const uint8_t *data, uint64_t size)
{
  return d->size == size && memcmp (d->data, data, size) == 0;
}

static bool
is_kept (const struct memory_disk *d, uint64_t from, uint64_t to)
{
  if (to > x.size)
    to = x.size;
  return from >= to || memcmp (d->data + from, x.data + from, to - from) == 0;
}

/* I8: but for where the refcount table is, and a snapshot table that QEMU would
 * refuse; two feature bits that are cleared, and autoclear bits, of which none
 * is set.
 */
static void
check_header (const struct memory_disk *d)
{
  const uint64_t cluster_size = UINT64_C (1) << get_be32 (x.data + 20);
  const uint64_t cleared = QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
  const bool v3 = get_be32 (x.data + 4) >= 3;

  expect (is_kept (d, 0, 48) &&
          is_kept (d, 60, x.before.odd_snapshots > 0 ? 64 : 72) &&
          is_kept (d, v3 ? 96 : 72, cluster_size) &&
          (!v3 || is_kept (d, 80, 88)),
          "something in the header was not kept");
  if (!v3)
    return;
  expect ((get_be64 (d->data + 72) | cleared) ==
          (get_be64 (x.data + 72) | cleared) &&
          (get_be64 (d->data + 72) & ~get_be64 (x.data + 72)) == 0,
          "incompatible features were not kept");
  expect ((get_be64 (d->data + 88) & ~get_be64 (x.data + 88)) == 0,
          "an autoclear bit is set");
}

/* No cluster that was in use is used once more, nor as two things. */
static void
compare_refs (const struct image_refs *before, const struct image_refs *after)
{
  uint64_t c;

  for (c = 0; c < after->nr; ++c) {
    const uint32_t had = c < before->nr ? before->count[c] : 0;

    expect (after->count[c] <= (had > 0 ? had : 1),
            "a repair shares a cluster");
    expect (after->kind[c] != IMAGE_REFS_MIXED ||
            before->kind[c] == IMAGE_REFS_MIXED,
            "a repair uses a cluster as two things");
  }
}

static void
check_refs (const struct memory_disk *d)
{
  struct image_refs before, after;
  const bool counted = image_refs_count_quietly (&before, x.data, x.size);

  if (image_refs_count_quietly (&after, d->data, d->size) && counted)
    compare_refs (&before, &after);
  image_refs_free (&before);
  image_refs_free (&after);
}

/* A repair that fails keeps all of this, too. */
static void
check_kept (const struct memory_disk *d)
{
  check_header (d);
  if (!x.opens)
    return;
  check_refs (d);
  look_again (d);
}

/* -------------------------------------------------------------- the repair */

static struct memory_control
control_of (uint64_t size)
{
  return (struct memory_control) {
    .limit = size + MAX_GROWTH, .fixed = x.fixed,
  };
}

static void
repair (struct memory_disk *d, struct outcome *o)
{
  struct memory_control control = control_of (x.size);
  struct storage *s = memory_disk_open (d, "input", &control);

  o->r = repair_storage (s, x.mode, &x.options, &o->report);
  storage_close (s);
  if (o->r == -1)
    expect_error ();
}

static bool
succeeds (const struct outcome *o)
{
  return o->r == 0 && check_report_is_sound (&o->report.after);
}

/* What REPAIR_ALL leaves as it is. */
static bool
may_be_left (const struct repair_report *r)
{
  return r->why_not != NULL || r->after.found[CHECK_OVERFLOW] > 0 ||
    r->after.found[CHECK_SNAPSHOT] > 0;
}

/* They may be what the missing part of the L1 table referred to: the repair that
 * makes it whole keeps them, and the next one frees them.
 */
static bool
keeps_leaks (void)
{
  return x.before.l1_cut && x.before.leaks > 0;
}

static void
compare_reports (const struct outcome *o, const struct memory_disk *d)
{
  const struct repair_report *r = &o->report;
  const bool sound = check_report_is_sound (&r->after);
  struct check_report again;

  expect (same_reports (&r->before, &x.before),
          "a repair finds something else than a check");
  expect (check_bytes (d->data, d->size, x.options.memory, &again) == 0 &&
          same_reports (&r->after, &again),
          "a repair leaves something else than it says");
  if (sound) {
    expect (!r->after.dirty && !r->after.corrupt, "a mark is left");
    expect (r->after.leaks == 0 || keeps_leaks (), "leaks are left");
  }
  else {
    expect (x.mode == REPAIR_LEAKS || may_be_left (r), "errors are left");
    expect (r->after.dirty == x.before.dirty &&
            r->after.corrupt == x.before.corrupt, "a mark is gone");
  }
  if (x.opens)
    compare_verdicts (&r->after, d->data, d->size, r->why_not == NULL &&
                      x.before.corruptions + x.before.leaks > 0);
}

/* I9: nothing is to be done, or nothing may be. */
static void
check_untouched (const struct outcome *o, const struct memory_disk *d)
{
  const struct check_report *b = &x.before;

  if ((check_report_is_sound (b) && b->leaks == 0) || b->blind ||
      (x.mode == REPAIR_LEAKS && o->report.why_not != NULL))
    expect (d->size == x.size && is_kept (d, 0, 72) &&
            is_kept (d, 80, x.size), "a repair of nothing changes something");
}

static void
expect_nothing_to_do (struct memory_disk *d, const struct outcome *first)
{
  const uint64_t size = d->size;
  uint8_t *copy = malloc (size);
  struct outcome o;

  if (copy == NULL)
    abort ();
  memcpy (copy, d->data, size);
  repair (d, &o);
  expect (o.r == 0, "a second repair fails");
  expect (is_same (d, copy, size), "a second repair changes something");
  expect (same_reports (&o.report.before, &first->report.after) &&
          same_reports (&o.report.after, &first->report.after),
          "a second repair comes to something else");
  free (copy);
}

static void
repair_again (struct memory_disk *d, const struct outcome *first)
{
  struct outcome second;

  if (!succeeds (first) || !keeps_leaks ()) {
    expect_nothing_to_do (d, first);
    return;
  }
  repair (d, &second);
  expect (succeeds (&second) && second.report.after.leaks == 0,
          "leaks are left by the second repair");
  check_kept (d);
  expect_nothing_to_do (d, &second);
}

/* ----------------------------------------------------------- by the plugin */

/* What comes to the same.  With an image that is marked, or whose L1 table is
 * cut off, nothing does but REPAIR_ALL: more than leaks is repaired then, or
 * nothing.
 */
static enum image_repair
image_mode (void)
{
  const struct check_report *b = &x.before;

  if (x.mode == REPAIR_ALL)
    return b->dirty && !b->corrupt && !b->l1_cut ? IMAGE_REPAIR_DIRTY
      : IMAGE_REPAIR_ALL;
  return b->dirty || b->corrupt || b->l1_cut ? IMAGE_REPAIR_NONE
    : IMAGE_REPAIR_LEAKS;
}

static void
repair_image (struct image *im, enum image_repair mode,
              const struct outcome *tool)
{
  const struct writer_options options = { .invalidate_bitmaps = true };
  char summary[512];
  const int r = image_repair (im, mode, summary, sizeof summary);

  expect ((r == 0) == succeeds (tool),
          "the plugin takes another image than the tool calls sound");
  if (r == -1)
    expect_error ();
  if (r == -1 && tool->r == 0)
    expect (error_errno () == EIO, "errors are left: not EIO");
  if (r == 0 || x.before.dirty || x.before.corrupt) {
    if (image_make_writable (im, &options) == -1)
      expect_error ();
    else
      expect (r == 0, "an image that is not repaired can be written");
  }
  if (tool->r == 0)
    compare_disks (im);
}

/* With readers that have looked at it before. */
static void
repair_by_plugin (const struct outcome *tool, const struct memory_disk *by_tool)
{
  const enum image_repair mode = image_mode ();
  struct memory_control control = control_of (x.size);
  struct memory_disk d;
  struct image *im;

  if (mode == IMAGE_REPAIR_NONE)
    return;
  memory_disk_init (&d, x.data, x.size);
  im = disk_open_image (memory_disk_open (&d, "input", &control), x.data,
                        x.size);
  expect (im != NULL, "an image can't be opened again");
  compare_disks (im);
  repair_image (im, mode, tool);
  expect (image_close (im) == 0, "an image that nobody wrote can't be closed");
  expect (is_same (&d, by_tool->data, by_tool->size),
          "the plugin repairs otherwise than the tool");
  memory_disk_free (&d);
}

/* --------------------------------------------------------------- the target */

static void
repair_and_look (enum repair_mode mode)
{
  struct memory_disk d;
  struct outcome o;

  x.mode = mode;
  memory_disk_init (&d, x.data, x.size);
  repair (&d, &o);
  check_kept (&d);
  if (o.r == 0) {
    compare_reports (&o, &d);
    check_untouched (&o, &d);
  }
  if (x.opens && below (2))
    repair_by_plugin (&o, &d);
  else if (o.r == 0)
    repair_again (&d, &o);
  memory_disk_free (&d);
}

/* What can't be checked is not repaired either. */
static void
expect_refused (void)
{
  struct memory_disk d;
  struct outcome o;

  expect_error ();
  memory_disk_init (&d, x.data, x.size);
  repair (&d, &o);
  expect (o.r == -1, "what can't be checked is repaired");
  expect (is_same (&d, x.data, x.size), "what can't be checked has changed");
  memory_disk_free (&d);
}

static void
check_and_repair (void)
{
  struct check_report other;

  if (check_bytes (x.data, x.size, x.options.memory, &x.before) == -1) {
    expect_refused ();
    return;
  }
  if (below (4) == 0)
    expect (check_bytes (x.data, x.size, x.options.memory ^ 1, &other) == 0 &&
            same_reports (&x.before, &other),
            "another verdict with other bounds of memory");
  look_at_first ();
  if (x.opens)
    compare_verdicts (&x.before, x.data, x.size, false);
  repair_and_look (REPAIR_ALL);
  if (below (4) == 0)
    repair_and_look (REPAIR_LEAKS);
  forget_disks ();
}

static void
test_check (const uint8_t *data, size_t size)
{
  memset (&x, 0, sizeof x);
  x.data = data;
  x.size = size;
  x.state = disk_seed (data, size);
  x.options.messages = below (2) ? CHECK_MAX_MESSAGES : 10;
  x.options.found = found;
  x.options.memory = below (2); /* the least, or the default */
  x.fixed = below (8) == 0;
  if (disk_is_qed (data, size))
    return;
  error_set (0, "%s", "");
  check_and_repair ();
}

static size_t
mutate_check (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  return mutate_image (data, size, max, seed, MUTATE_CHECK);
}

const struct target target_check = {
  .name = "check",
  .max_size = 64 << 10,
  .test = test_check,
  .mutate = mutate_check,
};
