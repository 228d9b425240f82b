/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/write.c and qcow2/write/zero.c: each kind of request on each
 * kind of cluster, and what becomes of the cluster.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "random.h"
#include "rig.h"
#include "seconds.h"

/* An image with one cluster of each kind, at guest cluster 3 * kind + 1, and
 * none beside them.
 */
enum kind {
  NOTHING,
  DATA,
  DATA_BESIDE, /* data with data before and behind it */
  ZERO,
  ZERO_KEPT,
  COMPRESSED,
  COMPRESSED_TOO, /* in the same host cluster, where that may be */
  MIXED,          /* extended L2: subclusters of all kinds ... */
  MIXED_NO_HOST,  /* ... and without a host cluster */
  NO_TABLE,       /* there is no L2 table either, if clusters are small */
  NR_KINDS,
};

struct form {
  unsigned version, bits;
  bool extended;
  unsigned order;
  bool backing;
  unsigned snapshots, copied; /* of 100 tables */
};

static struct form form;
static struct rig rig;
static uint64_t cache_bytes = CACHE_MIN_BYTES;
static uint8_t *base;
static uint64_t cluster_size, disk_size;

static uint64_t
per_table (void)
{
  return cluster_size / (form.extended ? 16 : 8);
}

/* The guest's offset of the cluster of this kind. */
static uint64_t
at_kind (enum kind kind)
{
  if (kind == NO_TABLE && cluster_size <= 4096)
    return per_table () * cluster_size;
  return (3 * kind + 1) * cluster_size;
}

static void
add_compressed (struct builder *b, uint64_t cluster)
{
  uint8_t *plain = malloc (cluster_size);

  build_pattern (plain, cluster_size, cluster + 100);
  build_compressed (b, cluster, plain, 30);
  free (plain);
}

static void
add_data (struct builder *b, uint64_t cluster)
{
  build_l2_place (b, cluster); /* first, so that data can join */
  build_entry (b, cluster, build_data (b, cluster + 1),
               b->extended ? UINT32_MAX : 0);
}

static void
add_kind (struct builder *b, enum kind kind)
{
  const uint64_t c = at_kind (kind) / cluster_size;

  switch (kind) {
  case DATA_BESIDE:
    add_data (b, c - 1);
    add_data (b, c);
    add_data (b, c + 1);
    return;
  case DATA:
    add_data (b, c);
    return;
  case ZERO:
  case ZERO_KEPT: {
    const uint64_t host = kind == ZERO_KEPT ? build_data (b, 5) : 0;

    if (b->extended)
      build_entry (b, c, host, ~(uint64_t) UINT32_MAX);
    else if (b->version >= 3)
      build_entry (b, c, host | QCOW2_L2_ZERO, 0);
    return;
  }
  case COMPRESSED:
  case COMPRESSED_TOO:
    add_compressed (b, c);
    return;
  case MIXED:
  case MIXED_NO_HOST:
    if (b->extended && kind == MIXED)
      build_entry (b, c, build_data (b, 6), UINT64_C (0x00f0f00f0f0f00f0));
    else if (b->extended)
      build_entry (b, c, 0, UINT64_C (0x00fff00f00000000));
    return;
  case NOTHING:
  case NO_TABLE:
  case NR_KINDS:
    return;
  }
}

