/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdio.h>
#include <stdlib.h>

#include <zlib.h>
#include <zstd.h>

#include "base/bytes.h"
#include "build.h"
#include "image-check.h"
#include "random.h"

static void __attribute__ ((__noreturn__))
give_up (const char *what)
{
  fprintf (stderr, "cannot build the image: %s\n", what);
  abort ();
}

uint64_t
build_bytes (struct builder *b, uint64_t count)
{
  const uint64_t at = b->size;

  b->size += count;
  if (b->size > b->capacity) {
    const uint64_t capacity = 2 * b->size;
    uint8_t *data = realloc (b->data, capacity);

    if (data == NULL)
      give_up ("out of memory");
    memset (data + b->capacity, 0, capacity - b->capacity);
    b->data = data;
    b->capacity = capacity;
  }
  return at;
}

uint64_t
build_clusters (struct builder *b, uint64_t nr)
{
  const uint64_t over = b->size % b->cluster_size;

  if (over != 0)
    build_bytes (b, b->cluster_size - over);
  return build_bytes (b, nr * b->cluster_size);
}

static unsigned
entry_bits (const struct builder *b)
{
  return b->extended ? 4 : 3;
}

void
build_start (struct builder *b, unsigned version, unsigned cluster_bits,
             bool extended, enum compression compression, uint64_t disk_size)
{
  uint64_t per_table, refcount_table, l1_clusters;
  uint64_t incompatible = 0;
  uint8_t *p;

  memset (b, 0, sizeof *b);
  b->version = version;
  b->cluster_bits = cluster_bits;
  b->cluster_size = UINT64_C (1) << cluster_bits;
  b->extended = extended;
  b->compression = compression;
  b->disk_size = disk_size;
  b->order = 4;
  per_table = b->cluster_size << (cluster_bits - entry_bits (b));
  b->l1_size = (disk_size + per_table - 1) / per_table;
  l1_clusters = (b->l1_size * 8 + b->cluster_size - 1) / b->cluster_size;

  build_clusters (b, 1);
  refcount_table = build_clusters (b, 1);
  if (l1_clusters > 0)
    b->l1_offset = build_clusters (b, l1_clusters);

  p = b->data;
  put_be32 (p, QCOW2_MAGIC);
  put_be32 (p + 4, version);
  put_be32 (p + 20, cluster_bits);
  put_be64 (p + 24, disk_size);
  put_be32 (p + 36, b->l1_size);
  put_be64 (p + 40, b->l1_offset);
  put_be64 (p + 48, refcount_table);
  put_be32 (p + 56, 1);
  if (version < 3)
    return;
  if (compression != COMPRESSION_DEFLATE)
    incompatible |= QCOW2_INCOMPAT_COMPRESSION;
  if (extended)
    incompatible |= QCOW2_INCOMPAT_EXTENDED_L2;
  put_be64 (p + 72, incompatible);
  put_be32 (p + 96, 4);
  put_be32 (p + 100, 112);
  p[104] = compression;
}

void
build_free (struct builder *b)
{
  free (b->data);
  memset (b, 0, sizeof *b);
}

uint64_t
build_l2_place (struct builder *b, uint64_t cluster)
{
  const unsigned bits = b->cluster_bits - entry_bits (b);
  const uint64_t l1_place = b->l1_offset + (cluster >> bits) * 8;
  uint64_t table = get_be64 (b->data + l1_place) & QCOW2_ENTRY_OFFSET_MASK;

  if (table == 0) {
    table = build_clusters (b, 1);
    put_be64 (b->data + l1_place, table | QCOW2_ENTRY_COPIED);
  }
  return table + ((cluster & ((UINT64_C (1) << bits) - 1)) << entry_bits (b));
}

void
build_entry (struct builder *b, uint64_t cluster, uint64_t word,
             uint64_t bitmap)
{
  const uint64_t place = build_l2_place (b, cluster);

  put_be64 (b->data + place, word);
  if (b->extended)
    put_be64 (b->data + place + 8, bitmap);
}

void
build_pattern (void *buf, size_t count, uint64_t seed)
{
  uint8_t *p = buf;
  size_t i;

  /* Compressible, and different at each multiple of 8. */
  for (i = 0; i < count; ++i)
    p[i] = i % 8 < 3 ? mix (seed * 65537 + i / 8) >> (8 * (i % 8)) : seed;
}

uint64_t
build_data (struct builder *b, uint64_t seed)
{
  const uint64_t at = build_clusters (b, 1);

  build_pattern (b->data + at, b->cluster_size, seed);
  return at;
}

uint64_t
build_compressed_word (unsigned cluster_bits, uint64_t offset, uint64_t size)
{
  const unsigned x = 62 - (cluster_bits - 8);
  const uint64_t last = offset + size - 1;

  return QCOW2_L2_COMPRESSED | (last / 512 - offset / 512) << x | offset;
}

