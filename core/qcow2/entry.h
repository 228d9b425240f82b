/* SPDX-License-Identifier: BSD-3-Clause */

/* Entries of L1, L2 and bitmap tables, from 64-bit words (in the host's byte
 * order) to decoded values.  Pure.  Spec: Cluster mapping, Extended L2 Entries,
 * Bitmap table.
 */

#ifndef CORE_QCOW2_ENTRY_H
#define CORE_QCOW2_ENTRY_H

#include <stdbool.h>
#include <stdint.h>

#include "qcow2/format.h"
#include "qcow2/header.h"

/* What qcow2/entry.c has to know of an image. */
struct entry_format {
  unsigned version;
  unsigned cluster_bits;
  bool extended_l2;
  bool data_file; /* clusters are in a file of their own, at the guest's
                   * offsets */
  bool raw_data;  /* and that is the whole disk */
};

enum cluster_kind {
  CLUSTER_UNALLOCATED,
  CLUSTER_ZERO_PLAIN, /* reads as zeros, no host cluster */
  CLUSTER_ZERO_ALLOC, /* reads as zeros, host cluster preallocated */
  CLUSTER_STANDARD,
  CLUSTER_SUBCLUSTERS, /* extended L2: ask entry_subcluster */
  CLUSTER_COMPRESSED,
  CLUSTER_INVALID, /* the image is damaged: entry_why says how */
};

struct l2_entry {
  enum cluster_kind kind;
  /* STANDARD, ZERO_ALLOC, SUBCLUSTERS: the host cluster; SUBCLUSTERS, and
   * UNALLOCATED with extended L2, may have one or HOST_NONE.  COMPRESSED: the
   * first byte of the compressed data.  ZERO_PLAIN: HOST_NONE.
   */
  struct host_off host;
  uint32_t compressed_size; /* bytes at most: the format overstates it */
  uint32_t allocated;       /* SUBCLUSTERS: bit x for subcluster x */
  uint32_t zero;            /* likewise; disjoint from allocated */
  bool copied; /* the host cluster has no other reference: never COMPRESSED */
};

/* Decode an L2 entry.  bitmap is the second word of an extended entry
 * and is ignored otherwise.
 */
extern struct l2_entry entry_decode_l2 (const struct entry_format *f,
                                        uint64_t word, uint64_t bitmap);

/* What an L2 entry refers to, by its first word; 0: nothing.  Two entries with
 * the same value refer to the same.  Not with an external data file.
 */
static inline uint64_t
entry_reference (uint64_t word)
{
  return word & QCOW2_L2_COMPRESSED ? word : word & QCOW2_ENTRY_OFFSET_MASK;
}

/* Why entry_decode_l2 found these words invalid: a constant string. */
extern const char *entry_why (const struct entry_format *f, uint64_t word,
                              uint64_t bitmap);

/* The two words of an entry without compressed data.  host may be HOST_NONE;
 * copied says that nothing else refers to that host cluster.  Without extended
 * L2 only bit 0 of the bitmaps counts, and the second word is 0.  Spec:
 * Standard Cluster Descriptor, Extended L2 Entries.
 */
extern void entry_encode_l2 (const struct entry_format *f,
                             struct host_off host, bool copied,
                             uint32_t allocated, uint32_t zero,
                             uint64_t words[2]);

/* Whether an entry can point to compressed data there: the larger clusters
 * are, the fewer bits its offset has.
 */
extern bool entry_compressed_fits (const struct entry_format *f,
                                   struct host_off host);

/* The two words of an entry of so many bytes of compressed data, fewer than
 * a cluster has, which fits.  Spec: Compressed Clusters Descriptor.
 */
extern void entry_encode_compressed (const struct entry_format *f,
                                     struct host_off host, uint32_t bytes,
                                     uint64_t words[2]);

/* Where the L2 table of an L1 entry is; 0 if there is none.  Returns false
 * if the offset is not aligned to a cluster.
 */
extern bool entry_decode_l1 (const struct entry_format *f, uint64_t word,
                             struct host_off *table);

/* Refcounts of 2^order bits in the words of a refcount block.  Spec: Host
 * cluster management.
 */
static inline uint64_t
entry_refcount_max (unsigned order)
{
  return UINT64_MAX >> (64 - (1U << order));
}

/* The i-th refcount of a block is in word (i << order) / 64. */
extern uint64_t entry_get_refcount (unsigned order, uint64_t word, uint64_t i);
extern uint64_t entry_put_refcount (unsigned order, uint64_t word, uint64_t i,
                                    uint64_t refcount);

/* What an entry of a bitmap table says of the bits that it stands for. */
enum bitmap_part {
  BITMAP_PART_CLEAN,   /* no cluster: all zeroes */
  BITMAP_PART_DIRTY,   /* no cluster: all ones */
  BITMAP_PART_CLUSTER, /* they are in a cluster */
  BITMAP_PART_INVALID,
};

/* *host is set for a cluster, which is aligned, but may be beyond the end of
 * the file.
 */
extern enum bitmap_part entry_decode_bitmap (uint64_t word,
                                             unsigned cluster_bits,
                                             struct host_off *host);

/* The state of one subcluster of a SUBCLUSTERS entry: one of UNALLOCATED,
 * ZERO_PLAIN, ZERO_ALLOC, STANDARD.
 */
static inline enum cluster_kind
entry_subcluster (const struct l2_entry *e, unsigned i)
{
  if (e->allocated >> i & 1)
    return CLUSTER_STANDARD;
  if (e->zero >> i & 1)
    return host_is_none (e->host) ? CLUSTER_ZERO_PLAIN : CLUSTER_ZERO_ALLOC;
  return CLUSTER_UNALLOCATED;
}

#endif /* CORE_QCOW2_ENTRY_H */
