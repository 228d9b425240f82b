/* SPDX-License-Identifier: BSD-3-Clause */

/* The check finds each kind of damage, as that kind, and nothing else; in any
 * amount of memory, and in a short time whatever an image says.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "build.h"
#include "check.h"
#include "qcow2/check/check.h"
#include "random.h"

static const struct check_options quiet;

static struct check_report
check_bytes (const struct builder *b, size_t memory, uint64_t claimed_size)
{
  const struct check_options options = { .memory = memory };
  struct memory_control control = { .size = claimed_size };
  struct storage *s = build_storage (b, &control);
  struct check_report r;

  CHECK_OK (check_storage (s, &options, &r));
  storage_close (s);
  return r;
}

static struct check_report
check_built (const struct builder *b)
{
  return check_bytes (b, 0, 0);
}

/* Exactly so many of one kind. */
static void
expect (const char *file, int line, const struct builder *b,
        enum check_kind kind, uint64_t n)
{
  const struct check_report r = check_built (b);
  unsigned i;

  for (i = 0; i < CHECK_KINDS; ++i)
    if (r.found[i] != (i == kind ? n : 0))
      check_failed (file, line, "kind %u: found %" PRIu64 " times", i,
                    r.found[i]);
}

#define EXPECT(b, kind, n) expect (__FILE__, __LINE__, b, kind, n)
#define EXPECT_CLEAN(b) EXPECT (b, CHECK_LEAK, 0)

#define DISK 64 /* clusters */
#define BITS 12
#define CLUSTER (UINT64_C (1) << BITS)

/* Some data, not finished yet. */
static void
start (struct builder *b, unsigned version)
{
  uint8_t plain[CLUSTER];
  unsigned i;

  build_start (b, version, BITS, false, COMPRESSION_DEFLATE, DISK * CLUSTER);
  for (i = 0; i < 8; ++i)
    build_entry (b, i, build_data (b, i), 0);
  memset (plain, 7, sizeof plain);
  build_compressed (b, 20, plain, 0);
}

static uint64_t
get (const struct builder *b, uint64_t place)
{
  return get_be64 (b->data + place);
}

static void
put (struct builder *b, uint64_t place, uint64_t word)
{
  put_be64 (b->data + place, word);
}

static uint64_t
refcount_block (const struct builder *b)
{
  return get (b, get (b, 48));
}

/* Refcounts of 16 bits. */
static uint8_t *
refcount (const struct builder *b, uint64_t offset)
{
  return b->data + refcount_block (b) + (offset >> BITS) * 2;
}

static uint64_t
data_offset (const struct builder *b, uint64_t cluster)
{
  struct builder copy = *b;

  return get (b, build_l2_place (&copy, cluster)) & QCOW2_ENTRY_OFFSET_MASK;
}

/* ------------------------------------------------------------------- sound */

static void
test_sound (void)
{
  unsigned version, order;

  for (version = 2; version <= 3; ++version) {
    for (order = 0; order <= 6; ++order) {
      uint64_t random = 1;
      struct check_report r;
      struct builder b;

      start (&b, version);
      if (version == 3)
        build_order (&b, order);
      if (version == 2 || order > 1)
        build_snapshot (&b, 100, &random);
      build_finish (&b);
      EXPECT_CLEAN (&b);
      r = check_built (&b);
      CHECK_EQ (r.total_clusters, DISK);
      CHECK_EQ (r.allocated_clusters, 9);
      CHECK_EQ (r.compressed_clusters, 1);
      CHECK_EQ (r.fragmented_clusters, 2);
      CHECK_EQ (r.image_end, b.size);
      CHECK (!r.blind && !r.bitmaps_damaged);
      build_free (&b);
    }
  }
}

/* -------------------------------------------------------------- each kind */

/* One word of an L2 table is changed by these bits. */
static void
flip_entry (unsigned version, uint64_t cluster, uint64_t bits,
            enum check_kind kind, uint64_t n)
{
  struct builder b;

  start (&b, version);
  build_finish (&b);
  put (&b, build_l2_place (&b, cluster),
       get (&b, build_l2_place (&b, cluster)) ^ bits);
  EXPECT (&b, kind, n);
  build_free (&b);
}

