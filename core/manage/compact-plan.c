/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "manage/compact-parts.h"

/* Bytes that move in one round, at least: their old places come back only after
 * it, and all tables are read in each.
 */
#define ROUND_BYTES (UINT64_C (1) << 30)
#define ROUND_PART 16 /* and this part of all that is in use */

/* Rows of up to so many clusters are each looked for from where the last one of
 * their length was found: places only become fewer.
 */
#define SHORT_ROW 64

struct plan {
  struct compact *c;
  uint64_t used;   /* clusters: no file is smaller */
  uint64_t end;    /* beyond the last one in use */
  uint64_t single; /* where the next free one is looked for */
  uint64_t from[SHORT_ROW + 1];
  uint64_t too_long; /* rows of so many clusters were not found */
  uint64_t claimed;  /* places of rows that move are below this */
};

static int
compare_moves (const void *a, const void *b)
{
  const struct compact_move *x = a, *y = b;

  return (x->from > y->from) - (x->from < y->from);
}

const struct compact_move *
compact_find_move (const struct compact *c, uint64_t cluster)
{
  size_t low = 0, high = c->nr_moves;

  if (high == 0 || cluster < c->move[0].from)
    return NULL;
  while (low < high) {
    const size_t mid = low + (high - low) / 2;

    if (c->move[mid].from < cluster)
      low = mid + 1;
    else
      high = mid;
  }
  return low < c->nr_moves && c->move[low].from == cluster ? &c->move[low]
    : NULL;
}

uint64_t
compact_to (const void *c, uint64_t cluster)
{
  const struct compact_move *m = compact_find_move (c, cluster);

  return m == NULL ? cluster : m->to;
}

static int
add_move (struct compact *c, uint64_t from, uint64_t to)
{
  struct compact_move *p = compact_more (c, c->move, c->nr_moves,
                                         &c->max_moves, sizeof *p);

  if (p == NULL)
    return -1;
  c->move = p;
  p[c->nr_moves++] = (struct compact_move) { from, to };
  return 0;
}

/* The place of a move is not free any more. */
static int
claim (struct compact *c, const struct compact_move *m)
{
  uint64_t refcount;

  return refs_get (&c->refs, m->from, &refcount) == -1 ? -1
    : refs_claim (&c->refs, m->to, refcount);
}

int
compact_find_free (struct compact *c, uint64_t from, uint64_t nr,
                   uint64_t end, uint64_t *found)
{
  uint64_t i, n = 0;
  bool is_free;

  *found = UINT64_MAX;
  for (i = from; i < end && n < nr; ++i) {
    if (refs_is_free (&c->refs, i, &is_free) == -1)
      return -1;
    n = is_free ? n + 1 : 0;
  }
  if (n == nr)
    *found = i - nr;
  return 0;
}

/* -------------------------------------------------------------------- in a row */

/* Where a row goes; UINT64_MAX: nowhere. */
static int
find_place (struct plan *p, const struct compact_run *row, uint64_t *to)
{
  uint64_t *from = &p->from[row->nr <= SHORT_ROW ? row->nr : 0];

  *to = UINT64_MAX;
  if (row->nr >= p->too_long || row->first == p->c->pinned.first)
    return 0;
  if (compact_find_free (p->c, *from, row->nr, row->first, to) == -1)
    return -1;
  if (*to == UINT64_MAX)
    p->too_long = row->nr;
  else if (row->nr <= SHORT_ROW)
    *from = *to + row->nr;
  return 0;
}

/* Rows that reach beyond what would be the end of the file. */
static int
plan_rows (struct plan *p)
{
  struct compact *c = p->c;
  uint64_t to, k;
  size_t i;

  for (i = c->nr_rows; i > 0; --i) {
    const struct compact_run *row = &c->row[i - 1];

    if (row->first + row->nr <= p->used)
      break;
    if (find_place (p, row, &to) == -1)
      return -1;
    if (to == UINT64_MAX)
      continue;
    for (k = 0; k < row->nr; ++k)
      if (add_move (c, row->first + k, to + k) == -1 ||
          claim (c, &c->move[c->nr_moves - 1]) == -1)
        return -1;
    if (p->claimed < to + row->nr)
      p->claimed = to + row->nr;
  }
  return 0;
}

