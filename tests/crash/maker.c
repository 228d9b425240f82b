/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "content.h"
#include "maker-image.h"
#include "must-have.h"
#include "random.h"

#define EXT_BITMAPS UINT32_C (0x23852875)
#define EXT_LUKS UINT32_C (0x0537be77)
#define EXT_UNKNOWN UINT32_C (0x7e57ab1e)
#define LAZY QCOW2_COMPAT_LAZY_REFCOUNTS

/* Host clusters. */

/* One cluster at the end; now and then a free one with garbage before it. */
static uint64_t
take (struct maker *k)
{
  struct builder *b = &k->b;
  uint64_t at = build_clusters (b, 1);

  if (k->holes && random_below (&k->random, 3) == 0) {
    content_fill_many (b->data + at, b->cluster_size, CONTENT_GARBAGE, 0,
                       at / SECTOR);
    k->hole = must_have (realloc (k->hole, (k->nr_holes + 1) *
                                  sizeof *k->hole));
    k->hole[k->nr_holes++] = at >> b->cluster_bits;
    at = build_clusters (b, 1);
  }
  return at;
}

/* Where the L2 entry of the cluster is, in the tables of this L1 table. */
static uint64_t
entry_place (struct maker *k, uint64_t l1, uint64_t cluster)
{
  const uint64_t l1_place = l1 + cluster / k->per_table * 8;
  uint64_t table = get_be64 (k->b.data + l1_place) & QCOW2_ENTRY_OFFSET_MASK;

  if (table == 0) {
    table = take (k);
    memset (k->b.data + table, 0, k->b.cluster_size);
    put_be64 (k->b.data + l1_place, table);
  }
  return table + (cluster % k->per_table << k->entry_bits);
}

static void
set_entry (struct maker *k, uint64_t l1, uint64_t cluster, uint64_t word,
           uint64_t bitmap)
{
  const uint64_t place = entry_place (k, l1, cluster);

  put_be64 (k->b.data + place, word);
  if (k->m->extended)
    put_be64 (k->b.data + place + 8, bitmap);
}

static void
get_entry (struct maker *k, uint64_t l1, uint64_t cluster, uint64_t *word,
           uint64_t *bitmap)
{
  const uint64_t place = entry_place (k, l1, cluster);

  *word = get_be64 (k->b.data + place);
  *bitmap = k->m->extended ? get_be64 (k->b.data + place + 8) : 0;
}

/* Contents.  disk is the live one's or a snapshot's, of whole clusters. */

/* The cluster is data from here on, as far as it was not before. */
static void
give_data (struct maker *k, uint8_t *disk, uint64_t cluster,
           enum content_class class)
{
  const uint64_t at = cluster * k->m->cluster_size;

  content_fill_many (disk + at, k->m->cluster_size, class, 0, at / SECTOR);
}

static void
give_zeros (struct maker *k, uint8_t *disk, uint64_t cluster)
{
  memset (disk + cluster * k->m->cluster_size, 0, k->m->cluster_size);
}

static void
make_data (struct maker *k, uint64_t l1, uint8_t *disk, uint64_t cluster,
           enum content_class class)
{
  const uint64_t host = take (k);

  give_data (k, disk, cluster, class);
  memcpy (k->b.data + host, disk + cluster * k->m->cluster_size,
          k->m->cluster_size);
  maker_encipher (k, host, cluster * k->m->cluster_size, k->m->cluster_size);
  set_entry (k, l1, cluster, host, UINT32_MAX);
}

static void
make_zero (struct maker *k, uint64_t l1, uint8_t *disk, uint64_t cluster,
           bool allocated)
{
  const uint64_t host = allocated ? take (k) : 0;

  /* What is there must never show. */
  if (allocated)
    content_fill_many (k->b.data + host, k->m->cluster_size, CONTENT_GARBAGE,
                       1, host / SECTOR);
  give_zeros (k, disk, cluster);
  set_entry (k, l1, cluster, host | (k->m->extended ? 0 : QCOW2_L2_ZERO),
             UINT64_C (0xffffffff) << 32);
}

