/* SPDX-License-Identifier: BSD-3-Clause */

/* Differences to the verdict of `qemu-img check':
 *
 * what                         there                   here
 * ---------------------------  ----------------------  ----------------------
 * data or tables in metadata   nothing, if the         corruption: the next
 *                              refcount agrees         write destroys either
 * zero flag in version 2       nothing, and a read     corruption
 *                              fails
 * compressed entry that has    corruption; its data    corruption; its data
 * subclusters                  are leaks               are in use, since
 *                                                      reads return them
 * bitmap directory damaged     can't be opened         corruption, and the
 *                                                      rest is checked
 * bitmap with extra data       can't be opened         fine, as Spec has it
 * bits or a table of bitmaps   nothing, and they read  corruption
 * that the file's end cuts off as zeros
 * more than 1000 unaligned     all are followed        1000 of them are, or
 * L2 tables                                            16 MiB
 * more than 100 entries of     all refcounts of all    those of 100 of them
 * the refcount table with a    of them are compared    are; the others are
 * block of another one                                 corruptions
 * tables of snapshots or       all are counted         refused, if that is
 * bitmaps claim more of the                            more than 2^20 clusters
 * file than it holds                                   and what it holds
 * more than 2^31 clusters      not checked             checked
 * extra data of a snapshot of  can't be checked, only  corruption
 * more than 1024 bytes         repaired
 * encryption with a data file  checked                 not supported
 * data file, and an entry of   nothing, and a read     corruption
 * a cluster elsewhere in it    fails
 * data file and snapshots      corruption              can't be checked
 * an offset of 2^63 and more   some are an error of    beyond the end of the
 * in the snapshot table        the check itself        file
 */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/check/check.h"
#include "qcow2/check/fix-up.h"
#include "qcow2/check/walk.h"

/* ---------------------------------------------------- counting: L2 entries */

/* An L2 table that is being looked at. */
struct table {
  struct check *c;
  struct host_off table;
  struct check_paths paths;
  uint64_t judged;   /* paths for which COPIED flags are judged */
  bool first;        /* judge everything else, too */
  uint64_t followed; /* where contiguous data would go on; 0: nowhere */
};

/* The table that was looked at last, more of which may follow. */
struct part {
  uint64_t table;
  uint64_t end;
  uint64_t followed;
};

static int
count_compressed (struct table *t, struct host_off place, uint64_t word,
                  uint64_t bitmap)
{
  struct check *c = t->c;
  struct check_report *r = &c->findings.report;
  uint64_t offset, bytes;

  if (t->first && (word & QCOW2_ENTRY_COPIED))
    check_found (&c->findings, CHECK_COMPRESSED, t->paths.all, "L2 entry at "
                 "0x%" PRIx64 " (0x%016" PRIx64 "): compressed and COPIED",
                 place.v, word);
  if (t->first && bitmap != 0)
    check_found (&c->findings, CHECK_COMPRESSED, t->paths.all, "L2 entry at "
                 "0x%" PRIx64 " (0x%016" PRIx64 "): compressed, and has "
                 "subclusters", place.v, word);
  if (c->format.data_file) {
    if (t->first)
      check_found (&c->findings, CHECK_COMPRESSED, t->paths.all, "L2 entry at "
                   "0x%" PRIx64 " (0x%016" PRIx64 "): compressed, and the "
                   "data are in an external file", place.v, word);
    return 0;
  }
  if (t->first && bitmap == 0) {
    r->allocated_clusters += t->paths.active;
    r->compressed_clusters += t->paths.active;
    r->fragmented_clusters += t->paths.active;
  }
  check_compressed_range (&c->format, word, &offset, &bytes);
  return check_refer (c, USE_DATA, place, offset, bytes,
                      t->paths.all) == -1 ? -1 : 0;
}

