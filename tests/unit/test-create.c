/* SPDX-License-Identifier: BSD-3-Clause */

/* manage/create.c: new images of every kind, in empty storage, and what is
 * refused.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "crypto/library.h"
#include "disk/read.h"
#include "image-check.h"
#include "image.h"
#include "new-image.h"
#include "random.h"
#include "seconds.h"

#define SECTOR NEW_IMAGE_SECTOR

/* Files larger than this are not made here. */
#define MAX_FILE (UINT64_C (512) << 20)

/* Nor is more than this written as zeros. */
#define MAX_FULL (UINT64_C (4) << 20)

static struct new_image made;
static unsigned images;

/* The least number of clusters that the image can have: found by trying. */
static uint64_t
least_clusters (const struct create_options *o)
{
  const uint64_t l2 = divide_up (rounded (o->size), reach (o));
  const uint64_t in_block = o->cluster_size * 8 / o->refcount_bits;
  uint64_t least = 1 + divide_up (8 * l2, o->cluster_size), nr;

  if (o->preallocation != PREALLOCATION_OFF)
    least += l2 + divide_up (rounded (o->size), o->cluster_size);
  for (nr = least;; ++nr) {
    const uint64_t blocks = divide_up (nr, in_block);

    if (nr >= least + blocks + divide_up (8 * blocks, o->cluster_size))
      return nr;
  }
}

/* Make an image in an empty storage, and look at all of it. */
static void
make_new (const struct create_options *o)
{
  const uint64_t data = divide_up (rounded (o->size), o->cluster_size) *
    o->cluster_size;

  new_image_init (&made, o, NULL, 0);
  if (new_image_create (&made, o) == -1)
    check_failed (__FILE__, __LINE__, "%s: %s", made.what, error_message ());
  else {
    CHECK_EQ (atomic_load (&made.disk.size),
              least_clusters (o) * o->cluster_size);
    if (o->preallocation >= PREALLOCATION_FALLOC)
      CHECK (atomic_load (&made.disk.blocks) >= data / MEMORY_DISK_BLOCK);
    new_image_check (&made, o);
    images++;
  }
  new_image_free (&made);
}

/* ------------------------------------------------------------------ matrix */

static bool
can_be_made (const struct create_options *o)
{
  if (o->preallocation == PREALLOCATION_OFF)
    return true;
  if (o->preallocation != PREALLOCATION_METADATA && o->size > MAX_FULL)
    return false;
  return least_clusters (o) * o->cluster_size <= MAX_FILE;
}

static void
make_sizes (struct create_options o)
{
  const uint64_t r = reach (&o), c = o.cluster_size;
  const uint64_t sizes[] = { 0, 1, SECTOR, c - 1, c, c + 1, 7 * c + 12345,
                             r - SECTOR, r, r + 1, 3 * r + c,
                             c / 8 * r, c / 8 * r + 1 };
  const unsigned nr = sizeof sizes / sizeof sizes[0];
  static unsigned turn;
  unsigned i;

  for (i = 0; i < nr; ++i) {
    /* Where there are many kinds some sizes each are enough. */
    if (o.refcount_bits != 16 && (i + turn) % 6 != 0)
      continue;
    /* Opening it for writing reads all of the L1 table. */
    if (sizes[i] / r > 16384)
      continue;
    if (o.preallocation != PREALLOCATION_OFF && sizes[i] > MAX_FILE)
      continue;
    o.size = sizes[i];
    if (can_be_made (&o))
      make_new (&o);
  }
  turn++;
}

static void
make_preallocations (struct create_options o)
{
  static const enum preallocation all[] = {
    PREALLOCATION_OFF, PREALLOCATION_METADATA, PREALLOCATION_FALLOC,
    PREALLOCATION_FULL,
  };
  unsigned i;

  for (i = 0; i < sizeof all / sizeof all[0]; ++i) {
    /* Entries do not differ by this. */
    if (all[i] >= PREALLOCATION_FALLOC && o.refcount_bits != 16)
      continue;
    o.preallocation = all[i];
    make_sizes (o);
  }
}

