/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include "qcow2/check/fix-up.h"

static inline bool
is_usable (const struct entry_format *f, uint64_t file_size, uint64_t offset)
{
  return (offset & ((UINT64_C (1) << f->cluster_bits) - 1)) == 0 &&
    offset < file_size;
}

uint64_t
check_fix_l1 (const struct entry_format *f, uint64_t file_size,
               uint64_t word)
{
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;

  if (offset == 0 || !is_usable (f, file_size, offset))
    return 0;
  return word & ~L1_RESERVED;
}

void
check_compressed_range (const struct entry_format *f, uint64_t word,
                        uint64_t *offset, uint64_t *bytes)
{
  const unsigned size_bits = f->cluster_bits - 8;
  const unsigned offset_bits = 62 - size_bits;
  const uint64_t sectors =
    (word >> offset_bits & ((UINT64_C (1) << size_bits) - 1)) + 1;

  *offset = word & ((UINT64_C (1) << offset_bits) - 1);
  *bytes = sectors * QCOW2_COMPRESSED_SECTOR -
    *offset % QCOW2_COMPRESSED_SECTOR;
}

static void
drop (const struct entry_format *f, uint64_t words[2])
{
  const bool compressed = (words[0] & QCOW2_L2_COMPRESSED) != 0;

  words[0] = 0;
  if (f->extended_l2)
    words[1] = compressed ? (uint64_t) UINT32_MAX << 32
      : (words[1] | words[1] << 32) & ~(uint64_t) UINT32_MAX;
  else if (f->version >= 3)
    words[0] = QCOW2_L2_ZERO;
}

/* The size may be larger than the data, and reach into a cluster beyond the
 * end of the file.
 */
static void
fix_compressed (const struct entry_format *f, uint64_t file_size,
                 uint64_t words[2])
{
  const unsigned offset_bits = 62 - (f->cluster_bits - 8);
  uint64_t offset, bytes, sectors;

  check_compressed_range (f, words[0], &offset, &bytes);
  if (offset == 0 || offset >= file_size ||
      entry_decode_l2 (f, words[0], 0).kind == CLUSTER_INVALID) {
    drop (f, words);
    return;
  }
  words[0] &= ~QCOW2_ENTRY_COPIED;
  words[1] = 0;
  if (offset + bytes >= file_size + (UINT64_C (1) << f->cluster_bits)) {
    sectors = file_size / QCOW2_COMPRESSED_SECTOR -
      offset / QCOW2_COMPRESSED_SECTOR;
    words[0] &= QCOW2_L2_COMPRESSED | ((UINT64_C (1) << offset_bits) - 1);
    words[0] |= (sectors - 1) << offset_bits;
  }
}

static void
fix_subclusters (bool has_cluster, uint64_t words[2])
{
  uint64_t allocated = words[1] & UINT32_MAX;
  uint64_t zero = words[1] >> 32;

  if (!has_cluster) {
    zero |= allocated;
    allocated = 0;
  }
  allocated &= ~zero;
  words[1] = zero << 32 | allocated;
}

static void
fix_standard (const struct entry_format *f, uint64_t file_size,
               uint64_t words[2])
{
  const uint64_t offset = words[0] & QCOW2_ENTRY_OFFSET_MASK;

  words[0] &= ~L2_RESERVED;
  if (f->version < 3 || f->extended_l2)
    words[0] &= ~QCOW2_L2_ZERO;
  if (offset != 0 && !is_usable (f, file_size, offset)) {
    drop (f, words);
    return;
  }
  if (offset == 0)
    words[0] &= ~QCOW2_ENTRY_COPIED;
  if (f->extended_l2)
    fix_subclusters (offset != 0, words);
}

/* The guest has what is at this offset of the external data file, in any case.
 */
static void
put_right (const struct entry_format *f, uint64_t guest, uint64_t words[2])
{
  words[0] = guest | QCOW2_ENTRY_COPIED;
  words[1] = f->extended_l2 ? UINT32_MAX : 0;
}

static void
drop_external (const struct entry_format *f, uint64_t guest, uint64_t words[2])
{
  if (f->raw_data && (guest & ~QCOW2_ENTRY_OFFSET_MASK) == 0)
    put_right (f, guest, words);
  else
    drop (f, words);
}

/* An entry of an image with an external data file. */
static void
fix_external (const struct entry_format *f, uint64_t guest, uint64_t words[2])
{
  const uint64_t offset = words[0] & QCOW2_ENTRY_OFFSET_MASK;
  bool is_there;

  if (words[0] & QCOW2_L2_COMPRESSED) {
    drop_external (f, guest, words);
    return;
  }
  words[0] &= ~L2_RESERVED;
  if (f->extended_l2)
    words[0] &= ~QCOW2_L2_ZERO;
  is_there = offset != 0 || (words[0] & QCOW2_ENTRY_COPIED);
  if (is_there && offset != guest) {
    drop_external (f, guest, words);
    return;
  }
  if (is_there)
    words[0] |= QCOW2_ENTRY_COPIED;
  if (f->extended_l2)
    fix_subclusters (is_there, words);
}

bool
check_fix_l2 (const struct entry_format *f, uint64_t file_size,
               uint64_t guest, uint64_t words[2])
{
  const uint64_t was[2] = { words[0], words[1] };

  if (f->data_file)
    fix_external (f, guest, words);
  else if (words[0] & QCOW2_L2_COMPRESSED)
    fix_compressed (f, file_size, words);
  else
    fix_standard (f, file_size, words);
  return words[0] != was[0] || words[1] != was[1];
}
