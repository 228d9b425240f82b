/* SPDX-License-Identifier: BSD-3-Clause */

/* The two doors of a layer (I16): guest data goes through data and nothing
 * else does, tables and compressed clusters through tables.  Here these are two
 * storages, and what was never written to that of data may read as garbage.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "bare-writer.h"
#include "build.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image-check.h"
#include "must-have.h"
#include "random.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"

#define SECTOR 512
#define DATA_BYTES (UINT64_C (16) << 20)
#define GARBAGE 0xe5
#define BASE 0xba /* what a backing file is full of */

struct form {
  const char *what;
  unsigned version, bits;
  bool extended, backing, garbage;
  unsigned compress_level;
  bool data_file, raw; /* an external one, and it is a raw image */
  bool enciphered, fixed; /* holes are not zeros; a device */
};

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
#define CLUSTERS 40

/* What the storages are asked for, in order. */
#define MAX_EVENTS 10000

struct event {
  bool data; /* else tables */
  struct memory_call call;
};

static const struct form *form;
static struct memory_disk disk[2];
static struct memory_control control[2]; /* of tables, data */
static struct bare_writer bare;
static struct event event[MAX_EVENTS];
static uint64_t size; /* of the guest's disk */
static size_t nr_events;
static bool others_append; /* to the data file, when it is made longer */
static uint8_t *content;
static uint8_t base[4 << 20];

static void
note_call (void *opaque, const struct memory_call *call)
{
  if (others_append && opaque == &control[1] && call->kind == MEMORY_RESIZE)
    disk[1].data[size / 2] = GARBAGE;
  if (!(call->kind & MEMORY_CHANGES) || nr_events == MAX_EVENTS)
    return;
  event[nr_events].data = opaque == &control[1];
  event[nr_events++].call = *call;
}

/* ------------------------------------------------------------------ content */

/* A sector that the guest wrote. */
static void
fill_sector (uint8_t *p, uint64_t seed)
{
  unsigned i;

  for (i = 0; i < SECTOR; i += 16) {
    memcpy (p + i, "GUESTDAT", 8);
    memcpy (p + i + 8, &seed, sizeof seed);
  }
}

static bool
is_all (const uint8_t *p, uint8_t byte)
{
  return p[0] == byte && memcmp (p, p + 1, SECTOR - 1) == 0;
}

/* What the guest wrote is not among the tables, and nothing is among the data
 * but that, and what it was filled up with.
 */
static void
check_doors (void)
{
  const uint64_t tables_size = atomic_load (&disk[0].size);
  const uint64_t data_size = atomic_load (&disk[1].size);
  uint64_t at;

  if (form->compress_level == 0)
    CHECK (memmem (disk[0].data, tables_size, "GUESTDAT", 8) == NULL);
  for (at = 0; at + SECTOR <= data_size; at += SECTOR) {
    const uint8_t *p = disk[1].data + at;

    if (memcmp (p, "GUESTDAT", 8) != 0 && !is_all (p, 0) &&
        !(form->garbage && is_all (p, GARBAGE)) &&
        !(form->backing && is_all (p, BASE))) {
      check_failed (__FILE__, __LINE__, "%s: data 0x%" PRIx64 " is not the "
                    "guest's", form->what, at);
      return;
    }
  }
}

/* How large a data file may be: as the disk is, or as it was at first.  One that
 * is enciphered also holds what the disk's end cuts off of its last cluster.
 */
static uint64_t
data_limit (void)
{
  const uint64_t granule =
    UINT64_C (1) << qcow2_map (bare.disk)->subcluster_bits;

  if (form->fixed)
    return size + SECTOR;
  if (form->garbage)
    return DATA_BYTES;
  return form->enciphered ? (size + granule - 1) & -granule : size;
}

/* A raw data file is the disk, byte by byte; any data file holds what is mapped
 * where the guest has it.
 */
