/* SPDX-License-Identifier: BSD-3-Clause */

/* Records which parts of an image hold metadata, so that no write of data
 * lands there, whatever a damaged image says (I7).
 *
 * Memory: up to 64 bytes for each L2 table and refcount block of the image,
 * whose number its L1 and refcount tables bound, and for each cluster of other
 * tables that are made while it is open.  Slots of removed tables are reused.
 * Up to 48 bytes for each range, of which bitmaps may have 2^20 and one for each
 * bitmap's table.
 */

#ifndef CORE_QCOW2_WRITE_OVERLAP_H
#define CORE_QCOW2_WRITE_OVERLAP_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"
#include "qcow2/format.h"

enum metadata {
  METADATA_NONE,
  METADATA_HEADER,
  METADATA_L1,
  METADATA_L2,
  METADATA_SHARED_L2, /* an L2 table whose L1 entry is not COPIED */
  METADATA_REFCOUNT_TABLE,
  METADATA_REFCOUNT_BLOCK,
  METADATA_SNAPSHOT_TABLE,
  METADATA_SNAPSHOT_L1,
  METADATA_BITMAPS,
  METADATA_BITMAP_TABLE,
  METADATA_BITS,
  METADATA_LUKS,
};

struct overlap_table; /* open addressing; see qcow2/write/overlap.c */

struct overlap_range {
  uint64_t start, end;
  _Atomic (enum metadata) kind; /* METADATA_NONE: removed */
};

struct overlap {
  unsigned cluster_bits;
  struct hash_key key; /* the image chooses what is put in the table */

  /* What is there when the image is opened.  overlap_sort sorts it; after that
   * ranges are only removed.
   */
  struct overlap_range *range;
  size_t nr_ranges, max_ranges;

  /* Clusters that come and go.  Lookups take no lock, except while the table
   * is being cleaned, when version is odd.
   */
  struct overlap_table *_Atomic table;
  _Atomic uint64_t version;
  pthread_mutex_t lock; /* for changes */
};

extern void overlap_init (struct overlap *o, unsigned cluster_bits);
extern void overlap_destroy (struct overlap *o);

/* Add a range: all clusters that these bytes touch.  Then sort, before the
 * first lookup.  Both return -1 with the error set: ENOMEM, or EINVAL if two
 * overlap (name is the image's).
 */
extern int overlap_add_range (struct overlap *o, struct host_off offset,
                              uint64_t bytes, enum metadata kind);
extern int overlap_sort (struct overlap *o, const char *name);

/* Add clusters, at any time.  Returns -1 with the error set, and nothing
 * added: ENOMEM, or EIO if one of them holds metadata of any kind already.
 */
extern int overlap_add (struct overlap *o, const char *name,
                        struct host_off offset, uint64_t nr,
                        enum metadata kind);

/* Remove clusters that overlap_add has added, or the range beginning here that
 * overlap_add_range has added.  At any time.
 */
extern void overlap_remove (struct overlap *o, struct host_off offset,
                            uint64_t nr);
extern void overlap_remove_range (struct overlap *o, struct host_off offset);

/* The kind of metadata found within these bytes; METADATA_NONE: none. */
extern enum metadata overlap_find (struct overlap *o, struct host_off offset,
                                   uint64_t bytes);

/* Whether it is what bitmaps have, whose clusters may be shared with data by
 * their refcounts, as a repair by QEMU leaves them.
 */
static inline bool
overlap_is_bitmap (enum metadata kind)
{
  return kind == METADATA_BITMAPS || kind == METADATA_BITMAP_TABLE ||
    kind == METADATA_BITS;
}

/* For messages. */
extern const char *overlap_name (enum metadata kind);

#endif /* CORE_QCOW2_WRITE_OVERLAP_H */
