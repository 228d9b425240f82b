/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>

#include "check.h"
#include "image-check.h"
#include "qcow2/format.h"

/* A stranger's image might take for ever: of all others it is enough. */
#define MAX_STEPS (UINT64_C (1) << 27)
#define MAX_QUIET_STEPS (UINT64_C (1) << 19)

/* An image; what lies past its end reads as zeros. */
struct img {
  const uint8_t *data;
  uint64_t size;
  uint32_t version;
  unsigned bits; /* of a cluster */
  uint64_t cluster_size;
  bool extended;
  bool external; /* data is in a file of its own */
  unsigned order;
  uint64_t l1_offset;
  uint32_t l1_size;
  uint64_t table_offset;
  uint32_t table_clusters;
  uint64_t max_steps;
};

/* Offsets in an image may be anything: a sum that wraps would be the place of
 * something else.  Nothing is at UINT64_MAX.
 */
static uint64_t
sum (uint64_t a, uint64_t b)
{
  return a > UINT64_MAX - b ? UINT64_MAX : a + b;
}

static uint64_t
word64 (const struct img *m, uint64_t at)
{
  uint8_t buf[8] = { 0 };

  if (at < m->size)
    memcpy (buf, m->data + at, m->size - at < 8 ? m->size - at : 8);
  return get_be64 (buf);
}

static uint32_t
word32 (const struct img *m, uint64_t at)
{
  return word64 (m, at) >> 32;
}

/* The i-th word of a table. */
static uint64_t
entry_of (const struct img *m, uint64_t table, uint64_t i)
{
  return word64 (m, sum (table, 8 * i));
}

static struct img
parse (const uint8_t *data, uint64_t size)
{
  struct img m = { .data = data, .size = size, .max_steps = MAX_STEPS };

  m.version = word32 (&m, 4);
  m.bits = word32 (&m, 20);
  m.l1_size = word32 (&m, 36);
  m.l1_offset = word64 (&m, 40);
  m.table_offset = word64 (&m, 48);
  m.table_clusters = word32 (&m, 56);
  m.order = m.version < 3 ? 4 : word32 (&m, 96);
  if (m.bits < 9 || m.bits > 21 || m.order > 6) { /* not even an image is left */
    fprintf (stderr, "the header has other contents: clusters of 2^%u bytes\n",
             m.bits);
    exit (1);
  }
  m.cluster_size = UINT64_C (1) << m.bits;
  m.extended = m.version >= 3 &&
    (word64 (&m, 72) & QCOW2_INCOMPAT_EXTENDED_L2) != 0;
  m.external = m.version >= 3 &&
    (word64 (&m, 72) & QCOW2_INCOMPAT_DATA_FILE) != 0;
  return m;
}

static unsigned
entry_bytes (const struct img *m)
{
  return m->extended ? 16 : 8;
}

/* -------------------------------------------------------------- references */

/* What a cluster is. */
enum {
  IS_FREE,
  IS_SINGLE, /* metadata that only one thing refers to */
  IS_TABLE,  /* an L2 table */
  IS_DATA,
  IS_MIXED = IMAGE_REFS_MIXED,
};

/* A reference to each cluster that has some of these bytes. */
static void
refer (struct image_refs *r, const struct img *m, uint64_t offset,
       uint64_t bytes, unsigned kind)
{
  uint64_t c;

  if (bytes == 0)
    return;
  if (offset > UINT64_MAX - (bytes - 1)) {
    r->beyond++;
    return;
  }
  for (c = offset >> m->bits; c <= (offset + bytes - 1) >> m->bits; ++c) {
    r->steps++;
    if (c >= r->nr) {
      r->beyond++;
      break;
    }
    if (r->kind[c] == IS_FREE)
      r->kind[c] = kind;
    else if (r->kind[c] != kind || kind == IS_SINGLE) {
      r->kind[c] = IS_MIXED;
      r->mixed++;
    }
    r->count[c]++;
  }
}

static bool
takes_too_long (const struct image_refs *r, const struct img *m)
{
  return r->steps > m->max_steps;
}

