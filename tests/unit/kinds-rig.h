/* SPDX-License-Identifier: BSD-3-Clause */

/* Images in memory, of every form, with one cluster of each kind.  One at a time. */

#ifndef UNIT_KINDS_RIG_H
#define UNIT_KINDS_RIG_H

#include "the-rig.h"

/* The clusters have none beside them. */
enum kind {
  NOTHING,
  DATA,
  DATA_BESIDE, /* data with data before and behind it */
  ZERO,
  ZERO_KEPT,
  COMPRESSED,
  COMPRESSED_TOO, /* in the same host cluster, where that may be */
  MIXED,          /* extended L2: subclusters of all kinds ... */
  MIXED_NO_HOST,  /* ... and without a host cluster */
  NO_TABLE,       /* there is no L2 table either, if clusters are small */
  NR_KINDS,
};

struct kinds_form {
  unsigned version, bits;
  bool extended;
  unsigned order;
  bool backing;
  unsigned snapshots, copied; /* of 100 tables */
};

#define KINDS_FORMS 12
extern const struct kinds_form kinds_forms[KINDS_FORMS];

extern uint64_t kinds_cache_bytes; /* of the next image */
extern uint64_t cluster_size, disk_size;

/* The rig is open with an image of this form; with tail the last cluster of the disk
 * is not whole.
 */
extern void kinds_make (const struct kinds_form *f, bool tail);

/* Forget the image, which is closed. */
extern void kinds_unmake (void);

/* The guest's offset of the cluster of this kind. */
extern uint64_t kinds_at (enum kind kind);

#endif /* UNIT_KINDS_RIG_H */