static void
judge_standard (struct table *t, struct host_off place, uint64_t word,
                uint64_t bitmap, uint64_t offset)
{
  struct check *c = t->c;
  struct check_report *r = &c->findings.report;

  if ((bitmap >> 32 & bitmap) != 0)
    check_found (&c->findings, CHECK_SUBCLUSTERS, t->paths.all, "L2 entry at "
                 "0x%" PRIx64 " (0x%016" PRIx64 "): subclusters are both "
                 "allocated and zero", place.v, word);
  if (offset % c->h.cluster_size != 0)
    check_found (&c->findings, CHECK_UNALIGNED, t->paths.all, "L2 entry at "
                 "0x%" PRIx64 " (0x%016" PRIx64 "): the offset is not "
                 "aligned", place.v, word);
  r->allocated_clusters += t->paths.active;
  if (t->followed != 0 && offset != t->followed)
    r->fragmented_clusters += t->paths.active;
  t->followed = offset + c->h.cluster_size;
}

static int
count_standard (struct table *t, struct host_off place, uint64_t word,
                uint64_t bitmap)
{
  struct check *c = t->c;
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;
  const uint64_t cluster = offset >> c->h.cluster_bits;
  struct counts_chunk *chunk = NULL;
  int r = 1;

  if (t->first)
    judge_standard (t, place, word, bitmap, offset);
  if (c->format.data_file)
    return 0;
  if (offset % c->h.cluster_size == 0 && offset < c->file_size) {
    if (check_refer_cluster (c, USE_DATA, cluster, t->paths.all,
                             &chunk) == -1)
      return -1;
  }
  else {
    r = check_refer (c, USE_DATA, place, offset, c->h.cluster_size,
                     t->paths.all);
    if (r == -1)
      return -1;
    if (r == 1 && counts_in_window (&c->counts, cluster))
      chunk = counts_find (&c->counts, cluster);
  }
  return check_copied (c, place, word, cluster, chunk, r == 0, t->judged);
}

/* Data in a file of its own has no refcounts; where it is, and that nothing
 * else refers to it, is known.
 */
static void
judge_external (struct table *t, struct host_off place, uint64_t word)
{
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;
  struct check *c = t->c;

  if (offset != check_guest_of (c, t->table, place))
    check_found (&c->findings, CHECK_EXTERNAL, t->paths.all, "L2 entry at 0x%"
                 PRIx64 " (0x%016" PRIx64 "): the offset in the external data "
                 "file is not the guest's", place.v, word);
  if (!(word & QCOW2_ENTRY_COPIED) && t->judged > 0)
    check_found (&c->findings, CHECK_COPIED, t->judged, "entry at 0x%" PRIx64
                 " (0x%016" PRIx64 "): COPIED is not set, and the data are in "
                 "an external file", place.v, word);
}

/* The first cluster of an external data file is at 0.  That of a preallocated
 * cluster is not judged, as by QEMU.
 */
static bool
refers_to_cluster (const struct check *c, uint64_t word)
{
  if ((word & QCOW2_ENTRY_OFFSET_MASK) != 0)
    return true;
  return c->format.data_file && (word & QCOW2_ENTRY_COPIED) &&
    (c->h.extended_l2 || !(word & QCOW2_L2_ZERO));
}

static void
judge_bits (struct table *t, struct host_off place, uint64_t word,
            uint64_t bitmap)
{
  struct check *c = t->c;

  if (word & L2_RESERVED)
    check_found (&c->findings, CHECK_RESERVED, t->paths.all, "L2 entry at 0x%"
                 PRIx64 " (0x%016" PRIx64 "): reserved bits are set", place.v,
                 word);
  if (c->h.version < 3 && (word & QCOW2_L2_ZERO))
    check_found (&c->findings, CHECK_UNREADABLE, t->paths.all, "L2 entry at "
                 "0x%" PRIx64 " (0x%016" PRIx64 "): the zero flag is set in "
                 "version 2", place.v, word);
  if (!refers_to_cluster (c, word) && (bitmap & UINT32_MAX) != 0)
    check_found (&c->findings, CHECK_SUBCLUSTERS, t->paths.all, "L2 entry at "
                 "0x%" PRIx64 " (0x%016" PRIx64 "): subclusters are allocated "
                 "without a cluster", place.v, word);
}

