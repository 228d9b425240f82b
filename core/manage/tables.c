/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/tables.h"

#define SECTOR 512

static int
no_memory (const struct tables *t)
{
  error_set (ENOMEM, "%s: out of memory", t->storage->name);
  return -1;
}

static inline uint64_t
cluster_size (const struct tables *t)
{
  return UINT64_C (1) << t->format.cluster_bits;
}

/* ------------------------------------------------------------------ reading */

static int
compare_uses (const void *a, const void *b)
{
  const struct tables_use *x = a, *y = b;

  return (x->table > y->table) - (x->table < y->table);
}

/* Count the entries of the L1 table by their L2 tables. */
static void
join_uses (struct tables *t)
{
  size_t i, last = 0;

  if (t->nr_uses == 0)
    return;
  qsort (t->use, t->nr_uses, sizeof t->use[0], compare_uses);
  for (i = 1; i < t->nr_uses; ++i) {
    if (t->use[i].table == t->use[last].table)
      t->use[last].n++;
    else
      t->use[++last] = t->use[i];
  }
  t->nr_uses = last + 1;
}

static int
find_uses (struct tables *t)
{
  const uint64_t size = atomic_load (&t->storage->size);
  uint64_t i, nr = 0;

  for (i = 0; i < t->nr; ++i)
    nr += (be64toh (t->l1[i]) & QCOW2_ENTRY_OFFSET_MASK) != 0;
  t->use = malloc ((nr + 1) * sizeof t->use[0]);
  if (t->use == NULL)
    return no_memory (t);
  for (i = 0; i < t->nr; ++i) {
    const uint64_t word = be64toh (t->l1[i]);
    struct host_off table;

    if (!entry_decode_l1 (&t->format, word, &table) || table.v >= size) {
      error_set (EIO, "%s: damaged: L1 entry 0x%016" PRIx64 " at offset 0x%"
                 PRIx64 ": the L2 table is not at the start of a cluster of "
                 "the file", t->storage->name, word,
                 t->at.v + i * sizeof word);
      return -1;
    }
    if (table.v != 0)
      t->use[t->nr_uses++] = (struct tables_use) { table.v, 1 };
  }
  join_uses (t);
  return 0;
}

int
tables_read (struct tables *t, struct storage *s, const struct entry_format *f,
             struct host_off l1, uint64_t nr)
{
  *t = (struct tables) {
    .storage = s, .format = *f, .at = l1, .nr = nr,
    .l1 = malloc (nr * sizeof t->l1[0] + 1),
  };
  if (t->l1 == NULL)
    return no_memory (t);
  return storage_read (s, t->l1, nr * sizeof t->l1[0], l1) == -1 ? -1
    : find_uses (t);
}

void
tables_free (struct tables *t)
{
  free (t->l1);
  free (t->use);
  t->l1 = NULL;
  t->use = NULL;
}

/* ------------------------------------------------------------------ entries */

/* Clusters in a row, to whose refcounts n is to be added together. */
struct stretch {
  struct refs *refs;
  int64_t n;
  uint64_t first, nr;
};

static int
visit_rest (struct stretch *s)
{
  const uint64_t nr = s->nr;

  s->nr = 0;
  return nr == 0 ? 0 : refs_change (s->refs, s->first, nr, s->n);
}

static inline int
visit (struct stretch *s, uint64_t first, uint64_t nr)
{
  if (s->nr > 0 && s->first + s->nr == first) {
    s->nr += nr;
    return 0;
  }
  if (visit_rest (s) == -1)
    return -1;
  s->first = first;
  s->nr = nr;
  return 0;
}

static int
damaged (const struct tables *t, uint64_t place, const uint64_t words[2],
         const char *why)
{
  error_set (EIO, "%s: damaged: L2 entry 0x%016" PRIx64 " at offset 0x%" PRIx64
             ": %s", t->storage->name, words[0], place, why);
  return -1;
}

/* Visit the clusters that an entry at this place refers to. */
static int
visit_entry (const struct tables *t, struct stretch *s, uint64_t place,
             const uint64_t words[2])
{
  const unsigned bits = t->format.cluster_bits;
  const struct l2_entry e = entry_decode_l2 (&t->format, words[0], words[1]);
  uint64_t last;

  if (e.kind == CLUSTER_INVALID)
    return damaged (t, place, words,
                    entry_why (&t->format, words[0], words[1]));
  if (host_is_none (e.host) || (e.host.v == 0 && e.kind != CLUSTER_COMPRESSED))
    return 0;
  if (e.host.v >= atomic_load (&t->storage->size))
    return damaged (t, place, words, "the cluster is beyond the end of the "
                    "file");
  last = e.kind == CLUSTER_COMPRESSED ? e.host.v + e.compressed_size - 1
    : e.host.v;
  return visit (s, e.host.v >> bits, (last >> bits) - (e.host.v >> bits) + 1);
}

