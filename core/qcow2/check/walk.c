/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/check/walk.h"

#define MAX_UNALIGNED 1000
#define MAX_UNALIGNED_BYTES (UINT64_C (16) << 20)

/* Adjacent tables are taken together, up to this size, and read in pieces small
 * enough to skip holes.
 */
#define RUN_BYTES (UINT64_C (1) << 20)
#define PIECE (UINT64_C (1) << 16)

struct l2_table {
  uint64_t offset;
  uint64_t guest; /* see struct check */
  struct check_paths paths;
};

/* L2 tables that were found but not visited yet. */
struct tables {
  struct l2_table *table;
  size_t nr, capacity, limit;
};

struct walk {
  struct check *c;
  const struct check_visitor *visitor;
  struct check_paths paths; /* to the piece of an L1 table */
  struct tables tables;
  uint8_t *buf; /* for a piece of L2 tables */
  unsigned unaligned;
  uint64_t done, total; /* L2 tables, for progress */
};

static int
progress (struct walk *w, uint64_t n)
{
  const struct check_options *o = w->c->options;

  w->done += n;
  if (o->progress == NULL || o->progress (o->opaque, w->done, w->total))
    return 0;
  error_set (EINTR, "%s: the check was given up", w->c->storage->name);
  return -1;
}

/* ---------------------------------------------------------------- L2 tables */

static int
compare_tables (const void *a, const void *b)
{
  const struct l2_table *x = a, *y = b;

  return (x->offset > y->offset) - (x->offset < y->offset);
}

/* Sort in the order of the file, and merge duplicates. */
static void
sort (struct tables *t)
{
  size_t i, to = 0;

  for (i = 1; i < t->nr; ++i)
    if (t->table[i].offset <= t->table[i-1].offset)
      break;
  if (i >= t->nr)
    return;
  qsort (t->table, t->nr, sizeof *t->table, compare_tables);
  for (i = 1; i < t->nr; ++i) {
    if (t->table[i].offset == t->table[to].offset) {
      if (t->table[to].guest != t->table[i].guest)
        t->table[to].guest = CHECK_NO_GUEST;
      t->table[to].paths.all += t->table[i].paths.all;
      t->table[to].paths.active += t->table[i].paths.active;
    }
    else
      t->table[++to] = t->table[i];
  }
  t->nr = to + 1;
}

/* How many tables from the first on are adjacent, and fit into the buffer. */
static size_t
run_length (const struct walk *w, const struct l2_table *t, size_t nr)
{
  const uint64_t size = w->c->h.cluster_size;
  const size_t limit = size < RUN_BYTES ? RUN_BYTES / size : 1;
  size_t n = 1;

  while (n < nr && n < limit && t[n].offset == t[n-1].offset + size)
    n++;
  return n;
}

/* Pass a piece of a run to the visitor, table by table. */
static int
visit_piece (struct walk *w, const struct l2_table *t, uint64_t at,
             uint64_t bytes)
{
  const uint64_t size = w->c->h.cluster_size;
  uint64_t done = 0, n;

  for (; done < bytes; done += n) {
    const struct l2_table *table = t + (at + done) / size;

    n = size - (at + done) % size;
    if (n > bytes - done)
      n = bytes - done;
    w->c->guest = table->guest;
    if (w->visitor->l2 (w->c, w->visitor->opaque,
                        (struct host_off) { table->offset },
                        (struct host_off) { t->offset + at + done },
                        w->buf + done, n, table->paths) == -1)
      return -1;
  }
  return 0;
}

/* Skips holes, and what is beyond the end of the file: they are empty. */
static int
visit_run (struct walk *w, const struct l2_table *t, size_t nr)
{
  const uint64_t bytes = nr * w->c->h.cluster_size;
  uint64_t at, n;

  for (at = 0; at < bytes; at += n) {
    const struct host_off place = { t->offset + at };

    n = check_hole (&w->c->holes, place.v, bytes - at) & ~UINT64_C (15);
    if (n > 0)
      continue;
    n = PIECE < bytes - at ? PIECE : bytes - at;
    if (storage_read (w->c->storage, w->buf, n, place) == -1 ||
        visit_piece (w, t, at, n) == -1)
      return -1;
  }
  return 0;
}