static int
count_entry (struct table *t, struct host_off place, uint64_t word,
             uint64_t bitmap)
{
  struct check *c = t->c;

  if (c->fixed_up) {
    uint64_t words[2] = { word, bitmap };

    check_fix_l2 (&c->format, c->file_size,
                   check_guest_of (c, t->table, place), words);
    word = words[0];
    bitmap = words[1];
  }
  if (word & QCOW2_L2_COMPRESSED)
    return count_compressed (t, place, word, bitmap);
  if (t->first)
    judge_bits (t, place, word, bitmap);
  if (!refers_to_cluster (c, word))
    return 0;
  if (t->first && c->format.data_file)
    judge_external (t, place, word);
  return count_standard (t, place, word, bitmap);
}

static int
count_l2 (struct check *c, void *opaque, struct host_off table,
          struct host_off place, uint8_t *words, size_t bytes,
          struct check_paths paths)
{
  const size_t entry_size = c->h.extended_l2 ? 16 : 8;
  const uint64_t cluster = table.v >> c->h.cluster_bits;
  struct part *part = opaque;
  const bool goes_on = part->table == table.v && place.v >= part->end;
  struct table t = {
    .c = c,
    .table = table,
    .paths = paths,
    .judged = paths.active,
    .first = check_is_first (c),
    .followed = goes_on ? part->followed : 0,
  };
  size_t i;

  /* qemu-img does not judge COPIED flags then. */
  if (c->fixed_up || table.v == 0 ||
      !check_refcount_readable (&c->refcounts, cluster))
    t.judged = 0;
  for (i = 0; i < bytes; i += entry_size) {
    const uint64_t word = get_be64 (words + i);
    const uint64_t bitmap = c->h.extended_l2 ? get_be64 (words + i + 8) : 0;

    if ((word | bitmap) != 0 &&
        count_entry (&t, (struct host_off) { place.v + i }, word,
                     bitmap) == -1)
      return -1;
  }
  *part = (struct part) { table.v, place.v + bytes, t.followed };
  return 0;
}

/* ---------------------------------------------------- counting: L1 entries */

static int
count_l1_word (struct check *c, struct host_off place, uint64_t word,
               struct check_paths paths)
{
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;
  const uint64_t cluster = offset >> c->h.cluster_bits;
  struct counts_chunk *chunk = NULL;
  int r;

  if (check_is_first (c) && (word & L1_RESERVED))
    check_found (&c->findings, CHECK_RESERVED, paths.all, "L1 entry at 0x%"
                 PRIx64 " (0x%016" PRIx64 "): reserved bits are set", place.v,
                 word);
  if (check_is_first (c) && offset % c->h.cluster_size != 0)
    check_found (&c->findings, CHECK_UNALIGNED, paths.all, "L1 entry at 0x%"
                 PRIx64 " (0x%016" PRIx64 "): the offset is not aligned",
                 place.v, word);
  r = check_refer (c, USE_L2, place, offset, c->h.cluster_size, paths.all);
  if (r == -1)
    return -1;
  if (r == 1 && counts_in_window (&c->counts, cluster))
    chunk = counts_find (&c->counts, cluster);
  if (c->fixed_up || offset == 0)
    return 0;
  return check_copied (c, place, word, cluster, chunk, r == 0, paths.active);
}

static int
count_l1 (struct check *c, void *opaque, struct host_off place,
          uint8_t *words, size_t bytes, struct check_paths paths)
{
  size_t i;

  for (i = 0; i < bytes; i += 8) {
    uint64_t word = get_be64 (words + i);

    if (word == 0)
      continue;
    if (c->fixed_up) {
      word = check_fix_l1 (&c->format, c->file_size, word);
      put_be64 (words + i, word);
      if (word == 0)
        continue;
    }
    if (count_l1_word (c, (struct host_off) { place.v + i }, word,
                       paths) == -1)
      return -1;
  }
  return 0;
}