/* Compressed data that begin their own host cluster, or follow what is
 * there.
 */
static void
make_compressed (struct maker *k, uint64_t l1, uint8_t *disk,
                 uint64_t cluster, bool packed, enum content_class class)
{
  struct builder *b = &k->b;
  uint8_t *out = must_have (malloc (BUILD_BOUND (b->cluster_size)));
  uint64_t at;
  size_t size;

  (void) entry_place (k, l1, cluster);
  give_data (k, disk, cluster, class);
  size = k->m->compression == COMPRESSION_ZSTD
    ? build_zstd (disk + cluster * b->cluster_size, b->cluster_size, out, 3,
                  false)
    : build_deflate (disk + cluster * b->cluster_size, b->cluster_size, out,
                     -12, 6, true);
  if (size >= b->cluster_size)
    abort ();
  if (!packed)
    (void) build_clusters (b, 0);
  at = build_bytes (b, size);
  memcpy (b->data + at, out, size);
  free (out);
  set_entry (k, l1, cluster,
             build_compressed_word (b->cluster_bits, at, size), 0);
}

/* Subcluster i is data, zero or neither, in turn: (i + shift) % 3. */
static void
make_mixed (struct maker *k, uint64_t l1, uint8_t *disk, uint64_t cluster,
            enum content_class class, unsigned shift)
{
  const uint64_t host = take (k);
  const uint64_t sub = k->m->subcluster_size;
  const uint64_t at = cluster * k->m->cluster_size;
  uint64_t bitmap = 0;
  unsigned i;

  content_fill_many (k->b.data + host, k->m->cluster_size, CONTENT_GARBAGE, 1,
                     host / SECTOR);
  for (i = 0; i < QCOW2_SUBCLUSTERS; ++i) {
    uint8_t *p = disk + at + i * sub;

    if ((i + shift) % 3 == 0) {
      bitmap |= UINT64_C (1) << i;
      content_fill_many (p, sub, class, 0, (at + i * sub) / SECTOR);
      memcpy (k->b.data + host + i * sub, p, sub);
      maker_encipher (k, host + i * sub, at + i * sub, sub);
    }
    else if ((i + shift) % 3 == 1) {
      bitmap |= UINT64_C (1) << (32 + i);
      memset (p, 0, sub);
    }
  }
  set_entry (k, l1, cluster, host, bitmap);
}

static void
make_sub_zero (struct maker *k, uint64_t l1, uint8_t *disk, uint64_t cluster)
{
  const uint64_t sub = k->m->subcluster_size;
  unsigned i;

  for (i = 0; i < QCOW2_SUBCLUSTERS; i += 2)
    memset (disk + cluster * k->m->cluster_size + i * sub, 0, sub);
  set_entry (k, l1, cluster, 0, UINT64_C (0x55555555) << 32);
}

/* A cluster with no data of its own. */
static void
make_sub_empty (struct maker *k, uint64_t l1, uint64_t cluster)
{
  const uint64_t host = take (k);

  content_fill_many (k->b.data + host, k->m->cluster_size, CONTENT_GARBAGE, 1,
                     host / SECTOR);
  set_entry (k, l1, cluster, host, 0);
}

/* The snapshot's cluster becomes the live disk's as well. */
static void
share (struct maker *k, uint64_t cluster)
{
  const uint64_t size = k->m->cluster_size;
  uint64_t word, bitmap;

  get_entry (k, k->snapshot_l1[0], cluster, &word, &bitmap);
  set_entry (k, k->b.l1_offset, cluster, word, bitmap);
  memcpy (k->m->content + cluster * size,
          k->m->snapshot_content[0] + cluster * size, size);
}

