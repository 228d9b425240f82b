/* SPDX-License-Identifier: BSD-3-Clause */

/* Each allocation of core/ fails in turn: what was called returns ENOMEM,
 * nothing crashes, and nothing is lost.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <unistd.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image-check.h"
#include "image.h"
#include "no-memory.h"
#include "rig.h"
#include "seconds.h"

static struct builder image, base;
static bool from_file;

static int
ignore_export (void *opaque, const char *name, const char *description)
{
  return 0;
}

static int
ignore_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  return 0;
}

static struct image *
open_it (void)
{
  const struct image_options options = {
    .chain = {
      .file = "test-no-memory.top",
      .follow = have_openat2 () ? FOLLOW_BENEATH : FOLLOW_ANY,
    },
    .cache_size = CACHE_MIN_BYTES,
  };
  struct storage *s;
  struct image *im;

  if (from_file) {
    memory_armed = true;
    im = image_open (&options);
  }
  else {
    s = build_storage (&image, NULL);
    memory_armed = true;
    im = image_open_storage (s, CACHE_MIN_BYTES);
  }
  memory_armed = false;
  return im;
}

static void
check_one_failure (const char *what, int r, unsigned *failed)
{
  memory_armed = false;
  if (r == -1) {
    if (error_errno () != ENOMEM)
      check_failed (__FILE__, __LINE__, "%s: allocation %u: errno %d: %s",
                    what, memory_fail_at, error_errno (), error_message ());
    CHECK_HAS (error_message (), "memory");
    ++*failed;
  }
  error_set (0, "none");
}

/* Returns true if all allocations went well. */
static bool
run (void)
{
  struct image *im;
  struct layer *disk;
  uint8_t buf[8192];
  unsigned failed = 0, i;

  memory_calls = 0;
  error_set (0, "none");
  im = open_it ();
  if (im == NULL) {
    check_one_failure ("open", -1, &failed);
    return false;
  }
  memory_armed = true;
  check_one_failure ("list", image_list (im, ignore_export, NULL), &failed);
  memory_armed = true;
  disk = image_open_disk (im, "");
  check_one_failure ("open disk", disk == NULL ? -1 : 0, &failed);
  if (disk == NULL)
    disk = image_open_disk (im, "");
  for (i = 0; i < 4; ++i) {
    memory_armed = true;
    check_one_failure ("read", layer_read (disk, buf, 100 << i,
                                           (struct guest_off) { i * 4096 }),
                       &failed);
    /* Memory that was short for a moment is no damage. */
    memory_armed = false;
    CHECK_OK (layer_read (disk, buf, 4096, (struct guest_off) { i * 4096 }));
  }
  memory_armed = true;
  check_one_failure ("extents", layer_extents
                     (disk, disk->size, (struct guest_off) { 0 }, false,
                      ignore_extent, NULL), &failed);
  image_close_disk (disk);
  image_close (im);
  CHECK (failed <= 1);
  return memory_calls < memory_fail_at;
}

static void
write_file (const char *name, const struct builder *b)
{
  FILE *f = fopen (name, "w");

  if (f == NULL || fwrite (b->data, 1, b->size, f) != b->size ||
      fclose (f) != 0)
    abort ();
}

static void
make (enum compression type)
{
  uint8_t plain[4096];
  unsigned i;
  uint64_t at;

  build_start (&image, 3, 12, false, type, 1 << 20);
  for (i = 0; i < 3; ++i) {
    build_pattern (plain, sizeof plain, i + 1);
    build_compressed (&image, i, plain, 10);
  }
  /* A stream that is longer than the cluster: for zlib alone. */
  if (type == COMPRESSION_DEFLATE) {
    uint8_t longer[8192], packed[BUILD_BOUND (sizeof longer)];
    const uint64_t place = build_l2_place (&image, 1);
    size_t size;

    build_pattern (longer, sizeof longer, 1);
    size = build_deflate (longer, sizeof longer, packed, -12, 6, true);
    at = build_bytes (&image, size);
    memcpy (image.data + at, packed, size);
    put_be64 (image.data + place, build_compressed_word (12, at, size));
  }
  put_be64 (image.data + 64, build_clusters (&image, 0));
  put_be32 (image.data + 60, 2);
  for (i = 0; i < 2; ++i) {
    uint8_t *p;

    at = build_bytes (&image, 48);
    p = image.data + at;
    put_be16 (p + 12, 1);
    put_be16 (p + 14, 4);
    memcpy (p + 40, i == 0 ? "1abcd" : "2efgh", 5);
  }
}

