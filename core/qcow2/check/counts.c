/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/check/counts.h"

#define FIRST_BITS 6
#define SLAB_CHUNKS 1024 /* so large that the host's pages are zeros already */

/* Chunks are allocated by the slab, and never moved. */
struct counts_slab {
  struct counts_slab *next;
  size_t nr; /* chunks in use, or free again */
  struct counts_chunk chunk[SLAB_CHUNKS];
};

static int
no_memory (void)
{
  error_set (ENOMEM, "out of memory");
  return -1;
}

/* Account for memory that was allocated and freed. */
static void
account (struct counts *c, size_t more, size_t less)
{
  c->used += more;
  c->used -= less;
  if (c->used > c->peak)
    c->peak = c->used;
}

void
counts_init (struct counts *c, size_t budget, uint64_t max)
{
  memset (c, 0, sizeof *c);
  c->key = hash_key ();
  c->budget = budget;
  c->max = max;
}

void
counts_free (struct counts *c)
{
  struct counts_slab *s;

  while ((s = c->slabs) != NULL) {
    c->slabs = s->next;
    free (s);
  }
  free (c->chunk);
  free (c->sorted);
  free (c->free_chunk);
  free (c->wide);
  c->chunk = c->free_chunk = NULL;
  c->sorted = NULL;
  c->last = NULL;
  c->wide = NULL;
  c->bits = c->wide_bits = 0;
  c->nr_chunks = c->nr_free = c->nr_wide = 0;
  c->used = 0;
}

int
counts_begin (struct counts *c, uint64_t first, uint64_t end)
{
  counts_free (c);
  c->first = first & ~(COUNTS_CHUNK - 1);
  c->end = (end + COUNTS_CHUNK - 1) & ~(COUNTS_CHUNK - 1);
  c->cut = false;
  c->chunk = calloc (1 << FIRST_BITS, sizeof *c->chunk);
  if (c->chunk == NULL)
    return no_memory ();
  c->bits = FIRST_BITS;
  account (c, sizeof *c->chunk << FIRST_BITS, 0);
  return 0;
}

/* ------------------------------------------------------------------- chunks */

/* Neighbours are looked for one after the other: their places are in one line of the
 * processor's cache.
 */
#define NEIGHBOURS UINT64_C (8)

/* The place of a chunk, whether it exists or not. */
static struct counts_chunk **
find_place (const struct counts *c, uint64_t number)
{
  const uint64_t mask = (UINT64_C (1) << c->bits) - 1;
  const uint64_t line = hash_mix (&c->key, number / NEIGHBOURS);
  uint64_t i = (line >> (64 - c->bits) & -NEIGHBOURS) | number % NEIGHBOURS;

  while (c->chunk[i] != NULL && c->chunk[i]->number != number)
    i = (i + 1) & mask;
  return &c->chunk[i];
}

struct counts_chunk *
counts_look_up (const struct counts *c, uint64_t number)
{
  return c->chunk != NULL ? *find_place (c, number) : NULL;
}

/* Replace the table by an empty one. */
static int
make_table (struct counts *c, unsigned bits)
{
  struct counts_chunk **table = calloc (UINT64_C (1) << bits, sizeof *table);

  if (table == NULL)
    return no_memory ();
  account (c, sizeof *table << bits, sizeof *table << c->bits);
  c->chunk = table;
  c->bits = bits;
  return 0;
}

static int
grow_table (struct counts *c)
{
  const uint64_t size = UINT64_C (1) << c->bits;
  struct counts_chunk **old = c->chunk;
  uint64_t i;

  if (c->nr_chunks * 4 < 3 * size)
    return 0;
  if (make_table (c, c->bits + 1) == -1)
    return -1;
  for (i = 0; i < size; ++i)
    if (old[i] != NULL)
      *find_place (c, old[i]->number) = old[i];
  free (old);
  return 0;
}

static struct counts_chunk *
take_chunk (struct counts *c)
{
  struct counts_slab *s = c->slabs;

  if (c->nr_free > 0) {
    struct counts_chunk *k = c->free_chunk[--c->nr_free];

    memset (k, 0, sizeof *k);
    return k;
  }
  if (s == NULL || s->nr == SLAB_CHUNKS) {
    s = calloc (1, sizeof *s);
    if (s == NULL) {
      no_memory ();
      return NULL;
    }
    s->next = c->slabs;
    c->slabs = s;
  }
  return &s->chunk[s->nr++];
}

