/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "../crash/checker.h"
#include "base/bytes.h"
#include "qcow2/entry.h"
#include "random.h"
#include "spoil.h"

static void __attribute__ ((__format__ (__printf__, 2, 3)))
note (struct spoiled *s, const char *fmt, ...)
{
  const size_t n = strlen (s->text);
  va_list ap;

  va_start (ap, fmt);
  vsnprintf (s->text + n, sizeof s->text - n, fmt, ap);
  va_end (ap);
}

static unsigned
cluster_bits (const struct spoiled *s)
{
  return get_be32 (s->bytes + 20);
}

static void
put (struct spoiled *s, uint64_t place, uint64_t word)
{
  note (s, "0x%" PRIx64 ": 0x%" PRIx64 " -> 0x%" PRIx64 "; ", place,
        get_be64 (s->bytes + place), word);
  put_be64 (s->bytes + place, word);
}

/* A random cluster of one of these roles, or 0. */
static uint64_t
random_cluster (const struct spoiled *s, unsigned roles, uint64_t *random)
{
  uint64_t nr, start, i, found = 0;
  uint16_t *role = check_roles (s->bytes, s->size, &nr);

  start = nr > 0 ? random_below (random, nr) : 0;
  for (i = 0; i < nr && found == 0; ++i) {
    const uint64_t k = (start + i) % nr;

    if ((role[k] & roles) && (k + 1) << cluster_bits (s) <= s->size)
      found = k << cluster_bits (s);
  }
  free (role);
  return found;
}

/* A random word of such clusters, rather one that is not 0; or 0. */
static uint64_t
random_word (const struct spoiled *s, unsigned roles, uint64_t *random)
{
  const uint64_t cluster = random_cluster (s, roles, random);
  uint64_t place = 0;
  unsigned i;

  for (i = 0; cluster != 0 && i < 50; ++i) {
    place = cluster +
      8 * random_below (random, UINT64_C (1) << (cluster_bits (s) - 3));
    if (get_be64 (s->bytes + place) != 0)
      break;
  }
  return place;
}

static uint64_t
spoiled_word (const struct spoiled *s, uint64_t word, unsigned roles,
              uint64_t *random)
{
  static const uint64_t flags[] = {
    QCOW2_ENTRY_COPIED, QCOW2_L2_COMPRESSED, QCOW2_L2_ZERO,
  };
  const unsigned bits = cluster_bits (s);
  const uint64_t clusters = s->size >> bits;

  switch (random_below (random, 10)) {
  case 0:
  case 1:
  case 2:
    return word ^ UINT64_C (1) << random_below (random, 64);
  case 3:
    return 0;
  case 4:
    return get_be64 (s->bytes + random_word (s, roles, random));
  case 5:
    return word + (UINT64_C (1) << bits);
  case 6:
    return word - (UINT64_C (1) << bits);
  case 7:
    return word ^ flags[random_below (random, 3)];
  case 8: /* within the file, or just beyond */
    return (word & ~QCOW2_ENTRY_OFFSET_MASK) |
      random_below (random, clusters + 3) << bits;
  default:
    return random_next (random);
  }
}

static void
spoil_word (struct spoiled *s, unsigned roles, uint64_t *random)
{
  const uint64_t place = random_word (s, roles, random);

  if (place != 0)
    put (s, place, spoiled_word (s, get_be64 (s->bytes + place), roles,
                                 random));
}

/* Another refcount, likely one near to what it was. */
static void
spoil_refcount (struct spoiled *s, uint64_t *random)
{
  const unsigned order = get_be32 (s->bytes + 4) >= 3
    ? get_be32 (s->bytes + 96) : 4;
  const uint64_t place = random_word (s, ROLE_REFCOUNT_BLOCK, random);
  uint64_t i, word, refcount;

  if (place == 0 || order > QCOW2_MAX_REFCOUNT_ORDER)
    return;
  word = get_be64 (s->bytes + place);
  i = random_below (random, 64 >> order);
  refcount = entry_get_refcount (order, word, i);
  switch (random_below (random, 5)) {
  case 0:
    refcount = 0;
    break;
  case 1:
    refcount = random_next (random);
    break;
  case 2:
    refcount--;
    break;
  default:
    refcount++;
    break;
  }
  refcount &= entry_refcount_max (order);
  put (s, place, entry_put_refcount (order, word, i, refcount));
}

