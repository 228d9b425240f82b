/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/check/tables.h"
#include "qcow2/entry.h"

/* Offsets of the header's fields that point to tables. */
#define FIELD_L1_OFFSET 40
#define FIELD_SNAPSHOTS_OFFSET 64

static void __attribute__ ((__format__ (__printf__, 3, 4)))
found_once (struct check *c, enum check_kind kind, const char *fmt, ...)
{
  char text[200];
  va_list ap;

  if (!check_is_first (c))
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  check_found (&c->findings, kind, 1, "%s", text);
}

/* --------------------------------------------------------------- L1 tables */

/* Files can't be read beyond this, since the host's offsets are signed. */
#define MAX_OFFSET (INT64_MAX - (INT64_C (1) << 30))

/* Count the reference to a table that contains the only references to other
 * things.  Sets *cut if any of it is beyond the end of the file.  Returns as
 * check_refer does.
 */
static int
refer_to_root (struct check *c, enum check_use use, struct host_off place,
               uint64_t offset, uint64_t bytes, bool *cut)
{
  const uint64_t size = c->storage->size;

  if (bytes > 0 && (offset > size || bytes > size - offset))
    *cut = true;
  return check_refer (c, use, place, offset, bytes, 1);
}

/* L1 tables: the parts that can be read, and the ranges to be counted as
 * references.
 */
struct l1s {
  struct check_ranges *readable;
  struct check_ranges whole;
};

static int
add_l1 (struct check *c, struct l1s *l, struct host_off place,
        uint64_t offset, uint64_t entries, bool active)
{
  struct check_report *report = &c->findings.report;
  const bool only_look = c->only_look;
  uint64_t bytes;
  int r;

  if (entries == 0)
    return 0;
  if (offset <= MAX_OFFSET &&
      check_ranges_add (l->readable, offset, 8 * entries, active) == -1)
    return -1;
  c->only_look = true; /* references to them are counted together, later */
  r = refer_to_root (c, USE_L1, place, offset, 8 * entries,
                     active ? &report->l1_cut : &report->blind);
  c->only_look = only_look;
  bytes = 8 * entries;
  /* A repair counts what is there of it: bytes that are another table as well
   * are seen to be shared then, and no entry is written there.
   */
  if (r == 0 && active && c->fixed_up && offset < c->file_size) {
    bytes = c->file_size - offset;
    r = 1;
  }
  return r == 1 ? check_ranges_add (&l->whole, offset, bytes, active) : r;
}

/* ---------------------------------------------------------------- snapshots */

/* Spec: Snapshots: fields of an entry of the snapshot table. */
#define ENTRY_L1_SIZE 8
#define ENTRY_ID_SIZE 12
#define ENTRY_NAME_SIZE 14
#define ENTRY_EXTRA_SIZE 36

/* Version 3 images have at least the disk's size in there. */
#define EXTRA_V3 16

/* QEMU reads no more than 1024 bytes, and refuses the image. */
static void
judge_extra (struct check *c, struct host_off at, uint32_t extra)
{
  const bool too_short = c->h.version >= 3 && extra < EXTRA_V3;

  if (!too_short && extra <= QCOW2_MAX_SNAPSHOT_EXTRA)
    return;
  if (check_is_first (c))
    c->findings.report.odd_snapshots++;
  if (too_short)
    found_once (c, CHECK_SNAPSHOT, "snapshot table entry at 0x%" PRIx64
                ": it has no disk size", at.v);
  else
    found_once (c, CHECK_SNAPSHOT, "snapshot table entry at 0x%" PRIx64
                ": %" PRIu32 " bytes of extra data are more than %d", at.v,
                extra, QCOW2_MAX_SNAPSHOT_EXTRA);
}