/* Room for compressed data, in host clusters that hold others if they may. */
static uint64_t
pack (struct builder *b, uint64_t size, uint64_t trail)
{
  uint64_t at, last;

  if (b->max_sharing != 0 && b->packed_nr >= b->max_sharing &&
      b->packed_cluster == b->size / b->cluster_size)
    build_clusters (b, 0);
  at = build_bytes (b, size + trail);
  last = (at + size - 1) / b->cluster_size;
  if (last != b->packed_cluster) {
    b->packed_cluster = last;
    b->packed_nr = 0;
  }
  b->packed_nr++;
  return at;
}

void
build_compressed (struct builder *b, uint64_t cluster, const void *plain,
                  size_t trail)
{
  const size_t bound = BUILD_BOUND (b->cluster_size);
  uint8_t *packed = malloc (bound);
  uint64_t at;
  size_t size;

  if (packed == NULL)
    give_up ("out of memory");
  size = b->compression == COMPRESSION_ZSTD
    ? build_zstd (plain, b->cluster_size, packed, 3, false)
    : build_deflate (plain, b->cluster_size, packed, -12, 6, true);
  at = pack (b, size, trail);
  memcpy (b->data + at, packed, size);
  memset (b->data + at + size, 0xa5, trail);
  free (packed);
  build_entry (b, cluster, build_compressed_word (b->cluster_bits, at, size),
               0);
}

size_t
build_deflate (const void *in, size_t in_len, void *out, int window_bits,
               int level, bool finish)
{
  z_stream z = { 0 };
  size_t size;
  int r;

  if (deflateInit2 (&z, level, Z_DEFLATED, window_bits, 8,
                    Z_DEFAULT_STRATEGY) != Z_OK)
    give_up ("deflateInit2");
  z.next_in = (void *) in;
  z.avail_in = in_len;
  z.next_out = out;
  z.avail_out = BUILD_BOUND (in_len);
  r = deflate (&z, finish ? Z_FINISH : Z_SYNC_FLUSH);
  if (r != (finish ? Z_STREAM_END : Z_OK) || z.avail_in != 0)
    give_up ("deflate");
  size = z.total_out;
  deflateEnd (&z);
  return size;
}

size_t
build_zstd (const void *in, size_t in_len, void *out, int level,
            bool checksum)
{
  ZSTD_CCtx *z = ZSTD_createCCtx ();
  size_t size;

  if (z == NULL)
    give_up ("ZSTD_createCCtx");
  ZSTD_CCtx_setParameter (z, ZSTD_c_compressionLevel, level);
  ZSTD_CCtx_setParameter (z, ZSTD_c_checksumFlag, checksum);
  size = ZSTD_compress2 (z, out, BUILD_BOUND (in_len), in, in_len);
  if (ZSTD_isError (size))
    give_up (ZSTD_getErrorName (size));
  ZSTD_freeCCtx (z);
  return size;
}

void
build_order (struct builder *b, unsigned order)
{
  b->order = order;
  put_be32 (b->data + 96, order);
}

void
build_backing (struct builder *b, const char *format)
{
  const uint64_t at = b->version == 2 ? QCOW2_HEADER_LENGTH_V2 : 112;

  put_be32 (b->data + at, QCOW2_EXT_BACKING_FORMAT);
  put_be32 (b->data + at + 4, strlen (format));
  memcpy (b->data + at + 8, format, strlen (format));
  put_be64 (b->data + 8, 200);
  put_be32 (b->data + 16, 4);
  memcpy (b->data + 200, "base", 4);
}

/* --------------------------------------------------------------- snapshots */

/* The disk has its own copy of a table from now on. */
static void
copy_table (struct builder *b, uint64_t l1_place)
{
  const uint64_t to = build_clusters (b, 1);
  const uint64_t from = get_be64 (b->data + l1_place) &
    QCOW2_ENTRY_OFFSET_MASK;

  memcpy (b->data + to, b->data + from, b->cluster_size);
  put_be64 (b->data + l1_place, to);
}

void
build_snapshot (struct builder *b, unsigned copied, uint64_t *state)
{
  const uint64_t bytes = b->l1_size * 8;
  const uint64_t l1 = build_clusters (b, (bytes + b->cluster_size - 1) /
                                      b->cluster_size);
  uint64_t i;

  memcpy (b->data + l1, b->data + b->l1_offset, bytes);
  b->snapshot_l1[b->nr_snapshots++] = l1;
  for (i = 0; i < bytes; i += 8) {
    if (get_be64 (b->data + b->l1_offset + i) != 0 &&
        random_below (state, 100) < copied)
      copy_table (b, b->l1_offset + i);
  }
}

#define SNAPSHOT_BYTES 64

