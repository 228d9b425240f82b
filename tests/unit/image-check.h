/* SPDX-License-Identifier: BSD-3-Clause */

/* Whether an image is sound: a reader of the format of its own, that shares
 * nothing with core/ but the masks in qcow2/format.h, so that it can convict
 * it.
 */

#ifndef UNIT_IMAGE_CHECK_H
#define UNIT_IMAGE_CHECK_H

#include <stdbool.h>
#include <stdint.h>

/* How many references each host cluster has, by what is reached from the
 * header: tables, data, compressed data, snapshots.
 */
struct image_refs {
  uint64_t nr; /* clusters of the file, the last one may be cut */
  uint32_t *count;
  uint8_t *kind; /* or IMAGE_REFS_MIXED */
  uint64_t beyond; /* references that are not within the file */
  uint64_t mixed;  /* those to a cluster that is something else as well */
  uint64_t steps;  /* that it took */
};

extern void image_refs_count (struct image_refs *r, const uint8_t *data,
                              uint64_t size);
extern void image_refs_free (struct image_refs *r);

/* Of a cluster that is more than one thing. */
#define IMAGE_REFS_MIXED 4

/* The same for an image from a stranger: returns false, and not all are
 * counted, if it takes too long.
 */
extern bool image_refs_count_quietly (struct image_refs *r,
                                      const uint8_t *data, uint64_t size);

/* What the image says that the refcount of a cluster is. */
extern uint64_t image_refcount (const uint8_t *data, uint64_t size,
                                uint64_t cluster);

struct image_check {
  unsigned errors;
  unsigned uncopied; /* of them: COPIED is not set, and might be */
  uint64_t leaks; /* clusters */
  bool dirty, corrupt;
  uint64_t clusters; /* of the file */
};

/* Find what is wrong; each error is a failed check that names `what'. */
extern struct image_check image_check (const char *what, const uint8_t *data,
                                       uint64_t size);

/* The same without a word, for images from strangers: gives up, with errors, on
 * one that takes too long.
 */
extern struct image_check image_check_quietly (const uint8_t *data,
                                               uint64_t size);

/* Like image_check, and leaks are failed checks as well, and so is a dirty
 * bit.
 */
extern void image_check_clean (const char *what, const uint8_t *data,
                               uint64_t size);

#endif /* UNIT_IMAGE_CHECK_H */