/* What an L2 entry refers to.  Spec: Compressed Clusters Descriptor. */
static void
refer_entry (struct image_refs *r, const struct img *m, uint64_t word)
{
  const unsigned x = 62 - (m->bits - 8);

  if (word & QCOW2_L2_COMPRESSED) {
    const uint64_t offset = word & ((UINT64_C (1) << x) - 1);
    const uint64_t sectors = ((word & ~QCOW2_L2_COMPRESSED & INT64_MAX) >> x)
      + 1;

    refer (r, m, offset, sectors * 512 - offset % 512, IS_DATA);
  }
  else if (word & QCOW2_ENTRY_OFFSET_MASK)
    refer (r, m, word & QCOW2_ENTRY_OFFSET_MASK, m->cluster_size, IS_DATA);
}

static void
refer_l1 (struct image_refs *r, const struct img *m, uint64_t l1,
          uint64_t l1_size)
{
  uint64_t i, j;

  refer (r, m, l1, l1_size * 8, IS_SINGLE);
  for (i = 0; i < l1_size && !takes_too_long (r, m); ++i) {
    const uint64_t table = entry_of (m, l1, i) & QCOW2_ENTRY_OFFSET_MASK;

    r->steps++;
    if (table == 0)
      continue;
    r->steps += m->cluster_size / entry_bytes (m);
    refer (r, m, table, m->cluster_size, IS_TABLE);
    for (j = 0; !m->external && j < m->cluster_size; j += entry_bytes (m))
      refer_entry (r, m, word64 (m, table + j));
  }
}

static uint64_t
snapshot_entry_bytes (const struct img *m, uint64_t at)
{
  const uint32_t sizes = word32 (m, sum (at, 12)); /* two of 16 bits */
  const uint64_t bytes = UINT64_C (40) + word32 (m, sum (at, 36)) +
    (sizes >> 16) + (sizes & 0xffff);

  return (bytes + 7) / 8 * 8;
}

static void
refer_snapshots (struct image_refs *r, const struct img *m)
{
  const uint64_t table = word64 (m, 64);
  uint64_t at = table;
  uint32_t nr = word32 (m, 60);

  for (; nr > 0 && !takes_too_long (r, m); --nr) {
    r->steps++;
    refer_l1 (r, m, word64 (m, at), word32 (m, sum (at, 8)));
    at = sum (at, snapshot_entry_bytes (m, at));
  }
  refer (r, m, table, at - table, IS_SINGLE);
}

/* The place of a header extension's data; 0 if there is none. */
static uint64_t
find_extension (const struct img *m, uint32_t type)
{
  uint64_t at = m->version < 3 ? QCOW2_HEADER_LENGTH_V2 : word32 (m, 100);
  const uint64_t end = word64 (m, 8) != 0 ? word64 (m, 8) : m->cluster_size;

  while (at + 8 <= end && word32 (m, at) != QCOW2_EXT_END) {
    if (word32 (m, at) == type)
      return at + 8;
    at += 8 + ((uint64_t) word32 (m, at + 4) + 7) / 8 * 8;
  }
  return 0;
}

/* The directory of bitmaps, if it counts, and their tables. */
static void
refer_bitmaps (struct image_refs *r, const struct img *m)
{
  const uint64_t extension = find_extension (m, QCOW2_EXT_BITMAPS);
  uint64_t directory, bytes, at, i, n;

  if (m->version < 3 || extension == 0 ||
      !(word64 (m, 88) & QCOW2_AUTOCLEAR_BITMAPS) ||
      word32 (m, extension - 4) < QCOW2_EXT_BITMAPS_BYTES)
    return;
  bytes = word64 (m, extension + 8);
  directory = at = word64 (m, extension + 16);
  refer (r, m, directory, bytes, IS_SINGLE);
  for (n = word32 (m, extension); n > 0 && at < sum (directory, bytes) &&
         !takes_too_long (r, m); --n) {
    const uint64_t table = word64 (m, at);
    const uint32_t entries = word32 (m, sum (at, 8));

    r->steps++;
    refer (r, m, table, (uint64_t) entries * 8, IS_SINGLE);
    for (i = 0; i < entries && !takes_too_long (r, m); ++i) {
      const uint64_t host = entry_of (m, table, i) & QCOW2_ENTRY_OFFSET_MASK;

      r->steps++;
      if (host != 0)
        refer (r, m, host, m->cluster_size, IS_SINGLE);
    }
    at = sum (at, (UINT64_C (24) + word32 (m, sum (at, 20)) +
                   (word32 (m, sum (at, 16)) & 0xffff) + 7) / 8 * 8);
  }
}

