/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "qed/check.h"
#include "qed/qed.h"

/* Tables are read in pieces of this size, but for their holes. */
#define PIECE ((size_t) 65536)

struct qed_checking {
  struct storage *s;
  struct qed_header header;
  uint64_t file_size;
  bool fix;           /* write 0 over entries that lead nowhere */
  uint64_t nr;        /* clusters of the file */
  uint64_t in_use;
  uint64_t *used;     /* a bit for each */
  uint64_t last;      /* the data cluster before, in this table; 0: none */
  uint8_t *l1, *l2;   /* of PIECE bytes each */
  struct check_findings findings;
};

/* --------------------------------------------------------------- the bitmap */

/* Note that clusters are used; returns how many were before. */
static uint64_t
use_clusters (struct qed_checking *c, uint64_t offset, uint64_t bytes)
{
  const uint64_t first = offset >> c->header.cluster_bits;
  const uint64_t end = first + (bytes >> c->header.cluster_bits);
  uint64_t i, again = 0;

  for (i = first; i < end; ++i) {
    const uint64_t bit = UINT64_C (1) << i % 64;

    if (c->used[i / 64] & bit)
      again++;
    else
      c->in_use++;
    c->used[i / 64] |= bit;
  }
  if (end << c->header.cluster_bits > c->findings.report.image_end)
    c->findings.report.image_end = end << c->header.cluster_bits;
  return again;
}

/* The first cluster from this one on that is in use, or not; or the end of the
 * file, which may claim very many.
 */
static uint64_t
next_cluster (const struct qed_checking *c, uint64_t i, bool in_use)
{
  while (i < c->nr) {
    uint64_t word = c->used[i / 64];

    word = (in_use ? word : ~word) >> i % 64;
    if (word != 0) {
      i += __builtin_ctzll (word);
      break;
    }
    i = (i / 64 + 1) * 64;
  }
  return i < c->nr ? i : c->nr;
}

/* Say which clusters nothing refers to, as long as somebody listens. */
static void
tell_leaks (struct qed_checking *c, uint64_t leaks)
{
  const uint64_t size = c->header.cluster_size;
  uint64_t i = c->header.header_bytes / size, end;

  for (; leaks > 0 && check_findings_wanted (&c->findings); i = end) {
    i = next_cluster (c, i, false);
    end = next_cluster (c, i, true);
    check_found (&c->findings, CHECK_LEAK, end - i, "%" PRIu64 " clusters at "
                 "offset 0x%" PRIx64 " are not in use", end - i, i * size);
    leaks -= end - i;
  }
  if (leaks > 0)
    check_found (&c->findings, CHECK_LEAK, leaks, "%" PRIu64 " more clusters "
                 "are not in use", leaks);
}

/* --------------------------------------------------------------- the tables */

/* What becomes of an entry. */
enum entry_fate { ENTRY_FAILED = -1, ENTRY_KEPT, ENTRY_CLEARED };

static const char *
what_is_wrong (const struct qed_checking *c, uint64_t entry)
{
  if (entry & (c->header.cluster_size - 1))
    return "is not a multiple of the cluster size";
  if (entry < c->header.header_bytes)
    return "is in the header";
  return "is beyond the end of the file";
}

static enum entry_fate
bad_entry (struct qed_checking *c, const char *table, struct host_off place,
           uint64_t entry)
{
  const bool unaligned = entry & (c->header.cluster_size - 1);

  if (c->fix)
    return ENTRY_CLEARED;
  check_found (&c->findings, unaligned ? CHECK_UNALIGNED : CHECK_BEYOND, 1,
               "the %s entry at offset 0x%" PRIx64 ", 0x%" PRIx64 ", %s",
               table, place.v, entry, what_is_wrong (c, entry));
  return ENTRY_KEPT;
}

static void
used_twice (struct qed_checking *c, const char *table, struct host_off place,
            uint64_t entry, uint64_t clusters)
{
  check_found (&c->findings, CHECK_OVERLAP, clusters, "the %s entry at offset "
               "0x%" PRIx64 ", 0x%" PRIx64 ", leads to %" PRIu64 " clusters "
               "that are in use already", table, place.v, entry, clusters);
}

static enum entry_fate
check_l2_entry (struct qed_checking *c, struct host_off place, uint64_t entry)
{
  struct check_report *r = &c->findings.report;
  const uint64_t size = c->header.cluster_size;

  if (entry == QED_UNALLOCATED || entry == QED_ZERO)
    return ENTRY_KEPT;
  r->allocated_clusters++;
  if (c->last != 0 && c->last + size != entry)
    r->fragmented_clusters++;
  c->last = entry;
  if (!qed_offset_is_valid (&c->header, entry, size, c->file_size))
    return bad_entry (c, "L2", place, entry);
  if (use_clusters (c, entry, size) > 0)
    used_twice (c, "L2", place, entry, 1);
  return ENTRY_KEPT;
}

