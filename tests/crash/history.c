/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "history.h"
#include "must-have.h"

static void
add_value (struct history *h, uint32_t request, uint64_t sector,
           uint64_t hash)
{
  GROW (h->value, h->nr_values, h->values_allocated);
  h->value[h->nr_values++] = (struct history_value) {
    .hash = hash, .request = request, .older = h->newest[sector],
  };
  h->newest[sector] = h->nr_values;
}

void
history_init (struct history *h, const void *disk, uint64_t nr)
{
  memset (h, 0, sizeof *h);
  h->nr_sectors = nr;
  h->newest = must_have (calloc (nr + 1, sizeof *h->newest));
  h->initial = must_have (malloc (nr * SECTOR + 1));
  memcpy (h->initial, disk, nr * SECTOR);
}

void
history_free (struct history *h)
{
  free (h->initial);
  free (h->newest);
  free (h->value);
  free (h->request);
  memset (h, 0, sizeof *h);
}

/* Times are numbers of calls of the storage; what happens between two calls is
 * told apart by the low bits.
 */
#define TICK_BITS 24
#define LAST_TICK ((UINT64_C (1) << TICK_BITS) - 1)

uint64_t
history_moment (struct history *h, uint64_t now)
{
  return now << TICK_BITS | (++h->ticks & LAST_TICK);
}

uint32_t
history_begin (struct history *h, uint64_t now)
{
  GROW (h->request, h->nr_requests, h->requests_allocated);
  h->request[h->nr_requests] = (struct history_request) {
    .issued = history_moment (h, now), .answered = HISTORY_NEVER,
    .stable = HISTORY_NEVER,
  };
  return h->nr_requests++;
}

void
history_value (struct history *h, uint32_t request, uint64_t sector,
               const void *content)
{
  const uint64_t hash = content_hash (content);

  add_value (h, request, sector, hash);
}

void
history_answer (struct history *h, uint32_t request, uint64_t now, bool fua)
{
  h->request[request].answered = history_moment (h, now);
  if (fua)
    h->request[request].stable = h->request[request].answered;
}

void
history_fail (struct history *h, uint32_t request, uint64_t now)
{
  h->request[request].answered = history_moment (h, now);
  h->request[request].failed = true;
}

void
history_flushed (struct history *h, uint64_t issued, uint64_t now)
{
  uint32_t i;

  for (i = 0; i < h->nr_requests; ++i) {
    if (h->request[i].answered != HISTORY_NEVER && !h->request[i].failed &&
        h->request[i].answered <= issued &&
        h->request[i].stable == HISTORY_NEVER)
      h->request[i].stable = history_moment (h, now);
  }
}

static bool
is_initial (const struct history *h, uint64_t sector, const void *content)
{
  return memcmp (h->initial + sector * SECTOR, content, SECTOR) == 0;
}

static uint64_t
hash_if_changed (const struct history *h, uint64_t sector,
                 const void *content)
{
  return h->newest[sector] == 0 ? 0 : content_hash (content);
}

bool
history_allows (const struct history *h, uint64_t sector, const void *content,
                uint64_t moment)
{
  const uint64_t hash = hash_if_changed (h, sector, content);
  const uint64_t limit = moment << TICK_BITS | LAST_TICK;
  uint64_t floor = 0; /* what was answered up to then is superseded */
  const struct history_request *stable = NULL; /* by this one */
  uint32_t v;

  for (v = h->newest[sector]; v != 0; v = h->value[v - 1].older) {
    const struct history_value *x = &h->value[v - 1];
    const struct history_request *r = &h->request[x->request];

    if (r->issued > limit)
      continue;
    if (stable != NULL && stable != r && r->answered <= floor)
      continue;
    if (x->hash == hash)
      return true;
    if (r->stable <= limit && (stable == NULL || r->issued > floor)) {
      floor = r->issued;
      stable = r;
    }
  }
  return stable == NULL && is_initial (h, sector, content);
}

bool
history_is_by (uint64_t what, uint64_t moment)
{
  return what <= (moment << TICK_BITS | LAST_TICK);
}

bool
history_held (const struct history *h, uint64_t sector, const void *content,
              uint64_t from, uint64_t to)
{
  const uint64_t hash = hash_if_changed (h, sector, content);
  uint64_t floor = 0; /* what was answered up to then is replaced */
  bool replaced = false;
  uint32_t v;

  for (v = h->newest[sector]; v != 0; v = h->value[v - 1].older) {
    const struct history_request *r = &h->request[h->value[v - 1].request];

    if (r->answered <= from && !r->failed) {
      replaced = true;
      if (floor < r->issued)
        floor = r->issued;
    }
  }
  for (v = h->newest[sector]; v != 0; v = h->value[v - 1].older) {
    const struct history_value *x = &h->value[v - 1];
    const struct history_request *r = &h->request[x->request];

    if (x->hash == hash && r->issued <= to && r->answered > floor)
      return true;
  }
  return !replaced && is_initial (h, sector, content);
}

bool
history_has_ever (const struct history *h, uint64_t sector,
                  const void *content)
{
  const uint64_t hash = hash_if_changed (h, sector, content);
  uint32_t v;

  for (v = h->newest[sector]; v != 0; v = h->value[v - 1].older) {
    if (h->value[v - 1].hash == hash)
      return true;
  }
  return is_initial (h, sector, content);
}

uint64_t
history_check (const struct history *h, const void *disk, uint64_t moment)
{
  uint64_t i;

  for (i = 0; i < h->nr_sectors; ++i) {
    if (!history_allows (h, i, (const uint8_t *) disk + i * SECTOR, moment))
      break;
  }
  return i;
}

void
history_explain (const struct history *h, uint64_t sector, uint64_t moment)
{
  char name[160];
  uint32_t v;

  fprintf (stderr, "    at first it held %s\n",
           content_name (h->initial + sector * SECTOR, name, sizeof name));
  for (v = h->newest[sector]; v != 0; v = h->value[v - 1].older) {
    const struct history_request *r = &h->request[h->value[v - 1].request];

    if (r->issued >> TICK_BITS > moment)
      continue;
    fprintf (stderr, "    request %" PRIu32 " gave it %016" PRIx64 ", issued "
             "at %" PRIu64 ", answered at %" PRId64 ", stable at %" PRId64
             "\n", h->value[v - 1].request, h->value[v - 1].hash,
             r->issued >> TICK_BITS, (int64_t) r->answered >> TICK_BITS,
             (int64_t) r->stable >> TICK_BITS);
  }
}