static void
test_entries (void)
{
  flip_entry (3, 1, QCOW2_ENTRY_COPIED, CHECK_COPIED, 1);
  flip_entry (3, 1, UINT64_C (1) << 60, CHECK_RESERVED, 1);
  flip_entry (3, 1, 2, CHECK_RESERVED, 1);
  flip_entry (3, 20, QCOW2_ENTRY_COPIED, CHECK_COMPRESSED, 1);
  flip_entry (2, 1, QCOW2_L2_ZERO, CHECK_UNREADABLE, 1);
  flip_entry (3, 1, QCOW2_L2_ZERO, CHECK_LEAK, 0);
}

static void
test_refcounts (void)
{
  struct builder b;

  start (&b, 3);
  build_clusters (&b, 1);
  build_finish (&b);
  EXPECT_CLEAN (&b);
  refcount (&b, b.cluster_size)[1]++; /* the refcount table's */
  EXPECT (&b, CHECK_LEAK, 1);
  refcount (&b, b.cluster_size)[1] = 0;
  EXPECT (&b, CHECK_REFCOUNT, 1);
  build_free (&b);
}

/* An entry that says nothing true about where its data are. */
static void
test_offsets (void)
{
  struct check_report r;
  struct builder b;

  start (&b, 3);
  build_finish (&b);
  put (&b, build_l2_place (&b, 1), b.size + (UINT64_C (1) << 40));
  r = check_built (&b);
  CHECK_EQ (r.found[CHECK_BEYOND], 1);
  CHECK_EQ (r.found[CHECK_LEAK], 1);
  CHECK_EQ (r.corruptions, 1);
  /* The first cluster that is beyond it; the file ends within a sector. */
  build_bytes (&b, 1);
  put (&b, build_l2_place (&b, 1), (b.size + 511) & -512);
  r = check_built (&b);
  CHECK_EQ (r.found[CHECK_UNALIGNED], 1);
  CHECK_EQ (r.found[CHECK_BEYOND], 1);
  CHECK_EQ (r.corruptions, 2);
  put (&b, build_l2_place (&b, 1), b.size - 1);
  r = check_built (&b);
  CHECK_EQ (r.found[CHECK_REFCOUNT], 1);
  CHECK_EQ (r.corruptions, 1);
  put (&b, build_l2_place (&b, 1), data_offset (&b, 2) + 512);
  r = check_built (&b);
  CHECK_EQ (r.found[CHECK_UNALIGNED], 1);
  CHECK_EQ (r.found[CHECK_REFCOUNT], 2);
  CHECK_EQ (r.found[CHECK_LEAK], 1);
  build_free (&b);
}

/* The live disk has a cluster twice, and the refcount knows, but not the
 * flags; then one of its entries has the L1 table.
 */
static void
test_double (void)
{
  struct check_report r;
  uint64_t offset;
  struct builder b;

  start (&b, 3);
  build_finish (&b);
  offset = data_offset (&b, 2);
  put (&b, build_l2_place (&b, 10), offset | QCOW2_ENTRY_COPIED);
  r = check_built (&b);
  CHECK_EQ (r.found[CHECK_REFCOUNT], 1);
  CHECK_EQ (r.corruptions, 1);
  refcount (&b, offset)[1] = 2;
  EXPECT (&b, CHECK_COPIED, 2);

  refcount (&b, offset)[1] = 1;
  put (&b, build_l2_place (&b, 10), b.l1_offset);
  refcount (&b, b.l1_offset)[1] = 2;
  EXPECT (&b, CHECK_OVERLAP, 1);
  build_free (&b);
}

/* The same of many clusters in a row, which are counted together: the second row
 * begins and ends within the first.  And the refcount of one is wrong amid a chunk
 * in which all others are alike.
 */