/* ----------------------------------------------- counting: refcount blocks */

static void
bad_block (struct check *c, uint64_t index, const char *why)
{
  if (check_is_first (c))
    check_found (&c->findings, CHECK_REFCOUNT_BLOCK, 1, "refcount table entry "
                 "%" PRIu64 " (0x%016" PRIx64 "): %s", index,
                 c->refcounts.table[index], why);
}

/* Everything else has been counted before. */
static int
count_block (struct check *c, uint64_t index, uint64_t block)
{
  const uint64_t cluster = block >> c->h.cluster_bits;
  const struct host_off place = { c->refcounts.offset.v + 8 * index };
  struct counts_chunk *k;

  if (check_refer (c, USE_REFCOUNT_BLOCK, place, block, c->h.cluster_size,
                   1) == -1)
    return -1;
  if (c->fixed_up || !counts_in_window (&c->counts, cluster))
    return 0;
  k = counts_find (&c->counts, cluster);
  if (k == NULL || counts_get (&c->counts, k, cluster) != 1)
    check_found (&c->findings, CHECK_REFCOUNT_BLOCK, 1, "refcount block %"
                 PRIu64 " at 0x%" PRIx64 ": it is used as something else as "
                 "well", index, block);
  return 0;
}

static int
count_refcounts (struct check *c)
{
  const struct check_refcounts *r = &c->refcounts;
  const struct host_off field = { HEADER_REFCOUNT_TABLE_OFFSET };
  size_t n;

  if (check_refer (c, USE_REFCOUNT_TABLE, field, r->offset.v, 8 * r->entries,
                   1) == -1)
    return -1;
  if (r->ignored > 0 && check_is_first (c))
    check_found (&c->findings, CHECK_REFCOUNT_BLOCK, r->ignored, "%" PRIu64
                 " more entries of the refcount table have a block that "
                 "another one has", r->ignored);
  for (n = 0; n < r->nr_used; ++n) {
    const uint64_t i = r->used[n];
    const uint64_t block = check_block_offset (r, i);

    if (r->table[i] & REFCOUNT_TABLE_RESERVED)
      bad_block (c, i, "reserved bits are set");
    else if (block % c->h.cluster_size != 0)
      bad_block (c, i, "the block's offset is not aligned");
    else if (block >> c->h.cluster_bits >= c->nr)
      bad_block (c, i, "the block is beyond the end of the file");
    else if (count_block (c, i, block) == -1)
      return -1;
  }
  return 0;
}

/* -------------------------------------------------------------- the counts */

/* The order does not matter, except that blocks come last. */
static int
count_all (struct check *c)
{
  struct part part = { 0, 0, 0 };
  const struct check_visitor visitor = {
    .l1 = count_l1, .l2 = count_l2, .opaque = &part,
  };
  const struct host_off zero = { 0 };
  struct check_ranges l1s;
  int r;

  if (check_refer (c, USE_HEADER, zero, 0, c->h.cluster_size, 1) == -1 ||
      check_luks_header (c) == -1 ||
      (c->reserved.nr > 0 &&
       check_refer (c, USE_SNAPSHOTS, zero,
                    c->reserved.first << c->h.cluster_bits,
                    c->reserved.nr << c->h.cluster_bits, 1) == -1) ||
      check_find_l1s (c, &l1s) == -1)
    return -1;
  r = check_walk (c, &l1s, &visitor);
  check_ranges_free (&l1s);
  if (r == -1 || check_bitmaps (c) == -1)
    return -1;
  return c->no_refcounts ? 0 : count_refcounts (c);
}

