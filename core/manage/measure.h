/* SPDX-License-Identifier: BSD-3-Clause */

/* How large the file of a qcow2 image will be that does not exist yet.
 *
 * The numbers are those of `qemu-img measure': tables and refcounts count as if
 * all of the disk were allocated, so that what is really needed may be less.
 */

#ifndef CORE_MANAGE_MEASURE_H
#define CORE_MANAGE_MEASURE_H

#include <stdbool.h>
#include <stdint.h>

#include "disk/layer.h"
#include "manage/create.h"
#include "qcow2/header.h"
#include "storage/storage.h"

struct measure {
  const struct create_options *options;
  uint64_t data; /* clusters of the new image that are written from the start */
  uint64_t next; /* the first that was not looked at yet */

  /* Bytes for the bitmaps that the source has, if it could have any. */
  bool has_bitmaps;
  uint64_t bitmaps;
  uint64_t directory; /* bytes of their directory */
};

/* Begin to measure an image that create_image would make with these options,
 * which stay the caller's: the size is the source's, if there is a source.  Of
 * passphrase, backing and data_file only whether they are set counts; data_file
 * must not be.  Nothing of the disk is written so far.  Returns -1 with the error
 * set to EINVAL if there can't be such an image.
 */
extern int measure_begin (struct measure *m, const struct create_options *o);

/* Count what a copy of this disk writes: all but what is known to read as zeros;
 * or all of it if the new image has a backing file, since what that has is not
 * known.  Returns -1 with the error set if a table can't be read.
 */
extern int measure_disk (struct measure *m, const struct layer *disk);

/* The same of a raw file. */
extern int measure_raw (struct measure *m, struct storage *s);

/* Count the persistent bitmaps of a qcow2 image, too.  Those of a kind that is
 * not known can't be copied, and don't count.  Does nothing if the image, or the
 * new one, is of version 2, which has none.  Returns -1 with the error set:
 * EINVAL if their directory is malformed, EIO.
 */
extern int measure_bitmaps (struct measure *m, struct storage *s,
                            const struct header *h);

/* Bytes of the file: after the copy, and once all of the disk was written. */
extern uint64_t measure_required (const struct measure *m);
extern uint64_t measure_full (const struct measure *m);

/* Bytes that the bitmaps take in addition. */
extern uint64_t measure_of_bitmaps (const struct measure *m);

#endif /* CORE_MANAGE_MEASURE_H */
