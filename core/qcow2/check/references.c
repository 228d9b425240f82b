/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>

#include "qcow2/check/fix-up.h"
#include "qcow2/check/references.h"
#include "qcow2/check/walk.h"

/* ------------------------------------------------------------- L2 entries */

/* An L2 table that is being looked at. */
struct table {
  struct check *c;
  struct host_off table;
  struct check_paths paths;
  uint64_t judged;   /* paths for which COPIED flags are judged */
  bool first;        /* judge everything else, too */
  bool rows;         /* entries may be looked at together */
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

/* ------------------------------------------------------ entries in a row */

/* How many entries there are, of at most max, each of which refers to the cluster
 * behind that of the one before.
 */
static uint64_t
row_length (const uint8_t *words, uint64_t max, uint64_t cluster_size)
{
  uint64_t next = get_be64 (words) + cluster_size, n = 1;

  while (n < max && get_be64 (words + n * sizeof next) == next) {
    next += cluster_size;
    n++;
  }
  return n;
}

/* Count entries from this one on, of at most max, together, as far as they refer to
 * neighbours in one chunk, and are as most are: aligned, within the file, the first
 * that refer to their clusters, and with the right COPIED flag.  Returns how many: 0
 * if the first has to be looked at by itself.
 */
static uint64_t
count_row (struct table *t, const uint8_t *words, uint64_t max)
{
  const uint64_t word = get_be64 (words);
  const uint64_t offset = word & QCOW2_ENTRY_OFFSET_MASK;
  const bool copied = (word & QCOW2_ENTRY_COPIED) != 0;
  struct check *c = t->c;
  const uint64_t size = c->h.cluster_size;
  const uint64_t cluster = offset >> c->h.cluster_bits;
  const uint64_t end = offset + (COUNTS_CHUNK << c->h.cluster_bits);
  uint64_t n = COUNTS_CHUNK - cluster % COUNTS_CHUNK;
  struct counts_chunk *k;

  if (offset == 0 || offset % size != 0 ||
      (word & ~(QCOW2_ENTRY_OFFSET_MASK | QCOW2_ENTRY_COPIED)) != 0 ||
      end > c->file_size || end > QCOW2_ENTRY_OFFSET_MASK ||
      !counts_in_window (&c->counts, cluster) ||
      (k = counts_find (&c->counts, cluster)) == NULL)
    return 0;
  n = row_length (words, n < max ? n : max, size);
  if ((t->judged > 0 && !counts_row_is (k, cluster, n, copied)) ||
      !counts_add_row (&c->counts, k, cluster, n, t->paths.all))
    return 0;
  if (t->first) {
    struct check_report *r = &c->findings.report;

    r->allocated_clusters += n * t->paths.active;
    if (t->followed != 0 && offset != t->followed)
      r->fragmented_clusters += t->paths.active;
    t->followed = offset + n * size;
  }
  return n;
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
    .rows = !c->fixed_up && !c->only_look &&
      c->referred == NULL && !c->h.extended_l2 && !c->h.has_data_file,
    .followed = goes_on ? part->followed : 0,
  };
  size_t i, n;

  /* qemu-img does not judge COPIED flags then. */
  if (c->fixed_up || table.v == 0 ||
      !check_refcount_readable (&c->refcounts, cluster))
    t.judged = 0;
  for (i = 0; i < bytes; i += n * entry_size) {
    const uint64_t word = get_be64 (words + i);
    const uint64_t bitmap = c->h.extended_l2 ? get_be64 (words + i + 8) : 0;

    n = t.rows && word != 0 ? count_row (&t, words + i, (bytes - i) / 8) : 0;
    if (n > 0)
      continue;
    n = 1;
    if ((word | bitmap) != 0 &&
        count_entry (&t, (struct host_off) { place.v + i }, word,
                     bitmap) == -1)
      return -1;
  }
  *part = (struct part) { table.v, place.v + bytes, t.followed };
  return 0;
}

/* ------------------------------------------------------------- L1 entries */

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

/* -------------------------------------------------------- refcount blocks */

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