static void
check_data_file (void)
{
  const uint64_t data_size = atomic_load (&disk[1].size);
  struct guest_off at = { 0 };
  struct run run;

  if (!form->data_file)
    return;
  CHECK (data_size <= data_limit ());
  if (form->raw && data_size > 0)
    CHECK (data_size == size && memcmp (disk[1].data, content, size) == 0);
  for (; at.v < size; at.v += run.length) {
    CHECK_OK (map_lookup (qcow2_map (bare.disk), at, size - at.v, &run));
    if (run.kind != RUN_DATA)
      continue;
    CHECK_EQ (run.host.v, at.v);
    if (at.v + run.length <= data_size)
      CHECK (memcmp (disk[1].data + at.v, content + at.v, run.length) == 0);
  }
}

static void
compare (void)
{
  uint8_t *buf = must_have (malloc (size));
  uint64_t i = 0;

  memset (buf, 0xdd, size);
  CHECK_OK (layer_read (bare.disk, buf, size, (struct guest_off) { 0 }));
  if (memcmp (buf, content, size) != 0) {
    while (buf[i] == content[i])
      i++;
    check_failed (__FILE__, __LINE__, "%s: byte 0x%" PRIx64 " is 0x%02x, not "
                  "0x%02x", form->what, i, buf[i], content[i]);
  }
  free (buf);
}

/* ----------------------------------------------------------------- an image */

static void
open_image (void)
{
  struct storage *data = memory_disk_open (&disk[1], "data", &control[1]);

  data->holes_not_zero = form->enciphered ||
    (form->garbage && !form->data_file);
  data->fixed_size = form->fixed;
  bare_open (&bare, memory_disk_open (&disk[0], "tables", &control[0]),
             form->backing
             ? memory_storage_new ("base", base, sizeof base, NULL) : NULL,
             data);
}

static void
init_disks (void)
{
  uint8_t *garbage = must_have (malloc (DATA_BYTES));
  struct builder b;
  unsigned i;

  build_start (&b, form->version, form->bits, form->extended,
               COMPRESSION_DEFLATE, (CLUSTERS << form->bits) - 3 * SECTOR);
  build_l2_place (&b, 0);
  if (form->backing)
    build_backing (&b, "raw");
  build_finish (&b);
  if (form->data_file)
    put_be64 (b.data + 72, get_be64 (b.data + 72) | QCOW2_INCOMPAT_DATA_FILE);
  if (form->raw)
    put_be64 (b.data + 88, QCOW2_AUTOCLEAR_RAW_DATA_FILE);
  size = b.disk_size;
  memory_disk_init (&disk[0], b.data, b.size);
  build_free (&b);
  memset (garbage, form->garbage ? GARBAGE : 0, DATA_BYTES);
  memory_disk_init (&disk[1], garbage, form->fixed ? size + SECTOR
                    : form->garbage ? DATA_BYTES
                    : form->raw && form->extended ? size : 0);
  free (garbage);
  for (i = 0; i < 2; ++i)
    control[i] = (struct memory_control) {
      .hook = note_call, .opaque = &control[i],
    };
  if (form->fixed)
    control[1].limit = size + SECTOR;
}

/* Open an image of nothing but an empty L2 table for writing. */
static void
start (const struct form *f)
{
  const struct writer_options options = {
    .compress_level = f->compress_level,
  };

  form = f;
  init_disks ();
  open_image ();
  content = must_have (malloc (size));
  CHECK_OK (layer_read (bare.disk, content, size, (struct guest_off) { 0 }));
  bare_write (&bare, &options);
  nr_events = 0;
}

/* Close it, and see that all of it is on the storages. */
static void
end (void)
{
  unsigned i;

  compare ();
  CHECK_OK (bare_close (&bare));
  image_check_clean (form->what, disk[0].data, atomic_load (&disk[0].size));
  check_doors ();
  open_image ();
  compare ();
  CHECK_OK (bare_close (&bare));
  free (content);
  for (i = 0; i < 2; ++i)
    memory_disk_free (&disk[i]);
}

