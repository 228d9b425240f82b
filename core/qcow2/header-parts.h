/* SPDX-License-Identifier: BSD-3-Clause */

/* What header.c, header-extensions.c and header-encode.c share. */

#ifndef CORE_QCOW2_HEADER_PARTS_H
#define CORE_QCOW2_HEADER_PARTS_H

#include "qcow2/header.h"

/* Offsets of the header's fields.  Spec: Header. */
enum {
  FIELD_MAGIC = 0,
  FIELD_VERSION = 4,
  FIELD_BACKING_OFFSET = 8,
  FIELD_BACKING_SIZE = 16,
  FIELD_CLUSTER_BITS = 20,
  FIELD_SIZE = 24,
  FIELD_CRYPT_METHOD = 32,
  FIELD_L1_SIZE = 36,
  FIELD_L1_OFFSET = 40,
  FIELD_REFCOUNT_TABLE_OFFSET = 48,
  FIELD_REFCOUNT_TABLE_CLUSTERS = 56,
  FIELD_NB_SNAPSHOTS = 60,
  FIELD_SNAPSHOTS_OFFSET = 64,
  FIELD_INCOMPATIBLE = 72,
  FIELD_COMPATIBLE = 80,
  FIELD_AUTOCLEAR = 88,
  FIELD_REFCOUNT_ORDER = HEADER_REFCOUNT_ORDER_OFFSET,
  FIELD_HEADER_LENGTH = 100,
  FIELD_COMPRESSION_TYPE = 104,
};

/* Decode the extensions in buf between start and end, where the backing file's
 * name or the second cluster begins.  An extension that is cut off there is an
 * error, as in QEMU.  The feature name table is looked for if feature_names is
 * not NULL.  Returns -1 with the error set to EINVAL.  Spec: Header extensions.
 */
extern int header_decode_extensions (const char *name, const uint8_t *buf,
                                     size_t start, size_t end,
                                     struct header *h,
                                     const uint8_t **feature_names,
                                     size_t *feature_names_len);

#endif /* CORE_QCOW2_HEADER_PARTS_H */
