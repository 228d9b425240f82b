/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "qcow2/write/suspects.h"

#define PART_WORDS (SUSPECTS_PART / 64)

struct suspects *
suspects_new (unsigned cluster_bits)
{
  struct suspects *s = calloc (1, sizeof *s);

  if (s == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  s->cluster_bits = cluster_bits;
  return s;
}

void
suspects_free (struct suspects *s)
{
  unsigned i;

  if (s == NULL)
    return;
  for (i = 0; i < s->nr; ++i)
    free ((void *) s->part[i].bits);
  free (s);
}

static int
add_part (struct suspects *s, uint64_t first)
{
  _Atomic uint64_t *bits = malloc (PART_WORDS * sizeof *bits);

  if (bits == NULL) {
    error_set (ENOMEM, "out of memory");
    return -1;
  }
  memset ((void *) bits, 0xff, PART_WORDS * sizeof *bits);
  s->part[s->nr++] = (struct suspects_part) { first, bits };
  return 0;
}

int
suspects_add (struct suspects *s, uint64_t cluster, uint64_t nr)
{
  const uint64_t end = cluster + nr;
  uint64_t first = cluster / SUSPECTS_PART * SUSPECTS_PART;

  if (s->nr > 0 && s->part[s->nr - 1].first == first)
    first += SUSPECTS_PART;
  if (first < end &&
      (end - first - 1) / SUSPECTS_PART >= SUSPECTS_MAX_PARTS - s->nr)
    return 0;
  for (; first < end; first += SUSPECTS_PART) {
    if (add_part (s, first) == -1)
      return -1;
  }
  return 1;
}

/* The first part that ends after this cluster; s->nr: there is none. */
static unsigned
find_part (const struct suspects *s, uint64_t cluster)
{
  unsigned lo = 0, hi = s->nr;

  while (lo < hi) {
    const unsigned mid = (lo + hi) / 2;

    if (s->part[mid].first + SUSPECTS_PART <= cluster)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

/* Clear the bits [from, to) of a part. */
static void
clear_bits (const struct suspects_part *p, uint64_t from, uint64_t to)
{
  while (from < to) {
    _Atomic uint64_t *word = &p->bits[from / 64];
    const uint64_t n = 64 - from % 64 < to - from ? 64 - from % 64 : to - from;
    const uint64_t mask = UINT64_MAX >> (64 - n) << from % 64;

    if (atomic_load_explicit (word, memory_order_relaxed) & mask)
      atomic_fetch_and (word, ~mask);
    from += n;
  }
}

void
suspects_clear (struct suspects *s, uint64_t cluster, uint64_t nr)
{
  const uint64_t end = nr > UINT64_MAX - cluster ? UINT64_MAX : cluster + nr;
  unsigned i;

  for (i = find_part (s, cluster); i < s->nr && s->part[i].first < end; ++i) {
    const uint64_t first = s->part[i].first;

    clear_bits (&s->part[i], cluster > first ? cluster - first : 0,
                end - first < SUSPECTS_PART ? end - first : SUSPECTS_PART);
  }
}

void
suspects_clear_bytes (struct suspects *s, struct host_off host, uint64_t bytes)
{
  const uint64_t first = host.v >> s->cluster_bits;

  if (bytes > 0)
    suspects_clear (s, first,
                    ((host.v + bytes - 1) >> s->cluster_bits) - first + 1);
}

bool
suspects_clear_entry (struct suspects *s, const struct entry_format *f,
                      uint64_t word, uint64_t bitmap)
{
  const struct l2_entry e = entry_decode_l2 (f, word, bitmap);

  switch (e.kind) {
  case CLUSTER_UNALLOCATED: /* an extended one may have a cluster all the
                             * same */
  case CLUSTER_ZERO_PLAIN:
  case CLUSTER_ZERO_ALLOC:
  case CLUSTER_STANDARD:
  case CLUSTER_SUBCLUSTERS:
    if (!host_is_none (e.host) && !f->data_file)
      suspects_clear (s, e.host.v >> s->cluster_bits, 1);
    return true;
  case CLUSTER_COMPRESSED:
    suspects_clear_bytes (s, e.host, e.compressed_size);
    return true;
  case CLUSTER_INVALID:
    return false;
  }
  abort ();
}

void
suspects_clear_table (struct suspects *s, const struct entry_format *f,
                      const uint64_t *words, uint64_t nr_words)
{
  const unsigned step = f->extended_l2 ? 2 : 1;
  uint64_t i;

  for (i = 0; i < nr_words; i += step) {
    const uint64_t bitmap = f->extended_l2 ? be64toh (words[i + 1]) : 0;

    if (!suspects_clear_entry (s, f, be64toh (words[i]), bitmap))
      atomic_store (&s->unsure, true);
  }
}

bool
suspects_next (const struct suspects *s, uint64_t *cluster)
{
  unsigned i;

  for (i = find_part (s, *cluster); i < s->nr; ++i) {
    const struct suspects_part *p = &s->part[i];
    uint64_t at = *cluster > p->first ? *cluster - p->first : 0;

    for (; at < SUSPECTS_PART; at = (at / 64 + 1) * 64) {
      const uint64_t word = atomic_load (&p->bits[at / 64]) >> at % 64;

      if (word != 0) {
        *cluster = p->first + at + __builtin_ctzll (word);
        return true;
      }
    }
  }
  return false;
}