static int
add_snapshot (struct check *c, struct l1s *l, struct host_off at,
              const uint8_t *entry)
{
  const uint64_t offset = get_be64 (entry);
  const uint64_t entries = get_be32 (entry + ENTRY_L1_SIZE);

  judge_extra (c, at, get_be32 (entry + ENTRY_EXTRA_SIZE));
  if (offset % c->h.cluster_size != 0)
    found_once (c, CHECK_UNALIGNED, "snapshot table entry at 0x%" PRIx64
                ": the L1 table's offset 0x%" PRIx64 " is not aligned", at.v,
                offset);
  else if (entries > QCOW2_MAX_L1_BYTES / 8)
    found_once (c, CHECK_SNAPSHOT, "snapshot table entry at 0x%" PRIx64
                ": an L1 table of %" PRIu64 " entries is too large", at.v,
                entries);
  else
    return add_l1 (c, l, at, offset, entries, false);
  c->findings.report.blind = true;
  return 0;
}

static int
too_large (const struct check *c, struct host_off at)
{
  error_set (EINVAL, "%s: snapshot table entry at offset 0x%" PRIx64 ": the "
             "table is larger than %" PRIu64 " bytes", c->storage->name, at.v,
             QCOW2_MAX_SNAPSHOT_TABLE_BYTES);
  return -1;
}

static int
find_snapshots (struct check *c, struct l1s *l)
{
  const struct host_off field = { FIELD_SNAPSHOTS_OFFSET };
  const uint64_t start = c->h.snapshots_offset.v;
  struct check_reader reader = { 0, 0 };
  uint64_t end = start;
  uint32_t i;

  for (i = 0; i < c->h.nr_snapshots; ++i) {
    const struct host_off at = { (end + 7) & ~UINT64_C (7) };
    uint8_t entry[QCOW2_SNAPSHOT_ENTRY_SIZE];
    uint64_t extra;

    if (check_read_piece (c, &reader, entry, sizeof entry, at) == -1)
      return -1;
    extra = get_be32 (entry + ENTRY_EXTRA_SIZE);
    end = at.v + sizeof entry + extra + get_be16 (entry + ENTRY_ID_SIZE) +
      get_be16 (entry + ENTRY_NAME_SIZE);
    if (end - start > QCOW2_MAX_SNAPSHOT_TABLE_BYTES)
      return too_large (c, at);
    if (add_snapshot (c, l, at, entry) == -1)
      return -1;
  }
  return refer_to_root (c, USE_SNAPSHOTS, field, start, end - start,
                        &c->findings.report.blind) == -1 ? -1 : 0;
}

int
check_find_l1s (struct check *c, struct check_ranges *readable)
{
  const struct host_off field = { FIELD_L1_OFFSET };
  struct l1s l = { .readable = readable };
  int r = -1;

  *readable = (struct check_ranges) { .nr = 0 };
  if (add_l1 (c, &l, field, c->h.l1_offset.v, c->h.l1_size, true) != -1 &&
      find_snapshots (c, &l) == 0)
    r = check_refer_ranges (c, USE_L1, &l.whole);
  check_ranges_free (&l.whole);
  if (r == -1)
    check_ranges_free (readable);
  return r;
}

/* ----------------------------------------------------------------- bitmaps */

/* Whether this many clusters hold a bit for each granule of the disk. */
static bool
is_large_enough (const struct check *c, uint64_t clusters,
                 unsigned granularity)
{
  const uint64_t granules =
    (c->h.disk_size + (UINT64_C (1) << granularity) - 1) >> granularity;

  return granules <= clusters * c->h.cluster_size * 8;
}