/* Only data: prefetching holes would take memory and time. */
static void
prefetch (struct walk *w, const struct l2_table *t, size_t nr)
{
  const uint64_t bytes = nr * w->c->h.cluster_size;

  if (check_hole (&w->c->holes, t->offset, bytes) == 0)
    storage_prefetch (w->c->storage, (struct host_off) { t->offset },
                      bytes < RUN_BYTES ? bytes : RUN_BYTES);
}

static int
visit_tables (struct walk *w)
{
  struct tables *t = &w->tables;
  size_t i, n, next;

  sort (t);
  for (i = 0; i < t->nr; i += n) {
    n = run_length (w, t->table + i, t->nr - i);
    /* The host reads the next run while this one is looked at. */
    next = i + n;
    if (next < t->nr)
      prefetch (w, t->table + next,
                run_length (w, t->table + next, t->nr - next));
    if (visit_run (w, t->table + i, n) == -1 || progress (w, n) == -1)
      return -1;
  }
  t->nr = 0;
  return 0;
}

/* Make room for one more table: if the limit is reached, by visiting those
 * that were found.
 */
static int
make_room (struct walk *w)
{
  struct tables *t = &w->tables;
  size_t capacity = t->capacity > 0 ? 2 * t->capacity : 1024;
  struct l2_table *table;

  if (t->nr < t->capacity)
    return 0;
  if (t->nr >= t->limit) {
    sort (t);
    return t->nr > t->limit / 2 ? visit_tables (w) : 0;
  }
  if (capacity > t->limit)
    capacity = t->limit;
  table = realloc (t->table, capacity * sizeof *table);
  if (table == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  t->table = table;
  t->capacity = capacity;
  return 0;
}

static int
add_table (struct walk *w, uint64_t offset, uint64_t guest)
{
  if (offset % w->c->h.cluster_size != 0 &&
      (w->unaligned >= MAX_UNALIGNED ||
       w->unaligned++ * w->c->h.cluster_size >= MAX_UNALIGNED_BYTES))
    return 0;
  if (make_room (w) == -1)
    return -1;
  w->total++;
  w->tables.table[w->tables.nr++] =
    (struct l2_table) { offset, guest, w->paths };
  return 0;
}

/* ---------------------------------------------------------------- L1 tables */

/* The guest's offset of the table that this entry of the active L1 table refers
 * to.  Other L1 tables are of no interest, as images with data files have none.
 */
static uint64_t
guest_of_l1 (const struct check *c, uint64_t place)
{
  const uint64_t start = c->h.l1_offset.v;

  return place < start || (place - start) / 8 >= c->h.l1_size
    ? CHECK_NO_GUEST : (place - start) / 8 << header_l1_shift (&c->h);
}

static int
visit_l1_words (struct check *c, void *opaque, struct host_off place,
                uint8_t *words, size_t bytes)
{
  struct walk *w = opaque;
  size_t i;

  if (w->visitor->l1 (c, w->visitor->opaque, place, words, bytes,
                      w->paths) == -1)
    return -1;
  for (i = 0; i < bytes; i += 8) {
    const uint64_t word = get_be64 (words + i);

    if (word != 0 && add_table (w, word & QCOW2_ENTRY_OFFSET_MASK,
                                guest_of_l1 (c, place.v + i)) == -1)
      return -1;
  }
  return 0;
}

/* Walk a part that paths.all L1 tables share. */
static int
walk_interval (void *opaque, uint64_t start, uint64_t end,
               struct check_paths paths)
{
  struct walk *w = opaque;

  w->paths = paths;
  return check_scan (w->c, (struct host_off) { start }, end - start,
                     visit_l1_words, w);
}

int
check_walk (struct check *c, const struct check_ranges *l,
            const struct check_visitor *v)
{
  struct walk w = { .c = c, .visitor = v };
  int r = -1;

  check_holes_forget (&c->holes);
  /* An eighth of the budget. */
  w.tables.limit = c->counts.budget / 8 / sizeof *w.tables.table;
  if (w.tables.limit < 1024)
    w.tables.limit = 1024;
  w.buf = malloc (PIECE);
  if (w.buf == NULL)
    error_set (ENOMEM, "out of memory");
  else if (check_each_interval (l, 8, walk_interval, &w) == 0)
    r = visit_tables (&w);
  free (w.buf);
  free (w.tables.table);
  return r;
}
