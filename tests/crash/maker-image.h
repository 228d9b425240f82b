/* SPDX-License-Identifier: BSD-3-Clause */

/* An image that is being made: what the parts of `maker' share. */

#ifndef CRASH_MAKER_IMAGE_H
#define CRASH_MAKER_IMAGE_H

#include "build.h"
#include "crypto/sectors.h"
#include "maker.h"

enum backing {
  BACKING_NONE, BACKING_RAW, BACKING_SHORT, BACKING_LONG, BACKING_QCOW2
};

struct maker {
  struct made *m;
  struct builder b; /* of the image */
  uint64_t random;

  bool compressed, snap, share_all, second, holes, full, table_full, brim;
  bool late; /* the LUKS header is behind all data */
  bool below; /* it has the passphrase of backing files */
  bool tail, many, bitmap, give_up, autoclear;
  enum backing backing;
  const char *backing_words; /* more of the name of a BACKING_QCOW2 */
  unsigned arrangement;

  unsigned entry_bits;
  uint64_t per_table; /* clusters that an L2 table maps */
  uint64_t snapshot_l1[MADE_MAX_SNAPSHOTS];
  uint64_t bitmap_directory, bitmap_table[MADE_BITMAPS], bitmap_data;
  uint64_t bitmap_parts; /* of each; their tables have a cluster each */
  struct sectors *sectors; /* that encipher the data; NULL: none do */
  uint8_t *luks_data; /* the header and key, until they have their place */
  uint64_t luks, luks_bytes;
  uint64_t *hole; /* host clusters that are free */
  uint64_t nr_holes;
  uint64_t padding; /* clusters with a refcount and no reference */
};

/* What is to be made, from its name; false: there is no such image. */
extern bool maker_parse_name (struct maker *k, const char *name);

/* Before any data is made: a key, and what LUKS has of that in the file. */
extern void maker_start_crypt (struct maker *k);

extern void maker_place_luks (struct maker *k);

/* What the guest sees from here on is at host, in the clear: encipher it. */
extern void maker_encipher (struct maker *k, uint64_t host, uint64_t guest,
                            uint64_t count);

/* Once all else has its place: write a refcount block for each cluster, and
 * the COPIED flags of the live disk's tables.
 */
extern void maker_refcounts (struct maker *k);

#endif /* CRASH_MAKER_IMAGE_H */
