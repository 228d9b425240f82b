/* SPDX-License-Identifier: BSD-3-Clause */

/* qcow2/write/write.c and qcow2/write/zero.c: what becomes of the clusters that
 * requests meet, in which order, and of those that they give up.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/bytes.h"
#include "check.h"
#include "disk/read.h"
#include "image-check.h"
#include "kinds-rig.h"
#include "seconds.h"

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

  for (f = 0; f < KINDS_FORMS; ++f) {
    const bool v2 = kinds_forms[f].version == 2;
    const bool shared = kinds_forms[f].snapshots > 0;
    uint64_t at, host;

    kinds_make (&kinds_forms[f], false);
    at = kinds_at (DATA);
    host = rig_host (&rig, at);
    rig_zero (&rig, at, cluster_size, 0);
    if (v2 || !shared) /* the allocation is kept */
      CHECK_EQ (rig_kind (&rig, at), v2 ? RUN_DATA : RUN_ZERO_ALLOC);
    else
      CHECK_EQ (rig_kind (&rig, at), RUN_ZERO_PLAIN);
    if (!shared && v2)
      CHECK_EQ (rig_host (&rig, at), host);

    at = kinds_at (DATA_BESIDE);
    host = rig_host (&rig, at);
    rig_zero (&rig, at, cluster_size, IMAGE_MAY_TRIM);
    CHECK_EQ (rig_kind (&rig, at), !v2 ? RUN_ZERO_PLAIN
              : kinds_forms[f].backing ? RUN_DATA : RUN_UNALLOCATED);
    CHECK_EQ (rig_kind (&rig, at - 1), RUN_DATA);
    CHECK_EQ (rig_kind (&rig, at + cluster_size), RUN_DATA);
    rig_close (&rig);
    if (!shared && !(v2 && kinds_forms[f].backing)) {
      CHECK (is_zero_on_disk (host, cluster_size));
      CHECK_EQ (rig_refcount (&rig, host), 0);
    }
    if (shared) { /* the snapshots still have it */
      CHECK (!is_zero_on_disk (host, cluster_size));
      CHECK (rig_refcount (&rig, host) >= kinds_forms[f].snapshots);
    }
    kinds_unmake ();
  }
}

/* A kept cluster of zeros is written in its old place, whatever it held. */
static void
test_write_kept (void)
{
  uint64_t at, host;

  kinds_make (&kinds_forms[4], false);
  at = kinds_at (DATA);
  host = rig_host (&rig, at);
  rig_zero (&rig, at, cluster_size, 0);
  CHECK_EQ (rig_kind (&rig, at), RUN_ZERO_ALLOC);
  CHECK (!is_zero_on_disk (host, cluster_size));
  rig_write (&rig, at + 100, 10, 3);
  CHECK_EQ (rig_kind (&rig, at), RUN_DATA);
  CHECK_EQ (rig_host (&rig, at), host);
  rig_write (&rig, kinds_at (ZERO_KEPT), 1, 3);
  rig_compare (&rig);
  rig_trim (&rig, at, cluster_size);
  CHECK_EQ (rig_kind (&rig, at), RUN_ZERO_PLAIN);
  rig_compare (&rig);
  rig_close (&rig);
  kinds_unmake ();
}

/* Subclusters are zeroed and trimmed each for itself; the last one takes the
 * host cluster with it.
 */
static void
test_subclusters (void)
{
  uint64_t at, host, sub, i;

  kinds_make (&kinds_forms[10], false);
  sub = cluster_size / 32;
  at = kinds_at (DATA);
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
  at = kinds_at (NOTHING);
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
  kinds_unmake ();
}

/* A cluster that is written anew gives up the old one: its refcount, and
 * those of all host clusters that compressed data touches.
 */
static void
test_replaced (void)
{
  uint64_t at, host, count;

  kinds_make (&kinds_forms[4], false);
  at = kinds_at (COMPRESSED);
  CHECK_EQ (rig_kind (&rig, at), RUN_COMPRESSED);
  host = rig_host (&rig, at) & -cluster_size;
  count = rig_refcount (&rig, host);
  CHECK (count == 2); /* it shares it */
  rig_write (&rig, at + 10, 10, 1);
  CHECK_EQ (rig_kind (&rig, at), RUN_DATA);
  rig_flush (&rig);
  rig_flush (&rig);
  CHECK_EQ (rig_refcount (&rig, host), 1);
  rig_write (&rig, kinds_at (COMPRESSED_TOO), cluster_size, 2);
  rig_flush (&rig);
  rig_flush (&rig);
  rig_compare (&rig);
  rig_close (&rig);
  CHECK_EQ (rig_refcount (&rig, host), 0);
  kinds_unmake ();
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

  kinds_make (&kinds_forms[5], false); /* over a backing file */
  free_place = kinds_at (NO_TABLE) + cluster_size;
  rig_write (&rig, free_place, 512, 1); /* there is a durable reserve then */
  rig_flush (&rig);
  CHECK_EQ (flushes_of (kinds_at (NOTHING) + 700, 600, false), 2);
  CHECK_EQ (flushes_of (kinds_at (NOTHING) + 700, 600, false), 1);
  CHECK_EQ (flushes_of (kinds_at (COMPRESSED), 512, false), 2);
  CHECK_EQ (flushes_of (kinds_at (DATA), cluster_size, true), 1);
  rig_close (&rig);
  kinds_unmake ();

  kinds_make (&kinds_forms[6], false); /* a snapshot has the table */
  CHECK_EQ (flushes_of (kinds_at (DATA), cluster_size, true), 2);
  CHECK_EQ (flushes_of (kinds_at (ZERO_KEPT), cluster_size, true), 1);
  CHECK_EQ (flushes_of (kinds_at (DATA_BESIDE), 512, false), 2);
  rig_close (&rig);
  kinds_unmake ();
}

