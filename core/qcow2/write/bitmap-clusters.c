/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "qcow2/bitmaps.h"
#include "qcow2/check/tables.h"
#include "qcow2/write/bitmap-clusters.h"

struct stretch {
  uint64_t start, end;
};

/* Unsorted, and overlapping, until they are joined. */
struct stretches {
  struct stretch *at;
  size_t nr, capacity;
  bool overlapped; /* some did */
};

struct places {
  const struct storage *storage;
  size_t max;
  struct stretches tables, bits;
  bool shared;    /* by several tables */
  int error;      /* ENOMEM or ENOTSUP: not everything is in here */
  char text[256]; /* what is damaged */
};

static int
compare_stretches (const void *a, const void *b)
{
  const struct stretch *x = a, *y = b;

  return (x->start > y->start) - (x->start < y->start);
}

/* Sort, and join those that touch. */
static void
join (struct stretches *p)
{
  size_t i, last = 0;

  if (p->nr < 2)
    return;
  qsort (p->at, p->nr, sizeof p->at[0], compare_stretches);
  for (i = 1; i < p->nr; ++i) {
    p->overlapped |= p->at[i].start < p->at[last].end;
    if (p->at[i].start > p->at[last].end)
      p->at[++last] = p->at[i];
    else if (p->at[i].end > p->at[last].end)
      p->at[last].end = p->at[i].end;
  }
  p->nr = last + 1;
}

/* Returns 0 or an errno. */
static int
make_room (struct stretches *p, size_t max)
{
  size_t capacity = 2 * p->capacity + 16;
  struct stretch *at;

  if (p->nr < p->capacity)
    return 0;
  if (p->capacity >= 2 * max) {
    join (p);
    return p->nr > max ? ENOTSUP : 0;
  }
  if (capacity > 2 * max)
    capacity = 2 * max;
  at = realloc (p->at, capacity * sizeof *at);
  if (at == NULL)
    return ENOMEM;
  p->at = at;
  p->capacity = capacity;
  return 0;
}

/* Most follow each other in the file as in the bitmap. */
static int
add_stretch (struct stretches *p, uint64_t start, uint64_t end, size_t max)
{
  struct stretch *last = p->nr > 0 ? &p->at[p->nr - 1] : NULL;
  int r;

  if (last != NULL && last->start <= start && start <= last->end) {
    p->overlapped |= start < last->end;
    if (end > last->end)
      last->end = end;
    return 0;
  }
  r = make_room (p, max);
  if (r == 0)
    p->at[p->nr++] = (struct stretch) { start, end };
  return r;
}

/* The check's, for each reference that bitmaps have to what is in the file. */
static void
note_place (void *opaque, enum check_use use, uint64_t offset, uint64_t bytes,
            uint64_t n)
{
  struct places *p = opaque;
  const bool bits = use == USE_BITS;

  if (use == USE_BITMAP_DIRECTORY || p->error != 0)
    return;
  p->shared |= n > 1;
  p->error = add_stretch (bits ? &p->bits : &p->tables, offset, offset + bytes,
                          p->max);
}

static void
keep_text (void *opaque, enum check_kind kind, const char *text)
{
  struct places *p = opaque;

  (void) kind;
  snprintf (p->text, sizeof p->text, "%s", text);
}

/* Look at all of them. */
static int
find_places (struct places *p, struct storage *s)
{
  const struct check_options options = {
    .messages = 1, .found = keep_text, .opaque = p,
  };
  struct check_report report = { 0 };
  struct check c;
  int r;

  if (check_start (&c, s, &options) == -1)
    return -1;
  c.referred = note_place;
  c.opaque = p;
  r = check_bitmaps (&c);
  check_findings_commit (&c.findings, &report);
  check_end (&c);
  if (r == -1)
    return -1;
  if (!report.bitmaps_damaged)
    return 0;
  error_set (EIO, "%s: damaged: %s", s->name, p->text);
  return -1;
}

static int
judge_places (struct places *p)
{
  const char *name = p->storage->name;

  join (&p->tables);
  join (&p->bits);
  if (p->error == 0 && (p->tables.nr > p->max || p->bits.nr > p->max))
    p->error = ENOTSUP;
  if (p->error == ENOMEM)
    error_set (ENOMEM, "%s: out of memory", name);
  else if (p->error != 0) {
    error_set (p->error, "%s: its bitmaps are in more than %zu places of the "
               "file, too many to keep other data from there: remove one of "
               "them", name, p->max);
    advise (ADVICE_READ_ONLY);
  }
  else
    return 0;
  return -1;
}

static int
add_stretches (struct overlap *o, const struct stretches *p, enum metadata kind)
{
  size_t i;

  for (i = 0; i < p->nr; ++i) {
    if (overlap_add_range (o, (struct host_off) { p->at[i].start },
                           p->at[i].end - p->at[i].start, kind) == -1)
      return -1;
  }
  return 0;
}

int
bitmap_clusters_add (struct storage *s, const struct header *h,
                     struct overlap *o, size_t max, bool *shared)
{
  struct places p = { .storage = s, .max = max };
  int r = -1;

  if (bitmaps_check_tables (s, h) == 0 && find_places (&p, s) == 0 &&
      judge_places (&p) == 0 &&
      add_stretches (o, &p.tables, METADATA_BITMAP_TABLE) == 0)
    r = add_stretches (o, &p.bits, METADATA_BITS);
  *shared = p.shared || p.tables.overlapped || p.bits.overlapped;
  free (p.tables.at);
  free (p.bits.at);
  return r;
}

int
bitmap_clusters_check (struct alloc *a, const struct overlap *o)
{
  size_t i;

  for (i = 0; i < o->nr_ranges; ++i) {
    const struct overlap_range *r = &o->range[i];
    struct host_off free;

    if (!overlap_is_bitmap (r->kind))
      continue;
    if (alloc_find_free (a, (struct host_off) { r->start }, r->end - r->start,
                         &free) == -1)
      return -1;
    if (host_is_none (free))
      continue;
    error_set (EIO, "%s: damaged: the refcount of the cluster at offset 0x%"
               PRIx64 " is 0, but it holds %s",
               a->writeback->tables->name, free.v, overlap_name (r->kind));
    return -1;
  }
  return 0;
}
