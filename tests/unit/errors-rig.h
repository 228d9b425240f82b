/* SPDX-License-Identifier: BSD-3-Clause */

/* An image in memory with clusters of all kinds, for tests of what goes wrong while
 * it is written.  One at a time.
 */

#ifndef UNIT_ERRORS_RIG_H
#define UNIT_ERRORS_RIG_H

#include "the-rig.h"

#define CLUSTER UINT64_C (4096)
#define CLUSTERS 100
#define DISK_BYTES (CLUSTERS * CLUSTER)

/* What a snapshot has of the disk's tables. */
enum sharing { NO_SNAPSHOT, SHARED_TABLES, COPIED_TABLES };

/* Clusters 0 to 19 are data, 20 to 23 compressed, 24 to 27 zero (two of them
 * kept).  The builder is the caller's to finish.
 */
extern void errors_build (struct builder *b, enum sharing snapshot,
                          bool backing);

/* The rig is open with what was built, which is finished and freed; with
 * backing over a raw file.
 */
extern void errors_start_built (struct builder *b, bool backing);

/* The two at once. */
extern void errors_start (enum sharing snapshot, bool backing);

/* Close the image, which must be sound, and forget it. */
extern void errors_end (void);

/* The 8 bytes at this host offset. */
extern uint64_t errors_on_disk (uint64_t at);

/* The image, which is not open, can't be written: ENOTSUP, and why. */
extern void errors_check_refused (const char *why);

#endif /* UNIT_ERRORS_RIG_H */
