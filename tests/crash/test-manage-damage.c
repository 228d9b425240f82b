/* SPDX-License-Identifier: BSD-3-Clause */

/* Damaged images that the commands of core/manage must refuse before anything
 * changes: each refcount is one too low in turn, or an entry of an L2 table has
 * the cluster of another; or a snapshot's entry has no disk size, and the disk
 * would get another; or a bitmap is in use.
 */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "check.h"
#include "crash-storage.h"
#include "image-check.h"
#include "maker.h"
#include "manage/bitmap-change.h"
#include "manage/compact.h"
#include "manage/empty.h"
#include "manage/resize.h"
#include "manage/snapshots.h"
#include "qcow2/format.h"
#include "qcow2/header.h"
#include "seconds.h"

#define CLUSTER 512
#define PER_BLOCK (CLUSTER / 2) /* refcounts of 16 bits */

static const char *what;
static const struct made *made;
static unsigned refused, done;

/* ----------------------------------------------------------------- commands */

static int
create (struct storage *s, const char *name)
{
  const struct timespec date = { 1700000000, 0 };

  return snapshot_create (s, name, &date);
}

static int
halve (struct storage *s, const char *name)
{
  const struct resize_options o = { .size = made->disk_size / 1024 * 512 };

  (void) name;
  return resize_disk (s, &o);
}

static int
shrink (struct storage *s, const char *name)
{
  const struct resize_options o = { .size = 512 };

  (void) name;
  return resize_disk (s, &o);
}

static int
compact (struct storage *s, const char *name)
{
  const struct compact_options options = { .progress = NULL };

  (void) name;
  return compact_image (s, &options);
}

static int
empty (struct storage *s, const char *name)
{
  (void) name;
  return empty_disk (s);
}

static int
change_bitmap (struct storage *s, const char *name,
               enum bitmap_action_kind kind, const char *source)
{
  const struct bitmap_action action = { kind, source };
  const struct bitmap_change c = { .name = name, .action = &action, .nr = 1 };

  return bitmap_change (s, &c);
}

static int
bitmap_add (struct storage *s, const char *name)
{
  return change_bitmap (s, name, BITMAP_ADD, NULL);
}

static int
bitmap_remove (struct storage *s, const char *name)
{
  return change_bitmap (s, name, BITMAP_REMOVE, NULL);
}

static int
bitmap_clear (struct storage *s, const char *name)
{
  return change_bitmap (s, name, BITMAP_CLEAR, NULL);
}

static int
bitmap_disable (struct storage *s, const char *name)
{
  return change_bitmap (s, name, BITMAP_DISABLE, NULL);
}

static int
bitmap_merge_into (struct storage *s, const char *name)
{
  return change_bitmap (s, name, BITMAP_MERGE, "parts");
}

static int
bitmap_merge_from (struct storage *s, const char *name)
{
  return change_bitmap (s, "parts", BITMAP_MERGE, name);
}

typedef int command_fn (struct storage *s, const char *name);

/* Run it on these bytes.  Returns whether it was refused, and has changed
 * nothing.
 */
static bool
refuses (const uint8_t *bytes, command_fn *fn, const char *name)
{
  struct crash_disk disk;
  struct storage *s;
  bool r;

  crash_disk_init (&disk, bytes, made->size);
  s = crash_storage_open (&disk, "test");
  r = fn (s, name) == -1 && disk.changes == 0;
  storage_close (s);
  crash_disk_free (&disk);
  return r;
}

static void
must_refuse (const uint8_t *bytes, command_fn *fn, const char *name,
             const char *how, uint64_t where)
{
  if (!refuses (bytes, fn, name))
    check_failed (__FILE__, __LINE__, "%s, %s (%s at 0x%" PRIx64 "): not "
                  "refused", what, name, how, where);
  refused++;
}

/* All commands. */
static void
all_refuse (const uint8_t *bytes, const char *how, uint64_t where)
{
  unsigned i;

  must_refuse (bytes, create, "create", how, where);
  must_refuse (bytes, halve, "halve", how, where);
  must_refuse (bytes, shrink, "shrink", how, where);
  must_refuse (bytes, compact, "compact", how, where);
  must_refuse (bytes, empty, "empty", how, where);
  must_refuse (bytes, bitmap_add, "new", how, where);
  for (i = 0; i < made->nr_snapshots; ++i) {
    must_refuse (bytes, snapshot_apply, made->snapshot_name[i], how, where);
    must_refuse (bytes, snapshot_delete, made->snapshot_name[i], how, where);
  }
}

static void
count_done (void)
{
  unsigned i;

  done += !refuses (made->bytes, create, "create");
  done += !refuses (made->bytes, shrink, "shrink");
  done += !refuses (made->bytes, compact, "compact");
  done += !refuses (made->bytes, empty, "empty");
  for (i = 0; i < made->nr_snapshots; ++i)
    done += !refuses (made->bytes, snapshot_delete, made->snapshot_name[i]);
}

/* ------------------------------------------------------------------- damage */

static void
put16 (uint8_t *p, uint16_t n)
{
  p[0] = n >> 8;
  p[1] = n;
}