/* The last cluster of the disk is not whole. */
static void
make (const struct form *f, bool tail)
{
  static char what[200];
  struct builder b;
  uint64_t state = 1;
  enum kind kind;
  unsigned i;

  form = *f;
  cluster_size = UINT64_C (1) << f->bits;
  disk_size = (3 * NR_KINDS + 3) * cluster_size;
  if (disk_size < at_kind (NO_TABLE) + 3 * cluster_size)
    disk_size = at_kind (NO_TABLE) + 3 * cluster_size;
  if (tail)
    disk_size += cluster_size > 512 ? cluster_size / 2 : 0;
  snprintf (what, sizeof what, "v%u, clusters of 2^%u, refcounts of 2^%u bits"
            "%s%s, %u snapshots, %u%% of tables copied", f->version, f->bits,
            f->order, f->extended ? ", extended" : "",
            f->backing ? ", backing" : "", f->snapshots, f->copied);
  build_start (&b, f->version, f->bits, f->extended, COMPRESSION_DEFLATE,
               disk_size);
  if (f->version >= 3)
    build_order (&b, f->order);
  if (f->order < 2)
    b.max_sharing = 1;
  for (kind = 0; kind < NR_KINDS; ++kind)
    add_kind (&b, kind);
  if (f->backing)
    build_backing (&b, "raw");
  for (i = 0; i < f->snapshots; ++i)
    build_snapshot (&b, f->copied, &state);
  build_finish (&b);
  rig_init (&rig, what, &b);
  build_free (&b);
  rig.cache_size = cache_bytes;
  if (f->backing) {
    /* It ends within the disk, and not at a cluster. */
    base = malloc (disk_size);
    build_pattern (base, disk_size, 1234);
    rig_set_base (&rig, base, disk_size - (tail ? 100 : cluster_size / 2 + 100),
                  true);
  }
  rig_open (&rig);
}

static void
unmake (void)
{
  rig_free (&rig);
  free (base);
  base = NULL;
}

static const struct form forms[] = {
  { 2, 16, false, 4, false, 0, 0 },
  { 2, 9, false, 4, true, 0, 0 },
  { 2, 12, false, 4, true, 2, 50 },
  { 3, 9, false, 0, true, 0, 0 },
  { 3, 12, false, 4, false, 0, 0 },
  { 3, 16, false, 3, true, 0, 0 },
  { 3, 16, false, 4, true, 1, 0 },
  { 3, 12, false, 6, false, 2, 100 },
  { 3, 14, true, 4, false, 0, 0 },
  { 3, 14, true, 1, true, 1, 0 },
  { 3, 16, true, 4, true, 0, 0 },
  { 3, 16, true, 5, true, 2, 60 },
};
#define NR_FORMS (sizeof forms / sizeof forms[0])

/* ------------------------------------------------------------- all of them */

enum request {
  WRITE,
  WRITE_FUA,
  ZERO_ALLOCATED,
  ZERO_TRIM,
  ZERO_FUA,
  TRIM,
  NR_REQUESTS,
};

static void
do_request (enum request request, uint64_t offset, uint64_t count)
{
  int r = 0;

  switch (request) {
  case WRITE:
    rig_write (&rig, offset, count, offset + 17);
    return;
  case WRITE_FUA:
    r = rig_try_write (&rig, offset, count, offset + 17, IMAGE_FUA);
    break;
  case ZERO_ALLOCATED:
    rig_zero (&rig, offset, count, 0);
    return;
  case ZERO_TRIM:
    rig_zero (&rig, offset, count, IMAGE_MAY_TRIM);
    return;
  case ZERO_FUA:
    r = rig_try_zero (&rig, offset, count, IMAGE_MAY_TRIM | IMAGE_FUA);
    break;
  case TRIM:
    rig_trim (&rig, offset, count);
    return;
  case NR_REQUESTS:
    abort ();
  }
  CHECK_OK (r);
}

/* Parts of a cluster, and more, from its start; of one of 64 KiB. */
static const struct { int64_t from, to; } parts[] = {
  { 0, 65536 },              /* all of it */
  { 0, 512 }, { 0, 30000 },  /* its head */
  { 65024, 65536 }, { 1, 65536 }, /* its tail */
  { 32768, 36864 },          /* a subcluster, or two */
  { 32769, 36863 }, { 777, 64000 }, /* nothing whole */
  { 40000, 40001 },
  { -32768, 65536 }, { -65536, 98304 }, { -1, 65537 }, /* more */
  { -65536, 131072 },
};
#define NR_PARTS (sizeof parts / sizeof parts[0])

static int64_t
scale (int64_t x)
{
  /* What is one byte off stays so. */
  const int64_t odd = x % 512 < 0 ? x % 512 + 512 : x % 512;
  const int64_t scaled = (x - odd) * (int64_t) cluster_size / 65536;

  return cluster_size == 512 ? scaled + odd / 2 : scaled + odd;
}

