/* SPDX-License-Identifier: BSD-3-Clause */

/* Counts of the references to host clusters, in as large a window of the file
 * as memory allows.
 *
 * A cluster takes a byte for its count and a bit for each of four flags.  They
 * are kept in chunks of 128 clusters, which are made when something in them is
 * counted and are found by a hash: some 450 MiB for 16 TiB in clusters of
 * 64 KiB, and 220 bytes for an isolated reference.  Counts above 254 are kept
 * separately.  A window that exceeds the budget is cut in half, by what it
 * holds, and the rest is counted in another window by walking over all tables
 * again: memory is bounded for any image, and huge images take longer.
 */

#ifndef CORE_QCOW2_CHECK_COUNTS_H
#define CORE_QCOW2_CHECK_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

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

#define COUNTS_WIDE UINT8_MAX /* instead of a count: see struct counts_wide */

struct counts_chunk {
  uint64_t number; /* of its first cluster, >> COUNTS_CHUNK_BITS */
  uint64_t flag[COUNTS_FLAGS][COUNTS_CHUNK / 64];
  uint8_t narrow[COUNTS_CHUNK];
};

struct counts_slab; /* of chunks */

/* The number is repeated here so that sorting doesn't touch the chunks. */
struct counts_entry {
  uint64_t number;
  struct counts_chunk *chunk;
};

/* Counts that don't fit into a byte, of so many clusters in a row: a table that
 * thousands of snapshots share has them for each of its clusters.
 */
#define COUNTS_GROUP_BITS 3
#define COUNTS_GROUP (UINT64_C (1) << COUNTS_GROUP_BITS)

struct counts_wide {
  uint64_t group; /* of its clusters, >> COUNTS_GROUP_BITS; plus 1 */
  uint64_t count[COUNTS_GROUP]; /* 0: it fits */
};

struct counts {
  struct hash_key key;
  uint64_t first, end; /* the window, multiples of COUNTS_CHUNK */
  uint64_t max;        /* counts saturate there */

  struct counts_chunk **chunk; /* open addressing; NULL: nothing is here */
  unsigned bits;               /* log2 of its size */
  size_t nr_chunks;
  struct counts_chunk *last;   /* found last */
  struct counts_entry *sorted;
  size_t position;             /* in sorted, of the last counts_next */
  struct counts_slab *slabs;
  struct counts_chunk **free_chunk; /* a stack of those that were cut off */
  size_t nr_free;

  struct counts_wide *wide; /* likewise, group 0: nothing is here; NULL: there
                             * are none */
  unsigned wide_bits;
  size_t nr_wide;

  size_t used, budget, peak; /* bytes */
  bool cut; /* the window was cut off since it began, and must be recounted */
};

/* budget is in bytes.  A window has at least one chunk, whatever the budget. */
extern void counts_init (struct counts *c, size_t budget, uint64_t max);
extern void counts_free (struct counts *c);

/* Forget everything, and begin a window from the cluster first up to end, both
 * rounded to chunks.  Returns -1 with the error set.
 */
extern int counts_begin (struct counts *c, uint64_t first, uint64_t end);

/* Sort the chunks, when all is counted.  Returns -1 with the error set. */
extern int counts_sort (struct counts *c);

/* The first cluster from this one on whose chunk exists; UINT64_MAX: there is
 * none.  After counts_sort.
 */
extern uint64_t counts_next (struct counts *c, uint64_t cluster);

/* The chunk of a cluster, which the last counts_next was asked for, or is behind what
 * that has found; NULL: nothing in it was counted.
 */
static inline struct counts_chunk *
counts_here (const struct counts *c, uint64_t cluster)
{
  const struct counts_entry *e = &c->sorted[c->position];

  return c->position < c->nr_chunks && e->number == cluster >> COUNTS_CHUNK_BITS
    ? e->chunk : NULL;
}

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
 * *chunk is NULL if the cluster is no longer in it, and chunks that were found
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

/* The slow path of counts_add. */
extern int counts_add_many (struct counts *c, struct counts_chunk *k,
                            uint64_t cluster, uint64_t n, uint64_t *surplus);

/* Count n more references; *surplus is how many of them exceed the maximum.
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

/* Which bits of the flags' word of this number stand for n clusters of a chunk, of
 * which the first is the i-th.
 */
static inline uint64_t
counts_row_mask (unsigned word, uint64_t i, uint64_t n)
{
  const uint64_t start = word * UINT64_C (64);
  const uint64_t from = i > start ? i : start;
  const uint64_t to = i + n < start + 64 ? i + n : start + 64;

  return from >= to ? 0 : UINT64_MAX >> (64 - (to - from)) << (from - start);
}

/* Whether COUNTS_ONE is this for all of n clusters in a row, which are in the
 * chunk.
 */
static inline bool
counts_row_is (const struct counts_chunk *k, uint64_t cluster, uint64_t n,
               bool one)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);
  uint64_t others = 0;
  unsigned w;

  for (w = 0; w < COUNTS_CHUNK / 64; ++w)
    others |= (one ? ~k->flag[COUNTS_ONE][w] : k->flag[COUNTS_ONE][w]) &
      counts_row_mask (w, i, n);
  return others == 0;
}

/* Count the first references to data, so many for each of n clusters in a row, which
 * are in the chunk.  Returns false if one of them has some, or these are too many,
 * and nothing is counted.
 */
static inline bool
counts_add_row (const struct counts *c, struct counts_chunk *k,
                uint64_t cluster, uint64_t n, uint64_t references)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);
  unsigned w;

  if (references >= COUNTS_WIDE || references > c->max || k->narrow[i] != 0 ||
      memcmp (k->narrow + i, k->narrow + i + 1, n - 1) != 0)
    return false;
  memset (k->narrow + i, references, n);
  for (w = 0; w < COUNTS_CHUNK / 64; ++w)
    k->flag[COUNTS_DATA][w] |= counts_row_mask (w, i, n);
  return true;
}

#endif /* CORE_QCOW2_CHECK_COUNTS_H */
