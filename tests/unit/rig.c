/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "must-have.h"
#include "random.h"
#include "rig.h"

void
rig_init (struct rig *r, const char *what, const struct builder *image)
{
  memset (r, 0, sizeof *r);
  r->what = what;
  r->cache_size = CACHE_MIN_BYTES;
  memory_disk_init (&r->disk, image->data, image->size);
  r->size = image->disk_size / 512 * 512;
  r->granule = image->cluster_size >> (image->extended ? 5 : 0);
  r->nr_snapshots = image->nr_snapshots;
}

void
rig_set_base (struct rig *r, const uint8_t *bytes, uint64_t size, bool raw)
{
  r->base = bytes;
  r->base_size = size;
  r->raw_base = raw;
}

static uint8_t *
copy_of (const uint8_t *bytes, uint64_t size)
{
  uint8_t *p = must_have (malloc (size + 1));

  memcpy (p, bytes, size);
  return p;
}

void
rig_init_model (struct rig *r, const char *what, const struct model *m)
{
  unsigned i;

  rig_init (r, what, &m->image);
  r->content = copy_of (m->content, r->size);
  for (i = 0; i < r->nr_snapshots; ++i)
    r->snapshot[i] = copy_of (m->snapshot[i], r->size);
  if (m->base != NULL)
    rig_set_base (r, m->base, m->base_size, true);
}

/* Read all of a disk. */
static void
read_all (const struct rig *r, const struct layer *disk, uint8_t *buf)
{
  memset (buf, 0xdd, r->size);
  if (r->size > 0)
    CHECK_OK (layer_read (disk, buf, r->size, (struct guest_off) { 0 }));
}

static uint8_t *
content_of (const struct rig *r, const struct layer *disk)
{
  uint8_t *buf = must_have (malloc (r->size + 1));

  read_all (r, disk, buf);
  return buf;
}

static struct layer *
open_snapshot (const struct rig *r, unsigned i)
{
  char name[32];
  struct layer *disk;

  snprintf (name, sizeof name, "snapshot/%c", 'a' + (int) i);
  disk = image_open_disk (r->im, name);
  if (disk == NULL)
    check_failed (__FILE__, __LINE__, "%s: %s: %s", r->what, name,
                  error_message ());
  return disk;
}

static void
read_contents (struct rig *r)
{
  unsigned i;

  r->content = content_of (r, r->live);
  for (i = 0; i < r->nr_snapshots; ++i) {
    struct layer *disk = open_snapshot (r, i);

    r->snapshot[i] = content_of (r, disk);
    image_close_disk (disk);
  }
}

void
rig_open (struct rig *r)
{
  struct storage *s[2];

  s[0] = memory_disk_open (&r->disk, "test", &r->control);
  if (r->base != NULL)
    s[1] = memory_storage_new ("base", r->base, r->base_size,
                               &r->base_control);
  r->im = image_open_storages (s, r->base != NULL ? 2 : 1, r->cache_size);
  if (r->im == NULL) {
    fprintf (stderr, "%s: %s\n", r->what, error_message ());
    abort ();
  }
  if (image_make_writable (r->im, &r->options) == -1) {
    fprintf (stderr, "%s: %s\n", r->what, error_message ());
    abort ();
  }
  r->live = image_open_disk (r->im, "");
  if (r->content == NULL)
    read_contents (r);
}

int
rig_close_only (struct rig *r)
{
  int ret;

  image_close_disk (r->live);
  ret = image_close (r->im);
  r->live = NULL;
  r->im = NULL;
  return ret;
}

/* With TEST_DUMP=DIRECTORY in the environment each image is kept there, so
 * that others can judge it as well.
 */
static void
dump (const struct rig *r)
{
  static unsigned nr;
  const char *dir = getenv ("TEST_DUMP");
  char path[4096];
  FILE *f;

  if (dir == NULL)
    return;
  snprintf (path, sizeof path, "%s/%06u.qcow2", dir, nr++);
  f = fopen (path, "w");
  if (f == NULL)
    abort ();
  fwrite (r->disk.data, 1, atomic_load (&r->disk.size), f);
  fclose (f);
}

void
rig_close (struct rig *r)
{
  const int ret = rig_close_only (r);

  if (ret == -1)
    check_failed (__FILE__, __LINE__, "%s: closing: %s", r->what,
                  error_message ());
  image_check_clean (r->what, r->disk.data, atomic_load (&r->disk.size));
  dump (r);
}

void
rig_free (struct rig *r)
{
  unsigned i;

  memory_disk_free (&r->disk);
  free (r->content);
  free (r->scratch);
  for (i = 0; i < r->nr_snapshots; ++i)
    free (r->snapshot[i]);
}

/* ----------------------------------------------------------------- requests */

/* Contents in pieces of some KiB, of all kinds. */
static void
fill_mixed (uint8_t *buf, uint64_t count, uint64_t seed)
{
  uint64_t state = seed, n;

  for (; count > 0; buf += n, count -= n) {
    n = 1 + random_below (&state, UINT64_C (512) << random_below (&state, 9));
    if (n > count)
      n = count;
    switch (random_below (&state, 4)) {
    case 0:
      memset (buf, 0, n);
      break;
    case 1:
      random_fill (&state, buf, n);
      break;
    default:
      build_pattern (buf, n, random_next (&state));
      break;
    }
  }
}

int
rig_try_write (struct rig *r, uint64_t offset, uint64_t count, uint64_t seed,
               unsigned flags)
{
  uint8_t *buf = must_have (malloc (count));
  int ret;

  if (r->mixed)
    fill_mixed (buf, count, seed);
  else
    build_pattern (buf, count, seed);
  ret = image_write (r->im, buf, count, (struct guest_off) { offset }, flags);
  if (ret == 0)
    memcpy (r->content + offset, buf, count);
  free (buf);
  return ret;
}

