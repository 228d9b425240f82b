/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/header-parts.h"

_Static_assert (HEADER_FEATURES_OFFSET == FIELD_INCOMPATIBLE &&
                HEADER_REFCOUNT_TABLE_OFFSET == FIELD_REFCOUNT_TABLE_OFFSET &&
                HEADER_DISK_SIZE_OFFSET == FIELD_SIZE &&
                HEADER_L1_SIZE_OFFSET == FIELD_L1_SIZE &&
                HEADER_L1_TABLE_OFFSET == FIELD_L1_OFFSET &&
                HEADER_NR_SNAPSHOTS_OFFSET == FIELD_NB_SNAPSHOTS &&
                HEADER_SNAPSHOTS_OFFSET == FIELD_SNAPSHOTS_OFFSET,
                "qcow2/header.h and the fields agree");

#define KNOWN_INCOMPATIBLE                                      \
  (QCOW2_INCOMPAT_DIRTY | QCOW2_INCOMPAT_CORRUPT |              \
   QCOW2_INCOMPAT_DATA_FILE | QCOW2_INCOMPAT_COMPRESSION |      \
   QCOW2_INCOMPAT_EXTENDED_L2)

size_t
header_want (const char *name, const uint8_t *buf, uint64_t file_size)
{
  uint32_t version, cluster_bits;

  if (file_size < 8) {
    error_set (EINVAL, "%s: not a qcow2 image: it has %" PRIu64 " bytes", name,
               file_size);
    return 0;
  }
  if (get_be32 (buf + FIELD_MAGIC) != QCOW2_MAGIC) {
    error_set (EINVAL, "%s: not a qcow2 image: magic 0x%08" PRIx32 " at offset "
               "0 instead of 0x%08" PRIx32, name, get_be32 (buf + FIELD_MAGIC),
               QCOW2_MAGIC);
    return 0;
  }
  version = get_be32 (buf + FIELD_VERSION);
  if (version != 2 && version != 3) {
    error_set (ENOTSUP, "%s: version %" PRIu32 " at offset %d: "
               "only qcow2 versions 2 and 3 are supported",
               name, version, FIELD_VERSION);
    return 0;
  }
  if (file_size < (version == 2 ? QCOW2_HEADER_LENGTH_V2
                   : QCOW2_HEADER_LENGTH_V3)) {
    error_set (EINVAL, "%s: truncated: its %" PRIu64 " bytes do not hold "
               "the header", name, file_size);
    return 0;
  }
  cluster_bits = get_be32 (buf + FIELD_CLUSTER_BITS);
  if (cluster_bits < QCOW2_MIN_CLUSTER_BITS ||
      cluster_bits > QCOW2_MAX_CLUSTER_BITS) {
    error_set (EINVAL, "%s: cluster_bits %" PRIu32 " at offset %d: "
               "must be from %d to %d", name, cluster_bits,
               FIELD_CLUSTER_BITS, QCOW2_MIN_CLUSTER_BITS,
               QCOW2_MAX_CLUSTER_BITS);
    return 0;
  }
  return (size_t) 1 << cluster_bits;
}

unsigned
header_l1_shift (const struct header *h)
{
  const unsigned entry_bits = h->extended_l2 ? 4 : 3;

  return h->cluster_bits + h->cluster_bits - entry_bits;
}

/* An empty table has no place, but QEMU checks its offset even so, and refuses
 * an image with an impossible one.
 */
static int
check_no_table (const char *name, const struct header *h, const char *what,
                uint64_t field, struct host_off offset)
{
  if (offset.v % h->cluster_size == 0 && offset.v <= INT64_MAX)
    return 0;
  error_set (EINVAL, "%s: %s offset 0x%" PRIx64 " (at offset %" PRIu64
             "): must be a multiple of the cluster size %" PRIu64
             " and less than 2^63, though the table is empty", name, what,
             offset.v, field, h->cluster_size);
  return -1;
}

