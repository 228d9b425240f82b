/* SPDX-License-Identifier: BSD-3-Clause */

/* Compressed clusters that straddle tie the host's clusters together that they
 * are in, and where no place is found for all of these they move one by one, from
 * the last on: what is left of the row is that much shorter.  They are packed as
 * they were, but for what the format overstates of each, less than a sector.
 */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/compact-parts.h"

#define SECTOR 512
#define ROUND_BYTES (UINT64_C (1) << 30)

/* Where the next one goes. */
struct packer {
  uint64_t at, end; /* bytes of the free clusters that are being filled */
  uint64_t next;    /* the cluster from which on others are looked for */
  uint64_t limit;   /* the cluster before which they are */
};

static int
compare_pieces (const void *a, const void *b)
{
  const struct compact_piece *x = a, *y = b;

  return (x->from > y->from) - (x->from < y->from);
}

const struct compact_piece *
compact_find_piece (const struct compact *c, uint64_t from)
{
  size_t low = 0, high = c->nr_pieces;

  while (low < high) {
    const size_t mid = low + (high - low) / 2;
    const struct compact_piece *p = &c->piece[mid];

    if (from < p->from)
      high = mid;
    else if (from > p->from)
      low = mid + 1;
    else
      return p;
  }
  return NULL;
}

static uint64_t
last_byte (const struct compact_piece *p)
{
  return p->from + p->bytes - 1;
}

/* ------------------------------------------------------------------- finding */

static int
add_piece (struct compact *c, const struct l2_entry *e, uint64_t n)
{
  struct compact_piece *p = compact_more (c, c->piece, c->nr_pieces,
                                          &c->max_pieces, sizeof *p);

  if (p == NULL)
    return -1;
  c->piece = p;
  p[c->nr_pieces++] = (struct compact_piece) {
    .from = e->host.v, .bytes = e->compressed_size, .n = n,
  };
  return 0;
}

/* Those in the row that this L2 table has. */
static int
add_pieces (struct compact *c, const struct compact_run *row,
            const uint64_t *words, uint64_t n)
{
  const unsigned bits = c->e.header.cluster_bits;
  const unsigned step = c->e.format.extended_l2 ? 2 : 1;
  const uint64_t nr = c->e.header.cluster_size / sizeof *words;
  uint64_t i;

  for (i = 0; i < nr; i += step) {
    const uint64_t word = be64toh (words[i]);
    struct l2_entry e;

    if (!(word & QCOW2_L2_COMPRESSED))
      continue;
    e = entry_decode_l2 (&c->e.format, word, 0);
    if (e.kind == CLUSTER_COMPRESSED && e.host.v >> bits >= row->first &&
        e.host.v >> bits < row->first + row->nr && add_piece (c, &e, n) == -1)
      return -1;
  }
  return 0;
}

/* The same data that several entries refer to is one piece; *odd: it has several
 * sizes.
 */
static void
join_pieces (struct compact *c, bool *odd)
{
  size_t i, nr = 0;

  if (c->nr_pieces > 1)
    qsort (c->piece, c->nr_pieces, sizeof c->piece[0], compare_pieces);
  for (i = 0; i < c->nr_pieces; ++i) {
    struct compact_piece *last = nr > 0 ? &c->piece[nr - 1] : NULL;

    if (last == NULL || last->from != c->piece[i].from) {
      c->piece[nr++] = c->piece[i];
      continue;
    }
    *odd |= last->bytes != c->piece[i].bytes;
    last->n += c->piece[i].n;
  }
  c->nr_pieces = nr;
}

static int
find_pieces (struct compact *c, const struct compact_run *row, bool *odd)
{
  uint64_t *words = malloc (c->e.header.cluster_size);
  size_t i;
  int r = 0;

  if (words == NULL) {
    error_set (ENOMEM, "%s: out of memory", c->e.storage->name);
    return -1;
  }
  for (i = 0; r == 0 && i < c->nr_l2; ++i) {
    r = storage_read (c->e.storage, words, c->e.header.cluster_size,
                      (struct host_off) { c->l2[i].table });
    if (r == 0)
      r = add_pieces (c, row, words, c->l2[i].n);
  }
  free (words);
  join_pieces (c, odd);
  return r;
}

/* -------------------------------------------------------------------- placing */

/* Add to the refcounts of all clusters of some bytes. */
static int
change (struct compact *c, uint64_t at, uint32_t bytes, int64_t n)
{
  const unsigned bits = c->e.header.cluster_bits;
  uint64_t i, refcount;

  for (i = at >> bits; i <= (at + bytes - 1) >> bits; ++i) {
    if (refs_get (&c->refs, i, &refcount) == -1 ||
        (refcount == 0 && n > 0 ? refs_claim (&c->refs, i, n)
         : refs_change (&c->refs, i, 1, n)) == -1)
      return -1;
  }
  return 0;
}

/* More clusters: *none if there are none. */
static int
next_clusters (struct compact *c, struct packer *k, bool *none)
{
  const unsigned bits = c->e.header.cluster_bits;
  uint64_t first, end;
  bool is_free = true;

  if (compact_find_free (c, k->next, 1, k->limit, &first) == -1)
    return -1;
  *none = first == UINT64_MAX;
  if (*none)
    return 0;
  for (end = first; is_free && end < k->limit; end += is_free)
    if (refs_is_free (&c->refs, end, &is_free) == -1)
      return -1;
  k->at = first << bits;
  k->end = end << bits;
  k->next = end + 1;
  return 0;
}

/* The first byte from k->at on that a piece may have: as in its sector before, and
 * not in a cluster whose refcount can't count it, too.
 */
