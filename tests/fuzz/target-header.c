/* SPDX-License-Identifier: BSD-3-Clause */

/* The header: which ones are accepted, what is decoded, and what is kept when
 * parts of it are changed (I8).
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "build.h"
#include "mutate.h"
#include "promise.h"
#include "qcow2/header.h"
#include "random.h"
#include "target.h"

#define PREFIX 8 /* the claimed size of the file */

struct input {
  uint64_t file_size;
  uint8_t *cluster; /* of its own: a sanitizer sees what is beyond */
  size_t len;
};

static uint32_t
field32 (const struct input *in, size_t at)
{
  return get_be32 (in->cluster + at);
}

static uint64_t
field64 (const struct input *in, size_t at)
{
  return get_be64 (in->cluster + at);
}

static bool
is_v3 (const struct input *in)
{
  return field32 (in, 4) == 3;
}

static uint32_t
header_length (const struct input *in)
{
  return is_v3 (in) ? field32 (in, 100) : QCOW2_HEADER_LENGTH_V2;
}

/* ------------------------------------------------- what should be accepted */

#define KNOWN_INCOMPATIBLE                                      \
  (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT |              \
   QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_COMPRESSION |      \
   QCOW2_INCOMPAT_EXTENDED_L2)

/* Spec: Header. */
static bool
features_are_fine (const struct input *in)
{
  const uint64_t bits = field64 (in, 72);
  const uint8_t type = header_length (in) > 104 ? in->cluster[104] : 0;

  return header_length (in) >= 104 && header_length (in) <= in->len &&
    (bits & ~KNOWN_INCOMPATIBLE) == 0 && type <= 1 &&
    (type == 1) == ((bits & QCOW2_INCOMPAT_COMPRESSION) != 0) &&
    field32 (in, 96) <= 6 &&
    (!(bits & QCOW2_INCOMPAT_EXTENDED_L2) || field32 (in, 20) >= 14);
}

static bool
backing_is_fine (const struct input *in, uint64_t *extensions_end)
{
  const uint64_t offset = field64 (in, 8);
  const uint32_t size = field32 (in, 16);

  *extensions_end = in->len;
  if (offset == 0)
    return true;
  *extensions_end = offset;
  return offset >= header_length (in) && offset <= in->len && size <= 1023 &&
    size <= in->len - offset;
}

/* Spec: Full disk encryption header pointer.  One, of an image with LUKS. */
static bool
crypto_is_fine (const struct input *in, uint32_t len, unsigned nr)
{
  return field32 (in, 32) == 2 && len == 16 && nr == 1;
}

/* Spec: Header extensions.  crypto: where the data of the pointer to the LUKS
 * header is; 0: there is none.
 */
static bool
extensions_are_fine (const struct input *in, uint64_t end, uint64_t *crypto)
{
  uint64_t at = header_length (in);
  unsigned nr = 0;

  *crypto = 0;

  while (at < end) {
    uint64_t len;

    if (end - at < 8)
      return false;
    len = field32 (in, at + 4);
    if (len > end - at - 8 ||
        (field32 (in, at) == QCOW2_EXT_BACKING_FORMAT && len > 15) ||
        (field32 (in, at) == QCOW2_EXT_DATA_FILE && len > 1023) ||
        (field32 (in, at) == QCOW2_EXT_CRYPTO &&
         !crypto_is_fine (in, len, ++nr)))
      return false;
    if (field32 (in, at) == QCOW2_EXT_END)
      return true;
    if (field32 (in, at) == QCOW2_EXT_CRYPTO)
      *crypto = at + 8;
    at += 8 + (len + 7) / 8 * 8;
  }
  return true;
}

/* Snapshots, and a backing file beside a raw data file. */
static bool
data_file_is_fine (const struct input *in)
{
  const uint64_t name = field64 (in, 8);
  const bool has_backing = name != 0 && field32 (in, 16) > 0 &&
    in->cluster[name] != 0;

  if (!is_v3 (in) || !(field64 (in, 72) & QCOW2_INCOMPAT_DATA_FILE))
    return true;
  return field32 (in, 60) == 0 &&
    !((field64 (in, 88) & QCOW2_AUTOCLEAR_RAW_DATA_FILE) && has_backing);
}

