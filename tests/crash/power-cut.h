/* SPDX-License-Identifier: BSD-3-Clause */

/* In which states a power cut may leave a disk, from the log of what was
 * done to it.
 *
 * At the cut everything before the last completed flush is there.  Each
 * later call may have reached the disk or not, in any order, and in part:
 * each 512-byte sector of it for itself.  A sector written several times
 * since may hold any of those contents, or that from before.  The size of
 * the file may be any that it had since, but no landed write is beyond it;
 * where the file grew and nothing landed there are zeros.  After a failed
 * flush, what it should have made durable may be lost even if later ones
 * succeed, as it is on Linux.
 */

#ifndef CRASH_POWER_CUT_H
#define CRASH_POWER_CUT_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crash-storage.h"

/* Which of the pending calls reached the disk.  They are counted from 0 in
 * the order of the log.
 */
enum landed_kind {
  LANDED_NONE,
  LANDED_ALL,
  LANDED_PREFIX, /* the first arg ones */
  LANDED_ONLY,   /* that of number arg */
  LANDED_NOT,    /* all but that of number arg */
  LANDED_MASK,   /* bit x of arg: that of number x; only of the first 64 */
  LANDED_TORN,   /* arg is a seed: random, with torn calls */
};

struct landed {
  enum landed_kind kind;
  uint64_t arg;
};

/* As it is written on a command line: all, only:3, mask:0x17, torn:0x99. */
extern const char *landed_format (struct landed l, char *buf, size_t size);
extern bool landed_parse (struct landed *l, const char *text);

/* A moment of the log, moving forward. */
struct cut;

/* The disk had these bytes at first.  Both must outlive the cut. */
extern struct cut *cut_new (const void *bytes, uint64_t size,
                            const struct crash_op *op, uint64_t nr);
extern void cut_free (struct cut *c);

/* Move to the moment when the first k calls had begun and the others had
 * not; k never decreases.
 */
extern void cut_advance (struct cut *c, uint64_t k);

/* How many calls are pending: neither known to be on the disk nor not. */
extern unsigned cut_pending (struct cut *c);

/* Which call of the log the i-th pending one is. */
extern uint64_t cut_pending_op (const struct cut *c, unsigned i);

/* The disk after a power cut at this moment. */
struct disk_state {
  uint8_t *bytes; /* reused from one call to the next; initially NULL */
  uint64_t size;
  uint64_t capacity;
};
extern void cut_state (struct cut *c, struct landed l, struct disk_state *s);
extern void disk_state_free (struct disk_state *s);

#endif /* CRASH_POWER_CUT_H */