/* ----------------------------------------------------------------- requests */

static void
write_disk (uint64_t offset, uint64_t count, uint64_t seed, unsigned flags)
{
  uint64_t at;

  for (at = offset; at < offset + count; at += SECTOR)
    fill_sector (content + at, seed);
  CHECK_OK (disk_write (bare.writer, content + offset, count,
                        (struct guest_off) { offset }, flags));
}

static void
zero_disk (uint64_t offset, uint64_t count, unsigned flags)
{
  memset (content + offset, 0, count);
  CHECK_OK (disk_zero (bare.writer, count, (struct guest_off) { offset },
                       flags));
}

static uint64_t
cluster (uint64_t nr)
{
  return nr << form->bits;
}

/* -------------------------------------------------------------------- tests */

/* Fresh clusters in whole and in part, and each kind of request over them. */
static void
test_requests (void)
{
  const unsigned trim = form->garbage ? DISK_MAY_TRIM : 0;

  write_disk (cluster (0), cluster (3), 1, 0);
  write_disk (cluster (5) + SECTOR, SECTOR, 2, 0);
  compare ();
  write_disk (cluster (5) + 3 * SECTOR, SECTOR, 3, 0);
  write_disk (cluster (5) + SECTOR, 2 * SECTOR, 4, DISK_FUA);
  zero_disk (cluster (7), cluster (2), 0);
  zero_disk (cluster (10) + SECTOR, cluster (1), 0);
  compare ();
  zero_disk (cluster (1), cluster (1), 0);
  write_disk (cluster (1) + 2 * SECTOR, SECTOR, 5, 0);
  compare ();
  zero_disk (cluster (2), SECTOR, trim);
  zero_disk (cluster (0), cluster (1), trim);
  write_disk (cluster (0) + SECTOR, SECTOR, 6, 0);
  compare ();
  CHECK_OK (writer_flush (bare.writer));
  check_doors ();
  check_data_file ();
}

/* What the disk's end cuts off of its last cluster is zeros, as far as the data
 * file reaches.  It does so because of that only where zeros have to be written.
 */
static void
test_tail (void)
{
  const uint64_t before = atomic_load (&disk[1].size);
  const uint64_t after = form->fixed || before > size ? before : data_limit ();
  unsigned i;

  if (!form->data_file)
    return;
  write_disk (size - SECTOR, SECTOR, 10, 0);
  check_data_file ();
  if (form->enciphered)
    CHECK_EQ (atomic_load (&disk[1].size), after);
  for (i = 0; size + i < after && i < 3 * SECTOR; ++i)
    CHECK (disk[1].data[size + i] == 0);
  zero_disk (size - 5 * SECTOR, 5 * SECTOR, DISK_MAY_TRIM);
  check_data_file ();
}

/* What is unmapped is punched at once only where a hole reads as zeros: a crash,
 * or a reader, may still have it mapped.
 */
static void
test_punches (void)
{
  const uint64_t before = atomic_load (&control[1].punches);

  if (!form->data_file || form->raw || form->bits < 16)
    return;
  write_disk (0, cluster (4), 15, 0);
  CHECK_OK (writer_flush (bare.writer));
  zero_disk (cluster (1), cluster (1), DISK_MAY_TRIM);
  CHECK_OK (disk_trim (bare.writer, cluster (1),
                       (struct guest_off) { cluster (2) }, 0));
  memset (content + cluster (2), 0, cluster (1));
  compare ();
  CHECK_EQ (atomic_load (&control[1].punches),
            before + (form->enciphered ? 0 : 2));
}

/* Where the entry of the first cluster is. */
static uint64_t
first_entry (void)
{
  struct map_l1 l1;

  CHECK_OK (map_l1_entry (qcow2_map (bare.disk), (struct guest_off) { 0 },
                          &l1));
  return l1.table.v;
}

