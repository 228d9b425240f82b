/* SPDX-License-Identifier: BSD-3-Clause */

/* The mapping of one qcow2 file, from guest ranges to runs.  It serves
 * reads and extents alike.
 *
 * Invariants:
 *
 *  M1  A run lies within what was asked for and is at least a byte long.
 *  M2  A DATA run is contiguous on the host; its first byte lies within the
 *      file, rounded up to a cluster; in an external data file it lies where
 *      the guest has it.
 *  M3  Nothing of an entry is used before qcow2/entry.h has decoded it.
 *  M4  No lock is taken by a lookup of cached tables (I12).
 *  M5  in_place is only said of clusters which the entries of both the L1
 *      and the L2 table mark as COPIED.
 */

#ifndef CORE_QCOW2_MAP_H
#define CORE_QCOW2_MAP_H

#include <stdint.h>

#include "cache/tables.h"
#include "disk/run.h"
#include "qcow2/entry.h"
#include "qcow2/format.h"
#include "storage/storage.h"

/* One mapping of a qcow2 file: that of the live disk or of a snapshot. */
struct map {
  struct storage *tables;
  struct storage *data; /* what is not compressed; the same, or another one */

  /* Clusters of data that begin below this, rounded up to a cluster, are where
   * they may be: it is the file's size, or a 0 where all are looked at more
   * closely, since data is in a file of its own.
   */
  const _Atomic uint64_t *accepted;
  unsigned id; /* of the storage, in the cache */
  struct cache *cache;

  struct entry_format format;
  uint64_t cluster_size;
  unsigned subcluster_bits; /* = cluster_bits without extended L2 */
  uint32_t slice_bytes;
  unsigned l1_shift;     /* log2 of the guest bytes that an L2 table maps */
  unsigned l2_word_bits; /* log2 of the words in an L2 entry */
  struct host_off l1_offset;
  uint64_t l1_size; /* entries; what lies beyond is unallocated */
};

/* Set up the map of a file with this header.  The L1 table must have been
 * checked by header_check_table.
 */
extern void map_init (struct map *m, const struct header *h,
                      struct storage *storage, unsigned id,
                      struct cache *cache, struct host_off l1_offset,
                      uint64_t l1_size);

/* Data is in this file of its own, at the guest's offsets: format.data_file. */
extern void map_set_data (struct map *m, struct storage *data);

/* Find the run at offset, of at most max (> 0) bytes.  It may be shorter
 * than what is contiguous; the next lookup goes on.  A damaged entry makes
 * a DAMAGED run, as far as that entry reaches.  Returns -1 with the error
 * set if a table can't be read.  Spec: Cluster mapping.
 */
extern int map_lookup (const struct map *m, struct guest_off offset,
                       uint64_t max, struct run *run);

/* The same in a copy of the slice that maps offset, which lies at that place of
 * the file; offset + max is within it.  words are big endian.
 */
extern void map_lookup_words (const struct map *m,
                              const _Atomic uint64_t *words,
                              struct host_off slice, struct guest_off offset,
                              uint64_t max, struct run *run);

/* Where the entry of an L1 table is, and what it says: for writing. */
struct map_l1 {
  struct host_off place;
  uint64_t word;
  struct host_off table; /* 0: there is none */
  bool copied;
};

/* Look up the L1 entry that maps offset, which must be within the table.
 * Returns -1 with the error set: EIO if it can't be read, or is damaged.
 */
extern int map_l1_entry (const struct map *m, struct guest_off offset,
                         struct map_l1 *l1);

/* The L2 entries of consecutive clusters within one slice of a table. */
#define MAP_MAX_WORDS (CACHE_SLOT_BYTES / 8)

struct map_l2 {
  uint64_t cluster;      /* the guest offset of the first entry's */
  struct host_off slice; /* where it is */
  unsigned first_word;   /* of the first entry in it */
  unsigned nr_words;
  uint64_t words[MAP_MAX_WORDS];
};

/* The guest's end of the slice that maps offset. */
extern uint64_t map_slice_end (const struct map *m, struct guest_off offset);

/* Slices are numbered from the guest's start: that which maps offset, and the
 * place of the first word of offset's entry in it.
 */
extern uint64_t map_slice_number (const struct map *m,
                                  struct guest_off offset);
extern unsigned map_slice_word (const struct map *m, struct guest_off offset);

/* Look up the entries of nr clusters from that at offset on, which must be
 * within its slice, in this L2 table.  Returns -1 with the error set.
 */
extern int map_l2_entries (const struct map *m, struct host_off table,
                           struct guest_off offset, uint64_t nr,
                           struct map_l2 *l2);

/* The same for all entries of the slice that maps offset. */
extern int map_l2_slice (const struct map *m, struct host_off table,
                         struct guest_off offset, struct map_l2 *l2);

/* The clusters that a slice maps. */
extern uint64_t map_slice_clusters (const struct map *m);

/* The i-th of those, decoded.  Returns -1 with the error set (EIO) if it is
 * damaged.
 */
extern int map_l2_decode (const struct map *m, const struct map_l2 *l2,
                          unsigned i, struct l2_entry *e);

#endif /* CORE_QCOW2_MAP_H */
