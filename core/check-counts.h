/* SPDX-License-Identifier: BSD-3-Clause */

/* How many references host clusters have, for as many clusters at once as
 * the memory allows: a window of the file.
 *
 * A cluster takes a byte for its count, and a bit for each of four flags, in
 * chunks of 65536 clusters that exist once something in them is counted:
 * 384 MiB for all of 16 TiB in clusters of 64 KiB.  A chunk in which a count
 * is above 255 takes 8 bytes for each.  What doesn't fit into the budget is
 * counted in another window, by walking over all tables once more; so that
 * memory is bounded for any image, and huge ones take longer.
 */

#ifndef QCOW2_CHECK_COUNTS_H
#define QCOW2_CHECK_COUNTS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define COUNTS_CHUNK_BITS 16
#define COUNTS_CHUNK (UINT64_C (1) << COUNTS_CHUNK_BITS)

/* Flags of clusters. */
enum counts_flag {
  COUNTS_ONE,  /* the refcount on the disk is 1 */
  COUNTS_META, /* metadata that nothing may share: not L2 tables */
  COUNTS_L2,   /* an L2 table */
  COUNTS_DATA,
};
#define COUNTS_FLAGS 4

struct counts_chunk {
  uint64_t *wide; /* the counts, once one is above 255 */
  uint64_t flag[COUNTS_FLAGS][COUNTS_CHUNK / 64];
  uint8_t narrow[COUNTS_CHUNK];
};

struct counts {
  uint64_t first, end; /* the window, multiples of COUNTS_CHUNK */
  uint64_t max;        /* counts stop there */
  struct counts_chunk **chunk;
  size_t nr_chunks; /* room in that */
  uint64_t span;    /* that a window may have, in chunks */
  size_t used, budget;
  size_t peak;
  bool full; /* the last failure was that the budget is used up */
};

/* budget is in bytes.  A window is never less than one chunk, whatever the
 * budget.
 */
extern void counts_init (struct counts *c, size_t budget, uint64_t max);
extern void counts_free (struct counts *c);

/* Forget everything, and begin with a window from the cluster first on, which
 * need not reach beyond the cluster last.  Returns -1 with the error set.
 */
extern int counts_begin (struct counts *c, uint64_t first, uint64_t last);

/* Windows are half as large from now on, since one was full.  Returns false
 * if they can't be.
 */
extern bool counts_shrink (struct counts *c);

static inline bool
counts_in_window (const struct counts *c, uint64_t cluster)
{
  return cluster >= c->first && cluster < c->end;
}

/* The chunk of a cluster in the window; NULL: nothing in it was counted. */
static inline struct counts_chunk *
counts_find (const struct counts *c, uint64_t cluster)
{
  return c->chunk[(cluster - c->first) >> COUNTS_CHUNK_BITS];
}

/* Make the chunk of a cluster in the window.  Returns NULL with the error
 * set, and with full set if it is the budget that is used up.
 */
extern struct counts_chunk *counts_new_chunk (struct counts *c,
                                              uint64_t cluster);

static inline uint64_t
counts_get (const struct counts_chunk *k, uint64_t cluster)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);

  return k->wide != NULL ? k->wide[i] : k->narrow[i];
}

/* What counts_add does where it isn't simple. */
extern int counts_add_many (struct counts *c, struct counts_chunk *k,
                            uint64_t cluster, uint64_t n, uint64_t *surplus);

/* n more references; *surplus is how many of them are above the maximum.
 * Returns -1 as counts_new_chunk does.
 */
static inline int
counts_add (struct counts *c, struct counts_chunk *k, uint64_t cluster,
            uint64_t n, uint64_t *surplus)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);

  *surplus = 0;
  if (n != 1 || k->wide != NULL || k->narrow[i] == UINT8_MAX ||
      k->narrow[i] >= c->max)
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

#endif /* QCOW2_CHECK_COUNTS_H */