static void
test_matrix (void)
{
  struct create_options o = CREATE_DEFAULTS;
  unsigned bits, order, n = 0;

  for (bits = 9; bits <= 21; bits += TEST_EACH (3)) {
    o.cluster_size = UINT64_C (1) << bits;
    o.version = 2;
    make_preallocations (o);
    o.version = 3;
    for (order = 0; order <= 6; order += TEST_EACH (3)) {
      o.refcount_bits = 1U << order;
      o.lazy_refcounts = n % 2 != 0;
      o.compression = n % 3 != 0 ? COMPRESSION_ZSTD : COMPRESSION_DEFLATE;
      n++;
      make_preallocations (o);
      o.extended_l2 = true;
      if (bits >= 14)
        make_preallocations (o);
      o.extended_l2 = false;
    }
    o.lazy_refcounts = false;
    o.compression = COMPRESSION_DEFLATE;
    o.refcount_bits = 16;
  }
}

/* Sizes at which one more refcount block, or one more cluster of their table,
 * is wanted, and by them perhaps another one.
 */
static void
test_refcount_tables (void)
{
  struct create_options o = CREATE_DEFAULTS;
  const uint64_t in_block = 64, in_table = 64 * 64; /* clusters */
  uint64_t n, i;

  o.cluster_size = 512;
  o.refcount_bits = 64;
  o.preallocation = PREALLOCATION_METADATA;
  for (n = 1; n <= 3; ++n) {
    for (i = 0; i < 2 * in_block; i += TEST_EACH (9)) {
      /* A table of so many clusters is about full; so is a block. */
      o.size = (n * in_table - n * in_table / 20 - i) * 512;
      make_new (&o);
      o.size = (n * in_block - i % in_block) * 512;
      make_new (&o);
    }
  }
}

/* The largest disk for clusters of 512 bytes: an L1 table of 32 MiB, and
 * with refcounts of 64 bits a refcount table of 18 clusters.
 */
static void
test_largest (void)
{
  struct create_options o = CREATE_DEFAULTS;

  o.cluster_size = 512;
  o.refcount_bits = 64;
  o.size = UINT64_C (1) << 37;
  make_new (&o);
  CHECK_EQ (divide_up (least_clusters (&o), 64 * 64), 17);
  /* And for the largest clusters. */
  o.cluster_size = 2 << 20;
  o.extended_l2 = true;
  o.size = UINT64_C (1) << 60;
  new_image_init (&made, &o, NULL, 0);
  CHECK_OK (new_image_create (&made, &o));
  CHECK (new_image_opens (&made));
  image_check_clean (made.what, made.disk.data, atomic_load (&made.disk.size));
  new_image_free (&made);
}

/* A disk of 16 TiB takes less than 1 MiB of space. */
static void
test_small (void)
{
  struct create_options o = CREATE_DEFAULTS;

  o.size = UINT64_C (16) << 40;
  new_image_init (&made, &o, NULL, 0);
  CHECK_OK (new_image_create (&made, &o));
  CHECK (atomic_load (&made.disk.blocks) * MEMORY_DISK_BLOCK < 1 << 20);
  CHECK (atomic_load (&made.control.calls) < 20);
  new_image_free (&made);
}

/* ---------------------------------------------------------------- refusals */

static void
refused (struct create_options o, const char *message)
{
  new_image_init (&made, &o, NULL, 0);
  if (new_image_create (&made, &o) == 0)
    check_failed (__FILE__, __LINE__, "%s: was made", made.what);
  else
    CHECK_ERROR (EINVAL, message);
  CHECK_EQ (atomic_load (&made.control.calls), 0);
  new_image_free (&made);
}

#define REFUSED(message, ...)                                           \
  refused ((struct create_options) { .version = 3, .cluster_size = 65536, \
        .refcount_bits = 16, .size = 1 << 20, __VA_ARGS__ }, message)