static void
make_shared (struct maker *k, uint64_t cluster, enum cluster_state state)
{
  const uint64_t l1 = k->snapshot_l1[0];
  uint8_t *disk = k->m->snapshot_content[0];

  switch (state) {
  case MADE_SHARED_DATA:
    make_data (k, l1, disk, cluster, CONTENT_INITIAL);
    break;
  case MADE_SHARED_ZERO:
    make_zero (k, l1, disk, cluster, true);
    break;
  case MADE_SHARED_COMPRESSED:
    make_compressed (k, l1, disk, cluster, true, CONTENT_INITIAL);
    break;
  case MADE_SHARED_SUB:
    make_mixed (k, l1, disk, cluster, CONTENT_INITIAL, 1);
    break;
  default:
    make_data (k, l1, disk, cluster, CONTENT_SNAPSHOT);
    if (state == MADE_DIVERGED)
      make_data (k, k->b.l1_offset, k->m->content, cluster, CONTENT_INITIAL);
    return;
  }
  share (k, cluster);
}

static void
make_cluster (struct maker *k, uint64_t cluster, enum cluster_state state)
{
  const uint64_t l1 = k->b.l1_offset;
  uint8_t *disk = k->m->content;

  k->m->state[cluster] = state;
  switch (state) {
  case MADE_UNALLOCATED:
    break;
  case MADE_DATA:
    make_data (k, l1, disk, cluster, CONTENT_INITIAL);
    break;
  case MADE_ZERO_PLAIN:
    make_zero (k, l1, disk, cluster, false);
    break;
  case MADE_ZERO_ALLOC:
    make_zero (k, l1, disk, cluster, true);
    break;
  case MADE_COMPRESSED:
    make_compressed (k, l1, disk, cluster, false, CONTENT_INITIAL);
    break;
  case MADE_PACKED:
    make_compressed (k, l1, disk, cluster, true, CONTENT_INITIAL);
    break;
  case MADE_SUB_MIXED:
    make_mixed (k, l1, disk, cluster, CONTENT_INITIAL, 0);
    break;
  case MADE_SUB_EMPTY:
    make_sub_empty (k, l1, cluster);
    break;
  case MADE_SUB_ZERO:
    make_sub_zero (k, l1, disk, cluster);
    break;
  default:
    make_shared (k, cluster, state);
    break;
  }
}

/* Which states there can be in this image. */
static bool
is_possible (const struct maker *k, enum cluster_state state)
{
  const struct made *m = k->m;

  switch (state) {
  case MADE_UNALLOCATED:
  case MADE_DATA:
  case MADE_STATES:
    return true;
  case MADE_ZERO_PLAIN:
  case MADE_ZERO_ALLOC:
    return m->version >= 3;
  case MADE_COMPRESSED:
    return k->compressed;
  case MADE_PACKED:
    return k->compressed && m->refcount_order >= 2;
  case MADE_SUB_MIXED:
  case MADE_SUB_EMPTY:
  case MADE_SUB_ZERO:
    return m->extended;
  case MADE_SHARED_DATA:
  case MADE_SNAPSHOT_ONLY:
  case MADE_DIVERGED:
    return k->snap;
  case MADE_SHARED_ZERO:
    return k->snap && m->version >= 3;
  case MADE_SHARED_COMPRESSED:
    return k->snap && k->compressed && m->refcount_order >= 3;
  case MADE_SHARED_SUB:
    return k->snap && m->extended;
  }
  return false;
}

/* What is packed is made after all else, so that it does share host clusters.
 */
static bool
is_packed (enum cluster_state state)
{
  return state == MADE_PACKED || state == MADE_SHARED_COMPRESSED;
}

static void
make_row (struct maker *k, const enum cluster_state *order, unsigned nr,
          uint64_t first, unsigned step, bool packed)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    const uint64_t cluster = first + i * step;

    if (cluster < k->m->nr_clusters && is_packed (order[i]) == packed)
      make_cluster (k, cluster, order[i]);
  }
}

/* All states beside each other, in any order; then all with room between
 * them, and the rest of the disk is empty.
 */
