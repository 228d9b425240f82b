/* SPDX-License-Identifier: BSD-3-Clause */

/* create.c: new images of every kind, in empty storage and over what is
 * there; what is refused; in which order things are written; and what is left
 * when the storage fails.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "check.h"
#include "create.h"
#include "image.h"
#include "image-check.h"
#include "memory-storage.h"
#include "random.h"
#include "read.h"
#include "seconds.h"

#define SECTOR 512
#define PIECE 65536

/* Files larger than this are not made here. */
#define MAX_FILE (UINT64_C (512) << 20)

/* Nor is more than this written as zeros. */
#define MAX_FULL (UINT64_C (4) << 20)

static struct memory_disk disk;
static struct memory_control control;
static char what[200]; /* is being made */
static unsigned images;

static void
describe (const struct create_options *o)
{
  snprintf (what, sizeof what, "v%u cluster %" PRIu64 " refcounts %u%s%s "
            "compression %d preallocation %d size %" PRIu64, o->version,
            o->cluster_size, o->refcount_bits,
            o->extended_l2 ? " extended" : "",
            o->lazy_refcounts ? " lazy" : "", o->compression,
            o->preallocation, o->size);
}

static uint64_t
divide_up (uint64_t a, uint64_t b)
{
  return a / b + (a % b != 0);
}

/* The bytes of the disk that one L2 table maps. */
static uint64_t
reach (const struct create_options *o)
{
  return o->cluster_size / (o->extended_l2 ? 16 : 8) * o->cluster_size;
}

static uint64_t
rounded (uint64_t size)
{
  return divide_up (size, SECTOR) * SECTOR;
}

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

static int
create (const struct create_options *o)
{
  struct storage *s = memory_disk_open (&disk, "test", &control);
  const int r = create_image (s, o);

  storage_close (s);
  return r;
}

static bool
is_image (void)
{
  struct image *im =
    image_open_storage (memory_disk_open (&disk, "test", &control),
                        CACHE_MIN_BYTES);
  const bool r = im != NULL;

  (void) image_close (im);
  return r;
}

/* -------------------------------------------------------------- its header */

static void
check_header (const struct create_options *o)
{
  const uint8_t *h = disk.data;
  const bool zstd = o->compression == COMPRESSION_ZSTD;
  const uint64_t incompatible = (zstd ? QCOW2_INCOMPAT_COMPRESSION : 0) |
    (o->extended_l2 ? QCOW2_INCOMPAT_EXTENDED_L2 : 0);

  CHECK_EQ (get_be32 (h), QCOW2_MAGIC);
  CHECK_EQ (get_be32 (h + 4), o->version);
  CHECK_EQ (UINT64_C (1) << get_be32 (h + 20), o->cluster_size);
  CHECK_EQ (get_be64 (h + 24), rounded (o->size));
  CHECK_EQ (get_be32 (h + 36), divide_up (rounded (o->size), reach (o)));
  if (o->version < 3)
    return;
  CHECK_EQ (get_be64 (h + 72), incompatible);
  CHECK_EQ (get_be64 (h + 80), o->lazy_refcounts);
  CHECK_EQ (get_be64 (h + 88), 0);
  CHECK_EQ (1U << get_be32 (h + 96), o->refcount_bits);
  CHECK_EQ (h[104], o->compression);
}

/* ---------------------------------------------------------------- its disk */

/* What the disk reads as: zeros, or a pattern that was written. */
static void
check_range (const struct layer *d, uint64_t offset, uint64_t count, int byte)
{
  static uint8_t buf[PIECE], should[PIECE];

  memset (buf, ~byte, count);
  memset (should, byte, count);
  CHECK_OK (layer_read (d, buf, count, (struct guest_off) { offset }));
  if (memcmp (buf, should, count) != 0)
    check_failed (__FILE__, __LINE__, "%s: 0x%" PRIx64 " is not all 0x%02x",
                  what, offset, byte);
}

static void
check_zeros (const struct layer *d, uint64_t offset, uint64_t end)
{
  while (offset < end) {
    const uint64_t n = end - offset < PIECE ? end - offset : PIECE;

    check_range (d, offset, n, 0);
    offset += n;
  }
}

