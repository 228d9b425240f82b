/* SPDX-License-Identifier: BSD-3-Clause */

/* External data files that are raw images of the disk, and that other programs
 * cut off, append to, and fill the file system of.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "doors-rig.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"

static const struct form raw = {
  "raw data file", 3, 16, false, false, false, 0, true, true
};
/* As large as the disk at first. */
static const struct form extended = {
  "raw data file, extended", 3, 14, true, false, false, 0, true, true
};

/* What a raw data file has is mapped, durably, before it is written; and what it
 * is mapped with is zeros, whatever was there.
 */
static void
test_order (void)
{
  const uint64_t at = cluster (20) + SECTOR;
  bool unflushed = false; /* tables */
  size_t i;

  memset (doors.disk[1].data + cluster (20), GARBAGE, cluster (1));
  doors.nr_events = 0;
  doors_write (at, SECTOR, 11, 0);
  for (i = 0; i < doors.nr_events; ++i) {
    const struct event *e = &doors.event[i];

    if (e->call.kind == MEMORY_WRITE && e->data && e->call.offset == at)
      break;
    if (!e->data)
      unflushed = e->call.kind != MEMORY_FLUSH;
  }
  CHECK (i < doors.nr_events && i > 0 && !unflushed);
  doors_check_data_file ();
}

/* What others append to a raw data file while that becomes as large as the disk
 * is not zeroed: nothing is written before it is away.
 */
static void
test_growth (void)
{
  uint64_t read = 0;
  unsigned i;

  doors.others_append = true;
  for (i = 0; i < 2; ++i) {
    read = atomic_load (&doors.control[1].bytes);
    CHECK (disk_write (doors.bare.writer, doors.content, SECTOR,
                       (struct guest_off) { 0 }, 0) == -1);
    CHECK_ERROR (EIO, "made longer by another program");
    CHECK_EQ (error_repeated (), i > 0);
  }
  /* The zeros before it are not read again. */
  CHECK (atomic_load (&doors.control[1].bytes) - read <= 32768);
  CHECK_EQ (doors.disk[1].data[doors.size / 2], GARBAGE);
  doors.others_append = false;
  doors.disk[1].data[doors.size / 2] = 0;
  doors_write (0, SECTOR, 14, 0);
  doors_check_data_file ();
}

/* What another program does to the data file: it ends there, or is longer by
 * what it appends.
 */
static void
others_cut (uint64_t end)
{
  memset (doors.disk[1].data + end, 0, doors.size + SECTOR - end);
  doors.disk[1].size = end;
}

static void
others_write (uint64_t at)
{
  memset (doors.disk[1].data + at, GARBAGE, SECTOR);
  if (doors.disk[1].size < at + SECTOR)
    doors.disk[1].size = at + SECTOR;
}

static void
refuses_to_map (uint64_t at)
{
  CHECK (disk_write (doors.bare.writer, doors.content, SECTOR,
                     (struct guest_off) { at }, 0) == -1);
  CHECK_ERROR (EIO, "made longer by another program");
}

/* Others make it longer than the disk, cut that off again, and append once more:
 * that is found, and nothing is mapped behind the end.  So it is when they cut
 * it off after it was as large as the disk.
 */
static void
test_cut_off (void)
{
  others_write (cluster (3));
  others_write (doors.size);
  refuses_to_map (cluster (5));
  others_cut (cluster (1));
  others_write (cluster (1));
  refuses_to_map (cluster (5));
  CHECK_EQ (doors.disk[1].data[cluster (1)], GARBAGE);
  others_cut (cluster (1));
  doors_write (cluster (5), SECTOR, 21, DISK_FUA);
  CHECK_EQ (doors.disk[1].size, doors.size);
  others_cut (cluster (6));
  doors_write (cluster (2), SECTOR, 22, DISK_FUA);
  CHECK_EQ (doors.disk[1].size, doors.size);
  doors_check_data_file ();
}

/* What is behind the disk's end in its last cluster is others'. */
static void
test_tail (void)
{
  const uint64_t last = doors.size - SECTOR;
  unsigned i;

  CHECK_OK (bare_close (&doors.bare));
  memset (doors.disk[1].data + doors.size, GARBAGE, SECTOR);
  doors.disk[1].size = doors.size + SECTOR;
  doors_open_again ();
  doors_write (last, SECTOR, 16, DISK_FUA);
  for (i = 0; i < SECTOR; ++i)
    CHECK_EQ (doors.disk[1].data[doors.size + i], GARBAGE);
  doors_compare ();
  CHECK_OK (bare_close (&doors.bare));
  memset (doors.disk[1].data + doors.size, 0, SECTOR);
  doors.disk[1].size = doors.size;
  doors_open_again ();
}

/* A raw data file that ends within its first cluster, which is mapped, has no
 * space to become larger (I13): what needs no mapping is done all the same.  It
 * grows once it can, and what was written meanwhile is not taken for others'.
 */