int
check_count (struct check *c, uint64_t first)
{
  uint64_t end = c->nr + 2; /* references may reach this far past the file */

  /* If the window was cut off, findings beyond its new end must not be made
   * here, since another window will make them: discard all and walk again.
   */
  do {
    check_findings_clear (&c->findings);
    check_refcounts_forget (&c->refcounts);
    check_holes_forget (&c->holes);
    c->next = UINT64_MAX;
    c->claimed = 0;
    if (counts_begin (&c->counts, first, end) == -1 || count_all (c) == -1)
      return -1;
    end = c->counts.end;
  } while (c->counts.cut);
  return counts_sort (&c->counts);
}

uint64_t
check_next_window (const struct check *c)
{
  return c->next < c->nr ? c->next & ~(COUNTS_CHUNK - 1) : c->nr;
}

/* --------------------------------------------------------------- comparing */

static void
compare_refcount (struct check *c, uint64_t cluster, uint64_t stored,
                  uint64_t counted)
{
  const uint64_t offset = cluster << c->h.cluster_bits;

  if (stored < counted)
    check_found (&c->findings, CHECK_REFCOUNT, 1, "cluster at 0x%" PRIx64
                 ": refcount %" PRIu64 ", and %" PRIu64 " references", offset,
                 stored, counted);
  else
    check_found (&c->findings, CHECK_LEAK, 1, "cluster at 0x%" PRIx64 ": "
                 "leaked: refcount %" PRIu64 ", and %" PRIu64 " references",
                 offset, stored, counted);
}

/* Overlaps that go unnoticed if the refcount is not too low. */
static void
look_for_overlap (struct check *c, const struct counts_chunk *k,
                  uint64_t cluster, uint64_t counted)
{
  const bool meta = counts_flag (k, COUNTS_META, cluster);
  const bool table = counts_flag (k, COUNTS_L2, cluster);
  const bool data = counts_flag (k, COUNTS_DATA, cluster);

  if ((meta && counted > 1) || (table && data))
    check_found (&c->findings, CHECK_OVERLAP, 1, "cluster at 0x%" PRIx64
                 ": used as metadata and as something else",
                 cluster << c->h.cluster_bits);
}

static void
no_answers (struct check *c, uint64_t cluster, uint64_t n)
{
  const uint64_t index = cluster >> c->refcounts.block_bits;

  check_found (&c->findings, CHECK_NO_ANSWER, n, "%" PRIu64 " refcounts from "
               "cluster 0x%" PRIx64 " on: their block at 0x%" PRIx64
               " can't be read", n, cluster << c->h.cluster_bits,
               check_block_offset (&c->refcounts, index));
}

/* Find the refcounts that can't be looked up, from the window's start up to
 * end, by blocks.
 */
static void
find_no_answers (struct check *c, uint64_t end)
{
  const struct check_refcounts *r = &c->refcounts;
  size_t i;

  for (i = 0; i < r->nr_used; ++i) {
    const uint64_t start = (uint64_t) r->used[i] << r->block_bits;
    const uint64_t behind = start + (UINT64_C (1) << r->block_bits);
    const uint64_t from = start > c->counts.first ? start : c->counts.first;
    const uint64_t to = behind < end ? behind : end;

    if (from < to && !check_refcount_readable (r, start))
      no_answers (c, from, to - from);
  }
}

/* Just count leaks where nothing has references: no more messages are wanted.
 */
static void
count_leaks (struct check *c, const struct check_span *span)
{
  const uint64_t base = check_span_base (span);
  uint64_t i, n = 0, last = 0;

  for (i = span->first; i < span->end; ++i) {
    if (check_refcount_at (c->h.refcount_order, span->refcounts,
                           i - base) != 0) {
      n++;
      last = i;
    }
  }
  if (n == 0)
    return;
  c->findings.report.image_end = (last + 1) << c->h.cluster_bits;
  check_found (&c->findings, CHECK_LEAK, n, "%" PRIu64 " clusters are leaked",
               n);
}

