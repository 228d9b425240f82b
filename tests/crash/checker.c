/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checker.h"
#include "qcow2/entry.h"
#include "qcow2/format.h"

/* Spec: the reserved bits of entries. */
#define L1_RESERVED UINT64_C (0x7f000000000001ff)
#define L2_RESERVED UINT64_C (0x3f000000000001fe)
#define REFCOUNT_TABLE_RESERVED UINT64_C (0x1ff)
#define BITMAP_TABLE_RESERVED UINT64_C (0xff000000000001fe)

/* Spec: Snapshots: version 3 images have at least the disk's size. */
#define SNAPSHOT_EXTRA_V3 16

#define EXT_BITMAPS UINT32_C (0x23852875)
#define EXT_LUKS UINT32_C (0x0537be77)

/* What only one owner may have: not data, and no tables of mappings. */
#define ROLES_ALONE                                                     \
  (ROLE_HEADER | ROLE_L1 | ROLE_REFCOUNT_TABLE | ROLE_REFCOUNT_BLOCK |  \
   ROLE_SNAPSHOT_TABLE | ROLE_BITMAP | ROLE_LUKS)

struct cluster {
  uint64_t refs;   /* stops at the largest refcount, as qemu-img does */
  uint64_t owners; /* does not */
  uint16_t roles;
  bool active;     /* the active tables refer to it, uncompressed */
};

struct checker {
  const uint8_t *bytes;
  uint64_t nr_bytes;
  uint64_t size; /* that, rounded up to a sector, which is what QEMU sees */
  unsigned flags;
  struct check_result *result;

  struct entry_format format;
  unsigned bits; /* of a cluster's size */
  uint64_t cluster_size;
  unsigned order;
  uint64_t l1, l1_size, l2_entries;
  uint64_t table, table_entries; /* of refcounts */
  uint64_t snapshots;
  uint32_t nr_snapshots;
  uint64_t bitmaps, bitmaps_size; /* the directory */
  uint32_t nr_bitmaps;
  uint64_t luks, luks_size;

  uint64_t last_block, last_word; /* of the refcount table, looked up last */

  struct cluster *cluster;
  uint64_t nr; /* clusters */
  uint64_t allocated;
};

static void __attribute__ ((__format__ (__printf__, 3, 4), __cold__))
found (struct checker *c, uint64_t *counter, const char *fmt, ...)
{
  struct check_result *r = c->result;
  va_list ap;

  if (r->why[0] == '\0') {
    va_start (ap, fmt);
    vsnprintf (r->why, sizeof r->why, fmt, ap);
    va_end (ap);
  }
  ++*counter;
}

#define CORRUPT(...) found (c, &c->result->corruptions, __VA_ARGS__)
#define STRICT(...) found (c, &c->result->strict, __VA_ARGS__)

/* Words past the end of the file read as zeros. */
static uint64_t
word_at (const struct checker *c, uint64_t offset)
{
  uint8_t b[8] = { 0 };

  if (offset + 8 <= c->nr_bytes)
    return get_be64 (c->bytes + offset);
  if (offset < c->nr_bytes)
    memcpy (b, c->bytes + offset, c->nr_bytes - offset);
  return get_be64 (b);
}

static void
reserve (struct checker *c, uint64_t nr)
{
  if (nr <= c->nr)
    return;
  if (nr > c->allocated) {
    c->allocated = nr + nr / 4;
    c->cluster = realloc (c->cluster, c->allocated * sizeof *c->cluster);
    if (c->cluster == NULL)
      abort ();
  }
  memset (c->cluster + c->nr, 0, (nr - c->nr) * sizeof *c->cluster);
  c->nr = nr;
}

/* A cluster has one more owner.  What two may not share is not counted by
 * qemu-img where the refcount agrees.
 */
static void
add_owner (struct checker *c, uint64_t i, unsigned role, bool active)
{
  struct cluster *k = &c->cluster[i];

  if (k->refs == entry_refcount_max (c->order))
    CORRUPT ("cluster %" PRIu64 " has too many references", i);
  else
    k->refs++;
  k->owners++;
  if ((k->roles & ~role) != 0 || (k->owners > 1 && (role & ROLES_ALONE)))
    STRICT ("cluster %" PRIu64 " is used as 0x%x and as 0x%x", i, k->roles,
            role);
  if (active && k->active)
    STRICT ("cluster %" PRIu64 " (0x%x) is mapped twice", i, role);
  k->active |= active;
  k->roles |= role;
}

