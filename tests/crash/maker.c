/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "build.h"
#include "content.h"
#include "crypto/sectors.h"
#include "maker.h"
#include "must-have.h"
#include "random.h"

#define EXT_BITMAPS UINT32_C (0x23852875)
#define EXT_UNKNOWN UINT32_C (0x7e57ab1e)
#define LAZY QCOW2_COMPAT_LAZY_REFCOUNTS

enum backing { BACKING_NONE, BACKING_RAW, BACKING_SHORT, BACKING_QCOW2 };

struct maker {
  struct made *m;
  struct builder b; /* of the image */
  uint64_t random;

  bool compressed, snap, share_all, second, holes, full, table_full, brim;
  bool tail, many, bitmap, give_up, autoclear;
  enum backing backing;
  unsigned arrangement;

  unsigned entry_bits;
  uint64_t per_table; /* clusters that an L2 table maps */
  uint64_t snapshot_l1[MADE_MAX_SNAPSHOTS];
  uint64_t bitmap_directory, bitmap_table[MADE_BITMAPS], bitmap_data;
  uint64_t bitmap_parts; /* of each; their tables have a cluster each */
  uint64_t *hole; /* host clusters that are free */
  uint64_t nr_holes;
  uint64_t padding; /* clusters with a refcount and no reference */
};

/* Names. */

static bool
parse_size (const char *word, unsigned *bits)
{
  char *end;
  unsigned long v = strtoul (word, &end, 10);

  if (*end == 'k')
    v <<= 10, end++;
  else if (*end == 'm')
    v <<= 20, end++;
  if (*end != '\0' || v < 512 || v > 2UL << 20 || (v & (v - 1)) != 0)
    return false;
  *bits = __builtin_ctzl (v);
  return true;
}

static bool
parse_width (const char *word, unsigned *order)
{
  char *end;
  const unsigned long v = strtoul (word, &end, 10);

  if (*end != '\0' || v < 1 || v > 64 || (v & (v - 1)) != 0)
    return false;
  *order = __builtin_ctzl (v);
  return true;
}

static bool
parse_flag (struct maker *k, const char *word)
{
  const struct { const char *word; bool *flag; } flags[] = {
    { "ext", &k->m->extended }, { "lazy", &k->m->lazy },
    { "comp", &k->compressed }, { "snap", &k->snap },
    { "snapall", &k->share_all }, { "snap2", &k->second },
    { "holes", &k->holes }, { "full", &k->full }, { "table", &k->table_full },
    { "brim", &k->brim },
    { "tail", &k->tail }, { "many", &k->many }, { "bitmap", &k->bitmap },
    { "idle", &k->m->idle },
    { "giveup", &k->give_up }, { "autoclear", &k->autoclear },
    { "keep", &k->m->keep }, { "zip", &k->m->zip },
    { "nozero", &k->m->no_zero }, { "tight", &k->m->tight },
    { "known", &k->m->known }, { "aes", &k->m->aes },
  };
  unsigned i;

  for (i = 0; i < sizeof flags / sizeof flags[0]; ++i) {
    if (strcmp (flags[i].word, word) == 0) {
      *flags[i].flag = true;
      return true;
    }
  }
  return false;
}

static bool
parse_word (struct maker *k, const char *word)
{
  struct made *m = k->m;

  if (parse_flag (k, word))
    return true;
  if (strcmp (word, "v2") == 0 || strcmp (word, "v3") == 0)
    m->version = word[1] - '0';
  else if (word[0] == 'c')
    return parse_size (word + 1, &m->cluster_bits);
  else if (word[0] == 'r')
    return parse_width (word + 1, &m->refcount_order);
  else if (word[0] == 's' && word[1] >= '0' && word[1] <= '9')
    k->arrangement = strtoul (word + 1, NULL, 10);
  else if (strcmp (word, "zstd") == 0)
    m->compression = COMPRESSION_ZSTD;
  else if (strcmp (word, "back") == 0)
    k->backing = BACKING_RAW;
  else if (strcmp (word, "shortback") == 0)
    k->backing = BACKING_SHORT;
  else if (strcmp (word, "qback") == 0)
    k->backing = BACKING_QCOW2;
  else
    return false;
  return true;
}

