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
  uint64_t l1_missing; /* bytes of it that lie beyond the end of the file, and
                        * read as zeros */

  unsigned refcount_order;
  struct host_off refcount_table_offset;
  uint64_t refcount_table_clusters;

  uint32_t nr_snapshots;
  struct host_off snapshots_offset;

  uint64_t incompatible;
  uint64_t compatible;
  uint64_t autoclear;
  enum compression compression;

  /* Not checked, and stale unless the autoclear bit is set: see qcow2/bitmaps.h. */
  uint32_t nr_bitmaps;
  uint64_t bitmaps_field; /* the header's offset of what follows */
  struct host_off bitmap_directory;
  uint64_t bitmap_directory_size;

  /* The hint of QCOW2_EXT_WRITER: where its byte is; 0: there is none. */
  struct host_off hint;
  bool hint_set;

  /* There is something in it that is not known here, or not to be believed:
   * clusters may belong to that.
   */
  bool has_unknown;

  /* Empty strings where the image has none. */
  char backing_name[QCOW2_MAX_BACKING_NAME + 1];
  char backing_format[QCOW2_MAX_BACKING_FORMAT + 1];
};

/* The number of bytes of the file's beginning that header_decode wants:
 * the first cluster.  buf holds the first QCOW2_HEADER_LENGTH_V2 bytes of
 * a file of file_size bytes.  Returns 0 with the error set if this is not
 * an image that can be read.  name is for messages.
 */
extern size_t header_want (const char *name, const uint8_t *buf,
                           uint64_t file_size);

/* Decode and validate the header.  buf holds the first cluster, of length
 * len (what header_want returned).  All tables that the header points to
 * are checked to be aligned, of a tolerable size and within the file, so
 * that the caller may use them; but for the L1 table, which the end of the
 * file may cut off.  Returns -1 with the error set: EINVAL
 * for a malformed header, ENOTSUP for a feature that is not known here.
 */
extern int header_decode (const char *name, const uint8_t *buf, size_t len,
                          uint64_t file_size, struct header *h);

/* Parts of the header's bytes, to change them in place: whatever else is in
 * it stays as it is (I8).  None straddles a sector of 512 bytes.
 */
#define HEADER_FEATURES_OFFSET 72 /* version 3 */
#define HEADER_FEATURES_BYTES 24
extern void header_encode_features (const struct header *h,
                                    uint8_t buf[HEADER_FEATURES_BYTES]);

#define HEADER_REFCOUNT_TABLE_OFFSET 48
#define HEADER_REFCOUNT_TABLE_BYTES 12
extern void
header_encode_refcount_table (struct host_off table, uint32_t clusters,
                              uint8_t buf[HEADER_REFCOUNT_TABLE_BYTES]);

#define HEADER_HINT_ENDED 0
#define HEADER_HINT_SET 1 /* as is anything but 0 */

/* The bytes of a new image's header, with its extensions and its backing
 * file's name: buf, of len bytes (a cluster), is zeros.  version, feature bits
 * and compression must agree.  Returns -1 with the error set to EINVAL if the
 * names need more room.
 */
extern int header_encode (const char *name, const struct header *h,
                          uint8_t *buf, size_t len);

/* How many bytes of the guest's disk one entry of an L1 table maps. */
extern unsigned header_l1_shift (const struct header *h);

/* Check a table of nr entries of entry_size bytes each at offset: cluster
 * aligned, not at 0 (the header is there), at most max bytes, and not
 * outside the file of file_size bytes.  what is the table's name, field
 * the offset of the header's (or another table's) field that points there;
 * both for the message.  Of an empty table only the offset is checked, which
 * may be 0.  Returns -1 with the error set to EINVAL.
 */
extern int header_check_table (const char *name, const struct header *h,
                               uint64_t file_size, const char *what,
                               uint64_t field, struct host_off offset,
                               uint64_t nr, uint64_t entry_size, uint64_t max);

#endif /* CORE_QCOW2_HEADER_H */
