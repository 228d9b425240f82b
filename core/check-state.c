/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "check-state.h"
#include "error.h"
#include "foreign.h"

/* What the format allows and header_decode does not: a check may have to
 * make an image whole that has lost its refcount table.
 */
#define FIELD_REFCOUNT_TABLE_CLUSTERS \
  (HEADER_REFCOUNT_TABLE_OFFSET + sizeof (uint64_t))

/* Tables may be beyond the end of the file: that is found later on. */
#define ANY_FILE_SIZE ((uint64_t) INT64_MAX)

static int
decode (struct check *c, uint8_t *buf, size_t len)
{
  const bool no_table = get_be32 (buf + FIELD_REFCOUNT_TABLE_CLUSTERS) == 0;

  if (no_table) {
    put_be64 (buf + HEADER_REFCOUNT_TABLE_OFFSET, len);
    put_be32 (buf + FIELD_REFCOUNT_TABLE_CLUSTERS, 1);
  }
  if (header_decode (c->storage->name, buf, len, ANY_FILE_SIZE, &c->h) == -1)
    return -1;
  if (no_table)
    c->h.refcount_table_clusters = 0;
  return 0;
}

static int
read_header (struct check *c)
{
  uint8_t start[QCOW2_HEADER_LENGTH_V3];
  const struct host_off zero = { 0 };
  uint8_t *buf;
  size_t len;
  int r = -1;

  if (storage_read (c->storage, start, sizeof start, zero) == -1)
    return -1;
  len = header_want (c->storage->name, start, c->storage->size);
  if (len == 0) {
    foreign_explain (c->storage);
    return -1;
  }
  buf = malloc (len);
  if (buf == NULL)
    error_set (ENOMEM, "out of memory");
  else if (storage_read (c->storage, buf, len, zero) == 0)
    r = decode (c, buf, len);
  free (buf);
  return r;
}

int
check_start (struct check *c, struct storage *storage,
             const struct check_options *options)
{
  const size_t memory = options->memory;

  *c = (struct check) { .storage = storage, .options = options };
  c->file_size = (storage->size + 511) & ~UINT64_C (511);
  if (read_header (c) == -1)
    return -1;
  c->format = (struct entry_format) {
    .version = c->h.version,
    .cluster_bits = c->h.cluster_bits,
    .extended_l2 = c->h.extended_l2,
  };
  c->nr = (c->file_size + c->h.cluster_size - 1) >> c->h.cluster_bits;
  check_findings_init (&c->findings, options);
  counts_init (&c->counts, memory != 0 ? memory : CHECK_MEMORY_DEFAULT,
               entry_refcount_max (c->h.refcount_order));
  return check_refcounts_open (&c->refcounts, storage, &c->h);
}

void
check_end (struct check *c)
{
  check_findings_clear (&c->findings);
  counts_free (&c->counts);
  check_refcounts_close (&c->refcounts);
}

const char *
check_use_name (enum check_use use)
{
  static const char *const name[] = {
    [USE_HEADER] = "header",
    [USE_L1] = "L1 table",
    [USE_SNAPSHOTS] = "snapshot table",
    [USE_REFCOUNT_TABLE] = "refcount table",
    [USE_REFCOUNT_BLOCK] = "refcount block",
    [USE_BITMAP] = "bitmap",
    [USE_L2] = "L2 table",
    [USE_DATA] = "data",
  };

  return name[use];
}

/* Know of each cluster of a chunk whether its refcount is 1, so that COPIED
 * flags can be judged while the references are counted: in one walk.
 */