static void
compare_clusters (struct check *c, const struct check_span *span)
{
  uint64_t *image_end = &c->findings.report.image_end;
  const uint64_t base = check_span_base (span);
  uint64_t i;

  for (i = span->first; (i = check_span_next (span, i)) < span->end; ++i) {
    const uint64_t stored = check_refcount_at (c->h.refcount_order,
                                               span->refcounts, i - base);
    const uint64_t counted = check_span_counted (span, i);

    if ((stored | counted) == 0)
      continue;
    if (!check_refcount_readable (&c->refcounts, i)) /* reported by block */
      continue;
    *image_end = (i + 1) << c->h.cluster_bits;
    if (stored != counted)
      compare_refcount (c, i, stored, counted);
    if (counted > 1 && stored >= counted)
      look_for_overlap (c, span->chunk, i, counted);
  }
}

static int
compare_span (struct check *c, void *opaque, const struct check_span *span)
{
  (void) opaque;
  if (span->chunk == NULL && !check_findings_wanted (&c->findings))
    count_leaks (c, span);
  else
    compare_clusters (c, span);
  return 0;
}

/* ------------------------------------------------------------------- spans */

static int
visit_span (struct check *c, struct check_span *span, check_span_fn *fn,
            void *opaque)
{
  int r;

  span->chunk = counts_in_window (&c->counts, span->first)
    ? counts_find (&c->counts, span->first) : NULL;
  r = check_refcounts_read (&c->refcounts, check_span_base (span),
                            COUNTS_CHUNK, span->refcounts);
  if (r == -1)
    return -1;
  span->any = r > 0;
  return fn (c, opaque, span);
}

/* A file may be sparse and large: the time depends on the number of chunks,
 * and of refcounts in blocks outside of holes.
 */
int
check_each_span (struct check *c, uint64_t end, check_span_fn *fn,
                 void *opaque)
{
  uint8_t refcounts[COUNTS_CHUNK * 8];
  uint64_t chunk = 0, stored = 0, first = c->counts.first;
  struct check_span span = { .counts = &c->counts, .refcounts = refcounts };
  int r = 0;

  check_refcounts_forget (&c->refcounts);
  for (; r == 0 && first < end; first = span.end) {
    if (chunk <= first)
      chunk = counts_next (&c->counts, first);
    if (stored <= first)
      stored = check_refcounts_next (&c->refcounts, first);
    span.first = chunk < stored ? chunk : stored;
    if (span.first >= end)
      break;
    span.end = (span.first | (COUNTS_CHUNK - 1)) + 1;
    if (span.end > end)
      span.end = end;
    r = visit_span (c, &span, fn, opaque);
  }
  return r;
}

/* ------------------------------------------------------------------- whole */

static int
check_window (struct check *c, uint64_t first)
{
  struct check_report *r = &c->findings.report;
  uint64_t end;

  if (check_count (c, first) == -1)
    return -1;
  end = check_next_window (c);
  find_no_answers (c, end);
  if (check_each_span (c, end, compare_span, NULL) == -1)
    return -1;
  r->counts_memory = c->counts.peak;
  return 0;
}

static int
check_windows (struct check *c, struct check_report *report)
{
  uint64_t first = 0;

  do {
    if (check_window (c, first) == -1)
      return -1;
    check_findings_commit (&c->findings, report);
    first = check_next_window (c);
  } while (first < c->nr);
  if (report->image_end == 0) /* there is always a header */
    report->image_end = c->h.cluster_size;
  report->dirty = c->h.incompatible & QCOW2_INCOMPAT_DIRTY;
  report->corrupt = c->h.incompatible & QCOW2_INCOMPAT_CORRUPT;
  report->total_clusters =
    (c->h.disk_size + c->h.cluster_size - 1) >> c->h.cluster_bits;
  return 0;
}

int
check_storage (struct storage *s, const struct check_options *options,
               struct check_report *report)
{
  struct check c;
  int r;

  *report = (struct check_report) { 0 };
  if (check_start (&c, s, options) == -1)
    return -1;
  r = check_windows (&c, report);
  check_end (&c);
  return r;
}
