/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qed/map.h"

/* A piece of a table in the cache. */
struct slice {
  struct host_off at;
  unsigned first;     /* the entry that was asked for */
  struct cache_ref ref;
};

static int
get_slice (const struct qed_map *m, struct host_off table, uint64_t index,
           uint64_t ahead, struct slice *s)
{
  s->at.v = table.v + index / QED_SLICE_ENTRIES * CACHE_SLOT_BYTES;
  s->first = index % QED_SLICE_ENTRIES;
  return cache_get (m->cache, m->storage, m->id, s->at, CACHE_SLOT_BYTES,
                    ahead, &s->ref);
}

static inline uint64_t
slice_entry (const struct slice *s, unsigned i)
{
  return qed_swap (cache_word (&s->ref, i));
}

static inline struct host_off
slice_place (const struct slice *s, unsigned i)
{
  return (struct host_off) { s->at.v + i * sizeof (uint64_t) };
}

/* How many entries from the first on are 0. */
static inline unsigned
count_unallocated (const struct slice *s)
{
  unsigned i = s->first;

  while (i < QED_SLICE_ENTRIES && cache_word_is_zero (&s->ref, i))
    i++;
  return i - s->first;
}

/* How many entries of a table from the slice's end on, to the table's, are
 * known to be 0: in a hole of the file of which nothing was changed since, and
 * of which nothing had to be read.
 */
static uint64_t
known_empty (const struct qed_map *m, const struct slice *s, uint64_t index)
{
  const uint64_t left = m->header->table_entries - index;
  const uint64_t in_slice = QED_SLICE_ENTRIES - s->first;
  const struct host_off next = { s->at.v + CACHE_SLOT_BYTES };
  struct cache_ref ref;
  uint64_t hole;

  if (left <= in_slice || cache_find (m->cache, m->id, next, &ref) ||
      !cache_is_clean (m->cache, m->id))
    return 0;
  hole = storage_hole (m->storage, next) / sizeof (uint64_t);
  return hole < left - in_slice ? hole : left - in_slice;
}

static void __attribute__ ((__cold__))
damaged (const struct qed_map *m, const char *table, struct host_off place,
         uint64_t entry, const char *why, struct run *run)
{
  run->kind = RUN_DAMAGED;
  run->host = place;
  error_set (EIO, "%s: damaged: QED %s entry 0x%016" PRIx64 " at offset 0x%"
             PRIx64 ": %s", m->storage->name, table, entry, place.v, why);
}

static const char *
why_invalid (const struct qed_map *m, uint64_t offset)
{
  const struct qed_header *h = m->header;

  if (offset & (h->cluster_size - 1))
    return "it is not a multiple of the cluster size";
  if (offset < h->header_bytes)
    return "it points into the header";
  return "it points beyond the end of the file";
}

/* Whether an entry that is not 0 leads to an L2 table. */
static inline bool
table_is_valid (const struct qed_map *m, uint64_t entry)
{
  return qed_offset_is_valid (m->header, entry, m->header->table_bytes,
                              qed_map_file_size (m));
}

/* --------------------------------------------------------------- L2 tables */

static inline enum run_kind
kind_of (const struct qed_map *m, uint64_t entry, uint64_t file_size)
{
  if (entry == QED_UNALLOCATED)
    return RUN_UNALLOCATED;
  if (entry == QED_ZERO)
    return RUN_ZERO_PLAIN;
  return qed_offset_is_valid (m->header, entry, m->header->cluster_size,
                              file_size) ? RUN_DATA : RUN_DAMAGED;
}

/* The run from byte `in' of the cluster of the slice's first entry on, as far
 * as the slice reaches.  The bytes are in run->length before it is cut.
 */
static void
scan_slice (const struct qed_map *m, const struct slice *s, uint64_t in,
            uint64_t max, struct run *run)
{
  const uint64_t size = m->header->cluster_size;
  const uint64_t file_size = qed_map_file_size (m);
  const uint64_t first = slice_entry (s, s->first);
  unsigned i = s->first + 1;

  run->kind = kind_of (m, first, file_size);
  run->host.v = first + in;
  run->in_place = true;
  run->length = size - in;
  if (run->kind == RUN_DAMAGED) {
    damaged (m, "L2", slice_place (s, s->first), first,
             why_invalid (m, first), run);
    return;
  }
  for (; i < QED_SLICE_ENTRIES && run->length < max; ++i) {
    const uint64_t entry = slice_entry (s, i);

    if (kind_of (m, entry, file_size) != run->kind ||
        (run->kind == RUN_DATA && entry != run->host.v + run->length))
      break;
    run->length += size;
  }
}

