/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>

#include "base/error.h"
#include "qcow2/check/ranges.h"

static int
no_memory (void)
{
  error_set (ENOMEM, "out of memory");
  return -1;
}

int
check_ranges_add (struct check_ranges *r, uint64_t offset, uint64_t bytes,
                  bool active)
{
  if (r->nr == r->capacity) {
    const size_t capacity = 2 * r->capacity + 16;
    struct check_range *p = realloc (r->range, capacity * sizeof *p);

    if (p == NULL)
      return no_memory ();
    r->range = p;
    r->capacity = capacity;
  }
  r->range[r->nr++] = (struct check_range) { offset, bytes, active };
  return 0;
}

void
check_ranges_free (struct check_ranges *r)
{
  free (r->range);
  *r = (struct check_ranges) { .range = NULL };
}

/* A place where a range begins or ends. */
struct edge {
  uint64_t offset;
  bool begins;
  bool active;
};

static int
compare_edges (const void *a, const void *b)
{
  const struct edge *x = a, *y = b;

  return (x->offset > y->offset) - (x->offset < y->offset);
}

static struct edge *
find_edges (const struct check_ranges *r, uint64_t unit)
{
  struct edge *edge = calloc (2 * r->nr + 1, sizeof *edge);
  size_t i;

  if (edge == NULL) {
    no_memory ();
    return NULL;
  }
  for (i = 0; i < r->nr; ++i) {
    const struct check_range *t = &r->range[i];
    const uint64_t end = t->offset + t->bytes;

    edge[2*i] = (struct edge) { t->offset & -unit, true, t->active };
    edge[2*i+1] = (struct edge) { (end + unit - 1) & -unit, false, t->active };
  }
  qsort (edge, 2 * r->nr, sizeof *edge, compare_edges);
  return edge;
}

int
check_each_interval (const struct check_ranges *r, uint64_t unit,
                     check_interval_fn *fn, void *opaque)
{
  struct edge *edge = find_edges (r, unit);
  struct check_paths paths = { 0, 0 };
  int ret = edge == NULL ? -1 : 0;
  size_t i;

  for (i = 0; ret == 0 && i + 1 < 2 * r->nr; ++i) {
    const uint64_t n = edge[i].begins ? 1 : -1;

    paths.all += n;
    paths.active += edge[i].active ? n : 0;
    if (paths.all > 0 && edge[i].offset < edge[i+1].offset)
      ret = fn (opaque, edge[i].offset, edge[i+1].offset, paths);
  }
  free (edge);
  return ret;
}