/* The refcount block that an entry of the refcount table names. */
static uint64_t
refcount_block (const struct img *m, uint64_t index)
{
  return entry_of (m, m->table_offset, index) & QCOW2_REFCOUNT_BLOCK_MASK;
}

static void
refer_refcounts (struct image_refs *r, const struct img *m)
{
  const uint64_t bytes = (uint64_t) m->table_clusters << m->bits;
  uint64_t i;

  refer (r, m, m->table_offset, bytes, IS_SINGLE);
  for (i = 0; i < bytes / 8 && !takes_too_long (r, m); ++i) {
    const uint64_t block = refcount_block (m, i);

    r->steps++;
    if (block != 0)
      refer (r, m, block, m->cluster_size, IS_SINGLE);
  }
}

static void
count_refs (struct image_refs *r, const struct img *m)
{
  r->nr = (m->size + m->cluster_size - 1) >> m->bits;
  r->beyond = r->mixed = r->steps = 0;
  r->count = calloc (r->nr + 1, sizeof r->count[0]);
  r->kind = calloc (r->nr + 1, 1);
  if (r->count == NULL || r->kind == NULL)
    abort ();
  refer (r, m, 0, m->cluster_size, IS_SINGLE);
  refer_l1 (r, m, m->l1_offset, m->l1_size);
  refer_snapshots (r, m);
  refer_bitmaps (r, m);
  refer_refcounts (r, m);
}

void
image_refs_count (struct image_refs *r, const uint8_t *data, uint64_t size)
{
  const struct img m = parse (data, size);

  count_refs (r, &m);
}

bool
image_refs_count_quietly (struct image_refs *r, const uint8_t *data,
                          uint64_t size)
{
  struct img m = parse (data, size);

  m.max_steps = MAX_QUIET_STEPS;
  count_refs (r, &m);
  return !takes_too_long (r, &m);
}

void
image_refs_free (struct image_refs *r)
{
  free (r->count);
  free (r->kind);
}

/* --------------------------------------------------------------- refcounts */

static uint64_t
stored_refcount (const struct img *m, uint64_t cluster)
{
  const unsigned bits = 1U << m->order;
  const uint64_t per_block = m->cluster_size * 8 / bits;
  const uint64_t entries = (uint64_t) m->table_clusters << (m->bits - 3);
  const uint64_t index = cluster / per_block;
  const uint64_t block = index < entries ? refcount_block (m, index) : 0;
  const uint64_t bit = cluster % per_block * bits;
  const uint64_t word = block == 0 ? 0 : word64 (m, sum (block, bit / 8));

  if (bits < 8)
    return word >> (56 + bit % 8) & ((1U << bits) - 1);
  return word >> (64 - bits);
}

uint64_t
image_refcount (const uint8_t *data, uint64_t size, uint64_t cluster)
{
  const struct img m = parse (data, size);

  return stored_refcount (&m, cluster);
}

/* ---------------------------------------------------------------- checking */

struct checking {
  struct img m;
  bool quiet;
  const char *what;
  struct image_check result;
  struct image_refs refs;
};

static void __attribute__ ((__format__ (__printf__, 2, 3)))
wrong (struct checking *c, const char *fmt, ...)
{
  char text[512];
  va_list ap;

  c->result.errors++;
  if (c->quiet)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  check_failed (__FILE__, __LINE__, "%s: %s", c->what, text);
}

static void
check_refcount (struct checking *c, uint64_t cluster)
{
  const uint64_t stored = stored_refcount (&c->m, cluster);
  const uint64_t refs = cluster < c->refs.nr ? c->refs.count[cluster] : 0;

  if (stored < refs)
    wrong (c, "cluster 0x%" PRIx64 ": refcount %" PRIu64 ", %" PRIu64
           " references", cluster << c->m.bits, stored, refs);
  else if (stored > refs)
    c->result.leaks++;
}