/* What a raw data file has is mapped, durably, before it is written; and what it
 * is mapped with is zeros, whatever was there.
 */
static void
test_raw_order (void)
{
  const uint64_t at = cluster (20) + SECTOR;
  bool unflushed = false; /* tables */
  size_t i;

  if (!form->raw || atomic_load (&disk[1].size) == 0)
    return;
  memset (disk[1].data + cluster (20), GARBAGE, cluster (1));
  nr_events = 0;
  write_disk (at, SECTOR, 11, 0);
  for (i = 0; i < nr_events; ++i) {
    const struct event *e = &event[i];

    if (e->call.kind == MEMORY_WRITE && e->data && e->call.offset == at)
      break;
    if (!e->data)
      unflushed = e->call.kind != MEMORY_FLUSH;
  }
  CHECK (i < nr_events && i > 0 && !unflushed);
  check_data_file ();
}

/* What others append to a raw data file while that becomes as large as the disk
 * is not zeroed: nothing is written before it is away.
 */
static void
test_raw_growth (void)
{
  uint64_t read = 0;
  unsigned i;

  if (!form->raw || atomic_load (&disk[1].size) > 0)
    return;
  others_append = true;
  for (i = 0; i < 2; ++i) {
    read = atomic_load (&control[1].bytes);
    CHECK (disk_write (bare.writer, content, SECTOR, (struct guest_off) { 0 },
                       0) == -1);
    CHECK_ERROR (EIO, "made longer by another program");
    CHECK_EQ (error_repeated (), i > 0);
  }
  /* The zeros before it are not read again. */
  CHECK (atomic_load (&control[1].bytes) - read <= 32768);
  CHECK_EQ (disk[1].data[size / 2], GARBAGE);
  others_append = false;
  disk[1].data[size / 2] = 0;
  write_disk (0, SECTOR, 14, 0);
  check_data_file ();
}

/* What another program does to the data file: it ends there, or is longer by
 * what it appends.
 */
static void
others_cut (uint64_t end)
{
  memset (disk[1].data + end, 0, size + SECTOR - end);
  disk[1].size = end;
}

static void
others_write (uint64_t at)
{
  memset (disk[1].data + at, GARBAGE, SECTOR);
  if (disk[1].size < at + SECTOR)
    disk[1].size = at + SECTOR;
}

static void
refuses_to_map (uint64_t at)
{
  CHECK (disk_write (bare.writer, content, SECTOR, (struct guest_off) { at },
                     0) == -1);
  CHECK_ERROR (EIO, "made longer by another program");
}

/* Others make it longer than the disk, cut that off again, and append once more:
 * that is found, and nothing is mapped behind the end.  So it is when they cut
 * it off after it was as large as the disk.
 */
static void
test_raw_cut_off (void)
{
  if (!form->raw || atomic_load (&disk[1].size) > 0)
    return;
  others_write (cluster (3));
  others_write (size);
  refuses_to_map (cluster (5));
  others_cut (cluster (1));
  others_write (cluster (1));
  refuses_to_map (cluster (5));
  CHECK_EQ (disk[1].data[cluster (1)], GARBAGE);
  others_cut (cluster (1));
  write_disk (cluster (5), SECTOR, 21, DISK_FUA);
  CHECK_EQ (disk[1].size, size);
  others_cut (cluster (6));
  write_disk (cluster (2), SECTOR, 22, DISK_FUA);
  CHECK_EQ (disk[1].size, size);
  check_data_file ();
}

/* Open it once more, when something was changed. */
static void
open_anew (void)
{
  open_image ();
  CHECK_OK (layer_read (bare.disk, content, size, (struct guest_off) { 0 }));
  bare_write (&bare, &(struct writer_options) { 0 });
}