static void
test_part (enum request request, unsigned part)
{
  const int64_t from = scale (parts[part].from), to = scale (parts[part].to);
  enum kind kind;

  if (to <= from) { /* clusters are too small */
    rig_close (&rig);
    return;
  }
  for (kind = 0; kind < NR_KINDS; ++kind) {
    do_request (request, at_kind (kind) + from, to - from);
    if (kind % 3 == 0)
      rig_flush (&rig);
  }
  rig_compare (&rig);
  /* And once more, on what has become of them. */
  for (kind = 0; kind < NR_KINDS; ++kind)
    do_request ((request + 2) % NR_REQUESTS, at_kind (kind) + from, to - from);
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig); /* compares what is on disk to the model */
  rig_compare (&rig);
  rig_close (&rig);
}

static void
test_all (void)
{
  enum request request;
  unsigned f, part, nr = 0;

  for (f = 0; f < NR_FORMS; ++f) {
    for (request = 0; request < NR_REQUESTS; ++request) {
      for (part = 0; part < NR_PARTS && !check_any_failed (); ++part) {
        if (nr++ % TEST_EACH (11) != 0)
          continue;
        make (&forms[f], false);
        test_part (request, part);
        if (check_any_failed ())
          fprintf (stderr, "request %d, part %u (%" PRId64 " to %" PRId64
                   ")\n", request, part, scale (parts[part].from),
                   scale (parts[part].to));
        unmake ();
      }
    }
  }
}

/* The last cluster of the disk, which is not whole, and all of the disk. */
static void
test_tail_by (enum request request)
{
  const uint64_t count[] = { 512, 1, cluster_size, 2 * cluster_size - 1 };
  unsigned i;

  for (i = 0; i < 4; ++i) {
    do_request (request, disk_size - count[i], count[i]);
    do_request ((request + 1) % NR_REQUESTS, disk_size - count[i], count[i]);
    rig_compare_range (&rig, disk_size - 3 * cluster_size, 3 * cluster_size);
  }
  do_request (request, 0, disk_size);
  rig_compare (&rig);
  rig_close (&rig);
  rig_open (&rig);
  rig_compare (&rig);
  rig_close (&rig);
}

static void
test_tail (void)
{
  enum request request;
  unsigned f;

  for (f = 0; f < NR_FORMS; ++f) {
    for (request = 0; request < NR_REQUESTS; ++request) {
      make (&forms[f], true);
      test_tail_by (request);
      unmake ();
    }
  }
}

/* What the last host cluster holds past the end of the disk is zeros, not what
 * was in memory.
 */
static void
test_past_end (void)
{
  uint64_t past, host, i;
  unsigned f;

  for (f = 0; f < NR_FORMS; ++f) {
    make (&forms[f], true);
    past = disk_size % cluster_size;
    rig_write (&rig, disk_size - 5, 5, 1);
    host = rig_host (&rig, disk_size - 1) + 1;
    for (i = host; past != 0 && i < host + cluster_size - past; ++i)
      CHECK_EQ (rig.disk.data[i], 0);
    rig_close (&rig);
    unmake ();
  }
}

/* ------------------------------------------------------- what becomes of it */

static bool
is_zero_on_disk (uint64_t host, uint64_t count)
{
  uint64_t i;

  for (i = 0; i < count && rig.disk.data[host + i] == 0; ++i)
    ;
  return i == count;
}

/* Zeroing whole clusters of data: with and without MAY_TRIM. */
static void
test_zero_data (void)
{
  unsigned f;

  for (f = 0; f < NR_FORMS; ++f) {
    const bool v2 = forms[f].version == 2, shared = forms[f].snapshots > 0;
    uint64_t at, host;

    make (&forms[f], false);
    at = at_kind (DATA);
    host = rig_host (&rig, at);
    rig_zero (&rig, at, cluster_size, 0);
    if (v2 || !shared) /* the allocation is kept */
      CHECK_EQ (rig_kind (&rig, at), v2 ? RUN_DATA : RUN_ZERO_ALLOC);
    else
      CHECK_EQ (rig_kind (&rig, at), RUN_ZERO_PLAIN);
    if (!shared && v2)
      CHECK_EQ (rig_host (&rig, at), host);

    at = at_kind (DATA_BESIDE);
    host = rig_host (&rig, at);
    rig_zero (&rig, at, cluster_size, IMAGE_MAY_TRIM);
    CHECK_EQ (rig_kind (&rig, at), !v2 ? RUN_ZERO_PLAIN
              : forms[f].backing ? RUN_DATA : RUN_UNALLOCATED);
    CHECK_EQ (rig_kind (&rig, at - 1), RUN_DATA);
    CHECK_EQ (rig_kind (&rig, at + cluster_size), RUN_DATA);
    rig_close (&rig);
    if (!shared && !(v2 && forms[f].backing)) {
      CHECK (is_zero_on_disk (host, cluster_size));
      CHECK_EQ (rig_refcount (&rig, host), 0);
    }
    if (shared) { /* the snapshots still have it */
      CHECK (!is_zero_on_disk (host, cluster_size));
      CHECK (rig_refcount (&rig, host) >= forms[f].snapshots);
    }
    unmake ();
  }
}