static bool
is_extended (const struct input *in)
{
  return is_v3 (in) && (field64 (in, 72) & QCOW2_INCOMPAT_EXTENDED_L2);
}

static bool
table_is_fine (const struct input *in, uint64_t offset, uint64_t bytes,
               uint64_t max, uint64_t file_size)
{
  if (bytes == 0) /* QEMU looks at its place all the same */
    return offset % in->len == 0 && offset <= INT64_MAX;
  return bytes <= max && offset != 0 && offset % in->len == 0 &&
    offset <= file_size && bytes <= file_size - offset;
}

/* The end of the file may cut off the L1 table, in part or as a whole: then the
 * image is only read.
 */
static uint64_t
l1_limit (const struct input *in)
{
  return field64 (in, 40) < QCOW2_MAX_HOST_SIZE / 2 &&
    in->file_size < QCOW2_MAX_HOST_SIZE ? QCOW2_MAX_HOST_SIZE : in->file_size;
}

static bool
tables_are_fine (const struct input *in)
{
  const uint64_t size = field64 (in, 24);
  const uint64_t per_entry = in->len * (in->len / (is_extended (in) ? 16 : 8));
  const uint64_t over = in->file_size % in->len;
  const uint64_t rounded = over == 0 || in->file_size > UINT64_MAX - in->len
    ? in->file_size : in->file_size - over + in->len;
  const uint32_t clusters = field32 (in, 56);

  return size <= INT64_MAX &&
    field32 (in, 36) >= size / per_entry + (size % per_entry != 0) &&
    table_is_fine (in, field64 (in, 40), UINT64_C (8) * field32 (in, 36),
                   QCOW2_MAX_L1_BYTES, l1_limit (in)) &&
    clusters > 0 &&
    table_is_fine (in, field64 (in, 48), clusters * in->len,
                   QCOW2_MAX_REFCOUNT_TABLE_BYTES, rounded) &&
    field32 (in, 60) <= 65536 &&
    table_is_fine (in, field64 (in, 64), UINT64_C (40) * field32 (in, 60),
                   QCOW2_MAX_SNAPSHOT_TABLE_BYTES, in->file_size);
}

/* LUKS has a header, which the file holds. */
static bool
encryption_is_fine (const struct input *in, uint64_t crypto)
{
  const uint32_t method = field32 (in, 32);
  uint64_t bytes;

  if (method < 2)
    return true;
  if (method > 2 || crypto == 0)
    return false;
  bytes = field64 (in, crypto + 8);
  return bytes > 0 && table_is_fine (in, field64 (in, crypto), bytes,
                                     QCOW2_MAX_CRYPTO_BYTES, in->file_size);
}

static bool
should_be_accepted (const struct input *in)
{
  uint64_t end, crypto;

  return (!is_v3 (in) || features_are_fine (in)) &&
    backing_is_fine (in, &end) && extensions_are_fine (in, end, &crypto) &&
    encryption_is_fine (in, crypto) && tables_are_fine (in) &&
    data_file_is_fine (in);
}

/* -------------------------------------------------------- what was decoded */

/* I8: unknown bits are named, whatever else is wrong. */
static void
check_refusal (const struct input *in)
{
  const uint64_t unknown = is_v3 (in)
    ? field64 (in, 72) & ~KNOWN_INCOMPATIBLE : 0;
  char bit[16];

  expect_error ();
  if (unknown == 0 || header_length (in) < 104 || header_length (in) > in->len)
    return;
  snprintf (bit, sizeof bit, "bit %d ", __builtin_ctzll (unknown));
  expect (error_errno () == ENOTSUP && strstr (error_message (), bit) != NULL,
          "an unknown incompatible feature is not named");
}

static void
check_name (const struct input *in, const struct header *h)
{
  const uint64_t offset = field64 (in, 8);
  const size_t size = offset == 0 ? 0 : field32 (in, 16);

  expect (memcmp (h->backing_name, in->cluster + offset, size) == 0 &&
          h->backing_name[size] == '\0', "the backing name");
}