typedef enum entry_fate entry_fn (struct qed_checking *c,
                                  struct host_off place, uint64_t entry);

/* Call fn for each entry of a piece that is not 0, and write the piece if some
 * were cleared.
 */
static int
walk_piece (struct qed_checking *c, struct host_off piece, uint8_t *buf,
            uint64_t bytes, entry_fn *fn)
{
  uint64_t first = bytes, end = 0, i;

  if (storage_read (c->s, buf, bytes, piece) == -1)
    return -1;
  for (i = 0; i < bytes; i += 8) {
    const uint64_t entry = get_le64 (buf + i);
    const struct host_off place = { piece.v + i };
    const enum entry_fate fate = entry == 0 ? ENTRY_KEPT
      : fn (c, place, entry);

    if (fate == ENTRY_FAILED)
      return -1;
    if (fate == ENTRY_CLEARED) {
      put_le64 (buf + i, 0);
      first = first < i ? first : i;
      end = i + 8;
    }
  }
  if (end == 0 ||
      storage_write (c->s, buf + first, end - first,
                     (struct host_off) { piece.v + first }) == 0)
    return 0;
  error_append (" (clearing entries of tables)");
  return -1;
}

/* The same for a whole table. */
static int
walk_table (struct qed_checking *c, struct host_off table, uint8_t *buf,
            entry_fn *fn)
{
  uint64_t at, n;

  for (at = 0; at < c->header.table_bytes; at += n) {
    const struct host_off piece = { table.v + at };
    const uint64_t left = c->header.table_bytes - at;
    const uint64_t hole = storage_hole (c->s, piece) & -PIECE;

    n = hole > left ? left : hole;
    if (n > 0)
      continue;
    n = left < PIECE ? left : PIECE;
    if (walk_piece (c, piece, buf, n, fn) == -1)
      return -1;
  }
  return 0;
}

static bool
tell_progress (const struct qed_checking *c, struct host_off place)
{
  const struct check_options *o = c->findings.options;

  return o->progress == NULL ||
    o->progress (o->opaque, (place.v - c->header.l1_offset.v) / 8,
                 c->header.table_entries);
}

static enum entry_fate
check_l1_entry (struct qed_checking *c, struct host_off place, uint64_t entry)
{
  uint64_t again;

  if (!tell_progress (c, place)) {
    error_set (EINTR, "%s: the check was given up", c->s->name);
    return ENTRY_FAILED;
  }
  if (!qed_offset_is_valid (&c->header, entry, c->header.table_bytes,
                            c->file_size))
    return bad_entry (c, "L1", place, entry);
  again = use_clusters (c, entry, c->header.table_bytes);
  if (again > 0) { /* what is in it may be anything */
    used_twice (c, "L1", place, entry, again);
    return ENTRY_KEPT;
  }
  c->last = 0;
  return walk_table (c, (struct host_off) { entry }, c->l2,
                     check_l2_entry) == -1 ? ENTRY_FAILED : ENTRY_KEPT;
}

/* -------------------------------------------------------------------- whole */

static int
checking_init (struct qed_checking *c, struct storage *s,
               const struct check_options *options)
{
  memset (c, 0, sizeof *c);
  c->s = s;
  c->file_size = atomic_load (&s->size);
  check_findings_init (&c->findings, options);
  if (qed_read_header (s, &c->header) == -1)
    return -1;
  c->nr = qed_file_end (&c->header, c->file_size) >> c->header.cluster_bits;
  if (c->nr > QED_CHECK_MAX_CLUSTERS) {
    error_set (ENOTSUP, "%s: its file of %" PRIu64 " clusters is too long to "
               "be checked", s->name, c->nr);
    return -1;
  }
  c->used = calloc (c->nr / 64 + 1, sizeof *c->used);
  c->l1 = malloc (PIECE);
  c->l2 = malloc (PIECE);
  if (c->used != NULL && c->l1 != NULL && c->l2 != NULL)
    return 0;
  error_set (ENOMEM, "%s: out of memory", s->name);
  return -1;
}

static void
checking_destroy (struct qed_checking *c)
{
  check_findings_clear (&c->findings);
  free (c->used);
  free (c->l1);
  free (c->l2);
}