static void
make_clusters (struct maker *k)
{
  enum cluster_state order[MADE_STATES];
  unsigned nr = 0, i;

  for (i = 0; i < MADE_STATES; ++i) {
    if (is_possible (k, i))
      order[nr++] = i;
  }
  for (i = nr; i > 1; --i) {
    const unsigned j = random_below (&k->random, i);
    const enum cluster_state t = order[j];

    order[j] = order[i - 1];
    order[i - 1] = t;
  }
  for (i = 0; i < 2; ++i) {
    make_row (k, order, nr, 0, 1, i == 1);
    make_row (k, order, nr, nr + 1, 2, i == 1);
  }
}

/* Data here and there in the rest of a large disk, for many L2 tables. */
static void
make_many (struct maker *k)
{
  uint64_t cluster;

  for (cluster = k->per_table + 3; cluster < k->m->nr_clusters;
       cluster += k->per_table) {
    make_cluster (k, cluster, MADE_DATA);
    if (is_possible (k, MADE_SHARED_DATA))
      make_cluster (k, cluster + 1, MADE_SHARED_DATA);
  }
}

/* Tables. */

static uint64_t
l1_clusters (const struct maker *k)
{
  return (k->b.l1_size * 8 + k->b.cluster_size - 1) >> k->b.cluster_bits;
}

/* What the disk shows where it has nothing. */
static void
give_backing (struct maker *k, uint8_t *disk)
{
  uint64_t n = k->m->backing_size < k->m->disk_size
    ? k->m->backing_size : k->m->disk_size;

  memset (disk, 0, k->m->nr_clusters * k->m->cluster_size);
  if (k->backing != BACKING_NONE && k->backing != BACKING_QCOW2)
    memcpy (disk, k->m->backing, n);
}

static void
make_backing (struct maker *k)
{
  struct made *m = k->m;
  struct made below;
  char name[64];

  if (k->backing == BACKING_NONE)
    return;
  if (k->backing != BACKING_QCOW2) {
    m->backing_size = k->backing == BACKING_SHORT
      ? m->disk_size / 2 / SECTOR * SECTOR + SECTOR
      : m->disk_size + (k->backing == BACKING_LONG ? 75000 : 4096);
    m->backing = must_have (malloc (m->backing_size));
    content_fill_many (m->backing, m->backing_size, CONTENT_BACKING, 0, 0);
    return;
  }
  snprintf (name, sizeof name, "v3-c%u%s-s%u", 1U << m->cluster_bits,
            k->backing_words, k->arrangement + 7);
  if (!made_image (&below, name))
    abort ();
  m->backing = below.bytes;
  m->backing_size = below.size;
  memcpy (m->content, below.content,
          below.disk_size < m->disk_size ? below.disk_size : m->disk_size);
  below.bytes = NULL;
  made_free (&below);
}

static void
make_snapshot (struct maker *k, unsigned i)
{
  struct made *m = k->m;
  const uint64_t bytes = m->nr_clusters * m->cluster_size;

  snprintf (m->snapshot_name[i], sizeof m->snapshot_name[i], "snap%u", i);
  m->snapshot_content[i] = must_have (malloc (bytes));
  memcpy (m->snapshot_content[i], i == 0 ? m->content
          : m->snapshot_content[0], bytes);
  k->snapshot_l1[i] = build_clusters (&k->b, l1_clusters (k));
  m->nr_snapshots++;
}

/* The second snapshot has the tables of the first; so does the live disk if
 * all is to be shared.
 */
static void
share_tables (struct maker *k)
{
  const uint64_t bytes = k->m->nr_clusters * k->m->cluster_size;

  if (k->share_all) {
    memcpy (k->b.data + k->snapshot_l1[0], k->b.data + k->b.l1_offset,
            k->b.l1_size * 8);
    memcpy (k->m->snapshot_content[0], k->m->content, bytes);
  }
  if (k->second) {
    make_snapshot (k, 1);
    memcpy (k->b.data + k->snapshot_l1[1], k->b.data + k->snapshot_l1[0],
            k->b.l1_size * 8);
    memcpy (k->m->snapshot_content[1], k->m->snapshot_content[0], bytes);
  }
}