static void
test_rows (void)
{
  const uint64_t row = 3 * COUNTS_CHUNK, first = 2, nr = 60, odd = 200;
  struct builder b;
  uint64_t i, offset;

  build_start (&b, 3, BITS, false, COMPRESSION_DEFLATE, 512 * CLUSTER);
  for (i = 0; i < row; ++i)
    build_entry (&b, i, build_data (&b, i), 0);
  build_finish (&b);
  EXPECT_CLEAN (&b);
  for (i = 0; i < nr; ++i)
    put (&b, build_l2_place (&b, row + i),
         data_offset (&b, first + i) | QCOW2_ENTRY_COPIED);
  EXPECT (&b, CHECK_REFCOUNT, nr);
  for (i = 0; i < nr; ++i)
    refcount (&b, data_offset (&b, first + i))[1] = 2;
  EXPECT (&b, CHECK_COPIED, 2 * nr);
  for (i = 0; i < nr; ++i) {
    put (&b, build_l2_place (&b, row + i), 0);
    refcount (&b, data_offset (&b, first + i))[1] = 1;
  }
  offset = data_offset (&b, odd);
  put (&b, build_l2_place (&b, odd), offset);
  refcount (&b, offset)[1] = 2;
  EXPECT (&b, CHECK_LEAK, 1);
  build_free (&b);
}

static void
test_subclusters (void)
{
  struct builder b;

  build_start (&b, 3, 14, true, COMPRESSION_DEFLATE, UINT64_C (8) << 14);
  build_entry (&b, 0, build_data (&b, 1), UINT32_MAX);
  build_entry (&b, 1, build_data (&b, 2), 1);
  build_finish (&b);
  EXPECT_CLEAN (&b);
  put (&b, build_l2_place (&b, 1) + 8, UINT64_C (1) << 32 | 1);
  EXPECT (&b, CHECK_SUBCLUSTERS, 1);
  put (&b, build_l2_place (&b, 1) + 8, 1);
  put (&b, build_l2_place (&b, 3) + 8, 1);
  EXPECT (&b, CHECK_SUBCLUSTERS, 1);
  build_free (&b);
}

static void
test_refcount_table (void)
{
  struct check_report r;
  struct builder b;
  uint64_t table;

  start (&b, 3);
  build_finish (&b);
  table = get (&b, 48);
  put (&b, table + 8, refcount_block (&b));
  r = check_built (&b);
  CHECK_EQ (r.found[CHECK_REFCOUNT_BLOCK], 1);
  CHECK_EQ (r.found[CHECK_REFCOUNT], 1);
  put (&b, table + 8, 0);

  put (&b, table, refcount_block (&b) + 512);
  r = check_built (&b);
  CHECK_EQ (r.found[CHECK_REFCOUNT_BLOCK], 1);
  CHECK_EQ (r.check_errors, b.size >> BITS);

  put_be32 (b.data + 56, 0); /* no table at all */
  r = check_built (&b);
  CHECK_EQ (r.check_errors, 0);
  CHECK (r.found[CHECK_REFCOUNT] > 10);
  build_free (&b);
}

/* Damage that hides references, so that leaks can't be trusted. */
static void
test_blind (void)
{
  uint64_t random = 1;
  struct builder b;
  uint64_t snapshots;

  start (&b, 3);
  build_snapshot (&b, 100, &random);
  build_finish (&b);
  CHECK (!check_built (&b).blind);
  snapshots = get (&b, 64);
  put (&b, snapshots, b.snapshot_l1[0] + 512);
  CHECK (check_built (&b).blind);
  CHECK_EQ (check_built (&b).found[CHECK_UNALIGNED], 1);
  put (&b, snapshots, UINT64_MAX & -CLUSTER);
  CHECK (check_built (&b).blind);
  CHECK_EQ (check_built (&b).found[CHECK_BEYOND], 1);
  put (&b, snapshots, b.snapshot_l1[0]);
  put (&b, 40, UINT64_C (1) << 30);
  CHECK (check_built (&b).l1_cut && !check_built (&b).blind);
  CHECK_EQ (check_built (&b).found[CHECK_BEYOND], 1);
  put (&b, 40, b.l1_offset);
  put_be32 (b.data + snapshots + 8, UINT32_MAX);
  CHECK (check_built (&b).blind);
  CHECK_EQ (check_built (&b).found[CHECK_SNAPSHOT], 1);
  build_free (&b);
}

/* ------------------------------------------------------ sizes and times */

