/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/map.h"

/* What may be wrong with an entry. */
static const char unaligned_table[] =
  "the L2 table's offset is not a multiple of the cluster size";
static const char table_beyond[] =
  "the L2 table is beyond the end of the file";
static const char cluster_beyond[] = "it points beyond the end of the file";
static const char data_beyond[] =
  "it points beyond the end of the external data file";
static const char data_elsewhere[] = "it points into the external data file at "
  "an offset that is not the guest's";

void
map_init (struct map *m, const struct header *h, struct storage *storage,
          unsigned id, struct cache *cache, struct host_off l1_offset,
          uint64_t l1_size)
{
  *m = (struct map) {
    .tables = storage,
    .data = storage,
    .accepted = &storage->size,
    .id = id,
    .cache = cache,
    .format = {
      .version = h->version,
      .cluster_bits = h->cluster_bits,
      .extended_l2 = h->extended_l2,
      .data_file = h->has_data_file,
      .raw_data = h->raw_data,
    },
    .cluster_size = h->cluster_size,
    .subcluster_bits = h->cluster_bits - (h->extended_l2 ? 5 : 0),
    .slice_bytes = h->cluster_size < CACHE_SLOT_BYTES
      ? h->cluster_size : CACHE_SLOT_BYTES,
    .l1_shift = header_l1_shift (h),
    .l2_word_bits = h->extended_l2 ? 1 : 0,
    .l1_offset = l1_offset,
    .l1_size = l1_size,
  };
}

void
map_set_data (struct map *m, struct storage *data)
{
  static const _Atomic uint64_t none;

  m->data = data;
  m->accepted = &none;
}

/* Whether a run may go on with what follows it.  If not, that must not even
 * be looked at: it could set an error, and a DAMAGED run's stands.
 */
static inline bool
is_joinable (const struct run *r)
{
  switch (r->kind) {
  case RUN_UNALLOCATED:
  case RUN_ZERO_PLAIN:
  case RUN_ZERO_ALLOC:
  case RUN_DATA:
    return true;
  case RUN_GUEST_DATA: /* what some disks make of DATA, not here */
  case RUN_COMPRESSED:
  case RUN_DAMAGED:
    return false;
  }
  abort ();
}

/* a is_joinable. */
static inline bool
can_join (const struct run *a, const struct run *b)
{
  return a->kind == b->kind &&
    (a->kind != RUN_DATA || (a->host.v + a->length == b->host.v &&
                             a->in_place == b->in_place));
}

/* A DAMAGED run for the entry at the host offset place. */
static void __attribute__ ((__cold__))
damaged (const struct map *m, const char *table, struct host_off place,
         uint64_t word, const char *why, struct run *run)
{
  run->kind = RUN_DAMAGED;
  run->host = place;
  error_set (EIO, "%s: damaged: %s entry 0x%016" PRIx64 " at offset 0x%" PRIx64
             ": %s", m->tables->name, table, word, place.v, why);
}

/* Whether this size, rounded up to a cluster, is below a host offset. */
static inline bool
is_behind (const struct map *m, const _Atomic uint64_t *size,
           struct host_off host)
{
  return host.v >= ((atomic_load_explicit (size, memory_order_acquire) +
                     m->cluster_size - 1) & -m->cluster_size);
}

/* What is wrong with data at this host offset, which is not simply accepted, of
 * what the guest has at that one; NULL: nothing.  used: the host has more than
 * room for it.
 */
static const char * __attribute__ ((__noinline__))
why_not_there (const struct map *m, struct host_off host, uint64_t guest,
               bool used)
{
  if (!m->format.data_file)
    return cluster_beyond;
  if (host.v != guest)
    return data_elsewhere;
  return used && is_behind (m, &m->data->size, host) ? data_beyond : NULL;
}

/* The run that a plain cluster kind makes, from byte `in' of the cluster. */
static inline void
piece_of_kind (enum cluster_kind kind, struct host_off host, uint64_t in,
               struct run *run)
{
  switch (kind) {
  case CLUSTER_UNALLOCATED:
    run->kind = RUN_UNALLOCATED;
    return;
  case CLUSTER_ZERO_PLAIN:
    run->kind = RUN_ZERO_PLAIN;
    return;
  case CLUSTER_ZERO_ALLOC:
    run->kind = RUN_ZERO_ALLOC;
    return;
  case CLUSTER_STANDARD:
    run->kind = RUN_DATA;
    run->host.v = host.v + in;
    return;
  case CLUSTER_SUBCLUSTERS:
  case CLUSTER_COMPRESSED:
  case CLUSTER_INVALID:
    break;
  }
  abort ();
}

