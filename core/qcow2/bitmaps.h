/* SPDX-License-Identifier: BSD-3-Clause */

/* The directory of persistent bitmaps.  Those that are enabled have to follow
 * what is written (qcow2/write/follow.h).  Or they are marked as "in use", as a
 * crashed writer leaves them: readers then know not to trust them, and they can
 * still be removed.
 *
 * A disabled one (whose `auto' flag is clear) records the changes up to some
 * moment, so writing can't make it wrong: it is left alone.  Spec: Bitmaps
 * extension, Bitmap directory.
 */

#ifndef CORE_QCOW2_BITMAPS_H
#define CORE_QCOW2_BITMAPS_H

#include <stdbool.h>

#include "qcow2/header.h"
#include "storage/storage.h"

/* Whether the image has bitmaps that writing would make wrong: enabled, and
 * not in use.  Returns -1 with the error set: EINVAL if their directory is
 * malformed, EIO.
 */
extern int bitmaps_must_follow (struct storage *s, const struct header *h,
                                bool *any);

/* Check that those can follow what is written, as far as the directory tells:
 * of a kind that is known here, for a disk of this size, and so few that a
 * request can hold bits of all.  Returns -1 with the error set: ENOTSUP if one
 * can't; EINVAL if the directory is malformed; EIO.
 */
#define BITMAPS_MAX_FOLLOWED 16
extern int bitmaps_check_followed (struct storage *s, const struct header *h);

/* Check that all tables are within the file.  Returns -1 with the error set:
 * EINVAL, EIO.
 */
extern int bitmaps_check_tables (struct storage *s, const struct header *h);

/* Mark those as in use, durably.  Returns -1 with the error set.  *written,
 * even then, tells whether anything was written, durably or not.
 */
extern int bitmaps_mark_in_use (struct storage *s, const struct header *h,
                                bool *written);

enum bitmap_state {
  BITMAP_ENABLED,  /* it has to follow what is written */
  BITMAP_DISABLED, /* it tells of the changes up to some moment */
  BITMAP_IN_USE,   /* left so by a crashed writer: not to be trusted */
  BITMAP_UNKNOWN,  /* of a kind, or with data, that is not known here; or its
                    * size or granularity is none of QEMU's: so that they and
                    * the extents of a request are bounded; or its name has a
                    * NUL, which ends it here */
};

/* A directory entry. */
struct bitmap_info {
  char name[QCOW2_MAX_BITMAP_NAME + 1];
  enum bitmap_state state;
  bool in_use, automatic; /* its flags */
  bool table_fits; /* bitmap_check_table found no fault; false if UNKNOWN */
  unsigned granularity_bits; /* at most 63: log2 of the disk's bytes per bit */
  struct host_off table; /* not checked: see bitmap_check_table */
  uint32_t nr_parts;     /* entries of that */
  struct host_off place; /* of this entry */
  uint8_t entry[QCOW2_BITMAP_ENTRY_SIZE]; /* its fixed part as it is there */
};

/* Call fn for each bitmap, if the directory can be trusted.  Stops when fn
 * returns -1, and returns -1.  Otherwise returns -1 with the error set: EINVAL
 * if the directory is malformed, EIO.
 */
typedef int bitmaps_list_fn (void *opaque, const struct bitmap_info *b);
extern int bitmaps_list (struct storage *s, const struct header *h,
                         bitmaps_list_fn *fn, void *opaque);

/* Find the only bitmap of this name.  Returns -1 with the error set: ENOENT if
 * there is none; EINVAL if there are several (*nr then, of which *b is the
 * first), or the directory is malformed (*nr is 0); EIO.
 */
extern int bitmap_find (struct storage *s, const struct header *h,
                        const char *name, struct bitmap_info *b, unsigned *nr);

/* Check that its bits can be used: that it is not in use, and of a known kind.
 * Returns -1 with the error set to EINVAL.
 */
extern int bitmap_check_usable (struct storage *s,
                                const struct bitmap_info *b);

/* Check that the bitmap's table is within the file, and is for a disk of this
 * size: exactly, as QEMU does, since one that was made before the disk had
 * another size says nothing of what became of it.  Reads nothing.  Returns -1
 * with the error set to EINVAL.
 */
extern int bitmap_check_table (struct storage *s, const struct header *h,
                               const struct bitmap_info *b);

/* What bitmaps_check_followed asks of one bitmap, where *nr follow already.  Who
 * reads the directory again asks again: a server may give another one.  Returns
 * 1 if it has to follow and can, and counts it; 0 if it has not to; -1 with the
 * error set: ENOTSUP.
 */
extern int bitmap_check_followed (struct storage *s,
                                  const struct bitmap_info *b, unsigned *nr);

#endif /* CORE_QCOW2_BITMAPS_H */
