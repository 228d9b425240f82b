/* SPDX-License-Identifier: BSD-3-Clause */

/* Small QED images in memory, an independent reader of them, and a judge: they
 * share nothing with core/qed.  All functions abort if memory is short.
 */

#ifndef UNIT_QED_IMAGE_H
#define UNIT_QED_IMAGE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct qed_image {
  uint8_t *bytes;
  uint64_t size, capacity;
  uint64_t cluster_size, table_bytes;
  uint64_t disk_size;
  uint64_t l1_offset;
};

/* An image with a header of so many clusters and an empty L1 table; backing
 * NULL: it has no backing file, or is of a raw one of this name.
 */
extern void qed_image_start (struct qed_image *q, uint64_t cluster_size,
                             uint32_t table_size, uint32_t header_size,
                             uint64_t disk_size, const char *backing);
extern void qed_image_free (struct qed_image *q);

/* Cut so many bytes off.  What is left of a sector stands for a whole one. */
extern void qed_image_cut (struct qed_image *q, uint64_t bytes);

/* Set and look at a field of the header, of 4 or 8 bytes. */
extern void qed_image_put (struct qed_image *q, uint64_t at, unsigned bytes,
                           uint64_t value);
extern uint64_t qed_image_get (const uint8_t *bytes, uint64_t at,
                               unsigned nr);

/* Clusters of zeros at the end; returns their offset. */
extern uint64_t qed_image_grow (struct qed_image *q, uint64_t nr);

/* Where the L2 entry of a cluster is; makes its table if there is none. */
extern uint64_t qed_image_place (struct qed_image *q, uint64_t cluster);

/* Map a cluster to a new one, with a content that follows from seed. */
extern void qed_image_data (struct qed_image *q, uint64_t cluster,
                            uint64_t seed);
extern void qed_image_zero (struct qed_image *q, uint64_t cluster);

/* What a cluster of the disk is. */
enum qed_what {
  QED_IS_UNALLOCATED,
  QED_IS_ZERO,
  QED_IS_DATA,
  QED_IS_DAMAGED,
};

/* *host is where it is, if it is data. */
extern enum qed_what qed_image_what (const uint8_t *bytes, uint64_t size,
                                     uint64_t cluster, uint64_t *host);

/* How the disk reads: into buf, of disk_size bytes, over these bytes of a raw
 * backing file.  Returns false if a part can't be read.
 */
extern bool qed_image_read (const uint8_t *bytes, uint64_t size,
                            const uint8_t *backing, uint64_t backing_size,
                            uint8_t *buf);

/* What is wrong with it.  errors counts as `qemu-img check' does, and leaks as
 * it should.
 */
struct qed_verdict {
  uint64_t errors, leaks;
  bool need_check;
};
extern struct qed_verdict qed_image_judge (const uint8_t *bytes,
                                           uint64_t size);

#endif /* UNIT_QED_IMAGE_H */