static void
name_backing (void)
{
  static const char name[] = "test-no-memory.base";
  uint8_t *p = image.data + 112;

  build_start (&base, 3, 12, false, COMPRESSION_DEFLATE, 1 << 20);
  put_be32 (p, QCOW2_EXT_BACKING_FORMAT);
  put_be32 (p + 4, 5);
  memcpy (p + 8, "qcow2", 5);
  put_be64 (image.data + 8, 1024);
  put_be32 (image.data + 16, strlen (name));
  memcpy (image.data + 1024, name, strlen (name));
  write_file ("test-no-memory.base", &base);
  write_file ("test-no-memory.top", &image);
}

static void
test (enum compression type, bool file)
{
  from_file = file;
  make (type);
  if (file)
    name_backing ();
  /* Of each kind others, with a sanitizer. */
  for (memory_fail_at = 1 + (type + file) % TEST_EACH (3); !run ();
       memory_fail_at += TEST_EACH (3))
    ;
  CHECK (memory_fail_at > 12);
  printf ("%u allocations\n", memory_calls);
  if (file) {
    remove ("test-no-memory.base");
    remove ("test-no-memory.top");
    build_free (&base);
  }
  build_free (&image);
}

/* ----------------------------------------------------------------- writing */

static struct rig rig;

/* Where this is done, which needs memory. */
enum what { WRITE, FUA, ZERO, ZERO_TRIM, TRIM, FLUSH };

struct step {
  enum what what;
  uint64_t offset, count;
};

/* In clusters of 4 KiB: 0 to 9 data, 10 to 13 compressed, beyond that nothing;
 * over a backing file, with a snapshot.
 */
static const struct step all_kinds[] = {
  { WRITE, 100, 5000 },
  { WRITE, 100 * 4096, 3 * 4096 },
  { WRITE, 10 * 4096 + 5, 6000 },
  { FLUSH, 0, 0 },
  { ZERO, 7 * 4096, 2 * 4096 },
  { ZERO, 12 * 4096 + 5, 4096 },
  { FUA, 110 * 4096 + 9, 100 },
  { TRIM, 100 * 4096, 4096 },
  { FLUSH, 0, 0 },
  { FUA, 110 * 4096 + 9, 100 },
  { ZERO_TRIM, 3 * 4096, 200 * 4096 },
  { FLUSH, 0, 0 },
  { WRITE, 50 * 4096, 120 * 4096 },
  { FLUSH, 0, 0 },
};

/* So much in clusters of 512 bytes that the refcount table has to grow. */
static const struct step growth[] = {
  { WRITE, 1000, 900000 },
  { WRITE, 901000, 900000 },
  { FLUSH, 0, 0 },
  { WRITE, 1801000, 900000 },
  { FLUSH, 0, 0 },
  { TRIM, 0, 2000000 },
  { FLUSH, 0, 0 },
  { WRITE, 100000, 90000 },
};

/* The function is armed, but not what the test needs for itself. */
static int
do_step (const struct step *s)
{
  const struct guest_off at = { s->offset };
  uint8_t *buf = calloc (1, s->count + 1);
  int r = -1;

  if (s->what == WRITE || s->what == FUA)
    build_pattern (buf, s->count, s->offset + s->count);
  memory_armed = true;
  switch (s->what) {
  case WRITE:
    r = image_write (rig.im, buf, s->count, at, 0);
    break;
  case FUA:
    r = image_write (rig.im, buf, s->count, at, IMAGE_FUA);
    break;
  case ZERO:
    r = image_zero (rig.im, s->count, at, 0);
    break;
  case ZERO_TRIM:
    r = image_zero (rig.im, s->count, at, IMAGE_MAY_TRIM);
    break;
  case TRIM:
    r = image_trim (rig.im, s->count, at, 0);
    break;
  case FLUSH:
    r = image_flush (rig.im);
    break;
  }
  memory_armed = false;
  if (r == 0 && s->what == TRIM) {
    const uint64_t from = (s->offset + rig.granule - 1) & -rig.granule;
    const uint64_t to = (s->offset + s->count) & -rig.granule;

    memset (rig.content + from, 0, to - from);
  }
  else if (r == 0)
    memcpy (rig.content + s->offset, buf, s->count);
  free (buf);
  return r;
}