/* From the word of this number on. */
static int
visit_table (const struct tables *t, struct stretch *s, uint64_t table,
             const uint64_t *words, uint64_t first)
{
  const unsigned step = t->format.extended_l2 ? 2 : 1;
  const uint64_t nr = cluster_size (t) / sizeof *words;
  uint64_t i;

  for (i = first; i < nr; i += step) {
    const uint64_t entry[2] = {
      be64toh (words[i]), step == 2 ? be64toh (words[i + 1]) : 0
    };

    if (entry[0] != 0 &&
        visit_entry (t, s, table + i * sizeof *words, entry) == -1)
      return -1;
  }
  return visit_rest (s);
}

/* Visit all L2 tables and clusters: those of a table that is in use n times
 * with n times s->n.
 */
static int
visit_all (const struct tables *t, struct stretch *s)
{
  uint64_t *words = malloc (cluster_size (t));
  const int64_t n = s->n;
  size_t i;
  int r = 0;

  if (words == NULL)
    return no_memory (t);
  for (i = 0; r == 0 && i < t->nr_uses; ++i) {
    const struct tables_use *u = &t->use[i];

    s->n = n * (int64_t) u->n;
    r = refs_change (s->refs, u->table >> t->format.cluster_bits, 1, s->n);
    if (r == 0)
      r = storage_read (t->storage, words, cluster_size (t),
                        (struct host_off) { u->table });
    if (r == 0)
      r = visit_table (t, s, u->table, words, 0);
  }
  free (words);
  return r;
}

int
tables_add (const struct tables *t, struct refs *refs, int64_t n)
{
  struct stretch s = { .refs = refs, .n = n };

  return visit_all (t, &s);
}

int
tables_add_entries (const struct tables *t, struct refs *refs,
                    struct host_off table, const uint64_t *words,
                    uint64_t first, int64_t n)
{
  struct stretch s = { .refs = refs, .n = n };
  const unsigned step = t->format.extended_l2 ? 2 : 1;

  return visit_table (t, &s, table.v, words, first * step);
}

/* ------------------------------------------------------------------- COPIED */

int
tables_write_changed (struct storage *s, struct host_off at, const void *old,
                      const void *now, uint64_t count)
{
  const char *a = old, *b = now;
  uint64_t i, n, from = 0; /* what is from there up to i has changed */

  for (i = 0; i < count; i += n) {
    n = count - i < SECTOR ? count - i : SECTOR;
    if (memcmp (a + i, b + i, n) != 0)
      continue;
    if (from < i && storage_write (s, b + from, i - from,
                                   (struct host_off) { at.v + from }) == -1)
      return -1;
    from = i + n;
  }
  return from == count ? 0
    : storage_write (s, b + from, count - from,
                     (struct host_off) { at.v + from });
}

/* Set or clear it in an entry, big endian, of this cluster. */
static int
set_copied (struct refs *refs, uint64_t *word, uint64_t cluster)
{
  uint64_t refcount;

  if (refs_get (refs, cluster, &refcount) == -1)
    return -1;
  if (refcount == 1)
    *word |= htobe64 (QCOW2_ENTRY_COPIED);
  else
    *word &= ~htobe64 (QCOW2_ENTRY_COPIED);
  return 0;
}

static int
set_copied_in_table (const struct tables *t, struct refs *refs,
                     uint64_t *words)
{
  const unsigned step = t->format.extended_l2 ? 2 : 1;
  const uint64_t nr = cluster_size (t) / sizeof *words;
  uint64_t i;

  for (i = 0; i < nr; i += step) {
    const uint64_t host = be64toh (words[i]) & QCOW2_ENTRY_OFFSET_MASK;

    if ((words[i] & htobe64 (QCOW2_L2_COMPRESSED)) || host == 0)
      continue;
    if (set_copied (refs, &words[i], host >> t->format.cluster_bits) == -1)
      return -1;
  }
  return 0;
}

static int
set_copied_in_l1 (struct tables *t, struct refs *refs)
{
  uint64_t *old = malloc (t->nr * sizeof old[0] + 1), i;
  int r = 0;

  if (old == NULL)
    return no_memory (t);
  memcpy (old, t->l1, t->nr * sizeof old[0]);
  for (i = 0; r == 0 && i < t->nr; ++i) {
    const uint64_t table = be64toh (t->l1[i]) & QCOW2_ENTRY_OFFSET_MASK;

    if (table != 0)
      r = set_copied (refs, &t->l1[i], table >> t->format.cluster_bits);
  }
  if (r == 0)
    r = tables_write_changed (t->storage, t->at, old, t->l1,
                              t->nr * sizeof old[0]);
  free (old);
  return r;
}

int
tables_set_copied (struct tables *t, struct refs *refs)
{
  uint64_t *words = malloc (2 * cluster_size (t));
  uint64_t *old = words + cluster_size (t) / sizeof *words;
  size_t i;
  int r = 0;

  if (words == NULL)
    return no_memory (t);
  for (i = 0; r == 0 && i < t->nr_uses; ++i) {
    const struct host_off at = { t->use[i].table };

    r = storage_read (t->storage, words, cluster_size (t), at);
    if (r == 0) {
      memcpy (old, words, cluster_size (t));
      r = set_copied_in_table (t, refs, words);
    }
    if (r == 0)
      r = tables_write_changed (t->storage, at, old, words, cluster_size (t));
  }
  free (words);
  return r == -1 ? -1 : set_copied_in_l1 (t, refs);
}