/* The bytes at offset are used.  active: as a table or data of the live disk,
 * which has but one reference to it.
 */
static void
use (struct checker *c, uint64_t offset, uint64_t count, unsigned role,
     bool active)
{
  uint64_t i, last;

  if (count == 0)
    return;
  /* The file may end in its last cluster. */
  if (offset + count >= c->size + c->cluster_size) {
    CORRUPT ("0x%" PRIx64 " (of role 0x%x) is beyond the end of the file, "
             "0x%" PRIx64, offset, role, c->size);
    return;
  }
  last = (offset + count - 1) >> c->bits;
  reserve (c, last + 1);
  for (i = offset >> c->bits; i <= last; ++i)
    add_owner (c, i, role, active);
}

static void
use_compressed (struct checker *c, uint64_t place, uint64_t word,
                uint64_t bitmap)
{
  const unsigned x = 62 - (c->bits - 8);
  const uint64_t offset = word & ((UINT64_C (1) << x) - 1);
  const uint64_t sectors =
    (word >> x & ((UINT64_C (1) << (c->bits - 8)) - 1)) + 1;

  if (word & QCOW2_ENTRY_COPIED)
    CORRUPT ("L2 entry at 0x%" PRIx64 ": compressed and COPIED", place);
  if (bitmap != 0) {
    CORRUPT ("L2 entry at 0x%" PRIx64 ": compressed, with subclusters", place);
    return;
  }
  use (c, offset, sectors * 512 - offset % 512, ROLE_COMPRESSED, false);
}

static void
use_standard (struct checker *c, uint64_t place, uint64_t word,
              uint64_t bitmap, bool active)
{
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;

  if ((bitmap >> 32 & bitmap & UINT32_MAX) != 0)
    CORRUPT ("L2 entry at 0x%" PRIx64 ": subclusters both allocated and zero",
             place);
  if (offset % c->cluster_size != 0)
    CORRUPT ("L2 entry at 0x%" PRIx64 ": unaligned", place);
  use (c, offset, c->cluster_size, ROLE_DATA, active);
}

/* What qemu-img lets pass and a reader of the image does not. */
static void
check_strictly (struct checker *c, uint64_t place, uint64_t word,
                uint64_t bitmap)
{
  const struct l2_entry e = entry_decode_l2 (&c->format, word, bitmap);

  if (e.kind == CLUSTER_INVALID)
    STRICT ("L2 entry at 0x%" PRIx64 ": %s", place,
            entry_why (&c->format, word, bitmap));
  if (!(word & QCOW2_L2_COMPRESSED) && (word & QCOW2_ENTRY_COPIED) &&
      (word & QCOW2_ENTRY_OFFSET_MASK) == 0)
    STRICT ("L2 entry at 0x%" PRIx64 ": COPIED, and no cluster", place);
}

static uint64_t
bitmap_at (const struct checker *c, uint64_t place)
{
  return c->format.extended_l2 ? word_at (c, place + 8) : 0;
}

static void
use_l2_entry (struct checker *c, uint64_t place, bool active)
{
  const uint64_t word = word_at (c, place);
  const uint64_t bitmap = bitmap_at (c, place);

  if (word == 0 && bitmap == 0)
    return;
  check_strictly (c, place, word, bitmap);
  if (word & QCOW2_L2_COMPRESSED) {
    use_compressed (c, place, word, bitmap);
    return;
  }
  if (word & L2_RESERVED)
    CORRUPT ("L2 entry at 0x%" PRIx64 ": reserved bits", place);
  if (c->format.extended_l2 && (word & QCOW2_L2_ZERO))
    STRICT ("L2 entry at 0x%" PRIx64 ": zero flag", place);
  if (word & QCOW2_ENTRY_OFFSET_MASK)
    use_standard (c, place, word, bitmap, active);
  else if (bitmap & UINT32_MAX)
    CORRUPT ("L2 entry at 0x%" PRIx64 ": subclusters without a cluster",
             place);
}

