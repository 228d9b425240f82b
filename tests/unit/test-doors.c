/* SPDX-License-Identifier: BSD-3-Clause */

/* The two doors of a layer (I16): guest data goes through data and nothing
 * else does, tables and compressed clusters through tables.  Here these are two
 * storages, and what was never written to that of data may read as garbage.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "doors-rig.h"
#include "random.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"

static const struct form forms[] = {
  { "v3", 3, 16, false, false, false, 0 },
  { "v3, garbage", 3, 16, false, false, true, 0 },
  { "v3, small clusters, garbage", 3, 12, false, true, true, 0 },
  { "v2, garbage", 2, 12, false, false, true, 0 },
  { "v2 over a base, garbage", 2, 12, false, true, true, 0 },
  { "extended, garbage", 3, 16, true, true, true, 0 },
  { "compressed, garbage", 3, 16, false, false, true, 1 },
  { "data file, garbage", 3, 16, false, false, true, 0, true },
  { "data file, empty", 3, 16, false, false, false, 0, true },
  { "data file over a base, garbage", 3, 12, false, true, true, 0, true },
  { "data file, extended, garbage", 3, 16, true, true, true, 0, true },
  { "data file, enciphered", 3, 16, false, false, false, 0, true, false, true },
  { "data file, enciphered, extended", 3, 16, true, true, false, 0, true, false,
    true },
  { "data file, enciphered, device", 3, 16, false, false, true, 0, true, false,
    true, true },
  { "raw data file", 3, 16, false, false, false, 0, true, true },
  { "raw data file, extended", 3, 14, true, false, false, 0, true, true },
};
#define NR_FORMS (sizeof forms / sizeof forms[0])

/* -------------------------------------------------------------------- tests */

/* Fresh clusters in whole and in part, and each kind of request over them. */
static void
test_requests (void)
{
  const unsigned trim = doors.form->garbage ? DISK_MAY_TRIM : 0;

  doors_write (cluster (0), cluster (3), 1, 0);
  doors_write (cluster (5) + SECTOR, SECTOR, 2, 0);
  doors_compare ();
  doors_write (cluster (5) + 3 * SECTOR, SECTOR, 3, 0);
  doors_write (cluster (5) + SECTOR, 2 * SECTOR, 4, DISK_FUA);
  doors_zero (cluster (7), cluster (2), 0);
  doors_zero (cluster (10) + SECTOR, cluster (1), 0);
  doors_compare ();
  doors_zero (cluster (1), cluster (1), 0);
  doors_write (cluster (1) + 2 * SECTOR, SECTOR, 5, 0);
  doors_compare ();
  doors_zero (cluster (2), SECTOR, trim);
  doors_zero (cluster (0), cluster (1), trim);
  doors_write (cluster (0) + SECTOR, SECTOR, 6, 0);
  doors_compare ();
  CHECK_OK (writer_flush (doors.bare.writer));
  doors_check ();
  doors_check_data_file ();
}

/* What the disk's end cuts off of its last cluster is zeros, as far as the data
 * file reaches.  It does so because of that only where zeros have to be written.
 */
static void
test_tail (void)
{
  const uint64_t before = atomic_load (&doors.disk[1].size);
  const uint64_t after = doors.form->fixed || before > doors.size
    ? before : doors_data_limit ();
  unsigned i;

  if (!doors.form->data_file)
    return;
  doors_write (doors.size - SECTOR, SECTOR, 10, 0);
  doors_check_data_file ();
  if (doors.form->enciphered)
    CHECK_EQ (atomic_load (&doors.disk[1].size), after);
  for (i = 0; doors.size + i < after && i < 3 * SECTOR; ++i)
    CHECK (doors.disk[1].data[doors.size + i] == 0);
  doors_zero (doors.size - 5 * SECTOR, 5 * SECTOR, DISK_MAY_TRIM);
  doors_check_data_file ();
}

/* What is unmapped is punched at once only where a hole reads as zeros: a crash,
 * or a reader, may still have it mapped.
 */
