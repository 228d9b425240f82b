/* SPDX-License-Identifier: BSD-3-Clause */

/* Host clusters that may be leaked: a bit for each, in some parts of the file.
 * At first all of them are suspects.  Any evidence of use clears a cluster's
 * bit, and no bit is ever set again, so that evidence can come in any order
 * and from any thread, several at a time.
 */

#ifndef CORE_QCOW2_WRITE_SUSPECTS_H
#define CORE_QCOW2_WRITE_SUSPECTS_H

#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#include "qcow2/entry.h"
#include "qcow2/format.h"

/* Clusters per part, and the number of parts: 8 MiB of bits at most (I11). */
#define SUSPECTS_PART (UINT64_C (1) << 16)
#define SUSPECTS_MAX_PARTS 1024

struct suspects_part {
  uint64_t first; /* cluster */
  _Atomic uint64_t *bits;
};

struct suspects {
  unsigned cluster_bits;
  unsigned nr;
  struct suspects_part part[SUSPECTS_MAX_PARTS]; /* in ascending order */

  /* A table that is gone had an entry that can't be decoded: what that
   * referred to will stay unknown.
   */
  _Atomic bool unsure;
};

/* Without any parts.  Returns NULL with the error set. */
extern struct suspects *suspects_new (unsigned cluster_bits);
extern void suspects_free (struct suspects *s); /* NULL is allowed */

/* Suspect the parts that contain these clusters, which lie after all that were
 * added before.  Returns 1, 0 if there is no room for them, or -1 with the
 * error set; some may be added then.  s must not be in use yet.
 */
extern int suspects_add (struct suspects *s, uint64_t cluster, uint64_t nr);

/* Clear these clusters, or all that contain some of these bytes. */
extern void suspects_clear (struct suspects *s, uint64_t cluster, uint64_t nr);
extern void suspects_clear_bytes (struct suspects *s, struct host_off host,
                                  uint64_t bytes);

/* Clear what an L2 entry refers to.  Returns false if it can't be decoded. */
extern bool suspects_clear_entry (struct suspects *s,
                                  const struct entry_format *f,
                                  uint64_t word, uint64_t bitmap);

/* The same for all entries of an L2 table, or of a piece of one, in the byte
 * order of the disk.  Sets unsure if one can't be decoded.
 */
extern void suspects_clear_table (struct suspects *s,
                                  const struct entry_format *f,
                                  const uint64_t *words, uint64_t nr_words);

/* Find the first suspect from *cluster on.  Returns false if there is none. */
extern bool suspects_next (const struct suspects *s, uint64_t *cluster);

#endif /* CORE_QCOW2_WRITE_SUSPECTS_H */