static void
make_snapshot_table (struct maker *k)
{
  const uint64_t entry_size = 40 + 24 + 1 + 5 + 2; /* a multiple of 8 */
  const uint64_t at = take (k);
  unsigned i;

  if (k->m->nr_snapshots * entry_size > k->b.cluster_size)
    abort ();
  memset (k->b.data + at, 0, k->b.cluster_size);
  for (i = 0; i < k->m->nr_snapshots; ++i) {
    uint8_t *p = k->b.data + at + i * entry_size;

    put_be64 (p, k->snapshot_l1[i]);
    put_be32 (p + 8, k->b.l1_size);
    put_be16 (p + 12, 1);
    put_be16 (p + 14, 5);
    put_be32 (p + 36, 24);
    put_be64 (p + 48, k->m->disk_size);
    put_be64 (p + 56, UINT64_MAX);
    p[64] = '1' + i;
    memcpy (p + 65, k->m->snapshot_name[i], 5);
  }
  put_be32 (k->b.data + 60, k->m->nr_snapshots);
  put_be64 (k->b.data + 64, at);
}

/* Of a directory: see MADE_BITMAPS. */
static void
make_bitmap (struct maker *k, unsigned i)
{
  static const char *const names[MADE_BITMAPS] = { "clean", "dirty", "parts" };
  uint8_t *p = k->b.data + k->bitmap_directory + i * MADE_BITMAP_BYTES;
  uint64_t n;

  put_be64 (p, k->bitmap_table[i]);
  put_be32 (p + 8, k->bitmap_parts);
  put_be32 (p + 12, 2); /* auto */
  p[16] = 1;
  p[17] = 9;
  put_be16 (p + 18, 5);
  memcpy (p + 24, names[i], 5);
  for (n = 0; n < k->bitmap_parts; ++n)
    put_be64 (k->b.data + k->bitmap_table[i] + 8 * n,
              i == 0 ? 0 : i == 1 ? 1
              : k->bitmap_data + n * k->b.cluster_size);
}

static void
make_bitmaps (struct maker *k)
{
  const uint64_t per_part = k->b.cluster_size * 8 * SECTOR;
  unsigned i;

  k->bitmap_parts = (k->m->disk_size + per_part - 1) / per_part;
  k->bitmap_directory = build_clusters (&k->b, 1);
  for (i = 0; i < MADE_BITMAPS; ++i)
    k->bitmap_table[i] = build_clusters (&k->b, 1);
  k->bitmap_data = build_clusters (&k->b, k->bitmap_parts);
  for (i = 0; i < MADE_BITMAPS; ++i)
    make_bitmap (k, i);
  k->m->bitmaps_at = k->bitmap_directory;
  k->b.data[k->bitmap_data] = 1;
}

static void
extension (uint8_t **p, uint32_t type, const void *data, uint32_t length)
{
  put_be32 (*p, type);
  put_be32 (*p + 4, length);
  memcpy (*p + 8, data, length);
  *p += 8 + (length + 7) / 8 * 8;
}

/* The header's extensions, one of them unknown, and the backing name. */
static void
make_extensions (struct maker *k)
{
  static const char unknown[] = "something that nobody knows";
  const char *format = k->backing == BACKING_QCOW2 ? "qcow2" : "raw";
  uint8_t *p = k->b.data + (k->m->version == 2 ? 72 : 112);
  uint8_t bitmap[24], luks[16];

  put_be64 (luks, k->luks);
  put_be64 (luks + 8, k->luks_bytes);
  if (k->m->luks)
    extension (&p, EXT_LUKS, luks, sizeof luks);
  if (k->backing != BACKING_NONE)
    extension (&p, QCOW2_EXT_BACKING_FORMAT, format, strlen (format));
  if (!k->m->known)
    extension (&p, EXT_UNKNOWN, unknown, sizeof unknown);
  if (k->bitmap) {
    put_be32 (bitmap, MADE_BITMAPS);
    put_be32 (bitmap + 4, 0);
    put_be64 (bitmap + 8, MADE_BITMAPS * MADE_BITMAP_BYTES);
    put_be64 (bitmap + 16, k->bitmap_directory);
    extension (&p, EXT_BITMAPS, bitmap, sizeof bitmap);
  }
  extension (&p, QCOW2_EXT_END, "", 0);
  if (k->backing == BACKING_NONE)
    return;
  put_be64 (k->b.data + 8, p - k->b.data);
  put_be32 (k->b.data + 16, 7);
  memcpy (p, "backing", 7);
}