/* The run of equal subclusters at byte `in' of the cluster. */
static void
piece_of_subclusters (const struct map *m, const struct l2_entry *e,
                      uint64_t in, struct run *run)
{
  unsigned i = in >> m->subcluster_bits;
  const enum cluster_kind kind = entry_subcluster (e, i);

  while (++i < QCOW2_SUBCLUSTERS && entry_subcluster (e, i) == kind)
    ;
  run->length = ((uint64_t) i << m->subcluster_bits) - in;
  piece_of_kind (kind, e->host, in, run);
}

/* The run that one L2 entry makes, from byte `in' of its cluster to the
 * cluster's end at most.  place is where the entry is.
 */
static inline void
piece_of_entry (const struct map *m, uint64_t word, uint64_t bitmap,
                struct host_off place, uint64_t in, struct run *run)
{
  const struct l2_entry e = entry_decode_l2 (&m->format, word, bitmap);

  run->kind = RUN_DAMAGED;
  run->length = m->cluster_size - in;
  run->in_place = e.copied;
  switch (e.kind) {
  case CLUSTER_UNALLOCATED:
  case CLUSTER_ZERO_PLAIN:
  case CLUSTER_ZERO_ALLOC:
  case CLUSTER_STANDARD:
    piece_of_kind (e.kind, e.host, in, run);
    break;
  case CLUSTER_SUBCLUSTERS:
    piece_of_subclusters (m, &e, in, run);
    break;
  case CLUSTER_COMPRESSED:
    run->kind = RUN_COMPRESSED;
    run->host = e.host;
    run->compressed_size = e.compressed_size;
    run->bytes = NULL;
    break;
  case CLUSTER_INVALID:
    damaged (m, "L2", place, word, entry_why (&m->format, word, bitmap), run);
    return;
  }
}

/* Judge where a piece of what the guest has at this offset is on the host. */
static void __attribute__ ((__noinline__))
look_closer (const struct map *m, uint64_t word, struct host_off place,
             uint64_t guest, struct run *piece)
{
  const char *why = why_not_there (m, piece->host, guest, true);

  if (why != NULL)
    damaged (m, "L2", place, word, why, piece);
}

/* From entry i of a slice of nr on, how many are all zeros: unallocated in
 * every kind of image.  Most of a sparse disk is that, so it has a loop of
 * its own.
 */
static inline unsigned
count_empty (const struct map *m, const struct cache_ref *ref,
             unsigned i, unsigned nr)
{
  const unsigned end = nr << m->l2_word_bits;
  const unsigned start = i << m->l2_word_bits;
  unsigned w = start;

  while (w < end && cache_word_is_zero (ref, w))
    w++;
  return (w - start) >> m->l2_word_bits;
}

/* Find the run at offset, of whose cluster this is entry i, as far as this
 * slice of nr entries reaches.
 */
static void
scan_slice (const struct map *m, const struct cache_ref *ref,
            struct host_off slice, unsigned i, unsigned nr,
            struct guest_off offset, uint64_t max, struct run *run)
{
  const unsigned empty = count_empty (m, ref, i, nr);
  uint64_t in = offset.v & (m->cluster_size - 1);

  if (empty > 0) {
    run->kind = RUN_UNALLOCATED;
    run->in_place = false;
    run->length = empty * m->cluster_size - in;
    return; /* what follows may join: map_lookup tries */
  }
  run->length = 0;
  while (i < nr && run->length < max) {
    const unsigned w = i << m->l2_word_bits;
    const struct host_off place = { slice.v + w * sizeof (uint64_t) };
    struct run piece;

    piece_of_entry (m, cache_word (ref, w),
                    m->format.extended_l2 ? cache_word (ref, w + 1) : 0,
                    place, in, &piece);
    if ((piece.kind == RUN_DATA || piece.kind == RUN_COMPRESSED) &&
        is_behind (m, m->accepted, piece.host))
      look_closer (m, cache_word (ref, w), place, offset.v + run->length,
                   &piece);
    if (run->length == 0)
      *run = piece;
    else if (can_join (run, &piece))
      run->length += piece.length;
    else
      break;
    if (!is_joinable (run))
      break;
    in += piece.length;
    if (in == m->cluster_size) {
      in = 0;
      i++;
    }
  }
}

