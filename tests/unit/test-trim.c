/* SPDX-License-Identifier: BSD-3-Clause */

/* A trim is advice (I13): it never writes data, nor makes the file larger by
 * more than tables.  On a full file system it waits, as zeroing does, for
 * space that is being given up.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "rig.h"

#define CLUSTERS 256

static struct rig rig;
static struct memory_log call_log = MEMORY_LOG_INIT;
static uint8_t base[CLUSTERS << 16];

/* ------------------------------------------------------------------ advice */

static unsigned
count_data (void)
{
  unsigned nr = 0;
  size_t i;

  for (i = 0; i < call_log.nr; ++i)
    nr += call_log.call[i].kind == MEMORY_WRITE ||
      (call_log.call[i].kind == MEMORY_ZERO && !call_log.call[i].punch);
  return nr;
}

/* Nothing changes: neither the file nor what is in it. */
static void
check_nothing_happens (uint64_t offset, uint64_t count)
{
  const uint64_t size = rig.disk.size, blocks = rig.disk.blocks;

  memory_log_clear (&call_log);
  rig.control.log = &call_log;
  CHECK_OK (image_trim (rig.im, count, (struct guest_off) { offset }, 0));
  CHECK_EQ (count_data (), 0);
  CHECK_EQ (rig.disk.size, size);
  CHECK_EQ (rig.disk.blocks, blocks);
  rig.control.log = NULL;
  rig_compare (&rig); /* the model was not told of the trim */
}

/* Version 2 has no zeros that could hide the backing file. */
static void
test_v2_backing (void)
{
  struct builder b;

  build_pattern (base, sizeof base, 7);
  build_start (&b, 2, 16, false, COMPRESSION_DEFLATE, sizeof base);
  build_l2_place (&b, 0);
  build_entry (&b, 0, build_data (&b, 1), 0);
  build_backing (&b, "raw");
  build_finish (&b);
  rig_init (&rig, "v2 over backing", &b);
  build_free (&b);
  rig.cache_size = 1 << 20;
  rig_set_base (&rig, base, sizeof base, true);
  rig_open (&rig);
  rig_write (&rig, 5 << 16, 1 << 16, 1); /* which begins to write at all */
  check_nothing_happens (0, sizeof base);
  rig_close (&rig);
  rig_free (&rig);
}

/* Part of a compressed cluster can't be marked as zeros. */
static void
test_part_of_compressed (void)
{
  static uint8_t plain[1 << 16];
  struct builder b;

  build_start (&b, 3, 16, true, COMPRESSION_DEFLATE, CLUSTERS << 16);
  memset (plain, 'x', sizeof plain);
  build_compressed (&b, 3, plain, 0);
  build_finish (&b);
  rig_init (&rig, "part of a compressed cluster", &b);
  build_free (&b);
  rig.cache_size = 1 << 20;
  rig_open (&rig);
  rig_write (&rig, 5 << 16, 1 << 16, 1);
  check_nothing_happens ((3 << 16) + 2048, 8192);
  rig_trim (&rig, 3 << 16, 1 << 16); /* the whole of it can */
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

/* ------------------------------------------------------------- a full disk */

/* L2 tables of the disk; the last ones are not written to. */
#define TABLES 16
#define FREE_TABLES 12

/* All tables are a snapshot's as well, so that each change of a mapping wants
 * room for a copy; and there is none.  Only what was written since is its own.
 */
static void
start_full (void)
{
  const uint64_t per_table = 512 / 8;
  struct builder b;
  uint64_t state = 1, i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, TABLES * per_table * 512);
  for (i = 0; i < TABLES * per_table; ++i) {
    build_l2_place (&b, i);
    build_entry (&b, i, build_data (&b, i), 0);
  }
  build_snapshot (&b, 0, &state);
  build_finish (&b);
  rig_init (&rig, "full", &b);
  build_free (&b);
  rig.cache_size = 1 << 20;
  rig_open (&rig);
  rig_write (&rig, 0, per_table * 512, 1); /* with a table of its own */
  rig_flush (&rig);
  rig.control.limit = rig.disk.size;
  for (i = per_table; rig_try_write (&rig, i * 512, 512, i, 0) == 0; ++i)
    CHECK (i < FREE_TABLES * per_table);
  CHECK_EQ (error_errno (), ENOSPC);
}

static void
end_full (void)
{
  rig.control.limit = 0;
  rig_compare (&rig);
  rig_close (&rig);
  rig_free (&rig);
}

/* What is given up makes room, without a flush. */
static void
test_waits (bool trim)
{
  const uint64_t per_table = 512 / 8;

  start_full ();
  rig_trim (&rig, 0, per_table / 2 * 512);
  if (trim)
    rig_trim (&rig, FREE_TABLES * per_table * 512, per_table * 512);
  else
    rig_zero (&rig, FREE_TABLES * per_table * 512, per_table * 512, IMAGE_MAY_TRIM);
  end_full ();
}

/* Where there is none, zeroing fails; a trim is not done. */
static void
test_no_space (void)
{
  const uint64_t per_table = 512 / 8, at = FREE_TABLES * per_table * 512;

  start_full ();
  CHECK_EQ (rig_try_zero (&rig, at, per_table * 512, IMAGE_MAY_TRIM), -1);
  CHECK_EQ (error_errno (), ENOSPC);
  check_nothing_happens (at, per_table * 512);
  rig_flush (&rig);
  end_full ();
}

int
main (void)
{
  check_time_limit (100);
  test_v2_backing ();
  test_part_of_compressed ();
  test_waits (true);
  test_waits (false);
  test_no_space ();
  return check_result ();
}