static int
compare_entries (const void *a, const void *b)
{
  const struct counts_entry *x = a, *y = b;

  return x->number < y->number ? -1 : x->number > y->number;
}

/* All chunks as they were made, which is mostly in their order: next to each other,
 * where they are in memory, too.
 */
static void
list_slabs (const struct counts *c, struct counts_entry *list)
{
  const struct counts_slab *s;
  size_t at = c->nr_chunks, i;

  for (s = c->slabs; s != NULL; s = s->next)
    for (i = s->nr; i > 0; --i) {
      struct counts_chunk *k = (struct counts_chunk *) &s->chunk[i - 1];

      list[--at] = (struct counts_entry) { k->number, k };
    }
}

/* All chunks in any order, where some that were allocated are none. */
static void
list_table (const struct counts *c, struct counts_entry *list)
{
  size_t i, nr = 0;

  for (i = 0; i < UINT64_C (1) << c->bits; ++i)
    if (c->chunk[i] != NULL)
      list[nr++] = (struct counts_entry) { c->chunk[i]->number, c->chunk[i] };
}

/* All chunks in their order; the caller frees the list.  Returns NULL with the
 * error set.
 */
static struct counts_entry *
list_chunks (const struct counts *c)
{
  struct counts_entry *list = malloc ((c->nr_chunks + 1) * sizeof *list);
  size_t i;

  if (list == NULL) {
    no_memory ();
    return NULL;
  }
  if (c->nr_free == 0)
    list_slabs (c, list);
  else
    list_table (c, list);
  for (i = 1; i < c->nr_chunks; ++i)
    if (list[i].number < list[i - 1].number)
      break;
  if (i < c->nr_chunks)
    qsort (list, c->nr_chunks, sizeof *list, compare_entries);
  return list;
}

int
counts_sort (struct counts *c)
{
  free (c->sorted);
  c->sorted = list_chunks (c);
  c->position = 0;
  return c->sorted == NULL ? -1 : 0;
}

/* Whether the chunk at this position is the first from a number on. */
static bool
is_first_from (const struct counts *c, size_t i, uint64_t number)
{
  return i <= c->nr_chunks &&
    (i == c->nr_chunks || c->sorted[i].number >= number) &&
    (i == 0 || c->sorted[i - 1].number < number);
}

/* Mostly the one after the last result. */
static size_t
find_first_from (const struct counts *c, uint64_t number)
{
  size_t low = 0, high = c->nr_chunks;

  if (is_first_from (c, c->position, number))
    return c->position;
  if (is_first_from (c, c->position + 1, number))
    return c->position + 1;

  while (low < high) {
    const size_t middle = low + (high - low) / 2;

    if (c->sorted[middle].number < number)
      low = middle + 1;
    else
      high = middle;
  }
  return low;
}

uint64_t
counts_next (struct counts *c, uint64_t cluster)
{
  const uint64_t number = cluster >> COUNTS_CHUNK_BITS;
  size_t i;

  c->position = i = find_first_from (c, number);
  if (i == c->nr_chunks)
    return UINT64_MAX;
  return c->sorted[i].number == number ? cluster
    : c->sorted[i].number << COUNTS_CHUNK_BITS;
}

/* -------------------------------------------------------------- wide counts */

/* Where a group is, or would be. */
static struct counts_wide *
find_wide (const struct counts *c, uint64_t group)
{
  const uint64_t mask = (UINT64_C (1) << c->wide_bits) - 1;
  uint64_t i = hash_mix (&c->key, group) >> (64 - c->wide_bits);

  while (c->wide[i].group != 0 && c->wide[i].group != group)
    i = (i + 1) & mask;
  return &c->wide[i];
}

static uint64_t
wide_group (uint64_t cluster)
{
  return (cluster >> COUNTS_GROUP_BITS) + 1;
}

uint64_t
counts_get_wide (const struct counts *c, uint64_t cluster)
{
  return find_wide (c, wide_group (cluster))->count[cluster % COUNTS_GROUP];
}