/* The same as rig_open, with a retry. */
static void
make_writable (unsigned *failed)
{
  const struct writer_options options = { 0 };
  int r;

  memory_armed = true;
  r = image_make_writable (rig.im, &options);
  check_one_failure ("make writable", r, failed);
  CHECK_OK (image_make_writable (rig.im, &options));
}

/* Returns true if all allocations went well. */
static bool
run_writing (const struct builder *b, const uint8_t *under,
             const struct step *steps, unsigned nr)
{
  unsigned failed = 0, i;
  struct storage *s[2];
  uint64_t size;

  memory_calls = 0;
  error_set (0, "none");
  rig_init (&rig, "no memory", b);
  s[0] = memory_disk_open (&rig.disk, "test", NULL);
  if (under != NULL)
    s[1] = memory_storage_new ("base", under, rig.size, NULL);
  rig.im = image_open_storages (s, under != NULL ? 2 : 1, CACHE_MIN_BYTES);
  make_writable (&failed);
  rig.live = image_open_disk (rig.im, "");
  rig.content = malloc (rig.size);
  CHECK_OK (layer_read (rig.live, rig.content, rig.size,
                        (struct guest_off) { 0 }));
  rig.nr_snapshots = 0; /* they are the checker's, here */
  for (i = 0; i < nr; ++i) {
    const int r = do_step (&steps[i]);

    check_one_failure ("a request", r, &failed);
    if (r == -1)
      CHECK_OK (do_step (&steps[i])); /* memory was short for a moment */
  }
  rig_compare (&rig);
  image_close_disk (rig.live);
  memory_armed = true;
  check_one_failure ("close", image_close (rig.im), &failed);
  CHECK (failed <= 1);
  size = atomic_load (&rig.disk.size);
  if (image_check ("no memory", rig.disk.data, size).leaks > 0)
    CHECK (memory_calls >= memory_fail_at);
  rig_free (&rig);
  return memory_calls < memory_fail_at;
}

static void
test_writing (const struct builder *b, const uint8_t *under,
              const struct step *steps, unsigned nr)
{
  for (memory_fail_at = 1 + nr % TEST_EACH (5);
       !run_writing (b, under, steps, nr); memory_fail_at += TEST_EACH (5)) {
    if (check_any_failed ()) {
      fprintf (stderr, "allocation %u\n", memory_fail_at);
      break;
    }
  }
  printf ("%u allocations for writing\n", memory_calls);
  CHECK (memory_fail_at > 10);
}

static void
test_all_kinds (void)
{
  static uint8_t under[300 * 4096];
  uint8_t plain[4096];
  uint64_t state = 1, i;
  struct builder b;

  build_pattern (under, sizeof under, 5);
  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, sizeof under);
  for (i = 0; i < 10; ++i)
    build_entry (&b, i, build_data (&b, i), 0);
  for (; i < 14; ++i) {
    build_pattern (plain, sizeof plain, i);
    build_compressed (&b, i, plain, 10);
  }
  build_backing (&b, "raw");
  build_snapshot (&b, 0, &state);
  build_finish (&b);
  test_writing (&b, under, all_kinds, sizeof all_kinds / sizeof all_kinds[0]);
  build_free (&b);
}

static void
test_growth (void)
{
  struct builder b;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 3 << 20);
  build_order (&b, 6);
  build_finish (&b);
  test_writing (&b, NULL, growth, sizeof growth / sizeof growth[0]);
  build_free (&b);
}

int
main (void)
{
  check_time_limit (100);
  test (COMPRESSION_DEFLATE, false);
  test (COMPRESSION_ZSTD, false);
  test (COMPRESSION_DEFLATE, true);
  test_all_kinds ();
  test_growth ();
  return check_result ();
}
