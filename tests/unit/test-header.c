/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/header.c: what is accepted, what is refused, and what the refusal
 * says.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "random.h"

#define MAX_CLUSTER (UINT64_C (1) << QCOW2_MAX_CLUSTER_BITS)

static uint8_t image[MAX_CLUSTER]; /* the first cluster */
static uint64_t file_size;

/* A right header, for a disk that needs one L1 entry. */
static void
make (unsigned version, unsigned cluster_bits)
{
  const uint64_t cluster = UINT64_C (1) << cluster_bits;

  memset (image, 0, cluster);
  put_be32 (image, QCOW2_MAGIC);
  put_be32 (image + 4, version);
  put_be32 (image + 20, cluster_bits);
  put_be64 (image + 24, 20480);
  put_be32 (image + 36, 1);
  put_be64 (image + 40, 3 * cluster);
  put_be64 (image + 48, cluster);
  put_be32 (image + 56, 1);
  if (version >= 3) {
    put_be32 (image + 96, 4);
    put_be32 (image + 100, 104);
  }
  file_size = 4 * cluster;
}

static int
decode (struct header *h)
{
  const size_t len = header_want ("img", image, file_size);
  uint8_t *copy;
  int r;

  if (len == 0)
    return -1;
  /* So that a sanitizer sees what is read beyond the cluster. */
  copy = malloc (len);
  if (copy == NULL)
    abort ();
  memcpy (copy, image, len);
  r = header_decode ("img", copy, len, file_size, h);
  free (copy);
  return r;
}

static void
put (unsigned offset, unsigned width, uint64_t value)
{
  switch (width) {
  case 1: image[offset] = value; return;
  case 2: put_be16 (image + offset, value); return;
  case 4: put_be32 (image + offset, value); return;
  case 8: put_be64 (image + offset, value); return;
  }
  abort ();
}

/* One field of a right header changed. */
struct change {
  int line;
  unsigned version;
  unsigned cluster_bits;
  unsigned offset, width;
  uint64_t value;
  int errnum;             /* 0: accepted */
  const char *has, *has2; /* in the message; NULL: nothing more */
};

#define T __LINE__