/* Many L1 entries share an L2 table, and by that its data: their refcounts
 * need more than a byte, and the table is not read as often.
 */
static void
test_many_references (unsigned l1_entries)
{
  const uint64_t per_table = CLUSTER / 8 << BITS;
  struct memory_control control = { 0 };
  struct storage *s;
  struct check_report r;
  struct builder b;
  uint64_t i;

  build_start (&b, 3, BITS, false, COMPRESSION_DEFLATE,
               l1_entries * per_table);
  build_order (&b, 5);
  build_entry (&b, 3, build_data (&b, 3), 0);
  for (i = 1; i < l1_entries; ++i)
    put (&b, b.l1_offset + 8 * i, get (&b, b.l1_offset));
  if (l1_entries < 1000) {
    build_finish (&b);
    EXPECT_CLEAN (&b);
    CHECK_EQ (check_bytes (&b, 1, 0).corruptions, 0);
  }
  s = build_storage (&b, &control);
  CHECK_OK (check_storage (s, &quiet, &r));
  storage_close (s);
  CHECK_EQ (r.allocated_clusters, l1_entries);
  CHECK (control.bytes < 5 * 8 * (uint64_t) l1_entries + 100 * CLUSTER);
  build_free (&b);
}

/* References all over a sparse file: they take no more memory than others. */
static void
test_sparse (void)
{
  const uint64_t size = UINT64_C (1) << 52;
  struct check_report r;
  struct builder b;
  unsigned i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 64 * 512);
  for (i = 0; i < 32; ++i)
    build_entry (&b, i, (size >> 5) * i + (UINT64_C (1) << 20), 0);
  build_finish (&b);
  r = check_bytes (&b, 0, size);
  CHECK_EQ (r.found[CHECK_REFCOUNT], 32);
  CHECK_EQ (r.corruptions, 32);
  CHECK_EQ (r.windows, 1);
  CHECK (r.counts_memory < 32 << 10);
  build_free (&b);
}

/* L2 tables in holes of a sparse file are not read. */
static void
test_holes (void)
{
  struct memory_control control = { .size = UINT64_C (1) << 40,
                                    .holes = true };
  struct check_report r;
  struct builder b;
  struct storage *s;
  unsigned i;

  build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, UINT64_C (64) << 29);
  build_entry (&b, 0, build_data (&b, 1), 0);
  build_finish (&b);
  for (i = 1; i < 64; ++i)
    put (&b, b.l1_offset + 8 * i, (UINT64_C (1) << 32) + i * 65536);
  s = build_storage (&b, &control);
  CHECK_OK (check_storage (s, &quiet, &r));
  storage_close (s);
  CHECK_EQ (r.found[CHECK_REFCOUNT], 63);
  CHECK (control.preads < 40);
  build_free (&b);
}

/* As many windows as there are chunks. */
static void
test_windows (void)
{
  struct check_report all, parts;
  struct builder b;
  unsigned i;

  build_start (&b, 3, 9, false, COMPRESSION_DEFLATE, 4096 * 512);
  for (i = 0; i < 40; ++i) {
    build_bytes (&b, COUNTS_CHUNK / 8 * 512);
    build_entry (&b, i * 100, build_data (&b, i), 0);
  }
  build_finish (&b);
  put (&b, build_l2_place (&b, 100), data_offset (&b, 200));
  put (&b, build_l2_place (&b, 300), 0);
  all = check_built (&b);
  parts = check_bytes (&b, 1, 0);
  CHECK (all.corruptions > 0 && all.leaks > 0);
  CHECK_EQ (all.windows, 1);
  CHECK (parts.windows >= 5 && parts.windows < 12);
  CHECK (parts.counts_memory < 2 << 10);
  CHECK (memcmp (all.found, parts.found, sizeof all.found) == 0);
  CHECK_EQ (parts.image_end, all.image_end);
  build_free (&b);
}

