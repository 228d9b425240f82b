/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/check/state.h"
#include "qcow2/foreign.h"

/* Allowed by the format but not by header_decode, since a repair may have to
 * restore a lost refcount table.
 */
#define FIELD_REFCOUNT_TABLE_CLUSTERS \
  (HEADER_REFCOUNT_TABLE_OFFSET + sizeof (uint64_t))

/* How much of a table is read at once. */
#define SCAN_PIECE ((size_t) 1 << 16)

/* Tables may be beyond the end of the file: the check finds that later. */
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
    .data_file = c->h.has_data_file,
    .raw_data = c->h.raw_data,
  };
  c->nr = (c->file_size + c->h.cluster_size - 1) >> c->h.cluster_bits;
  check_findings_init (&c->findings, options);
  check_holes_init (&c->holes, storage);
  counts_init (&c->counts, memory != 0 ? memory : CHECK_MEMORY_DEFAULT,
               entry_refcount_max (c->h.refcount_order));
  c->words = malloc (SCAN_PIECE);
  if (c->words == NULL)
    error_set (ENOMEM, "out of memory");
  else if (check_refcounts_open (&c->refcounts, storage, &c->h) == 0)
    return 0;
  free (c->words);
  return -1;
}

void
check_end (struct check *c)
{
  check_findings_clear (&c->findings);
  counts_free (&c->counts);
  free (c->words);
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
    [USE_BITMAP_DIRECTORY] = "bitmap directory",
    [USE_BITMAP_TABLE] = "bitmap table",
    [USE_BITS] = "bits of a bitmap",
    [USE_CRYPTO] = "LUKS header",
    [USE_L2] = "L2 table",
    [USE_DATA] = "data",
  };

  return name[use];
}

/* Note which clusters of a chunk have a refcount of 1, so that COPIED flags
 * can be judged in the same walk that counts the references.
 */
static int
load_ones (struct check *c, struct counts_chunk *k, uint64_t first)
{
  const unsigned order = c->h.refcount_order;
  uint8_t buf[COUNTS_CHUNK * 8];
  uint64_t i;
  int r;

  r = check_refcounts_read (&c->refcounts, first, COUNTS_CHUNK, buf);
  if (r == 1 && check_refcounts_are (order, buf, COUNTS_CHUNK, 1)) {
    memset (k->flag[COUNTS_ONE], 0xff, sizeof k->flag[COUNTS_ONE]);
    return 0;
  }
  for (i = 0; r == 1 && i < COUNTS_CHUNK; ++i) {
    if (check_refcount_at (order, buf, i) == 1)
      counts_set_flag (k, COUNTS_ONE, i);
  }
  return r == -1 ? -1 : 0;
}

/* A cluster after the window has references: another window must follow. */
static void
note_behind (struct check *c, uint64_t cluster)
{
  if (cluster >= c->counts.end && cluster < c->next)
    c->next = cluster;
}

/* The chunk of a cluster; *chunk is NULL if it is not in the window. */
static int
touch (struct check *c, uint64_t cluster, struct counts_chunk **chunk)
{
  *chunk = NULL;
  if (counts_in_window (&c->counts, cluster)) {
    *chunk = counts_find (&c->counts, cluster);
    if (*chunk != NULL)
      return 0;
    if (counts_new_chunk (&c->counts, cluster, chunk) == -1)
      return -1;
    if (*chunk != NULL)
      return c->fixed_up ? 0 : load_ones (c, *chunk, cluster &
                                        ~(COUNTS_CHUNK - 1));
  }
  note_behind (c, cluster);
  return 0;
}

static enum counts_flag
flag_of (enum check_use use)
{
  return use == USE_DATA ? COUNTS_DATA : use == USE_L2 ? COUNTS_L2
    : COUNTS_META;
}

/* Count n references to the clusters [first, end) of one chunk.  *chunk is as
 * with touch.
 */
static int
refer_in_chunk (struct check *c, enum check_use use, uint64_t first,
                uint64_t end, uint64_t n, struct counts_chunk **chunk)
{
  uint64_t i, surplus;

  if (touch (c, first, chunk) == -1)
    return -1;
  for (i = first; *chunk != NULL && i < end; ++i) {
    if (counts_add (&c->counts, *chunk, i, n, &surplus) == -1)
      return -1;
    /* qcow2/check/check.c judges blocks separately. */
    if (use != USE_REFCOUNT_BLOCK || c->fixed_up)
      counts_set_flag (*chunk, flag_of (use), i);
    if (surplus > 0)
      check_found (&c->findings, CHECK_OVERFLOW, surplus,
                   "cluster at 0x%" PRIx64 ": it has more references than a "
                   "refcount of %u bits can tell",
                   i << c->h.cluster_bits, 1U << c->h.refcount_order);
  }
  return 0;
}

int
check_refer_cluster_slowly (struct check *c, enum check_use use,
                            uint64_t cluster, uint64_t n,
                            struct counts_chunk **chunk)
{
  return refer_in_chunk (c, use, cluster, cluster + 1, n, chunk);
}

/* Count n references to all clusters from first up to end. */
static int
refer_clusters (struct check *c, enum check_use use, uint64_t first,
                uint64_t end, uint64_t n)
{
  struct counts_chunk *chunk;
  uint64_t next;

  if (end > c->nr)
    c->nr = end;
  for (; first < end; first = next) {
    next = (first | (COUNTS_CHUNK - 1)) + 1;
    if (next > end)
      next = end;
    /* Windows end where chunks do. */
    if (refer_in_chunk (c, use, first, next, n, &chunk) == -1)
      return -1;
  }
  return 0;
}

