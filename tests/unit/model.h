/* SPDX-License-Identifier: BSD-3-Clause */

/* Random images together with what is in them.  The model follows from how
 * an image is made, not from decoding it.
 */

#ifndef UNIT_MODEL_H
#define UNIT_MODEL_H

#include "build.h"
#include "qcow2/map.h"

#define MODEL_SECTOR 512

struct model_sector {
  enum run_kind kind;
  uint64_t host;  /* DATA: of this sector; COMPRESSED: of the data */
  uint64_t size;  /* COMPRESSED */
  uint64_t place; /* DAMAGED: of the entry */
};

struct model {
  struct builder image;
  uint64_t nr; /* sectors of the disk */
  struct model_sector *sector;
  /* Of the disk.  What is UNALLOCATED reads as the base, and as zeros beyond
   * that.
   */
  uint8_t *content;
  const uint8_t *base;
  uint64_t base_size;

  uint8_t *snapshot[BUILD_MAX_SNAPSHOTS]; /* their contents */
};

/* Which kinds there are is random, too.  Damaged entries only if asked. */
extern void model_random (struct model *m, unsigned version,
                          unsigned cluster_bits, bool extended,
                          enum compression compression, uint64_t disk_size,
                          bool damage, uint64_t *state);

/* The same in steps, to set what else the image has between them.  The base
 * may be NULL, and outlives the model.
 */
extern void model_start (struct model *m, unsigned version,
                         unsigned cluster_bits, bool extended,
                         enum compression compression, uint64_t disk_size,
                         const uint8_t *base, uint64_t base_size);
extern void model_fill (struct model *m, bool damage, uint64_t *state);

/* Make a snapshot; the disk may then be changed by core/, or by
 * model_refill, for which all tables must be copied.
 */
extern void model_snapshot (struct model *m, unsigned copied,
                            uint64_t *state);
extern void model_refill (struct model *m, uint64_t *state);

extern void model_free (struct model *m);

#endif /* UNIT_MODEL_H */