/* I4, I6: old data stays as it is until the flush has made the new mapping
 * durable; then there is a hole, and the next flush lowers the refcount.
 */
static void
check_given_up (const struct kinds_form *f, enum kind kind, bool trim)
{
  uint64_t host, last = 0, punched = 0;
  size_t i;

  kinds_make (f, false);
  host = rig_host (&rig, kinds_at (kind)) & -cluster_size;
  CHECK_EQ (rig_refcount (&rig, host), 1);
  (void) flushes_of (kinds_at (kind), cluster_size, trim);
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
  kinds_unmake ();
}

static void
test_given_up_last (void)
{
  check_given_up (&kinds_forms[4], DATA, true);
  check_given_up (&kinds_forms[3], DATA, true);
  check_given_up (&kinds_forms[3], COMPRESSED, false); /* alone where it is */
  check_given_up (&kinds_forms[3], COMPRESSED, true);
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

  kinds_make (&kinds_forms[6], false);
  rig_close (&rig);
  table = get_be64 (rig.disk.data + get_be64 (rig.disk.data + 40)) &
    QCOW2_ENTRY_OFFSET_MASK;
  for (i = 0; i < disk_size / cluster_size; ++i) {
    word = get_be64 (rig.disk.data + table + 8 * i);
    if ((word & QCOW2_ENTRY_OFFSET_MASK) && !(word & QCOW2_L2_COMPRESSED))
      put_be64 (rig.disk.data + table + 8 * i, word | QCOW2_ENTRY_COPIED);
  }
  rig_open (&rig);
  rig_write (&rig, kinds_at (DATA) + 1000, 1000, 5);
  rig_write (&rig, kinds_at (DATA_BESIDE), 1000, 5);
  rig_zero (&rig, kinds_at (DATA_BESIDE) + cluster_size, cluster_size, 0);
  rig_write (&rig, kinds_at (ZERO_KEPT), 1000, 5);
  rig_compare (&rig);
  rig_close (&rig); /* which looks at the flags */
  kinds_unmake ();
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

  for (f = 0; f < KINDS_FORMS; ++f) {
    const bool v2 = kinds_forms[f].version == 2;
    const bool backing = kinds_forms[f].backing;

    kinds_make (&kinds_forms[f], false);
    for (kind = 0; kind < NO_TABLE; ++kind) {
      const uint64_t at = kinds_at (kind);
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
    kinds_unmake ();
  }

  /* Part of a compressed cluster, in whole subclusters. */
  kinds_make (&kinds_forms[8], false);
  check_fast (kinds_at (COMPRESSED), cluster_size / 2, 0, false);
  check_fast (kinds_at (COMPRESSED) + cluster_size / 2, cluster_size, 0,
              false);
  check_fast (kinds_at (COMPRESSED), cluster_size, 0, true);
  rig_compare (&rig);
  rig_close (&rig);
  kinds_unmake ();
}

/* discard=keep: not one hole is punched. */
static void
test_keep_discarded (void)
{
  const struct writer_options keep = { .keep_discarded = true };
  unsigned f;

  for (f = 0; f < KINDS_FORMS; ++f) {
    kinds_make (&kinds_forms[f], true);
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
    kinds_unmake ();
  }
}

/* Trimming all of it, and closing, leaves little of the file. */
static void
test_trim_all (void)
{
  unsigned f;

  for (f = 0; f < KINDS_FORMS; ++f) {
    uint64_t blocks;

    if (kinds_forms[f].snapshots > 0 || kinds_forms[f].version == 2)
      continue;
    kinds_make (&kinds_forms[f], false);
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
    kinds_unmake ();
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

  kinds_make (&kinds_forms[4], false);
  for (i = 0; i < 3000 / TEST_EACH (5); ++i) {
    rig_write (&rig, kinds_at (NOTHING), cluster_size, i);
    if (i % 3)
      rig_flush (&rig);
    rig_trim (&rig, kinds_at (NOTHING), cluster_size);
    if (i % 3 != 1)
      rig_flush (&rig);
    if (i == 300)
      size = atomic_load (&rig.disk.size);
  }
  CHECK (atomic_load (&rig.disk.size) <= size + 64 * cluster_size);
  rig_compare (&rig);
  rig_close (&rig);
  kinds_unmake ();
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
  test_zero_data ();
  test_write_kept ();
  test_subclusters ();
  test_replaced ();
  kinds_cache_bytes = 1 << 20;
  test_ordered ();
  test_given_up_last ();
  kinds_cache_bytes = CACHE_MIN_BYTES;
  test_stale_copied ();
  test_fast ();
  test_keep_discarded ();
  test_trim_all ();
  test_no_growth ();
  test_zero_large ();
  return check_result ();
}
