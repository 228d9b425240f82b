/* SPDX-License-Identifier: BSD-3-Clause */

/* What align.c and align-many.c share, and nobody else sees. */

#ifndef CORE_STORAGE_ALIGN_PARTS_H
#define CORE_STORAGE_ALIGN_PARTS_H

#include "base/inflight.h"
#include "storage/storage.h"

struct align {
  struct storage storage;
  struct storage_ops ops; /* without those that the inner one has not */
  struct storage *inner;
  uint64_t block;
  struct inflight changing; /* ranges of blocks: A2 */
};

static inline struct align *
align_of (struct storage *s)
{
  return (struct align *) s;
}

static inline uint64_t
block_start (const struct align *a, uint64_t offset)
{
  return offset & -a->block;
}

static inline uint64_t
block_end (const struct align *a, uint64_t offset)
{
  return (offset + a->block - 1) & -a->block;
}

static inline bool
is_aligned (const struct align *a, uint64_t value)
{
  return (value & (a->block - 1)) == 0;
}

/* Memory for whole blocks, to be freed.  Returns NULL with errno set. */
extern uint8_t *align_new_blocks (const struct align *a, size_t count);

/* Read all of these blocks; what is behind the end is zeros.  Returns -1 with
 * errno set.
 */
extern int align_read_blocks (struct align *a, uint8_t *buf, size_t count,
                              uint64_t offset);

/* ------------------------------------------------------------- align-many.c */

/* As storage_ops has them; the inner storage has the same, and is of a fixed
 * size where they write.
 */
extern int align_pread_many (struct storage *s, const struct storage_run *runs,
                             unsigned nr);
extern int align_pwrite_many (struct storage *s,
                              const struct storage_run *runs, unsigned nr);
extern int align_pwrite_durably (struct storage *s,
                                 const struct storage_run *runs, unsigned nr,
                                 bool all);

#endif /* CORE_STORAGE_ALIGN_PARTS_H */
