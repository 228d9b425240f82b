/* SPDX-License-Identifier: BSD-3-Clause */

/* The directory of persistent bitmaps as bytes: with an entry more, or one that
 * is disabled, and all others as they are, what is unknown in them included (I8);
 * and what a new bitmap may be.  Spec: Bitmap directory.
 */

#ifndef CORE_QCOW2_BITMAP_DIRECTORY_H
#define CORE_QCOW2_BITMAP_DIRECTORY_H

#include <stddef.h>
#include <stdint.h>

#include "qcow2/bitmaps.h"
#include "qcow2/header.h"
#include "storage/storage.h"

/* ------------------------------------------------------------ a new bitmap */

/* Check that an image with this header can have a bitmap of this name, and set
 * *bits to log2 of its granularity: granularity in bytes, or 0 for QEMU's choice.
 * image is for messages.  Returns -1 with the error set: ENOTSUP in version 2,
 * EINVAL for a name or granularity that can't be.
 */
extern int bitmap_check_new (const char *image, const struct header *h,
                             const char *name, uint64_t granularity,
                             unsigned *bits);

/* How many parts a bitmap has, of a disk of this size in an image with this
 * header.  Returns -1 with ENOTSUP set if there would be too many, or none.
 */
extern int bitmap_count_parts (const char *image, const struct header *h,
                               uint64_t size, unsigned granularity_bits,
                               uint32_t *nr);

/* The entry of a new bitmap, which is enabled, and has no table yet: so many
 * bytes, which are zeros before.
 */
extern size_t bitmap_entry_bytes (const char *name);
extern void bitmap_entry_encode (uint8_t *entry, const char *name,
                                 unsigned granularity_bits);

/* ----------------------------------------------------------- the directory */

struct bitmap_directory {
  uint8_t *bytes; /* owned */
  uint64_t size;
  uint32_t nr;      /* entries */
  uint64_t old_bytes; /* that it has in the file; 0: there is none */
  struct host_off old;
};

/* Check that there can be one with so many entries and bytes.  Returns -1 with
 * ENOTSUP set.
 */
extern int bitmap_directory_check (const char *image, uint32_t nr,
                                   uint64_t bytes);

/* Read that of an image with this header: empty if it is not to be trusted.
 * Returns -1 with the error set: EINVAL or EIO for damage, ENOMEM.
 */
extern int bitmap_directory_read (struct bitmap_directory *d,
                                  struct storage *s, const struct header *h);
extern void bitmap_directory_free (struct bitmap_directory *d);

/* Disable the bitmap that bitmap_find has found.  Returns -1 with EIO set if its
 * entry was another one by the time that the directory was read.
 */
extern int bitmap_directory_disable (struct bitmap_directory *d,
                                     const char *image,
                                     const struct bitmap_info *b);

/* Append an entry: see bitmap_entry_encode.  Returns -1 with the error set:
 * ENOTSUP for a limit, ENOMEM.
 */
extern int bitmap_directory_append (struct bitmap_directory *d,
                                    const char *image, const char *name,
                                    unsigned granularity_bits);

/* Set the place of the last entry's table, and how many parts it has. */
extern void bitmap_directory_set_table (struct bitmap_directory *d,
                                        const char *name,
                                        struct host_off table, uint32_t nr);

#endif /* CORE_QCOW2_BITMAP_DIRECTORY_H */
