/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "must-have.h"
#include "random.h"
#include "seen.h"

/* Four words at a time, which the processor mixes beside each other. */
static struct seen_state
digest (const uint8_t *bytes, uint64_t size)
{
  uint64_t lane[4] = { 1, 2, 3, size };
  uint64_t word[4], at;
  unsigned i;

  for (at = 0; at < size; at += sizeof word) {
    const uint64_t left = size - at;

    if (left < sizeof word)
      memset (word, 0, sizeof word);
    memcpy (word, bytes + at, left < sizeof word ? left : sizeof word);
    for (i = 0; i < 4; ++i) {
      lane[i] = (lane[i] ^ word[i]) * UINT64_C (0x9fb21c651e98df25);
      lane[i] ^= lane[i] >> 29;
    }
  }
  return (struct seen_state) { {
      mix (lane[0] + mix (lane[1] + mix (lane[2] + mix (lane[3])))),
      mix (lane[3] ^ mix (lane[2] ^ mix (lane[1] ^ mix (lane[0])))) | 1,
    } };
}

/* The place of a state in the table, or the free one where it belongs. */
static struct seen_state *
find (const struct seen *s, const struct seen_state *d)
{
  uint64_t i = d->word[0] % s->allocated;

  while (s->state[i].word[1] != 0 && memcmp (&s->state[i], d, sizeof *d) != 0)
    i = (i + 1) % s->allocated;
  return &s->state[i];
}

static void
grow (struct seen *s)
{
  struct seen larger = { .nr = s->nr, .allocated = 2 * s->allocated + 1024 };
  uint64_t i;

  larger.state = must_have (calloc (larger.allocated, sizeof *larger.state));
  for (i = 0; i < s->allocated; ++i)
    if (s->state[i].word[1] != 0)
      *find (&larger, &s->state[i]) = s->state[i];
  free (s->state);
  *s = larger;
}

bool
seen_before (struct seen *s, const uint8_t *bytes, uint64_t size)
{
  const struct seen_state d = digest (bytes, size);
  struct seen_state *place;

  if (2 * s->nr >= s->allocated)
    grow (s);
  place = find (s, &d);
  if (place->word[1] != 0)
    return true;
  *place = d;
  s->nr++;
  return false;
}

void
seen_forget (struct seen *s)
{
  free (s->state);
  *s = (struct seen) { 0 };
}