static void
use_l1 (struct checker *c, uint64_t l1, uint64_t l1_size, bool active)
{
  const unsigned entry_size = c->format.extended_l2 ? 16 : 8;
  uint64_t i, j;

  if (l1_size == 0)
    return;
  use (c, l1, l1_size * 8, ROLE_L1, false);
  for (i = 0; i < l1_size; ++i) {
    const uint64_t word = word_at (c, l1 + 8 * i);
    const uint64_t l2 = word & QCOW2_ENTRY_OFFSET_MASK;

    if (word == 0)
      continue;
    if (word & L1_RESERVED)
      CORRUPT ("L1 entry %" PRIu64 ": reserved bits", i);
    if (l2 == 0)
      STRICT ("L1 entry %" PRIu64 ": flags, and no table", i);
    use (c, l2, c->cluster_size, ROLE_L2, active);
    if (l2 % c->cluster_size != 0)
      CORRUPT ("L1 entry %" PRIu64 ": unaligned", i);
    for (j = 0; j < c->l2_entries; ++j)
      use_l2_entry (c, l2 + j * entry_size, active);
  }
}

/* Where the snapshot's entry ends, before it is rounded up. */
static uint64_t
snapshot_end (struct checker *c, uint64_t at)
{
  const uint64_t lengths = word_at (c, at + 8); /* and the L1 table's size */
  const uint64_t extra = word_at (c, at + 32) & UINT32_MAX;

  if (c->format.version >= 3 && extra < SNAPSHOT_EXTRA_V3)
    CORRUPT ("the snapshot table's entry at 0x%" PRIx64 " is incomplete", at);
  return at + QCOW2_SNAPSHOT_ENTRY_SIZE + extra + (lengths >> 16 & 0xffff) +
    (lengths & 0xffff);
}

static void
use_snapshots (struct checker *c)
{
  uint64_t at = c->snapshots, end = at;
  uint32_t i;

  for (i = 0; i < c->nr_snapshots; ++i) {
    const uint64_t l1 = word_at (c, end = (end + 7) & -8);
    const uint64_t l1_size = word_at (c, end + 8) >> 32;

    end = snapshot_end (c, end);
    if (l1 % c->cluster_size != 0)
      CORRUPT ("snapshot %" PRIu32 ": unaligned L1 table", i);
    else if (l1_size > QCOW2_MAX_L1_BYTES / 8)
      CORRUPT ("snapshot %" PRIu32 ": L1 table too large", i);
    else
      use_l1 (c, l1, l1_size, false);
  }
  use (c, at, end - at, ROLE_SNAPSHOT_TABLE, false);
}

static void
use_bitmap (struct checker *c, uint64_t table, uint64_t nr)
{
  uint64_t i;

  use (c, table, nr * 8, ROLE_BITMAP, false);
  for (i = 0; i < nr; ++i) {
    const uint64_t word = word_at (c, table + 8 * i);
    const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;

    if ((word & BITMAP_TABLE_RESERVED) || (offset != 0 && (word & 1)) ||
        offset % c->cluster_size != 0)
      CORRUPT ("bitmap table at 0x%" PRIx64 ": entry %" PRIu64, table, i);
    else if (offset != 0)
      use (c, offset, c->cluster_size, ROLE_BITMAP, false);
  }
}

static void
use_bitmaps (struct checker *c)
{
  uint64_t at = c->bitmaps;
  uint32_t i;

  if (c->nr_bitmaps == 0)
    return;
  use (c, c->bitmaps, c->bitmaps_size, ROLE_BITMAP, false);
  for (i = 0; i < c->nr_bitmaps && at + 24 <= c->bitmaps + c->bitmaps_size;
       ++i) {
    const uint64_t sizes = word_at (c, at + 16);

    use_bitmap (c, word_at (c, at), word_at (c, at + 8) >> 32);
    at += 24 + (sizes >> 32 & 0xffff) + (sizes & UINT32_MAX);
    at = (at + 7) & -8;
  }
}

