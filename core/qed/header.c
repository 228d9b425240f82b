/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "qed/header.h"

/* Offsets of fields. */
enum {
  FIELD_CLUSTER_SIZE = 4,
  FIELD_TABLE_SIZE = 8,
  FIELD_HEADER_SIZE = 12,
  FIELD_FEATURES = QED_FEATURES_AT,
  FIELD_COMPATIBLE = 24,
  FIELD_AUTOCLEAR = QED_AUTOCLEAR_AT,
  FIELD_L1_OFFSET = 40,
  FIELD_DISK_SIZE = 48,
  FIELD_BACKING_OFFSET = 56,
  FIELD_BACKING_SIZE = 60,
};

/* An entry of a table. */
#define ENTRY_BITS 3

static bool
is_power_of_2 (uint64_t n)
{
  return n != 0 && (n & (n - 1)) == 0;
}

bool
qed_header_set_sizes (struct qed_header *h, uint64_t cluster_size,
                      uint64_t table_size)
{
  if (!is_power_of_2 (cluster_size) ||
      cluster_size < UINT64_C (1) << QED_MIN_CLUSTER_BITS ||
      cluster_size > UINT64_C (1) << QED_MAX_CLUSTER_BITS ||
      !is_power_of_2 (table_size) || table_size > QED_MAX_TABLE_SIZE)
    return false;
  h->cluster_size = cluster_size;
  h->cluster_bits = __builtin_ctzll (cluster_size);
  h->table_bytes = table_size << h->cluster_bits;
  h->table_entries = h->table_bytes >> ENTRY_BITS;
  h->l1_shift = h->cluster_bits + __builtin_ctzll (h->table_entries);
  return true;
}

uint64_t
qed_header_max_size (const struct qed_header *h)
{
  const unsigned bits = h->l1_shift + __builtin_ctzll (h->table_entries);

  return bits >= 63 ? INT64_MAX : UINT64_C (1) << bits;
}

/* Unknown bits may change what everything else means: they come first. */
static int
decode_features (const char *name, const uint8_t *buf, struct qed_header *h)
{
  uint64_t unknown;

  h->features = get_le64 (buf + FIELD_FEATURES);
  h->compatible = get_le64 (buf + FIELD_COMPATIBLE);
  h->autoclear = get_le64 (buf + FIELD_AUTOCLEAR);
  unknown = h->features & ~QED_KNOWN_FEATURES;
  if (unknown == 0)
    return 0;
  error_set (ENOTSUP, "%s: unknown QED feature bit %d (features 0x%016" PRIx64
             " at offset %d)", name, __builtin_ctzll (unknown), h->features,
             FIELD_FEATURES);
  return -1;
}

static int
decode_sizes (const char *name, const uint8_t *buf, struct qed_header *h)
{
  const uint32_t cluster_size = get_le32 (buf + FIELD_CLUSTER_SIZE);
  const uint32_t table_size = get_le32 (buf + FIELD_TABLE_SIZE);
  const uint32_t header_size = get_le32 (buf + FIELD_HEADER_SIZE);

  if (!qed_header_set_sizes (h, cluster_size, 1)) {
    error_set (EINVAL, "%s: QED cluster size %" PRIu32 " at offset %d: must be "
               "a power of 2 from 4096 to 67108864", name, cluster_size,
               FIELD_CLUSTER_SIZE);
    return -1;
  }
  if (!qed_header_set_sizes (h, cluster_size, table_size)) {
    error_set (EINVAL, "%s: QED table size %" PRIu32 " at offset %d: must be "
               "1, 2, 4, 8 or 16 clusters", name, table_size,
               FIELD_TABLE_SIZE);
    return -1;
  }
  h->header_bytes = (uint64_t) header_size << h->cluster_bits;
  if (header_size == 0 || h->header_bytes > UINT32_MAX) {
    error_set (EINVAL, "%s: QED header size %" PRIu32 " at offset %d: must be "
               "1 cluster at least, and less than 4 GiB", name, header_size,
               FIELD_HEADER_SIZE);
    return -1;
  }
  return 0;
}

