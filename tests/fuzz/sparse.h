/* SPDX-License-Identifier: BSD-3-Clause */

/* A storage in memory that holds little, and claims to be as large as it likes:
 * all that was not written is a hole.
 */

#ifndef FUZZ_SPARSE_H
#define FUZZ_SPARSE_H

#include "storage/storage.h"

#define SPARSE_BLOCK 4096
#define SPARSE_MAX_BLOCKS 4096 /* 16 MiB: what is behind that has no space */

struct sparse {
  uint64_t size;
  unsigned nr;                     /* blocks, in ascending order */
  uint64_t number[SPARSE_MAX_BLOCKS];
  uint8_t *data[SPARSE_MAX_BLOCKS];

  /* What was asked of it. */
  uint64_t calls, bytes;
};

extern void sparse_put (struct sparse *s, uint64_t offset, const void *buf,
                        size_t count);
extern void sparse_free (struct sparse *s);

/* Of s, which must outlive it. */
extern struct storage *sparse_open (struct sparse *s);

#endif /* FUZZ_SPARSE_H */
