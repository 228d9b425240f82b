/* SPDX-License-Identifier: BSD-3-Clause */

/* The snapshot table, and the disks in it. */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "disk.h"
#include "image.h"
#include "memory-storage.h"
#include "mutate.h"
#include "promise.h"
#include "qcow2/snapshot.h"
#include "random.h"
#include "target.h"

#define MAX_VISITED 3
#define MAX_NAME 4096 /* NBD's limit */

/* -------------------------------------------------------------- the table */

/* An entry of the table.  Spec: Snapshots. */
struct entry {
  uint64_t l1_offset, l1_size, disk_size;
  const uint8_t *id, *name;
  size_t id_size, name_size;
};

/* Find the entry at *at, and where the next one is; false if it does not fit
 * into what core/ accepts.
 */
static bool
parse_entry (const uint8_t *data, size_t size, const struct header *h,
             uint64_t *at, struct entry *e)
{
  const uint64_t limit = h->snapshots_offset.v +
    QCOW2_MAX_SNAPSHOT_TABLE_BYTES;
  const uint8_t *p = data + *at;
  uint64_t extra, end;

  if (*at > size || size - *at < 40)
    return false;
  extra = get_be32 (p + 36);
  if (extra > size) /* nothing can be behind it */
    return false;
  *e = (struct entry) {
    .l1_offset = get_be64 (p),
    .l1_size = get_be32 (p + 8),
    .disk_size = h->disk_size,
    .id = p + 40 + extra,
    .id_size = get_be16 (p + 12),
    .name_size = get_be16 (p + 14),
  };
  e->name = e->id + e->id_size;
  end = *at + 40 + extra + e->id_size + e->name_size;
  if (end > size || end > limit)
    return false;
  if (extra >= 16)
    e->disk_size = get_be64 (p + 48);
  *at = (end - h->snapshots_offset.v + 7) / 8 * 8 + h->snapshots_offset.v;
  if (*at > size) /* the padding of the last one may be missing */
    *at = size;
  return true;
}

/* What is in a string up to its first 0, if there is one. */
static bool
is_string (const char *s, const uint8_t *bytes, size_t size)
{
  const size_t len = strlen (s);

  return len <= size && memcmp (s, bytes, len) == 0 &&
    (len == size || bytes[len] == 0);
}

/* A name that a client is given: it finds its snapshot, and no other one. */
static void
check_label (const struct snapshots *t, const struct snapshot *sn)
{
  const char *p = sn->label;

  if (p == NULL)
    return;
  expect (*p != '\0' && strlen (p) + strlen (IMAGE_SNAPSHOT_PREFIX) <=
          MAX_NAME, "a label is empty or too long");
  expect (p == sn->name || p == sn->id, "a label is another string");
  for (; *p != '\0'; ++p)
    expect ((unsigned char) *p >= ' ' && *p != 0x7f,
            "a control character in a label");
  expect (snapshots_find (t, sn->label) == sn,
          "a label finds another snapshot");
}

static void
check_table (const struct snapshots *t, const uint8_t *data, size_t size,
             const struct header *h)
{
  uint64_t at = h->snapshots_offset.v;
  struct entry e;
  uint32_t i;

  expect (t->nr == h->nr_snapshots, "not as many snapshots as there are");
  for (i = 0; i < t->nr; ++i) {
    const struct snapshot *sn = &t->snapshot[i];

    expect (parse_entry (data, size, h, &at, &e),
            "an entry was accepted that does not fit");
    expect (is_string (sn->id, e.id, e.id_size) &&
            is_string (sn->name, e.name, e.name_size), "an ID or a name");
    expect (sn->l1_offset.v == e.l1_offset && sn->l1_size == e.l1_size,
            "an L1 table is elsewhere");
    expect (sn->disk_size == e.disk_size, "a disk size");
    check_label (t, sn);
  }
  expect (t->nr == 0 || t->table_bytes == at - h->snapshots_offset.v,
          "the table's size");
}

/* Refused: there must be an entry that does not fit. */
static void
check_refusal (const uint8_t *data, size_t size, const struct header *h)
{
  uint64_t at = h->snapshots_offset.v;
  struct entry e;
  uint32_t i;

  expect_error ();
  for (i = 0; i < h->nr_snapshots; ++i) {
    if (!parse_entry (data, size, h, &at, &e))
      return;
  }
  broken ("a snapshot table is refused without a reason");
}

/* --------------------------------------------------------------- the disks */