static int
decode_disk (const char *name, const uint8_t *buf, uint64_t file_size,
             struct qed_header *h)
{
  h->disk_size = get_le64 (buf + FIELD_DISK_SIZE);
  h->l1_offset.v = get_le64 (buf + FIELD_L1_OFFSET);
  if (h->disk_size % 512 != 0 || h->disk_size > qed_header_max_size (h)) {
    error_set (EINVAL, "%s: QED disk size %" PRIu64 " at offset %d: must be a "
               "multiple of 512, and at most %" PRIu64, name, h->disk_size,
               FIELD_DISK_SIZE, qed_header_max_size (h));
    return -1;
  }
  if (!qed_offset_is_valid (h, h->l1_offset.v, h->table_bytes, file_size)) {
    error_set (EINVAL, "%s: QED L1 table offset 0x%" PRIx64 " at offset %d: "
               "must be a multiple of the cluster size, and the table, of %"
               PRIu64 " bytes, be between the header and the end of the file",
               name, h->l1_offset.v, FIELD_L1_OFFSET, h->table_bytes);
    return -1;
  }
  return 0;
}

static int
decode_backing (const char *name, const uint8_t *buf, uint64_t file_size,
                struct qed_header *h)
{
  const uint32_t offset = get_le32 (buf + FIELD_BACKING_OFFSET);
  const uint32_t size = get_le32 (buf + FIELD_BACKING_SIZE);
  const uint64_t end = (uint64_t) offset + size;

  h->backing_name[0] = '\0';
  h->backing_offset = h->backing_size = 0;
  if (!(h->features & QED_BACKING_FILE) || size == 0)
    return 0;
  if (size > QED_MAX_BACKING_NAME || end > h->header_bytes ||
      end > file_size) {
    error_set (EINVAL, "%s: QED backing file name of %" PRIu32 " bytes at "
               "offset 0x%" PRIx32 ": must be at most %d bytes and within the "
               "header, of %" PRIu64, name, size, offset, QED_MAX_BACKING_NAME,
               h->header_bytes);
    return -1;
  }
  h->backing_offset = offset;
  h->backing_size = size;
  return 0;
}

int
qed_header_decode (const char *name, const uint8_t *buf, uint64_t file_size,
                   struct qed_header *h)
{
  if (file_size < QED_HEADER_BYTES || memcmp (buf, QED_MAGIC, 4) != 0) {
    error_set (EINVAL, "%s: not a QED image: %s", name,
               file_size < QED_HEADER_BYTES ? "too short for a header"
               : "the magic at offset 0 is another one");
    return -1;
  }
  if (decode_features (name, buf, h) == -1 ||
      decode_sizes (name, buf, h) == -1 ||
      decode_disk (name, buf, file_size, h) == -1)
    return -1;
  return decode_backing (name, buf, file_size, h);
}

int
qed_header_set_backing (const char *name, struct qed_header *h,
                        const uint8_t *bytes)
{
  if (memchr (bytes, '\0', h->backing_size) != NULL) {
    error_set (EINVAL, "%s: QED backing file name at offset 0x%" PRIx32
               ": it has a zero byte in it", name, h->backing_offset);
    return -1;
  }
  memcpy (h->backing_name, bytes, h->backing_size);
  h->backing_name[h->backing_size] = '\0';
  return 0;
}

void
qed_header_encode (const struct qed_header *h, uint8_t buf[QED_HEADER_BYTES])
{
  memcpy (buf, QED_MAGIC, 4);
  put_le32 (buf + FIELD_CLUSTER_SIZE, h->cluster_size);
  put_le32 (buf + FIELD_TABLE_SIZE, h->table_bytes >> h->cluster_bits);
  put_le32 (buf + FIELD_HEADER_SIZE, h->header_bytes >> h->cluster_bits);
  put_le64 (buf + FIELD_FEATURES, h->features);
  put_le64 (buf + FIELD_COMPATIBLE, h->compatible);
  put_le64 (buf + FIELD_AUTOCLEAR, h->autoclear);
  put_le64 (buf + FIELD_L1_OFFSET, h->l1_offset.v);
  put_le64 (buf + FIELD_DISK_SIZE, h->disk_size);
  put_le32 (buf + FIELD_BACKING_OFFSET, h->backing_offset);
  put_le32 (buf + FIELD_BACKING_SIZE, h->backing_size);
}
