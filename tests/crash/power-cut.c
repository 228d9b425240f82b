/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "must-have.h"
#include "power-cut.h"
#include "random.h"

/* What one call made of a sector. */
struct version {
  uint64_t op;
  uint32_t older;  /* of the same sector, + 1; 0: the durable content */
  bool lost;       /* no flush makes it durable any more */
  bool cut_off;    /* by making the file shorter */
  uint64_t reach;  /* how large the file is at least if this landed */
  uint8_t bytes[SECTOR];
};

/* A size that the file had. */
struct size_version {
  uint64_t op;
  uint64_t size;
  bool lost;
};

struct bytes {
  uint8_t *p;
  uint64_t size, capacity;
};

struct cut {
  const struct crash_op *op;
  uint64_t nr;
  uint64_t at;

  struct bytes durable; /* zeros follow the size */
  struct bytes live;

  struct version *version;
  uint32_t nr_versions, versions_allocated;

  uint32_t *newest; /* version + 1 of each sector */
  uint64_t nr_sectors;
  uint64_t *touched; /* sectors that have versions */
  uint64_t nr_touched, touched_allocated;

  struct size_version *size;
  unsigned nr_sizes, sizes_allocated;

  uint64_t *open; /* flushes and durable writes that have not returned */
  unsigned nr_open, open_allocated;

  uint64_t *pending;
  unsigned nr_pending;
  bool pending_known;
  uint32_t *number; /* of each call of the log, among the pending ones */
  bool *landed;     /* of each pending one */
};

static void
bytes_reserve (struct bytes *b, uint64_t size)
{
  const uint64_t capacity = (size + size / 2 + 65536) / SECTOR * SECTOR;

  if (size <= b->capacity)
    return;
  b->p = must_have (realloc (b->p, capacity));
  memset (b->p + b->capacity, 0, capacity - b->capacity);
  b->capacity = capacity;
}

struct cut *
cut_new (const void *bytes, uint64_t size, const struct crash_op *op,
         uint64_t nr)
{
  struct cut *c = must_have (calloc (1, sizeof *c));

  c->op = op;
  c->nr = nr;
  bytes_reserve (&c->durable, size + SECTOR);
  bytes_reserve (&c->live, size + SECTOR);
  memcpy (c->durable.p, bytes, size);
  memcpy (c->live.p, bytes, size);
  c->durable.size = c->live.size = size;
  c->number = must_have (calloc (nr + 1, sizeof *c->number));
  c->pending = must_have (calloc (nr + 1, sizeof *c->pending));
  c->landed = must_have (calloc (nr + 1, sizeof *c->landed));
  return c;
}

void
cut_free (struct cut *c)
{
  if (c == NULL)
    return;
  free (c->durable.p);
  free (c->live.p);
  free (c->version);
  free (c->newest);
  free (c->touched);
  free (c->size);
  free (c->open);
  free (c->pending);
  free (c->number);
  free (c->landed);
  free (c);
}

static void
reserve_sectors (struct cut *c, uint64_t nr)
{
  if (nr <= c->nr_sectors)
    return;
  nr += nr / 2 + 128;
  c->newest = must_have (realloc (c->newest, nr * sizeof *c->newest));
  memset (c->newest + c->nr_sectors, 0,
          (nr - c->nr_sectors) * sizeof *c->newest);
  c->nr_sectors = nr;
}

/* The call made this sector what is live now. */
static void
add_version (struct cut *c, uint64_t op, uint64_t sector, bool cut_off,
             uint64_t reach)
{
  struct version *v;

  reserve_sectors (c, sector + 1);
  GROW (c->version, c->nr_versions, c->versions_allocated);
  if (c->newest[sector] == 0) {
    GROW (c->touched, c->nr_touched, c->touched_allocated);
    c->touched[c->nr_touched++] = sector;
  }
  v = &c->version[c->nr_versions++];
  *v = (struct version) {
    .op = op, .older = c->newest[sector], .cut_off = cut_off, .reach = reach,
  };
  memcpy (v->bytes, c->live.p + sector * SECTOR, SECTOR);
  c->newest[sector] = c->nr_versions;
}

static void
add_size (struct cut *c, uint64_t op, uint64_t size)
{
  GROW (c->size, c->nr_sizes, c->sizes_allocated);
  c->size[c->nr_sizes++] = (struct size_version) { .op = op, .size = size };
  c->live.size = size;
}