/* What is behind the disk's end in its last cluster is others'. */
static void
test_raw_tail (void)
{
  const uint64_t last = size - SECTOR;
  unsigned i;

  if (!form->raw || atomic_load (&disk[1].size) == 0)
    return;
  CHECK_OK (bare_close (&bare));
  memset (disk[1].data + size, GARBAGE, SECTOR);
  disk[1].size = size + SECTOR;
  open_anew ();
  write_disk (last, SECTOR, 16, DISK_FUA);
  for (i = 0; i < SECTOR; ++i)
    CHECK_EQ (disk[1].data[size + i], GARBAGE);
  compare ();
  CHECK_OK (bare_close (&bare));
  memset (disk[1].data + size, 0, SECTOR);
  disk[1].size = size;
  open_anew ();
}

/* A raw data file that ends within its first cluster, which is mapped, has no
 * space to become larger (I13): what needs no mapping is done all the same.  It
 * grows once it can, and what was written meanwhile is not taken for others'.
 */
static void
test_raw_full (void)
{
  const uint64_t entry = first_entry ();
  const struct guest_off none = { cluster (5) };
  unsigned i;

  if (!form->raw || form->extended)
    return;
  CHECK_OK (bare_close (&bare));
  put_be64 (disk[0].data + entry, QCOW2_ENTRY_COPIED);
  disk[1].size = cluster (1) - 4 * SECTOR;
  open_anew ();
  memory_fail_ever_after (&control[1], MEMORY_RESIZE, 1, ENOSPC);
  CHECK_OK (disk_trim (bare.writer, size, (struct guest_off) { 0 }, 0));
  CHECK_OK (disk_zero (bare.writer, cluster (4), none, DISK_MAY_TRIM));
  write_disk (SECTOR, SECTOR, 17, 0);
  CHECK_EQ (disk[1].size, cluster (1) - 4 * SECTOR);
  write_disk (cluster (1) - SECTOR, SECTOR, 18, DISK_FUA);
  CHECK_EQ (disk[1].size, cluster (1));
  for (i = 0; i < 2; ++i) {
    CHECK (disk_write (bare.writer, content, SECTOR, none, 0) == -1);
    CHECK_ERROR (ENOSPC, "data");
    CHECK_EQ (error_repeated (), i > 0);
  }
  compare ();
  memory_fail_no_more (&control[1]);
  write_disk (none.v, SECTOR, 19, 0);
  CHECK_EQ (disk[1].size, size);
  check_data_file ();
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
  const uint64_t entry = first_entry ();
  unsigned i;

  CHECK_OK (bare_close (&bare));
  for (i = 0; i < 4; ++i)
    put_be64 (disk[0].data + entry + i * 8, cluster (i) | QCOW2_ENTRY_COPIED);
  disk[1].size = SHORT_END;
  open_anew ();
  CHECK_OK (disk_trim (bare.writer, size, (struct guest_off) { 0 }, 0));
  control[1].holes = true;
}

/* After a flush it is the disk, although nothing had to be mapped; but for the
 * end of a hole if there is no space for that.
 */
static void
test_raw_flushed (void)
{
  bool flushed = false; /* the data file, once it was longer */
  size_t i;

  if (!form->raw || form->extended)
    return;
  make_short ();
  memory_fail_ever_after (&control[1], MEMORY_RESIZE, 1, ENOSPC);
  write_disk (cluster (1), SECTOR, 23, 0);
  CHECK_OK (writer_flush (bare.writer));
  CHECK_EQ (disk[1].size, SHORT_END);
  memory_fail_no_more (&control[1]);
  CHECK_OK (writer_flush (bare.writer));
  CHECK_EQ (disk[1].size, size);
  for (i = nr_events; i > 0 && event[i - 1].call.kind != MEMORY_RESIZE; --i)
    flushed |= event[i - 1].data && event[i - 1].call.kind == MEMORY_FLUSH;
  CHECK (i > 0 && flushed);
  check_data_file ();
}

/* To zero what is mapped costs nothing behind the end, and neither does a hole
 * before that: it is done even where there is no space (I13).
 */