static void
use_refcount_blocks (struct checker *c)
{
  uint64_t i;

  for (i = 0; i < c->table_entries; ++i) {
    const uint64_t word = word_at (c, c->table + 8 * i);
    const uint64_t block = word >> c->bits;

    if (word & REFCOUNT_TABLE_RESERVED)
      CORRUPT ("refcount table entry %" PRIu64 ": reserved bits", i);
    else if (word % c->cluster_size != 0)
      CORRUPT ("refcount table entry %" PRIu64 ": unaligned", i);
    else if (block >= c->nr)
      CORRUPT ("refcount table entry %" PRIu64 ": beyond the end of the file",
               i);
    else if (block != 0) {
      use (c, word, c->cluster_size, ROLE_REFCOUNT_BLOCK, false);
      if (c->cluster[block].refs != 1)
        CORRUPT ("refcount block %" PRIu64 " is used for something else", i);
    }
  }
}

/* The word with the refcount of a cluster, as the image has it.  False if its
 * block is unaligned, or where no file can reach.
 */
static bool
stored_word (struct checker *c, uint64_t cluster, uint64_t *word)
{
  const unsigned block_bits = c->bits + 3 - c->order;
  const uint64_t i = cluster & ((UINT64_C (1) << block_bits) - 1);
  const uint64_t index = cluster >> block_bits;
  uint64_t block;

  *word = 0;
  if (index >= c->table_entries)
    return true;
  if (index != c->last_block) {
    c->last_block = index;
    c->last_word = word_at (c, c->table + 8 * index);
  }
  block = c->last_word & ~REFCOUNT_TABLE_RESERVED;
  if (block % c->cluster_size != 0 || block >> 63 != 0)
    return false;
  if (block != 0 && block < c->size)
    *word = word_at (c, block + ((i << c->order) / 64) * 8);
  return true;
}

static bool
stored_refcount (struct checker *c, uint64_t cluster, uint64_t *refcount)
{
  uint64_t word;

  if (!stored_word (c, cluster, &word))
    return false;
  *refcount = entry_get_refcount (c->order, word, cluster);
  return true;
}

static void
compare_refcounts (struct checker *c)
{
  uint64_t i, refcount;

  for (i = 0; i < c->nr; ++i) {
    if (!stored_refcount (c, i, &refcount))
      found (c, &c->result->errors, "cluster %" PRIu64 " has no refcount", i);
    else if (refcount < c->cluster[i].refs)
      CORRUPT ("cluster %" PRIu64 " (of role 0x%x): refcount %" PRIu64
               ", references %" PRIu64, i, c->cluster[i].roles, refcount,
               c->cluster[i].refs);
    else if (refcount > c->cluster[i].refs)
      c->result->leaks++;
  }
}

/* What qemu-img does not look at: no cluster is there yet. */
static void
count_beyond (struct checker *c)
{
  const uint64_t per_block = UINT64_C (1) << (c->bits + 3 - c->order);
  const uint64_t per_word = 64 >> c->order;
  uint64_t i = c->nr, word;

  while (i < c->table_entries * per_block) {
    if (word_at (c, c->table + i / per_block * 8) == 0)
      i = (i | (per_block - 1)) + 1;
    else if (!stored_word (c, i, &word) || word == 0)
      i = (i | (per_word - 1)) + 1;
    else
      c->result->beyond += entry_get_refcount (c->order, word, i++) > 0;
  }
}

/* What is COPIED has a refcount of exactly 1, and the other way round. */
static void
check_copied (struct checker *c, const char *what, uint64_t place,
              uint64_t word)
{
  const uint64_t cluster = (word & QCOW2_ENTRY_OFFSET_MASK) >> c->bits;
  const bool copied = (word & QCOW2_ENTRY_COPIED) != 0;
  uint64_t refcount;

  if (!stored_refcount (c, cluster, &refcount))
    return;
  if ((refcount == 1) != copied)
    CORRUPT ("%s entry at 0x%" PRIx64 ", 0x%016" PRIx64 ": COPIED, refcount "
             "%" PRIu64, what, place, word, refcount);
}