int
header_check_table (const char *name, const struct header *h,
                    uint64_t file_size, const char *what, uint64_t field,
                    struct host_off offset, uint64_t nr, uint64_t entry_size,
                    uint64_t max)
{
  uint64_t bytes;

  if (__builtin_mul_overflow (nr, entry_size, &bytes) || bytes > max) {
    error_set (EINVAL, "%s: %s: %" PRIu64 " entries are more than the "
               "limit of %" PRIu64 " bytes allows", name, what, nr, max);
    return -1;
  }
  if (nr == 0)
    return check_no_table (name, h, what, field, offset);
  if (offset.v == 0 || offset.v % h->cluster_size != 0) {
    error_set (EINVAL, "%s: %s offset 0x%" PRIx64 " (at offset %" PRIu64
               "): must be a multiple of the cluster size %" PRIu64
               " and not 0", name, what, offset.v, field, h->cluster_size);
    return -1;
  }
  if (offset.v > file_size || bytes > file_size - offset.v) {
    error_set (EINVAL, "%s: %s at offset 0x%" PRIx64 ", %" PRIu64
               " bytes, is outside the file of %" PRIu64 " bytes: "
               "truncated?", name, what, offset.v, bytes, file_size);
    return -1;
  }
  return 0;
}

/* Find an incompatible feature's name in the image's own table.
 * Spec: Feature name table.
 */
static void
feature_name (const uint8_t *table, size_t len, unsigned bit,
              char name[QCOW2_FEATURE_NAME_SIZE + 1])
{
  size_t i;

  for (i = 0; i + QCOW2_FEATURE_ENTRY_SIZE <= len;
       i += QCOW2_FEATURE_ENTRY_SIZE) {
    if (table[i] == QCOW2_FEATURE_INCOMPATIBLE && table[i+1] == bit) {
      memcpy (name, table + i + 2, QCOW2_FEATURE_NAME_SIZE);
      name[QCOW2_FEATURE_NAME_SIZE] = '\0';
      return;
    }
  }
  snprintf (name, QCOW2_FEATURE_NAME_SIZE + 1, "not named by the image");
}

/* Refuse unknown features, by their names (I8). */
static void
refuse_incompatible (const char *name, uint64_t unknown,
                     const uint8_t *names, size_t names_len)
{
  char list[1024] = "";
  size_t used = 0;
  unsigned bit;

  for (bit = 0; bit < 64 && used < sizeof list; ++bit) {
    char feature[QCOW2_FEATURE_NAME_SIZE + 1];

    if (!(unknown & (UINT64_C (1) << bit)))
      continue;
    feature_name (names, names_len, bit, feature);
    used += snprintf (list + used, sizeof list - used, "%sbit %u (%s)",
                      used > 0 ? ", " : "", bit, feature);
  }
  error_set (ENOTSUP, "%s: incompatible features 0x%" PRIx64 " at offset %d "
             "are not supported: %s", name, unknown, FIELD_INCOMPATIBLE, list);
}

/* An unknown field that is 0 is unused.  Nor does anybody know what an image
 * without a data file means by saying that its data file is raw.
 */
static void
note_unknown_fields (const uint8_t *buf, struct header *h)
{
  const uint64_t autoclear = QCOW2_AUTOCLEAR_BITMAPS |
    (h->has_data_file ? QCOW2_AUTOCLEAR_RAW_DATA_FILE : 0);
  uint32_t i;

  for (i = FIELD_COMPRESSION_TYPE + 1; i < h->header_length; ++i)
    h->has_unknown |= buf[i] != 0;
  h->has_unknown |= (h->compatible & ~QCOW2_COMPAT_LAZY_REFCOUNTS) != 0 ||
    (h->autoclear & ~autoclear) != 0;
}