static const struct change changes[] = {
  /* magic, version */
  { T, 3, 16, 0, 4, 0x514649fa, EINVAL, "not a qcow2 image", "offset 0" },
  { T, 3, 16, 0, 4, 0, EINVAL, "not a qcow2 image", NULL },
  { T, 3, 16, 4, 4, 0, ENOTSUP, "version 0", "offset 4" },
  { T, 3, 16, 4, 4, 1, ENOTSUP, "version 1", "offset 4" },
  { T, 3, 16, 4, 4, 4, ENOTSUP, "version 4", "offset 4" },
  { T, 3, 16, 4, 4, UINT32_MAX, ENOTSUP, "version 4294967295", NULL },

  /* cluster_bits */
  { T, 3, 16, 20, 4, 0, EINVAL, "cluster_bits 0", "offset 20" },
  { T, 3, 16, 20, 4, 8, EINVAL, "cluster_bits 8", "offset 20" },
  { T, 3, 16, 20, 4, 22, EINVAL, "cluster_bits 22", "offset 20" },
  { T, 3, 16, 20, 4, 64, EINVAL, "cluster_bits 64", "offset 20" },
  { T, 3, 16, 20, 4, 0x80000010, EINVAL, "cluster_bits 2147483664", NULL },

  /* the disk's size and its L1 table */
  { T, 3, 16, 24, 8, 0, 0, NULL, NULL },
  { T, 3, 16, 24, 8, 1, 0, NULL, NULL },
  { T, 3, 16, 24, 8, UINT64_C (1) << 29, 0, NULL, NULL },
  { T, 3, 16, 24, 8, (UINT64_C (1) << 29) + 1, EINVAL, "L1 table size 1",
    "offset 36" },
  { T, 3, 16, 24, 8, INT64_MAX, EINVAL, "needs 17179869184", NULL },
  { T, 3, 16, 24, 8, UINT64_C (1) << 63, EINVAL,
    "disk size 9223372036854775808", "offset 24" },
  { T, 3, 16, 24, 8, UINT64_MAX, EINVAL, "disk size 18446744073709551615",
    "offset 24" },
  { T, 2, 9, 24, 8, 32768, 0, NULL, NULL },
  { T, 2, 9, 24, 8, 32769, EINVAL, "needs 2 entries", NULL },
  { T, 3, 16, 36, 4, 0, EINVAL, "L1 table size 0", "needs 1" },
  { T, 3, 16, 36, 4, 8192, 0, NULL, NULL },
  { T, 3, 16, 36, 4, 8193, 0, NULL, NULL }, /* the end cuts it off */
  { T, 3, 16, 36, 4, 4194305, EINVAL, "4194305 entries", "33554432" },
  { T, 3, 16, 36, 4, UINT32_MAX, EINVAL, "4294967295 entries", NULL },
  { T, 3, 16, 40, 8, 0, EINVAL, "L1 table offset 0x0", "offset 40" },
  { T, 3, 16, 40, 8, 0x30200, EINVAL, "L1 table offset 0x30200",
    "cluster size 65536" },
  { T, 3, 16, 40, 8, 0x40000, 0, NULL, NULL }, /* likewise */
  { T, 3, 16, 40, 8, (UINT64_C (1) << 55) - 65536, 0, NULL, NULL },
  { T, 3, 16, 40, 8, UINT64_C (1) << 55, EINVAL,
    "L1 table at offset 0x80000000000000", "outside the file of 262144" },
  { T, 3, 16, 40, 8, UINT64_C (0xffffffffffff0000), EINVAL,
    "offset 0xffffffffffff0000", "outside" },
  { T, 3, 16, 40, 8, UINT64_C (1) << 63, EINVAL, "outside", NULL },

  /* the refcount table */
  { T, 3, 16, 48, 8, 0, EINVAL, "refcount table offset 0x0", "offset 48" },
  { T, 3, 16, 48, 8, 8, EINVAL, "refcount table offset 0x8", "offset 48" },
  { T, 3, 16, 48, 8, UINT64_C (0xffffffffffff0000), EINVAL,
    "refcount table at offset 0xffffffffffff0000", NULL },
  { T, 3, 16, 56, 4, 0, EINVAL, "refcount_table_clusters", "offset 56" },
  { T, 3, 16, 56, 4, 3, 0, NULL, NULL },
  { T, 3, 16, 56, 4, 4, EINVAL, "refcount table at offset 0x10000",
    "outside" },
  { T, 3, 16, 56, 4, 129, EINVAL, "129 entries", "8388608" },
  { T, 3, 16, 56, 4, UINT32_MAX, EINVAL, "4294967295 entries", NULL },

  /* snapshots */
  { T, 3, 16, 60, 4, 1, EINVAL, "snapshot table offset 0x0", "offset 64" },
  { T, 3, 16, 60, 4, 65537, EINVAL, "65537 snapshots", "offset 60" },
  { T, 3, 16, 60, 4, UINT32_MAX, EINVAL, "4294967295 snapshots", NULL },
  /* none: but where they would be must be a place for a table */
  { T, 3, 16, 64, 8, 0x20000, 0, NULL, NULL },
  { T, 3, 16, 64, 8, INT64_MAX & -65536, 0, NULL, NULL },
  { T, 3, 16, 64, 8, 0x20200, EINVAL, "snapshot table offset 0x20200",
    "offset 64" },
  { T, 2, 16, 64, 8, 1, EINVAL, "snapshot table offset 0x1", "offset 64" },
  { T, 3, 16, 64, 8, UINT64_C (1) << 63, EINVAL,
    "snapshot table offset 0x8000000000000000", "less than 2^63" },

  /* encryption */
  { T, 3, 16, 32, 4, 1, 0, NULL, NULL },
  { T, 3, 16, 32, 4, 2, EINVAL, "method 2 (LUKS)", "no header extension" },
  { T, 3, 16, 32, 4, 3, ENOTSUP, "method 3", "offset 32" },
  { T, 2, 16, 32, 4, 1, 0, NULL, NULL },
  { T, 3, 16, 32, 4, UINT32_MAX, ENOTSUP, "method 4294967295", "offset 32" },

  /* incompatible features */
  { T, 3, 16, 72, 8, 1, 0, NULL, NULL },
  { T, 3, 16, 72, 8, 2, 0, NULL, NULL },
  { T, 3, 16, 72, 8, 3, 0, NULL, NULL },
  { T, 3, 16, 72, 8, 4, 0, NULL, NULL },
  { T, 3, 16, 72, 8, 8, EINVAL, "compression type 0", "bit 3" },
  { T, 3, 16, 72, 8, 16, 0, NULL, NULL },
  { T, 3, 14, 72, 8, 16, 0, NULL, NULL },
  { T, 3, 13, 72, 8, 16, EINVAL, "cluster_bits 13", "at least 14" },
  { T, 3, 16, 72, 8, 32, ENOTSUP, "bit 5 (not named by the image)",
    "offset 72" },
  { T, 3, 16, 72, 8, UINT64_C (1) << 63, ENOTSUP, "bit 63 (",
    "0x8000000000000000" },
  { T, 3, 16, 72, 8, 96, ENOTSUP, "bit 5 (", "bit 6 (" },
  /* in version 2 these are an extension */
  { T, 2, 16, 72, 8, UINT64_C (0xe2792acb00000008), 0, NULL, NULL },

  /* compatible and autoclear ones don't matter */
  { T, 3, 16, 80, 8, UINT64_MAX, 0, NULL, NULL },
  { T, 3, 16, 88, 8, UINT64_MAX, 0, NULL, NULL },

  /* refcount_order */
  { T, 3, 16, 96, 4, 0, 0, NULL, NULL },
  { T, 3, 16, 96, 4, 6, 0, NULL, NULL },
  { T, 3, 16, 96, 4, 7, EINVAL, "refcount_order 7", "offset 96" },
  { T, 3, 16, 96, 4, UINT32_MAX, EINVAL, "refcount_order 4294967295", NULL },

  /* header_length */
  { T, 3, 16, 100, 4, 0, EINVAL, "header length 0", "offset 100" },
  { T, 3, 16, 100, 4, 72, EINVAL, "header length 72", "offset 100" },
  { T, 3, 16, 100, 4, 103, EINVAL, "header length 103", NULL },
  { T, 3, 16, 100, 4, 112, 0, NULL, NULL },
  { T, 3, 16, 100, 4, 4096, 0, NULL, NULL },
  { T, 3, 16, 100, 4, 65536, 0, NULL, NULL },
  { T, 3, 16, 100, 4, 65544, EINVAL, "header length 65544", "65536" },
  { T, 3, 9, 100, 4, 512, 0, NULL, NULL },
  { T, 3, 9, 100, 4, 520, EINVAL, "header length 520", "512" },
  { T, 3, 16, 100, 4, UINT32_MAX, EINVAL, "header length 4294967295", NULL },

  /* The backing file's name: its size alone means nothing. */
  { T, 3, 16, 16, 4, UINT32_MAX, 0, NULL, NULL },
  { T, 3, 16, 8, 8, 1, EINVAL, "name offset 0x1", "offset 8" },
  { T, 3, 16, 8, 8, 103, EINVAL, "name offset 0x67", "offset 8" },
  { T, 3, 16, 8, 8, 104, 0, NULL, NULL },
  { T, 3, 16, 8, 8, 65536, 0, NULL, NULL },
  { T, 3, 16, 8, 8, 65537, EINVAL, "name offset 0x10001", "offset 8" },
  { T, 3, 16, 8, 8, UINT64_MAX, EINVAL, "name offset 0xffffffffffffffff",
    NULL },
  { T, 2, 16, 8, 8, 71, EINVAL, "name offset 0x47", NULL },
  { T, 2, 16, 8, 8, 72, 0, NULL, NULL },
};