static void
write_snapshot_table (struct builder *b)
{
  uint64_t at;
  unsigned i;

  if (b->nr_snapshots == 0)
    return;
  build_clusters (b, 0);
  at = build_bytes (b, b->nr_snapshots * SNAPSHOT_BYTES);
  put_be32 (b->data + 60, b->nr_snapshots);
  put_be64 (b->data + 64, at);
  for (i = 0; i < b->nr_snapshots; ++i, at += SNAPSHOT_BYTES) {
    uint8_t *p = b->data + at;

    put_be64 (p, b->snapshot_l1[i]);
    put_be32 (p + 8, b->l1_size);
    put_be16 (p + 12, 1);
    put_be16 (p + 14, 1);
    put_be32 (p + 36, 16);
    put_be64 (p + 48, b->disk_size);
    p[56] = '1' + i;
    p[57] = 'a' + i;
  }
}

/* --------------------------------------------------------------- refcounts */

/* Where a new table and blocks are, behind everything else. */
struct refcount_plan {
  uint64_t table, table_clusters;
  uint64_t blocks, nr_blocks;
};

static void
place_refcounts (struct builder *b, struct refcount_plan *p)
{
  const uint64_t per_block = b->cluster_size * 8 >> b->order;
  const uint64_t per_table = b->cluster_size / 8;
  uint64_t used = build_clusters (b, 0) >> b->cluster_bits, total;

  p->nr_blocks = p->table_clusters = 0;
  for (;;) {
    total = used + p->nr_blocks + p->table_clusters;
    if (p->nr_blocks * per_block < total)
      p->nr_blocks++;
    else if (p->nr_blocks > per_table &&
             p->table_clusters * per_table < p->nr_blocks)
      p->table_clusters++;
    else
      break;
  }
  p->blocks = build_clusters (b, p->nr_blocks);
  p->table = p->table_clusters > 0 ? build_clusters (b, p->table_clusters)
    : b->cluster_size; /* the one that it began with will do */
}

static void
write_refcount_table (struct builder *b, const struct refcount_plan *p)
{
  uint64_t i;

  put_be64 (b->data + 48, p->table);
  put_be32 (b->data + 56, p->table_clusters > 0 ? p->table_clusters : 1);
  for (i = 0; i < p->nr_blocks; ++i)
    put_be64 (b->data + p->table + 8 * i,
              p->blocks + i * b->cluster_size);
}

/* Refcounts of less than a byte begin at its lowest bit; others are big
 * endian.
 */
static void
put_refcount (struct builder *b, uint64_t blocks, uint64_t i, uint64_t value)
{
  const unsigned bits = 1U << b->order;
  uint8_t *p = b->data + blocks + i * bits / 8;
  unsigned n;

  if (value > UINT64_MAX >> (64 - bits))
    give_up ("a refcount is too large");
  if (bits < 8) {
    *p |= value << i * bits % 8;
    return;
  }
  for (n = bits / 8; n > 0; value >>= 8)
    p[--n] = value;
}

/* The flags of the entries that are the disk's. */
static void
flag_entry (struct builder *b, uint64_t place, const struct image_refs *refs)
{
  uint64_t word = get_be64 (b->data + place);
  const uint64_t host = word & QCOW2_ENTRY_OFFSET_MASK;

  if ((word & QCOW2_L2_COMPRESSED) || host == 0 ||
      host >> b->cluster_bits >= refs->nr)
    return;
  word &= ~QCOW2_ENTRY_COPIED;
  if (refs->count[host >> b->cluster_bits] == 1)
    word |= QCOW2_ENTRY_COPIED;
  put_be64 (b->data + place, word);
}

static void
set_flags (struct builder *b, const struct image_refs *refs)
{
  const uint64_t entry_bytes = UINT64_C (1) << entry_bits (b);
  uint64_t i, j;

  for (i = 0; i < b->l1_size; ++i) {
    const uint64_t place = b->l1_offset + 8 * i;
    const uint64_t table = get_be64 (b->data + place) &
      QCOW2_ENTRY_OFFSET_MASK;

    if (table == 0)
      continue;
    flag_entry (b, place, refs);
    for (j = 0; j < b->cluster_size; j += entry_bytes)
      flag_entry (b, table + j, refs);
  }
}

void
build_finish (struct builder *b)
{
  struct refcount_plan p;
  struct image_refs refs;
  uint64_t i;

  write_snapshot_table (b);
  place_refcounts (b, &p);
  write_refcount_table (b, &p);
  image_refs_count (&refs, b->data, b->size);
  for (i = 0; i < refs.nr; ++i)
    put_refcount (b, p.blocks, i, refs.count[i]);
  set_flags (b, &refs);
  image_refs_free (&refs);
}

struct storage *
build_storage (const struct builder *b, struct memory_control *control)
{
  return memory_storage_new ("test", b->data, b->size, control);
}