static void
test_punches (void)
{
  const uint64_t before = atomic_load (&doors.control[1].punches);

  if (!doors.form->data_file || doors.form->raw || doors.form->bits < 16)
    return;
  doors_write (0, cluster (4), 15, 0);
  CHECK_OK (writer_flush (doors.bare.writer));
  doors_zero (cluster (1), cluster (1), DISK_MAY_TRIM);
  CHECK_OK (disk_trim (doors.bare.writer, cluster (1),
                       (struct guest_off) { cluster (2) }, 0));
  memset (doors.content + cluster (2), 0, cluster (1));
  doors_compare ();
  CHECK_EQ (atomic_load (&doors.control[1].punches),
            before + (doors.form->enciphered ? 0 : 2));
}

/* An entry that points elsewhere into the data file is damage: neither read nor
 * written.
 */
static void
test_elsewhere (void)
{
  const uint64_t entry = doors_first_entry ();
  uint8_t buf[SECTOR];

  if (!doors.form->data_file)
    return;
  CHECK_OK (bare_close (&doors.bare));
  put_be64 (doors.disk[0].data + entry, cluster (2) | QCOW2_ENTRY_COPIED);
  if (doors.form->extended)
    put_be64 (doors.disk[0].data + entry + 8, UINT32_MAX);
  doors_open ();
  bare_write (&doors.bare, &(struct writer_options) { 0 });
  CHECK (layer_read (doors.bare.disk, buf, SECTOR,
                     (struct guest_off) { 0 }) == -1);
  CHECK_ERROR (EIO, "not the guest's");
  CHECK (disk_write (doors.bare.writer, buf, SECTOR, (struct guest_off) { 0 },
                     0) == -1);
  CHECK_ERROR (EIO, "not the guest's");
  CHECK_OK (bare_close (&doors.bare));
  put_be64 (doors.disk[0].data + entry, 0);
  if (doors.form->extended)
    put_be64 (doors.disk[0].data + entry + 8, 0);
  doors_open_again ();
}

/* A data file without space fails the request, and nothing else; one that can't
 * be flushed ends all writing (I10).
 */
static void
test_failures (void)
{
  const uint64_t at = cluster (4);

  if (!doors.form->data_file)
    return;
  doors_write (0, cluster (1), 12, 0);
  CHECK_OK (writer_flush (doors.bare.writer));
  memory_fail (&doors.control[1], MEMORY_WRITE | MEMORY_ZERO, 1, ENOSPC);
  if (!doors.form->raw) {
    CHECK (disk_write (doors.bare.writer, doors.content, SECTOR,
                       (struct guest_off) { at }, 0) == -1);
    CHECK_ERROR (ENOSPC, "data");
    doors_compare ();
  }
  memory_fail_no_more (&doors.control[1]);
  CHECK_OK (writer_flush (doors.bare.writer));
  doors_write (at, SECTOR, 13, 0);
  memory_fail (&doors.control[1], MEMORY_FLUSH, 1, EIO);
  CHECK (writer_flush (doors.bare.writer) == -1);
  CHECK_ERROR (EIO, "data");
  memory_fail_no_more (&doors.control[1]);
  CHECK (writer_flush (doors.bare.writer) == -1);
  CHECK (disk_write (doors.bare.writer, doors.content, SECTOR,
                     (struct guest_off) { at }, 0) == -1);
  CHECK_ERROR (EIO, "until it is opened again");
  CHECK (bare_close (&doors.bare) == -1);
  doors_open_again ();
}

/* Many, at random: what was given up is had again, where that holds whatever
 * was in it.
 */
