/* SPDX-License-Identifier: BSD-3-Clause */

/* base/coalesce.c: clusters that are written piece by piece. */

#include <config.h>

#include <stdlib.h>

#include "base/coalesce.h"
#include "check.h"
#include "random.h"

static struct coalesce gather;
static unsigned bits;

/* Bytes of a cluster. */
static bool
note (uint64_t cluster, uint64_t from, uint64_t to)
{
  return coalesce_note (&gather, (cluster << bits) + from,
                        (cluster << bits) + to);
}

/* Pieces of the same size, in order and backwards; only the last completes
 * the cluster, and it is then forgotten.
 */
static void
test_pieces (void)
{
  const uint64_t size = UINT64_C (1) << bits;
  uint64_t piece, at;
  unsigned round;

  for (piece = size / 64; piece < size; piece *= 2) {
    for (round = 0; round < 2; ++round) {
      for (at = 0; at < size; at += piece)
        CHECK_EQ (note (7, at, at + piece), at + piece == size);
      for (at = size; at > 0; at -= piece)
        CHECK_EQ (note (7, at - piece, at), at == piece);
    }
  }
  CHECK (note (7, 0, size));
}

/* A piece that is not whole 64ths counts less: never is a cluster complete
 * that is not.
 */
static void
test_odd (void)
{
  const uint64_t size = UINT64_C (1) << bits;

  CHECK (!note (1, 1, size));
  CHECK (!note (1, 2, size - 1));
  CHECK (!note (1, 0, 1));
  CHECK (note (1, 0, size / 64));
  CHECK (!note (2, 0, size - 1));
  CHECK (note (2, size - size / 64, size));
}

/* The pieces of many clusters, in turns: so many as are remembered. */
static void
test_many (void)
{
  const uint64_t half = UINT64_C (1) << (bits - 1);
  uint64_t i;

  for (i = 0; i < COALESCE_SLOTS; ++i)
    CHECK (!note (i * 1000, 0, half));
  for (i = 0; i < COALESCE_SLOTS; ++i)
    CHECK (note (i * 1000, half, 2 * half));
  /* One more: the one that was not written for the longest time is gone. */
  for (i = 0; i <= COALESCE_SLOTS; ++i)
    CHECK (!note (i, 0, half));
  for (i = 1; i <= COALESCE_SLOTS; ++i)
    CHECK (note (i, half, 2 * half));
  CHECK (!note (0, half, 2 * half));
  CHECK (note (0, 0, half));
}

/* Against a model of each byte. */
static void
test_random (uint64_t seed)
{
  const uint64_t size = UINT64_C (1) << bits;
  uint8_t *written = calloc (3, size);
  uint64_t state = seed;
  unsigned i, complete = 0;

  if (written == NULL)
    abort ();
  for (i = 0; i < 3000; ++i) {
    const uint64_t cluster = random_below (&state, 3);
    uint8_t *w = written + cluster * size;
    uint64_t from = random_below (&state, size);
    uint64_t to = from + 1 + random_below (&state, size - from);

    if (random_below (&state, 2)) { /* whole 64ths */
      from = from / (size / 64) * (size / 64);
      to = (to + size / 64 - 1) / (size / 64) * (size / 64);
    }
    memset (w + from, 1, to - from);
    if (!note (cluster, from, to))
      continue;
    CHECK (memchr (w, 0, size) == NULL);
    memset (w, 0, size);
    complete++;
  }
  CHECK (complete > 10);
  free (written);
}

int
main (void)
{
  check_time_limit (100);
  for (bits = 9; bits <= 21; bits += 3) {
    coalesce_init (&gather, bits);
    test_pieces ();
    test_odd ();
    test_many ();
    coalesce_destroy (&gather);
    if (bits > 16)
      continue;
    coalesce_init (&gather, bits);
    test_random (bits);
    coalesce_destroy (&gather);
  }
  return check_result ();
}
