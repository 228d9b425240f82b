/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "check-counts.h"
#include "error.h"

/* Pointers to chunks, which take 8 MiB: a window is at most 2^36 clusters,
 * however few of them are counted.
 */
#define MAX_CHUNKS (UINT64_C (1) << 20)

void
counts_init (struct counts *c, size_t budget, uint64_t max)
{
  memset (c, 0, sizeof *c);
  c->budget = budget;
  c->max = max;
  c->span = MAX_CHUNKS;
}

void
counts_free (struct counts *c)
{
  size_t i;

  for (i = 0; i < c->nr_chunks; ++i) {
    if (c->chunk[i] != NULL)
      free (c->chunk[i]->wide);
    free (c->chunk[i]);
  }
  free (c->chunk);
  c->chunk = NULL;
  c->nr_chunks = 0;
  c->used = 0;
}

int
counts_begin (struct counts *c, uint64_t first, uint64_t last)
{
  uint64_t chunks;

  counts_free (c);
  c->first = first & ~(COUNTS_CHUNK - 1);
  chunks = ((last - c->first) >> COUNTS_CHUNK_BITS) + 1;
  if (chunks > c->span)
    chunks = c->span;
  c->chunk = calloc (chunks, sizeof *c->chunk);
  if (c->chunk == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  c->nr_chunks = chunks;
  c->end = c->first + (chunks << COUNTS_CHUNK_BITS);
  c->full = false;
  return 0;
}

bool
counts_shrink (struct counts *c)
{
  if (c->nr_chunks < 2)
    return false;
  c->span = c->nr_chunks / 2;
  return true;
}

/* The budget does not hold for the last chunk. */
static int
take (struct counts *c, size_t bytes)
{
  if (c->nr_chunks > 1 && bytes > c->budget - c->used) {
    c->full = true;
    error_set (ENOMEM, "the references of this window don't fit into memory");
    return -1;
  }
  c->used += bytes;
  if (c->used > c->peak)
    c->peak = c->used;
  return 0;
}

struct counts_chunk *
counts_new_chunk (struct counts *c, uint64_t cluster)
{
  struct counts_chunk *k;

  if (take (c, sizeof *k) == -1)
    return NULL;
  k = calloc (1, sizeof *k);
  if (k == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  c->chunk[(cluster - c->first) >> COUNTS_CHUNK_BITS] = k;
  return k;
}

static int
widen (struct counts *c, struct counts_chunk *k)
{
  size_t i;

  if (take (c, COUNTS_CHUNK * sizeof *k->wide) == -1)
    return -1;
  k->wide = malloc (COUNTS_CHUNK * sizeof *k->wide);
  if (k->wide == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  for (i = 0; i < COUNTS_CHUNK; ++i)
    k->wide[i] = k->narrow[i];
  return 0;
}

int
counts_add_many (struct counts *c, struct counts_chunk *k, uint64_t cluster,
                 uint64_t n, uint64_t *surplus)
{
  const uint64_t i = cluster & (COUNTS_CHUNK - 1);
  const uint64_t now = counts_get (k, cluster);
  const uint64_t room = c->max - now;
  const uint64_t more = n < room ? n : room;

  *surplus = n - more;
  if (k->wide == NULL && now + more > UINT8_MAX && widen (c, k) == -1)
    return -1;
  if (k->wide != NULL)
    k->wide[i] = now + more;
  else
    k->narrow[i] = now + more;
  return 0;
}
