/* SPDX-License-Identifier: BSD-3-Clause */

/* From a struct to bytes: parts of a header that are changed in place, and the
 * header of a new image.
 */

#include <config.h>

#include <errno.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/header-parts.h"

void
header_encode_features (const struct header *h,
                        uint8_t buf[HEADER_FEATURES_BYTES])
{
  put_be64 (buf, h->incompatible);
  put_be64 (buf + FIELD_COMPATIBLE - FIELD_INCOMPATIBLE, h->compatible);
  put_be64 (buf + FIELD_AUTOCLEAR - FIELD_INCOMPATIBLE, h->autoclear);
}

void
header_encode_refcount_table (struct host_off table, uint32_t clusters,
                              uint8_t buf[HEADER_REFCOUNT_TABLE_BYTES])
{
  put_be64 (buf, table.v);
  put_be32 (buf + FIELD_REFCOUNT_TABLE_CLUSTERS - FIELD_REFCOUNT_TABLE_OFFSET,
            clusters);
}

/* Features that an image made here may have, now or after other programs have
 * used it, with QEMU's names.  Spec: Feature name table.
 */
static const struct {
  uint8_t type, bit;
  const char *name;
} features[] = {
  { QCOW2_FEATURE_INCOMPATIBLE, 0, "dirty bit" },
  { QCOW2_FEATURE_INCOMPATIBLE, 1, "corrupt bit" },
  { QCOW2_FEATURE_INCOMPATIBLE, 2, "external data file" },
  { QCOW2_FEATURE_INCOMPATIBLE, 3, "compression type" },
  { QCOW2_FEATURE_INCOMPATIBLE, 4, "extended L2 entries" },
  { QCOW2_FEATURE_COMPATIBLE, 0, "lazy refcounts" },
  { QCOW2_FEATURE_AUTOCLEAR, 0, "bitmaps" },
  { QCOW2_FEATURE_AUTOCLEAR, 1, "raw external data" },
};

#define NR_FEATURES (sizeof features / sizeof features[0])

/* The size of an extension with data of this length. */
static inline size_t
extension_bytes (size_t len)
{
  return 8 + (len + 7) / 8 * 8;
}

/* Start an extension at *at.  Returns the place for its data. */
static uint8_t *
encode_extension (uint8_t *buf, size_t *at, uint32_t type, uint32_t len)
{
  uint8_t *p = buf + *at;

  put_be32 (p, type);
  put_be32 (p + 4, len);
  *at += extension_bytes (len);
  return p + 8;
}

static void
encode_feature_names (uint8_t *buf, size_t *at)
{
  uint8_t *p = encode_extension (buf, at, QCOW2_EXT_FEATURE_NAMES,
                                 NR_FEATURES * QCOW2_FEATURE_ENTRY_SIZE);
  unsigned i;

  for (i = 0; i < NR_FEATURES; ++i, p += QCOW2_FEATURE_ENTRY_SIZE) {
    p[0] = features[i].type;
    p[1] = features[i].bit;
    memcpy (p + 2, features[i].name, strlen (features[i].name));
  }
}

static void
encode_crypto (const struct header *h, uint8_t *buf, size_t *at)
{
  uint8_t *p = encode_extension (buf, at, QCOW2_EXT_CRYPTO,
                                 QCOW2_EXT_CRYPTO_BYTES);

  put_be64 (p, h->crypto.v);
  put_be64 (p + 8, h->crypto_bytes);
}

static void
encode_v3_fields (const struct header *h, uint8_t *buf)
{
  header_encode_features (h, buf + HEADER_FEATURES_OFFSET);
  put_be32 (buf + FIELD_REFCOUNT_ORDER, h->refcount_order);
  put_be32 (buf + FIELD_HEADER_LENGTH, QCOW2_HEADER_LENGTH_NEW);
  buf[FIELD_COMPRESSION_TYPE] = h->compression;
}

static void
encode_fields (const struct header *h, uint8_t *buf)
{
  put_be32 (buf + FIELD_MAGIC, QCOW2_MAGIC);
  put_be32 (buf + FIELD_VERSION, h->version);
  put_be32 (buf + FIELD_CLUSTER_BITS, h->cluster_bits);
  put_be64 (buf + FIELD_SIZE, h->disk_size);
  put_be32 (buf + FIELD_CRYPT_METHOD, h->encryption);
  put_be32 (buf + FIELD_L1_SIZE, h->l1_size);
  put_be64 (buf + FIELD_L1_OFFSET, h->l1_offset.v);
  header_encode_refcount_table (h->refcount_table_offset,
                                h->refcount_table_clusters,
                                buf + HEADER_REFCOUNT_TABLE_OFFSET);
  if (h->version >= 3)
    encode_v3_fields (h, buf);
}

int
header_encode (const char *name, const struct header *h, uint8_t *buf,
               size_t len)
{
  const size_t name_len = strlen (h->backing_name);
  const size_t format_len = strlen (h->backing_format);
  const size_t data_len = strlen (h->data_file_name);
  size_t at = h->version >= 3 ? QCOW2_HEADER_LENGTH_NEW
    : QCOW2_HEADER_LENGTH_V2;
  size_t needed = at + extension_bytes (0) + name_len;

  if (format_len > 0)
    needed += extension_bytes (format_len);
  if (data_len > 0)
    needed += extension_bytes (data_len);
  if (h->encryption == ENCRYPTION_LUKS)
    needed += extension_bytes (QCOW2_EXT_CRYPTO_BYTES);
  if (needed > len) {
    error_set (EINVAL, "%s: a %s name of %zu bytes has no room in the first "
               "cluster, of %zu bytes", name, name_len > 0 ? "backing file"
               : "data file", name_len > 0 ? name_len : data_len, len);
    return -1;
  }
  encode_fields (h, buf);
  if (format_len > 0)
    memcpy (encode_extension (buf, &at, QCOW2_EXT_BACKING_FORMAT, format_len),
            h->backing_format, format_len);
  if (data_len > 0)
    memcpy (encode_extension (buf, &at, QCOW2_EXT_DATA_FILE, data_len),
            h->data_file_name, data_len);
  if (h->encryption == ENCRYPTION_LUKS)
    encode_crypto (h, buf, &at);
  /* Left out if it doesn't fit: it only helps readers. */
  if (h->version >= 3 &&
      needed + extension_bytes (NR_FEATURES * QCOW2_FEATURE_ENTRY_SIZE) <=
      len) {
    encode_feature_names (buf, &at);
    needed += extension_bytes (NR_FEATURES * QCOW2_FEATURE_ENTRY_SIZE);
  }
  if (needed + extension_bytes (QCOW2_EXT_WRITER_BYTES) <= len)
    *encode_extension (buf, &at, QCOW2_EXT_WRITER, QCOW2_EXT_WRITER_BYTES) =
      HEADER_HINT_ENDED;
  encode_extension (buf, &at, QCOW2_EXT_END, 0);
  if (name_len > 0) {
    memcpy (buf + at, h->backing_name, name_len);
    put_be64 (buf + FIELD_BACKING_OFFSET, at);
    put_be32 (buf + FIELD_BACKING_SIZE, name_len);
  }
  return 0;
}