/* A kept cluster of zeros is written in its old place, whatever it held. */
static void
test_write_kept (void)
{
  uint64_t at, host;

  make (&forms[4], false);
  at = at_kind (DATA);
  host = rig_host (&rig, at);
  rig_zero (&rig, at, cluster_size, 0);
  CHECK_EQ (rig_kind (&rig, at), RUN_ZERO_ALLOC);
  CHECK (!is_zero_on_disk (host, cluster_size));
  rig_write (&rig, at + 100, 10, 3);
  CHECK_EQ (rig_kind (&rig, at), RUN_DATA);
  CHECK_EQ (rig_host (&rig, at), host);
  rig_write (&rig, at_kind (ZERO_KEPT), 1, 3);
  rig_compare (&rig);
  rig_trim (&rig, at, cluster_size);
  CHECK_EQ (rig_kind (&rig, at), RUN_ZERO_PLAIN);
  rig_compare (&rig);
  rig_close (&rig);
  unmake ();
}

/* Subclusters are zeroed and trimmed each for itself; the last one takes the
 * host cluster with it.
 */
static void
test_subclusters (void)
{
  uint64_t at, host, sub, i;

  make (&forms[10], false);
  sub = cluster_size / 32;
  at = at_kind (DATA);
  host = rig_host (&rig, at);
  for (i = 0; i < 32; ++i) {
    CHECK_EQ (rig_kind (&rig, at + i * sub), RUN_DATA);
    if (i % 2)
      rig_trim (&rig, at + i * sub, sub);
    else
      rig_zero (&rig, at + i * sub, sub, IMAGE_MAY_TRIM);
    CHECK_EQ (rig_kind (&rig, at + i * sub), i < 31 ? RUN_ZERO_ALLOC
              : RUN_ZERO_PLAIN);
    rig_compare_range (&rig, at, cluster_size);
  }
  rig_flush (&rig);
  rig_flush (&rig);
  CHECK (is_zero_on_disk (host, cluster_size));

  /* A write allocates what it touches, and no more. */
  at = at_kind (NOTHING);
  rig.base_control.preads = 0;
  rig_write (&rig, at + 3 * sub, 2 * sub, 1);
  CHECK_EQ (rig.base_control.preads, 0);
  CHECK_EQ (rig_kind (&rig, at + 2 * sub), RUN_UNALLOCATED);
  CHECK_EQ (rig_kind (&rig, at + 3 * sub), RUN_DATA);
  CHECK_EQ (rig_kind (&rig, at + 5 * sub), RUN_UNALLOCATED);
  host = rig_host (&rig, at + 3 * sub);
  rig_write (&rig, at + 9 * sub + 5, 1, 1);
  CHECK_EQ (rig_host (&rig, at + 9 * sub), host + 6 * sub);
  CHECK_EQ (rig_kind (&rig, at + 8 * sub), RUN_UNALLOCATED);
  CHECK_EQ (rig_kind (&rig, at + 10 * sub), RUN_UNALLOCATED);
  rig_compare (&rig);
  rig_close (&rig);
  unmake ();
}

/* A cluster that is written anew gives up the old one: its refcount, and
 * those of all host clusters that compressed data touches.
 */