static int
decode_v3_fields (const char *name, const uint8_t *buf, struct header *h)
{
  uint8_t type = 0;

  h->compatible = get_be64 (buf + FIELD_COMPATIBLE);
  h->autoclear = get_be64 (buf + FIELD_AUTOCLEAR);
  h->has_data_file = (h->incompatible & QCOW2_INCOMPAT_DATA_FILE) != 0;
  h->refcount_order = get_be32 (buf + FIELD_REFCOUNT_ORDER);
  if (h->refcount_order > QCOW2_MAX_REFCOUNT_ORDER) {
    error_set (EINVAL, "%s: refcount_order %u at offset %d: must be at most "
               "%d", name, h->refcount_order, FIELD_REFCOUNT_ORDER,
               QCOW2_MAX_REFCOUNT_ORDER);
    return -1;
  }

  /* The field exists only in a header longer than its offset. */
  if (h->header_length > FIELD_COMPRESSION_TYPE)
    type = buf[FIELD_COMPRESSION_TYPE];
  if (type != COMPRESSION_DEFLATE && type != COMPRESSION_ZSTD) {
    error_set (ENOTSUP, "%s: compression type %u at offset %d: only 0 "
               "(deflate) and 1 (zstd) are supported", name, type,
               FIELD_COMPRESSION_TYPE);
    return -1;
  }
  if ((type != COMPRESSION_DEFLATE) !=
      ((h->incompatible & QCOW2_INCOMPAT_COMPRESSION) != 0)) {
    error_set (EINVAL, "%s: compression type %u at offset %d and incompatible "
               "feature bit 3 contradict each other", name, type,
               FIELD_COMPRESSION_TYPE);
    return -1;
  }
  h->compression = type;
  note_unknown_fields (buf, h);
  return 0;
}

/* The feature bits come first: an unknown one may change the meaning of the
 * rest of the header.
 */
static int
decode_incompatible (const char *name, const uint8_t *buf, size_t len,
                     struct header *h)
{
  const uint8_t *names = NULL;
  size_t names_len = 0;
  struct header ignored = { .version = 0 };
  uint64_t unknown;

  h->header_length = get_be32 (buf + FIELD_HEADER_LENGTH);
  if (h->header_length < QCOW2_HEADER_LENGTH_V3 || h->header_length > len) {
    error_set (EINVAL, "%s: header length %" PRIu32 " at offset %d: must be "
               "from %d to the cluster size %zu", name, h->header_length,
               FIELD_HEADER_LENGTH, QCOW2_HEADER_LENGTH_V3, len);
    return -1;
  }
  h->incompatible = get_be64 (buf + FIELD_INCOMPATIBLE);
  unknown = h->incompatible & ~KNOWN_INCOMPATIBLE;
  if (unknown == 0)
    return 0;
  /* Only for the names: other errors don't matter here. */
  (void) header_decode_extensions (name, buf, h->header_length, len, &ignored,
                                   &names, &names_len);
  refuse_incompatible (name, unknown, names, names_len);
  return -1;
}

/* The extensions end where the backing file's name begins, so check that
 * first.
 */
static int
decode_backing_name (const char *name, const uint8_t *buf, size_t len,
                     struct header *h, size_t *extensions_end)
{
  const uint64_t offset = get_be64 (buf + FIELD_BACKING_OFFSET);
  const uint32_t size = get_be32 (buf + FIELD_BACKING_SIZE);

  *extensions_end = len;
  if (offset == 0)
    return 0;
  if (offset < h->header_length || offset > len) {
    error_set (EINVAL, "%s: backing file name offset 0x%" PRIx64 " (at offset "
               "%d): must be within the first cluster, after the header",
               name, offset, FIELD_BACKING_OFFSET);
    return -1;
  }
  if (size > QCOW2_MAX_BACKING_NAME || size > len - offset) {
    error_set (EINVAL, "%s: backing file name size %" PRIu32 " at offset %d: "
               "more than %d or beyond the first cluster", name, size,
               FIELD_BACKING_SIZE, QCOW2_MAX_BACKING_NAME);
    return -1;
  }
  memcpy (h->backing_name, buf + offset, size);
  h->backing_name[size] = '\0';
  *extensions_end = offset;
  return 0;
}

static int
decode_crypt_method (const char *name, const uint8_t *buf, struct header *h)
{
  const uint32_t method = get_be32 (buf + FIELD_CRYPT_METHOD);

  if (method > ENCRYPTION_LUKS) {
    error_set (ENOTSUP, "%s: encrypted, method %" PRIu32 " (unknown) at offset "
               "%d: only 1 (AES) and 2 (LUKS) are supported", name, method,
               FIELD_CRYPT_METHOD);
    return -1;
  }
  h->encryption = method;
  return 0;
}

