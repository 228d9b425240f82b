/* SPDX-License-Identifier: BSD-3-Clause */

/* Pseudo-random numbers that are the same in each run. */

#ifndef UNIT_RANDOM_H
#define UNIT_RANDOM_H

#include <stddef.h>
#include <stdint.h>

/* A well mixed function of x. */
static inline uint64_t
mix (uint64_t x)
{
  x = (x ^ x >> 33) * UINT64_C (0xff51afd7ed558ccd);
  x = (x ^ x >> 33) * UINT64_C (0xc4ceb9fe1a85ec53);
  return x ^ x >> 33;
}

/* The next number of the sequence that *state began. */
static inline uint64_t
random_next (uint64_t *state)
{
  *state += UINT64_C (0x9e3779b97f4a7c15);
  return mix (*state);
}

/* One below limit (> 0). */
static inline uint64_t
random_below (uint64_t *state, uint64_t limit)
{
  return random_next (state) % limit;
}

static inline void
random_fill (uint64_t *state, void *buf, size_t count)
{
  uint8_t *p = buf;
  size_t i;

  for (i = 0; i < count; ++i)
    p[i] = random_next (state);
}

#endif /* UNIT_RANDOM_H */
