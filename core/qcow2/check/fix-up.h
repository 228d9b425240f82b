/* SPDX-License-Identifier: BSD-3-Clause */

/* What becomes of an entry of an L1 or L2 table that can't be used as it is.
 * Pure.
 *
 * Reserved bits, flags that mean nothing, and a COPIED flag on compressed data
 * are taken away, and the entry is used.  What nobody can follow is dropped:
 * a table or cluster whose offset is not aligned, or which begins beyond the
 * end of the file.  A dropped cluster reads as zeros, since what lies below
 * it in a backing file is not what it held; in version 2, which can't say
 * that, it is not allocated.  A dropped L2 table leaves its part of the disk
 * not allocated.
 *
 * A subcluster that is said to be both allocated and zero is zero: what the
 * host's cluster holds there may be anything (I2).
 */

#ifndef CORE_QCOW2_CHECK_FIX_UP_H
#define CORE_QCOW2_CHECK_FIX_UP_H

#include "qcow2/entry.h"

/* Spec: the reserved bits of entries. */
#define L1_RESERVED UINT64_C (0x7f000000000001ff)
#define L2_RESERVED UINT64_C (0x3f000000000001fe)

/* file_size is rounded up to a sector.  Nothing about the COPIED flag of
 * ordinary entries is decided here.
 */
extern uint64_t check_fix_l1 (const struct entry_format *f,
                               uint64_t file_size, uint64_t word);

/* words[1] is 0 without extended L2.  Returns true if they were changed. */
extern bool check_fix_l2 (const struct entry_format *f, uint64_t file_size,
                           uint64_t words[2]);

/* The first byte, and how many from there on a compressed cluster takes
 * according to its entry, whatever that says.  Spec: Compressed Clusters
 * Descriptor.
 */
extern void check_compressed_range (const struct entry_format *f,
                                    uint64_t word, uint64_t *offset,
                                    uint64_t *bytes);

#endif /* CORE_QCOW2_CHECK_FIX_UP_H */