static void
test_counts (void)
{
  struct counts_chunk *k;
  struct counts c;
  uint64_t surplus, i;

  counts_init (&c, SIZE_MAX, 1000);
  CHECK_OK (counts_begin (&c, COUNTS_CHUNK + 5, 10 * COUNTS_CHUNK));
  CHECK_EQ (c.first, COUNTS_CHUNK);
  CHECK (!counts_in_window (&c, 5) && counts_in_window (&c, COUNTS_CHUNK));
  CHECK_OK (counts_new_chunk (&c, 2 * COUNTS_CHUNK + 7, &k));
  CHECK (counts_find (&c, 2 * COUNTS_CHUNK) == k);
  CHECK (counts_find (&c, COUNTS_CHUNK) == NULL);
  for (i = 0; i < 1002; ++i) {
    CHECK_OK (counts_add (&c, k, 7, 1, &surplus));
    CHECK_EQ (surplus, i >= 1000);
    CHECK_EQ (counts_get (&c, k, 7), i < 1000 ? i + 1 : 1000);
    CHECK_EQ (counts_get (&c, k, 8), 0);
  }
  CHECK_OK (counts_add (&c, k, 8, 5000, &surplus));
  CHECK_EQ (surplus, 4000);
  CHECK_EQ (counts_get (&c, k, 8), 1000);
  CHECK (!c.cut);
  counts_free (&c);
}

/* Clusters here and there, some of them often, against a plain list; in windows
 * that are cut off until they fit.
 */
#define REFERENCES 4000

struct reference {
  uint64_t cluster, n;
};

static void
count_window (struct counts *c, const struct reference *ref)
{
  struct counts_chunk *k;
  uint64_t surplus;
  unsigned i;

  for (i = 0; i < REFERENCES; ++i) {
    if (!counts_in_window (c, ref[i].cluster))
      continue;
    k = counts_find (c, ref[i].cluster);
    if (k == NULL)
      CHECK_OK (counts_new_chunk (c, ref[i].cluster, &k));
    CHECK ((k == NULL) == !counts_in_window (c, ref[i].cluster));
    if (k != NULL)
      CHECK_OK (counts_add (c, k, ref[i].cluster, ref[i].n, &surplus));
  }
}

static void
compare_window (struct counts *c, const struct reference *ref)
{
  uint64_t cluster = c->first, chunks = 0;
  unsigned i, j;

  for (i = 0; i < REFERENCES; i += 7) {
    struct counts_chunk *k;
    uint64_t expected = 0;

    if (!counts_in_window (c, ref[i].cluster))
      continue;
    for (j = 0; j < REFERENCES; ++j)
      expected += ref[j].cluster == ref[i].cluster ? ref[j].n : 0;
    k = counts_find (c, ref[i].cluster);
    CHECK (k != NULL && counts_get (c, k, ref[i].cluster) == expected);
  }
  for (; (cluster = counts_next (c, cluster)) < c->end;
       cluster = (cluster | (COUNTS_CHUNK - 1)) + 1) {
    CHECK (counts_find (c, cluster) != NULL);
    chunks++;
  }
  CHECK_EQ (chunks, c->nr_chunks);
  CHECK_EQ (cluster, UINT64_MAX);
}

static void
test_counts_cut (size_t budget, unsigned least, unsigned most)
{
  static struct reference ref[REFERENCES];
  uint64_t state = budget, first = 0, end;
  unsigned i, windows = 0;
  struct counts c;

  for (i = 0; i < REFERENCES; ++i) {
    ref[i].cluster = random_below (&state, 4) == 0 ? random_below (&state, 500)
      : random_next (&state) >> (20 + random_below (&state, 30));
    ref[i].n = random_below (&state, 8) == 0 ? random_below (&state, 300) : 1;
  }
  counts_init (&c, budget, UINT64_MAX);
  for (; first != UINT64_MAX; ++windows) {
    end = UINT64_C (1) << 44;
    do {
      CHECK_OK (counts_begin (&c, first, end));
      count_window (&c, ref);
      end = c.end;
    } while (c.cut);
    CHECK_OK (counts_sort (&c));
    CHECK (c.used <= budget || c.nr_chunks <= 1);
    compare_window (&c, ref);
    for (i = 0, first = UINT64_MAX; i < REFERENCES; ++i)
      if (ref[i].cluster >= c.end && ref[i].cluster < first)
        first = ref[i].cluster;
  }
  CHECK (windows >= least && windows <= most);
  counts_free (&c);
}