/* With fix set, what is fixed is not counted as wrong. */
static int
check_once (struct qed_checking *c, struct check_report *report)
{
  const struct qed_header *h = &c->header;
  uint64_t leaks;

  (void) use_clusters (c, h->l1_offset.v, h->table_bytes);
  if (walk_table (c, h->l1_offset, c->l1, check_l1_entry) == -1)
    return -1;
  leaks = c->nr - h->header_bytes / h->cluster_size - c->in_use;
  tell_leaks (c, leaks);
  c->findings.report.total_clusters =
    (h->disk_size + h->cluster_size - 1) >> h->cluster_bits;
  memset (report, 0, sizeof *report);
  report->dirty = h->features & QED_NEED_CHECK;
  check_findings_commit (&c->findings, report);
  return 0;
}

static int
run_check (struct storage *s, const struct check_options *options, bool fix,
           struct check_report *report)
{
  struct qed_checking c;
  int r = checking_init (&c, s, options);

  c.fix = fix;
  if (r == 0)
    r = check_once (&c, report);
  checking_destroy (&c);
  return r;
}

int
qed_check_storage (struct storage *s, const struct check_options *options,
                   struct check_report *report)
{
  return run_check (s, options, false, report);
}

/* ---------------------------------------------------------------- repairing */

int
qed_write_features (struct storage *s, uint64_t features, uint64_t autoclear)
{
  uint8_t bytes[QED_AUTOCLEAR_AT + 8 - QED_FEATURES_AT];
  const struct host_off at = { QED_FEATURES_AT };

  /* Between them are the compatible ones, which are kept. */
  if (storage_read (s, bytes, sizeof bytes, at) == -1)
    return -1;
  put_le64 (bytes, features);
  put_le64 (&bytes[QED_AUTOCLEAR_AT - QED_FEATURES_AT], autoclear);
  return storage_write (s, bytes, sizeof bytes, at);
}

/* Cut off what is not in use.  Bits that are not known here may stand for
 * something in those clusters; and a block device is as long as it is.
 */
static int
cut_leaks (struct storage *s, const struct qed_header *h,
           struct check_report *report)
{
  const uint64_t end = report->image_end;
  const uint64_t leaked = qed_file_end (h, s->size) - end;

  if (leaked == 0 || h->compatible != 0 || h->autoclear != 0)
    return 0;
  if (storage_resize (s, end) == -1)
    return error_errno () == ENOSPC ? 0 : -1;
  report->leaks -= leaked >> h->cluster_bits;
  report->found[CHECK_LEAK] -= leaked >> h->cluster_bits;
  return storage_flush (s);
}

/* The image is sound: say so, in the report as well.  What is done here does
 * not want another check, which may take long.
 */
static int
settle (struct storage *s, struct check_report *report)
{
  struct qed_header h;

  if (qed_read_header (s, &h) == -1 || cut_leaks (s, &h, report) == -1)
    return -1;
  report->dirty = false;
  if (!(h.features & QED_NEED_CHECK))
    return 0;
  return qed_write_features (s, h.features & ~QED_NEED_CHECK,
                             h.autoclear) == -1 ? -1 : storage_flush (s);
}

/* Tables are about to be changed: bits that are not known here don't hold any
 * more (I8).
 */
static int
clear_autoclear (struct storage *s)
{
  struct qed_header h;

  if (qed_read_header (s, &h) == -1)
    return -1;
  if (h.autoclear == 0)
    return 0;
  return qed_write_features (s, h.features, 0) == -1 ? -1 : storage_flush (s);
}

int
qed_repair_storage (struct storage *s, enum repair_mode mode,
                    const struct check_options *options,
                    struct repair_report *r)
{
  const struct check_options silent = { .memory = options->memory };

  memset (r, 0, sizeof *r);
  if (qed_check_storage (s, options, &r->before) == -1)
    return -1;
  r->after = r->before;
  /* What has two uses may be data that an L1 entry calls a table. */
  if (mode == REPAIR_ALL && r->before.found[CHECK_OVERLAP] == 0 &&
      r->before.found[CHECK_UNALIGNED] + r->before.found[CHECK_BEYOND] > 0) {
    if (clear_autoclear (s) == -1 ||
        run_check (s, &silent, true, &r->after) == -1 ||
        storage_flush (s) == -1)
      return -1;
  }
  if (!check_report_is_sound (&r->after)) {
    r->why_not = mode != REPAIR_ALL ? "only leaks were to be repaired"
      : "clusters are used twice, and which of the uses is wrong is not known";
    return 0;
  }
  return settle (s, &r->after);
}
