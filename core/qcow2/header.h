/* SPDX-License-Identifier: BSD-3-Clause */

/* The image header and its extensions, from bytes to a checked struct.
 * Pure: no I/O.  Spec: Header, Header extensions.
 */

#ifndef CORE_QCOW2_HEADER_H
#define CORE_QCOW2_HEADER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "qcow2/format.h"

enum compression {
  COMPRESSION_DEFLATE = 0, /* the values on disk */
  COMPRESSION_ZSTD = 1,
};

enum encryption {
  ENCRYPTION_NONE = 0, /* the values on disk */
  ENCRYPTION_AES = 1,
  ENCRYPTION_LUKS = 2,
};

struct header {
  uint32_t version;
  uint32_t header_length;
  unsigned cluster_bits;
  uint64_t cluster_size;
  uint64_t disk_size; /* as exposed: cut to a multiple of 512, as QEMU does */
  bool extended_l2;
  uint64_t subcluster_size; /* = cluster_size without extended L2 */

  uint64_t l1_size; /* entries */
  struct host_off l1_offset;
  uint64_t l1_missing; /* its bytes beyond the end of the file, which read as
                        * zeros */

  unsigned refcount_order;
  struct host_off refcount_table_offset;
  uint64_t refcount_table_clusters;

  uint32_t nr_snapshots;
  struct host_off snapshots_offset;

  uint64_t incompatible;
  uint64_t compatible;
  uint64_t autoclear;
  enum compression compression;

  enum encryption encryption;
  struct host_off crypto; /* ENCRYPTION_LUKS: its header, and all its keys */
  uint64_t crypto_bytes;
  uint64_t crypto_field; /* offset in the header of these two */

  /* Not checked, and stale unless the autoclear bit is set: see
   * qcow2/bitmaps.h.
   */
  uint32_t nr_bitmaps;
  uint64_t bitmaps_field; /* offset in the header of the next two */
  struct host_off bitmap_directory;
  uint64_t bitmap_directory_size;

  /* The place of QCOW2_EXT_WRITER's byte; 0: there is none. */
  struct host_off hint;
  bool hint_set;

  /* The header has contents that are unknown here, or not to be trusted, and
   * that clusters may belong to.
   */
  bool has_unknown;

  /* Empty strings where the image has none. */
  char backing_name[QCOW2_MAX_BACKING_NAME + 1];
  char backing_format[QCOW2_MAX_BACKING_FORMAT + 1];

  /* Guest data is in a file of its own (incompatible bit 2), at the guest's
   * offsets; then there are neither compressed clusters nor snapshots.
   * raw_data: that file is the disk as a raw image (autoclear bit 1); then
   * there is no backing file.
   */
  bool has_data_file, raw_data;
  char data_file_name[QCOW2_MAX_DATA_FILE_NAME + 1]; /* may be empty */
};

/* How many bytes from the start of the file header_decode needs: the first
 * cluster.  buf holds the first QCOW2_HEADER_LENGTH_V2 bytes of a file of
 * file_size bytes; name is for messages.  Returns 0 with the error set if this
 * is not an image that can be read.
 */
extern size_t header_want (const char *name, const uint8_t *buf,
                           uint64_t file_size);

/* Decode and validate the header.  buf holds the first cluster, of length len
 * (what header_want returned).  All tables that the header points to are
 * checked to be aligned, not too large, and within the file, so that the
 * caller may use them; only the L1 table may be cut off by the end of the
 * file.  Returns -1 with the error set: EINVAL for a malformed header, ENOTSUP
 * for an unknown feature.
 */
extern int header_decode (const char *name, const uint8_t *buf, size_t len,
                          uint64_t file_size, struct header *h);

/* Encode parts of the header that are changed in place, so that everything
 * else in it stays as it is (I8).  None straddles a sector of 512 bytes.
 */
#define HEADER_FEATURES_OFFSET 72 /* version 3 */
#define HEADER_FEATURES_BYTES 24
extern void header_encode_features (const struct header *h,
                                    uint8_t buf[HEADER_FEATURES_BYTES]);

#define HEADER_REFCOUNT_ORDER_OFFSET 96 /* version 3 */
#define HEADER_REFCOUNT_TABLE_OFFSET 48
#define HEADER_REFCOUNT_TABLE_BYTES 12
extern void
header_encode_refcount_table (struct host_off table, uint32_t clusters,
                              uint8_t buf[HEADER_REFCOUNT_TABLE_BYTES]);

/* The fields of the live disk and of the snapshot table, big endian.  They are
 * in the header's first sector, so that one write of that switches several.
 */
#define HEADER_DISK_SIZE_OFFSET 24
#define HEADER_L1_SIZE_OFFSET 36
#define HEADER_L1_TABLE_OFFSET 40
#define HEADER_NR_SNAPSHOTS_OFFSET 60
#define HEADER_SNAPSHOTS_OFFSET 64

#define HEADER_HINT_ENDED 0
#define HEADER_HINT_SET 1 /* any nonzero value means the same */

/* Encode a new image's header, with its extensions and its backing file's
 * name, into buf: len bytes (a cluster) of zeros.  version, feature bits,
 * compression and encryption must be consistent.  Returns -1 with the error set
 * to EINVAL if the names don't fit.
 */
extern int header_encode (const char *name, const struct header *h,
                          uint8_t *buf, size_t len);

/* log2 of the bytes of the guest's disk that an L1 entry maps. */
extern unsigned header_l1_shift (const struct header *h);

/* Check a table of nr entries of entry_size bytes each at offset: cluster
 * aligned, not at 0 (where the header is), at most max bytes, and within the
 * file of file_size bytes.  For the message, what is the table's name and
 * field the offset of the field that points to it, in the header or another
 * table.  Of an empty table only the offset is checked, which may be 0.
 * Returns -1 with the error set to EINVAL.
 */
extern int header_check_table (const char *name, const struct header *h,
                               uint64_t file_size, const char *what,
                               uint64_t field, struct host_off offset,
                               uint64_t nr, uint64_t entry_size, uint64_t max);

#endif /* CORE_QCOW2_HEADER_H */