static int
load_ones (struct check *c, struct counts_chunk *k, uint64_t first)
{
  const unsigned order = c->h.refcount_order;
  uint8_t *buf;
  uint64_t i;
  int r;

  buf = malloc (check_refcounts_bytes (&c->refcounts, COUNTS_CHUNK));
  if (buf == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  r = check_refcounts_read (&c->refcounts, first, COUNTS_CHUNK, buf);
  for (i = 0; r == 1 && i < COUNTS_CHUNK; ++i) {
    if (check_refcount_at (order, buf, i) == 1)
      counts_set_flag (k, COUNTS_ONE, i);
  }
  free (buf);
  return r == -1 ? -1 : 0;
}

static struct counts_chunk *
touch (struct check *c, uint64_t cluster)
{
  struct counts_chunk *k = counts_find (&c->counts, cluster);

  if (k != NULL)
    return k;
  k = counts_new_chunk (&c->counts, cluster);
  if (k != NULL && !c->mended &&
      load_ones (c, k, cluster & ~(COUNTS_CHUNK - 1)) == -1)
    return NULL;
  return k;
}

static enum counts_flag
flag_of (enum check_use use)
{
  return use == USE_DATA ? COUNTS_DATA : use == USE_L2 ? COUNTS_L2
    : COUNTS_META;
}

int
check_refer_cluster_slowly (struct check *c, enum check_use use,
                            uint64_t cluster, uint64_t n,
                            struct counts_chunk **chunk)
{
  struct counts_chunk *k;
  uint64_t surplus;

  *chunk = NULL;
  if (!counts_in_window (&c->counts, cluster)) {
    if (cluster >= c->counts.end && cluster < c->next)
      c->next = cluster;
    return 0;
  }
  k = touch (c, cluster);
  if (k == NULL || counts_add (&c->counts, k, cluster, n, &surplus) == -1)
    return -1;
  /* The check judges blocks by themselves: in check-image.c. */
  if (use != USE_REFCOUNT_BLOCK || c->mended)
    counts_set_flag (k, flag_of (use), cluster);
  if (surplus > 0)
    check_found (&c->findings, CHECK_OVERFLOW, surplus,
                 "cluster at 0x%" PRIx64 ": it has more references than a "
                 "refcount of %u bits can tell",
                 cluster << c->h.cluster_bits, 1U << c->h.refcount_order);
  *chunk = k;
  return 0;
}

/* A file may end inside of its last cluster. */
static bool
is_beyond (const struct check *c, uint64_t offset, uint64_t bytes)
{
  const uint64_t limit = c->file_size + c->h.cluster_size;

  return offset >= limit || bytes >= limit - offset;
}

int
check_refer (struct check *c, enum check_use use, struct host_off place,
             uint64_t offset, uint64_t bytes, uint64_t n)
{
  const unsigned bits = c->h.cluster_bits;
  uint64_t i, last;

  if (bytes == 0)
    return 1;
  if (is_beyond (c, offset, bytes)) {
    if (check_is_first (c))
      check_found (&c->findings, CHECK_BEYOND, n, "%s at 0x%" PRIx64 ", %"
                   PRIu64 " bytes (by what is at 0x%" PRIx64 "): it is "
                   "beyond the end of the file", check_use_name (use), offset,
                   bytes, place.v);
    return 0;
  }
  if (c->referred != NULL)
    c->referred (c->opaque, offset, bytes);
  if (c->only_look || c->referred != NULL)
    return 1;
  last = (offset + bytes - 1) >> bits;
  if (last >= c->nr)
    c->nr = last + 1;
  for (i = offset >> bits; i <= last; ++i) {
    struct counts_chunk *k;

    if (check_refer_cluster_slowly (c, use, i, n, &k) == -1)
      return -1;
  }
  return 1;
}

/* Beyond the end of the file, where nothing is counted. */
static int
refcount_is_one (struct check *c, uint64_t cluster)
{
  uint8_t buf[64 * 8];

  if (check_refcounts_read (&c->refcounts, cluster & ~UINT64_C (63), 64,
                            buf) == -1)
    return -1;
  return check_refcount_at (c->h.refcount_order, buf, cluster & 63) == 1;
}

int
check_copied_slowly (struct check *c, struct host_off place, uint64_t word,
                     uint64_t cluster, const struct counts_chunk *chunk,
                     bool beyond, uint64_t n)
{
  const bool copied = (word & QCOW2_ENTRY_COPIED) != 0;
  int one;

  if (n == 0 || (chunk == NULL && !(beyond && check_is_first (c))))
    return 0;
  one = chunk != NULL ? counts_flag (chunk, COUNTS_ONE, cluster)
    : refcount_is_one (c, cluster);
  if (one == -1)
    return -1;
  if (one != copied && check_refcount_readable (&c->refcounts, cluster))
    check_found (&c->findings, CHECK_COPIED, n, "entry at 0x%" PRIx64
                 " (0x%016" PRIx64 "): COPIED is %s, and the refcount is %s",
                 place.v, word, copied ? "set" : "not set",
                 one ? "1" : "not 1");
  return 0;
}

#define SCAN_PIECE ((size_t) 1 << 17)

/* How many bytes from here on, SCAN_PIECE at most, are to be read, or skipped
 * since they are a hole.  To ask for that costs more than to read a few.
 */
static int
scan_piece (struct check *c, struct host_off at, uint64_t rest, bool *hole,
            uint64_t *piece)
{
  *hole = false;
  if (rest <= SCAN_PIECE / 8)
    *piece = rest;
  else {
    if (storage_extent (c->storage, at, rest, hole, piece) == -1)
      return -1;
    *piece = *hole ? *piece & ~UINT64_C (7) : (*piece + 7) & ~UINT64_C (7);
    if (*piece == 0) { /* a word that begins with a hole */
      *hole = false;
      *piece = 8;
    }
  }
  if (*piece > rest)
    *piece = rest;
  if (!*hole && *piece > SCAN_PIECE)
    *piece = SCAN_PIECE;
  return 0;
}

int
check_scan (struct check *c, struct host_off offset, uint64_t bytes,
            check_words_fn *fn, void *opaque)
{
  uint8_t *words = malloc (SCAN_PIECE);
  uint64_t piece, at = 0;
  bool hole;
  int r = 0;

  if (words == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  for (; r == 0 && at < bytes; at += piece) {
    const struct host_off place = { offset.v + at };

    r = scan_piece (c, place, bytes - at, &hole, &piece);
    if (r == 0 && !hole) {
      r = storage_read (c->storage, words, piece, place);
      if (r == 0)
        r = fn (c, opaque, place, words, piece);
    }
  }
  free (words);
  return r;
}
