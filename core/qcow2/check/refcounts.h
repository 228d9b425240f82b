/* SPDX-License-Identifier: BSD-3-Clause */

/* The refcounts that an image has on the disk, as the check sees them:
 * whatever is in the refcount table.  Spec: Host cluster management.
 */

#ifndef CORE_QCOW2_CHECK_REFCOUNTS_H
#define CORE_QCOW2_CHECK_REFCOUNTS_H

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
  bool twice;             /* two of them have one block */
  uint64_t ignored;       /* entries with the block of another that are taken
                           * for 0: see CHECK_MAX_TWICE */

  struct check_holes holes;
  uint64_t read_at;       /* what was read last: so many bytes from there on */
  size_t read_bytes;
  uint8_t read[4096];
};

/* All refcounts that a block has are looked at for each entry of the table that
 * has it, as `qemu-img check' does: but not for more entries than this, since
 * then a small file has very many refcounts.
 */
#define CHECK_MAX_TWICE 100

/* Read the table.  Returns -1 with the error set. */
extern int check_refcounts_open (struct check_refcounts *r,
                                 struct storage *storage,
                                 const struct header *h);
extern void check_refcounts_close (struct check_refcounts *r);

/* What a table's entry says of its block. */
static inline uint64_t
check_block_offset (const struct check_refcounts *r, uint64_t index)
{
  return index < r->entries ? r->table[index] & QCOW2_REFCOUNT_BLOCK_MASK : 0;
}

/* Whether the refcount of a cluster can be looked up: that it has no block
 * is an answer, and so is a block beyond the end of the file; that the block
 * is not aligned, or where no file can be, is none.
 */
extern bool check_refcount_readable (const struct check_refcounts *r,
                                     uint64_t cluster);

/* How many clusters from this one on have their refcounts in one block, or in
 * none.
 */
static inline uint64_t
check_block_rest (const struct check_refcounts *r, uint64_t cluster)
{
  const uint64_t per_block = UINT64_C (1) << r->block_bits;

  return per_block - (cluster & (per_block - 1));
}

/* How many bytes n refcounts take; n as in check_refcounts_read. */
static inline size_t
check_refcounts_bytes (const struct check_refcounts *r, uint64_t n)
{
  return (n << r->order) / 8;
}

/* What was read and looked for before may not be what is there. */
static inline void
check_refcounts_forget (struct check_refcounts *r)
{
  check_holes_forget (&r->holes);
  r->read_bytes = 0;
}

/* Read the refcounts of n clusters from first on, both multiples of 64, as
 * they are on the disk.  Those that can't be read are 0.  Returns 1 if one
 * is not 0, 0 if all are, or -1 with the error set.
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

/* The first cluster from this one on that may have a refcount other than 0;
 * UINT64_MAX: there is none.  Holes of blocks are skipped, and blocks that can't
 * be read.
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

static inline void
check_put_refcount (unsigned order, void *buf, uint64_t i, uint64_t refcount)
{
  uint8_t *p = (uint8_t *) buf + ((i << order) / 64 * 8);

  put_be64 (p, entry_put_refcount (order, get_be64 (p), i, refcount));
}

/* Write those of the count bytes at offset that differ from old, in whole
 * sectors as far as they were read whole.  Returns -1 with the error set.
 */
extern int check_write_changed (struct storage *s, struct host_off offset,
                                const void *old, const void *buf,
                                size_t count);

#endif /* CORE_QCOW2_CHECK_REFCOUNTS_H */