/* Zeros, and no subcluster of data. */
static bool
is_zero_alloc (const struct checker *c, uint64_t word, uint64_t bitmap)
{
  const struct l2_entry e = entry_decode_l2 (&c->format, word, bitmap);

  return e.kind == CLUSTER_ZERO_ALLOC ||
    (e.kind == CLUSTER_SUBCLUSTERS && e.allocated == 0 && e.zero != 0);
}

static void
check_active_copied (struct checker *c)
{
  const unsigned entry_size = c->format.extended_l2 ? 16 : 8;
  uint64_t i, j;

  for (i = 0; i < c->l1_size; ++i) {
    const uint64_t word = word_at (c, c->l1 + 8 * i);
    const uint64_t l2 = word & QCOW2_ENTRY_OFFSET_MASK;

    if (l2 == 0)
      continue;
    check_copied (c, "L1", c->l1 + 8 * i, word);
    for (j = 0; j < c->l2_entries; ++j) {
      const uint64_t place = l2 + j * entry_size;
      const uint64_t entry = word_at (c, place);

      if ((entry & QCOW2_L2_COMPRESSED) || !(entry & QCOW2_ENTRY_OFFSET_MASK))
        continue;
      check_copied (c, "L2", place, entry);
      if (!(entry & QCOW2_ENTRY_COPIED) &&
          is_zero_alloc (c, entry, bitmap_at (c, place)))
        c->result->shared_zeros++;
    }
  }
}

/* Without refcounts: nothing has two owners, unless snapshots explain it. */
static void
check_owners (struct checker *c)
{
  uint64_t i;

  for (i = 0; i < c->nr; ++i) {
    if ((c->cluster[i].roles & (ROLE_L2 | ROLE_DATA)) != 0 &&
        c->cluster[i].owners > 1 + (uint64_t) c->nr_snapshots)
      STRICT ("cluster %" PRIu64 " (of role 0x%x) has %" PRIu64 " owners", i,
              c->cluster[i].roles, c->cluster[i].owners);
  }
}

/* Find the directory of the bitmaps, if it may be believed, and the LUKS header. */
static void
read_extensions (struct checker *c)
{
  const bool v3 = c->format.version >= 3;
  const uint64_t name = get_be64 (c->bytes + 8);
  const uint64_t limit = name != 0 ? name : c->cluster_size;
  uint64_t at = v3 ? get_be32 (c->bytes + 100) : QCOW2_HEADER_LENGTH_V2;

  while (at + 8 <= limit && at + 8 <= c->nr_bytes) {
    const uint32_t type = get_be32 (c->bytes + at);
    const uint64_t length = get_be32 (c->bytes + at + 4);

    at += 8;
    if (type == QCOW2_EXT_END || at + length > limit ||
        at + length > c->nr_bytes)
      return;
    if (type == EXT_BITMAPS && length >= 24 && v3 &&
        (get_be64 (c->bytes + 88) & QCOW2_AUTOCLEAR_BITMAPS)) {
      c->nr_bitmaps = get_be32 (c->bytes + at);
      c->bitmaps_size = get_be64 (c->bytes + at + 8);
      c->bitmaps = get_be64 (c->bytes + at + 16);
    }
    if (type == EXT_LUKS && length >= 16 &&
        get_be32 (c->bytes + 32) == ENCRYPTION_LUKS) {
      c->luks = get_be64 (c->bytes + at);
      c->luks_size = get_be64 (c->bytes + at + 8);
    }
    at += (length + 7) & -8;
  }
}

static bool
is_table (const struct checker *c, uint64_t offset, uint64_t bytes,
          uint64_t max)
{
  return offset % c->cluster_size == 0 && bytes <= max &&
    offset < UINT64_C (1) << 56;
}