/* Whether a snapshot's disk must be served. */
static bool
is_usable (const struct snapshot *sn, size_t size, const struct header *h)
{
  const uint64_t bytes = sn->l1_size * 8, offset = sn->l1_offset.v;

  return sn->disk_size <= INT64_MAX && offset <= INT64_MAX &&
    offset % h->cluster_size == 0 &&
    (bytes == 0 || (bytes <= QCOW2_MAX_L1_BYTES && offset != 0 &&
                    offset <= size && bytes <= size - offset));
}

static void
visit_snapshot (struct image *im, const struct snapshot *sn,
                const uint8_t *data, size_t size, const struct header *h,
                uint64_t *state)
{
  char name[MAX_NAME + 1], text[256];
  struct reference r;
  struct layer *disk;

  snprintf (name, sizeof name, IMAGE_SNAPSHOT_PREFIX "%s", sn->label);
  expect (image_describe (im, name, text, sizeof text) == 0,
          "an export has no description");
  disk = image_open_disk (im, name);
  expect ((disk != NULL) == is_usable (sn, size, h),
          "a snapshot is refused, or accepted, and should not be");
  if (disk == NULL) {
    expect_error ();
    return;
  }
  reference_init (&r, data, size);
  disk_set_base (&r);
  r.l1_offset = sn->l1_offset.v;
  r.l1_size = sn->l1_size;
  r.disk_size = sn->disk_size / 512 * 512;
  disk_visit (disk, &r, state);
  image_close_disk (disk);
}

static void
visit_snapshots (struct image *im, const struct snapshots *t,
                 const uint8_t *data, size_t size, const struct header *h)
{
  uint64_t state = disk_seed (data, size);
  uint32_t i, visited = 0;

  for (i = 0; i < t->nr && visited < MAX_VISITED; ++i) {
    if (t->snapshot[i].label == NULL)
      continue;
    visited++;
    visit_snapshot (im, &t->snapshot[i], data, size, h, &state);
  }
}

/* ---------------------------------------------------------------- the list */

struct list {
  const struct snapshots *t;
  uint32_t next; /* snapshot */
  bool live;
};

/* The live disk comes first, then all that have a label, and then bitmaps. */
static int
take_name (void *opaque, const char *name, const char *description)
{
  const size_t prefix = strlen (IMAGE_SNAPSHOT_PREFIX);
  struct list *l = opaque;

  expect (description[0] != '\0', "an export without a description");
  if (!l->live) {
    expect (name[0] == '\0', "the first export is not the live disk");
    l->live = true;
    return 0;
  }
  while (l->next < l->t->nr && l->t->snapshot[l->next].label == NULL)
    l->next++;
  if (strncmp (name, IMAGE_BITMAP_PREFIX, strlen (IMAGE_BITMAP_PREFIX)) == 0) {
    expect (l->next == l->t->nr, "a bitmap comes before a snapshot");
    return 0;
  }
  expect (l->next < l->t->nr, "more exports than snapshots");
  expect (strncmp (name, IMAGE_SNAPSHOT_PREFIX, prefix) == 0 &&
          strcmp (name + prefix, l->t->snapshot[l->next].label) == 0,
          "an export has another name");
  l->next++;
  return 0;
}

static void
check_list (const struct image *im, const struct snapshots *t)
{
  struct list l = { .t = t };

  expect (image_list (im, take_name, &l) == 0, "exports can't be listed");
  for (; l.next < t->nr; ++l.next)
    expect (t->snapshot[l.next].label == NULL, "an export is missing");
}

/* -------------------------------------------------------------- the target */

static void
test_image (const struct snapshots *t, const uint8_t *data, size_t size,
            const struct header *h)
{
  struct image *im;

  im = disk_open_image (memory_storage_new ("input", data, size, NULL), data,
                        size);
  if (im == NULL) { /* for want of a backing file, or of its format */
    expect_error ();
    return;
  }
  check_list (im, t);
  visit_snapshots (im, t, data, size, h);
  expect (image_close (im) == 0, "an image that was read can't be closed");
}

static void
test_snapshot (const uint8_t *data, size_t size)
{
  struct storage *s;
  struct snapshots t;
  struct header h;

  if (disk_is_qed (data, size))
    return;
  error_set (0, "%s", "");
  if (!disk_header (data, size, &h)) {
    expect_error ();
    return;
  }
  s = memory_storage_new ("input", data, size, NULL);
  if (snapshots_read (&t, &h, s) == 0) {
    check_table (&t, data, size, &h);
    test_image (&t, data, size, &h);
    snapshots_free (&t);
  }
  else
    check_refusal (data, size, &h);
  storage_close (s);
}

static size_t
mutate_snapshot (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  return mutate_image (data, size, max, seed, MUTATE_SNAPSHOT);
}

const struct target target_snapshot = {
  .name = "snapshot",
  .max_size = 64 << 10,
  .test = test_snapshot,
  .mutate = mutate_snapshot,
};