/* Where the LUKS header is. */
static int
check_crypto (const char *name, uint64_t file_size, const struct header *h)
{
  if (h->encryption != ENCRYPTION_LUKS)
    return 0;
  if (h->crypto_bytes == 0) {
    error_set (EINVAL, "%s: encrypted, method 2 (LUKS) at offset %d, but no "
               "header extension tells where its header is", name,
               FIELD_CRYPT_METHOD);
    return -1;
  }
  return header_check_table (name, h, file_size, "LUKS header",
                             h->crypto_field, h->crypto, h->crypto_bytes, 1,
                             QCOW2_MAX_CRYPTO_BYTES);
}

/* The end of the file may cut the L1 table off: some writers omit zeros there,
 * and QEMU opens such an image.  It is never written.
 */
static int
check_l1 (const char *name, uint64_t file_size, struct header *h)
{
  const uint64_t bytes = h->l1_size * sizeof (uint64_t);
  const bool possible = h->l1_offset.v < QCOW2_MAX_HOST_SIZE / 2;
  uint64_t end;

  if (header_check_table (name, h, possible && file_size < QCOW2_MAX_HOST_SIZE
                          ? QCOW2_MAX_HOST_SIZE : file_size, "L1 table",
                          FIELD_L1_OFFSET, h->l1_offset, h->l1_size,
                          sizeof (uint64_t), QCOW2_MAX_L1_BYTES) == -1)
    return -1;
  end = h->l1_offset.v + bytes;
  if (bytes > 0 && end > file_size)
    h->l1_missing = end - file_size < bytes ? end - file_size : bytes;
  return 0;
}

/* The disk's size and the L1 table that must cover it. */
static int
decode_disk (const char *name, const uint8_t *buf, uint64_t file_size,
             struct header *h)
{
  const uint64_t size = get_be64 (buf + FIELD_SIZE);
  const unsigned l1_shift = header_l1_shift (h);
  uint64_t l1_needed;

  if (size > INT64_MAX) {
    error_set (EINVAL, "%s: disk size %" PRIu64 " at offset %d: more than "
               "2^63 - 1", name, size, FIELD_SIZE);
    return -1;
  }
  h->disk_size = size / 512 * 512;
  h->l1_size = get_be32 (buf + FIELD_L1_SIZE);
  h->l1_offset.v = get_be64 (buf + FIELD_L1_OFFSET);

  l1_needed = (size >> l1_shift) +
    ((size & ((UINT64_C (1) << l1_shift) - 1)) != 0);
  if (h->l1_size < l1_needed) {
    error_set (EINVAL, "%s: L1 table size %" PRIu64 " at offset %d: the disk "
               "size %" PRIu64 " needs %" PRIu64 " entries", name, h->l1_size,
               FIELD_L1_SIZE, size, l1_needed);
    return -1;
  }
  return check_l1 (name, file_size, h);
}

static int
check_refcount_table (const char *name, const struct header *h,
                      uint64_t file_size)
{
  return header_check_table (name, h, file_size, "refcount table",
                             FIELD_REFCOUNT_TABLE_OFFSET,
                             h->refcount_table_offset,
                             h->refcount_table_clusters, h->cluster_size,
                             QCOW2_MAX_REFCOUNT_TABLE_BYTES);
}

static int
decode_refcount_table (const char *name, const uint8_t *buf,
                       uint64_t file_size, struct header *h)
{
  /* The end of the file may cut off the table's last cluster. */
  const uint64_t rounded_size = file_size > UINT64_MAX - h->cluster_size
    ? file_size
    : (file_size + h->cluster_size - 1) / h->cluster_size * h->cluster_size;

  h->refcount_table_offset.v = get_be64 (buf + FIELD_REFCOUNT_TABLE_OFFSET);
  h->refcount_table_clusters = get_be32 (buf + FIELD_REFCOUNT_TABLE_CLUSTERS);
  if (h->refcount_table_clusters == 0) {
    error_set (EINVAL, "%s: refcount_table_clusters at offset %d is 0",
               name, FIELD_REFCOUNT_TABLE_CLUSTERS);
    return -1;
  }
  if (check_refcount_table (name, h, rounded_size) == 0)
    return 0;
  /* For a message that has the file's own size. */
  return check_refcount_table (name, h, file_size);
}