/* The compiler would be right to warn: options are set twice. */
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverride-init"

static void
test_refusals (void)
{
  REFUSED ("cluster size 0: must be a power", .cluster_size = 0);
  REFUSED ("cluster size 256: must be a power", .cluster_size = 256);
  REFUSED ("cluster size 1000: must be a power", .cluster_size = 1000);
  REFUSED ("cluster size 65537: must be", .cluster_size = 65537);
  REFUSED ("cluster size 4194304: must be", .cluster_size = 4 << 20);
  REFUSED ("must be a power", .cluster_size = UINT64_C (1) << 63);
  REFUSED ("refcounts of 0 bits: must be", .refcount_bits = 0);
  REFUSED ("refcounts of 3 bits: must be", .refcount_bits = 3);
  REFUSED ("refcounts of 128 bits: must be", .refcount_bits = 128);
  REFUSED ("refcounts of 8 bits need version 3", .version = 2,
           .refcount_bits = 8);
  REFUSED ("lazy refcounts need version 3", .version = 2,
           .lazy_refcounts = true);
  REFUSED ("extended L2 entries need version 3", .version = 2,
           .extended_l2 = true);
  REFUSED ("compression type other than zlib needs version 3", .version = 2,
           .compression = COMPRESSION_ZSTD);
  REFUSED ("extended L2 entries need clusters of at least 16384",
           .extended_l2 = true, .cluster_size = 8192);
  REFUSED ("disk size 9223372036854775297: the limit is",
           .size = INT64_MAX - 510);
  REFUSED ("disk size 18446744073709551615: the limit is",
           .size = UINT64_MAX);
  REFUSED ("its L1 table would be larger than the limit of 33554432",
           .size = INT64_MAX - 511);
  REFUSED ("its L1 table would be", .cluster_size = 512,
           .size = (UINT64_C (1) << 37) + 1);
  REFUSED ("its L1 table would be", .cluster_size = 2 << 20,
           .size = (UINT64_C (1) << 61) + 1);
  REFUSED ("its L1 table would be", .cluster_size = 2 << 20,
           .extended_l2 = true, .size = (UINT64_C (1) << 60) + 1);
  REFUSED ("its refcount table would be larger than the limit of 8388608",
           .cluster_size = 512, .refcount_bits = 64,
           .preallocation = PREALLOCATION_METADATA,
           .size = UINT64_C (1) << 37);
  REFUSED ("its file would be larger than the limit of 72057594037927936",
           .cluster_size = 2 << 20, .size = UINT64_C (1) << 56,
           .preallocation = PREALLOCATION_METADATA);
  REFUSED ("the format of its backing file is missing", .backing = "base");
  REFUSED ("preallocation needs extended L2", .backing = "base",
           .backing_format = "raw", .preallocation = PREALLOCATION_METADATA);
}
#pragma GCC diagnostic pop

/* A name of this many bytes. */
static const char *
name_of (unsigned len)
{
  static char name[2000];

  memset (name, 'n', len);
  name[len] = 0;
  return name;
}

/* ----------------------------------------------------------------- backing */

/* The header of an image of this name, decoded. */
static void
check_names (const struct create_options *o)
{
  struct header h;

  CHECK_OK (header_decode ("test", made.disk.data, o->cluster_size,
                           atomic_load (&made.disk.size), &h));
  CHECK_STR (h.backing_name, o->backing);
  CHECK_STR (h.backing_format, o->backing_format);
}