static inline unsigned
entries_in_slice (const struct map *m)
{
  return m->slice_bytes >> (3 + m->l2_word_bits);
}

/* The number of the entry that maps offset in its L2 table. */
static inline uint64_t
index_in_table (const struct map *m, struct guest_off offset)
{
  const uint64_t table_mask = (UINT64_C (1) << m->l1_shift) - 1;

  return (offset.v & table_mask) >> m->format.cluster_bits;
}

/* Whether the table has nothing from here on, which is left bytes before its
 * end: a hole of the file, of which no part was changed in the cache since.  A
 * change that was answered before this was asked is either there or no hole.
 * What is in the cache was read, since it is no hole: looking costs less than
 * the system call.
 */
static bool
is_empty (const struct map *m, struct host_off slice, uint64_t left)
{
  struct cache_ref ref;

  return !cache_find (m->cache, m->id, slice, &ref) &&
    cache_is_clean (m->cache, m->id) &&
    storage_hole (m->tables, slice) >= left;
}

/* Where each read waits for an answer from afar so many slices are read at once
 * for any request; they map what it is likely to go on with.
 */
#define FAR_SLICES 4

/* Read the L2 tables from this slice on, which is left slices before its table's
 * end, together: a range that long is of somebody who wants to know of all that
 * is allocated, and will go on.  As far as one slice of the L1 table reaches, if
 * that is in the cache.
 */
static void
read_tables_ahead (const struct map *m, struct host_off slice, uint64_t left,
                   struct guest_off offset)
{
  const unsigned nr = m->slice_bytes / sizeof (uint64_t);
  uint64_t i = offset.v >> m->l1_shift;
  const struct host_off l1 = { m->l1_offset.v + i / nr * m->slice_bytes };
  struct cache_part parts[CACHE_MAX_PARTS] = { { slice, left } };
  unsigned n = 1;
  struct cache_ref ref;

  if (!cache_find (m->cache, m->id, l1, &ref))
    return;
  while (++i < m->l1_size && i % nr != 0 && n < CACHE_MAX_PARTS) {
    struct host_off table;

    if (entry_decode_l1 (&m->format, cache_word (&ref, i % nr), &table) &&
        table.v != 0 && !is_behind (m, &m->tables->size, table))
      parts[n++] = (struct cache_part) {
        table, m->cluster_size / m->slice_bytes,
      };
  }
  if (cache_still_valid (&ref))
    cache_read_ahead (m->cache, m->tables, m->id, parts, n, m->slice_bytes);
}

/* Find the run at offset within the L2 table, as far as one slice of it
 * reaches.
 */
static int
lookup_l2 (const struct map *m, struct host_off table, struct guest_off offset,
           uint64_t max, struct run *run)
{
  const unsigned cluster_bits = m->format.cluster_bits;
  const unsigned nr = entries_in_slice (m);
  const uint64_t table_bytes = m->cluster_size;
  const uint64_t index = index_in_table (m, offset);
  const uint64_t at = index / nr * m->slice_bytes;
  const struct host_off slice = { table.v + at };
  const uint64_t left = (table_bytes - at) / m->slice_bytes;
  const bool is_far = storage_reads_together (m->tables);
  uint64_t ahead = !is_far ? 1 : left < FAR_SLICES ? left : FAR_SLICES;
  struct cache_ref ref;

  /* A long range (extents ask for those) wants the table's next slices. */
  if (max > (uint64_t) nr << cluster_bits) {
    ahead = (max >> cluster_bits) / nr;
    if (ahead >= left && left > 1 && is_empty (m, slice, table_bytes - at)) {
      run->kind = RUN_UNALLOCATED;
      run->length = (left * nr << cluster_bits) -
        (offset.v & (((uint64_t) nr << cluster_bits) - 1));
      return 0;
    }
    if (ahead > left) {
      ahead = left;
      if (is_far && !cache_find (m->cache, m->id, slice, &ref))
        read_tables_ahead (m, slice, left, offset);
    }
  }
  do {
    if (cache_get (m->cache, m->tables, m->id, slice, m->slice_bytes,
                   ahead, &ref) == -1)
      return -1;
    scan_slice (m, &ref, slice, index & (nr - 1), nr, offset, max, run);
  } while (!cache_still_valid (&ref));
  return 0;
}