static void
test_raw_short (void)
{
  uint64_t written;

  if (!form->raw || form->extended)
    return;
  make_short ();
  write_disk (cluster (1), cluster (1), 20, DISK_FUA);
  control[1].room = atomic_load (&disk[1].blocks);
  written = atomic_load (&control[1].written);
  zero_disk (0, size, DISK_MAY_TRIM);
  zero_disk (cluster (3) + SECTOR, cluster (4), DISK_MAY_TRIM);
  CHECK_EQ (atomic_load (&control[1].written), written);
  CHECK_EQ (disk[1].size, SHORT_END);
  control[1].room = 0;
}

/* What others put behind the end, where something is mapped, is the disk's: it
 * is told to be data at once, and zeroed by whoever zeroes the disk.
 */
static void
test_raw_appended (void)
{
  bool zero[CLUSTERS * 128];
  const uint64_t end = SHORT_END / SECTOR;

  if (!form->raw || form->extended)
    return;
  make_short ();
  memset (disk[1].data + SHORT_END, GARBAGE, SECTOR);
  disk[1].size = SHORT_END + SECTOR;
  memset (content + SHORT_END, GARBAGE, SECTOR);
  compare ();
  CHECK_OK (layer_extents (bare.disk, size, (struct guest_off) { 0 }, false,
                           note_zeros, zero));
  CHECK (zero[0] && zero[end - 1]);
  CHECK (!zero[end]);
  CHECK (zero[cluster (4) / SECTOR]);
  zero_disk (cluster (1), cluster (3), DISK_MAY_TRIM);
  CHECK_EQ (disk[1].data[SHORT_END], 0);
  compare ();
}

/* An entry that points elsewhere into the data file is damage: neither read nor
 * written.
 */
static void
test_elsewhere (void)
{
  const uint64_t entry = first_entry ();
  uint8_t buf[SECTOR];

  if (!form->data_file)
    return;
  CHECK_OK (bare_close (&bare));
  put_be64 (disk[0].data + entry, cluster (2) | QCOW2_ENTRY_COPIED);
  if (form->extended)
    put_be64 (disk[0].data + entry + 8, UINT32_MAX);
  open_image ();
  bare_write (&bare, &(struct writer_options) { 0 });
  CHECK (layer_read (bare.disk, buf, SECTOR, (struct guest_off) { 0 }) == -1);
  CHECK_ERROR (EIO, "not the guest's");
  CHECK (disk_write (bare.writer, buf, SECTOR, (struct guest_off) { 0 },
                     0) == -1);
  CHECK_ERROR (EIO, "not the guest's");
  CHECK_OK (bare_close (&bare));
  put_be64 (disk[0].data + entry, 0);
  if (form->extended)
    put_be64 (disk[0].data + entry + 8, 0);
  open_anew ();
}

/* A data file without space fails the request, and nothing else; one that can't
 * be flushed ends all writing (I10).
 */