static void
lower_each (uint8_t *bytes)
{
  const uint64_t table = get_be64 (bytes + HEADER_REFCOUNT_TABLE_OFFSET);
  struct image_refs refs;
  uint64_t i;

  image_refs_count (&refs, bytes, made->size);
  for (i = 0; i < refs.nr; ++i) {
    uint8_t *p = bytes + get_be64 (bytes + table + i / PER_BLOCK * 8) +
      i % PER_BLOCK * 2;
    const uint16_t old = get_be16 (p);

    if (refs.count[i] == 0)
      continue;
    put16 (p, refs.count[i] - 1);
    all_refuse (bytes, "refcount", i * CLUSTER);
    put16 (p, old);
  }
  image_refs_free (&refs);
}

/* The live disk's first L2 table. */
static uint8_t *
find_l2 (uint8_t *bytes)
{
  const uint64_t l1 = get_be64 (bytes + HEADER_L1_TABLE_OFFSET);
  uint64_t i, table;

  for (i = 0; i < get_be32 (bytes + HEADER_L1_SIZE_OFFSET); ++i) {
    table = get_be64 (bytes + l1 + 8 * i) & QCOW2_ENTRY_OFFSET_MASK;
    if (table != 0)
      return bytes + table;
  }
  abort ();
}

static bool
is_standard (const uint8_t *entry)
{
  const uint64_t word = get_be64 (entry);

  return !(word & QCOW2_L2_COMPRESSED) && (word & QCOW2_ENTRY_OFFSET_MASK) != 0;
}

/* Each entry in turn has the cluster of the one before. */
static void
double_each (uint8_t *bytes)
{
  uint8_t *table = find_l2 (bytes), *last = NULL;
  unsigned i;

  for (i = 0; i < CLUSTER / 8; ++i) {
    uint8_t *entry = table + 8 * i;
    const uint64_t old = get_be64 (entry);

    if (!is_standard (entry))
      continue;
    if (last != NULL) {
      put_be64 (entry, get_be64 (last));
      all_refuse (bytes, "L2 entry", entry - bytes);
      put_be64 (entry, old);
    }
    last = entry;
  }
}

static void
try_image (const char *name)
{
  struct made m;

  if (!made_image (&m, name))
    abort ();
  made = &m;
  what = name;
  count_done ();
  lower_each (m.bytes);
  double_each (m.bytes);
  made_free (&m);
}

/* --------------------------------------------------------------- a disk size */

/* The second snapshot's entry: its extra data ends before the disk size, and the
 * rest becomes part of the ID, so that the table is as long as before.
 */
static void
take_disk_size (uint8_t *bytes)
{
  uint8_t *p = bytes + get_be64 (bytes + HEADER_SNAPSHOTS_OFFSET);
  const unsigned length = QCOW2_SNAPSHOT_ENTRY_SIZE + get_be32 (p + 36) +
    get_be16 (p + 12) + get_be16 (p + 14);

  p += (length + 7) / 8 * 8;
  put16 (p + 12, get_be16 (p + 12) + get_be32 (p + 36) - 8);
  put_be32 (p + 36, 8);
}

static void
try_disk_size (void)
{
  struct made m;

  what = "a snapshot without a disk size";
  if (!made_image (&m, "v3-c512-snapall-snap2"))
    abort ();
  made = &m;
  take_disk_size (m.bytes);
  CHECK (!refuses (m.bytes, snapshot_apply, m.snapshot_name[0]));
  put_be64 (m.bytes + HEADER_DISK_SIZE_OFFSET, m.disk_size - 512);
  must_refuse (m.bytes, snapshot_apply, m.snapshot_name[0], "header", 0);
  CHECK_EQ (error_errno (), ENOTSUP);
  made_free (&m);
}

/* ------------------------------------------------------------------- bitmaps */

/* Who left it in use has not noted all changes: nothing but its removal is
 * right.
 */
static void
try_in_use (void)
{
  struct made m;
  uint8_t *flags;

  what = "a bitmap in use";
  if (!made_image (&m, "v3-c512-bitmap-holes"))
    abort ();
  made = &m;
  flags = m.bytes + m.bitmaps_at + MADE_BITMAP_BYTES + QCOW2_BITMAP_FIELD_FLAGS;
  put_be32 (flags, get_be32 (flags) | QCOW2_BITMAP_IN_USE);
  must_refuse (m.bytes, bitmap_add, "dirty", "flag", 0);
  must_refuse (m.bytes, bitmap_clear, "dirty", "flag", 0);
  must_refuse (m.bytes, bitmap_disable, "dirty", "flag", 0);
  must_refuse (m.bytes, bitmap_merge_into, "dirty", "flag", 0);
  must_refuse (m.bytes, bitmap_merge_from, "dirty", "flag", 0);
  must_refuse (m.bytes, halve, "halve", "flag", 0);
  CHECK (!refuses (m.bytes, bitmap_remove, "dirty"));
  CHECK (!refuses (m.bytes, bitmap_clear, "parts"));
  made_free (&m);
}

static const char *const images[] = {
  "v3-c512-snap-comp", "v3-c512-snapall-snap2-holes", "v2-c512-full-snap",
  "v3-c512-holes", "v3-c512-known-snap-comp-holes",
};

int
main (void)
{
  unsigned i;

  check_time_limit (300);
  for (i = 0; i < sizeof images / sizeof images[0]; ++i)
    try_image (images[i]);
  try_disk_size ();
  try_in_use ();
  printf ("%u commands are refused; without damage %u are not\n", refused,
          done);
  CHECK (refused > 0);
  CHECK_EQ (done, 16);
  return check_result ();
}
