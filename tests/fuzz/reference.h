/* SPDX-License-Identifier: BSD-3-Clause */

/* What an image's disk holds, by the specification and by nothing of core/ but
 * the masks in qcow2/format.h: so that what core/ reads can be compared.  Of
 * QED it knows as much as is needed for that.
 */

#ifndef FUZZ_REFERENCE_H
#define FUZZ_REFERENCE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct reference {
  const uint8_t *data; /* the image */
  uint64_t size;
  bool qed;
  unsigned version, bits; /* bits: of a cluster */
  uint64_t cluster_size;
  bool extended;
  uint64_t granule; /* a subcluster; without extended L2, a cluster */
  uint64_t table_bytes; /* of the disk, that an L2 table maps */
  uint64_t l1_offset, l1_size;
  uint64_t disk_size;

  /* The backing file, which is raw; NULL: none. */
  const uint8_t *base;
  uint64_t base_size;
};

/* The live disk of an image that core/ has opened. */
extern void reference_init (struct reference *r, const uint8_t *data,
                            uint64_t size);

/* The same of a QED image, whose bytes have a sector of zeros behind them.  Of
 * its places there are kind and host.
 */
extern void reference_init_qed (struct reference *r, const uint8_t *data,
                                uint64_t size);

enum reference_kind {
  REFERENCE_UNALLOCATED,
  REFERENCE_ZERO,       /* without a host cluster */
  REFERENCE_ZERO_ALLOC, /* with one */
  REFERENCE_DATA,
  REFERENCE_COMPRESSED,
  REFERENCE_DAMAGED,
};

/* Where to look up what is at a guest offset. */
struct reference_place {
  enum reference_kind kind;
  uint64_t l1;    /* the host offset of the L1 entry; 0: beyond the table */
  uint64_t table; /* of the L2 table; 0: none */
  uint64_t entry; /* the L2 entry */
  uint64_t host;  /* DATA: of the byte; COMPRESSED: of the data */
  uint64_t bytes; /* COMPRESSED: of the data, at most */
};

extern struct reference_place reference_find (const struct reference *r,
                                              uint64_t offset);

/* What a sector of 512 bytes reads as; false if that is not told here: it is
 * COMPRESSED or DAMAGED.
 */
extern bool reference_read (const struct reference *r,
                            const struct reference_place *p, uint64_t offset,
                            uint8_t sector[512]);

#endif /* FUZZ_REFERENCE_H */