static void
test_changes (void)
{
  struct header h;
  size_t i;

  for (i = 0; i < sizeof changes / sizeof changes[0]; ++i) {
    const struct change *c = &changes[i];
    int r;

    make (c->version, c->cluster_bits);
    put (c->offset, c->width, c->value);
    error_set (0, "no error");
    r = decode (&h);
    if (c->errnum == 0) {
      check_ok (__FILE__, c->line, "header_decode", r);
      continue;
    }
    if (r != -1)
      check_failed (__FILE__, c->line, "accepted");
    check_error (__FILE__, c->line, c->errnum, "img: ");
    check_contains (__FILE__, c->line, error_message (), c->has);
    if (c->has2 != NULL)
      check_contains (__FILE__, c->line, error_message (), c->has2);
  }
}

static void
test_good (void)
{
  struct header h;
  unsigned version, bits, extended;

  for (version = 2; version <= 3; ++version) {
    for (bits = 9; bits <= 21; ++bits) {
      for (extended = 0; extended <= (version == 3 && bits >= 14); ++extended) {
        const uint64_t cluster = UINT64_C (1) << bits;

        make (version, bits);
        if (extended)
          put (72, 8, QCOW2_INCOMPAT_EXTENDED_L2);
        CHECK_EQ (header_want ("img", image, file_size), cluster);
        CHECK_OK (decode (&h));
        CHECK_EQ (h.version, version);
        CHECK_EQ (h.header_length, version == 2 ? 72 : 104);
        CHECK_EQ (h.cluster_bits, bits);
        CHECK_EQ (h.cluster_size, cluster);
        CHECK_EQ (h.disk_size, 20480);
        CHECK_EQ (h.extended_l2, extended);
        CHECK_EQ (h.subcluster_size, extended ? cluster / 32 : cluster);
        CHECK_EQ (h.l1_size, 1);
        CHECK_EQ (h.l1_offset.v, 3 * cluster);
        CHECK_EQ (h.refcount_order, 4);
        CHECK_EQ (h.refcount_table_offset.v, cluster);
        CHECK_EQ (h.refcount_table_clusters, 1);
        CHECK_EQ (h.nr_snapshots, 0);
        CHECK_EQ (h.incompatible, extended ? 16 : 0);
        CHECK_EQ (h.compression, COMPRESSION_DEFLATE);
        CHECK_STR (h.backing_name, "");
        CHECK_STR (h.backing_format, "");
        CHECK_EQ (header_l1_shift (&h), bits + bits - 3 - extended);
      }
    }
  }

  /* Every refcount width. */
  for (bits = 0; bits <= 6; ++bits) {
    make (3, 16);
    put (96, 4, bits);
    CHECK_OK (decode (&h));
    CHECK_EQ (h.refcount_order, bits);
  }
  /* In version 2 the same bytes mean nothing. */
  make (2, 16);
  put (72, 8, 0); /* the end of the extensions */
  put (96, 4, 77);
  put (100, 4, 5);
  CHECK_OK (decode (&h));
  CHECK_EQ (h.refcount_order, 4);
}