/* The call changed these bytes of the live disk. */
static void
add_versions (struct cut *c, uint64_t op, uint64_t start, uint64_t end,
              bool cut_off, bool extends)
{
  uint64_t sector;

  for (sector = start / SECTOR; sector * SECTOR < end; ++sector) {
    const uint64_t sector_end = (sector + 1) * SECTOR;
    const uint64_t reach = sector_end < end ? sector_end : end;

    add_version (c, op, sector, cut_off, extends ? reach : 0);
  }
}

static void
begin_resize (struct cut *c, uint64_t i, uint64_t size)
{
  const uint64_t old = c->live.size;

  bytes_reserve (&c->live, size + SECTOR);
  if (size < old) {
    memset (c->live.p + size, 0, old - size);
    add_versions (c, i, size, old, true, false);
  }
  add_size (c, i, size);
}

static void
begin (struct cut *c, uint64_t i)
{
  const struct crash_op *op = &c->op[i];
  const uint64_t end = op->offset + op->count;

  switch (op->kind) {
  case CRASH_WRITE:
    bytes_reserve (&c->live, end + SECTOR);
    memcpy (c->live.p + op->offset, op->data, op->count);
    add_versions (c, i, op->offset, end, false, true);
    if (end > c->live.size)
      add_size (c, i, end);
    break;
  case CRASH_ZERO:
    if (op->count == 0)
      return;
    memset (c->live.p + op->offset, 0, op->count);
    add_versions (c, i, op->offset, end, false, false);
    break;
  case CRASH_RESIZE:
    begin_resize (c, i, op->offset);
    break;
  case CRASH_FLUSH:
    break;
  }
  if (op->kind == CRASH_FLUSH || op->durable) {
    GROW (c->open, c->nr_open, c->open_allocated);
    c->open[c->nr_open++] = i;
  }
}

/* Drop the versions of a sector that are older than this one (+ 1), which
 * has become durable, and itself.
 */
static void
settle_version (struct cut *c, uint64_t sector, uint32_t durable)
{
  uint32_t *p = &c->newest[sector];

  bytes_reserve (&c->durable, (sector + 1) * SECTOR);
  memcpy (c->durable.p + sector * SECTOR, c->version[durable - 1].bytes,
          SECTOR);
  while (*p != durable)
    p = &c->version[*p - 1].older;
  *p = 0;
}

/* Sectors without versions are no longer touched. */
static void
forget_settled (struct cut *c)
{
  uint64_t i, nr = 0;

  for (i = 0; i < c->nr_touched; ++i) {
    if (c->newest[c->touched[i]] != 0)
      c->touched[nr++] = c->touched[i];
  }
  c->nr_touched = nr;
  if (nr == 0)
    c->nr_versions = 0;
}

/* The first size version from which on none is dropped stays. */
static void
settle_sizes (struct cut *c, unsigned nr)
{
  memmove (c->size, c->size + nr, (c->nr_sizes - nr) * sizeof *c->size);
  c->nr_sizes -= nr;
}

/* True if a flush that began as call j covers call i. */
static bool
is_covered (const struct cut *c, uint64_t i, uint64_t j)
{
  return i < j && c->op[i].end <= j;
}

static void
end_flush (struct cut *c, uint64_t j)
{
  uint64_t i;
  unsigned k;

  for (i = 0; i < c->nr_touched; ++i) {
    uint32_t v = c->newest[c->touched[i]];

    while (v != 0 && (c->version[v - 1].lost ||
                      !is_covered (c, c->version[v - 1].op, j)))
      v = c->version[v - 1].older;
    if (v != 0)
      settle_version (c, c->touched[i], v);
  }
  for (k = c->nr_sizes; k > 0; --k) {
    if (!c->size[k - 1].lost && is_covered (c, c->size[k - 1].op, j))
      break;
  }
  if (k > 0) {
    c->durable.size = c->size[k - 1].size;
    bytes_reserve (&c->durable, c->durable.size + SECTOR);
    settle_sizes (c, k);
  }
  forget_settled (c);
}

/* Whatever was pending when it began may now never be durable. */
static void
end_failed_flush (struct cut *c, uint64_t j)
{
  uint64_t i;
  unsigned k;

  for (i = 0; i < c->nr_touched; ++i) {
    uint32_t v;

    for (v = c->newest[c->touched[i]]; v != 0; v = c->version[v - 1].older)
      c->version[v - 1].lost |= c->version[v - 1].op < j;
  }
  for (k = 0; k < c->nr_sizes; ++k)
    c->size[k].lost |= c->size[k].op < j;
}