/* --------------------------------------------------------------- the rest */

struct heard {
  unsigned messages;
  uint64_t done, total;
  bool gives_up;
};

static void
hear (void *opaque, enum check_kind kind, const char *text)
{
  struct heard *h = opaque;

  CHECK_EQ (kind, CHECK_RESERVED);
  CHECK_HAS (text, "reserved bits");
  h->messages++;
}

static bool
hear_progress (void *opaque, uint64_t done, uint64_t total)
{
  struct heard *h = opaque;

  CHECK (done <= total && done >= h->done);
  h->done = done;
  h->total = total;
  return !h->gives_up;
}

static void
test_messages (void)
{
  struct heard heard = { 0 };
  const struct check_options options = {
    .messages = 3, .found = hear, .progress = hear_progress, .opaque = &heard,
  };
  struct check_report r;
  struct storage *s;
  struct builder b;
  unsigned i;

  start (&b, 3);
  build_finish (&b);
  for (i = 0; i < 8; ++i)
    put (&b, build_l2_place (&b, i), get (&b, build_l2_place (&b, i)) | 4);
  s = build_storage (&b, NULL);
  CHECK_OK (check_storage (s, &options, &r));
  storage_close (s);
  CHECK_EQ (r.found[CHECK_RESERVED], 8);
  CHECK_EQ (heard.messages, 3);
  CHECK_EQ (heard.done, 1);
  CHECK_EQ (heard.total, 1);

  heard = (struct heard) { .gives_up = true };
  s = build_storage (&b, NULL);
  CHECK_EQ (check_storage (s, &options, &r), (uint64_t) -1);
  CHECK_ERROR (EINTR, "the check was given up");
  CHECK_EQ (heard.messages, 0);
  storage_close (s);
  build_free (&b);
}

/* Each read fails in turn: that holes can't be found is no error. */
static void
test_failing (void)
{
  uint64_t random = 1, call;
  struct builder b;

  start (&b, 3);
  build_snapshot (&b, 100, &random);
  build_finish (&b);
  for (call = 1;; ++call) {
    struct memory_control control = {
      .fail_call = call, .fail_kinds = MEMORY_READ,
    };
    struct storage *s = build_storage (&b, &control);
    struct check_report r;
    const int ret = check_storage (s, &quiet, &r);

    storage_close (s);
    if (control.failed == 0) {
      CHECK_EQ (ret, 0);
      break;
    }
    CHECK_EQ (ret, -1);
    CHECK_ERROR (EIO, "test: ");
  }
  CHECK (call > 8);
  build_free (&b);
}

static void
test_no_image (void)
{
  static const uint8_t zeros[4096];
  struct storage *s = memory_storage_new ("test", zeros, sizeof zeros, NULL);
  struct check_report r;
  struct builder b;

  CHECK_EQ (check_storage (s, &quiet, &r), -1);
  CHECK_ERROR (EINVAL, "not a qcow2 image");
  storage_close (s);

  /* A snapshot table that nobody can follow. */
  start (&b, 3);
  build_snapshot (&b, 0, &(uint64_t) { 1 });
  build_finish (&b);
  put_be32 (b.data + get (&b, 64) + 36, UINT32_MAX);
  s = build_storage (&b, NULL);
  CHECK_EQ (check_storage (s, &quiet, &r), -1);
  CHECK_ERROR (EINVAL, "the table is larger than 67108864 bytes");
  storage_close (s);
  build_free (&b);
}

int
main (void)
{
  check_time_limit (60);
  test_sound ();
  test_entries ();
  test_refcounts ();
  test_offsets ();
  test_double ();
  test_rows ();
  test_subclusters ();
  test_refcount_table ();
  test_blind ();
  test_many_references (300);
  test_many_references (QCOW2_MAX_L1_BYTES / 8);
  test_sparse ();
  test_holes ();
  test_windows ();
  test_counts ();
  test_counts_cut (8 << 20, 1, 1);
  test_counts_cut (200 << 10, 3, 30);
  test_counts_cut (20 << 10, 30, 300);
  test_messages ();
  test_failing ();
  test_no_image ();
  return check_result ();
}
