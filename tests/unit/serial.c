/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "serial.h"

unsigned
serial_begin (struct serial *s, struct serial_request r)
{
  if (s->nr == SERIAL_MAX)
    abort ();
  r.begun = ++s->now;
  r.ended = 0;
  s->request[s->nr] = r;
  return s->nr++;
}

void
serial_end (struct serial *s, unsigned request)
{
  s->request[request].ended = ++s->now;
}

static bool
is_before (const struct serial_request *a, const struct serial_request *b)
{
  return a->ended != 0 && a->ended < b->begun;
}

uint32_t
serial_before (const struct serial *s, unsigned request)
{
  uint32_t r = 0;
  unsigned i;

  for (i = 0; i < s->nr; ++i) {
    if (is_before (&s->request[i], &s->request[request]))
      r |= UINT32_C (1) << i;
  }
  return r;
}

uint32_t
serial_ended (const struct serial *s)
{
  uint32_t r = 0;
  unsigned i;

  for (i = 0; i < s->nr; ++i) {
    if (s->request[i].ended != 0)
      r |= UINT32_C (1) << i;
  }
  return r;
}

uint32_t
serial_stable (const struct serial *s)
{
  uint32_t r = 0;
  unsigned i;

  for (i = 0; i < s->nr; ++i) {
    const struct serial_request *q = &s->request[i];

    if (q->ended == 0)
      continue;
    if (q->fua)
      r |= UINT32_C (1) << i;
    if (q->flush)
      r |= serial_before (s, i);
  }
  return r;
}

/* Those of the requests that may as well have changed nothing. */
static uint32_t
optional (const struct serial *s)
{
  uint32_t r = 0;
  unsigned i;

  for (i = 0; i < s->nr; ++i) {
    if (s->request[i].optional)
      r |= UINT32_C (1) << i;
  }
  return r;
}

/* Those of the requests that change this sector. */
static uint32_t
touching (const struct serial *s, uint64_t sector)
{
  const uint64_t from = sector * SERIAL_SECTOR, to = from + SERIAL_SECTOR;
  uint32_t r = 0;
  unsigned i;

  for (i = 0; i < s->nr; ++i) {
    if (s->request[i].from < to && from < s->request[i].to)
      r |= UINT32_C (1) << i;
  }
  return r;
}

static void
bytes_in (const struct serial_request *r, uint64_t sector, unsigned *from,
          unsigned *to)
{
  const uint64_t start = sector * SERIAL_SECTOR;

  *from = r->from > start ? r->from - start : 0;
  *to = r->to < start + SERIAL_SECTOR ? r->to - start : SERIAL_SECTOR;
}

/* A search for an order of requests, the last one first, after which a sector
 * holds this.  is_open: bytes that none of those chosen so far changes.
 */
struct search {
  const struct serial *s;
  uint64_t sector;
  const uint8_t *content;
  bool is_open[SERIAL_SECTOR];
  unsigned nr_open;
  uint32_t left; /* that may come before those */
  uint32_t must; /* of these, those that have to */
};

/* Whether the bytes that are open would be right after this request. */
static bool
gives_content (const struct search *f, const struct serial_request *r)
{
  const uint64_t start = f->sector * SERIAL_SECTOR;
  unsigned i, to;

  bytes_in (r, f->sector, &i, &to);
  if (f->nr_open == SERIAL_SECTOR && r->bytes != NULL)
    return memcmp (f->content + i, r->bytes + (start + i - r->from),
                   to - i) == 0;
  for (; i < to; ++i) {
    if (f->is_open[i] && f->content[i] !=
        (r->bytes != NULL ? r->bytes[start + i - r->from] : 0))
      return false;
  }
  return true;
}

/* The same for no request at all. */
static bool
began_with_content (const struct search *f)
{
  const uint8_t *disk = f->s->disk + f->sector * SERIAL_SECTOR;
  unsigned i;

  for (i = 0; i < SERIAL_SECTOR; ++i) {
    if (f->is_open[i] && f->content[i] != disk[i])
      return false;
  }
  return true;
}

static uint32_t
after (const struct search *f, unsigned request)
{
  uint32_t r = 0;
  unsigned i;

  for (i = 0; i < f->s->nr; ++i) {
    if (is_before (&f->s->request[request], &f->s->request[i]))
      r |= UINT32_C (1) << i;
  }
  return r;
}

/* Have the request come before those that were chosen. */
static struct search
choose (const struct search *f, unsigned request)
{
  struct search next = *f;
  unsigned i, to;

  bytes_in (&f->s->request[request], f->sector, &i, &to);
  for (; i < to; ++i) {
    next.nr_open -= next.is_open[i];
    next.is_open[i] = false;
  }
  /* What must come after it is left out, and what came before it is not. */
  next.left &= ~(after (f, request) | UINT32_C (1) << request);
  next.must = (f->must | serial_before (f->s, request)) & next.left &
    ~optional (f->s);
  return next;
}

static bool
find_order (const struct search *f)
{
  unsigned i;

  if (f->nr_open == 0)
    return true; /* whatever came before */
  if (f->must == 0 && began_with_content (f))
    return true;
  for (i = 0; i < f->s->nr; ++i) {
    struct search next;

    if (!(f->left >> i & 1) || (after (f, i) & f->must) != 0 ||
        !gives_content (f, &f->s->request[i]))
      continue;
    next = choose (f, i);
    if (find_order (&next))
      return true;
  }
  return false;
}

bool
serial_allows (const struct serial *s, uint64_t sector,
               const uint8_t *content, uint32_t must)
{
  const uint32_t left = touching (s, sector);
  struct search f = {
    .s = s, .sector = sector, .content = content, .nr_open = SERIAL_SECTOR,
    .left = left, .must = must & left & ~optional (s),
  };

  if (left == 0)
    return memcmp (s->disk + sector * SERIAL_SECTOR, content,
                   SERIAL_SECTOR) == 0;
  memset (f.is_open, true, sizeof f.is_open);
  return find_order (&f);
}
