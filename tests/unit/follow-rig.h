/* SPDX-License-Identifier: BSD-3-Clause */

/* An image in memory with three bitmaps, two of which follow what is written.
 * One at a time.
 */

#ifndef UNIT_FOLLOW_RIG_H
#define UNIT_FOLLOW_RIG_H

#include "image-parts.h"
#include "qcow2/bitmaps.h"
#include "the-rig.h"

#define SECTOR 512
#define DISK_BYTES (UINT64_C (5) << 20)
#define SECTORS (DISK_BYTES / SECTOR)
#define ENTRY 32      /* bytes of a directory entry here */

enum { FINE, COARSE, DISABLED, BITMAPS };

struct follow_kind {
  unsigned granularity_bits;
  uint32_t flags;
};
extern const struct follow_kind follow_kinds[BITMAPS];

/* More of them, like the disabled one. */
#define MORE BITMAPS_MAX_FOLLOWED

/* Where they are. */
extern uint64_t follow_directory, follow_table[BITMAPS + MORE];

extern unsigned follow_cluster_bits;
extern unsigned follow_idle; /* of writer_options, of the next image */

/* How many entries its table has. */
extern uint64_t follow_parts (unsigned bitmap);

/* The image, with the first nr of the bitmaps, or with the three. */
extern void follow_build_bitmaps (struct builder *b, unsigned bits,
                                  unsigned nr);
extern void follow_build (struct builder *b, unsigned bits);

/* The rig is open with it, and with so many pages of bits in memory. */
extern void follow_start (unsigned bits, unsigned pages);

/* Whether the disk says that a bit is set; and all of them, a byte for each.
 */
extern bool follow_is_set (unsigned bitmap, uint64_t bit);
extern void follow_read_bits (unsigned bitmap, uint8_t *bits);

/* They are valid, and the disabled one is as it was. */
extern void follow_check_valid (void);

#endif /* UNIT_FOLLOW_RIG_H */