/* Sizes that are not whole sectors are cut, as QEMU does. */
static void
test_disk_size (void)
{
  static const uint64_t size[] = { 0, 1, 511, 512, 513, 20479, 20480, 20481 };
  struct header h;
  size_t i;

  for (i = 0; i < sizeof size / sizeof size[0]; ++i) {
    make (3, 16);
    put (24, 8, size[i]);
    CHECK_OK (decode (&h));
    CHECK_EQ (h.disk_size, size[i] - size[i] % 512);
  }
  /* The largest L1 table, of which the disk needs every entry. */
  make (3, 9);
  put (36, 4, 4194304);
  put (24, 8, UINT64_C (4194304) * 32768);
  file_size = 3 * 512 + (32 << 20);
  CHECK_OK (decode (&h));
  CHECK_EQ (h.l1_missing, 0);
  file_size--;
  CHECK_OK (decode (&h));
  CHECK_EQ (h.l1_missing, 1);
}

static void
test_file_size (void)
{
  struct header h;

  make (3, 16);
  for (file_size = 0; file_size < 104; ++file_size) {
    CHECK_EQ (header_want ("img", image, file_size), 0);
    CHECK_ERROR (EINVAL, file_size < 8 ? "not a qcow2 image" : "truncated");
  }
  CHECK_EQ (header_want ("img", image, 104), 65536);
  make (2, 16);
  CHECK_EQ (header_want ("img", image, 71), 0);
  CHECK_ERROR (EINVAL, "71 bytes");
  CHECK_EQ (header_want ("img", image, 72), 65536);

  /* The L1 table may end with the file, but not a byte later. */
  make (3, 16);
  file_size = 0x30008;
  CHECK_OK (decode (&h));
  CHECK_EQ (h.l1_missing, 0);
  file_size = 0x30007; /* what is missing are zeros, for who reads */
  CHECK_OK (decode (&h));
  CHECK_EQ (h.l1_missing, 1);
  file_size = 0x30000;
  CHECK_OK (decode (&h));
  CHECK_EQ (h.l1_missing, 8);
  file_size = 0x20000;
  CHECK_OK (decode (&h));
  CHECK_EQ (h.l1_missing, 8);

  /* The refcount table's last cluster may be cut off by the file's end. */
  make (3, 16);
  put (40, 8, 0x10000);
  put (48, 8, 0x30000);
  file_size = 0x30001;
  CHECK_OK (decode (&h));
  file_size = 0x30000;
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "refcount table");

  make (3, 16);
  file_size = UINT64_MAX;
  CHECK_OK (decode (&h));
}

