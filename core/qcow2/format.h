/* SPDX-License-Identifier: BSD-3-Clause */

/* The qcow2 on-disk layout: magic numbers, offsets, masks and limits.
 *
 * "Spec:" in the comments of core/ names a section of the format's
 * specification, docs/interop/qcow2.txt in QEMU's source.  Everything on disk
 * is big endian.
 */

#ifndef CORE_QCOW2_FORMAT_H
#define CORE_QCOW2_FORMAT_H

#include <stdint.h>

#include "base/bytes.h"
#include "base/offset.h"

/* Spec: Header. */
#define QCOW2_MAGIC UINT32_C (0x514649fb) /* "QFI\xfb" */

#define QCOW2_HEADER_LENGTH_V2 72
#define QCOW2_HEADER_LENGTH_V3 104 /* the least that v3 allows */
#define QCOW2_HEADER_LENGTH_NEW 112 /* in new images: all known fields */

#define QCOW2_INCOMPAT_DIRTY (UINT64_C (1) << 0)
#define QCOW2_INCOMPAT_CORRUPT (UINT64_C (1) << 1)
#define QCOW2_INCOMPAT_DATA_FILE (UINT64_C (1) << 2)
#define QCOW2_INCOMPAT_COMPRESSION (UINT64_C (1) << 3)
#define QCOW2_INCOMPAT_EXTENDED_L2 (UINT64_C (1) << 4)

#define QCOW2_COMPAT_LAZY_REFCOUNTS (UINT64_C (1) << 0)

#define QCOW2_AUTOCLEAR_BITMAPS (UINT64_C (1) << 0)
#define QCOW2_AUTOCLEAR_RAW_DATA_FILE (UINT64_C (1) << 1)

/* Spec: Header extensions. */
#define QCOW2_EXT_END UINT32_C (0)
#define QCOW2_EXT_BACKING_FORMAT UINT32_C (0xe2792aca)
#define QCOW2_EXT_FEATURE_NAMES UINT32_C (0x6803f857)
#define QCOW2_EXT_BITMAPS UINT32_C (0x23852875)
#define QCOW2_EXT_BITMAPS_BYTES 24
#define QCOW2_EXT_CRYPTO UINT32_C (0x0537be77)
#define QCOW2_EXT_CRYPTO_BYTES 16
#define QCOW2_EXT_DATA_FILE UINT32_C (0x44415441) /* "DATA" */

/* Our own, in new images: one byte, nonzero from before a writer's first
 * change until it has closed the image without leaks.  It is only a hint:
 * programs that don't know the extension leave it as it is.
 */
#define QCOW2_EXT_WRITER UINT32_C (0x77726974) /* "writ" */
#define QCOW2_EXT_WRITER_BYTES 1

/* Spec: Feature name table. */
#define QCOW2_FEATURE_ENTRY_SIZE 48
#define QCOW2_FEATURE_NAME_SIZE 46
#define QCOW2_FEATURE_INCOMPATIBLE 0
#define QCOW2_FEATURE_COMPATIBLE 1
#define QCOW2_FEATURE_AUTOCLEAR 2

/* Limits.  Where the spec sets none they are QEMU's, so that whatever
 * QEMU opens opens here too (I11: nothing unbounded).
 */
#define QCOW2_MIN_CLUSTER_BITS 9
#define QCOW2_MAX_CLUSTER_BITS 21
#define QCOW2_MIN_CLUSTER_BITS_EXTENDED_L2 14
#define QCOW2_MAX_REFCOUNT_ORDER 6
#define QCOW2_MAX_L1_BYTES (UINT64_C (32) << 20)
#define QCOW2_MAX_REFCOUNT_TABLE_BYTES (UINT64_C (8) << 20)
#define QCOW2_MAX_BACKING_NAME 1023
#define QCOW2_MAX_BACKING_FORMAT 15
#define QCOW2_MAX_DATA_FILE_NAME 1023
#define QCOW2_MAX_SNAPSHOTS 65536
#define QCOW2_MAX_SNAPSHOT_TABLE_BYTES (UINT64_C (64) << 20)
#define QCOW2_MAX_SNAPSHOT_EXTRA 1024
#define QCOW2_MAX_BITMAPS 65535
#define QCOW2_MAX_BITMAP_DIRECTORY_BYTES (UINT64_C (1024) * 65535)
#define QCOW2_MAX_BITMAP_BYTES (UINT64_C (512) << 20) /* of its bits */
#define QCOW2_MAX_BITMAP_NAME 1023
#define QCOW2_MIN_BITMAP_GRANULARITY_BITS 9
#define QCOW2_MAX_BITMAP_GRANULARITY_BITS 31

