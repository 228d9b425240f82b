/* SPDX-License-Identifier: BSD-3-Clause */

/* The header of a QED image: from bytes to a checked struct, and back.  Pure:
 * no I/O.  Spec: QEMU's docs/interop/qed_spec.txt, Header.
 */

#ifndef CORE_QED_HEADER_H
#define CORE_QED_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/offset.h"

#define QED_MAGIC "QED\0" /* four bytes */
#define QED_HEADER_BYTES 64

#define QED_MIN_CLUSTER_BITS 12
#define QED_MAX_CLUSTER_BITS 26
#define QED_MAX_TABLE_SIZE 16 /* clusters */
#define QED_MAX_BACKING_NAME 1023

/* Feature bits. */
#define QED_BACKING_FILE UINT64_C (1)
#define QED_NEED_CHECK UINT64_C (2)
#define QED_BACKING_NO_PROBE UINT64_C (4) /* the backing file is raw */
#define QED_KNOWN_FEATURES \
  (QED_BACKING_FILE | QED_NEED_CHECK | QED_BACKING_NO_PROBE)

/* Where the header's feature bits are, in bytes: all that writing changes. */
#define QED_FEATURES_AT 16
#define QED_AUTOCLEAR_AT 32

/* What is in a table beside offsets of clusters. */
#define QED_UNALLOCATED UINT64_C (0)
#define QED_ZERO UINT64_C (1) /* in L2 tables */

struct qed_header {
  unsigned cluster_bits;
  uint64_t cluster_size;  /* bytes */
  uint64_t table_bytes;   /* of the L1 table and of each L2 table */
  uint64_t table_entries;
  unsigned l1_shift;      /* log2 of the guest bytes that an L2 table maps */
  uint64_t header_bytes;  /* where clusters begin; those before are kept */
  uint64_t features, compatible, autoclear;
  struct host_off l1_offset;
  uint64_t disk_size;     /* bytes, a multiple of 512 */
  uint32_t backing_offset, backing_size; /* 0, 0 without a backing file */
  char backing_name[QED_MAX_BACKING_NAME + 1]; /* "" without */
};

/* Where the file's last whole cluster ends: nothing is beyond that.  As for
 * QEMU, a file consists of whole sectors.
 */
static inline uint64_t
qed_file_end (const struct qed_header *h, uint64_t file_size)
{
  return ((file_size + 511) & -UINT64_C (512)) & -h->cluster_size;
}

/* Whether bytes at this offset of a file may be clusters. */
static inline bool
qed_offset_is_valid (const struct qed_header *h, uint64_t offset,
                     uint64_t bytes, uint64_t file_size)
{
  const uint64_t end = qed_file_end (h, file_size);

  return (offset & (h->cluster_size - 1)) == 0 && offset >= h->header_bytes &&
    bytes <= end && offset <= end - bytes;
}

/* Decode the first QED_HEADER_BYTES of a file of this size; name is for
 * messages.  backing_name stays empty: see qed_header_set_backing.  Returns -1
 * with the error set: ENOTSUP for unknown feature bits, otherwise EINVAL.
 */
extern int qed_header_decode (const char *name, const uint8_t *buf,
                              uint64_t file_size, struct qed_header *h);

/* Take the name, of backing_size bytes. */
extern int qed_header_set_backing (const char *name, struct qed_header *h,
                                   const uint8_t *bytes);

/* What cluster_size and table_size (in clusters) lead to; false if they can't
 * be.  Sets all from cluster_bits to l1_shift.
 */
extern bool qed_header_set_sizes (struct qed_header *h, uint64_t cluster_size,
                                  uint64_t table_size);

/* The largest disk that its tables can map, in bytes, or INT64_MAX if that is
 * less.
 */
extern uint64_t qed_header_max_size (const struct qed_header *h);

extern void qed_header_encode (const struct qed_header *h,
                               uint8_t buf[QED_HEADER_BYTES]);

#endif /* CORE_QED_HEADER_H */
