/* SPDX-License-Identifier: BSD-3-Clause */

/* The hint that a writer has not ended: when it is set and cleared, what that
 * costs, and what is done by it.
 */

#include <config.h>

#include <sched.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "image.h"
#include "manage/bitmap-change.h"
#include "manage/create.h"
#include "memory-storage.h"
#include "qcow2/write/writer.h"

static struct memory_disk disk;
static struct memory_control control;
static struct header header;
static struct image *im;

static void
make (unsigned version, uint64_t cluster_size)
{
  struct create_options o = CREATE_DEFAULTS;
  struct storage *s;

  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  s = memory_disk_open (&disk, "test", &control);
  o.version = version;
  o.cluster_size = cluster_size;
  o.size = 10 << 20;
  CHECK_OK (create_image (s, &o));
  storage_close (s);
}

static void
decode (void)
{
  const uint64_t cluster_size = UINT64_C (1) << get_be32 (disk.data + 20);

  CHECK_OK (header_decode ("test", disk.data, cluster_size,
                           atomic_load (&disk.size), &header));
}

static bool
is_set (void)
{
  decode ();
  CHECK (!header.has_unknown);
  return header.hint_set;
}

static void
open_writable (void)
{
  const struct writer_options options = { 0 };

  im = image_open_storage (memory_disk_open (&disk, "test", &control),
                           CACHE_MIN_BYTES);
  CHECK (im != NULL);
  CHECK_OK (image_make_writable (im, &options));
}

static void
write_some (uint64_t offset)
{
  CHECK_OK (image_write (im, "x", 1, (struct guest_off) { offset }, 0));
}

/* Set before anything else is written, without a flush of its own; cleared at
 * the end, by one.
 */
static void
test_toggled (unsigned version)
{
  struct memory_log log = MEMORY_LOG_INIT;
  size_t last;

  make (version, 65536);
  CHECK (!is_set ());
  CHECK_EQ (header.hint.v / 512, (header.hint.v + 1) / 512);
  open_writable ();
  image_free_leaks (im);
  CHECK (!is_set ());
  control.log = &log;
  write_some (0);
  CHECK (is_set ());
  CHECK_EQ (log.call[0].kind, MEMORY_WRITE);
  CHECK_EQ (log.call[0].offset, header.hint.v);
  CHECK_EQ (log.call[0].count, 1);
  CHECK_OK (image_flush (im));
  memory_log_clear (&log);
  write_some (1 << 20);
  CHECK_OK (image_flush (im));
  CHECK (is_set ());
  memory_log_clear (&log);
  CHECK_OK (image_close (im));
  CHECK (!is_set ());
  last = log.nr - 1;
  CHECK_EQ (log.call[last].kind, MEMORY_FLUSH);
  CHECK_EQ (log.call[last - 1].kind, MEMORY_WRITE);
  CHECK_EQ (log.call[last - 1].offset, header.hint.v);
  CHECK (log.call[last - 2].kind == MEMORY_FLUSH ||
         log.call[last - 2].kind == MEMORY_RESIZE);
  memory_log_free (&log);
  memory_disk_free (&disk);
}

/* It stays while it is not known whether leaks are left. */
static void
test_stays (bool search)
{
  make (3, 65536);
  decode ();
  disk.data[header.hint.v] = 255;
  CHECK (is_set ());
  open_writable ();
  write_some (0);
  if (search) {
    image_free_leaks (im);
    while (!image_leaks_are_done (im))
      sched_yield ();
  }
  CHECK_OK (image_close (im));
  CHECK_EQ (is_set (), !search);
  memory_disk_free (&disk);
}

/* Something could not be given up for want of memory. */
static bool lose;

extern int __real_writer_close (struct writer *w);
extern int __wrap_writer_close (struct writer *w);

int
__wrap_writer_close (struct writer *w)
{
  if (lose)
    writeback_lost (&w->writeback);
  return __real_writer_close (w);
}

static void
test_lost (void)
{
  make (3, 65536);
  open_writable ();
  write_some (0);
  lose = true;
  CHECK_OK (image_close (im));
  lose = false;
  CHECK (is_set ());
  memory_disk_free (&disk);
}

/* Nobody looks for leaks where there are none. */
static void
test_spared (void)
{
  uint64_t reads;

  make (3, 65536);
  open_writable ();
  reads = atomic_load (&control.preads);
  image_free_leaks (im);
  CHECK (image_leaks_are_done (im));
  CHECK_EQ (atomic_load (&control.preads), reads);
  CHECK_OK (image_close (im));
  memory_disk_free (&disk);
}

/* Where it has no room there is none. */
static void
test_no_room (void)
{
  make (3, 512);
  CHECK (!is_set ());
  CHECK_EQ (header.hint.v, 0);
  open_writable ();
  write_some (0);
  CHECK_OK (image_close (im));
  CHECK (!is_set ());
  memory_disk_free (&disk);
}

static void
change_bitmap (enum bitmap_action_kind kind)
{
  const struct bitmap_action action = { .kind = kind };
  const struct bitmap_change c = { .name = "b", .action = &action, .nr = 1 };
  struct storage *s = memory_disk_open (&disk, "test", &control);

  CHECK (s != NULL);
  CHECK_OK (bitmap_change (s, &c));
  storage_close (s);
}

/* Put it behind two names of features, in the first sector: names have to make
 * room for other extensions.
 */
static void
put_behind_names (void)
{
  const size_t bytes = 2 * QCOW2_FEATURE_ENTRY_SIZE;
  uint8_t *p;

  decode ();
  p = disk.data + header.header_length;
  CHECK_EQ (get_be32 (p), QCOW2_EXT_FEATURE_NAMES);
  CHECK (get_be32 (p + 4) > bytes);
  put_be32 (p + 4, bytes);
  p += 8 + bytes;
  memset (p, 0, disk.data + 1024 - p);
  put_be32 (p, QCOW2_EXT_WRITER);
  put_be32 (p + 4, QCOW2_EXT_WRITER_BYTES);
  CHECK (!is_set ());
  CHECK_EQ (header.hint.v, (uint64_t) (p + 8 - disk.data));
}

/* An offline change that moves it in the header ends it where it then is: not
 * where the extension of bitmaps is by now.
 */
static void
test_moved (void)
{
  struct host_off before;

  make (3, 65536);
  put_behind_names ();
  before = header.hint;
  change_bitmap (BITMAP_ADD);
  CHECK (!is_set ());
  CHECK (header.hint.v != 0);
  CHECK (header.hint.v != before.v);
  CHECK_EQ (header.nr_bitmaps, 1);
  change_bitmap (BITMAP_REMOVE);
  CHECK (!is_set ());
  CHECK_EQ (header.nr_bitmaps, 0);
  memory_disk_free (&disk);
}

int
main (void)
{
  check_time_limit (60);
  test_toggled (3);
  test_toggled (2);
  test_stays (false);
  test_stays (true);
  test_lost ();
  test_spared ();
  test_no_room ();
  test_moved ();
  return check_result ();
}
