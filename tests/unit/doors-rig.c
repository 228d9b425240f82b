/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "doors-rig.h"
#include "image-check.h"
#include "must-have.h"
#include "qcow2/write/write.h"
#include "qcow2/write/zero.h"

struct doors doors;
static uint8_t base[4 << 20]; /* of the backing file */

static void
note_call (void *opaque, const struct memory_call *call)
{
  if (doors.others_append && opaque == &doors.control[1] &&
      call->kind == MEMORY_RESIZE)
    doors.disk[1].data[doors.size / 2] = GARBAGE;
  if (!(call->kind & MEMORY_CHANGES) || doors.nr_events == MAX_EVENTS)
    return;
  doors.event[doors.nr_events].data = opaque == &doors.control[1];
  doors.event[doors.nr_events++].call = *call;
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

void
doors_check (void)
{
  const uint64_t tables_size = atomic_load (&doors.disk[0].size);
  const uint64_t data_size = atomic_load (&doors.disk[1].size);
  uint64_t at;

  if (doors.form->compress_level == 0)
    CHECK (memmem (doors.disk[0].data, tables_size, "GUESTDAT", 8) == NULL);
  for (at = 0; at + SECTOR <= data_size; at += SECTOR) {
    const uint8_t *p = doors.disk[1].data + at;

    if (memcmp (p, "GUESTDAT", 8) != 0 && !is_all (p, 0) &&
        !(doors.form->garbage && is_all (p, GARBAGE)) &&
        !(doors.form->backing && is_all (p, BASE))) {
      check_failed (__FILE__, __LINE__, "%s: data 0x%" PRIx64 " is not the "
                    "guest's", doors.form->what, at);
      return;
    }
  }
}

uint64_t
doors_data_limit (void)
{
  const uint64_t granule =
    UINT64_C (1) << qcow2_map (doors.bare.disk)->subcluster_bits;

  if (doors.form->fixed)
    return doors.size + SECTOR;
  if (doors.form->garbage)
    return DATA_BYTES;
  if (doors.form->enciphered)
    return (doors.size + granule - 1) & -granule;
  return doors.size;
}

void
doors_check_data_file (void)
{
  const uint64_t data_size = atomic_load (&doors.disk[1].size);
  struct guest_off at = { 0 };
  struct run run;

  if (!doors.form->data_file)
    return;
  CHECK (data_size <= doors_data_limit ());
  if (doors.form->raw && data_size > 0)
    CHECK (data_size == doors.size &&
           memcmp (doors.disk[1].data, doors.content, doors.size) == 0);
  for (; at.v < doors.size; at.v += run.length) {
    CHECK_OK (map_lookup (qcow2_map (doors.bare.disk), at,
                          doors.size - at.v, &run));
    if (run.kind != RUN_DATA)
      continue;
    CHECK_EQ (run.host.v, at.v);
    if (at.v + run.length <= data_size)
      CHECK (memcmp (doors.disk[1].data + at.v, doors.content + at.v,
                     run.length) == 0);
  }
}

void
doors_compare (void)
{
  uint8_t *buf = must_have (malloc (doors.size));
  uint64_t i = 0;

  memset (buf, 0xdd, doors.size);
  CHECK_OK (layer_read (doors.bare.disk, buf, doors.size,
                        (struct guest_off) { 0 }));
  if (memcmp (buf, doors.content, doors.size) != 0) {
    while (buf[i] == doors.content[i])
      i++;
    check_failed (__FILE__, __LINE__, "%s: byte 0x%" PRIx64 " is 0x%02x, not "
                  "0x%02x", doors.form->what, i, buf[i], doors.content[i]);
  }
  free (buf);
}

/* ----------------------------------------------------------------- an image */

void
doors_open (void)
{
  struct storage *data = memory_disk_open (&doors.disk[1], "data",
                                           &doors.control[1]);

  data->holes_not_zero = doors.form->enciphered ||
    (doors.form->garbage && !doors.form->data_file);
  data->fixed_size = doors.form->fixed;
  bare_open (&doors.bare,
             memory_disk_open (&doors.disk[0], "tables", &doors.control[0]),
             doors.form->backing
             ? memory_storage_new ("base", base, sizeof base, NULL) : NULL,
             data);
}

static void
init_disks (void)
{
  uint8_t *garbage = must_have (malloc (DATA_BYTES));
  struct builder b;
  unsigned i;

  build_start (&b, doors.form->version, doors.form->bits, doors.form->extended,
               COMPRESSION_DEFLATE,
               (CLUSTERS << doors.form->bits) - 3 * SECTOR);
  build_l2_place (&b, 0);
  if (doors.form->backing)
    build_backing (&b, "raw");
  build_finish (&b);
  if (doors.form->data_file)
    put_be64 (b.data + 72, get_be64 (b.data + 72) | QCOW2_INCOMPAT_DATA_FILE);
  if (doors.form->raw)
    put_be64 (b.data + 88, QCOW2_AUTOCLEAR_RAW_DATA_FILE);
  doors.size = b.disk_size;
  memory_disk_init (&doors.disk[0], b.data, b.size);
  build_free (&b);
  memset (garbage, doors.form->garbage ? GARBAGE : 0, DATA_BYTES);
  memory_disk_init (&doors.disk[1], garbage,
                    doors.form->fixed ? doors.size + SECTOR
                    : doors.form->garbage ? DATA_BYTES
                    : doors.form->raw && doors.form->extended ? doors.size : 0);
  free (garbage);
  for (i = 0; i < 2; ++i)
    doors.control[i] = (struct memory_control) {
      .hook = note_call, .opaque = &doors.control[i],
    };
  if (doors.form->fixed)
    doors.control[1].limit = doors.size + SECTOR;
}

void
doors_start (const struct form *f)
{
  const struct writer_options options = {
    .compress_level = f->compress_level,
  };

  doors.form = f;
  if (base[0] != BASE)
    memset (base, BASE, sizeof base);
  init_disks ();
  doors_open ();
  doors.content = must_have (malloc (doors.size));
  CHECK_OK (layer_read (doors.bare.disk, doors.content, doors.size,
                        (struct guest_off) { 0 }));
  bare_write (&doors.bare, &options);
  doors.nr_events = 0;
}

void
doors_end (void)
{
  unsigned i;

  doors_compare ();
  CHECK_OK (bare_close (&doors.bare));
  image_check_clean (doors.form->what, doors.disk[0].data,
                     atomic_load (&doors.disk[0].size));
  doors_check ();
  doors_open ();
  doors_compare ();
  CHECK_OK (bare_close (&doors.bare));
  free (doors.content);
  for (i = 0; i < 2; ++i)
    memory_disk_free (&doors.disk[i]);
}

/* ----------------------------------------------------------------- requests */

void
doors_write (uint64_t offset, uint64_t count, uint64_t seed, unsigned flags)
{
  uint64_t at;

  for (at = offset; at < offset + count; at += SECTOR)
    fill_sector (doors.content + at, seed);
  CHECK_OK (disk_write (doors.bare.writer, doors.content + offset, count,
                        (struct guest_off) { offset }, flags));
}

void
doors_zero (uint64_t offset, uint64_t count, unsigned flags)
{
  memset (doors.content + offset, 0, count);
  CHECK_OK (disk_zero (doors.bare.writer, count, (struct guest_off) { offset },
                       flags));
}

uint64_t
doors_first_entry (void)
{
  struct map_l1 l1;

  CHECK_OK (map_l1_entry (qcow2_map (doors.bare.disk), (struct guest_off) { 0 },
                          &l1));
  return l1.table.v;
}

void
doors_open_again (void)
{
  doors_open ();
  CHECK_OK (layer_read (doors.bare.disk, doors.content, doors.size,
                        (struct guest_off) { 0 }));
  bare_write (&doors.bare, &(struct writer_options) { 0 });
}