static void
test_failures (void)
{
  const uint64_t at = cluster (4);

  if (!form->data_file)
    return;
  write_disk (0, cluster (1), 12, 0);
  CHECK_OK (writer_flush (bare.writer));
  memory_fail (&control[1], MEMORY_WRITE | MEMORY_ZERO, 1, ENOSPC);
  if (!form->raw) {
    CHECK (disk_write (bare.writer, content, SECTOR, (struct guest_off) { at },
                       0) == -1);
    CHECK_ERROR (ENOSPC, "data");
    compare ();
  }
  memory_fail_no_more (&control[1]);
  CHECK_OK (writer_flush (bare.writer));
  write_disk (at, SECTOR, 13, 0);
  memory_fail (&control[1], MEMORY_FLUSH, 1, EIO);
  CHECK (writer_flush (bare.writer) == -1);
  CHECK_ERROR (EIO, "data");
  memory_fail_no_more (&control[1]);
  CHECK (writer_flush (bare.writer) == -1);
  CHECK (disk_write (bare.writer, content, SECTOR, (struct guest_off) { at },
                     0) == -1);
  CHECK_ERROR (EIO, "until it is opened anew");
  CHECK (bare_close (&bare) == -1);
  open_anew ();
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
    const uint64_t sectors = size / SECTOR;
    const uint64_t first = random_below (&state, sectors);
    uint64_t nr = 1 + random_below (&state, 3 * cluster (1) / SECTOR);

    if (nr > sectors - first)
      nr = sectors - first;
    switch (random_below (&state, 8)) {
    case 0:
      zero_disk (first * SECTOR, nr * SECTOR,
                 form->garbage && random_below (&state, 2) ? DISK_MAY_TRIM : 0);
      break;
    case 1:
      CHECK_OK (writer_flush (bare.writer));
      break;
    case 2:
      compare ();
      break;
    default:
      write_disk (first * SECTOR, nr * SECTOR, i,
                  random_below (&state, 8) == 0 ? DISK_FUA : 0);
      break;
    }
  }
  check_doors ();
  check_data_file ();
}

/* Clusters that are stored compressed are among the tables. */
static void
test_compressed (void)
{
  size_t i;

  write_disk (cluster (3), cluster (4), 7, 0);
  compare ();
  for (i = 0; i < nr_events; ++i)
    CHECK (!event[i].data || event[i].call.kind == MEMORY_FLUSH);
  write_disk (cluster (9), SECTOR, 8, 0);
  CHECK (event[nr_events - 1].data);
  compare ();
}

/* They go past the door of data, and so are not enciphered: then none is written
 * (I15).
 */
static void
test_no_plaintext (void)
{
  const struct writer_options options = {
    .compress_level = form->compress_level,
  };
  struct header h = qcow2_file (bare.disk)->header;

  CHECK_OK (writer_check_header (bare.disk->tables, &h, &options));
  for (h.encryption = ENCRYPTION_AES; h.encryption <= ENCRYPTION_LUKS;
       ++h.encryption) {
    CHECK (writer_check_header (bare.disk->tables, &h, &options) == -1);
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
  const uint64_t entry = first_entry ();
  bool written[2] = { false, false }; /* and not durable */
  bool mapped = false;
  size_t i;

  write_disk (0, SECTOR, 9, 0);
  CHECK_OK (writer_flush (bare.writer));
  for (i = 0; i < nr_events; ++i) {
    const struct event *e = &event[i];

    if (e->call.kind == MEMORY_WRITE && !e->data && e->call.offset == entry) {
      mapped = true;
      CHECK (!written[0]);
      CHECK (!form->garbage || !written[1]);
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
  memset (base, BASE, sizeof base);
  for (f = 0; f < NR_FORMS; ++f) {
    start (&forms[f]);
    if (form->compress_level == 0)
      test_flush_order ();
    else {
      test_compressed ();
      test_no_plaintext ();
    }
    end ();
    start (&forms[f]);
    test_requests ();
    test_tail ();
    test_punches ();
    end ();
    start (&forms[f]);
    test_raw_tail ();
    test_raw_order ();
    test_raw_growth ();
    end ();
    start (&forms[f]);
    test_elsewhere ();
    test_raw_full ();
    end ();
    start (&forms[f]);
    test_raw_cut_off ();
    end ();
    start (&forms[f]);
    test_raw_flushed ();
    end ();
    start (&forms[f]);
    test_raw_short ();
    end ();
    start (&forms[f]);
    test_raw_appended ();
    end ();
    start (&forms[f]);
    test_random (f + 1);
    end ();
    if (!form->data_file)
      continue;
    start (&forms[f]);
    test_failures ();
    CHECK_OK (bare_close (&bare)); /* there are leaks */
    free (content);
    memory_disk_free (&disk[0]);
    memory_disk_free (&disk[1]);
  }
  return check_result ();
}
