/* SPDX-License-Identifier: BSD-3-Clause */

/* A QED image: its header, its disk, what a check finds, and what a repair and
 * requests make of it.  unit/qed-image.c tells what is true, which shares
 * nothing with core/qed.
 *
 * An input is an image, whatever its first four bytes are.
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
#include "qed/check.h"
#include "qed/header.h"
#include "qed/qed.h"
#include "random.h"
#include "target.h"

#define HEADER_BYTES 64
#define MAX_SIZE (128 << 10)

/* -------------------------------------------------------------- the header */

static bool
is_power_of_2 (uint64_t n)
{
  return n != 0 && (n & (n - 1)) == 0;
}

/* Spec: Header. */
static bool
sizes_are_fine (const struct qed_input *in)
{
  const uint64_t cluster = qed_input_field (in, 4, 4);
  const uint64_t table = qed_input_field (in, 8, 4);
  const uint64_t header = qed_input_field (in, 12, 4);

  return is_power_of_2 (cluster) && cluster >= 4096 && cluster <= 64 << 20 &&
    is_power_of_2 (table) && table <= 16 && header != 0 &&
    header <= UINT32_MAX / cluster;
}

static bool
disk_is_fine (const struct qed_input *in, uint64_t file_size)
{
  const uint64_t cluster = qed_input_field (in, 4, 4);
  const uint64_t table = qed_input_field (in, 8, 4) * cluster;
  const uint64_t l1 = qed_input_field (in, 40, 8);
  const uint64_t disk = qed_input_field (in, 48, 8);
  const uint64_t end = (file_size + 511) / 512 * 512 / cluster * cluster;

  return disk % 512 == 0 && disk <= INT64_MAX &&
    disk <= (unsigned __int128) (table / 8) * (table / 8) * cluster &&
    l1 % cluster == 0 && l1 >= qed_input_field (in, 12, 4) * cluster &&
    l1 <= end && table <= end - l1;
}

static bool
has_backing (const struct qed_input *in)
{
  return (qed_input_field (in, 16, 8) & 1) && qed_input_field (in, 60, 4) > 0;
}

static bool
backing_is_fine (const struct qed_input *in, uint64_t file_size)
{
  const uint64_t at = qed_input_field (in, 56, 4);
  const uint64_t size = qed_input_field (in, 60, 4);
  const uint64_t header =
    qed_input_field (in, 12, 4) * qed_input_field (in, 4, 4);

  return !has_backing (in) ||
    (size <= 1023 && at + size <= header && at + size <= file_size);
}

/* But for the name of its backing file, which is not in the header itself. */
static bool
header_is_fine (const struct qed_input *in, uint64_t file_size)
{
  return file_size >= HEADER_BYTES && qed_input_field (in, 16, 8) <= 7 &&
    sizes_are_fine (in) && disk_is_fine (in, file_size) &&
    backing_is_fine (in, file_size);
}

/* Nobody tells here what a backing file is that is not said to be raw. */
static bool
name_is_fine (const struct qed_input *in)
{
  return !has_backing (in) ||
    ((qed_input_field (in, 16, 8) & 4) &&
     memchr (in->padded + qed_input_field (in, 56, 4), '\0',
             qed_input_field (in, 60, 4)) == NULL);
}

/* What is decoded is what is there, and is encoded as it was. */
static void
compare_header (const struct qed_input *in, const struct qed_header *h)
{
  uint8_t bytes[HEADER_BYTES];
  const unsigned same = has_backing (in) ? 64 : 56;

  expect (h->cluster_size == UINT64_C (1) << h->cluster_bits &&
          h->table_entries * 8 == h->table_bytes &&
          h->disk_size <= qed_header_max_size (h), "sizes of a header");
  qed_header_encode (h, bytes);
  expect (memcmp (bytes, in->padded, same) == 0,
          "a header is not encoded as it was");
}

