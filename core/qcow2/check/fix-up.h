/* SPDX-License-Identifier: BSD-3-Clause */

/* What a repair makes of an invalid entry of an L1 or L2 table.  Pure.
 *
 * Reserved bits, meaningless flags, and a COPIED flag on compressed data are
 * cleared, and the entry is used.  References that can't be followed are
 * dropped: to a table or cluster whose offset is not aligned, or which begins
 * beyond the end of the file.  A dropped cluster becomes zeros, since the
 * backing file has something other than what it held; in version 2, which
 * can't express that, it becomes unallocated.  A dropped L2 table leaves its
 * part of the disk unallocated.
 *
 * With an external data file a reference can't be followed if it is not where
 * the guest has it, or to compressed data.  If that file is a raw image then
 * what it holds there is what the guest had, and the reference is put right.
 * COPIED is set, as nothing else can refer to data.
 *
 * A subcluster marked as both allocated and zero becomes zero: its bytes in
 * the host cluster could be anything (I2).
 */

#ifndef CORE_QCOW2_CHECK_FIX_UP_H
#define CORE_QCOW2_CHECK_FIX_UP_H

#include "qcow2/entry.h"

/* Spec: the reserved bits of entries. */
#define L1_RESERVED UINT64_C (0x7f000000000001ff)
#define L2_RESERVED UINT64_C (0x3f000000000001fe)

/* file_size is rounded up to a sector.  The COPIED flag of ordinary entries
 * stays as it is.
 */
extern uint64_t check_fix_l1 (const struct entry_format *f,
                               uint64_t file_size, uint64_t word);

/* words[1] is 0 without extended L2; guest is the offset of the cluster whose
 * entry it is, CHECK_NO_GUEST if there are several.  Returns true if they were
 * changed.
 */
extern bool check_fix_l2 (const struct entry_format *f, uint64_t file_size,
                           uint64_t guest, uint64_t words[2]);

/* The bytes of the file that a compressed cluster takes according to its
 * entry, which is not validated.  Spec: Compressed Clusters Descriptor.
 */
extern void check_compressed_range (const struct entry_format *f,
                                    uint64_t word, uint64_t *offset,
                                    uint64_t *bytes);

#endif /* CORE_QCOW2_CHECK_FIX_UP_H */