static void
finish_header (struct maker *k)
{
  uint8_t *p = k->b.data;
  uint64_t autoclear = 0;

  if (k->m->version >= 3) {
    put_be32 (p + 96, k->m->refcount_order);
    if (k->m->lazy)
      put_be64 (p + 80, LAZY);
    if (k->bitmap)
      autoclear |= QCOW2_AUTOCLEAR_BITMAPS;
    if (k->autoclear)
      autoclear |= UINT64_C (1) << 57;
    put_be64 (p + 88, autoclear);
  }
  put_be32 (p + 32, k->m->aes ? ENCRYPTION_AES
            : k->m->luks ? ENCRYPTION_LUKS : ENCRYPTION_NONE);
  make_extensions (k);
}

/* Sizes. */

static uint64_t
disk_size (const struct maker *k)
{
  const uint64_t cluster_size = UINT64_C (1) << k->m->cluster_bits;
  uint64_t clusters = k->m->cluster_bits <= 12 ? 96
    : k->m->cluster_bits <= 14 ? 40 : 22;

  if (k->many)
    clusters = 40 * (cluster_size / (k->m->extended ? 16 : 8));
  return clusters * cluster_size - (k->tail ? cluster_size / 2 & -512 : 0);
}

static void
start (struct maker *k)
{
  struct made *m = k->m;

  m->cluster_size = UINT64_C (1) << m->cluster_bits;
  m->subcluster_size = m->cluster_size / (m->extended ? 32 : 1);
  m->disk_size = disk_size (k);
  m->nr_clusters = (m->disk_size + m->cluster_size - 1) >> m->cluster_bits;
  m->bitmaps = k->bitmap;
  m->give_up = k->give_up;
  k->random = mix (k->arrangement + 1);
  k->entry_bits = m->extended ? 4 : 3;
  k->per_table = m->cluster_size >> k->entry_bits;
  build_start (&k->b, m->version, m->cluster_bits, m->extended,
               m->compression, m->disk_size);
  m->content = must_have (calloc (m->nr_clusters, m->cluster_size));
  m->state = must_have (calloc (m->nr_clusters, 1));
  make_backing (k);
  maker_start_crypt (k);
  if (k->backing != BACKING_QCOW2)
    give_backing (k, m->content);
  if (k->snap)
    make_snapshot (k, 0);
}

/* The last cluster of the file may be there only in part: as far as what is
 * missing are zeros.
 */
static void
finish (struct maker *k)
{
  struct made *m = k->m;

  if (m->nr_snapshots > 0)
    make_snapshot_table (k);
  maker_refcounts (k);
  finish_header (k);
  m->bytes = k->b.data;
  m->size = k->b.size;
  while (k->tail && m->size > SECTOR &&
         content_is_zero (m->bytes + m->size - SECTOR, SECTOR) &&
         (m->size - SECTOR) % m->cluster_size != 0)
    m->size -= SECTOR;
}

bool
made_image (struct made *m, const char *name)
{
  struct maker k = { .m = m };

  memset (m, 0, sizeof *m);
  m->version = 3;
  m->cluster_bits = 16;
  m->refcount_order = 4;
  if (!maker_parse_name (&k, name))
    return false;
  start (&k);
  make_clusters (&k);
  if (k.many)
    make_many (&k);
  if (k.snap)
    share_tables (&k);
  if (k.bitmap)
    make_bitmaps (&k);
  maker_place_luks (&k);
  finish (&k);
  sectors_free (k.sectors);
  free (k.hole);
  return true;
}