static void
check_decoded (const struct input *in, const struct header *h)
{
  expect (h->version == field32 (in, 4) && h->cluster_size == in->len &&
          h->cluster_size == UINT64_C (1) << h->cluster_bits &&
          h->header_length == header_length (in), "version and lengths");
  expect (h->disk_size == field64 (in, 24) / 512 * 512, "the disk's size");
  expect (h->l1_size == field32 (in, 36) &&
          h->l1_offset.v == field64 (in, 40), "the L1 table");
  expect (h->refcount_table_offset.v == field64 (in, 48) &&
          h->refcount_table_clusters == field32 (in, 56) &&
          h->refcount_order == (is_v3 (in) ? field32 (in, 96) : 4),
          "the refcounts");
  expect ((uint32_t) h->encryption == field32 (in, 32), "the encryption");
  expect (h->nr_snapshots == field32 (in, 60) &&
          h->snapshots_offset.v == field64 (in, 64), "the snapshot table");
  expect (h->extended_l2 == is_extended (in) && h->subcluster_size ==
          h->cluster_size / (h->extended_l2 ? 32 : 1), "the subclusters");
  expect (h->compression == (is_v3 (in) && header_length (in) > 104
                             ? in->cluster[104] : 0), "the compression");
  expect (memchr (h->backing_format, 0, sizeof h->backing_format) != NULL,
          "the backing format is not a string");
  check_name (in, h);
}

/* -------------------------------------------------------- what was changed */

/* Decode the header with these bytes in it; NULL if it is refused. */
static bool
decode_with (const struct input *in, size_t at, const uint8_t *bytes,
             size_t count, struct header *h)
{
  uint8_t *cluster = malloc (in->len);
  int r;

  if (cluster == NULL)
    abort ();
  memcpy (cluster, in->cluster, in->len);
  memcpy (cluster + at, bytes, count);
  r = header_decode ("input", cluster, in->len, in->file_size, h);
  free (cluster);
  return r == 0;
}

static void
check_features (const struct input *in, const struct header *h)
{
  uint8_t *bytes = malloc (HEADER_FEATURES_BYTES);
  struct header changed = *h, again;

  if (bytes == NULL)
    abort ();
  header_encode_features (h, bytes);
  expect (memcmp (bytes, in->cluster + HEADER_FEATURES_OFFSET,
                  HEADER_FEATURES_BYTES) == 0,
          "feature bits are lost when they are encoded");
  changed.incompatible ^= QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT;
  changed.autoclear = 0;
  header_encode_features (&changed, bytes);
  expect (decode_with (in, HEADER_FEATURES_OFFSET, bytes,
                       HEADER_FEATURES_BYTES, &again),
          "a header is refused with other feature bits");
  changed.has_unknown = again.has_unknown; /* these two are about those bits */
  changed.raw_data = false;
  expect (memcmp (&changed, &again, sizeof again) == 0,
          "something else changes with the feature bits");
  free (bytes);
}

static void
check_refcount_table (const struct input *in, const struct header *h)
{
  uint8_t *bytes = malloc (HEADER_REFCOUNT_TABLE_BYTES);
  struct header changed = *h, again;

  if (bytes == NULL)
    abort ();
  header_encode_refcount_table (h->refcount_table_offset,
                                h->refcount_table_clusters, bytes);
  expect (memcmp (bytes, in->cluster + HEADER_REFCOUNT_TABLE_OFFSET,
                  HEADER_REFCOUNT_TABLE_BYTES) == 0,
          "the refcount table is lost when it is encoded");
  /* Half of the table that was accepted must be accepted, too. */
  changed.refcount_table_offset.v += h->refcount_table_clusters / 2 *
    h->cluster_size;
  changed.refcount_table_clusters -= h->refcount_table_clusters / 2;
  header_encode_refcount_table (changed.refcount_table_offset,
                                changed.refcount_table_clusters, bytes);
  expect (decode_with (in, HEADER_REFCOUNT_TABLE_OFFSET, bytes,
                       HEADER_REFCOUNT_TABLE_BYTES, &again) &&
          memcmp (&changed, &again, sizeof again) == 0,
          "something else changes with the refcount table");
  free (bytes);
}

/* -------------------------------------------------------------- the target */