const struct compact_run *
compact_find_row (const struct compact *c, uint64_t cluster)
{
  size_t low = 0, high = c->nr_rows;

  while (low < high) {
    const size_t mid = low + (high - low) / 2;
    const struct compact_run *row = &c->row[mid];

    if (cluster < row->first)
      high = mid;
    else if (cluster - row->first >= row->nr)
      low = mid + 1;
    else
      return row;
  }
  return NULL;
}

/* ----------------------------------------------------------------- one by one */

/* The last one in use below at that may move alone; 0: there is none, since one
 * in a row that stays is the last, or places that rows get are next.  rows: their
 * moves.
 */
static int
last_single (struct plan *p, const struct compact *rows, uint64_t at,
             uint64_t *cluster)
{
  struct compact *c = p->c;
  const struct compact_run *row;

  for (;;) {
    if (refs_last_used (&c->refs, at, cluster) == -1)
      return -1;
    if (*cluster < p->claimed)
      *cluster = 0;
    row = *cluster == 0 ? NULL : compact_find_row (c, *cluster);
    if (row == NULL)
      return 0;
    at = row->first;
    if (compact_to (rows, at) == at) {
      *cluster = 0;
      return 0;
    }
  }
}

/* The moves from this one on are from the last down, to places from the first up,
 * all of which are below all of them: what was in order before, and in a row
 * perhaps, is so again.
 */
static int
keep_order (struct compact *c, size_t first)
{
  size_t i, j;

  for (i = first, j = c->nr_moves; i + 1 < j; ++i) {
    const uint64_t to = c->move[i].to;

    c->move[i].to = c->move[--j].to;
    c->move[j].to = to;
  }
  for (i = first; i < c->nr_moves; ++i)
    if (claim (c, &c->move[i]) == -1)
      return -1;
  return 0;
}

/* From the last one down, as long as there are free ones before it. */
static int
plan_singles (struct plan *p, const struct compact *rows, uint64_t limit)
{
  struct compact *c = p->c;
  const size_t first = c->nr_moves;
  uint64_t at = p->end, to, nr;

  for (nr = 0; nr < limit; ++nr) {
    if (last_single (p, rows, at, &at) == -1 ||
        compact_find_free (c, p->single, 1, at, &to) == -1)
      return -1;
    if (at == 0 || to == UINT64_MAX)
      break;
    if (add_move (c, at, to) == -1)
      return -1;
    p->single = to + 1;
  }
  return keep_order (c, first);
}

static void
sort_moves (struct compact *c)
{
  if (c->nr_moves > 1)
    qsort (c->move, c->nr_moves, sizeof c->move[0], compare_moves);
}

/* The moves of rows are looked up while others are added. */
static int
plan_all (struct plan *p, uint64_t limit)
{
  struct compact *c = p->c;
  struct compact rows = { .nr_moves = 0 };
  int r;

  if (plan_rows (p) == -1)
    return -1;
  sort_moves (c);
  rows.nr_moves = c->nr_moves;
  rows.move = malloc (c->nr_moves * sizeof c->move[0] + 1);
  if (rows.move == NULL) {
    error_set (ENOMEM, "%s: out of memory", c->e.storage->name);
    return -1;
  }
  if (c->nr_moves > 0)
    memcpy (rows.move, c->move, c->nr_moves * sizeof c->move[0]);
  r = plan_singles (p, &rows, limit);
  free (rows.move);
  sort_moves (c);
  return r;
}

int
compact_plan (struct compact *c)
{
  struct plan p = { .c = c, .too_long = UINT64_MAX };
  uint64_t last, limit;

  if (refs_count_used (&c->refs, 0, &p.used) == -1 ||
      refs_count_used (&c->refs, p.used, &c->rest) == -1 ||
      refs_last_used (&c->refs, UINT64_MAX, &last) == -1)
    return -1;
  p.end = last + 1;
  limit = ROUND_BYTES >> c->e.header.cluster_bits;
  if (limit < p.used / ROUND_PART)
    limit = p.used / ROUND_PART;
  return plan_all (&p, limit);
}