static int
decode_snapshot_fields (const char *name, const uint8_t *buf,
                        uint64_t file_size, struct header *h)
{
  h->nr_snapshots = get_be32 (buf + FIELD_NB_SNAPSHOTS);
  h->snapshots_offset.v = get_be64 (buf + FIELD_SNAPSHOTS_OFFSET);
  if (h->nr_snapshots > QCOW2_MAX_SNAPSHOTS) {
    error_set (EINVAL, "%s: %" PRIu32 " snapshots at offset %d: the limit is "
               "%d", name, h->nr_snapshots, FIELD_NB_SNAPSHOTS,
               QCOW2_MAX_SNAPSHOTS);
    return -1;
  }
  /* Entries have variable length: this is the minimum. */
  return header_check_table (name, h, file_size, "snapshot table",
                             FIELD_SNAPSHOTS_OFFSET, h->snapshots_offset,
                             h->nr_snapshots, QCOW2_SNAPSHOT_ENTRY_SIZE,
                             QCOW2_MAX_SNAPSHOT_TABLE_BYTES);
}

/* Whether all clusters of a data file are the disk's, mapped or not, is
 * something that one which is encrypted can't be, although QEMU makes such
 * images.  So that bit is cleared when it is written, like any other that
 * nobody keeps up to date.
 */
static void
decode_raw_data (struct header *h)
{
  h->raw_data = h->has_data_file && h->encryption == ENCRYPTION_NONE &&
    (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA_FILE);
}

/* What a data file excludes: Spec: Header, on both of these feature bits. */
static int
check_data_file (const char *name, const struct header *h)
{
  if (h->has_data_file && h->nr_snapshots > 0)
    error_set (EINVAL, "%s: %" PRIu32 " internal snapshots at offset %d: they "
               "and an external data file (incompatible feature bit 2) exclude "
               "each other", name, h->nr_snapshots, FIELD_NB_SNAPSHOTS);
  else if (h->has_data_file && h->backing_name[0] != '\0' &&
           (h->autoclear & QCOW2_AUTOCLEAR_RAW_DATA_FILE))
    error_set (EINVAL, "%s: a backing file at offset %d: that and a raw "
               "external data file (autoclear feature bit 1) exclude each "
               "other", name, FIELD_BACKING_OFFSET);
  else
    return 0;
  return -1;
}

/* What depends on the feature bits, all of which are known by now. */
static int
decode_features (const char *name, struct header *h)
{
  h->extended_l2 = (h->incompatible & QCOW2_INCOMPAT_EXTENDED_L2) != 0;
  if (h->extended_l2 &&
      h->cluster_bits < QCOW2_MIN_CLUSTER_BITS_EXTENDED_L2) {
    error_set (EINVAL, "%s: cluster_bits %u at offset %d: extended L2 entries "
               "need at least %d", name, h->cluster_bits, FIELD_CLUSTER_BITS,
               QCOW2_MIN_CLUSTER_BITS_EXTENDED_L2);
    return -1;
  }
  h->subcluster_size = h->cluster_size;
  if (h->extended_l2)
    h->subcluster_size /= QCOW2_SUBCLUSTERS;
  return 0;
}

int
header_decode (const char *name, const uint8_t *buf, size_t len,
               uint64_t file_size, struct header *h)
{
  size_t extensions_end;

  memset (h, 0, sizeof *h);
  h->version = get_be32 (buf + FIELD_VERSION);
  h->cluster_bits = get_be32 (buf + FIELD_CLUSTER_BITS);
  h->cluster_size = len;
  h->refcount_order = 4; /* what v2 always has */
  h->header_length = QCOW2_HEADER_LENGTH_V2;

  if (h->version >= 3 &&
      (decode_incompatible (name, buf, len, h) == -1 ||
       decode_v3_fields (name, buf, h) == -1))
    return -1;
  if (decode_backing_name (name, buf, len, h, &extensions_end) == -1 ||
      decode_crypt_method (name, buf, h) == -1 ||
      header_decode_extensions (name, buf, h->header_length, extensions_end, h,
                                NULL, NULL) == -1)
    return -1;
  decode_raw_data (h);
  if (decode_features (name, h) == -1 ||
      decode_disk (name, buf, file_size, h) == -1 ||
      decode_refcount_table (name, buf, file_size, h) == -1 ||
      decode_snapshot_fields (name, buf, file_size, h) == -1 ||
      check_data_file (name, h) == -1)
    return -1;
  return check_crypto (name, file_size, h);
}
