/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/header-parts.h"

/* Spec: Bitmaps extension.  at is the offset of its data in the header. */
static void
decode_bitmaps (const uint8_t *data, size_t at, uint32_t len, struct header *h)
{
  /* Without its feature bit the owner of its clusters is unknown. */
  h->has_unknown |= len != QCOW2_EXT_BITMAPS_BYTES || h->bitmaps_field != 0 ||
    !(h->autoclear & QCOW2_AUTOCLEAR_BITMAPS);
  if (len < QCOW2_EXT_BITMAPS_BYTES)
    return;
  h->nr_bitmaps = get_be32 (data);
  h->bitmap_directory_size = get_be64 (data + 8);
  h->bitmaps_field = at + 16;
  h->bitmap_directory.v = get_be64 (data + 16);
}

/* Spec: Full disk encryption header pointer.  at: see decode_bitmaps. */
static int
decode_crypto (const char *name, const uint8_t *data, size_t at, uint32_t len,
               struct header *h)
{
  if (h->encryption != ENCRYPTION_LUKS)
    error_set (EINVAL, "%s: header extension for LUKS at offset %zu, but the "
               "encryption method is %d", name, at - 8, h->encryption);
  else if (len != QCOW2_EXT_CRYPTO_BYTES)
    error_set (EINVAL, "%s: header extension for LUKS at offset %zu: its "
               "length %" PRIu32 " must be %d", name, at - 8, len,
               QCOW2_EXT_CRYPTO_BYTES);
  else if (h->crypto_field != 0)
    error_set (EINVAL, "%s: header extension for LUKS at offset %zu: it is the "
               "second one", name, at - 8);
  else {
    h->crypto.v = get_be64 (data);
    h->crypto_bytes = get_be64 (data + 8);
    h->crypto_field = at;
    return 0;
  }
  return -1;
}

/* A file name or the like: at most max bytes, to be copied to name. */
static int
decode_name (const char *file, const char *what, const uint8_t *data, size_t at,
             uint32_t len, uint32_t max, char *name)
{
  if (len > max) {
    error_set (EINVAL, "%s: %s name at offset %zu: its length %" PRIu32
               " is more than %" PRIu32, file, what, at, len, max);
    return -1;
  }
  memcpy (name, data, len);
  name[len] = '\0';
  return 0;
}

int
header_decode_extensions (const char *name, const uint8_t *buf, size_t start,
                          size_t end, struct header *h,
                          const uint8_t **feature_names,
                          size_t *feature_names_len)
{
  size_t at = start;

  while (at < end) {
    const uint8_t *data = buf + at + 8;
    uint32_t type, len;

    if (end - at < 8) {
      error_set (EINVAL, "%s: header extension at offset %zu: its type and "
                 "length, 8 bytes, are cut off by the extensions' end at %zu",
                 name, at, end);
      return -1;
    }
    type = get_be32 (buf + at);
    len = get_be32 (buf + at + 4);
    if (len > end - at - 8) {
      error_set (EINVAL, "%s: header extension 0x%08" PRIx32 " at offset %zu: "
                 "its length %" PRIu32 " reaches beyond the extensions' end "
                 "at %zu", name, type, at, len, end);
      return -1;
    }
    if (type == QCOW2_EXT_END)
      return 0;
    switch (type) {
    case QCOW2_EXT_BACKING_FORMAT:
      if (decode_name (name, "backing format", data, at, len,
                       QCOW2_MAX_BACKING_FORMAT, h->backing_format) == -1)
        return -1;
      break;
    case QCOW2_EXT_DATA_FILE:
      if (decode_name (name, "external data file", data, at, len,
                       QCOW2_MAX_DATA_FILE_NAME, h->data_file_name) == -1)
        return -1;
      break;
    case QCOW2_EXT_FEATURE_NAMES:
      if (feature_names != NULL) {
        *feature_names = data;
        *feature_names_len = len;
      }
      break;
    case QCOW2_EXT_BITMAPS:
      decode_bitmaps (data, at + 8, len, h);
      break;
    case QCOW2_EXT_CRYPTO:
      if (decode_crypto (name, data, at + 8, len, h) == -1)
        return -1;
      break;
    case QCOW2_EXT_WRITER:
      h->has_unknown |= len != QCOW2_EXT_WRITER_BYTES || h->hint.v != 0;
      if (len >= QCOW2_EXT_WRITER_BYTES) {
        h->hint.v = at + 8;
        h->hint_set = data[0] != HEADER_HINT_ENDED;
      }
      break;
    default: /* can safely be ignored */
      h->has_unknown = true;
      break;
    }
    /* Padding up to a multiple of 8 may be cut off by the end. */
    at += 8 + ((size_t) len + 7) / 8 * 8;
    if (at > end)
      at = end;
  }
  return 0;
}