/* The refcounts of one block, up to a word of zeros at a time past the
 * file's end.
 */
static void
check_block (struct checking *c, uint64_t first, uint64_t block)
{
  const struct img *m = &c->m;
  const uint64_t per_block = m->cluster_size * 8 >> m->order;
  const uint64_t per_word = 64 >> m->order;
  uint64_t i;

  for (i = 0; i < per_block; ++i) {
    if (first + i >= c->refs.nr && i % per_word == 0 &&
        entry_of (m, block, i / per_word) == 0)
      i += per_word - 1;
    else
      check_refcount (c, first + i);
  }
}

/* All refcounts that there are, also of what is past the file's end. */
static void
check_refcounts (struct checking *c)
{
  const struct img *m = &c->m;
  const uint64_t entries = (uint64_t) m->table_clusters << (m->bits - 3);
  const uint64_t per_block = m->cluster_size * 8 >> m->order;
  uint64_t i, n;

  if (c->refs.mixed > 0)
    wrong (c, "%" PRIu64 " references are to what is something else as well",
           c->refs.mixed);
  if (c->refs.beyond > 0)
    wrong (c, "%" PRIu64 " references are beyond the end of the file",
           c->refs.beyond);
  for (i = 0; i < entries; ++i) {
    const uint64_t block = refcount_block (m, i);

    if (block == 0 && i * per_block >= c->refs.nr)
      continue;
    c->refs.steps += m->cluster_size / 8;
    if (takes_too_long (&c->refs, m)) {
      wrong (c, "it takes too long");
      return;
    }
    check_block (c, i * per_block, block);
  }
  for (n = entries * per_block; n < c->refs.nr; ++n) {
    if (c->refs.count[n] > 0)
      wrong (c, "cluster 0x%" PRIx64 " has no refcount", n << m->bits);
  }
}

/* The host cluster of an entry of the disk's own tables. */
static void
check_host (struct checking *c, uint64_t place, uint64_t word)
{
  const struct img *m = &c->m;
  const uint64_t host = word & QCOW2_ENTRY_OFFSET_MASK;
  const bool copied = (word & QCOW2_ENTRY_COPIED) != 0;
  bool is_own;

  if (host % m->cluster_size != 0) {
    wrong (c, "entry 0x%016" PRIx64 " at 0x%" PRIx64 " is not aligned", word,
           place);
    return;
  }
  if (host >> m->bits >= c->refs.nr)
    return; /* counted as beyond the end */
  is_own = host != 0 && c->refs.count[host >> m->bits] == 1;
  c->result.uncopied += is_own && !copied;
  if (is_own != copied)
    wrong (c, "entry 0x%016" PRIx64 " at 0x%" PRIx64 ": COPIED is %d, %"
           PRIu32 " references", word, place, copied,
           host == 0 ? 0 : c->refs.count[host >> m->bits]);
}

/* Data in a file of its own is where the guest has it, at this offset, and has
 * no refcount.
 */
static void
check_external (struct checking *c, uint64_t place, uint64_t word,
                uint64_t bitmap, uint64_t guest)
{
  const bool is_there = (word & QCOW2_ENTRY_COPIED) != 0;

  if ((word & QCOW2_L2_COMPRESSED) ||
      (word & QCOW2_ENTRY_OFFSET_MASK) != (is_there ? guest : 0) ||
      ((bitmap & UINT32_MAX) != 0 && !is_there))
    wrong (c, "entry 0x%016" PRIx64 " at 0x%" PRIx64 ", of the guest's 0x%"
           PRIx64, word, place, guest);
}