static bool
parse_name (struct maker *k, const char *name)
{
  struct made *m = k->m;
  char copy[sizeof m->name];
  char *save, *word;

  if (strlen (name) >= sizeof m->name)
    return false;
  strcpy (copy, name);
  strcpy (m->name, name);
  for (word = strtok_r (copy, "-", &save); word != NULL;
       word = strtok_r (NULL, "-", &save)) {
    if (!parse_word (k, word))
      return false;
  }
  k->snap |= k->share_all | k->second;
  k->bitmap |= k->give_up;
  if (m->version == 2 && (m->extended || m->lazy || k->bitmap ||
                          k->autoclear || m->refcount_order != 4 ||
                          m->compression != COMPRESSION_DEFLATE))
    return false;
  /* One bit can't count two references. */
  if (k->snap && m->refcount_order == 0)
    return false;
  /* Nothing that is encrypted is stored compressed. */
  if (m->aes && m->zip)
    return false;
  return !m->extended || m->cluster_bits >= QCOW2_MIN_CLUSTER_BITS_EXTENDED_L2;
}

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

const struct passphrases made_passphrases = { .image = { "secret", 6 } };

/* What the guest sees from here on is at host, in the clear: encipher it. */
static void
encipher_data (struct maker *k, uint64_t host, uint64_t guest, uint64_t count)
{
  static const struct sector_format aes = {
    .mode = CRYPTO_CBC, .key_bytes = 16, .iv = IV_PLAIN64,
  };
  const uint8_t key[CRYPTO_MAX_KEY] = "secret";
  struct sectors *s;

  if (!k->m->aes)
    return;
  s = must_have (sectors_new (&aes, key));
  if (sectors_encipher (s, k->b.data + host, k->b.data + host, count,
                        guest / SECTOR) == -1)
    abort ();
  sectors_free (s);
}

static void
make_data (struct maker *k, uint64_t l1, uint8_t *disk, uint64_t cluster,
           enum content_class class)
{
  const uint64_t host = take (k);

  give_data (k, disk, cluster, class);
  memcpy (k->b.data + host, disk + cluster * k->m->cluster_size,
          k->m->cluster_size);
  encipher_data (k, host, cluster * k->m->cluster_size, k->m->cluster_size);
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
      encipher_data (k, host + i * sub, at + i * sub, sub);
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
  if (k->backing == BACKING_RAW || k->backing == BACKING_SHORT)
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
      ? m->disk_size / 2 / SECTOR * SECTOR + SECTOR : m->disk_size + 4096;
    m->backing = must_have (malloc (m->backing_size));
    content_fill_many (m->backing, m->backing_size, CONTENT_BACKING, 0, 0);
    return;
  }
  snprintf (name, sizeof name, "v3-c%u-s%u", 1U << m->cluster_bits,
            k->arrangement + 7);
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
  uint8_t bitmap[24];

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
  put_be32 (p + 32, k->m->aes ? ENCRYPTION_AES : ENCRYPTION_NONE);
  make_extensions (k);
}

/* Refcounts: a count of the references that all tables make, written once
 * everything has its place.
 */
struct counts {
  uint64_t *n;
  uint64_t nr;
};

static void
count (const struct maker *k, struct counts *c, uint64_t offset,
       uint64_t bytes)
{
  uint64_t i;

  for (i = offset >> k->b.cluster_bits;
       bytes > 0 && i <= (offset + bytes - 1) >> k->b.cluster_bits; ++i)
    c->n[i]++;
}

static void
count_entry (const struct maker *k, struct counts *c, uint64_t word)
{
  const unsigned x = 62 - (k->b.cluster_bits - 8);
  const uint64_t offset = word & ((UINT64_C (1) << x) - 1);

  if (word & QCOW2_L2_COMPRESSED)
    count (k, c, offset, ((word & ~QCOW2_L2_COMPRESSED) >> x) * 512 + 512 -
           offset % 512);
  else if (word & QCOW2_ENTRY_OFFSET_MASK)
    count (k, c, word & QCOW2_ENTRY_OFFSET_MASK, k->b.cluster_size);
}

