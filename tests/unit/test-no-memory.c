/* SPDX-License-Identifier: BSD-3-Clause */

/* Each allocation of core/ fails in turn: what was called returns ENOMEM,
 * nothing crashes, and nothing is lost.  The linker puts the functions
 * below in the place of the allocators (--wrap).
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

#include <zlib.h>
#include <zstd.h>

#include "build.h"
#include "check.h"
#include "extents.h"
#include "image.h"
#include "read.h"

/* The allocation that fails, counted from 1; 0: none. */
static unsigned fail_at;
static unsigned nr_allocations;
static bool armed;

static bool
must_fail (void)
{
  if (!armed || ++nr_allocations != fail_at)
    return false;
  errno = ENOMEM;
  return true;
}

#define WRAP(type, name, parameters, arguments, failed) \
  extern type __real_##name parameters;                 \
  extern type __wrap_##name parameters;                 \
  type                                                  \
  __wrap_##name parameters                              \
  {                                                     \
    if (must_fail ())                                   \
      return failed;                                    \
    return __real_##name arguments;                     \
  }

struct libdeflate_decompressor;

WRAP (void *, malloc, (size_t size), (size), NULL)
WRAP (void *, calloc, (size_t nr, size_t size), (nr, size), NULL)
WRAP (void *, realloc, (void *p, size_t size), (p, size), NULL)
WRAP (char *, strdup, (const char *s), (s), NULL)
WRAP (char *, strndup, (const char *s, size_t n), (s, n), NULL)
WRAP (char *, realpath, (const char *s, char *to), (s, to), NULL)
WRAP (char *, __realpath_chk, (const char *s, char *to, size_t n),
      (s, to, n), NULL)
WRAP (void *, mmap, (void *a, size_t len, int prot, int flags, int fd,
                     off_t offset),
      (a, len, prot, flags, fd, offset), MAP_FAILED)
WRAP (ZSTD_DCtx *, ZSTD_createDCtx, (void), (), NULL)
WRAP (int, inflateInit2_, (z_streamp z, int bits, const char *version,
                           int size),
      (z, bits, version, size), Z_MEM_ERROR)
#ifdef HAVE_LIBDEFLATE
WRAP (struct libdeflate_decompressor *, libdeflate_alloc_decompressor,
      (void), (), NULL)
#endif

extern int __wrap_asprintf (char **to, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 2, 3)));
extern int __wrap___asprintf_chk (char **to, int flag, const char *fmt, ...)
  __attribute__ ((__format__ (__printf__, 3, 4)));

int
__wrap_asprintf (char **to, const char *fmt, ...)
{
  va_list ap;
  int r;

  if (must_fail ())
    return -1;
  va_start (ap, fmt);
  r = vasprintf (to, fmt, ap);
  va_end (ap);
  return r;
}

int
__wrap___asprintf_chk (char **to, int flag, const char *fmt, ...)
{
  va_list ap;
  int r;

  if (must_fail ())
    return -1;
  va_start (ap, fmt);
  r = vasprintf (to, fmt, ap);
  va_end (ap);
  return r;
}

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
    armed = true;
    im = image_open (&options);
  }
  else {
    s = build_storage (&image, NULL);
    armed = true;
    im = image_open_storage (s, CACHE_MIN_BYTES);
  }
  armed = false;
  return im;
}

static void
check_one_failure (const char *what, int r, unsigned *failed)
{
  armed = false;
  if (r == -1) {
    if (error_errno () != ENOMEM)
      check_failed (__FILE__, __LINE__, "%s: allocation %u: errno %d: %s",
                    what, fail_at, error_errno (), error_message ());
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

  nr_allocations = 0;
  error_set (0, "none");
  im = open_it ();
  if (im == NULL) {
    check_one_failure ("open", -1, &failed);
    return false;
  }
  armed = true;
  check_one_failure ("list", image_list (im, ignore_export, NULL), &failed);
  armed = true;
  disk = image_open_disk (im, "");
  check_one_failure ("open disk", disk == NULL ? -1 : 0, &failed);
  if (disk == NULL)
    disk = image_open_disk (im, "");
  for (i = 0; i < 4; ++i) {
    armed = true;
    check_one_failure ("read", layer_read (disk, buf, 100 << i,
                                           (struct guest_off) { i * 4096 }),
                       &failed);
    /* Memory that was short for a moment is no damage. */
    armed = false;
    CHECK_OK (layer_read (disk, buf, 4096, (struct guest_off) { i * 4096 }));
  }
  armed = true;
  check_one_failure ("extents", layer_extents
                     (disk, disk->size, (struct guest_off) { 0 }, false,
                      ignore_extent, NULL), &failed);
  image_close_disk (disk);
  image_close (im);
  CHECK (failed <= 1);
  return nr_allocations < fail_at;
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
  for (fail_at = 1; !run (); ++fail_at)
    ;
  CHECK (fail_at > 12);
  printf ("%u allocations\n", fail_at - 1);
  if (file) {
    remove ("test-no-memory.base");
    remove ("test-no-memory.top");
    build_free (&base);
  }
  build_free (&image);
}

int
main (void)
{
  check_time_limit (100);
  test (COMPRESSION_DEFLATE, false);
  test (COMPRESSION_ZSTD, false);
  test (COMPRESSION_DEFLATE, true);
  return check_result ();
}