static void
end_durable_write (struct cut *c, uint64_t j)
{
  const struct crash_op *op = &c->op[j];
  const uint64_t end = op->offset + op->count;
  uint64_t sector;
  unsigned k = 0, i;

  for (sector = op->offset / SECTOR; sector * SECTOR < end; ++sector) {
    uint32_t v = c->newest[sector];

    while (v != 0 && c->version[v - 1].op != j)
      v = c->version[v - 1].older;
    if (v != 0)
      settle_version (c, sector, v);
  }
  if (c->durable.size < end)
    c->durable.size = end;
  bytes_reserve (&c->durable, end + SECTOR);
  /* No size from before that leaves it out is possible any more. */
  for (i = 0; i < c->nr_sizes; ++i) {
    if (c->size[i].op > j || c->size[i].size >= end)
      c->size[k++] = c->size[i];
  }
  c->nr_sizes = k;
  forget_settled (c);
}

/* End what had returned when k calls were in the log. */
static void
end_returned (struct cut *c, uint64_t k)
{
  unsigned i, nr = 0;

  for (i = 0; i < c->nr_open; ++i) {
    const uint64_t j = c->open[i];

    if (c->op[j].end > k)
      c->open[nr++] = j;
    else if (c->op[j].kind != CRASH_FLUSH)
      end_durable_write (c, j);
    else if (c->op[j].failed)
      end_failed_flush (c, j);
    else
      end_flush (c, j);
  }
  c->nr_open = nr;
}

void
cut_advance (struct cut *c, uint64_t k)
{
  while (c->at < k && c->at < c->nr) {
    begin (c, c->at);
    c->at++;
    end_returned (c, c->at);
    c->pending_known = false;
  }
}

static void
find_pending (struct cut *c)
{
  uint64_t i;
  unsigned k;

  memset (c->number, 0, (c->nr + 1) * sizeof *c->number);
  for (i = 0; i < c->nr_touched; ++i) {
    uint32_t v;

    for (v = c->newest[c->touched[i]]; v != 0; v = c->version[v - 1].older)
      c->number[c->version[v - 1].op] = 1;
  }
  for (k = 0; k < c->nr_sizes; ++k)
    c->number[c->size[k].op] = 1;
  c->nr_pending = 0;
  for (i = 0; i < c->nr; ++i) {
    if (c->number[i] == 1) {
      c->number[i] = c->nr_pending;
      c->pending[c->nr_pending++] = i;
    }
  }
  c->pending_known = true;
}

unsigned
cut_pending (struct cut *c)
{
  if (!c->pending_known)
    find_pending (c);
  return c->nr_pending;
}

uint64_t
cut_pending_op (const struct cut *c, unsigned i)
{
  return c->pending[i];
}

/* How a seed tears. */
struct tearing {
  uint64_t state;
  unsigned tear;    /* of 8 sectors of a torn call, how many land */
  bool any_version; /* an older version may win over a newer one */
};

static void
choose_landed (struct cut *c, struct landed l, struct tearing *t)
{
  unsigned i, density;

  *t = (struct tearing) { .tear = 8 };
  if (l.kind == LANDED_TORN) {
    t->state = mix (l.arg + 1);
    t->tear = 8 - random_below (&t->state, 8);
    t->any_version = random_below (&t->state, 4) == 0;
    density = 1 + random_below (&t->state, 8);
  }
  for (i = 0; i < cut_pending (c); ++i) {
    switch (l.kind) {
    case LANDED_NONE:
      c->landed[i] = false;
      break;
    case LANDED_ALL:
      c->landed[i] = true;
      break;
    case LANDED_PREFIX:
      c->landed[i] = i < l.arg;
      break;
    case LANDED_ONLY:
      c->landed[i] = i == l.arg;
      break;
    case LANDED_NOT:
      c->landed[i] = i != l.arg;
      break;
    case LANDED_MASK:
      c->landed[i] = i < 64 && (l.arg >> i & 1);
      break;
    case LANDED_TORN:
      c->landed[i] = random_below (&t->state, 8) < density;
      break;
    }
  }
}