static bool
read_header (struct checker *c)
{
  const uint8_t *p = c->bytes;
  uint64_t incompatible = 0, disk_size;
  unsigned l2_bits;

  if (c->nr_bytes < QCOW2_HEADER_LENGTH_V3 || get_be32 (p) != QCOW2_MAGIC)
    return false;
  c->format.version = get_be32 (p + 4);
  c->bits = c->format.cluster_bits = get_be32 (p + 20);
  if (c->format.version < 2 || c->format.version > 3 ||
      c->bits < QCOW2_MIN_CLUSTER_BITS || c->bits > QCOW2_MAX_CLUSTER_BITS)
    return false;
  c->cluster_size = UINT64_C (1) << c->bits;
  c->order = 4;
  if (c->format.version == 3) {
    incompatible = get_be64 (p + 72);
    c->order = get_be32 (p + 96);
  }
  c->format.extended_l2 = (incompatible & QCOW2_INCOMPAT_EXTENDED_L2) != 0;
  c->result->dirty = (incompatible & QCOW2_INCOMPAT_DIRTY) != 0;
  l2_bits = c->bits - (c->format.extended_l2 ? 4 : 3);
  c->l2_entries = UINT64_C (1) << l2_bits;
  disk_size = get_be64 (p + 24);
  c->l1_size = get_be32 (p + 36);
  c->l1 = get_be64 (p + 40);
  c->table = get_be64 (p + 48);
  c->table_entries = (uint64_t) get_be32 (p + 56) << (c->bits - 3);
  c->nr_snapshots = get_be32 (p + 60);
  c->snapshots = get_be64 (p + 64);
  if ((incompatible & QCOW2_INCOMPAT_CORRUPT) != 0)
    STRICT ("the image is marked as corrupt");
  return (incompatible & ~UINT64_C (0x1b)) == 0 &&
    c->order <= QCOW2_MAX_REFCOUNT_ORDER && c->table != 0 &&
    c->table_entries != 0 &&
    is_table (c, c->l1, c->l1_size * 8, QCOW2_MAX_L1_BYTES) &&
    is_table (c, c->table, c->table_entries * 8,
              QCOW2_MAX_REFCOUNT_TABLE_BYTES) &&
    (c->nr_snapshots == 0 || is_table (c, c->snapshots, 0, 0)) &&
    c->nr_snapshots <= QCOW2_MAX_SNAPSHOTS &&
    disk_size <= c->l1_size << (l2_bits + c->bits);
}

static void
use_all (struct checker *c)
{
  reserve (c, (c->size + c->cluster_size - 1) >> c->bits);
  use (c, 0, c->cluster_size, ROLE_HEADER, false);
  use_l1 (c, c->l1, c->l1_size, true);
  use_snapshots (c);
  use (c, c->table, c->table_entries * 8, ROLE_REFCOUNT_TABLE, false);
  use_bitmaps (c);
  if (is_table (c, c->luks, c->luks_size, UINT64_C (1) << 30))
    use (c, c->luks, c->luks_size, ROLE_LUKS, false);
  use_refcount_blocks (c);
}

void
check_image (const void *bytes, uint64_t size, unsigned flags,
             struct check_result *result)
{
  struct checker checker = {
    .bytes = bytes, .nr_bytes = size, .size = (size + 511) & -512,
    .flags = flags, .result = result,
  };
  struct checker *c = &checker;

  memset (result, 0, sizeof *result);
  result->opens = read_header (c);
  if (!result->opens) {
    found (c, &result->errors, "the header is not valid");
    return;
  }
  read_extensions (c);
  c->last_block = UINT64_MAX;
  use_all (c);
  if (flags & CHECK_ANY_REFCOUNTS)
    check_owners (c);
  else {
    compare_refcounts (c);
    count_beyond (c);
    check_active_copied (c);
  }
  free (c->cluster);
}

uint16_t *
check_roles (const void *bytes, uint64_t size, uint64_t *nr)
{
  struct check_result result = { 0 };
  struct checker c = {
    .bytes = bytes, .nr_bytes = size, .size = (size + 511) & -512,
    .result = &result,
  };
  uint16_t *roles;
  uint64_t i;

  *nr = 0;
  if (!read_header (&c))
    return NULL;
  read_extensions (&c);
  use_all (&c);
  roles = calloc (c.nr, sizeof *roles);
  if (roles == NULL)
    abort ();
  for (i = 0; i < c.nr; ++i)
    roles[i] = c.cluster[i].roles;
  *nr = c.nr;
  free (c.cluster);
  return roles;
}
