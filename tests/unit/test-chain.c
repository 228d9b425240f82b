/* SPDX-License-Identifier: BSD-3-Clause */

/* disk/chain.c and image.c: opening, the gate for backing files, and a storage
 * that fails at each of its calls in turn.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "disk/extents.h"
#include "disk/read.h"
#include "image.h"
#include "random.h"

/* An image with one of everything: tables, kinds, two snapshots. */
static void
make_image (struct builder *b)
{
  uint8_t plain[4096];
  uint64_t table;
  unsigned i;

  build_start (b, 3, 12, false, COMPRESSION_DEFLATE, 6 << 20);
  for (i = 0; i < 3; ++i) {
    build_entry (b, 512 * i, build_data (b, i + 1), 0);
    build_entry (b, 512 * i + 511, QCOW2_L2_ZERO, 0);
    build_pattern (plain, sizeof plain, 70 + i);
    build_compressed (b, 512 * i + 2, plain, 10);
  }
  table = build_clusters (b, 0);
  put_be64 (b->data + 64, table);
  put_be32 (b->data + 60, 2);
  for (i = 0; i < 2; ++i) {
    const uint64_t at = build_bytes (b, 64);
    uint8_t *p = b->data + at;

    put_be64 (p, b->l1_offset);
    put_be32 (p + 8, b->l1_size);
    put_be16 (p + 12, 1);
    put_be16 (p + 14, 4);
    put_be32 (p + 36, 16);
    put_be64 (p + 48, 3 << 20);
    memcpy (p + 56, i == 0 ? "1abcd" : "2efgh", 5);
  }
}

static int
ignore_extent (void *opaque, uint64_t offset, uint64_t length, unsigned flags)
{
  return 0;
}

static int
ignore_export (void *opaque, const char *name, const char *description)
{
  return 0;
}

/* Use the whole disk: returns how many calls failed. */
static unsigned
use_disk (const struct image *im, const char *export)
{
  struct layer *disk = image_open_disk (im, export);
  static uint8_t buf[1 << 20];
  unsigned failed = 0;
  uint64_t at;

  if (disk == NULL) {
    CHECK_ERROR (EIO, "broken: ");
    return 1;
  }
  for (at = 0; at < disk->size; at += sizeof buf) {
    error_set (0, "none");
    if (layer_read (disk, buf, sizeof buf, (struct guest_off) { at }) == -1) {
      CHECK_ERROR (EIO, "broken: reading ");
      failed++;
    }
    error_set (0, "none");
    if (layer_extents (disk, sizeof buf, (struct guest_off) { at }, false,
                       ignore_extent, NULL) == -1) {
      CHECK_ERROR (EIO, "broken: reading ");
      failed++;
    }
    layer_prefetch (disk, sizeof buf, (struct guest_off) { at });
  }
  image_close_disk (disk);
  return failed;
}

/* How many calls of the storage it takes to open it. */
static uint64_t
calls_to_open (const struct builder *b)
{
  struct memory_control control = { 0 };

  image_close (image_open_storage (memory_storage_new ("sound", b->data,
                                                       b->size, &control),
                                   CACHE_MIN_BYTES));
  return control.calls;
}

/* Each call of the storage fails in turn; alone, or with all that follow. */
static void
test_faults (bool ever_after)
{
  struct builder b;
  uint64_t call, calls_at_open;
  unsigned nr_failed_opens = 0;

  make_image (&b);
  calls_at_open = calls_to_open (&b);
  for (call = 1; ; ++call) {
    struct memory_control control = {
      .fail_call = call, .fail_ever_after = ever_after,
      .fail_errno = call % 2 ? EIO : ENXIO,
    };
    struct image *im;
    unsigned failed;
    bool reached;

    error_set (0, "none");
    im = image_open_storage (memory_storage_new ("broken", b.data, b.size,
                                                 &control), CACHE_MIN_BYTES);
    if (im == NULL) {
      CHECK_ERROR (EIO, "broken: reading ");
      CHECK_HAS (error_message (), strerror (control.fail_errno));
      CHECK_EQ (control.closes, 1);
      nr_failed_opens++;
      continue;
    }
    CHECK_OK (image_list (im, ignore_export, NULL));
    failed = use_disk (im, "") + use_disk (im, "snapshot/abcd") +
      use_disk (im, "snapshot/2");
    reached = control.calls >= call;
    if (!ever_after) {
      CHECK (failed <= 1);
      /* What failed once works when tried again. */
      if (reached)
        CHECK_EQ (use_disk (im, ""), 0);
    }
    image_close (im);
    CHECK_EQ (control.closes, 1);
    if (!reached) {
      CHECK_EQ (failed, 0);
      break;
    }
  }
  /* One call recognizes the format, two read the header.  Two more read the snapshot table and what
   * follows it, up to the end of the file: one that fails alone does no harm,
   * since then the table is read without what follows.
   */
  CHECK_EQ (calls_at_open, 5);
  CHECK_EQ (nr_failed_opens, ever_after ? 5 : 3);
  CHECK (call > calls_at_open + 10);
  build_free (&b);
}