/* Find the L2 table that maps offset.  If there is none, table is 0 and
 * *length tells how many bytes from offset on have none, as far as one
 * slice of the L1 table reaches.  *word and *place are the entry.
 */
static int
lookup_l1 (const struct map *m, struct guest_off offset, uint64_t max,
           uint64_t *word, struct host_off *place, uint64_t *length)
{
  const uint64_t index = offset.v >> m->l1_shift;
  const unsigned nr = m->slice_bytes / sizeof (uint64_t);
  const struct host_off slice = {
    m->l1_offset.v + index / nr * m->slice_bytes
  };
  uint64_t end;
  struct cache_ref ref;

  place->v = m->l1_offset.v + index * sizeof (uint64_t);
  do {
    if (cache_get (m->cache, m->tables, m->id, slice, m->slice_bytes,
                   1, &ref) == -1)
      return -1;
    *word = cache_word (&ref, index % nr);
    end = index + 1;
    if ((*word & QCOW2_ENTRY_OFFSET_MASK) == 0) {
      while ((end << m->l1_shift) - offset.v < max &&
             end < m->l1_size && end % nr != 0 &&
             (cache_word (&ref, end % nr) & QCOW2_ENTRY_OFFSET_MASK) == 0)
        end++;
    }
  } while (!cache_still_valid (&ref));
  *length = (end << m->l1_shift) - offset.v;
  return 0;
}

/* Find a run at offset, as far as one slice of a table reaches. */
static int
lookup_slice (const struct map *m, struct guest_off offset, uint64_t max,
              struct run *run)
{
  struct host_off table, place;
  uint64_t word, length;

  run->in_place = false;
  if (offset.v >> m->l1_shift >= m->l1_size) {
    run->kind = RUN_UNALLOCATED;
    run->length = max;
    return 0;
  }
  if (lookup_l1 (m, offset, max, &word, &place, &length) == -1)
    return -1;
  run->length = length;
  if (!entry_decode_l1 (&m->format, word, &table))
    damaged (m, "L1", place, word, unaligned_table, run);
  else if (is_behind (m, &m->tables->size, table))
    damaged (m, "L1", place, word, table_beyond, run);
  else if (table.v == 0)
    run->kind = RUN_UNALLOCATED;
  else {
    if (lookup_l2 (m, table, offset, max, run) == -1)
      return -1;
    run->in_place &= (word & QCOW2_ENTRY_COPIED) != 0;
  }
  if (run->length > max)
    run->length = max;
  return 0;
}

static void __attribute__ ((__cold__))
debug_run (const struct map *m, struct guest_off offset, const struct run *run)
{
  static const char *const kinds[] = {
    [RUN_UNALLOCATED] = "unallocated",
    [RUN_ZERO_PLAIN] = "zero",
    [RUN_ZERO_ALLOC] = "zero, preallocated",
    [RUN_DATA] = "data",
    [RUN_COMPRESSED] = "compressed",
    [RUN_DAMAGED] = "damaged",
  };
  const bool has_host = run->kind == RUN_DATA || run->kind == RUN_COMPRESSED ||
    run->kind == RUN_DAMAGED;

  debug_message ("map: %s: offset 0x%" PRIx64 " length 0x%" PRIx64 ": %s, "
                 "host offset 0x%" PRIx64, m->tables->name, offset.v,
                 run->length, kinds[run->kind], has_host ? run->host.v : 0);
}

int
map_lookup (const struct map *m, struct guest_off offset, uint64_t max,
            struct run *run)
{
  assert (max > 0);
  if (lookup_slice (m, offset, max, run) == -1)
    return -1;
  while (run->length < max && is_joinable (run)) {
    const struct guest_off at = { offset.v + run->length };
    struct run next;

    if (lookup_slice (m, at, max - run->length, &next) == -1 ||
        !can_join (run, &next))
      break; /* the next lookup will meet it */
    run->length += next.length;
  }
  if (debug_hooks.map)
    debug_run (m, offset, run);
  return 0;
}