static void
test_backing_names (void)
{
  static const unsigned all_bits[] = { 9, 10, 11, 16, 21 };
  struct create_options o = CREATE_DEFAULTS;
  unsigned bits, version, len, i;

  o.backing_format = "qcow2";
  o.size = 123456;
  for (version = 2; version <= 3; ++version) {
    for (i = 0; i < sizeof all_bits / sizeof all_bits[0]; ++i) {
      bits = all_bits[i];
      o.version = version;
      o.cluster_size = UINT64_C (1) << bits;
      for (len = 1; len <= 1024; ++len) {
        /* The header, two extensions (format, end), the name. */
        const unsigned most = bits > 10 ? 1023
          : o.cluster_size - (version == 2 ? 72 : 112) - 16 - 8;

        if (len % 64 != 1 && len + 1 < most && len != 1023)
          continue;
        o.backing = name_of (len);
        new_image_init (&made, &o, NULL, 0);
        if (len > most) {
          CHECK_EQ (new_image_create (&made, &o), -1);
          CHECK_ERROR (EINVAL, len == 1024 ? "the limit is 1023"
                       : "has no room in the first cluster");
          CHECK_EQ (atomic_load (&made.disk.size), 0);
        }
        else {
          CHECK_OK (new_image_create (&made, &o));
          check_names (&o);
          image_check_clean (made.what, made.disk.data,
                             atomic_load (&made.disk.size));
          images++;
        }
        new_image_free (&made);
      }
    }
  }
}

/* The names of features are there where they have room. */
static void
test_feature_names (void)
{
  struct create_options o = CREATE_DEFAULTS;

  new_image_init (&made, &o, NULL, 0);
  CHECK_OK (new_image_create (&made, &o));
  CHECK_EQ (get_be32 (made.disk.data + 112), QCOW2_EXT_FEATURE_NAMES);
  CHECK_EQ (get_be32 (made.disk.data + 116), 8 * QCOW2_FEATURE_ENTRY_SIZE);
  CHECK_EQ (made.disk.data[120 + 4 * 48], QCOW2_FEATURE_INCOMPATIBLE);
  CHECK_EQ (made.disk.data[120 + 4 * 48 + 1], 4);
  CHECK_STR ((const char *) made.disk.data + 120 + 4 * 48 + 2,
             "extended L2 entries");
  CHECK_EQ (get_be32 (made.disk.data + 120 + 8 * 48), QCOW2_EXT_WRITER);
  CHECK_EQ (get_be64 (made.disk.data + 136 + 8 * 48), 0); /* the end */
  new_image_free (&made);
}

/* Over a backing file preallocated clusters with subclusters hide nothing;
 * without preallocation nothing does.
 */
static void
test_overlay (enum preallocation preallocation, bool extended)
{
  static uint8_t base[100 * SECTOR], buf[sizeof base + SECTOR];
  struct create_options o = CREATE_DEFAULTS;
  struct storage *s[2];
  struct image *im;
  struct layer *d;
  uint64_t state = 1;

  random_fill (&state, base, sizeof base);
  o.size = sizeof buf - 1;
  o.extended_l2 = extended;
  o.cluster_size = 16384;
  o.preallocation = preallocation;
  o.backing = "base";
  o.backing_format = "raw";
  new_image_init (&made, &o, NULL, 0);
  CHECK_OK (new_image_create (&made, &o));
  s[0] = memory_disk_open (&made.disk, "test", &made.control);
  s[1] = memory_storage_new ("base", base, sizeof base, NULL);
  im = image_open_storages (s, 2, CACHE_MIN_BYTES);
  CHECK (im != NULL);
  d = image_open_disk (im, "");
  memset (buf, 0xdd, sizeof buf);
  CHECK_EQ (d->size, sizeof buf);
  CHECK_OK (layer_read (d, buf, sizeof buf, (struct guest_off) { 0 }));
  CHECK (memcmp (buf, base, sizeof base) == 0);
  CHECK (buf[sizeof base] == 0 && buf[sizeof buf - 1] == 0);
  image_close_disk (d);
  CHECK_OK (image_close (im));
  new_image_free (&made);
  images++;
}

static void
test_overlays (void)
{
  test_overlay (PREALLOCATION_OFF, false);
  test_overlay (PREALLOCATION_OFF, true);
  test_overlay (PREALLOCATION_METADATA, true);
  test_overlay (PREALLOCATION_FALLOC, true);
  test_overlay (PREALLOCATION_FULL, true);
}