/* Up to 64 KiB around places where tables and clusters begin and end. */
static unsigned
choose_places (const struct create_options *o, uint64_t *place)
{
  const uint64_t size = rounded (o->size), r = reach (o);
  const uint64_t all[] = { 0, o->cluster_size, size / 2, r - SECTOR, r,
                           size - SECTOR };
  unsigned nr = 0, i;

  for (i = 0; i < sizeof all / sizeof all[0]; ++i) {
    if (all[i] < size && (nr == 0 || all[i] > place[nr - 1]))
      place[nr++] = all[i];
  }
  return nr;
}

static void
write_and_read (struct image *im, const struct layer *d,
                const struct create_options *o)
{
  const uint64_t size = rounded (o->size);
  uint8_t buf[3 * SECTOR];
  uint64_t place[8], end;
  unsigned nr = choose_places (o, place), i;

  check_zeros (d, 0, size < 2 * PIECE ? size : 2 * PIECE);
  check_zeros (d, size < 2 * PIECE ? 0 : size - 2 * PIECE, size);
  for (i = 0; i < nr; ++i) {
    end = i + 1 < nr ? place[i + 1] : size;
    if (end > place[i] + sizeof buf)
      end = place[i] + sizeof buf;
    memset (buf, i + 1, sizeof buf);
    CHECK_OK (image_write (im, buf, end - place[i],
                           (struct guest_off) { place[i] }, 0));
  }
  CHECK_OK (image_flush (im));
  for (i = 0; i < nr; ++i) {
    end = i + 1 < nr ? place[i + 1] : size;
    if (end > place[i] + sizeof buf) {
      check_zeros (d, place[i] + sizeof buf,
                   end < place[i] + PIECE ? end : place[i] + PIECE);
      end = place[i] + sizeof buf;
    }
    check_range (d, place[i], end - place[i], i + 1);
  }
}

static void
check_disk (const struct create_options *o)
{
  const struct writer_options options = { 0 };
  struct image *im =
    image_open_storage (memory_disk_open (&disk, "test", &control),
                        CACHE_MIN_BYTES);
  struct layer *d;

  if (im == NULL) {
    check_failed (__FILE__, __LINE__, "%s: %s", what, error_message ());
    return;
  }
  CHECK_OK (image_make_writable (im, &options));
  d = image_open_disk (im, "");
  CHECK (d != NULL);
  CHECK_EQ (d->size, rounded (o->size));
  write_and_read (im, d, o);
  image_close_disk (d);
  CHECK_OK (image_close (im));
}

/* What has its place in the file takes no more when it is written. */
static void
check_preallocated (const struct create_options *o, uint64_t size_before)
{
  if (o->preallocation != PREALLOCATION_OFF && !control.fixed)
    CHECK_EQ (atomic_load (&disk.size), size_before);
}

static void
check_made (const struct create_options *o)
{
  const uint64_t size = atomic_load (&disk.size);

  images++;
  check_header (o);
  image_check_clean (what, disk.data, size);
  check_disk (o);
  image_check_clean (what, disk.data, atomic_load (&disk.size));
  check_preallocated (o, size);
}

/* Make an image in an empty storage, and look at all of it. */
static void
make_new (const struct create_options *o)
{
  const uint64_t data = divide_up (rounded (o->size), o->cluster_size) *
    o->cluster_size;

  describe (o);
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  if (create (o) == -1)
    check_failed (__FILE__, __LINE__, "%s: %s", what, error_message ());
  else {
    CHECK_EQ (atomic_load (&disk.size), least_clusters (o) * o->cluster_size);
    if (o->preallocation >= PREALLOCATION_FALLOC)
      CHECK (atomic_load (&disk.blocks) >= data / MEMORY_DISK_BLOCK);
    check_made (o);
  }
  memory_disk_free (&disk);
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
  describe (&o);
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  CHECK_OK (create (&o));
  CHECK (is_image ());
  image_check_clean (what, disk.data, atomic_load (&disk.size));
  memory_disk_free (&disk);
}

