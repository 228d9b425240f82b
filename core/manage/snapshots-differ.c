/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "manage/snapshots-differ.h"

struct comparison {
  const struct tables *a, *b;
  uint64_t size;
  uint64_t *words; /* two L2 tables, big endian */
  snapshots_differ_fn *fn;
  void *opaque;
};

static uint64_t
table_of (const struct tables *t, uint64_t index)
{
  return index < t->nr ? be64toh (t->l1[index]) & QCOW2_ENTRY_OFFSET_MASK : 0;
}

static int
read_table (const struct tables *t, uint64_t at, uint64_t *words)
{
  const uint64_t cluster = UINT64_C (1) << t->format.cluster_bits;

  memset (words, 0, cluster);
  return at == 0 ? 0
    : storage_read (t->storage, words, cluster, (struct host_off) { at });
}

/* COPIED tells nothing of the content. */
static bool
is_same (const uint64_t *x, const uint64_t *y, unsigned step)
{
  return ((x[0] ^ y[0]) & ~htobe64 (QCOW2_ENTRY_COPIED)) == 0 &&
    (step == 1 || x[1] == y[1]);
}

/* Clusters from first to end (exclusive) of the disk. */
static int
tell (const struct comparison *c, uint64_t first, uint64_t end)
{
  const unsigned bits = c->a->format.cluster_bits;
  const uint64_t start = first << bits;
  const uint64_t stop = end > c->size >> bits ? c->size : end << bits;

  return first == end || start >= stop ? 0
    : c->fn (c->opaque, start, stop - start);
}

/* What the L2 tables at index map, of which the first maps the cluster `first'
 * of the disk.
 */
static int
compare_tables (const struct comparison *c, uint64_t index, uint64_t first)
{
  const unsigned step = c->a->format.extended_l2 ? 2 : 1;
  const uint64_t nr = (UINT64_C (1) << c->a->format.cluster_bits) / 8;
  const uint64_t *x = c->words, *y = c->words + nr;
  uint64_t i, from = 0; /* what is from there up to i differs */

  if (read_table (c->a, table_of (c->a, index), c->words) == -1 ||
      read_table (c->b, table_of (c->b, index), c->words + nr) == -1)
    return -1;
  for (i = 0; i < nr; i += step) {
    if (!is_same (x + i, y + i, step))
      continue;
    if (tell (c, first + from / step, first + i / step) == -1)
      return -1;
    from = i + step;
  }
  return tell (c, first + from / step, first + nr / step);
}

int
snapshots_differ (const struct tables *a, const struct tables *b,
                  uint64_t size, snapshots_differ_fn *fn, void *opaque)
{
  const unsigned bits = a->format.cluster_bits;
  const uint64_t per_table = UINT64_C (1)
    << (bits - (a->format.extended_l2 ? 4 : 3));
  struct comparison c = {
    .a = a, .b = b, .size = size, .fn = fn, .opaque = opaque,
    .words = malloc ((size_t) 2 << bits),
  };
  uint64_t i;
  int r = 0;

  if (c.words == NULL) {
    error_set (ENOMEM, "%s: out of memory", a->storage->name);
    return -1;
  }
  for (i = 0; r == 0 && (i < a->nr || i < b->nr) &&
         (i * per_table) << bits < size; ++i)
    if (table_of (a, i) != table_of (b, i))
      r = compare_tables (&c, i, i * per_table);
  free (c.words);
  return r;
}
