/* SPDX-License-Identifier: BSD-3-Clause */

/* The mapping of a QED file, from guest ranges to runs, for reads and extents
 * alike.
 *
 * Invariants:
 *
 *  Q1  A run lies within what was asked for and is at least a byte long.
 *  Q2  A DATA run is contiguous on the host, and all of its clusters are within
 *      the file, behind the header.
 *  Q3  No offset of a table is used before it was looked at.
 *  Q4  No lock is taken by a lookup of cached tables (I12).
 *  Q5  Every data cluster may be written in place: QED shares none, and what
 *      has a place keeps it.
 *
 * Both kinds of tables are little-endian on the disk, and go through
 * cache/tables.h, whose words are big-endian.
 */

#ifndef CORE_QED_MAP_H
#define CORE_QED_MAP_H

#include <stdint.h>

#include "cache/tables.h"
#include "disk/run.h"
#include "qed/header.h"
#include "storage/storage.h"

struct qed_map {
  const struct qed_header *header;
  struct storage *storage;
  unsigned id; /* of the storage, in the cache */
  struct cache *cache;
};

/* Entries of a slice of a table, which is CACHE_SLOT_BYTES long. */
#define QED_SLICE_ENTRIES (CACHE_SLOT_BYTES / 8)

/* An entry, from the word that the cache has of it, or for it. */
static inline uint64_t
qed_swap (uint64_t word)
{
  return __builtin_bswap64 (word);
}

static inline uint64_t
qed_map_file_size (const struct qed_map *m)
{
  return atomic_load_explicit (&m->storage->size, memory_order_acquire);
}

/* Find the run at offset, of at most max (> 0) bytes.  It may be shorter than
 * what is contiguous; the next lookup goes on.  A damaged entry makes a DAMAGED
 * run, as far as that entry reaches.  Returns -1 with the error set if a table
 * can't be read.  Spec: Tables.
 */
extern int qed_map_lookup (const struct qed_map *m, struct guest_off offset,
                           uint64_t max, struct run *run);

/* The entry of a table, at this offset, with this number.  Returns -1 with the
 * error set.
 */
extern int qed_map_entry (const struct qed_map *m, struct host_off table,
                          uint64_t index, uint64_t *entry);

/* The L2 table that maps offset; 0: there is none.  Returns -1 with the error
 * set: EIO if the entry can't be read, or is damaged.
 */
extern int qed_map_table (const struct qed_map *m, struct guest_off offset,
                          struct host_off *table);

static inline uint64_t
qed_l1_index (const struct qed_header *h, struct guest_off offset)
{
  return offset.v >> h->l1_shift;
}

static inline uint64_t
qed_l2_index (const struct qed_header *h, struct guest_off offset)
{
  return offset.v >> h->cluster_bits & (h->table_entries - 1);
}

#endif /* CORE_QED_MAP_H */