static void
count_tables (const struct maker *k, struct counts *c, uint64_t l1)
{
  const uint64_t clusters = k->per_table;
  uint64_t i, j;

  count (k, c, l1, k->b.l1_size * 8);
  for (i = 0; i < k->b.l1_size; ++i) {
    const uint64_t table =
      get_be64 (k->b.data + l1 + 8 * i) & QCOW2_ENTRY_OFFSET_MASK;

    if (table == 0)
      continue;
    count (k, c, table, k->b.cluster_size);
    for (j = 0; j < clusters; ++j)
      count_entry (k, c, get_be64 (k->b.data + table + (j << k->entry_bits)));
  }
}

static void
count_all (const struct maker *k, struct counts *c)
{
  const uint64_t cluster_size = k->b.cluster_size;
  unsigned i;

  count (k, c, 0, cluster_size);
  count_tables (k, c, k->b.l1_offset);
  for (i = 0; i < k->m->nr_snapshots; ++i)
    count_tables (k, c, k->snapshot_l1[i]);
  if (k->m->nr_snapshots > 0)
    count (k, c, get_be64 (k->b.data + 64), cluster_size);
  if (k->bitmap) {
    count (k, c, k->bitmap_directory, cluster_size);
    for (i = 0; i < MADE_BITMAPS; ++i)
      count (k, c, k->bitmap_table[i], cluster_size);
    count (k, c, k->bitmap_data, k->bitmap_parts * cluster_size);
  }
}

static void
set_copied_word (const struct maker *k, const struct counts *c,
                 uint64_t place)
{
  const uint64_t word = get_be64 (k->b.data + place);
  const uint64_t host = word & QCOW2_ENTRY_OFFSET_MASK;

  if (host != 0 && !(word & QCOW2_L2_COMPRESSED) &&
      c->n[host >> k->b.cluster_bits] == 1)
    put_be64 (k->b.data + place, word | QCOW2_ENTRY_COPIED);
}

/* In the live disk's tables. */
static void
set_copied (const struct maker *k, const struct counts *c)
{
  uint64_t i, j;

  for (i = 0; i < k->b.l1_size; ++i) {
    const uint64_t place = k->b.l1_offset + 8 * i;
    const uint64_t table =
      get_be64 (k->b.data + place) & QCOW2_ENTRY_OFFSET_MASK;

    set_copied_word (k, c, place);
    for (j = 0; table != 0 && j < k->per_table; ++j)
      set_copied_word (k, c, table + (j << k->entry_bits));
  }
}

static void
put_refcount (struct maker *k, uint64_t table, uint64_t cluster,
              uint64_t refcount)
{
  const unsigned order = k->m->refcount_order;
  const unsigned block_bits = k->b.cluster_bits + 3 - order;
  const uint64_t block = get_be64 (k->b.data + table +
                                   8 * (cluster >> block_bits));
  const uint64_t i = cluster & ((UINT64_C (1) << block_bits) - 1);
  const unsigned bits = 1U << order;
  uint8_t *p = k->b.data + block + (i << order) / 8;
  unsigned n;

  if (bits < 8)
    *p |= refcount << (i << order) % 8;
  else
    for (n = 0; n < bits / 8; ++n)
      p[n] = refcount >> (bits - 8 * (n + 1));
}

/* How many refcount blocks it takes for so many clusters and themselves. */
static uint64_t
blocks_for (const struct maker *k, uint64_t clusters)
{
  const uint64_t per_block =
    k->b.cluster_size * 8 >> k->m->refcount_order;
  uint64_t blocks = 0;

  while (blocks * per_block < clusters + blocks)
    blocks++;
  return blocks;
}

/* Clusters that lead up to the end of the last block, or of the table, but
 * for a few, or all.
 */
