/* SPDX-License-Identifier: BSD-3-Clause */

/* How many references host clusters have, for as many clusters at once as
 * the memory allows: a window of the file.
 *
 * A cluster takes a byte for its count, and a bit for each of four flags, in
 * chunks of 128 clusters that exist once something in them is counted, and are
 * found by a hash: some 450 MiB for all of 16 TiB in clusters of 64 KiB, and 220
 * bytes for a reference that is alone, wherever it is.  Counts above 254 take
 * more, each for itself.  A window that doesn't fit into the budget is cut off
 * at half of what is in it, and what lies behind that is counted in another one,
 * by walking over all tables once more; so that memory is bounded for any image,
 * and huge ones take longer.
 */

#ifndef CORE_QCOW2_CHECK_COUNTS_H
#define CORE_QCOW2_CHECK_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "base/hash.h"

#define COUNTS_CHUNK_BITS 7
#define COUNTS_CHUNK (UINT64_C (1) << COUNTS_CHUNK_BITS)

/* Flags of clusters. */
enum counts_flag {
  COUNTS_ONE,  /* the refcount on the disk is 1 */
  COUNTS_META, /* metadata that nothing may share: not L2 tables */
  COUNTS_L2,   /* an L2 table */
  COUNTS_DATA,
};
#define COUNTS_FLAGS 4

#define COUNTS_WIDE UINT8_MAX /* for a count: it is elsewhere */

struct counts_chunk {
  uint64_t number; /* of its first cluster, >> COUNTS_CHUNK_BITS */
  uint64_t flag[COUNTS_FLAGS][COUNTS_CHUNK / 64];
  uint8_t narrow[COUNTS_CHUNK];
};

struct counts_slab; /* of chunks */

/* With its number, so that sorting them doesn't look into chunks. */
struct counts_entry {
  uint64_t number;
  struct counts_chunk *chunk;
};

/* A count that doesn't fit into a byte. */
struct counts_wide {
  uint64_t cluster;
  uint64_t count; /* 0: nothing is here */
};

struct counts {
  struct hash_key key;
  uint64_t first, end; /* the window, multiples of COUNTS_CHUNK */
  uint64_t max;        /* counts stop there */

  struct counts_chunk **chunk; /* open addressing; NULL: nothing is here */
  unsigned bits;               /* log2 of its size */
  size_t nr_chunks;
  struct counts_chunk *last;   /* found last */
  struct counts_entry *sorted;
  size_t position;             /* in there, where counts_next was last */
  struct counts_slab *slabs;
  struct counts_chunk **free_chunk; /* that were cut off: a stack */
  size_t nr_free;

  struct counts_wide *wide; /* likewise; NULL: there are none */
  unsigned wide_bits;
  size_t nr_wide;

  size_t used, budget, peak; /* bytes */
  bool cut; /* the window was, since it began: so it must be counted anew */
};

/* budget is in bytes.  A window is never less than one chunk, whatever the
 * budget.
 */
extern void counts_init (struct counts *c, size_t budget, uint64_t max);
extern void counts_free (struct counts *c);

/* Forget everything, and begin with a window from the cluster first on up to
 * end, both rounded to chunks.  Returns -1 with the error set.
 */
extern int counts_begin (struct counts *c, uint64_t first, uint64_t end);

/* All is counted: chunks can be found in their order.  Returns -1 with the
 * error set.
 */
extern int counts_sort (struct counts *c);

/* The first cluster from this one on whose chunk exists; UINT64_MAX: there is
 * none.  After counts_sort.
 */
extern uint64_t counts_next (struct counts *c, uint64_t cluster);

static inline bool
counts_in_window (const struct counts *c, uint64_t cluster)
{
  return cluster >= c->first && cluster < c->end;
}

extern struct counts_chunk *counts_look_up (const struct counts *c,
                                            uint64_t number);

/* The chunk of a cluster in the window; NULL: nothing in it was counted. */
static inline struct counts_chunk *
counts_find (struct counts *c, uint64_t cluster)
{
  const uint64_t number = cluster >> COUNTS_CHUNK_BITS;
  struct counts_chunk *k = c->last;

  if (k != NULL && k->number == number)
    return k;
  k = counts_look_up (c, number);
  if (k != NULL)
    c->last = k;
  return k;
}

/* Make the chunk of a cluster in the window.  That may cut the window off:
 * *chunk is NULL if the cluster is not in it any more.  Chunks that were found
 * before may be gone.  Returns -1 with the error set.
 */
extern int counts_new_chunk (struct counts *c, uint64_t cluster,
                             struct counts_chunk **chunk);

extern uint64_t counts_get_wide (const struct counts *c, uint64_t cluster);

static inline uint64_t
counts_get (const struct counts *c, const struct counts_chunk *k,
            uint64_t cluster)
{
  const uint8_t n = k->narrow[cluster & (COUNTS_CHUNK - 1)];

  return n != COUNTS_WIDE ? n : counts_get_wide (c, cluster);
}

/* What counts_add does where it isn't simple. */
extern int counts_add_many (struct counts *c, struct counts_chunk *k,
                            uint64_t cluster, uint64_t n, uint64_t *surplus);

/* n more references; *surplus is how many of them are above the maximum.
 * Returns -1 with the error set.
 */
static inline int
counts_add (struct counts *c, struct counts_chunk *k, uint64_t cluster,
            uint64_t n, uint64_t *surplus)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);

  *surplus = 0;
  if (n != 1 || k->narrow[i] >= COUNTS_WIDE - 1 || k->narrow[i] >= c->max)
    return counts_add_many (c, k, cluster, n, surplus);
  k->narrow[i]++;
  return 0;
}

static inline bool
counts_flag (const struct counts_chunk *k, enum counts_flag f,
             uint64_t cluster)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);

  return k->flag[f][i / 64] >> i % 64 & 1;
}

static inline void
counts_set_flag (struct counts_chunk *k, enum counts_flag f, uint64_t cluster)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);

  k->flag[f][i / 64] |= UINT64_C (1) << i % 64;
}

#endif /* CORE_QCOW2_CHECK_COUNTS_H */
