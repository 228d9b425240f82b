/* SPDX-License-Identifier: BSD-3-Clause */

/* Reading a disk here and there, and its extents. */

#ifndef FUZZ_DISK_H
#define FUZZ_DISK_H

#include <stdint.h>

#include "disk/layer.h"
#include "qcow2/header.h"
#include "reference.h"

/* A raw backing file, for images that name one. */
#define DISK_BASE_BYTES 50000

/* An image of QED, which is for target_qed, and of no use to others. */
extern bool disk_is_qed (const uint8_t *data, uint64_t size);

extern struct image *disk_open_image (struct storage *image,
                                      const uint8_t *data, uint64_t size);
extern void disk_set_base (struct reference *r);

/* Decode an image's header; false with the error set if it is refused. */
extern bool disk_header (const uint8_t *data, size_t size, struct header *h);

/* Read, and compare with the reference, and parts of a range with the whole;
 * ask for extents, and compare what they say with what is read.  What that
 * costs is bounded, however large the disk is.  state: of random numbers.
 */
extern void disk_visit (const struct layer *disk, const struct reference *r,
                        uint64_t *state);

/* Where random numbers for this input begin. */
extern uint64_t disk_seed (const uint8_t *data, uint64_t size);

#endif /* FUZZ_DISK_H */