/* Which size of the file landed: the call (or UINT64_MAX), and the size. */
static uint64_t
choose_size (const struct cut *c, struct landed l, struct tearing *t,
             uint64_t *op)
{
  unsigned k = c->nr_sizes;

  if (l.kind == LANDED_TORN)
    k = random_below (&t->state, c->nr_sizes + 1);
  else
    while (k > 0 && !c->landed[c->number[c->size[k - 1].op]])
      k--;
  *op = k > 0 ? c->size[k - 1].op : UINT64_MAX;
  return k > 0 ? c->size[k - 1].size : c->durable.size;
}

/* Which version of a sector landed: + 1, or 0 for the durable content. */
static uint32_t
choose_version (const struct cut *c, uint64_t sector, uint64_t size_op,
                struct tearing *t)
{
  uint32_t v;

  for (v = c->newest[sector]; v != 0; v = c->version[v - 1].older) {
    const struct version *x = &c->version[v - 1];

    /* What a shorter file had cut off does not come back. */
    if (x->cut_off && size_op != UINT64_MAX && x->op <= size_op)
      return v;
    if (!c->landed[c->number[x->op]])
      continue;
    if (t->tear < 8 && random_below (&t->state, 8) >= t->tear)
      continue;
    if (t->any_version && x->older != 0 && random_below (&t->state, 2) == 0)
      continue;
    return v;
  }
  return 0;
}

static void
state_reserve (struct disk_state *s, uint64_t size)
{
  if (size <= s->capacity)
    return;
  s->capacity = size + size / 2 + 65536;
  s->bytes = must_have (realloc (s->bytes, s->capacity));
}

void
cut_state (struct cut *c, struct landed l, struct disk_state *s)
{
  struct tearing t;
  uint64_t i, size, size_op, copied;

  choose_landed (c, l, &t);
  size = choose_size (c, l, &t, &size_op);
  copied = c->durable.size > size ? c->durable.size : size;
  bytes_reserve (&c->durable, copied + SECTOR);
  state_reserve (s, copied + SECTOR);
  memcpy (s->bytes, c->durable.p, copied);
  memset (s->bytes + copied, 0, SECTOR);
  s->size = size;

  for (i = 0; i < c->nr_touched; ++i) {
    const uint64_t start = c->touched[i] * SECTOR;
    const uint32_t v = choose_version (c, c->touched[i], size_op, &t);

    if (v == 0)
      continue;
    if (start + SECTOR > copied) {
      state_reserve (s, start + 2 * SECTOR);
      if (start > copied)
        memset (s->bytes + copied, 0, start - copied);
      copied = start + SECTOR;
    }
    memcpy (s->bytes + start, c->version[v - 1].bytes, SECTOR);
    if (s->size < c->version[v - 1].reach)
      s->size = c->version[v - 1].reach;
  }
  /* The last sector may have been cut in the middle. */
  if (copied > s->size)
    memset (s->bytes + s->size, 0, copied - s->size);
}

void
disk_state_free (struct disk_state *s)
{
  free (s->bytes);
  *s = (struct disk_state) { 0 };
}

static const char *const kind_names[] = {
  [LANDED_NONE] = "none",
  [LANDED_ALL] = "all",
  [LANDED_PREFIX] = "prefix",
  [LANDED_ONLY] = "only",
  [LANDED_NOT] = "not",
  [LANDED_MASK] = "mask",
  [LANDED_TORN] = "torn",
};

const char *
landed_format (struct landed l, char *buf, size_t size)
{
  if (l.kind == LANDED_NONE || l.kind == LANDED_ALL)
    snprintf (buf, size, "%s", kind_names[l.kind]);
  else if (l.kind == LANDED_MASK || l.kind == LANDED_TORN)
    snprintf (buf, size, "%s:0x%" PRIx64, kind_names[l.kind], l.arg);
  else
    snprintf (buf, size, "%s:%" PRIu64, kind_names[l.kind], l.arg);
  return buf;
}

bool
landed_parse (struct landed *l, const char *text)
{
  const size_t n = strcspn (text, ":");
  unsigned i;

  for (i = 0; i < sizeof kind_names / sizeof kind_names[0]; ++i) {
    if (strlen (kind_names[i]) != n || strncmp (kind_names[i], text, n) != 0)
      continue;
    l->kind = i;
    l->arg = text[n] == ':' ? strtoull (text + n + 1, NULL, 0) : 0;
    return true;
  }
  return false;
}
