/* SPDX-License-Identifier: BSD-3-Clause */

/* Building small qcow2 images in memory, right or wrong, for tests.  All
 * functions abort if memory is short.
 */

#ifndef UNIT_BUILD_H
#define UNIT_BUILD_H

#include <endian.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "base/bytes.h"
#include "memory-storage.h"
#include "qcow2/header.h"

#define BUILD_MAX_SNAPSHOTS 4

struct builder {
  uint8_t *data;
  uint64_t size; /* of the image so far */
  uint64_t capacity;

  unsigned version;
  unsigned cluster_bits;
  uint64_t cluster_size;
  bool extended;
  enum compression compression;
  uint64_t disk_size;
  uint64_t l1_offset;
  uint64_t l1_size;
  unsigned order; /* of refcounts; 4 unless build_order was called */

  unsigned nr_snapshots;
  uint64_t snapshot_l1[BUILD_MAX_SNAPSHOTS];

  /* Compressed clusters that may have bytes in one host cluster; 0: any. */
  unsigned max_sharing;
  uint64_t packed_cluster;
  unsigned packed_nr; /* that have some in there */
};

/* An image of one header cluster, an empty refcount table of one cluster
 * (nobody who only reads looks at refcounts: see build_finish) and an L1
 * table.
 */
extern void build_start (struct builder *b, unsigned version,
                         unsigned cluster_bits, bool extended,
                         enum compression compression, uint64_t disk_size);
extern void build_free (struct builder *b);

/* Add bytes or whole clusters of zeros at the end; returns their offset. */
extern uint64_t build_bytes (struct builder *b, uint64_t count);
extern uint64_t build_clusters (struct builder *b, uint64_t nr);

/* Where the L2 entry of this guest cluster is; makes its table if there is
 * none.
 */
extern uint64_t build_l2_place (struct builder *b, uint64_t cluster);

/* Set an L2 entry.  bitmap is for extended ones. */
extern void build_entry (struct builder *b, uint64_t cluster, uint64_t word,
                         uint64_t bitmap);

/* Add a host cluster with a content that follows from seed; returns its
 * offset.
 */
extern uint64_t build_data (struct builder *b, uint64_t seed);
extern void build_pattern (void *buf, size_t count, uint64_t seed);

/* Compress the cluster with the image's type and map it.  The data are
 * packed behind each other, and trail bytes of garbage follow.
 */
extern void build_compressed (struct builder *b, uint64_t cluster,
                              const void *plain, size_t trail);

/* The L2 entry of compressed data at this offset. */
extern uint64_t build_compressed_word (unsigned cluster_bits,
                                       uint64_t offset, uint64_t size);

/* Compress; both return the size, and out must have room for
 * BUILD_BOUND (in_len).
 */
#define BUILD_BOUND(len) ((len) + (len) / 8 + 1024)
extern size_t build_deflate (const void *in, size_t in_len, void *out,
                             int window_bits, int level, bool finish);
extern size_t build_zstd (const void *in, size_t in_len, void *out,
                          int level, bool checksum);

/* Refcounts of 2^order bits; version 3. */
extern void build_order (struct builder *b, unsigned order);

/* The image has a backing file of this format, "raw" or "qcow2". */
extern void build_backing (struct builder *b, const char *format);

/* Make a snapshot of the disk as it is; its ID is "1", "2" ...  So many of
 * 100 L2 tables are copied, for the disk to have its own; the others are
 * shared, and must not be changed any more.
 */
extern void build_snapshot (struct builder *b, unsigned copied,
                            uint64_t *state);

/* Write the snapshot table, the right refcounts, and the flags that go with
 * them.  After this nothing may be added.
 */
extern void build_finish (struct builder *b);

/* A storage on the image as it is now; no more may be added to it. */
extern struct storage *build_storage (const struct builder *b,
                                      struct memory_control *control);

#endif /* UNIT_BUILD_H */