static void
test_replaced (void)
{
  uint64_t at, host, count;

  make (&forms[4], false);
  at = at_kind (COMPRESSED);
  CHECK_EQ (rig_kind (&rig, at), RUN_COMPRESSED);
  host = rig_host (&rig, at) & -cluster_size;
  count = rig_refcount (&rig, host);
  CHECK (count == 2); /* it shares it */
  rig_write (&rig, at + 10, 10, 1);
  CHECK_EQ (rig_kind (&rig, at), RUN_DATA);
  rig_flush (&rig);
  rig_flush (&rig);
  CHECK_EQ (rig_refcount (&rig, host), 1);
  rig_write (&rig, at_kind (COMPRESSED_TOO), cluster_size, 2);
  rig_flush (&rig);
  rig_flush (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  CHECK_EQ (rig_refcount (&rig, host), 0);
  unmake ();
}

static struct memory_log call_log = MEMORY_LOG_INIT;

/* The waits of a request and a flush, with a cache in which changes have room
 * until then.
 */
static unsigned
flushes_of (uint64_t offset, uint64_t count, bool trim)
{
  unsigned nr = 0;
  size_t i;

  rig.control.log = &call_log;
  memory_log_clear (&call_log);
  if (trim)
    rig_trim (&rig, offset, count);
  else
    rig_write (&rig, offset, count, 1);
  rig_flush (&rig);
  rig.control.log = NULL;
  for (i = 0; i < call_log.nr; ++i)
    nr += call_log.call[i].kind == MEMORY_FLUSH;
  return nr;
}

/* I5: where the mapping would expose something else than zeros, or is a table
 * that was copied, what it points to is durable before it.
 */
static void
test_ordered (void)
{
  uint64_t free_place;

  make (&forms[5], false); /* over a backing file */
  free_place = at_kind (NO_TABLE) + cluster_size;
  rig_write (&rig, free_place, 512, 1); /* there is a durable reserve then */
  rig_flush (&rig);
  CHECK_EQ (flushes_of (at_kind (NOTHING) + 700, 600, false), 2);
  CHECK_EQ (flushes_of (at_kind (NOTHING) + 700, 600, false), 1);
  CHECK_EQ (flushes_of (at_kind (COMPRESSED), 512, false), 2);
  CHECK_EQ (flushes_of (at_kind (DATA), cluster_size, true), 1);
  rig_close (&rig);
  unmake ();

  make (&forms[6], false); /* a snapshot has the table */
  CHECK_EQ (flushes_of (at_kind (DATA), cluster_size, true), 2);
  CHECK_EQ (flushes_of (at_kind (ZERO_KEPT), cluster_size, true), 1);
  CHECK_EQ (flushes_of (at_kind (DATA_BESIDE), 512, false), 2);
  rig_close (&rig);
  unmake ();
}

/* I4, I6: old data stays as it is until the flush has made the new mapping
 * durable; then there is a hole, and the next flush lowers the refcount.
 */
static void
check_given_up (const struct form *f, enum kind kind, bool trim)
{
  uint64_t host, last = 0, punched = 0;
  size_t i;

  make (f, false);
  host = rig_host (&rig, at_kind (kind)) & -cluster_size;
  CHECK_EQ (rig_refcount (&rig, host), 1);
  (void) flushes_of (at_kind (kind), cluster_size, trim);
  for (i = 0; i < call_log.nr; ++i) {
    const struct memory_call *c = &call_log.call[i];

    if (c->kind == MEMORY_FLUSH)
      last = i;
    if (c->kind == MEMORY_ZERO && c->offset <= host &&
        host < c->offset + c->count && punched == 0)
      punched = i;
  }
  CHECK (punched > last);
  CHECK_EQ (rig_refcount (&rig, host), 1);
  rig_flush (&rig);
  CHECK_EQ (rig_refcount (&rig, host), 0);
  rig_close (&rig);
  unmake ();
}

static void
test_given_up_last (void)
{
  check_given_up (&forms[4], DATA, true);
  check_given_up (&forms[3], DATA, true);
  check_given_up (&forms[3], COMPRESSED, false); /* alone where it is */
  check_given_up (&forms[3], COMPRESSED, true);
  memory_log_free (&call_log);
}

/* Entries of a table that a snapshot has as well say that their clusters
 * are nobody else's: that counts for nothing, neither in place nor in the
 * table's copy.
 */
static void
test_stale_copied (void)
{
  uint64_t table, word, i;

  make (&forms[6], false);
  rig_close (&rig);
  table = get_be64 (rig.disk.data + get_be64 (rig.disk.data + 40)) &
    QCOW2_ENTRY_OFFSET_MASK;
  for (i = 0; i < disk_size / cluster_size; ++i) {
    word = get_be64 (rig.disk.data + table + 8 * i);
    if ((word & QCOW2_ENTRY_OFFSET_MASK) && !(word & QCOW2_L2_COMPRESSED))
      put_be64 (rig.disk.data + table + 8 * i, word | QCOW2_ENTRY_COPIED);
  }
  rig_open (&rig);
  rig_write (&rig, at_kind (DATA) + 1000, 1000, 5);
  rig_write (&rig, at_kind (DATA_BESIDE), 1000, 5);
  rig_zero (&rig, at_kind (DATA_BESIDE) + cluster_size, cluster_size, 0);
  rig_write (&rig, at_kind (ZERO_KEPT), 1000, 5);
  rig_compare (&rig);
  rig_close (&rig); /* which looks at the flags */
  unmake ();
}

/* FAST: fails, changing nothing, exactly where zeros would be written. */
static void
check_fast (uint64_t offset, uint64_t count, unsigned flags, bool fast)
{
  const uint64_t writes = rig.control.writes;
  const int r = rig_try_zero (&rig, offset, count, flags | IMAGE_FAST);

  if (r == -1) {
    CHECK_ERROR (ENOTSUP, "zeros would have to be written");
    CHECK_EQ (rig.control.writes, writes);
  }
  if ((r == 0) != fast)
    check_failed (__FILE__, __LINE__, "%s: offset 0x%" PRIx64 ", 0x%" PRIx64
                  " bytes: %s", rig.what, offset, count, r == 0 ? "fast"
                  : error_message ());
}

static void
test_fast (void)
{
  unsigned f;
  enum kind kind;

  for (f = 0; f < NR_FORMS; ++f) {
    const bool v2 = forms[f].version == 2, backing = forms[f].backing;

    make (&forms[f], false);
    for (kind = 0; kind < NO_TABLE; ++kind) {
      const uint64_t at = at_kind (kind);
      const bool zero = (kind == ZERO || kind == ZERO_KEPT) && !v2;
      const bool reads_as_zeros = zero ||
        (rig_kind (&rig, at) == RUN_UNALLOCATED && !backing &&
         kind != MIXED && kind != MIXED_NO_HOST);

      /* A part of a granule. */
      if (kind != MIXED && kind != MIXED_NO_HOST)
        check_fast (at + 5, 20, IMAGE_MAY_TRIM, reads_as_zeros);
      /* A whole cluster. */
      if (!v2)
        check_fast (at, cluster_size, kind % 2 ? IMAGE_MAY_TRIM : 0, true);
      else
        check_fast (at, cluster_size, IMAGE_MAY_TRIM, !backing);
      rig_compare_range (&rig, at - cluster_size, 3 * cluster_size);
    }
    rig_compare (&rig);
    rig_close (&rig);
    unmake ();
  }

  /* Part of a compressed cluster, in whole subclusters. */
  make (&forms[8], false);
  check_fast (at_kind (COMPRESSED), cluster_size / 2, 0, false);
  check_fast (at_kind (COMPRESSED) + cluster_size / 2, cluster_size, 0,
              false);
  check_fast (at_kind (COMPRESSED), cluster_size, 0, true);
  rig_compare (&rig);
  rig_close (&rig);
  unmake ();
}

/* discard=keep: not one hole is punched. */
static void
test_keep_discarded (void)
{
  const struct writer_options keep = { .keep_discarded = true };
  unsigned f;

  for (f = 0; f < NR_FORMS; ++f) {
    make (&forms[f], true);
    rig_close (&rig);
    rig.options = keep;
    rig_open (&rig);
    rig.control.punches = 0;
    rig_zero (&rig, 0, disk_size, IMAGE_MAY_TRIM);
    rig_flush (&rig);
    rig_compare (&rig);
    rig_write (&rig, 100, 20 * cluster_size, 3);
    rig_trim (&rig, 0, disk_size);
    rig_write (&rig, 700, 30 * cluster_size, 4);
    rig_compare (&rig);
    rig_close (&rig);
    CHECK_EQ (rig.control.punches, 0);
    unmake ();
  }
}

/* Trimming all of it, and closing, leaves little of the file. */
static void
test_trim_all (void)
{
  unsigned f;

  for (f = 0; f < NR_FORMS; ++f) {
    uint64_t blocks;

    if (forms[f].snapshots > 0 || forms[f].version == 2)
      continue;
    make (&forms[f], false);
    rig_write (&rig, 0, disk_size, 1);
    rig_flush (&rig);
    blocks = rig.disk.blocks;
    rig_trim (&rig, 0, disk_size);
    rig_flush (&rig);
    rig_flush (&rig);
    if (cluster_size >= 4096)
      CHECK (rig.disk.blocks + disk_size / 4096 <= blocks + 64);
    rig_compare (&rig);
    rig_close (&rig);
    unmake ();
  }
}

/* The same cluster written and trimmed again and again: the file stays as it
 * is.
 */
static void
test_no_growth (void)
{
  uint64_t size = 0;
  unsigned i;

  make (&forms[4], false);
  for (i = 0; i < 3000 / TEST_EACH (5); ++i) {
    rig_write (&rig, at_kind (NOTHING), cluster_size, i);
    if (i % 3)
      rig_flush (&rig);
    rig_trim (&rig, at_kind (NOTHING), cluster_size);
    if (i % 3 != 1)
      rig_flush (&rig);
    if (i == 300)
      size = atomic_load (&rig.disk.size);
  }
  CHECK (atomic_load (&rig.disk.size) <= size + 64 * cluster_size);
  rig_compare (&rig);
  rig_close (&rig);
  unmake ();
}

/* 100 GiB of zeros, and nothing below: at once; and over a backing file with
 * few calls.
 */
static void
test_zero_large (void)
{
  const uint64_t size = UINT64_C (100) << 30;
  struct builder b;
  uint8_t sector[512] = { 1 }, buf[512];
  struct storage *s[2];
  struct memory_disk disk;
  struct memory_control control;
  struct image *im;
  struct layer *live;
  const struct writer_options options = { 0 };
  int backing;

  for (backing = 0; backing < 2; ++backing) {
    build_start (&b, 3, 16, false, COMPRESSION_DEFLATE, size);
    if (backing)
      build_backing (&b, "raw");
    build_finish (&b);
    memset (&control, 0, sizeof control);
    memory_disk_init (&disk, b.data, b.size);
    s[0] = memory_disk_open (&disk, "test", &control);
    control.size = size; /* this one is only looked at once it is opened */
    s[1] = memory_storage_new ("base", sector, 512, &control);
    control.size = 0;
    im = image_open_storages (s, 1 + backing, IMAGE_DEFAULT_CACHE_SIZE);
    CHECK_OK (image_make_writable (im, &options));
    CHECK_OK (image_zero (im, size, (struct guest_off) { 0 },
                          IMAGE_MAY_TRIM | IMAGE_FAST));
    CHECK_OK (image_flush (im));
    live = image_open_disk (im, "");
    CHECK_OK (layer_read (live, buf, 512, (struct guest_off) { 0 }));
    CHECK_EQ (buf[0], 0);
    image_close_disk (live);
    CHECK (control.calls < (backing ? 4000 : 25));
    CHECK_OK (image_close (im));
    image_check_clean ("100 GiB", disk.data, atomic_load (&disk.size));
    if (!backing)
      storage_close (s[1]);
    memory_disk_free (&disk);
    build_free (&b);
  }
}

int
main (void)
{
  check_time_limit (300);
  test_past_end ();
  test_zero_data ();
  test_write_kept ();
  test_subclusters ();
  test_replaced ();
  cache_bytes = 1 << 20;
  test_ordered ();
  test_given_up_last ();
  cache_bytes = CACHE_MIN_BYTES;
  test_stale_copied ();
  test_fast ();
  test_keep_discarded ();
  test_trim_all ();
  test_no_growth ();
  test_zero_large ();
  test_tail ();
  test_all ();
  return check_result ();
}
