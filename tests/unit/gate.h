/* SPDX-License-Identifier: BSD-3-Clause */

/* Storages with points (turns.h) before and after each call, and what is
 * durable of one of them: a crash may leave that, and of what came later any
 * sectors.
 */

#ifndef UNIT_GATE_H
#define UNIT_GATE_H

#include "memory-storage.h"

#define GATE_SECTOR 512
#define GATE_MAX_BYTES (UINT64_C (16) << 20)

/* A storage that owns this one, which is only read. */
extern struct storage *gate_new (struct storage *inner);

/* The same for one on this disk, which is durable as it is.  One at a time. */
extern struct storage *gate_new_disk (struct storage *inner,
                                      const struct memory_disk *disk);

/* What is durable: at first, *size bytes. */
extern const uint8_t *gate_durable (uint64_t *size);

/* The same with some of what came later: undone by gate_undo_torn. */
extern const uint8_t *gate_torn (uint64_t seed, uint64_t *size);
extern void gate_undo_torn (void);

#endif /* UNIT_GATE_H */