static bool
is_bitmap (const struct check *c, const uint8_t *entry)
{
  const uint64_t offset = get_be64 (entry + QCOW2_BITMAP_FIELD_TABLE);
  const uint32_t entries = get_be32 (entry + QCOW2_BITMAP_FIELD_TABLE_SIZE);
  const uint32_t flags = get_be32 (entry + QCOW2_BITMAP_FIELD_FLAGS);
  const unsigned granularity = entry[QCOW2_BITMAP_FIELD_GRANULARITY];

  return offset != 0 && offset % c->h.cluster_size == 0 && entries > 0 &&
    entries <= QCOW2_MAX_BITMAP_BYTES / c->h.cluster_size &&
    (flags & QCOW2_BITMAP_RESERVED_FLAGS) == 0 &&
    entry[QCOW2_BITMAP_FIELD_TYPE] == QCOW2_BITMAP_DIRTY_TRACKING &&
    granularity >= QCOW2_MIN_BITMAP_GRANULARITY_BITS &&
    granularity <= QCOW2_MAX_BITMAP_GRANULARITY_BITS &&
    get_be16 (entry + QCOW2_BITMAP_FIELD_NAME_SIZE) <= QCOW2_MAX_BITMAP_NAME &&
    ((flags & QCOW2_BITMAP_IN_USE) ||
     is_large_enough (c, entries, granularity));
}

static void
bad_bitmap (struct check *c, struct host_off at, const char *what, uint64_t n)
{
  c->findings.report.bitmaps_damaged = true;
  if (check_is_first (c))
    check_found (&c->findings, CHECK_BITMAPS, n, "%s at 0x%" PRIx64 ": it is "
                 "not valid", what, at.v);
}

/* Returns as check_refer does. */
static int
refer_to_part (struct check *c, enum check_use use, struct host_off place,
               uint64_t offset, uint64_t bytes, uint64_t n)
{
  const int r = check_refer (c, use, place, offset, bytes, n);

  if (r == 0)
    c->findings.report.bitmaps_damaged = true;
  return r;
}

/* A cluster of bits that the end of the file cuts off.  QEMU reads what is
 * missing as zeros: as parts of the disk that have not changed.
 */
static void
judge_bits (struct check *c, struct host_off place, uint64_t host, uint64_t n)
{
  const uint64_t size = c->storage->size;

  if (check_is_beyond (c, host, c->h.cluster_size) ||
      c->h.cluster_size <= size - host)
    return;
  c->findings.report.bitmaps_damaged = true;
  if (check_is_first (c))
    check_found (&c->findings, CHECK_UNREADABLE, n, "bitmap table entry at 0x%"
                 PRIx64 ": its bits at 0x%" PRIx64 " end beyond the end of the "
                 "file", place.v, host);
}

/* opaque: the number of tables that contain these words. */
static int
refer_to_bits (struct check *c, void *opaque, struct host_off place,
               uint8_t *words, size_t bytes)
{
  const uint64_t n = *(const uint64_t *) opaque;
  size_t i;

  for (i = 0; i < bytes; i += 8) {
    const struct host_off at = { place.v + i };
    struct host_off host;

    switch (entry_decode_bitmap (get_be64 (words + i), c->h.cluster_bits,
                                 &host)) {
    case BITMAP_PART_INVALID:
      bad_bitmap (c, at, "bitmap table entry", n);
      break;
    case BITMAP_PART_CLUSTER:
      judge_bits (c, at, host.v, n);
      if (refer_to_part (c, USE_BITS, at, host.v, c->h.cluster_size, n) == -1)
        return -1;
      break;
    case BITMAP_PART_CLEAN:
    case BITMAP_PART_DIRTY:
      break;
    }
  }
  return 0;
}

static int
refer_to_interval (void *opaque, uint64_t start, uint64_t end,
                   struct check_paths paths)
{
  uint64_t n = paths.all;

  return check_scan (opaque, (struct host_off) { start }, end - start,
                     refer_to_bits, &n);
}

/* Add a bitmap's table, by its directory entry, to those whose references are
 * counted together, later.
 */