static void
test_compression_type (void)
{
  struct header h;
  unsigned type;

  for (type = 0; type < 256; ++type) {
    make (3, 16);
    put (100, 4, 112);
    put (104, 1, type);
    put (72, 8, type == 0 ? 0 : 8);
    if (type <= 1) {
      CHECK_OK (decode (&h));
      CHECK_EQ (h.compression, type);
    }
    else {
      CHECK_EQ (decode (&h), (uint64_t) -1);
      CHECK_ERROR (ENOTSUP, "compression type");
      CHECK_HAS (error_message (), "offset 104");
    }
  }
  make (3, 16);
  put (100, 4, 112);
  put (104, 1, 1);
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "contradict");
  put (104, 1, 0);
  put (72, 8, 8);
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "contradict");

  /* A header of 104 bytes has no such field: here it is an extension. */
  make (3, 16);
  put (104, 4, 0x01020304);
  CHECK_OK (decode (&h));
  CHECK_EQ (h.compression, COMPRESSION_DEFLATE);
}

/* A file whose data is encrypted is no raw image of the disk, though QEMU says
 * so: see features_begin.
 */
static void
test_encrypted_data_file (void)
{
  struct header h;
  unsigned method;

  for (method = ENCRYPTION_AES; method <= ENCRYPTION_LUKS; ++method) {
    make (3, 16);
    put (32, 4, method);
    put (72, 8, QCOW2_INCOMPAT_DATA_FILE);
    put (88, 8, QCOW2_AUTOCLEAR_RAW_DATA_FILE);
    if (method == ENCRYPTION_LUKS) {
      CHECK_EQ (decode (&h), (uint64_t) -1);
      CHECK_HAS (error_message (), "LUKS");
      continue;
    }
    CHECK_EQ (decode (&h), 0);
    CHECK (h.has_data_file);
    CHECK (!h.raw_data);
    CHECK (!h.has_unknown);
  }
}

static unsigned
extension (unsigned at, uint32_t type, uint32_t len, const char *data)
{
  put_be32 (image + at, type);
  put_be32 (image + at + 4, len);
  if (data != NULL)
    memcpy (image + at + 8, data, len);
  return at + 8 + (len + 7) / 8 * 8;
}