/* QEMU makes LUKS headers of 2 MiB, and sets no limit. */
#define QCOW2_MAX_CRYPTO_BYTES (UINT64_C (64) << 20)

/* Spec: Cluster mapping.  Bits 9 to 55 of L1 and standard L2 entries
 * are a host offset.
 */
#define QCOW2_ENTRY_OFFSET_MASK UINT64_C (0x00fffffffffffe00)
#define QCOW2_ENTRY_COPIED (UINT64_C (1) << 63)
#define QCOW2_L2_COMPRESSED (UINT64_C (1) << 62)
#define QCOW2_L2_ZERO (UINT64_C (1) << 0)

/* Spec: Host cluster management: entries of the refcount table. */
#define QCOW2_REFCOUNT_BLOCK_MASK UINT64_C (0xfffffffffffffe00)

/* Clusters lie below this, since their offsets have 56 bits. */
#define QCOW2_MAX_HOST_SIZE (UINT64_C (1) << 56)

/* Spec: Extended L2 Entries. */
#define QCOW2_SUBCLUSTERS 32

/* Spec: Compressed Clusters Descriptor. */
#define QCOW2_COMPRESSED_SECTOR 512

/* Spec: Bitmap directory: an entry's fixed part, and the fields in it. */
#define QCOW2_BITMAP_ENTRY_SIZE 24
#define QCOW2_BITMAP_FIELD_TABLE 0
#define QCOW2_BITMAP_FIELD_TABLE_SIZE 8
#define QCOW2_BITMAP_FIELD_FLAGS 12
#define QCOW2_BITMAP_FIELD_TYPE 16
#define QCOW2_BITMAP_FIELD_GRANULARITY 17
#define QCOW2_BITMAP_FIELD_NAME_SIZE 18
#define QCOW2_BITMAP_FIELD_EXTRA_SIZE 20

#define QCOW2_BITMAP_IN_USE (UINT32_C (1) << 0)
#define QCOW2_BITMAP_AUTO (UINT32_C (1) << 1)
#define QCOW2_BITMAP_EXTRA_COMPATIBLE (UINT32_C (1) << 2)
#define QCOW2_BITMAP_RESERVED_FLAGS UINT32_C (0xfffffff8)
#define QCOW2_BITMAP_DIRTY_TRACKING 1 /* the only type */

/* Spec: Bitmap table: an entry has no bits but these, and an offset. */
#define QCOW2_BITMAP_ALL_ONES (UINT64_C (1) << 0)

/* Spec: Snapshots: a table entry's fixed part, the fields in it, and those in
 * the extra data, as far as the specification has them.
 */
#define QCOW2_SNAPSHOT_ENTRY_SIZE 40
#define QCOW2_SNAPSHOT_FIELD_L1_OFFSET 0
#define QCOW2_SNAPSHOT_FIELD_L1_SIZE 8
#define QCOW2_SNAPSHOT_FIELD_ID_SIZE 12
#define QCOW2_SNAPSHOT_FIELD_NAME_SIZE 14
#define QCOW2_SNAPSHOT_FIELD_DATE_SEC 16
#define QCOW2_SNAPSHOT_FIELD_DATE_NSEC 20
#define QCOW2_SNAPSHOT_FIELD_VM_CLOCK 24
#define QCOW2_SNAPSHOT_FIELD_VM_STATE_SIZE 32
#define QCOW2_SNAPSHOT_FIELD_EXTRA_SIZE 36
#define QCOW2_SNAPSHOT_EXTRA_VM_STATE_SIZE 0
#define QCOW2_SNAPSHOT_EXTRA_DISK_SIZE 8
#define QCOW2_SNAPSHOT_EXTRA_ICOUNT 16
#define QCOW2_SNAPSHOT_EXTRA_KNOWN 24 /* where they end */

#endif /* CORE_QCOW2_FORMAT_H */
