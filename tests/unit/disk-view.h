/* SPDX-License-Identifier: BSD-3-Clause */

/* What can be read of the live disk and of all snapshots in an image, sector by
 * sector.
 */

#ifndef UNIT_DISK_VIEW_H
#define UNIT_DISK_VIEW_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define VIEW_MAX_DISKS 8

struct disk_view {
  bool opens;
  unsigned nr;
  char *name[VIEW_MAX_DISKS]; /* of the export */
  uint64_t sectors[VIEW_MAX_DISKS];
  uint8_t *bytes[VIEW_MAX_DISKS];
  bool *readable[VIEW_MAX_DISKS];
};

/* backing may be NULL; it is of the format that the image says. */
extern void disk_view_read (struct disk_view *v, const void *bytes,
                            uint64_t size, const void *backing,
                            uint64_t backing_size);
extern void disk_view_free (struct disk_view *v);

/* Whether everything that can be read in a reads the same in b.  If not, what
 * does not is in text.
 */
extern bool disk_view_is_kept (const struct disk_view *a,
                               const struct disk_view *b, char *text,
                               size_t size);

#endif /* UNIT_DISK_VIEW_H */