void
map_lookup_words (const struct map *m, const _Atomic uint64_t *words,
                  struct host_off slice, struct guest_off offset, uint64_t max,
                  struct run *run)
{
  static const _Atomic uint64_t fixed;
  const struct cache_ref ref = { .words = words, .seq = &fixed };
  const unsigned nr = entries_in_slice (m);

  assert (max > 0);
  scan_slice (m, &ref, slice, index_in_table (m, offset) & (nr - 1), nr, offset,
              max, run);
  if (run->length > max)
    run->length = max;
}

int
map_l1_entry (const struct map *m, struct guest_off offset, struct map_l1 *l1)
{
  uint64_t length;
  struct run run;

  assert (offset.v >> m->l1_shift < m->l1_size);
  if (lookup_l1 (m, offset, 1, &l1->word, &l1->place, &length) == -1)
    return -1;
  l1->copied = (l1->word & QCOW2_ENTRY_COPIED) != 0;
  if (!entry_decode_l1 (&m->format, l1->word, &l1->table)) {
    damaged (m, "L1", l1->place, l1->word, unaligned_table, &run);
    return -1;
  }
  if (is_behind (m, &m->tables->size, l1->table)) {
    damaged (m, "L1", l1->place, l1->word, table_beyond, &run);
    return -1;
  }
  return 0;
}

uint64_t
map_slice_number (const struct map *m, struct guest_off offset)
{
  return (offset.v >> m->format.cluster_bits) / entries_in_slice (m);
}

unsigned
map_slice_word (const struct map *m, struct guest_off offset)
{
  return (offset.v >> m->format.cluster_bits) % entries_in_slice (m)
    << m->l2_word_bits;
}

uint64_t
map_slice_end (const struct map *m, struct guest_off offset)
{
  const uint64_t bytes =
    (uint64_t) entries_in_slice (m) << m->format.cluster_bits;

  return (offset.v / bytes + 1) * bytes;
}

int
map_l2_entries (const struct map *m, struct host_off table,
                struct guest_off offset, uint64_t nr, struct map_l2 *l2)
{
  const uint64_t index = index_in_table (m, offset);
  const unsigned per_slice = entries_in_slice (m);
  struct cache_ref ref;
  unsigned i;

  assert (index % per_slice + nr <= per_slice);
  l2->cluster = offset.v & -m->cluster_size;
  l2->slice.v = table.v + index / per_slice * m->slice_bytes;
  l2->first_word = index % per_slice << m->l2_word_bits;
  l2->nr_words = nr << m->l2_word_bits;
  do {
    if (cache_get (m->cache, m->tables, m->id, l2->slice, m->slice_bytes,
                   1, &ref) == -1)
      return -1;
    for (i = 0; i < l2->nr_words; ++i)
      l2->words[i] = cache_word (&ref, l2->first_word + i);
  } while (!cache_still_valid (&ref));
  return 0;
}

uint64_t
map_slice_clusters (const struct map *m)
{
  return entries_in_slice (m);
}

int
map_l2_slice (const struct map *m, struct host_off table,
              struct guest_off offset, struct map_l2 *l2)
{
  const uint64_t nr = entries_in_slice (m);
  const struct guest_off start = {
    map_slice_number (m, offset) * nr << m->format.cluster_bits
  };

  return map_l2_entries (m, table, start, nr, l2);
}

int
map_l2_decode (const struct map *m, const struct map_l2 *l2, unsigned i,
               struct l2_entry *e)
{
  const unsigned w = i << m->l2_word_bits;
  const uint64_t word = l2->words[w];
  const uint64_t bitmap = m->format.extended_l2 ? l2->words[w + 1] : 0;
  const struct host_off place = {
    l2->slice.v + (l2->first_word + w) * sizeof (uint64_t)
  };
  const uint64_t guest = l2->cluster + i * m->cluster_size;
  const char *why = NULL;
  struct run run;

  *e = entry_decode_l2 (&m->format, word, bitmap);
  if (e->kind == CLUSTER_INVALID) {
    damaged (m, "L2", place, word, entry_why (&m->format, word, bitmap), &run);
    return -1;
  }
  if (!host_is_none (e->host) && is_behind (m, m->accepted, e->host))
    why = why_not_there (m, e->host, guest, e->kind == CLUSTER_STANDARD ||
                         e->allocated != 0);
  if (why == NULL)
    return 0;
  damaged (m, "L2", place, word, why, &run);
  return -1;
}