static void
test_refused (void)
{
  struct memory_control control = { 0 };
  struct builder b;

  /* Every image that is refused is closed. */
  make_image (&b);
  put_be32 (b.data + 4, 7);
  CHECK (image_open_storage (memory_storage_new ("odd", b.data, b.size,
                                                 &control), CACHE_MIN_BYTES)
         == NULL);
  CHECK_ERROR (ENOTSUP, "odd: version 7");
  CHECK_EQ (control.closes, 1);
  build_free (&b);

  /* The snapshot table is read at open. */
  make_image (&b);
  put_be32 (b.data + get_be64 (b.data + 64) + 36, 1 << 30);
  CHECK (image_open_storage (memory_storage_new ("odd", b.data, b.size,
                                                 &control), CACHE_MIN_BYTES)
         == NULL);
  CHECK_ERROR (EINVAL, "odd: snapshot table");
  CHECK_EQ (control.closes, 2);
  build_free (&b);

  /* A storage never has a backing file. */
  make_image (&b);
  put_be64 (b.data + 8, 2048);
  put_be32 (b.data + 16, 4);
  memcpy (b.data + 2048, "b\nse", 4);
  CHECK (image_open_storage (memory_storage_new ("odd", b.data, b.size,
                                                 &control), CACHE_MIN_BYTES)
         == NULL);
  CHECK_ERROR (EACCES, "odd: its backing file is \"b\\x0ase\", which "
               "was not allowed");
  CHECK_EQ (control.closes, 3);
  build_free (&b);
}

/* Files. */

static char dir[] = "test-chain.XXXXXX";

static void
write_file (const char *name, const void *data, size_t size)
{
  FILE *f = fopen (name, "w");

  if (f == NULL || fwrite (data, 1, size, f) != size || fclose (f) != 0) {
    perror (name);
    abort ();
  }
}

/* A qcow2 file of one cluster of data with this seed, over this name. */
static void
write_image (const char *name, const char *backing, const char *format,
             uint64_t data_at, uint64_t seed)
{
  struct builder b;
  uint8_t *p;

  build_start (&b, 3, 12, false, COMPRESSION_DEFLATE, 16 * 4096);
  if (seed != 0)
    build_entry (&b, data_at, build_data (&b, seed), 0);
  if (format != NULL) {
    p = b.data + 112;
    put_be32 (p, QCOW2_EXT_BACKING_FORMAT);
    put_be32 (p + 4, strlen (format));
    memcpy (p + 8, format, strlen (format));
  }
  if (backing != NULL) {
    put_be64 (b.data + 8, 1024);
    put_be32 (b.data + 16, strlen (backing));
    memcpy (b.data + 1024, backing, strlen (backing));
  }
  write_file (name, b.data, b.size);
  build_free (&b);
}

static void
remove_all (const char *const *names)
{
  for (; *names != NULL; ++names) {
    if (remove (*names) == -1)
      perror (*names);
  }
}

struct try {
  const char *file;
  enum follow follow;
  const char *backing, *backing_format;
  const char *lower[3]; /* formats; NULL after the last */
};

static struct image *
try_open (const struct try *t)
{
  const struct image_options options = {
    .chain = {
      .file = t->file, .follow = t->follow, .backing = t->backing,
      .backing_format = t->backing_format, .lower_formats = t->lower,
    },
    .cache_size = CACHE_MIN_BYTES,
  };

  error_set (0, "none");
  return image_open (&options);
}

static void
refused (int line, struct try t, int errnum, const char *part)
{
  struct image *im;

  if (t.follow == FOLLOW_BENEATH && !have_openat2 ())
    return;
  im = try_open (&t);
  if (im != NULL) {
    check_failed (__FILE__, line, "%s is opened", t.file);
    image_close (im);
    return;
  }
  check_error (__FILE__, line, errnum, part);
  if (strpbrk (error_message (), "\n\033") != NULL)
    check_failed (__FILE__, line, "control characters in: %s",
                  error_message ());
}

