/* SPDX-License-Identifier: BSD-3-Clause */

/* Damages images at random, mostly in ways that a reader of them comes to. */

#ifndef UNIT_SPOIL_H
#define UNIT_SPOIL_H

#include <stddef.h>
#include <stdint.h>

/* A qcow2 image in memory from malloc.  Spoiling may change its size, and
 * move it.
 */
struct spoiled {
  uint8_t *bytes;
  uint64_t size;
  char text[600]; /* what was done */
};

/* What may be damaged. */
#define SPOIL_ENTRIES (1 << 0)   /* of L1 and L2 tables */
#define SPOIL_REFCOUNTS (1 << 1) /* and their table */
#define SPOIL_TABLES (1 << 2)    /* of snapshots and bitmaps */
#define SPOIL_HEADER (1 << 3)
#define SPOIL_SIZE (1 << 4)
#define SPOIL_CLUSTERS (1 << 5) /* whole clusters of metadata */
#define SPOIL_ANY 0x3f

/* Do from one to three things. */
extern void spoil (struct spoiled *s, unsigned kinds, uint64_t *random);

#endif /* UNIT_SPOIL_H */