static void
check_header (struct qed_input *in, uint64_t file_size)
{
  struct qed_header h;
  const bool fine = header_is_fine (in, file_size);
  const int r = qed_header_decode ("input", in->padded, file_size, &h);

  expect ((r == 0) == fine, fine ? "a header is refused that is fine"
          : "a header is accepted that is not fine");
  if (r == 0)
    compare_header (in, &h);
  else {
    expect_error ();
    expect (file_size < HEADER_BYTES ||
            (error_errno () == ENOTSUP) == (qed_input_field (in, 16, 8) > 7),
            "unknown features are not what a header is refused for");
  }
}

/* As a file of other sizes as well. */
static void
check_headers (struct qed_input *in)
{
  unsigned i;

  check_header (in, in->size);
  for (i = 0; i < 4; ++i)
    check_header (in, random_next (&in->state) >>
                  (1 + random_below (&in->state, 55)));
}

/* ---------------------------------------------------------------- the disk */

static void
visit (const struct qed_input *in, const struct image *im)
{
  struct layer *disk = image_open_disk (im, "");
  uint64_t state = in->state;
  struct reference r;

  expect (disk != NULL, "the live disk can't be opened");
  reference_init_qed (&r, in->padded, in->size);
  disk_set_base (&r);
  disk_visit (disk, &r, &state);
  image_close_disk (disk);
}

/* Returns whether it could be opened. */
static bool
read_image (const struct qed_input *in)
{
  const bool fine = header_is_fine (in, in->size) && name_is_fine (in);
  struct memory_control control = { 0 };
  struct image *im =
    disk_open_image (memory_storage_new ("input", in->data, in->size,
                                         &control), in->data, in->size);

  expect ((im != NULL) == fine, fine ? "an image can't be opened"
          : "an image is opened that should be refused");
  if (im == NULL)
    expect_error ();
  else {
    visit (in, im);
    expect (image_close (im) == 0, "an image that was read can't be closed");
  }
  expect (control.closes == 1, "the storage is not closed");
  return im != NULL;
}

/* --------------------------------------------------------------- the check */

static void
found (void *opaque, enum check_kind kind, const char *text)
{
  (void) opaque;
  expect (kind < CHECK_KINDS && *text != '\0', "a finding without a word");
}

static const struct check_options options = {
  .messages = 10, .found = found,
};

/* The bytes are followed by zeros, as those of a memory_disk are. */
static void
compare_verdict (const struct check_report *r, const uint8_t *bytes,
                 uint64_t size)
{
  const struct qed_verdict v = qed_image_judge (bytes, size);

  expect (r->corruptions == v.errors, "a check counts other errors");
  expect (r->leaks == v.leaks, "a check counts other leaks");
  expect (r->dirty == v.need_check, "a check does not see NEED_CHECK");
}

static void
check_image (const struct qed_input *in, struct check_report *report)
{
  struct storage *s = memory_storage_new ("input", in->data, in->size, NULL);

  expect (qed_check_storage (s, &options, report) == 0,
          "an image can't be checked");
  storage_close (s);
  compare_verdict (report, in->padded, in->size);
}

/* -------------------------------------------------------------- the repair */

/* What could be read reads the same. */
static void
compare_disks (const struct qed_input *in, const struct memory_disk *d)
{
  struct reference before, after;
  uint64_t at;

  reference_init_qed (&before, in->padded, in->size);
  reference_init_qed (&after, d->data, d->size);
  disk_set_base (&before);
  disk_set_base (&after);
  for (at = 0; at < before.disk_size && at / before.cluster_size < 4096;
       at += before.cluster_size) {
    const struct reference_place b = reference_find (&before, at);
    const struct reference_place a = reference_find (&after, at);

    expect (b.kind == REFERENCE_DAMAGED || (b.kind == a.kind &&
                                            b.host == a.host),
            "a repair changes what the guest sees");
  }
}