/* A bit, or a small number, in one of the header's fields. */
static void
spoil_header (struct spoiled *s, uint64_t *random)
{
  const uint64_t place = 8 * random_below (random, 14);
  uint64_t word = get_be64 (s->bytes + place);

  if (random_below (random, 2) == 0)
    word ^= UINT64_C (1) << random_below (random, 64);
  else
    word += random_below (random, 2) << 32 | random_below (random, 5);
  put (s, place, word);
}

static void
spoil_size (struct spoiled *s, uint64_t *random)
{
  const uint64_t size = random_below (random, 4) == 0
    ? s->size + random_below (random, 5000)
    : s->size - random_below (random, s->size / 4);
  uint8_t *bytes = realloc (s->bytes, size);

  if (bytes == NULL)
    abort ();
  if (size > s->size)
    memset (bytes + s->size, 0, size - s->size);
  s->bytes = bytes;
  s->size = size;
  note (s, "%" PRIu64 " bytes; ", size);
}

static void
spoil_cluster (struct spoiled *s, uint64_t *random)
{
  static const unsigned roles[] = {
    ROLE_L1, ROLE_L2, ROLE_REFCOUNT_TABLE, ROLE_REFCOUNT_BLOCK,
    ROLE_SNAPSHOT_TABLE, ROLE_BITMAP,
  };
  const uint64_t place =
    random_cluster (s, roles[random_below (random, 6)], random);
  const uint64_t half = UINT64_C (1) << (cluster_bits (s) - 1);
  const uint64_t count = half << random_below (random, 2);

  if (place == 0)
    return;
  switch (random_below (random, 3)) {
  case 0:
    memset (s->bytes + place, 0, count);
    break;
  case 1:
    memset (s->bytes + place, 0xff, count);
    break;
  default:
    random_fill (random, s->bytes + place, count);
  }
  note (s, "0x%" PRIx64 ", %" PRIu64 " bytes: overwritten; ", place, count);
}

static void
spoil_once (struct spoiled *s, unsigned kinds, uint64_t *random)
{
  static const unsigned chance[] = {
    SPOIL_ENTRIES, SPOIL_ENTRIES, SPOIL_ENTRIES, SPOIL_ENTRIES,
    SPOIL_ENTRIES, SPOIL_REFCOUNTS, SPOIL_REFCOUNTS, SPOIL_REFCOUNTS,
    SPOIL_REFCOUNTS, SPOIL_TABLES, SPOIL_TABLES, SPOIL_TABLES, SPOIL_HEADER,
    SPOIL_SIZE, SPOIL_CLUSTERS,
  };
  unsigned kind;

  do
    kind = chance[random_below (random, sizeof chance / sizeof chance[0])];
  while (!(kind & kinds));
  switch (kind) {
  case SPOIL_ENTRIES:
    spoil_word (s, random_below (random, 3) == 0 ? ROLE_L1 : ROLE_L2, random);
    break;
  case SPOIL_REFCOUNTS:
    if (random_below (random, 4) == 0)
      spoil_word (s, ROLE_REFCOUNT_TABLE, random);
    else
      spoil_refcount (s, random);
    break;
  case SPOIL_TABLES:
    spoil_word (s, random_below (random, 2) == 0 ? ROLE_SNAPSHOT_TABLE
                : ROLE_BITMAP, random);
    break;
  case SPOIL_HEADER:
    spoil_header (s, random);
    break;
  case SPOIL_SIZE:
    spoil_size (s, random);
    break;
  default:
    spoil_cluster (s, random);
  }
}

void
spoil (struct spoiled *s, unsigned kinds, uint64_t *random)
{
  unsigned n = 1 + random_below (random, 3);

  s->text[0] = '\0';
  while (n-- > 0) {
    spoil_once (s, kinds, random);
    if (s->size < 4096)
      return;
  }
}