static void
test_full (void)
{
  const uint64_t entry = doors_first_entry ();
  const struct guest_off none = { cluster (5) };
  unsigned i;

  CHECK_OK (bare_close (&doors.bare));
  put_be64 (doors.disk[0].data + entry, QCOW2_ENTRY_COPIED);
  doors.disk[1].size = cluster (1) - 4 * SECTOR;
  doors_open_again ();
  memory_fail_ever_after (&doors.control[1], MEMORY_RESIZE, 1, ENOSPC);
  CHECK_OK (disk_trim (doors.bare.writer, doors.size,
                       (struct guest_off) { 0 }, 0));
  CHECK_OK (disk_zero (doors.bare.writer, cluster (4), none, DISK_MAY_TRIM));
  doors_write (SECTOR, SECTOR, 17, 0);
  CHECK_EQ (doors.disk[1].size, cluster (1) - 4 * SECTOR);
  doors_write (cluster (1) - SECTOR, SECTOR, 18, DISK_FUA);
  CHECK_EQ (doors.disk[1].size, cluster (1));
  for (i = 0; i < 2; ++i) {
    CHECK (disk_write (doors.bare.writer, doors.content, SECTOR, none,
                       0) == -1);
    CHECK_ERROR (ENOSPC, "data");
    CHECK_EQ (error_repeated (), i > 0);
  }
  doors_compare ();
  memory_fail_no_more (&doors.control[1]);
  doors_write (none.v, SECTOR, 19, 0);
  CHECK_EQ (doors.disk[1].size, doors.size);
  doors_check_data_file ();
}

/* What of this range is told to be zeros: a flag for each sector. */
static int
note_zeros (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  bool *zero = opaque;
  uint64_t i;

  for (i = offset / SECTOR; i < (offset + length) / SECTOR; ++i)
    zero[i] = (flags & EXTENT_ZERO) != 0;
  return 0;
}

/* Where a raw data file ends, in the midst of a cluster that is mapped: so early
 * in it that what is to be zeroed before that is less than what is worth a hole
 * elsewhere.
 */
#define SHORT_END (cluster (3) + 40 * SECTOR)

/* Have four clusters mapped of one that is as short as that, and is a hole. */
static void
make_short (void)
{
  const uint64_t entry = doors_first_entry ();
  unsigned i;

  CHECK_OK (bare_close (&doors.bare));
  for (i = 0; i < 4; ++i)
    put_be64 (doors.disk[0].data + entry + i * 8,
              cluster (i) | QCOW2_ENTRY_COPIED);
  doors.disk[1].size = SHORT_END;
  doors_open_again ();
  CHECK_OK (disk_trim (doors.bare.writer, doors.size,
                       (struct guest_off) { 0 }, 0));
  doors.control[1].holes = true;
}

/* After a flush it is the disk, although nothing had to be mapped; but for the
 * end of a hole if there is no space for that.
 */
static void
test_flushed (void)
{
  bool flushed = false; /* the data file, once it was longer */
  size_t i;

  make_short ();
  memory_fail_ever_after (&doors.control[1], MEMORY_RESIZE, 1, ENOSPC);
  doors_write (cluster (1), SECTOR, 23, 0);
  CHECK_OK (writer_flush (doors.bare.writer));
  CHECK_EQ (doors.disk[1].size, SHORT_END);
  memory_fail_no_more (&doors.control[1]);
  CHECK_OK (writer_flush (doors.bare.writer));
  CHECK_EQ (doors.disk[1].size, doors.size);
  for (i = doors.nr_events; i > 0; --i) {
    const struct event *e = &doors.event[i - 1];

    if (e->call.kind == MEMORY_RESIZE)
      break;
    flushed |= e->data && e->call.kind == MEMORY_FLUSH;
  }
  CHECK (i > 0 && flushed);
  doors_check_data_file ();
}

/* To zero what is mapped costs nothing behind the end, and neither does a hole
 * before that: it is done even where there is no space (I13).
 */
static void
test_short (void)
{
  uint64_t written;

  make_short ();
  doors_write (cluster (1), cluster (1), 20, DISK_FUA);
  doors.control[1].room = atomic_load (&doors.disk[1].blocks);
  written = atomic_load (&doors.control[1].written);
  doors_zero (0, doors.size, DISK_MAY_TRIM);
  doors_zero (cluster (3) + SECTOR, cluster (4), DISK_MAY_TRIM);
  CHECK_EQ (atomic_load (&doors.control[1].written), written);
  CHECK_EQ (doors.disk[1].size, SHORT_END);
  doors.control[1].room = 0;
}

/* What others put behind the end, where something is mapped, is the disk's: it
 * is told to be data at once, and zeroed by whoever zeroes the disk.
 */
static void
test_appended (void)
{
  bool zero[CLUSTERS * 128];
  const uint64_t end = SHORT_END / SECTOR;

  make_short ();
  memset (doors.disk[1].data + SHORT_END, GARBAGE, SECTOR);
  doors.disk[1].size = SHORT_END + SECTOR;
  memset (doors.content + SHORT_END, GARBAGE, SECTOR);
  doors_compare ();
  CHECK_OK (layer_extents (doors.bare.disk, doors.size,
                           (struct guest_off) { 0 }, false, note_zeros, zero));
  CHECK (zero[0] && zero[end - 1]);
  CHECK (!zero[end]);
  CHECK (zero[cluster (4) / SECTOR]);
  doors_zero (cluster (1), cluster (3), DISK_MAY_TRIM);
  CHECK_EQ (doors.disk[1].data[SHORT_END], 0);
  doors_compare ();
}

int
main (void)
{
  static const struct {
    const struct form *form;
    void (*test) (void);
  } tests[] = {
    { &extended, test_tail }, { &extended, test_order },
    { &raw, test_growth }, { &raw, test_cut_off },
    { &raw, test_full }, { &raw, test_flushed },
    { &raw, test_short }, { &raw, test_appended },
  };
  unsigned i;

  check_time_limit (300);
  for (i = 0; i < sizeof tests / sizeof tests[0]; ++i) {
    doors_start (tests[i].form);
    tests[i].test ();
    doors_end ();
  }
  return check_result ();
}
