/* SPDX-License-Identifier: BSD-3-Clause */

/* The mapping of one qcow2 file, from guest ranges to runs.  It serves
 * reads and extents alike.
 *
 * Invariants:
 *
 *  M1  A run lies within what was asked for and is at least a byte long.
 *  M2  A DATA run is contiguous on the host; its first byte lies within the
 *      file, rounded up to a cluster.
 *  M3  Nothing of an entry is used before entry.h has decoded it.
 *  M4  No lock is taken by a lookup of cached tables (I12).
 */

#ifndef QCOW2_MAP_H
#define QCOW2_MAP_H

#include <stdint.h>

#include "cache.h"
#include "entry.h"
#include "error.h"
#include "format.h"
#include "storage.h"

enum run_kind {
  RUN_UNALLOCATED, /* ask the backing file */
  RUN_ZERO_PLAIN,
  RUN_ZERO_ALLOC,
  RUN_DATA,
  RUN_COMPRESSED,
  RUN_DAMAGED, /* the reason is set as the error */
};

struct run {
  enum run_kind kind;
  uint64_t length; /* in bytes of the guest's disk */
  /* DATA: of the first byte; COMPRESSED: of the compressed data. */
  struct host_off host;
  uint32_t compressed_size; /* COMPRESSED: bytes at most */
};

/* One mapping of a qcow2 file: that of the live disk or of a snapshot. */
struct map {
  struct storage *storage;
  unsigned id; /* of the storage, in the cache */
  struct cache *cache;
  struct damage *damage;

  struct entry_format format;
  uint64_t cluster_size;
  unsigned subcluster_bits; /* = cluster_bits without extended L2 */
  uint32_t slice_bytes;
  unsigned l1_shift;     /* log2 of the guest bytes that an L2 table maps */
  unsigned l2_word_bits; /* log2 of the words in an L2 entry */
  struct host_off l1_offset;
  uint64_t l1_size;   /* entries; what lies beyond is unallocated */
  uint64_t host_size; /* of the file, rounded up to a cluster */
};

/* Set up the map of a file with this header.  The L1 table must have been
 * checked by header_check_table.
 */
extern void map_init (struct map *m, const struct header *h,
                      struct storage *storage, unsigned id,
                      struct cache *cache, struct damage *damage,
                      struct host_off l1_offset, uint64_t l1_size);

/* Find the run at offset, of at most max (> 0) bytes.  It may be shorter
 * than what is contiguous; the next lookup goes on.  A damaged entry makes
 * a DAMAGED run, as far as that entry reaches.  Returns -1 with the error
 * set if a table can't be read.  Spec: Cluster mapping.
 */
extern int map_lookup (const struct map *m, struct guest_off offset,
                       uint64_t max, struct run *run);

#endif /* QCOW2_MAP_H */