/* I8. */
static void
compare_kept (const struct qed_input *in, const struct memory_disk *d)
{
  const uint64_t header =
    qed_input_field (in, 12, 4) * qed_input_field (in, 4, 4);
  const uint64_t end = header < d->size ? header : d->size;

  expect (memcmp (d->data, in->padded, 16) == 0 &&
          (d->data[16] | 2) == (in->padded[16] | 2) &&
          memcmp (d->data + 17, in->padded + 17, 15) == 0 &&
          memcmp (d->data + 40, in->padded + 40, end - 40) == 0,
          "something in the header was not kept");
}

static void
repair_again (struct memory_disk *d, enum repair_mode mode)
{
  struct memory_disk copy;
  struct memory_control control = { 0 };
  struct repair_report again;
  struct storage *s;

  memory_disk_init (&copy, d->data, d->size);
  s = memory_disk_open (&copy, "input", &control);
  expect (qed_repair_storage (s, mode, &options, &again) == 0,
          "a second repair fails");
  storage_close (s);
  expect (copy.size == d->size && memcmp (copy.data, d->data, d->size) == 0,
          "a second repair changes something");
  memory_disk_free (&copy);
}

static void
compare_repaired (const struct qed_input *in, const struct check_report *before,
                  const struct repair_report *r, const struct memory_disk *d)
{
  const bool sound = check_report_is_sound (&r->after);

  compare_verdict (&r->after, d->data, d->size);
  expect (r->before.corruptions == before->corruptions &&
          r->before.leaks == before->leaks,
          "a repair finds something else than a check");
  expect (sound || r->why_not != NULL, "errors are left without a reason");
  expect (sound == !(r->after.dirty) || !before->dirty,
          "NEED_CHECK is gone, or left");
  if (sound && before->corruptions == 0 && before->leaks == 0 &&
      !before->dirty)
    expect (d->size == in->size && memcmp (d->data, in->data, in->size) == 0,
            "a repair of nothing changes something");
}

static void
repair_image (struct qed_input *in, const struct check_report *before)
{
  const enum repair_mode mode =
    random_below (&in->state, 4) ? REPAIR_ALL : REPAIR_LEAKS;
  const bool device = random_below (&in->state, 8) == 0;
  struct memory_control control = { 0 };
  struct repair_report report;
  struct memory_disk d;
  struct storage *s;
  int r;

  if (device) /* it is as long as it is */
    memory_fail_ever_after (&control, MEMORY_RESIZE, 1, ENOSPC);
  else if (random_below (&in->state, 4) == 0)
    memory_fail_ever_after (&control, MEMORY_CHANGES,
                            1 + random_below (&in->state, 20), EIO);
  memory_disk_init (&d, in->data, in->size);
  s = memory_disk_open (&d, "input", &control);
  r = qed_repair_storage (s, mode, &options, &report);
  storage_close (s);
  if (r == 0) {
    compare_repaired (in, before, &report, &d);
    if (!device)
      repair_again (&d, mode);
  }
  else {
    expect_error ();
    expect (control.failed > 0, "a repair fails");
  }
  compare_kept (in, &d);
  compare_disks (in, &d);
  memory_disk_free (&d);
}

/* --------------------------------------------------------------- the target */

static void
test_image (struct qed_input *in)
{
  struct check_report before;

  check_headers (in);
  if (!read_image (in))
    return;
  check_image (in, &before);
  repair_image (in, &before);
  qed_write_input (in);
}

static void
test_qed (const uint8_t *data, size_t size)
{
  uint8_t *padded = calloc (1, size + 1024), *exact;

  if (padded == NULL)
    abort ();
  memcpy (padded, data, size);
  memcpy (padded, QED_MAGIC, 4);
  exact = malloc (size + 1);
  if (exact == NULL)
    abort ();
  memcpy (exact, padded, size);
  error_set (0, "%s", "");
  test_image (&(struct qed_input) {
      .data = exact, .size = size, .padded = padded,
      .state = disk_seed (padded, size),
    });
  free (exact);
  free (padded);
}

/* --------------------------------------------------------------- mutations */

struct changes {
  uint8_t *data;
  size_t size, max;
  uint64_t state;
};

static uint64_t
below (struct changes *c, uint64_t limit)
{
  return random_below (&c->state, limit);
}