static void
test_random (uint64_t seed)
{
  uint64_t state = seed;
  unsigned i;

  for (i = 0; i < 300 && !check_any_failed (); ++i) {
    const uint64_t sectors = doors.size / SECTOR;
    const uint64_t first = random_below (&state, sectors);
    uint64_t nr = 1 + random_below (&state, 3 * cluster (1) / SECTOR);

    if (nr > sectors - first)
      nr = sectors - first;
    switch (random_below (&state, 8)) {
    case 0:
      doors_zero (first * SECTOR, nr * SECTOR,
                 doors.form->garbage && random_below (&state, 2)
                 ? DISK_MAY_TRIM : 0);
      break;
    case 1:
      CHECK_OK (writer_flush (doors.bare.writer));
      break;
    case 2:
      doors_compare ();
      break;
    default:
      doors_write (first * SECTOR, nr * SECTOR, i,
                  random_below (&state, 8) == 0 ? DISK_FUA : 0);
      break;
    }
  }
  doors_check ();
  doors_check_data_file ();
}

/* Clusters that are stored compressed are among the tables. */
static void
test_compressed (void)
{
  size_t i;

  doors_write (cluster (3), cluster (4), 7, 0);
  doors_compare ();
  for (i = 0; i < doors.nr_events; ++i)
    CHECK (!doors.event[i].data || doors.event[i].call.kind == MEMORY_FLUSH);
  doors_write (cluster (9), SECTOR, 8, 0);
  CHECK (doors.event[doors.nr_events - 1].data);
  doors_compare ();
}

/* They go past the door of data, and so are not enciphered: then none is written
 * (I15).
 */
static void
test_no_plaintext (void)
{
  const struct writer_options options = {
    .compress_level = doors.form->compress_level,
  };
  struct header h = qcow2_file (doors.bare.disk)->header;

  CHECK_OK (writer_check_header (doors.bare.disk->tables, &h, &options));
  for (h.encryption = ENCRYPTION_AES; h.encryption <= ENCRYPTION_LUKS;
       ++h.encryption) {
    CHECK (writer_check_header (doors.bare.disk->tables, &h, &options) == -1);
    CHECK_ERROR (ENOTSUP, "in the clear");
  }
}

/* Before the mapping is written, refcounts are durable, and so are data if what
 * was there before them may be garbage; and whenever tables are made durable,
 * data were before.
 */
static void
test_flush_order (void)
{
  const uint64_t entry = doors_first_entry ();
  bool written[2] = { false, false }; /* and not durable */
  bool mapped = false;
  size_t i;

  doors_write (0, SECTOR, 9, 0);
  CHECK_OK (writer_flush (doors.bare.writer));
  for (i = 0; i < doors.nr_events; ++i) {
    const struct event *e = &doors.event[i];

    if (e->call.kind == MEMORY_WRITE && !e->data && e->call.offset == entry) {
      mapped = true;
      CHECK (!written[0]);
      CHECK (!doors.form->garbage || !written[1]);
    }
    if (e->call.kind == MEMORY_FLUSH && !e->data)
      CHECK (!written[1]);
    if (e->call.kind == MEMORY_WRITE || e->call.kind == MEMORY_FLUSH)
      written[e->data] = e->call.kind == MEMORY_WRITE;
  }
  CHECK (mapped);
  CHECK (!written[0] && !written[1]);
}

int
main (void)
{
  unsigned f;

  check_time_limit (300);
  for (f = 0; f < NR_FORMS; ++f) {
    doors_start (&forms[f]);
    if (doors.form->compress_level == 0)
      test_flush_order ();
    else {
      test_compressed ();
      test_no_plaintext ();
    }
    doors_end ();
    doors_start (&forms[f]);
    test_requests ();
    test_tail ();
    test_punches ();
    doors_end ();
    doors_start (&forms[f]);
    test_elsewhere ();
    doors_end ();
    doors_start (&forms[f]);
    test_random (f + 1);
    doors_end ();
    if (!doors.form->data_file)
      continue;
    doors_start (&forms[f]);
    test_failures ();
    CHECK_OK (bare_close (&doors.bare)); /* there are leaks */
    free (doors.content);
    memory_disk_free (&doors.disk[0]);
    memory_disk_free (&doors.disk[1]);
  }
  return check_result ();
}