static int
add_bitmap (struct check *c, struct check_ranges *tables, struct host_off at,
            const uint8_t *entry)
{
  const uint64_t offset = get_be64 (entry + QCOW2_BITMAP_FIELD_TABLE);
  const uint64_t bytes = 8 * (uint64_t)
    get_be32 (entry + QCOW2_BITMAP_FIELD_TABLE_SIZE);

  if (!check_is_beyond (c, offset, bytes)) {
    /* Readers refuse a table that the end of the file cuts off. */
    if (offset > c->storage->size || bytes > c->storage->size - offset)
      bad_bitmap (c, at, "bitmap directory entry", 1);
    return check_ranges_add (tables, offset, bytes, false);
  }
  return refer_to_part (c, USE_BITMAP_TABLE, at, offset, bytes, 1) == -1
    ? -1 : 0;
}

/* Returns the entry's size, 0 if it is not valid, or -1. */
static int64_t
find_bitmap (struct check *c, struct check_ranges *tables,
             struct check_reader *rd, struct host_off at, uint64_t rest)
{
  uint8_t entry[QCOW2_BITMAP_ENTRY_SIZE];
  uint64_t size;

  if (rest < sizeof entry)
    return 0;
  if (check_read_piece (c, rd, entry, sizeof entry, at) == -1)
    return -1;
  size = (sizeof entry +
          (uint64_t) get_be32 (entry + QCOW2_BITMAP_FIELD_EXTRA_SIZE) +
          get_be16 (entry + QCOW2_BITMAP_FIELD_NAME_SIZE) + 7) & ~UINT64_C (7);
  if (size > rest || !is_bitmap (c, entry))
    return 0;
  return add_bitmap (c, tables, at, entry) == -1 ? -1 : (int64_t) size;
}

static bool
directory_is_valid (const struct check *c)
{
  return c->h.nr_bitmaps <= QCOW2_MAX_BITMAPS && c->h.bitmap_directory.v != 0 &&
    c->h.bitmap_directory.v % c->h.cluster_size == 0 &&
    c->h.bitmap_directory_size <= QCOW2_MAX_BITMAP_DIRECTORY_BYTES;
}

/* Find the tables, up to the first damage in the directory. */
static int
find_bitmaps (struct check *c, struct check_ranges *tables)
{
  uint64_t rest = c->h.bitmap_directory_size;
  struct host_off at = c->h.bitmap_directory;
  struct check_reader reader = { 0, 0 };
  uint32_t i;

  for (i = 0; i < c->h.nr_bitmaps; ++i) {
    const int64_t size = find_bitmap (c, tables, &reader, at, rest);

    if (size == -1)
      return -1;
    if (size == 0) {
      bad_bitmap (c, at, "bitmap directory entry", 1);
      return 0;
    }
    at.v += size;
    rest -= size;
  }
  if (rest > 0)
    bad_bitmap (c, at, "bitmap directory's end", 1);
  return 0;
}

int
check_bitmaps (struct check *c)
{
  const struct host_off field = { c->h.bitmaps_field };
  struct check_ranges tables = { .nr = 0 };
  int r;

  if (!(c->h.autoclear & QCOW2_AUTOCLEAR_BITMAPS) || c->h.nr_bitmaps == 0)
    return 0;
  if (!directory_is_valid (c)) {
    bad_bitmap (c, field, "bitmap directory's place", 1);
    return 0;
  }
  r = refer_to_part (c, USE_BITMAP_DIRECTORY, field, c->h.bitmap_directory.v,
                     c->h.bitmap_directory_size, 1);
  if (r == 1) {
    r = find_bitmaps (c, &tables);
    if (r == 0)
      r = check_refer_ranges (c, USE_BITMAP_TABLE, &tables);
    if (r == 0)
      r = check_each_interval (&tables, 8, refer_to_interval, c);
    check_ranges_free (&tables);
  }
  return r == -1 ? -1 : 0;
}

int
check_luks_header (struct check *c)
{
  const struct host_off field = { c->h.crypto_field };

  return check_refer (c, USE_CRYPTO, field, c->h.crypto.v, c->h.crypto_bytes,
                      1) == -1 ? -1 : 0;
}