/* A file may end inside its last cluster. */
bool
check_is_beyond (const struct check *c, uint64_t offset, uint64_t bytes)
{
  /* An image that is being written grows; what its tables refer to is there by
   * the time that they can be read.
   */
  const uint64_t size = c->referred != NULL ? c->storage->size : c->file_size;
  const uint64_t limit = size + c->h.cluster_size;

  return offset >= limit || bytes >= limit - offset;
}

int
check_refer (struct check *c, enum check_use use, struct host_off place,
             uint64_t offset, uint64_t bytes, uint64_t n)
{
  const unsigned bits = c->h.cluster_bits;

  if (bytes == 0)
    return 1;
  if (check_is_beyond (c, offset, bytes)) {
    if (check_is_first (c))
      check_found (&c->findings, CHECK_BEYOND, n, "%s at 0x%" PRIx64 ", %"
                   PRIu64 " bytes (by what is at 0x%" PRIx64 "): it is "
                   "beyond the end of the file", check_use_name (use), offset,
                   bytes, place.v);
    return 0;
  }
  if (c->referred != NULL)
    c->referred (c->opaque, use, offset, bytes, n);
  if (c->only_look || c->referred != NULL)
    return 1;
  return refer_clusters (c, use, offset >> bits,
                         ((offset + bytes - 1) >> bits) + 1, n) == -1 ? -1 : 1;
}

/* ------------------------------------------------------------------ ranges */

struct ranges_of {
  struct check *c;
  enum check_use use;
  uint64_t held; /* clusters that may not be zeros */
};

static int
claim (void *opaque, uint64_t start, uint64_t end, struct check_paths paths)
{
  struct ranges_of *o = opaque;

  (void) paths;
  o->c->claimed += (end - start) >> o->c->h.cluster_bits;
  return 0;
}

/* In pieces large enough to be quick where there are no holes. */
static int
find_held (void *opaque, uint64_t start, uint64_t end,
           struct check_paths paths)
{
  struct ranges_of *o = opaque;
  const uint64_t step = SCAN_PIECE > o->c->h.cluster_size ? SCAN_PIECE
    : o->c->h.cluster_size;
  uint64_t at, n;

  (void) paths;
  for (at = start; at < end; at += n) {
    n = check_hole (&o->c->holes, at, end - at);
    if (n > 0)
      continue;
    n = step < end - at ? step : end - at;
    o->held += (n + o->c->h.cluster_size - 1) >> o->c->h.cluster_bits;
  }
  return 0;
}

static int
refer_interval (void *opaque, uint64_t start, uint64_t end,
                struct check_paths paths)
{
  struct ranges_of *o = opaque;
  const unsigned bits = o->c->h.cluster_bits;

  if (o->c->referred != NULL) {
    o->c->referred (o->c->opaque, o->use, start, end - start, paths.all);
    return 0;
  }
  return refer_clusters (o->c, o->use, start >> bits, end >> bits, paths.all);
}

int
check_refer_ranges (struct check *c, enum check_use use,
                    const struct check_ranges *ranges)
{
  struct ranges_of o = { .c = c, .use = use };

  if (c->only_look)
    return 0;
  if (check_each_interval (ranges, c->h.cluster_size, claim, &o) == -1)
    return -1;
  if (c->claimed > CHECK_MAX_CLAIMED) {
    if (check_each_interval (ranges, c->h.cluster_size, find_held, &o) == -1)
      return -1;
    if (c->claimed > CHECK_MAX_CLAIMED + o.held) {
      error_set (EINVAL, "%s: %s tables are said to take %" PRIu64 " clusters, "
                 "of which the file holds %" PRIu64 " at most",
                 c->storage->name, use == USE_L1 ? "L1" : "bitmap",
                 c->claimed, o.held);
      return -1;
    }
  }
  return check_each_interval (ranges, c->h.cluster_size, refer_interval, &o);
}

/* For clusters beyond the end of the file, where nothing is counted. */
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

/* How many bytes from here on to skip, or to read. */
static uint64_t
scan_piece (struct check *c, uint64_t at, uint64_t rest, bool *skip)
{
  const uint64_t n = check_hole (&c->holes, at, rest) & ~UINT64_C (7);

  *skip = n > 0;
  return n > 0 ? n : rest < SCAN_PIECE ? rest : SCAN_PIECE;
}

int
check_scan (struct check *c, struct host_off offset, uint64_t bytes,
            check_words_fn *fn, void *opaque)
{
  uint64_t piece, at;
  bool skip;

  for (at = 0; at < bytes; at += piece) {
    const struct host_off place = { offset.v + at };

    piece = scan_piece (c, place.v, bytes - at, &skip);
    if (!skip &&
        (storage_read (c->storage, c->words, piece, place) == -1 ||
         fn (c, opaque, place, c->words, piece) == -1))
      return -1;
  }
  return 0;
}

/* ------------------------------------------------------------ small pieces */

#define READER_BYTES 16384

_Static_assert (READER_BYTES <= SCAN_PIECE, "it is within the buffer");

int
check_read_piece (struct check *c, struct check_reader *r, void *buf,
                  size_t bytes, struct host_off at)
{
  if (bytes > READER_BYTES)
    return storage_read (c->storage, buf, bytes, at);
  if (r->bytes == 0 || at.v < r->at || at.v + bytes > r->at + r->bytes) {
    r->bytes = 0;
    if (storage_read (c->storage, c->words, READER_BYTES, at) == -1)
      return -1;
    r->at = at.v;
    r->bytes = READER_BYTES;
  }
  memcpy (buf, c->words + (at.v - r->at), bytes);
  return 0;
}