static void
check_l2_entry (struct checking *c, uint64_t place, uint64_t guest)
{
  const struct img *m = &c->m;
  const uint64_t word = word64 (m, place);
  const uint64_t bitmap = m->extended ? word64 (m, place + 8) : 0;
  const uint64_t zero_flag = m->version >= 3 && !m->extended ? QCOW2_L2_ZERO
    : 0;

  if (word & QCOW2_L2_COMPRESSED) {
    if ((word & QCOW2_ENTRY_COPIED) != 0 || bitmap != 0)
      wrong (c, "compressed entry 0x%016" PRIx64 " at 0x%" PRIx64
             ", bitmap 0x%016" PRIx64, word, place, bitmap);
    return;
  }
  if (word & ~(QCOW2_ENTRY_OFFSET_MASK | QCOW2_ENTRY_COPIED | zero_flag))
    wrong (c, "entry 0x%016" PRIx64 " at 0x%" PRIx64 ": reserved bits", word,
           place);
  if (m->external) {
    check_external (c, place, word, bitmap, guest);
    return;
  }
  if ((bitmap >> 32 & bitmap) != 0 ||
      ((bitmap & UINT32_MAX) != 0 && !(word & QCOW2_ENTRY_OFFSET_MASK)))
    wrong (c, "entry 0x%016" PRIx64 " at 0x%" PRIx64 ": bitmap 0x%016" PRIx64,
           word, place, bitmap);
  check_host (c, place, word);
}

/* The cluster of the guest that entry j / entry_bytes of the i-th table is for. */
static uint64_t
guest_of (const struct img *m, uint64_t i, uint64_t j)
{
  return (i * m->cluster_size + j) / entry_bytes (m) << m->bits;
}

static void
check_disk (struct checking *c)
{
  const struct img *m = &c->m;
  uint64_t i, j;

  for (i = 0; i < m->l1_size; ++i) {
    const uint64_t place = m->l1_offset + 8 * i;
    const uint64_t word = word64 (m, place);
    const uint64_t table = word & QCOW2_ENTRY_OFFSET_MASK;

    if (word & ~(QCOW2_ENTRY_OFFSET_MASK | QCOW2_ENTRY_COPIED))
      wrong (c, "L1 entry 0x%016" PRIx64 " at 0x%" PRIx64 ": reserved bits",
             word, place);
    check_host (c, place, word);
    for (j = 0; table != 0 && j < m->cluster_size; j += entry_bytes (m))
      check_l2_entry (c, table + j, guest_of (m, i, j));
  }
}

static void
check_refcount_table (struct checking *c)
{
  const struct img *m = &c->m;
  const uint64_t bytes = (uint64_t) m->table_clusters << m->bits;
  const uint64_t end = c->refs.nr << m->bits; /* the last may be cut */
  uint64_t i;

  if (m->table_offset == 0 || m->table_offset % m->cluster_size != 0 ||
      sum (m->table_offset, bytes) > end)
    wrong (c, "refcount table at 0x%" PRIx64, m->table_offset);
  for (i = 0; i < bytes / 8; ++i) {
    const uint64_t block = entry_of (m, m->table_offset, i);

    if (block % m->cluster_size != 0 || sum (block, m->cluster_size) > end)
      wrong (c, "refcount block 0x%" PRIx64 " of number %" PRIu64, block, i);
  }
}

static struct image_check
run (struct checking *c)
{
  count_refs (&c->refs, &c->m);
  c->result.clusters = c->refs.nr;
  if (c->m.version >= 3) {
    const uint64_t bits = word64 (&c->m, 72);

    c->result.dirty = (bits & QCOW2_INCOMPAT_DIRTY) != 0;
    c->result.corrupt = (bits & QCOW2_INCOMPAT_CORRUPT) != 0;
  }
  if (takes_too_long (&c->refs, &c->m))
    wrong (c, "it takes too long");
  else {
    check_refcount_table (c);
    check_refcounts (c);
    check_disk (c);
  }
  image_refs_free (&c->refs);
  return c->result;
}

struct image_check
image_check (const char *what, const uint8_t *data, uint64_t size)
{
  struct checking c = { .m = parse (data, size), .what = what };

  return run (&c);
}

struct image_check
image_check_quietly (const uint8_t *data, uint64_t size)
{
  struct checking c = { .m = parse (data, size), .quiet = true };

  c.m.max_steps = MAX_QUIET_STEPS;
  return run (&c);
}

void
image_check_clean (const char *what, const uint8_t *data, uint64_t size)
{
  const struct image_check c = image_check (what, data, size);

  if (c.leaks > 0)
    check_failed (__FILE__, __LINE__, "%s: %" PRIu64 " clusters are leaked",
                  what, c.leaks);
  if (c.dirty || c.corrupt)
    check_failed (__FILE__, __LINE__, "%s: marked as dirty or corrupt", what);
}