static int
lookup_l2 (const struct qed_map *m, struct host_off table,
           struct guest_off offset, uint64_t max, struct run *run)
{
  const struct qed_header *h = m->header;
  const uint64_t in = offset.v & (h->cluster_size - 1);
  const uint64_t index = qed_l2_index (h, offset);
  const uint64_t ahead =
    ((max + in) >> h->cluster_bits) / QED_SLICE_ENTRIES + 1;
  const uint64_t left =
    (h->table_entries - index / QED_SLICE_ENTRIES * QED_SLICE_ENTRIES) /
    QED_SLICE_ENTRIES;
  struct slice s;
  unsigned empty;

  do {
    if (get_slice (m, table, index,
                   ahead < left ? ahead < CACHE_MAX_AHEAD ? ahead
                   : CACHE_MAX_AHEAD : left, &s) == -1)
      return -1;
    scan_slice (m, &s, in, max, run);
    empty = run->kind == RUN_UNALLOCATED ? count_unallocated (&s) : 0;
  } while (!cache_still_valid (&s.ref));
  if (empty == QED_SLICE_ENTRIES - s.first && run->length < max)
    run->length += known_empty (m, &s, index) << h->cluster_bits;
  return 0;
}

/* ----------------------------------------------------------------- L1 table */

/* The entry that maps offset, and how many guest bytes from offset on have no
 * L2 table if it is 0.
 */
static int
lookup_l1 (const struct qed_map *m, struct guest_off offset, uint64_t *entry,
           struct host_off *place, uint64_t *length)
{
  const struct qed_header *h = m->header;
  const uint64_t index = qed_l1_index (h, offset);
  const uint64_t in = offset.v & ((UINT64_C (1) << h->l1_shift) - 1);
  struct slice s;
  uint64_t nr;

  do {
    if (get_slice (m, h->l1_offset, index, 1, &s) == -1)
      return -1;
    *entry = slice_entry (&s, s.first);
    *place = slice_place (&s, s.first);
    nr = *entry == 0 ? count_unallocated (&s) : 1;
  } while (!cache_still_valid (&s.ref));
  if (nr == QED_SLICE_ENTRIES - s.first)
    nr += known_empty (m, &s, index);
  /* The whole of the disk may be 2^63 bytes, and its tables could map more. */
  *length = nr > (uint64_t) INT64_MAX >> h->l1_shift ? INT64_MAX
    : (nr << h->l1_shift) - in;
  return 0;
}

static int
lookup_piece (const struct qed_map *m, struct guest_off offset, uint64_t max,
              struct run *run)
{
  struct host_off place;
  uint64_t entry, length;

  if (lookup_l1 (m, offset, &entry, &place, &length) == -1)
    return -1;
  run->length = length;
  if (entry == QED_UNALLOCATED)
    run->kind = RUN_UNALLOCATED;
  else if (!table_is_valid (m, entry))
    damaged (m, "L1", place, entry, why_invalid (m, entry), run);
  else {
    if (max > length)
      max = length;
    if (lookup_l2 (m, (struct host_off) { entry }, offset, max, run) == -1)
      return -1;
  }
  if (run->length > max)
    run->length = max;
  return 0;
}

static inline bool
can_join (const struct run *a, const struct run *b)
{
  return a->kind == b->kind &&
    (a->kind != RUN_DATA || a->host.v + a->length == b->host.v);
}

int
qed_map_lookup (const struct qed_map *m, struct guest_off offset, uint64_t max,
                struct run *run)
{
  assert (max > 0);
  if (lookup_piece (m, offset, max, run) == -1)
    return -1;
  while (run->length < max && run->kind != RUN_DAMAGED) {
    const struct guest_off at = { offset.v + run->length };
    struct run next;

    if (lookup_piece (m, at, max - run->length, &next) == -1 ||
        !can_join (run, &next))
      break; /* the next lookup will meet it */
    run->length += next.length;
  }
  if (debug_hooks.map)
    debug_message ("map: %s: offset 0x%" PRIx64 " length 0x%" PRIx64
                   ": kind %d, host offset 0x%" PRIx64, m->storage->name,
                   offset.v, run->length, run->kind,
                   run->kind >= RUN_DATA ? run->host.v : 0);
  return 0;
}

/* ------------------------------------------------------------- for writing */

int
qed_map_entry (const struct qed_map *m, struct host_off table, uint64_t index,
               uint64_t *entry)
{
  struct slice s;

  do {
    if (get_slice (m, table, index, 1, &s) == -1)
      return -1;
    *entry = slice_entry (&s, s.first);
  } while (!cache_still_valid (&s.ref));
  return 0;
}

int
qed_map_table (const struct qed_map *m, struct guest_off offset,
               struct host_off *table)
{
  struct host_off place;
  uint64_t length;
  struct run run;

  if (lookup_l1 (m, offset, &table->v, &place, &length) == -1)
    return -1;
  if (table->v == QED_UNALLOCATED || table_is_valid (m, table->v))
    return 0;
  damaged (m, "L1", place, table->v, why_invalid (m, table->v), &run);
  return -1;
}