static uint64_t
get_number (const struct changes *c, uint64_t at, unsigned bytes)
{
  return c->size < 8 || at > c->size - 8 ? 0
    : qed_image_get (c->data, at, bytes);
}

static void
put_number (struct changes *c, uint64_t at, unsigned bytes, uint64_t value)
{
  if (at <= c->size && c->size - at >= bytes)
    for (; bytes > 0; --bytes, value >>= 8)
      c->data[at++] = value;
}

static uint64_t
cluster_of (const struct changes *c)
{
  const uint64_t size = get_number (c, 4, 4);

  return size >= 512 && size <= MAX_SIZE ? size : 4096;
}

/* An entry of a table, as it may be and as it may not. */
static uint64_t
some_entry (struct changes *c)
{
  const uint64_t size = cluster_of (c);

  switch (below (c, 10)) {
  case 0: return 0;
  case 1: return 1;
  case 2: return below (c, 65536);
  case 3: return -size * (1 + below (c, 4));
  case 4: return random_next (&c->state) >> below (c, 64);
  case 5: return UINT64_C (1) << below (c, 64);
  default: return below (c, c->size / size + 2) * size;
  }
}

static void
change_field (struct changes *c)
{
  static const struct {
    uint8_t offset, bytes;
  } fields[] = {
    { 4, 4 }, { 8, 4 }, { 12, 4 }, { 16, 8 }, { 24, 8 }, { 32, 8 }, { 40, 8 },
    { 48, 8 }, { 56, 4 }, { 60, 4 },
  };
  const unsigned i = below (c, sizeof fields / sizeof fields[0]);
  const uint64_t small = below (c, 16);

  put_number (c, fields[i].offset, fields[i].bytes,
              below (c, 2) ? small : i == 0 ? UINT64_C (4096) << small / 4
              : i == 7 ? 512 * below (c, 1 << 12) : some_entry (c));
}

static void
change_features (struct changes *c)
{
  put_number (c, 16, 8, below (c, 8));
  put_number (c, 32, 8, below (c, 2) ? 0 : below (c, 4));
}

static void
change_l1 (struct changes *c)
{
  put_number (c, get_number (c, 40, 8) + 8 * below (c, 4), 8, some_entry (c));
}

static void
change_l2 (struct changes *c)
{
  const uint64_t table = get_number (c, get_number (c, 40, 8) +
                                     8 * below (c, 3), 8);
  const uint64_t first = below (c, 2) ? below (c, 600) : below (c, 16);

  if (table != 0)
    put_number (c, table + 8 * first, 8, some_entry (c));
}

static void
change_bytes (struct changes *c)
{
  const size_t at = below (c, c->size);
  size_t i;

  for (i = at; i < c->size && i < at + 8; ++i)
    c->data[i] = below (c, 2) ? 0 : random_next (&c->state);
}

static void
change_length (struct changes *c)
{
  const uint64_t size = cluster_of (c);
  const uint64_t old = c->size;

  switch (below (c, 4)) {
  case 0: c->size -= below (c, c->size < 600 ? c->size : 600); break;
  case 1: c->size -= c->size > size ? size : 0; break;
  case 2: c->size += below (c, 1024); break;
  default: c->size += size * (1 + below (c, 3)); break;
  }
  if (c->size > c->max)
    c->size = c->max;
  if (c->size > old)
    memset (c->data + old, 0, c->size - old);
}

static size_t
mutate_qed (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  static void (*const change[]) (struct changes *c) = {
    change_field, change_features, change_l1, change_l2, change_l2, change_l2,
    change_l2, change_bytes, change_length,
  };
  struct changes c = { data, size, max, mix (seed) };
  unsigned n;

  for (n = 1 + below (&c, 4); n > 0 && c.size > 0; --n)
    change[below (&c, sizeof change / sizeof change[0])] (&c);
  return c.size;
}

const struct target target_qed = {
  .name = "qed",
  .max_size = MAX_SIZE,
  .test = test_qed,
  .mutate = mutate_qed,
};
