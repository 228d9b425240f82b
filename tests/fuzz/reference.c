/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "qcow2/format.h"
#include "qed-image.h"
#include "reference.h"

/* The word at an offset within the file; what lies past its end is zeros. */
static uint64_t
word (const struct reference *r, uint64_t at)
{
  uint8_t buf[8] = { 0 };

  if (at < r->size)
    memcpy (buf, r->data + at, r->size - at < 8 ? r->size - at : 8);
  return get_be64 (buf);
}

void
reference_init (struct reference *r, const uint8_t *data, uint64_t size)
{
  *r = (struct reference) { .data = data, .size = size };
  r->version = word (r, 4) >> 32;
  r->bits = word (r, 20) >> 32;
  r->cluster_size = UINT64_C (1) << r->bits;
  r->extended = r->version >= 3 && (word (r, 72) & QCOW2_INCOMPAT_EXTENDED_L2);
  r->granule = r->cluster_size / (r->extended ? 32 : 1);
  r->table_bytes = r->cluster_size * (r->cluster_size / (r->extended ? 16 : 8));
  r->l1_size = word (r, 36) >> 32;
  r->l1_offset = word (r, 40);
  r->disk_size = word (r, 24) / 512 * 512;
}

void
reference_init_qed (struct reference *r, const uint8_t *data, uint64_t size)
{
  *r = (struct reference) { .data = data, .size = size, .qed = true };
  r->cluster_size = r->granule = qed_image_get (data, 4, 4);
  r->table_bytes =
    qed_image_get (data, 8, 4) * r->cluster_size / 8 * r->cluster_size;
  r->disk_size = qed_image_get (data, 48, 8);
}

/* Whether a cluster begins within the file, rounded up to a cluster. */
static bool
is_within (const struct reference *r, uint64_t host)
{
  return host / r->cluster_size <= (r->size - 1) / r->cluster_size;
}

/* Spec: Extended L2 Entries. */
static void
find_subcluster (const struct reference *r, uint64_t offset, uint64_t host,
                 uint64_t bitmap, struct reference_place *p)
{
  const unsigned i = offset % r->cluster_size / r->granule;
  const bool allocated = bitmap >> i & 1;
  const bool zero = bitmap >> (32 + i) & 1;

  if (((bitmap >> 32) & bitmap & UINT32_MAX) != 0 ||
      (host == 0 && (bitmap & UINT32_MAX) != 0))
    p->kind = REFERENCE_DAMAGED;
  else if (zero)
    p->kind = host != 0 ? REFERENCE_ZERO_ALLOC : REFERENCE_ZERO;
  else
    p->kind = allocated ? REFERENCE_DATA : REFERENCE_UNALLOCATED;
}

/* Spec: Compressed Clusters Descriptor. */
static void
find_compressed (const struct reference *r, uint64_t entry,
                 struct reference_place *p)
{
  const unsigned x = 62 - (r->bits - 8);
  const uint64_t more = (entry & (QCOW2_L2_COMPRESSED - 1)) >> x;

  p->host = entry & ((UINT64_C (1) << x) - 1);
  p->kind = p->host == 0 || p->host >> 56 != 0
    ? REFERENCE_DAMAGED : REFERENCE_COMPRESSED;
  p->bytes = (more + 1) * QCOW2_COMPRESSED_SECTOR -
    p->host % QCOW2_COMPRESSED_SECTOR;
}

/* Spec: Standard Cluster Descriptor. */
static void
find_standard (const struct reference *r, uint64_t offset, uint64_t entry,
               uint64_t bitmap, struct reference_place *p)
{
  const uint64_t host = entry & QCOW2_ENTRY_OFFSET_MASK;

  p->host = host + offset % r->cluster_size;
  if (host % r->cluster_size != 0)
    p->kind = REFERENCE_DAMAGED;
  else if (r->extended)
    find_subcluster (r, offset, host, bitmap, p);
  else if (!(entry & 1))
    p->kind = host != 0 ? REFERENCE_DATA : REFERENCE_UNALLOCATED;
  else if (r->version < 3)
    p->kind = REFERENCE_DAMAGED;
  else
    p->kind = host != 0 ? REFERENCE_ZERO_ALLOC : REFERENCE_ZERO;
}

static struct reference_place
find_qed (const struct reference *r, uint64_t offset)
{
  static const enum reference_kind kinds[] = {
    [QED_IS_UNALLOCATED] = REFERENCE_UNALLOCATED,
    [QED_IS_ZERO] = REFERENCE_ZERO,
    [QED_IS_DATA] = REFERENCE_DATA,
    [QED_IS_DAMAGED] = REFERENCE_DAMAGED,
  };
  uint64_t host = 0;
  const enum qed_what what =
    qed_image_what (r->data, r->size, offset / r->cluster_size, &host);

  return (struct reference_place) {
    .kind = kinds[what], .host = host + offset % r->cluster_size,
  };
}

struct reference_place
reference_find (const struct reference *r, uint64_t offset)
{
  const unsigned entry_bytes = r->extended ? 16 : 8;
  const uint64_t per_table = r->cluster_size / entry_bytes;
  const uint64_t cluster = offset / r->cluster_size;
  struct reference_place p = { .kind = REFERENCE_UNALLOCATED };
  uint64_t bitmap = 0;

  if (r->qed)
    return find_qed (r, offset);
  if (cluster / per_table >= r->l1_size)
    return p;
  p.l1 = r->l1_offset + cluster / per_table * 8;
  p.table = word (r, p.l1) & QCOW2_ENTRY_OFFSET_MASK;
  if (p.table == 0)
    return p;
  if (p.table % r->cluster_size != 0 || !is_within (r, p.table)) {
    p.kind = REFERENCE_DAMAGED;
    return p;
  }
  p.entry = word (r, p.table + cluster % per_table * entry_bytes);
  if (r->extended)
    bitmap = word (r, p.table + cluster % per_table * entry_bytes + 8);
  if (p.entry & QCOW2_L2_COMPRESSED)
    find_compressed (r, p.entry, &p);
  else
    find_standard (r, offset, p.entry, bitmap, &p);
  if ((p.kind == REFERENCE_DATA || p.kind == REFERENCE_COMPRESSED) &&
      !is_within (r, p.host))
    p.kind = REFERENCE_DAMAGED;
  return p;
}

static void
copy_sector (const uint8_t *from, uint64_t size, uint64_t at,
             uint8_t sector[512])
{
  memset (sector, 0, 512);
  if (at < size)
    memcpy (sector, from + at, size - at < 512 ? size - at : 512);
}

bool
reference_read (const struct reference *r, const struct reference_place *p,
                uint64_t offset, uint8_t sector[512])
{
  switch (p->kind) {
  case REFERENCE_UNALLOCATED:
    copy_sector (r->base, r->base != NULL ? r->base_size : 0, offset, sector);
    return true;
  case REFERENCE_ZERO:
  case REFERENCE_ZERO_ALLOC:
    memset (sector, 0, 512);
    return true;
  case REFERENCE_DATA:
    copy_sector (r->data, r->size, p->host, sector);
    return true;
  case REFERENCE_COMPRESSED:
  case REFERENCE_DAMAGED:
    break;
  }
  return false;
}