/* Opened, and the 4 KiB at this offset follow from this seed; 0: zeros. */
static void
accepted (int line, struct try t, uint64_t offset, uint64_t seed)
{
  uint8_t buf[4096], right[4096] = { 0 };
  struct image *im;
  struct layer *disk;

  if (t.follow == FOLLOW_BENEATH && !have_openat2 ())
    return;
  im = try_open (&t);
  if (im == NULL) {
    check_failed (__FILE__, line, "%s: %s", t.file, error_message ());
    return;
  }
  disk = image_open_disk (im, "");
  if (seed != 0)
    build_pattern (right, sizeof right, seed);
  check_ok (__FILE__, line, "layer_read",
            layer_read (disk, buf, sizeof buf, (struct guest_off) { offset }));
  if (memcmp (buf, right, sizeof buf) != 0)
    check_failed (__FILE__, line, "%s: the data is wrong", t.file);
  image_close_disk (disk);
  image_close (im);
}

#define REFUSED(errnum, part, ...) \
  refused (__LINE__, (struct try) { __VA_ARGS__ }, errnum, part)
#define ACCEPTED(offset, seed, ...) \
  accepted (__LINE__, (struct try) { __VA_ARGS__ }, offset, seed)

static void
test_files (void)
{
  static const char *const names[] = {
    "sub/base.raw", "sub/mid.qcow2", "sub/up.qcow2", "sub/out.qcow2",
    "sub/abs.qcow2", "sub/out-link", "sub/in-link", "sub/loop1", "sub/loop2",
    "sub/self", "sub/json", "sub/nbd", "sub/noformat", "sub/vmdk",
    "sub/old", "sub/said", "sub/file", "sub/json2", "sub/json3", "sub/json4", "sub/json5",
    "sub/missing", "sub/hostile", "sub/fifo", "sub/to-fifo", "sub/via-link",
    "sub/dots.qcow2", "sub", "secret", "link.qcow2", "top.qcow2", NULL,
  };
  char cwd[4096], absolute[4200];
  uint8_t raw[8192];

  if (getcwd (cwd, sizeof cwd) == NULL)
    abort ();
  mkdir ("sub", 0777);
  build_pattern (raw, 4096, 9);
  build_pattern (raw + 4096, 4096, 10);
  write_file ("sub/base.raw", raw, sizeof raw);
  write_file ("secret", raw, sizeof raw);
  write_image ("sub/mid.qcow2", "base.raw", "raw", 2, 20);
  write_image ("sub/up.qcow2", "../secret", "raw", 0, 0);
  write_image ("top.qcow2", "sub/mid.qcow2", "qcow2", 3, 30);

  /* The whole chain: relative names are relative to the file they are in. */
  ACCEPTED (3 * 4096, 30, "top.qcow2", FOLLOW_BENEATH);
  ACCEPTED (2 * 4096, 20, "top.qcow2", FOLLOW_BENEATH);
  ACCEPTED (0, 9, "top.qcow2", FOLLOW_BENEATH);
  ACCEPTED (4096, 10, "top.qcow2", FOLLOW_ANY);
  ACCEPTED (5 * 4096, 0, "top.qcow2", FOLLOW_ANY); /* past its end */
  REFUSED (EACCES, "not allowed", "top.qcow2", FOLLOW_NONE);
  REFUSED (EACCES, "\"base.raw\"", "sub/mid.qcow2", FOLLOW_NONE);
  ACCEPTED (0, 9, "sub/mid.qcow2", FOLLOW_BENEATH);

  /* What the user names needs no leave, but what that names does. */
  ACCEPTED (0, 9, "sub/mid.qcow2", FOLLOW_NONE, "sub/base.raw", "raw");
  ACCEPTED (0, 9, "sub/mid.qcow2", FOLLOW_NONE, "sub/base.raw");
  REFUSED (EINVAL, "not a qcow2 image", "sub/mid.qcow2", FOLLOW_NONE,
           "sub/base.raw", "qcow2");
  REFUSED (EACCES, "sub/mid.qcow2: its backing file", "top.qcow2",
           FOLLOW_NONE, "sub/mid.qcow2");
  ACCEPTED (0, 9, "top.qcow2", FOLLOW_BENEATH, "sub/mid.qcow2", "qcow2");

  /* Out of the directory: by dots, by an absolute path, by links. */
  REFUSED (EACCES, "not beneath", "sub/up.qcow2", FOLLOW_BENEATH);
  ACCEPTED (0, 9, "sub/up.qcow2", FOLLOW_ANY);
  snprintf (absolute, sizeof absolute, "%s/secret", cwd);
  write_image ("sub/out.qcow2", absolute, "raw", 0, 0);
  REFUSED (EACCES, "not beneath", "sub/out.qcow2", FOLLOW_BENEATH);
  ACCEPTED (0, 9, "sub/out.qcow2", FOLLOW_ANY);
  snprintf (absolute, sizeof absolute, "%s/sub/base.raw", cwd);
  write_image ("sub/abs.qcow2", absolute, "raw", 0, 0);
  ACCEPTED (0, 9, "sub/abs.qcow2", FOLLOW_BENEATH);
  snprintf (absolute, sizeof absolute, "%s/sub//../secret", cwd);
  write_image ("sub/dots.qcow2", absolute, "raw", 0, 0);
  REFUSED (EACCES, "not beneath", "sub/dots.qcow2", FOLLOW_BENEATH);
  snprintf (absolute, sizeof absolute, "%s/submarine", cwd);
  write_image ("sub/dots.qcow2", absolute, "raw", 0, 0);
  REFUSED (EACCES, "not beneath", "sub/dots.qcow2", FOLLOW_BENEATH);
  if (symlink ("../secret", "sub/out-link") != 0 ||
      symlink ("base.raw", "sub/in-link") != 0 ||
      symlink ("top.qcow2", "link.qcow2") != 0)
    abort ();
  write_image ("sub/via-link", "out-link", "raw", 0, 0);
  REFUSED (EACCES, "not beneath", "sub/via-link", FOLLOW_BENEATH);
  write_image ("sub/via-link", "in-link", "raw", 0, 0);
  ACCEPTED (0, 9, "sub/via-link", FOLLOW_BENEATH);
  ACCEPTED (0, 9, "link.qcow2", FOLLOW_BENEATH);

  /* Loops. */
  write_image ("sub/loop1", "loop2", "qcow2", 0, 0);
  write_image ("sub/loop2", "../sub/loop1", "qcow2", 0, 0);
  write_image ("sub/self", "self", "qcow2", 0, 0);
  REFUSED (EINVAL, "loop", "sub/loop1", FOLLOW_ANY);
  REFUSED (EINVAL, "loop", "sub/self", FOLLOW_BENEATH);
  REFUSED (EINVAL, "loop", "sub/self", FOLLOW_NONE, "sub/self", "qcow2");

  /* Protocols, formats, what is not there, what is no file. */
  write_image ("sub/json", "json:{\"driver\":\"raw\"}", "raw", 0, 0);
  REFUSED (EACCES, "only plain paths", "sub/json", FOLLOW_ANY);
  write_image ("sub/nbd", "nbd:localhost:10809", "raw", 0, 0);
  REFUSED (EACCES, "protocols", "sub/nbd", FOLLOW_ANY);
  write_image ("sub/noformat", "base.raw", NULL, 0, 0);
  REFUSED (EINVAL, "never guessed", "sub/noformat", FOLLOW_ANY);
  ACCEPTED (0, 9, "sub/noformat", FOLLOW_ANY, NULL, "raw");

  /* Formats are given from the top down, by their place. */
  write_image ("sub/old", "noformat", NULL, 0, 0);
  write_image ("sub/said", "old", "qcow2", 0, 0);
  REFUSED (EINVAL, "1 for the backing file above it,", "sub/old", FOLLOW_ANY,
           NULL, "qcow2");
  REFUSED (EINVAL, "2 for the backing files above it,", "sub/said", FOLLOW_ANY,
           NULL, "qcow2",
           { "qcow2" });
  ACCEPTED (0, 9, "sub/old", FOLLOW_ANY, NULL, "qcow2", { "raw" });
  ACCEPTED (0, 9, "sub/said", FOLLOW_ANY, NULL, "qcow2", { "qcow2", "raw" });
  ACCEPTED (0, 9, "sub/said", FOLLOW_ANY, "sub/noformat", "qcow2",
            { "raw" });
  REFUSED (EINVAL, "follows 2 others", "sub/old", FOLLOW_ANY, NULL, "qcow2",
           { "raw", "raw" });

  /* The same in file: and json:, which may tell the format, too; what the
   * image records counts more, and the user's word most.
   */
  write_image ("sub/file", "file:base.raw", "raw", 0, 0);
  REFUSED (EACCES, "was not allowed", "sub/file", FOLLOW_NONE);
  ACCEPTED (0, 9, "sub/file", FOLLOW_BENEATH);
  write_image ("sub/json2", "json:{\"driver\":\"raw\",\"file.filename\":"
               "\"base.raw\"}", NULL, 0, 0);
  REFUSED (EACCES, "was not allowed", "sub/json2", FOLLOW_NONE);
  ACCEPTED (0, 9, "sub/json2", FOLLOW_BENEATH);
  REFUSED (EINVAL, "not a qcow2 image", "sub/json2", FOLLOW_ANY, NULL,
           "qcow2");
  write_image ("sub/json3", "json:{\"driver\":\"raw\",\"file.filename\":"
               "\"base.raw\"}", "qcow2", 0, 0);
  REFUSED (EINVAL, "not a qcow2 image", "sub/json3", FOLLOW_ANY);
  write_image ("sub/json4", "json:{\"file.filename\":\"base.raw\"}", NULL,
               0, 0);
  REFUSED (EINVAL, "never guessed", "sub/json4", FOLLOW_ANY);
  write_image ("sub/json5", "json:{\"driver\":\"raw\",\"file.filename\":"
               "\"../base.raw\"}", NULL, 0, 0);
  REFUSED (EACCES, "not beneath", "sub/json5", FOLLOW_BENEATH);
  write_image ("sub/vmdk", "base.raw", "vm\033dk", 0, 0);
  REFUSED (ENOTSUP, "\"vm\\x1bdk\"", "sub/vmdk", FOLLOW_ANY);
  write_image ("sub/missing", "nowhere", "raw", 0, 0);
  REFUSED (ENOENT, "sub/nowhere", "sub/missing", FOLLOW_ANY);
  REFUSED (ENOENT, "sub/nowhere", "sub/missing", FOLLOW_BENEATH);
  if (mkfifo ("sub/fifo", 0600) == 0) {
    write_image ("sub/to-fifo", "fifo", "raw", 0, 0);
    REFUSED (EINVAL, "neither", "sub/to-fifo", FOLLOW_ANY);
    REFUSED (EINVAL, "neither", "sub/fifo", FOLLOW_NONE);
  }
  REFUSED (EINVAL, "neither", "sub", FOLLOW_NONE);
  REFUSED (ENOENT, "nothing", "nothing", FOLLOW_NONE);

  /* A name from the image must not do things to the user's terminal. */
  write_image ("sub/hostile", "no\nsuch\033[2Jfile", "raw", 0, 0);
  REFUSED (EACCES, "no\\x0asuch", "sub/hostile", FOLLOW_NONE);
  REFUSED (ENOENT, "such", "sub/hostile", FOLLOW_ANY);
  REFUSED (ENOENT, "such", "sub/hostile", FOLLOW_BENEATH);
  remove_all (names);
}