int
rig_try_zero (struct rig *r, uint64_t offset, uint64_t count, unsigned flags)
{
  const int ret = image_zero (r->im, count, (struct guest_off) { offset },
                              flags);

  if (ret == 0)
    memset (r->content + offset, 0, count);
  return ret;
}

/* Whether a granule that is trimmed within this range may stay as it was,
 * since zeros would have to be written: in version 2 over the backing file,
 * and in part of a cluster, which may be compressed.
 */
static bool
may_stay (const struct rig *r, uint64_t granule, uint64_t from, uint64_t to)
{
  const struct map *m = qcow2_map (r->live);
  const uint64_t cluster = granule & -m->cluster_size;

  return (m->format.version == 2 && r->base != NULL &&
          granule < r->base_size) ||
    cluster < from ||
    (cluster + m->cluster_size > to && to != r->size);
}

static bool
has_stayed (const struct rig *r, uint64_t offset, uint64_t count)
{
  uint8_t *buf = must_have (malloc (count));
  bool same;

  CHECK_OK (layer_read (r->live, buf, count, (struct guest_off) { offset }));
  same = memcmp (buf, r->content + offset, count) == 0;
  free (buf);
  return same;
}

/* Whole granules alone; the last one ends with the disk. */
int
rig_try_trim (struct rig *r, uint64_t offset, uint64_t count, unsigned flags)
{
  const uint64_t from = (offset + r->granule - 1) & -r->granule;
  uint64_t to = (offset + count) & -r->granule, at, n;
  const int ret = image_trim (r->im, count, (struct guest_off) { offset },
                              flags);

  if (offset + count == r->size)
    to = r->size;
  for (at = from; ret == 0 && at < to; at += n) {
    n = to - at < r->granule ? to - at : r->granule;
    if (!may_stay (r, at, from, to) || !has_stayed (r, at, n))
      memset (r->content + at, 0, n);
  }
  return ret;
}

static void
expect (const struct rig *r, const char *request, uint64_t offset,
        uint64_t count, int ret)
{
  if (ret == -1)
    check_failed (__FILE__, __LINE__, "%s: %s of 0x%" PRIx64 " bytes at 0x%"
                  PRIx64 ": %s", r->what, request, count, offset,
                  error_message ());
}

void
rig_write (struct rig *r, uint64_t offset, uint64_t count, uint64_t seed)
{
  expect (r, "write", offset, count, rig_try_write (r, offset, count, seed,
                                                    0));
}

void
rig_zero (struct rig *r, uint64_t offset, uint64_t count, unsigned flags)
{
  expect (r, "zero", offset, count, rig_try_zero (r, offset, count, flags));
}

void
rig_trim (struct rig *r, uint64_t offset, uint64_t count)
{
  expect (r, "trim", offset, count, rig_try_trim (r, offset, count, 0));
}

void
rig_flush (struct rig *r)
{
  expect (r, "flush", 0, 0, image_flush (r->im));
}

/* --------------------------------------------------------------- comparing */

static void
differ (const struct rig *r, const char *disk, const uint8_t *is,
        const uint8_t *should, uint64_t from, uint64_t count)
{
  uint64_t i = 0;

  if (memcmp (is, should, count) == 0)
    return;
  while (is[i] == should[i])
    i++;
  check_failed (__FILE__, __LINE__, "%s: %s: byte 0x%" PRIx64 " is 0x%02x, "
                "not 0x%02x", r->what, disk, from + i, is[i], should[i]);
}

void
rig_compare_range (struct rig *r, uint64_t offset, uint64_t count)
{
  uint8_t *buf = must_have (malloc (count + 1));

  memset (buf, 0xdd, count);
  expect (r, "read", offset, count,
          layer_read (r->live, buf, count, (struct guest_off) { offset }));
  differ (r, "the disk", buf, r->content + offset, offset, count);
  free (buf);
}

/* The buffer is kept: to have memory from the system, again and again, takes
 * longer than to read it.
 */
static void
compare_disk (struct rig *r, const char *what, const struct layer *disk,
              const uint8_t *should)
{
  if (r->scratch == NULL)
    r->scratch = must_have (malloc (r->size + 1));
  read_all (r, disk, r->scratch);
  differ (r, what, r->scratch, should, 0, r->size);
}

void
rig_compare (struct rig *r)
{
  unsigned i;

  compare_disk (r, "the disk", r->live, r->content);
  for (i = 0; i < r->nr_snapshots; ++i) {
    struct layer *disk = open_snapshot (r, i);

    compare_disk (r, "a snapshot", disk, r->snapshot[i]);
    image_close_disk (disk);
  }
}

static struct run
find_run (struct rig *r, uint64_t offset)
{
  struct run run = { .kind = RUN_DAMAGED };

  CHECK_OK (map_lookup (qcow2_map (r->live), (struct guest_off) { offset }, 1,
                        &run));
  return run;
}

enum run_kind
rig_kind (struct rig *r, uint64_t offset)
{
  return find_run (r, offset).kind;
}

uint64_t
rig_host (struct rig *r, uint64_t offset)
{
  return find_run (r, offset).host.v;
}

uint64_t
rig_refcount (struct rig *r, uint64_t host)
{
  const uint64_t size = atomic_load (&r->disk.size);

  return image_refcount (r->disk.data, size, host /
                         (UINT64_C (1) << get_be32 (r->disk.data + 20)));
}