static void
test_extensions (void)
{
  static const unsigned start[] = { 72, 104 };
  struct header h;
  unsigned v, at, len;

  for (v = 0; v < 2; ++v) {
    /* Unknown ones of all lengths are stepped over. */
    for (len = 0; len <= 40; ++len) {
      make (2 + v, 16);
      at = extension (start[v], 0x12345678, len, NULL);
      at = extension (at, QCOW2_EXT_BACKING_FORMAT, 5, "qcow2");
      extension (at, QCOW2_EXT_END, 0, NULL);
      CHECK_OK (decode (&h));
      CHECK_STR (h.backing_format, "qcow2");
    }
    /* What follows the end does not count, nor does the end's data; but it
     * must be there.
     */
    make (2 + v, 16);
    at = extension (start[v], QCOW2_EXT_END, 0, NULL);
    put_be32 (image + at - 4, 65536 - at);
    extension (at, QCOW2_EXT_BACKING_FORMAT, 3, "raw");
    CHECK_OK (decode (&h));
    CHECK_STR (h.backing_format, "");
    put_be32 (image + at - 4, 65536 - at + 1);
    CHECK_EQ (decode (&h), (uint64_t) -1);
    CHECK_ERROR (EINVAL, "extension 0x00000000");

    /* The format's length. */
    make (2 + v, 16);
    extension (start[v], QCOW2_EXT_BACKING_FORMAT, 15, "fifteenletters!");
    CHECK_OK (decode (&h));
    CHECK_STR (h.backing_format, "fifteenletters!");
    make (2 + v, 16);
    extension (start[v], QCOW2_EXT_BACKING_FORMAT, 16, "sixteen letters!");
    CHECK_EQ (decode (&h), (uint64_t) -1);
    CHECK_ERROR (EINVAL, "backing format");
    CHECK_HAS (error_message (), "length 16");

    /* Lengths up to the end of the cluster, and beyond. */
    make (2 + v, 9);
    extension (start[v], 0x12345678, 512 - start[v] - 8, NULL);
    CHECK_OK (decode (&h));
    make (2 + v, 9);
    extension (start[v], 0x12345678, 512 - start[v] - 7, NULL);
    CHECK_EQ (decode (&h), (uint64_t) -1);
    CHECK_ERROR (EINVAL, "extension 0x12345678");
    CHECK_HAS (error_message (), "beyond the extensions' end at 512");
    put_be32 (image + start[v] + 4, UINT32_MAX);
    CHECK_EQ (decode (&h), (uint64_t) -1);
    CHECK_ERROR (EINVAL, "length 4294967295");
    put_be32 (image + start[v] + 4, UINT32_MAX - 7);
    CHECK_EQ (decode (&h), (uint64_t) -1);

    /* Odd ends: the last one's padding is cut, or its data, or less than 8
     * bytes are left for it; the backing name is where extensions end.
     */
    for (len = 0; len <= 16; ++len) {
      make (2 + v, 9);
      at = start[v] + 8 + len;
      extension (start[v], 0x12345678, len, NULL);
      put (8, 8, at);
      put (16, 4, 9);
      memcpy (image + at, "backing/x", 9);
      CHECK_OK (decode (&h));
      CHECK_STR (h.backing_name, "backing/x");
      put (8, 8, at - 1);
      CHECK_EQ (decode (&h), (uint64_t) -1);
      CHECK_ERROR (EINVAL, len > 0 ? "beyond the extensions' end"
                   : "are cut off by the extensions' end");
    }
    for (len = 0; len <= 8; ++len) {
      make (2 + v, 9);
      put (8, 8, start[v] + len);
      put (16, 4, 9);
      if (len == 0 || len == 8)
        CHECK_OK (decode (&h));
      else {
        CHECK_EQ (decode (&h), (uint64_t) -1);
        CHECK_ERROR (EINVAL, "its type and length, 8 bytes, are cut off");
      }
    }
  }
  /* A header that fills the cluster has none. */
  make (3, 9);
  put (100, 4, 512);
  CHECK_OK (decode (&h));
  put (100, 4, 504);
  put (504, 4, 0x1234);
  CHECK_OK (decode (&h));
  put (508, 4, 1);
  CHECK_EQ (decode (&h), (uint64_t) -1);
}

static void
test_backing_name (void)
{
  struct header h;
  char name[1025];

  memset (name, 'n', sizeof name);
  make (3, 16);
  put (8, 8, 65536 - 1023);
  put (16, 4, 1023);
  memcpy (image + 65536 - 1023, name, 1023);
  CHECK_OK (decode (&h));
  name[1023] = '\0';
  CHECK_STR (h.backing_name, name);

  put (16, 4, 1024);
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "name size 1024");
  CHECK_HAS (error_message (), "offset 16");
  put (16, 4, UINT32_MAX);
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "name size 4294967295");

  make (3, 9);
  put (8, 8, 500);
  put (16, 4, 12);
  memcpy (image + 500, "twelve bytes", 12);
  CHECK_OK (decode (&h));
  CHECK_STR (h.backing_name, "twelve bytes");
  put (16, 4, 13);
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "beyond the first cluster");
  put (16, 4, 0);
  CHECK_OK (decode (&h));
  CHECK_STR (h.backing_name, "");
}