/* As deep as a chain may be, and one deeper. */
static void
test_depth (void)
{
  char name[16], backing[16];
  unsigned i;

  for (i = 0; i <= CHAIN_MAX_DEPTH; ++i) {
    snprintf (name, sizeof name, "f%u", i);
    snprintf (backing, sizeof backing, "f%u", i - 1);
    write_image (name, i > 0 ? backing : NULL, "qcow2", i % 16, i + 1);
  }
  snprintf (name, sizeof name, "f%u", CHAIN_MAX_DEPTH - 1);
  ACCEPTED (15 * 4096, CHAIN_MAX_DEPTH, name, FOLLOW_BENEATH);
  snprintf (name, sizeof name, "f%u", CHAIN_MAX_DEPTH);
  REFUSED (EINVAL, "deeper than 256", name, FOLLOW_BENEATH);
  for (i = 0; i <= CHAIN_MAX_DEPTH; ++i) {
    snprintf (name, sizeof name, "f%u", i);
    remove (name);
  }
}

int
main (void)
{
  check_time_limit (200);
  test_faults (false);
  test_faults (true);
  test_refused ();
  if (mkdtemp (dir) == NULL || chdir (dir) == -1) {
    perror (dir);
    return 99;
  }
  test_files ();
  test_depth ();
  if (chdir ("..") == -1 || rmdir (dir) == -1)
    perror (dir);
  return check_result ();
}
