/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/entry.h"

static inline bool
is_aligned (const struct entry_format *f, uint64_t offset)
{
  return (offset & ((UINT64_C (1) << f->cluster_bits) - 1)) == 0;
}

/* The cluster that an entry's first word points to, aligned or not.  A file of
 * data has a first cluster, whose entry tells by COPIED that it is there.
 * Spec: Standard Cluster Descriptor.
 */
static inline struct host_off
cluster_of (const struct entry_format *f, uint64_t word)
{
  const struct host_off host = { word & QCOW2_ENTRY_OFFSET_MASK };

  if (host.v != 0)
    return host;
  return f->data_file && (word & QCOW2_ENTRY_COPIED) ? host : HOST_NONE;
}

/* Spec: Compressed Clusters Descriptor.  Its last bits below 62 count
 * the sectors that follow the one which holds the offset.
 */
static inline unsigned
compressed_size_bits (const struct entry_format *f)
{
  return f->cluster_bits - 8;
}

static struct l2_entry
decode_compressed (const struct entry_format *f, uint64_t word)
{
  const unsigned size_bits = compressed_size_bits (f);
  const unsigned offset_bits = 62 - size_bits;
  const uint64_t offset = word & ((UINT64_C (1) << offset_bits) - 1);
  const uint64_t sectors =
    (word >> offset_bits & ((UINT64_C (1) << size_bits) - 1)) + 1;
  struct l2_entry e = { .kind = CLUSTER_COMPRESSED, .host = HOST_NONE };

  if (offset >> 56 != 0 || offset == 0 || f->data_file) {
    e.kind = CLUSTER_INVALID;
    return e;
  }
  e.host.v = offset;
  e.compressed_size = sectors * QCOW2_COMPRESSED_SECTOR -
    offset % QCOW2_COMPRESSED_SECTOR;
  return e;
}

static struct l2_entry
decode_extended (const struct entry_format *f, uint64_t word, uint64_t bitmap)
{
  struct l2_entry e = {
    .kind = CLUSTER_SUBCLUSTERS,
    .host = cluster_of (f, word),
    .allocated = bitmap & UINT32_MAX,
    .zero = bitmap >> 32,
    .copied = (word & QCOW2_ENTRY_COPIED) != 0,
  };

  if ((e.allocated & e.zero) != 0 ||
      !is_aligned (f, word & QCOW2_ENTRY_OFFSET_MASK) ||
      (e.allocated != 0 && host_is_none (e.host)))
    e.kind = CLUSTER_INVALID;
  /* The uniform cases are the common ones: spare the walk over the bits. */
  else if (e.allocated == UINT32_MAX)
    e.kind = CLUSTER_STANDARD;
  else if (bitmap == 0)
    e.kind = CLUSTER_UNALLOCATED;
  return e;
}

struct l2_entry
entry_decode_l2 (const struct entry_format *f, uint64_t word, uint64_t bitmap)
{
  struct l2_entry e = { .kind = CLUSTER_UNALLOCATED };

  if (word & QCOW2_L2_COMPRESSED)
    return decode_compressed (f, word);
  if (f->extended_l2)
    return decode_extended (f, word, bitmap);

  e.host = cluster_of (f, word);
  e.copied = (word & QCOW2_ENTRY_COPIED) != 0;
  if (!is_aligned (f, word & QCOW2_ENTRY_OFFSET_MASK))
    e.kind = CLUSTER_INVALID;
  else if (word & QCOW2_L2_ZERO)
    e.kind = f->version < 3 ? CLUSTER_INVALID
      : host_is_none (e.host) ? CLUSTER_ZERO_PLAIN : CLUSTER_ZERO_ALLOC;
  else if (!host_is_none (e.host))
    e.kind = CLUSTER_STANDARD;
  return e;
}

const char *
entry_why (const struct entry_format *f, uint64_t word, uint64_t bitmap)
{
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;

  if ((word & QCOW2_L2_COMPRESSED) && f->data_file)
    return "the cluster is compressed, which an external data file excludes";
  if (word & QCOW2_L2_COMPRESSED)
    return "the offset of the compressed data is 0 or needs more than 56 bits";
  if (!is_aligned (f, offset))
    return "the cluster offset is not a multiple of the cluster size";
  if (!f->extended_l2)
    return "the zero flag is set in a version 2 image";
  if ((bitmap >> 32 & bitmap) != 0)
    return "a subcluster is both allocated and zero";
  return "a subcluster is allocated, but there is no cluster offset";
}

bool
entry_decode_l1 (const struct entry_format *f, uint64_t word,
                 struct host_off *table)
{
  table->v = word & QCOW2_ENTRY_OFFSET_MASK;
  return is_aligned (f, table->v);
}

void
entry_encode_l2 (const struct entry_format *f, struct host_off host,
                 bool copied, uint32_t allocated, uint32_t zero,
                 uint64_t words[2])
{
  words[0] = 0;
  if (!host_is_none (host))
    words[0] = host.v | (copied ? QCOW2_ENTRY_COPIED : 0);
  words[1] = 0;
  if (f->extended_l2)
    words[1] = (uint64_t) zero << 32 | allocated;
  else if (zero & 1)
    words[0] |= QCOW2_L2_ZERO;
}

bool
entry_compressed_fits (const struct entry_format *f, struct host_off host)
{
  return host.v < QCOW2_MAX_HOST_SIZE &&
    host.v >> (62 - compressed_size_bits (f)) == 0;
}

void
entry_encode_compressed (const struct entry_format *f, struct host_off host,
                         uint32_t bytes, uint64_t words[2])
{
  const unsigned offset_bits = 62 - compressed_size_bits (f);
  const uint64_t last = host.v + bytes - 1;
  const uint64_t sectors = last / QCOW2_COMPRESSED_SECTOR -
    host.v / QCOW2_COMPRESSED_SECTOR; /* after the first one */

  words[0] = QCOW2_L2_COMPRESSED | sectors << offset_bits | host.v;
  words[1] = 0;
}

/* Refcounts of a byte and more are big endian; smaller ones start at a byte's
 * least significant bit.  How far to the left the i-th one is in its word:
 */
static inline unsigned
refcount_shift (unsigned order, uint64_t i)
{
  const unsigned bits = 1U << order;
  const unsigned at = (i << order) & 63; /* as on disk */

  if (bits >= 8)
    return 64 - bits - at;
  return 56 - (at & ~7U) + (at & 7);
}

uint64_t
entry_get_refcount (unsigned order, uint64_t word, uint64_t i)
{
  return word >> refcount_shift (order, i) & entry_refcount_max (order);
}

uint64_t
entry_put_refcount (unsigned order, uint64_t word, uint64_t i,
                    uint64_t refcount)
{
  const unsigned shift = refcount_shift (order, i);

  word &= ~(entry_refcount_max (order) << shift);
  return word | refcount << shift;
}

enum bitmap_part
entry_decode_bitmap (uint64_t word, unsigned cluster_bits,
                     struct host_off *host)
{
  const uint64_t within = (UINT64_C (1) << cluster_bits) - 1;

  if (word == 0)
    return BITMAP_PART_CLEAN;
  if (word == QCOW2_BITMAP_ALL_ONES)
    return BITMAP_PART_DIRTY;
  if ((word & ~QCOW2_ENTRY_OFFSET_MASK) != 0 || (word & within) != 0)
    return BITMAP_PART_INVALID;
  host->v = word;
  return BITMAP_PART_CLUSTER;
}