/* ---------------------------------------------------------------- encrypted */

static const struct passphrase words = { "words", 5 };

/* What is written last is the header's first sector, when all else is durable.
 */
static void
check_order (const struct memory_log *l)
{
  const struct memory_call *last = &l->call[l->nr - 3];

  CHECK (l->nr > 6);
  CHECK_EQ (last[0].kind, MEMORY_FLUSH);
  CHECK (last[1].kind == MEMORY_WRITE && last[1].offset == 0);
  CHECK_EQ (last[2].kind, MEMORY_FLUSH);
}

/* It is clean, opens with its passphrase only, and reads as zeros. */
static void
check_encrypted (void)
{
  const struct passphrases right = { .image = words };
  const struct passphrases wrong = { .image = { "word", 4 } };
  const struct passphrases *given[2] = { &wrong, &right };
  uint8_t buf[4 * SECTOR];
  unsigned i;

  image_check_clean (made.what, made.disk.data, atomic_load (&made.disk.size));
  CHECK (!new_image_opens (&made));
  CHECK_ERROR (EACCES, "passphrase is missing");
  for (i = 0; i < 2; ++i) {
    struct storage *s = memory_disk_open (&made.disk, made.what, NULL);
    struct image *im = image_open_encrypted (&s, 1, CACHE_MIN_BYTES, given[i]);
    struct layer *d;

    CHECK_EQ (im != NULL, i == 1);
    if (im == NULL)
      continue;
    d = image_open_disk (im, "");
    memset (buf, 0xdd, sizeof buf);
    CHECK_OK (layer_read (d, buf, sizeof buf, (struct guest_off) { SECTOR }));
    CHECK (buf[0] == 0 && memcmp (buf, buf + 1, sizeof buf - 1) == 0);
    image_close_disk (d);
    CHECK_OK (image_close (im));
  }
}

static void
test_encrypted (void)
{
  static const uint64_t cluster_size[] = { 512, 65536, 2 << 20 };
  struct memory_log log = MEMORY_LOG_INIT;
  struct create_options o = CREATE_DEFAULTS;
  unsigned i;

  o.size = 1000003;
  o.passphrase = &words;
  o.iter_time = 1;
  for (i = 0; i < 6; ++i) {
    o.cluster_size = cluster_size[i / 2];
    o.version = 2 + i % 2;
    new_image_init (&made, &o, NULL, 0);
    made.control.log = &log;
    memory_log_clear (&log);
    CHECK_OK (new_image_create (&made, &o));
    check_order (&log);
    made.control.log = NULL;
    check_encrypted ();
    new_image_free (&made);
    images++;
  }
  memory_log_free (&log);
}

/* What can't be encrypted changes nothing. */
static void
test_not_encrypted (void)
{
  struct create_options o = CREATE_DEFAULTS;
  const struct create_options plain = o;
  unsigned i;

  for (i = 0; i < 4; ++i) {
    o = plain;
    o.passphrase = &words;
    if (i == 0)
      o.preallocation = PREALLOCATION_METADATA;
    else if (i == 1)
      o.iter_time = 0;
    else if (i == 2)
      o.iter_time = CREATE_MAX_ITER_TIME + 1;
    else
      o.format = CREATE_QED;
    o.table_size = 4;
    new_image_init (&made, &o, "keep", 4);
    CHECK (new_image_create (&made, &o) == -1);
    CHECK_EQ (error_errno (), EINVAL);
    CHECK (atomic_load (&made.disk.size) == 4 &&
           memcmp (made.disk.data, "keep", 4) == 0);
    new_image_free (&made);
  }
}

int
main (void)
{
  check_time_limit (600);
  if (crypto_library () != NULL) {
    test_encrypted ();
    test_not_encrypted ();
  }
  test_matrix ();
  test_refcount_tables ();
  test_largest ();
  test_small ();
  test_refusals ();
  test_backing_names ();
  test_feature_names ();
  test_overlays ();
  printf ("%u images\n", images);
  return check_result ();
}