static void
test_cluster (const struct input *in)
{
  struct header h;
  const bool accepted = header_decode ("input", in->cluster, in->len,
                                       in->file_size, &h) == 0;

  if (!accepted)
    check_refusal (in);
  expect (accepted == should_be_accepted (in),
          accepted ? "a header is accepted that is wrong"
          : "a header is refused that is right");
  if (!accepted)
    return;
  check_decoded (in, &h);
  if (is_v3 (in))
    check_features (in, &h);
  check_refcount_table (in, &h);
}

static void
test_header (const uint8_t *data, size_t size)
{
  uint8_t start[QCOW2_HEADER_LENGTH_V2] = { 0 };
  struct input in;

  if (size < PREFIX)
    return;
  in.file_size = get_be64 (data);
  data += PREFIX;
  size -= PREFIX;
  if (size > in.file_size)
    size = in.file_size;
  error_set (0, "%s", "");
  memcpy (start, data, size < sizeof start ? size : sizeof start);
  in.len = header_want ("input", start, in.file_size);
  if (in.len == 0) {
    expect_error ();
    return;
  }
  expect (in.len >= 512 && in.len <= 2 << 20 && (in.len & (in.len - 1)) == 0,
          "the size of a cluster");
  in.cluster = calloc (1, in.len);
  if (in.cluster == NULL)
    abort ();
  memcpy (in.cluster, data, size < in.len ? size : in.len);
  test_cluster (&in);
  free (in.cluster);
}

/* ----------------------------------------------------------------- mutation */

/* Where the next extension may begin. */
static size_t
some_extension (const uint8_t *p, size_t size, uint64_t *state)
{
  size_t at = size >= 104 && get_be32 (p + 4) == 3 && get_be32 (p + 100) < size
    ? get_be32 (p + 100) : QCOW2_HEADER_LENGTH_V2;

  while (at + 8 <= size && get_be32 (p + at) != 0 && random_below (state, 3)) {
    const uint64_t next = at + 8 +
      ((uint64_t) get_be32 (p + at + 4) + 7) / 8 * 8;

    if (next + 8 > size)
      break;
    at = next;
  }
  return at;
}

static void
change_extension (uint8_t *p, size_t size, uint64_t *state)
{
  static const uint32_t types[] = {
    QCOW2_EXT_END, QCOW2_EXT_BACKING_FORMAT, QCOW2_EXT_FEATURE_NAMES,
    QCOW2_EXT_BITMAPS, QCOW2_EXT_DATA_FILE, QCOW2_EXT_CRYPTO, 0x12345678,
  };
  const size_t at = some_extension (p, size, state);

  if (at + 8 > size)
    return;
  if (random_below (state, 2))
    put_be32 (p + at, types[random_below (state,
                                          sizeof types / sizeof types[0])]);
  if (random_below (state, 2))
    put_be32 (p + at + 4, random_below (state, 4)
              ? random_below (state, 1 << random_below (state, 8))
              : random_next (state) >> random_below (state, 64));
}

static void
change_file_size (uint8_t *data, uint64_t *state)
{
  const uint64_t old = get_be64 (data);

  switch (random_below (state, 4)) {
  case 0: put_be64 (data, old + random_below (state, 1025) - 512); break;
  case 1: put_be64 (data, UINT64_C (1) << random_below (state, 64)); break;
  case 2: put_be64 (data, -random_below (state, 1 << 20)); break;
  default: put_be64 (data, random_below (state, 1 << 20)); break;
  }
}

static size_t
mutate_header (uint8_t *data, size_t size, size_t max, uint64_t seed)
{
  uint64_t state = mix (seed);

  if (size <= PREFIX)
    return size;
  switch (random_below (&state, 8)) {
  case 0: case 1:
    change_extension (data + PREFIX, size - PREFIX, &state);
    return size;
  case 2:
    change_file_size (data, &state);
    return size;
  default:
    return PREFIX + mutate_image (data + PREFIX, size - PREFIX, max - PREFIX,
                                  seed, MUTATE_HEADER);
  }
}

const struct target target_header = {
  .name = "header",
  .max_size = 8 << 10,
  .test = test_header,
  .mutate = mutate_header,
};
