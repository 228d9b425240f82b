/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <time.h>

#include "crypto/effort.h"

#define SAMPLE 8192 /* iterations */
#define SAMPLES 3

/* Of this thread: others may have the processor meanwhile. */
static uint64_t
thread_nanoseconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_THREAD_CPUTIME_ID, &t);
  return t.tv_sec * UINT64_C (1000000000) + t.tv_nsec;
}

int
effort_measure (struct effort *e, enum crypto_hash hash)
{
  static const uint8_t salt[LUKS_SALT_BYTES];
  uint8_t out[CRYPTO_MAX_DIGEST];
  uint64_t best = UINT64_MAX;
  unsigned i;

  for (i = 0; i < SAMPLES; ++i) {
    const uint64_t start = thread_nanoseconds ();
    uint64_t taken;

    if (crypto_pbkdf2 (hash, "", 0, salt, sizeof salt, SAMPLE, out,
                       crypto_digest_bytes (hash)) == -1)
      return -1;
    taken = thread_nanoseconds () - start;
    if (taken < best)
      best = taken;
  }
  if (best == 0) /* a coarse clock */
    best = 1;
  *e = (struct effort) {
    .per_second = SAMPLE * UINT64_C (1000000000) / best,
    .left = EFFORT_MAX_SECONDS * 1000,
    .skipped = -1,
  };
  if (e->per_second == 0)
    e->per_second = 1;
  return 0;
}

/* What PBKDF2 computes for so many bytes. */
static uint64_t
iterations_for (const struct luks *luks, uint32_t iterations, size_t bytes)
{
  const size_t digest = crypto_digest_bytes (luks->hash);

  return (uint64_t) iterations * ((bytes + digest - 1) / digest);
}

bool
effort_take (struct effort *e, const struct luks *luks, unsigned slot)
{
  const uint64_t iterations =
    iterations_for (luks, luks->slot[slot].iterations,
                    luks->format.key_bytes) +
    iterations_for (luks, luks->iterations, LUKS_DIGEST_BYTES);
  const uint64_t milliseconds = iterations * 1000 / e->per_second;

  if (milliseconds <= e->left) {
    e->left -= milliseconds;
    return true;
  }
  if (e->skipped == -1) {
    e->skipped = slot;
    e->skipped_seconds = (milliseconds + 999) / 1000;
  }
  return false;
}