/* A disk of 16 TiB takes less than 1 MiB of space. */
static void
test_small (void)
{
  struct create_options o = CREATE_DEFAULTS;

  o.size = UINT64_C (16) << 40;
  describe (&o);
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  CHECK_OK (create (&o));
  CHECK (atomic_load (&disk.blocks) * MEMORY_DISK_BLOCK < 1 << 20);
  CHECK (atomic_load (&control.calls) < 20);
  memory_disk_free (&disk);
}

/* ---------------------------------------------------------------- refusals */

static void
refused (struct create_options o, const char *message)
{
  describe (&o);
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  if (create (&o) == 0)
    check_failed (__FILE__, __LINE__, "%s: was made", what);
  else
    CHECK_ERROR (EINVAL, message);
  CHECK_EQ (atomic_load (&control.calls), 0);
  memory_disk_free (&disk);
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

  CHECK_OK (header_decode ("test", disk.data, o->cluster_size,
                           atomic_load (&disk.size), &h));
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
      memset (&control, 0, sizeof control);
      for (len = 1; len <= 1024; ++len) {
        /* The header, two extensions (format, end), the name. */
        const unsigned most = bits > 10 ? 1023
          : o.cluster_size - (version == 2 ? 72 : 112) - 16 - 8;

        if (len % 64 != 1 && len + 1 < most && len != 1023)
          continue;
        o.backing = name_of (len);
        memory_disk_init (&disk, NULL, 0);
        if (len > most) {
          CHECK_EQ (create (&o), -1);
          CHECK_ERROR (EINVAL, len == 1024 ? "the limit is 1023"
                       : "has no room in the first cluster");
          CHECK_EQ (atomic_load (&disk.size), 0);
        }
        else {
          CHECK_OK (create (&o));
          check_names (&o);
          image_check_clean ("names", disk.data, atomic_load (&disk.size));
          images++;
        }
        memory_disk_free (&disk);
      }
    }
  }
}