static int
first_place (struct compact *c, struct packer *k,
             const struct compact_piece *p)
{
  const unsigned bits = c->e.header.cluster_bits;
  uint64_t refcount = 0;

  if (k->at < k->end &&
      refs_get (&c->refs, k->at >> bits, &refcount) == -1)
    return -1;
  if (refcount > entry_refcount_max (c->refs.order) - p->n)
    k->at = ((k->at >> bits) + 1) << bits;
  k->at += p->from % SECTOR;
  return 0;
}

static int
place (struct compact *c, struct packer *k, struct compact_piece *p,
       bool *none)
{
  for (*none = false; !*none; ) {
    if (first_place (c, k, p) == -1)
      return -1;
    if (k->at + p->bytes <= k->end) {
      p->to = k->at;
      k->at += p->bytes;
      return change (c, p->to, p->bytes, p->n);
    }
    if (next_clusters (c, k, none) == -1)
      return -1;
  }
  return 0;
}

/* Place those from this one on, or none: *placed. */
static int
place_from (struct compact *c, const struct compact_run *row, size_t first,
            bool *placed)
{
  struct packer k = { .limit = row->first };
  bool none = false;
  size_t i;

  for (i = first; i < c->nr_pieces; ++i) {
    if (place (c, &k, &c->piece[i], &none) == -1)
      return -1;
    if (none)
      break;
  }
  *placed = i == c->nr_pieces;
  while (!*placed && i > first) {
    const struct compact_piece *p = &c->piece[--i];

    if (change (c, p->to, p->bytes, -(int64_t) p->n) == -1)
      return -1;
  }
  if (!*placed)
    c->refs.nr_freed = 0; /* they have not been in use */
  return 0;
}

/* -------------------------------------------------------------------- planning */

/* Whether the file's last cluster is free without the pieces from this one on. */
static bool
is_gain (const struct compact *c, const struct compact_run *row, size_t first)
{
  const unsigned bits = c->e.header.cluster_bits;

  return first == 0 ||
    last_byte (&c->piece[first - 1]) >> bits < row->first + row->nr - 1;
}

/* The first of as many at the end as have so many bytes together, at most. */
static size_t
first_of (const struct compact *c, uint64_t bytes)
{
  size_t i = c->nr_pieces;

  while (i > 0 && c->piece[i - 1].bytes <= bytes)
    bytes -= c->piece[--i].bytes;
  return i;
}

/* Whether the pieces are all that the last cluster has. */
static int
is_all (struct compact *c, const struct compact_run *row, bool *all)
{
  const uint64_t last = row->first + row->nr - 1;
  uint64_t refcount;
  size_t i;

  if (refs_get (&c->refs, last, &refcount) == -1)
    return -1;
  for (i = c->nr_pieces; i > 0; --i)
    if (last_byte (&c->piece[i - 1]) >> c->e.header.cluster_bits == last)
      refcount -= c->piece[i - 1].n;
  *all = refcount == 0;
  return 0;
}

static int
count_free (struct compact *c, uint64_t below, uint64_t *nr)
{
  uint64_t used, above;

  if (refs_count_used (&c->refs, 0, &used) == -1 ||
      refs_count_used (&c->refs, below, &above) == -1)
    return -1;
  *nr = below - (used - above);
  return 0;
}

/* With fewer of them each time. */
static int
plan_in (struct compact *c, const struct compact_run *row)
{
  uint64_t bytes;
  size_t first;
  bool placed = false;

  if (count_free (c, row->first, &bytes) == -1)
    return -1;
  bytes <<= c->e.header.cluster_bits;
  if (bytes > ROUND_BYTES)
    bytes = ROUND_BYTES;
  for (;; bytes -= bytes / 8 + 1) {
    first = first_of (c, bytes);
    if (first == c->nr_pieces || !is_gain (c, row, first)) {
      first = c->nr_pieces;
      break;
    }
    if (place_from (c, row, first, &placed) == -1)
      return -1;
    if (placed)
      break;
  }
  memmove (c->piece, c->piece + first,
           (c->nr_pieces - first) * sizeof c->piece[0]);
  c->nr_pieces -= first;
  return 0;
}

int
compact_plan_pieces (struct compact *c)
{
  const struct compact_run *row;
  bool odd = false, all = false;
  uint64_t last;

  if (refs_last_used (&c->refs, UINT64_MAX, &last) == -1)
    return -1;
  row = compact_find_row (c, last);
  if (row == NULL)
    return 0;
  if (find_pieces (c, row, &odd) == -1 || is_all (c, row, &all) == -1)
    return -1;
  if (!odd && all && c->nr_pieces > 0)
    return plan_in (c, row);
  c->nr_pieces = 0;
  return 0;
}

/* --------------------------------------------------------------------- moving */

int
compact_copy_pieces (struct compact *c)
{
  struct storage *s = c->e.storage;
  uint32_t most = 1;
  void *buf;
  size_t i;
  int r = 0;

  for (i = 0; i < c->nr_pieces; ++i)
    if (most < c->piece[i].bytes)
      most = c->piece[i].bytes;
  buf = malloc (most);
  if (buf == NULL) {
    error_set (ENOMEM, "%s: out of memory", s->name);
    return -1;
  }
  for (i = 0; r == 0 && i < c->nr_pieces; ++i) {
    const struct compact_piece *p = &c->piece[i];

    r = storage_read (s, buf, p->bytes, (struct host_off) { p->from });
    if (r == 0)
      r = storage_write (s, buf, p->bytes, (struct host_off) { p->to });
  }
  free (buf);
  return r;
}

int
compact_lower_pieces (struct compact *c)
{
  size_t i;

  for (i = 0; i < c->nr_pieces; ++i)
    if (change (c, c->piece[i].from, c->piece[i].bytes,
                -(int64_t) c->piece[i].n) == -1)
      return -1;
  return 0;
}