static void
feature (unsigned at, unsigned type, unsigned bit, const char *name)
{
  image[at] = type;
  image[at + 1] = bit;
  memset (image + at + 2, 0, 46);
  memcpy (image + at + 2, name, strlen (name) < 46 ? strlen (name) : 46);
}

static void
test_feature_names (void)
{
  struct header h;
  unsigned bit;
  const char *p;

  for (bit = 5; bit < 64; ++bit) {
    make (3, 16);
    put (72, 8, UINT64_C (1) << bit);
    extension (104, QCOW2_EXT_FEATURE_NAMES, 4 * 48, NULL);
    feature (112, 1, bit, "a compatible one");
    feature (160, 0, bit ^ 1, "another bit");
    feature (208, 0, bit, "the right one");
    feature (256, 0, bit, "too late");
    CHECK_EQ (decode (&h), (uint64_t) -1);
    CHECK_ERROR (ENOTSUP, "(the right one)");
  }

  /* The full length, without a zero at the end. */
  feature (208, 0, 63, "0123456789abcdef0123456789abcdef0123456789abcd");
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "(0123456789abcdef0123456789abcdef0123456789abcd)");

  /* A table that is cut off has no such entry. */
  put_be32 (image + 108, 3 * 48 - 1);
  put (104 + 8 + 3 * 48, 4, 0);
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "bit 63 (not named by the image)");
  put_be32 (image + 108, 3 * 48);

  /* Hostile bytes don't get through. */
  feature (208, 0, 63, "a\nb\033[2J\x7f\x80\xff%s%n");
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "(a\\x0ab\\x1b[2J\\x7f\\x80\\xff%s%n)");
  for (p = error_message (); *p != '\0'; ++p)
    CHECK (*p >= ' ' && *p <= '~');

  /* All at once: longer than the message can be. */
  put (72, 8, UINT64_MAX & ~UINT64_C (12));
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "0xffffffffffffffe0");

  /* The unknown bit is what is told, whatever else is wrong because of it. */
  make (3, 16);
  put (104, 1, 2);
  put (72, 8, 1 << 5);
  put (8, 8, UINT64_MAX);
  CHECK_EQ (decode (&h), (uint64_t) -1);
  CHECK_ERROR (ENOTSUP, "bit 5 (");
}

static void
test_check_table (void)
{
  struct header h;

  make (3, 16);
  CHECK_OK (decode (&h));
#define TABLE(offset, nr, size, max)                                    \
  header_check_table ("img", &h, 0x40000, "thing", 77,                  \
                      (struct host_off) { offset }, nr, size, max)
  CHECK_OK (TABLE (0, 0, 8, 0));
  CHECK_OK (TABLE (INT64_MAX & -65536, 0, 8, 0));
  CHECK_EQ (TABLE (12345, 0, 8, 0), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "img: thing offset 0x3039 (at offset 77)");
  CHECK_EQ (TABLE (UINT64_C (1) << 63, 0, 8, 0), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "though the table is empty");
  CHECK_OK (TABLE (0x10000, 1, 8, 8));
  CHECK_OK (TABLE (0x10000, 0x30000, 1, 0x30000));
  CHECK_EQ (TABLE (0x10000, 2, 8, 15), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "thing: 2 entries are more than the limit of 15");
  CHECK_EQ (TABLE (0x10000, 0x30001, 1, UINT64_MAX), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "thing at offset 0x10000, 196609 bytes");
  CHECK_EQ (TABLE (0x10000, UINT64_MAX, 8, UINT64_MAX), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "more than the limit");
  CHECK_EQ (TABLE (0x10000, UINT64_MAX / 8 + 1, 8, UINT64_MAX),
            (uint64_t) -1);
  CHECK_EQ (TABLE (UINT64_C (0xffffffffffff0000), 0x10001, 1, UINT64_MAX),
            (uint64_t) -1);
  CHECK_EQ (TABLE (0, 1, 8, 8), (uint64_t) -1);
  CHECK_ERROR (EINVAL, "at offset 77");
#undef TABLE
}