static uint64_t
padding_for (const struct maker *k)
{
  const uint64_t per_block = k->b.cluster_size * 8 >> k->m->refcount_order;
  const uint64_t nr = k->b.size >> k->b.cluster_bits;
  const uint64_t used = nr + blocks_for (k, nr);
  uint64_t limit, blocks;

  if (k->brim)
    return k->b.cluster_size / 8 * (per_block - 1) - nr;
  if (k->table_full) /* the last place in it is free */
    limit = (k->b.cluster_size / 8 - 1) * per_block;
  else if (k->full)
    limit = (used + 5 + per_block - 1) / per_block * per_block;
  else
    return 0;
  blocks = limit / per_block;
  return limit - 5 - nr - blocks;
}

/* The padding has no owner: these are leaks from the start. */
static void
make_padding (struct maker *k)
{
  uint64_t at;

  (void) build_clusters (&k->b, 0);
  k->padding = padding_for (k);
  at = build_clusters (&k->b, k->padding);
  content_fill_many (k->b.data + at, k->padding << k->b.cluster_bits,
                     CONTENT_GARBAGE, 2, at / SECTOR);
  k->m->leaks = k->padding;
}

static void
make_refcounts (struct maker *k)
{
  const uint64_t table = get_be64 (k->b.data + 48);
  struct counts c;
  uint64_t nr, blocks, at, i;

  make_padding (k);
  nr = k->b.size >> k->b.cluster_bits;
  blocks = blocks_for (k, nr);
  at = build_clusters (&k->b, blocks);
  if (blocks > k->b.cluster_size / 8)
    abort ();
  c.nr = nr + blocks;
  c.n = must_have (calloc (c.nr, sizeof *c.n));
  count_all (k, &c);
  count (k, &c, table, k->b.cluster_size);
  count (k, &c, at, blocks << k->b.cluster_bits);
  count (k, &c, at - (k->padding << k->b.cluster_bits),
         k->padding << k->b.cluster_bits);
  for (i = 0; i < blocks; ++i)
    put_be64 (k->b.data + table + 8 * i, at + (i << k->b.cluster_bits));
  for (i = 0; i < c.nr; ++i)
    put_refcount (k, table, i, c.n[i]);
  set_copied (k, &c);
  free (c.n);
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
  make_refcounts (k);
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
  if (!parse_name (&k, name))
    return false;
  start (&k);
  make_clusters (&k);
  if (k.many)
    make_many (&k);
  if (k.snap)
    share_tables (&k);
  if (k.bitmap)
    make_bitmaps (&k);
  finish (&k);
  free (k.hole);
  return true;
}

void
made_free (struct made *m)
{
  unsigned i;

  free (m->bytes);
  free (m->content);
  free (m->state);
  free (m->backing);
  for (i = 0; i < m->nr_snapshots; ++i)
    free (m->snapshot_content[i]);
  memset (m, 0, sizeof *m);
}

unsigned
made_bitmaps_in_use (const struct made *m, const uint8_t *bytes)
{
  unsigned i, nr = 0;

  for (i = 0; i < MADE_BITMAPS; ++i)
    nr += get_be32 (bytes + m->bitmaps_at + i * MADE_BITMAP_BYTES +
                    QCOW2_BITMAP_FIELD_FLAGS) & QCOW2_BITMAP_IN_USE;
  return nr;
}

/* Whether a bitmap says that a sector is dirty. */
static bool
is_dirty (const struct made *m, const uint8_t *bytes, const uint8_t *entry,
          uint64_t sector)
{
  const uint64_t per_part = m->cluster_size * 8;
  const uint64_t table = get_be64 (entry + QCOW2_BITMAP_FIELD_TABLE);
  const uint64_t part = get_be64 (bytes + table + sector / per_part * 8);
  const uint64_t bit = sector % per_part;

  return part == 1 ||
    (part != 0 && (bytes[part + bit / 8] >> bit % 8 & 1));
}