/* Move those in the window to a table of another size, and drop the others. */
static int
resize_wide (struct counts *c, unsigned bits)
{
  struct counts_wide *old = c->wide;
  const uint64_t nr = old == NULL ? 0 : UINT64_C (1) << c->wide_bits;
  uint64_t i;

  c->wide = calloc (UINT64_C (1) << bits, sizeof *c->wide);
  if (c->wide == NULL) {
    c->wide = old;
    return no_memory ();
  }
  account (c, sizeof *old << bits, nr * sizeof *old);
  c->wide_bits = bits;
  c->nr_wide = 0;
  for (i = 0; i < nr; ++i) {
    const uint64_t group = old[i].group;

    /* The window consists of whole chunks, and those of whole groups. */
    if (group == 0 || !counts_in_window (c, (group - 1) << COUNTS_GROUP_BITS))
      continue;
    *find_wide (c, group) = old[i];
    c->nr_wide++;
  }
  free (old);
  return 0;
}

static int
put_wide (struct counts *c, uint64_t cluster, uint64_t count)
{
  struct counts_wide *w;

  if (c->wide == NULL || c->nr_wide * 4 >= 3 * (UINT64_C (1) << c->wide_bits))
    if (resize_wide (c, c->wide == NULL ? FIRST_BITS : c->wide_bits + 1) == -1)
      return -1;
  w = find_wide (c, wide_group (cluster));
  if (w->group == 0)
    c->nr_wide++;
  w->group = wide_group (cluster);
  w->count[cluster % COUNTS_GROUP] = count;
  return 0;
}

int
counts_add_many (struct counts *c, struct counts_chunk *k, uint64_t cluster,
                 uint64_t n, uint64_t *surplus)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);
  const uint64_t now = counts_get (c, k, cluster);
  const uint64_t room = c->max - now;
  const uint64_t more = n < room ? n : room;

  *surplus = n - more;
  if (now + more < COUNTS_WIDE) {
    k->narrow[i] = now + more;
    return 0;
  }
  if (put_wide (c, cluster, now + more) == -1)
    return -1;
  k->narrow[i] = COUNTS_WIDE;
  return 0;
}

/* ------------------------------------------------------------------ windows */

/* Cut the window off after this many of its chunks (fewer than it has). */
static int
cut (struct counts *c, size_t keep)
{
  struct counts_entry *list = list_chunks (c);
  struct counts_chunk **old = c->chunk, **p;
  const size_t nr = c->nr_chunks - keep;
  size_t i;

  if (list == NULL)
    return -1;
  p = realloc (c->free_chunk, (c->nr_free + nr) * sizeof *p);
  if (p == NULL) {
    free (list);
    return no_memory ();
  }
  for (i = 0; i < nr; ++i)
    p[c->nr_free + i] = list[keep + i].chunk;
  c->free_chunk = p;
  c->end = list[keep].number << COUNTS_CHUNK_BITS;
  if (make_table (c, c->bits) == -1) {
    free (list);
    return -1;
  }
  for (i = 0; i < keep; ++i)
    *find_place (c, list[i].number) = list[i].chunk;
  free (old);
  free (list);
  c->nr_free += nr;
  c->nr_chunks = keep;
  c->last = NULL;
  c->cut = true;
  account (c, 0, nr * sizeof (struct counts_chunk));
  return c->wide != NULL ? resize_wide (c, c->wide_bits) : 0;
}

/* The number of any chunk; there must be one. */
static uint64_t
some_number (const struct counts *c)
{
  size_t i = 0;

  while (c->chunk[i] == NULL)
    i++;
  return c->chunk[i]->number;
}

int
counts_new_chunk (struct counts *c, uint64_t cluster,
                  struct counts_chunk **chunk)
{
  const uint64_t number = cluster >> COUNTS_CHUNK_BITS;
  struct counts_chunk *k;

  *chunk = NULL;
  while (c->nr_chunks > 0 && c->used + sizeof *k > c->budget) {
    if (c->nr_chunks == 1 && number > some_number (c)) {
      c->end = number << COUNTS_CHUNK_BITS;
      c->cut = true;
    }
    else if (cut (c, c->nr_chunks / 2) == -1)
      return -1;
    if (!counts_in_window (c, cluster))
      return 0;
  }
  if (grow_table (c) == -1)
    return -1;
  k = take_chunk (c);
  if (k == NULL)
    return -1;
  k->number = number;
  *find_place (c, number) = k;
  c->nr_chunks++;
  c->last = k;
  account (c, sizeof *k, 0);
  *chunk = k;
  return 0;
}