/* Whatever is accepted keeps its promises. */
static void
test_random (void)
{
  uint64_t state = 1;
  unsigned i, n, accepted = 0;

  for (i = 0; i < 200000; ++i) {
    struct header h;

    make (2 + random_below (&state, 2), 9 + random_below (&state, 3));
    for (n = random_below (&state, 5); n > 0; --n) {
      const unsigned at = random_below (&state, 128);

      if (random_below (&state, 2))
        image[at] = random_next (&state);
      else
        image[at] = random_below (&state, 4);
    }
    if (decode (&h) == -1) {
      CHECK (error_errno () == EINVAL || error_errno () == ENOTSUP);
      continue;
    }
    accepted++;
    CHECK (h.version == 2 || h.version == 3);
    CHECK (h.cluster_bits >= 9 && h.cluster_bits <= 21);
    CHECK_EQ (h.disk_size % 512, 0);
    CHECK (h.l1_size == 0 ||
           (h.l1_offset.v > 0 && h.l1_offset.v % h.cluster_size == 0 &&
            (h.l1_missing == 8 * h.l1_size ||
             h.l1_offset.v + 8 * h.l1_size - h.l1_missing <= file_size)));
    CHECK ((h.disk_size >> header_l1_shift (&h)) <= h.l1_size);
    CHECK (h.nr_snapshots == 0 ||
           (h.snapshots_offset.v > 0 &&
            h.snapshots_offset.v + 40 * h.nr_snapshots <= file_size));
    CHECK ((h.incompatible & ~UINT64_C (0x1f)) == 0);
  }
  CHECK (accepted > 10000);
}

/* Parts that are written in place: they are what is decoded from them, and
 * nothing else changes (I8).
 */
static void
test_encode_features (void)
{
  static const uint64_t incompatible[] = {
    0, QCOW2_INCOMPAT_DIRTY, QCOW2_INCOMPAT_CORRUPT,
    QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT,
  };
  uint8_t buf[HEADER_FEATURES_BYTES];
  struct header h, again;
  uint64_t state = 4;
  unsigned i;

  for (i = 0; i < 4; ++i) {
    make (3, 16);
    put (72, 8, incompatible[i]);
    put (80, 8, random_next (&state));
    put (88, 8, random_next (&state) & ~(uint64_t) QCOW2_AUTOCLEAR_BITMAPS);
    CHECK_OK (decode (&h));
    memset (buf, 0xee, sizeof buf);
    header_encode_features (&h, buf);
    CHECK (memcmp (buf, image + HEADER_FEATURES_OFFSET, sizeof buf) == 0);
    h.incompatible ^= QCOW2_INCOMPAT_DIRTY;
    h.compatible = random_next (&state);
    h.autoclear = 0;
    header_encode_features (&h, buf);
    memcpy (image + HEADER_FEATURES_OFFSET, buf, sizeof buf);
    CHECK_OK (decode (&again));
    CHECK_EQ (again.incompatible, h.incompatible);
    CHECK_EQ (again.compatible, h.compatible);
    CHECK_EQ (again.autoclear, 0);
  }
}

static void
test_encode_refcount_table (void)
{
  uint8_t buf[HEADER_REFCOUNT_TABLE_BYTES];
  struct header h;

  make (2, 12);
  file_size = 1 << 20;
  header_encode_refcount_table ((struct host_off) { 0x20000 }, 3, buf);
  memcpy (image + HEADER_REFCOUNT_TABLE_OFFSET, buf, sizeof buf);
  CHECK_OK (decode (&h));
  CHECK_EQ (h.refcount_table_offset.v, 0x20000);
  CHECK_EQ (h.refcount_table_clusters, 3);
  CHECK_EQ (h.nr_snapshots, 0); /* what follows it */
  CHECK_EQ (h.l1_offset.v, 3 * 4096); /* and what is before it */
  /* Neither is torn by a power loss. */
  CHECK (HEADER_REFCOUNT_TABLE_OFFSET + HEADER_REFCOUNT_TABLE_BYTES <= 512);
  CHECK (HEADER_FEATURES_OFFSET + HEADER_FEATURES_BYTES <= 512);
}

int
main (void)
{
  check_time_limit (100);
  test_changes ();
  test_good ();
  test_disk_size ();
  test_file_size ();
  test_compression_type ();
  test_encrypted_data_file ();
  test_extensions ();
  test_backing_name ();
  test_feature_names ();
  test_check_table ();
  test_random ();
  test_encode_features ();
  test_encode_refcount_table ();
  return check_result ();
}