bool
made_bitmaps_are_kept (const struct made *m, const uint8_t *bytes,
                       const uint8_t *content, char *why, size_t len)
{
  const uint8_t *directory = bytes + m->bitmaps_at;
  unsigned i;
  uint64_t s;

  if (!m->bitmaps || m->give_up)
    return true;
  if (!(get_be64 (bytes + 88) & QCOW2_AUTOCLEAR_BITMAPS) ||
      made_bitmaps_in_use (m, bytes) > 0) {
    snprintf (why, len, "a bitmap is not valid any more");
    return false;
  }
  for (s = 0; s < m->disk_size / SECTOR; ++s) {
    if (memcmp (content + s * SECTOR, m->content + s * SECTOR, SECTOR) == 0)
      continue;
    for (i = 0; i < MADE_BITMAPS; ++i) {
      if (is_dirty (m, bytes, directory + i * MADE_BITMAP_BYTES, s))
        continue;
      snprintf (why, len, "sector %" PRIu64 " has changed, and is clean in "
                "bitmap %u", s, i);
      return false;
    }
  }
  return true;
}

/* Each dimension with each other at least once, the small ones first. */
const char *const made_names[] = {
  "v3-c512",
  "v2-c512",
  "v3-c512-r1-holes",
  "v3-c512-r64-full",
  "v3-c512-snap-comp",
  "v2-c512-snap-comp-holes",
  "v3-c512-r8-snap-comp-back",
  "v2-c512-snapall-back",
  "v3-c512-comp-zstd-shortback-tail",
  "v3-c512-snapall-snap2-holes",
  "v3-c512-qback-snap",
  "v3-c512-lazy-snap",
  "v3-c1k-r4-comp-holes-tail-autoclear",
  "v3-c4k-snap-comp-holes-back",
  "v2-c4k-comp-tail",
  "v3-c4k-r32-snap2-bitmap",
  "v3-c512-bitmap-holes-comp-snap-back",
  "v3-c1k-bitmap-many-known",
  "v3-c4k-bitmap-zip-lazy-autoclear",
  "v3-c16k-bitmap-ext-holes-tail",
  "v3-c512-giveup-snap-holes",
  "v3-c16k-ext",
  "v3-c16k-ext-comp-back",
  "v3-c16k-ext-snap-comp-holes-tail",
  "v3-c16k-ext-snapall-shortback-r2",
  "v3-c64k-snap-comp",
  "v3-c64k-back-holes",
  "v3-c512-many-snap",
  "v3-c512-r64-table",
  "v3-c512-r64-full-lazy-snap-comp",
  "v3-c512-holes-keep-comp-snap",
  "v3-c4k-holes-keep",
  "v2-c512-holes-nozero",
  "v3-c16k-ext-holes-nozero-back",
  "v3-c512-tight",
  "v3-c512-tight-snap-comp-holes",
  "v2-c1k-tight-back-keep",
  "v3-c16k-ext-tight-comp",
  "v3-c512-zip",
  "v3-c512-zip-tight",
  "v3-c4k-zip",
  "v3-c4k-zip-snap-comp-holes-back",
  "v2-c512-zip-comp-snap-tail",
  "v3-c1k-zip-zstd-r2-full-keep",
  "v3-c512-zip-r1-holes",
  "v3-c16k-zip-ext-comp-snap-shortback",
  "v2-c1k-comp-snap-shortback",
  "v2-c512-full-snap",
  "v3-c512-full-comp-back",
  "v3-c2k-r2-snapall-holes-tail",
  "v2-c512-many-snapall",
  "v3-c512-many-lazy-holes",
  "v3-c16k-ext-lazy-snap-comp-holes",
  "v3-c64k-ext-snap-comp-back",
  "v3-c512-known-holes",
  "v2-c512-known-snap-comp",
  "v3-c4k-known-zip-snap-holes-back",
  "v3-c16k-known-ext-snapall-holes",
#ifdef HAVE_GNUTLS
  "v3-c512-aes-holes-snap-comp-back",
  "v2-c1k-aes-known-holes-tail",
  "v3-c16k-aes-ext-snap-holes-back",
  "v3-c512-aes-comp-tight",
#endif
  NULL
};