/* The names of features are there where they have room. */
static void
test_feature_names (void)
{
  struct create_options o = CREATE_DEFAULTS;

  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  CHECK_OK (create (&o));
  CHECK_EQ (get_be32 (disk.data + 112), QCOW2_EXT_FEATURE_NAMES);
  CHECK_EQ (get_be32 (disk.data + 116), 8 * QCOW2_FEATURE_ENTRY_SIZE);
  CHECK_EQ (disk.data[120 + 4 * 48], QCOW2_FEATURE_INCOMPATIBLE);
  CHECK_EQ (disk.data[120 + 4 * 48 + 1], 4);
  CHECK_STR ((const char *) disk.data + 120 + 4 * 48 + 2,
             "extended L2 entries");
  CHECK_EQ (get_be64 (disk.data + 120 + 8 * 48), 0); /* the end */
  memory_disk_free (&disk);
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
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  CHECK_OK (create (&o));
  s[0] = memory_disk_open (&disk, "test", &control);
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
  memory_disk_free (&disk);
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

/* ------------------------------------------------------ over what is there */

#define DEVICE (UINT64_C (6) << 20)

/* A block device: an image that is larger than the new one will be, and
 * garbage wherever that has nothing.
 */
static uint8_t device[DEVICE];

static void
make_device (void)
{
  struct create_options o = CREATE_DEFAULTS;
  uint64_t state = 42, i;

  o.size = 3 << 20;
  o.preallocation = PREALLOCATION_FULL;
  memset (&control, 0, sizeof control);
  memory_disk_init (&disk, NULL, 0);
  CHECK_OK (create (&o));
  random_fill (&state, device, sizeof device);
  for (i = 0; i < atomic_load (&disk.size); ++i) {
    if (disk.data[i] != 0 || i < 4096)
      device[i] = disk.data[i];
  }
  memory_disk_free (&disk);
}

static void
put_device (void)
{
  memset (&control, 0, sizeof control);
  control.fixed = true;
  memory_disk_init (&disk, device, sizeof device);
}

static void
make_over (const struct create_options *o, bool no_zero)
{
  describe (o);
  put_device ();
  CHECK (is_image ());
  control.no_zero = no_zero;
  if (create (o) == -1)
    check_failed (__FILE__, __LINE__, "%s: %s", what, error_message ());
  else
    check_made (o);
  CHECK_EQ (atomic_load (&disk.size), DEVICE);
  memory_disk_free (&disk);
}

static void
test_over (void)
{
  static const uint64_t cluster_sizes[] = { 512, 4096, 65536, 1 << 18 };
  struct create_options o = CREATE_DEFAULTS;
  unsigned i, p, order;

  for (i = 0; i < 4; ++i) {
    for (p = PREALLOCATION_OFF; p <= PREALLOCATION_FULL; ++p) {
      for (order = 0; order <= 6; order += 3) {
        o.cluster_size = cluster_sizes[i];
        o.preallocation = p;
        o.refcount_bits = 1U << order;
        o.size = 1234567;
        make_over (&o, order == 3);
        if (o.cluster_size >= 65536) {
          o.extended_l2 = true;
          make_over (&o, order == 3);
          o.extended_l2 = false;
        }
      }
    }
  }
}

/* There is no room: nothing is touched. */
static void
test_too_small (void)
{
  struct create_options o = CREATE_DEFAULTS;

  o.size = DEVICE;
  o.preallocation = PREALLOCATION_METADATA;
  put_device ();
  CHECK_EQ (create (&o), -1);
  CHECK_ERROR (ENOSPC, "resizing to ");
  CHECK (memcmp (disk.data, device, DEVICE) == 0);
  memory_disk_free (&disk);
}

/* ------------------------------------------------------------------- order */

static bool
changes_header (const struct memory_call *call)
{
  return (call->kind & (MEMORY_WRITE | MEMORY_ZERO)) && call->offset == 0;
}

/* The calls: flushed before the first sector, which comes alone, and flushed
 * after it.
 */
static void
check_end (const struct memory_log *l)
{
  const struct memory_call *last = l->call + l->nr;

  CHECK (l->nr >= 4);
  CHECK_EQ (last[-1].kind, MEMORY_FLUSH);
  CHECK_EQ (last[-2].kind, MEMORY_WRITE);
  CHECK_EQ (last[-2].offset, 0);
  CHECK_EQ (last[-2].count, SECTOR);
  CHECK_EQ (last[-3].kind, MEMORY_FLUSH);
}

static void
test_order (uint64_t cluster_size, enum preallocation preallocation,
            bool over)
{
  struct create_options o = CREATE_DEFAULTS;
  struct memory_log log = MEMORY_LOG_INIT;
  size_t i;

  o.cluster_size = cluster_size;
  o.size = 500000;
  o.preallocation = preallocation;
  put_device ();
  if (!over) {
    memory_disk_free (&disk);
    memory_disk_init (&disk, NULL, 0);
    control.fixed = false;
  }
  control.log = &log;
  CHECK_OK (create (&o));
  check_end (&log);
  if (over) { /* the old header goes first, and durably */
    CHECK (changes_header (&log.call[0]));
    CHECK_EQ (log.call[0].count, SECTOR);
    CHECK_EQ (log.call[1].kind, MEMORY_FLUSH);
  }
  /* No header in between: only zeros, over the old one. */
  for (i = over ? 3 : 0; i + 3 < log.nr; ++i)
    CHECK (log.call[i].kind != MEMORY_WRITE || log.call[i].offset > 0);
  memory_disk_free (&disk);
  memory_log_free (&log);
}

static void
test_orders (void)
{
  unsigned p;

  for (p = PREALLOCATION_OFF; p <= PREALLOCATION_FULL; ++p) {
    test_order (512, p, false);
    test_order (512, p, true);
    test_order (65536, p, false);
    test_order (65536, p, true);
  }
}

/* ---------------------------------------------------------------- failures */

/* Whether what failed can be done without: zeros can be written, and space need
 * not be there where a storage can't promise it.
 */
static bool
has_other_way (const struct memory_call *call, int err)
{
  return call->kind == MEMORY_ZERO ||
    (call->kind == MEMORY_ALLOCATE && err != ENOSPC);
}

/* What is there after call number n has failed: what was there before, or
 * nothing that could be taken for an image, or, if it was the last call, all
 * of the new one.
 */
static void
check_failed_one (const struct memory_log *l, uint64_t n, bool over)
{
  const bool last = l->nr > 3 && l->call[l->nr - 1].kind == MEMORY_FLUSH &&
    l->call[l->nr - 2].kind == MEMORY_WRITE && l->call[l->nr - 2].offset == 0;

  if (last)
    image_check_clean (what, disk.data, atomic_load (&disk.size));
  else if (!(over && memcmp (disk.data, device, DEVICE) == 0) && is_image ())
    check_failed (__FILE__, __LINE__, "%s: call %" PRIu64 " failed, and there "
                  "is an image", what, n);
}

/* Have call number n of all that change the storage fail.  Returns false if
 * there are not so many.
 */
static bool
fail_at (const struct create_options *o, bool over, uint64_t n, bool ever_after,
         int err)
{
  struct memory_log log = MEMORY_LOG_INIT;
  uint64_t failed;
  int r;

  put_device ();
  if (!over) {
    memory_disk_free (&disk);
    memory_disk_init (&disk, NULL, 0);
    control.fixed = false;
  }
  memory_fail (&control, MEMORY_CHANGES, n, err);
  control.fail_ever_after = ever_after;
  control.log = &log;
  r = create (o);
  failed = atomic_load (&control.failed);
  control.log = NULL;
  memory_fail_no_more (&control);
  if (failed == 0 || (!ever_after && has_other_way (&log.call[n - 1], err))) {
    CHECK_OK (r);
    image_check_clean (what, disk.data, atomic_load (&disk.size));
  }
  else {
    CHECK_EQ (r, -1);
    CHECK (error_errno () == err || error_errno () == EIO);
    check_failed_one (&log, n, over);
  }
  memory_disk_free (&disk);
  memory_log_free (&log);
  return failed > 0;
}

static void
test_failures (void)
{
  struct create_options o = CREATE_DEFAULTS;
  unsigned bits, p, over, err, n, rounds = 0;

  o.size = 400000;
  for (bits = 9; bits <= 16; bits += 7) {
    for (p = PREALLOCATION_OFF; p <= PREALLOCATION_FULL; ++p) {
      for (over = 0; over < 2; ++over) {
        for (err = 0; err < 4; ++err) {
          o.cluster_size = UINT64_C (1) << bits;
          o.preallocation = p;
          describe (&o);
          n = 1;
          while (fail_at (&o, over, n, err % 2 != 0, err < 2 ? EIO : ENOSPC))
            n++;
          rounds += n;
        }
      }
    }
  }
  CHECK (rounds > 200);
}

/* Space ends at each block in turn. */
static void
test_no_space (void)
{
  struct create_options o = CREATE_DEFAULTS;
  unsigned room;
  int r = -1;

  o.cluster_size = 4096;
  o.size = 100000;
  o.preallocation = PREALLOCATION_FALLOC;
  for (room = 1; r == -1 && room < 100; ++room) {
    memset (&control, 0, sizeof control);
    control.room = room;
    memory_disk_init (&disk, NULL, 0);
    r = create (&o);
    if (r == -1) {
      CHECK_ERROR (ENOSPC, "test: ");
      CHECK (!is_image ());
    }
    memory_disk_free (&disk);
  }
  CHECK (room > 25 && room < 100);
}

/* Writes that do less than they should are gone on with. */
static void
test_short_writes (void)
{
  struct create_options o = CREATE_DEFAULTS;

  o.size = 300000;
  o.cluster_size = 4096;
  o.preallocation = PREALLOCATION_FULL;
  describe (&o);
  memset (&control, 0, sizeof control);
  control.short_writes = 300;
  memory_disk_init (&disk, NULL, 0);
  CHECK_OK (create (&o));
  check_made (&o);
  memory_disk_free (&disk);
}

int
main (void)
{
  check_time_limit (600);
  test_matrix ();
  test_refcount_tables ();
  test_largest ();
  test_small ();
  test_refusals ();
  test_backing_names ();
  test_feature_names ();
  test_overlays ();
  make_device ();
  test_over ();
  test_too_small ();
  test_orders ();
  test_failures ();
  test_no_space ();
  test_short_writes ();
  printf ("%u images\n", images);
  return check_result ();
}
