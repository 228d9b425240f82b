/* SPDX-License-Identifier: BSD-3-Clause */

/* The refcounts of an image as the check reads them: from the disk, whatever
 * is in the refcount table.  Spec: Host cluster management.
 */

#ifndef CORE_QCOW2_CHECK_REFCOUNTS_H
#define CORE_QCOW2_CHECK_REFCOUNTS_H

#include <string.h>

#include "qcow2/check/holes.h"
#include "qcow2/entry.h"
#include "storage/storage.h"

#define REFCOUNT_TABLE_RESERVED (~QCOW2_REFCOUNT_BLOCK_MASK)

struct check_refcounts {
  struct storage *storage;
  unsigned order;
  unsigned cluster_bits;
  unsigned block_bits; /* log2 of the refcounts in a block */
  struct host_off offset; /* of the table */
  uint64_t *table;        /* words; at most 8 MiB; holes take no memory */
  uint64_t entries;
  uint32_t *used;         /* the indices of those that are not 0, ascending */
  size_t nr_used;
  bool twice;             /* two of them share a block */
  uint64_t ignored;       /* entries sharing another's block that are taken
                           * as 0: see CHECK_MAX_TWICE */

  struct check_holes holes;
  uint64_t read_at;       /* what was read last: read_bytes from here on */
  size_t read_bytes;
  uint8_t read[32768];
};

/* A block's refcounts are looked at again for each table entry that points to
 * it, as `qemu-img check' does; but for no more entries than this, since
 * shared blocks let a small file describe enormous numbers of refcounts.
 */
#define CHECK_MAX_TWICE 100

/* Read the table.  Returns -1 with the error set. */
extern int check_refcounts_open (struct check_refcounts *r,
                                 struct storage *storage,
                                 const struct header *h);
extern void check_refcounts_close (struct check_refcounts *r);

/* The offset of a block, according to the table; 0: there is none. */
static inline uint64_t
check_block_offset (const struct check_refcounts *r, uint64_t index)
{
  return index < r->entries ? r->table[index] & QCOW2_REFCOUNT_BLOCK_MASK : 0;
}

/* Whether the refcount of a cluster can be looked up.  It can (and is 0) if
 * there is no block, or the block is beyond the end of the file; not if the
 * block's offset is not aligned or impossible.
 */
extern bool check_refcount_readable (const struct check_refcounts *r,
                                     uint64_t cluster);

/* How many clusters from this one on have their refcounts in the same block,
 * or the same missing block.
 */
static inline uint64_t
check_block_rest (const struct check_refcounts *r, uint64_t cluster)
{
  const uint64_t per_block = UINT64_C (1) << r->block_bits;

  return per_block - (cluster & (per_block - 1));
}

/* The size of n refcounts in bytes; n as in check_refcounts_read. */
static inline size_t
check_refcounts_bytes (const struct check_refcounts *r, uint64_t n)
{
  return (n << r->order) / 8;
}

/* Forget what was read: the file may have changed. */
static inline void
check_refcounts_forget (struct check_refcounts *r)
{
  check_holes_forget (&r->holes);
  r->read_bytes = 0;
}

/* Read the refcounts of n clusters from first on, both multiples of 64, from
 * the disk.  Those that can't be looked up are 0.  Returns 1 if any is not 0,
 * 0 if all are, or -1 with the error set.
 */
extern int check_refcounts_read (struct check_refcounts *r,
                                 uint64_t first, uint64_t n, void *buf);

/* Write those refcounts of buf that differ from old; both are as from
 * check_refcounts_read.  Sectors are written whole.  Returns -1 with the
 * error set.
 */
extern int check_refcounts_write (struct check_refcounts *r,
                                  uint64_t first, uint64_t n,
                                  const void *old, const void *buf);

/* The first cluster from this one on that may have a nonzero refcount;
 * UINT64_MAX: there is none.  Skips holes in blocks, and blocks that can't be
 * looked up.
 */
extern uint64_t check_refcounts_next (struct check_refcounts *r,
                                      uint64_t cluster);

/* The i-th refcount in such a buffer. */
static inline uint64_t
check_refcount_at (unsigned order, const void *buf, uint64_t i)
{
  const uint8_t *p = buf;

  if (order == 4)
    return get_be16 (p + 2 * i);
  return entry_get_refcount (order, get_be64 (p + ((i << order) / 64 * 8)), i);
}

/* Whether all of n refcounts in such a buffer are this one, as is mostly so.  false
 * may mean that it was not looked at.
 */
static inline bool
check_refcounts_are (unsigned order, const void *buf, uint64_t n,
                     uint64_t refcount)
{
  const uint8_t *p = buf;
  const size_t bytes = (n << order) / 8, one = (1U << order) / 8;

  return order >= 3 && check_refcount_at (order, buf, 0) == refcount &&
    memcmp (p, p + one, bytes - one) == 0;
}

static inline void
check_put_refcount (unsigned order, void *buf, uint64_t i, uint64_t refcount)
{
  uint8_t *p = (uint8_t *) buf + ((i << order) / 64 * 8);

  put_be64 (p, entry_put_refcount (order, get_be64 (p), i, refcount));
}

/* Write those of the count bytes at offset that differ from old, in whole
 * sectors where these are within the count bytes.  Returns -1 with the error
 * set.
 */
extern int check_write_changed (struct storage *s, struct host_off offset,
                                const void *old, const void *buf,
                                size_t count);

#endif /* CORE_QCOW2_CHECK_REFCOUNTS_H */
