/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <string.h>

#include "crypto/secret.h"
#include "crypto/split.h"

static void
xor_into (uint8_t *to, const uint8_t *with, size_t count)
{
  size_t i;

  for (i = 0; i < count; ++i)
    to[i] ^= with[i];
}

/* Diffuse: each piece of a digest's size, the last of which may be shorter,
 * becomes the digest of its number and itself.
 */
static int
diffuse (enum crypto_hash hash, uint8_t *block, size_t count)
{
  const size_t bytes = crypto_digest_bytes (hash);
  uint8_t digest[CRYPTO_MAX_DIGEST];
  uint32_t i;
  int r = 0;

  for (i = 0; r == 0 && count > 0; ++i) {
    const size_t n = count < bytes ? count : bytes;

    r = crypto_digest (hash, &i, block, n, digest);
    if (r == 0)
      memcpy (block, digest, n);
    block += n;
    count -= n;
  }
  secret_wipe (digest, sizeof digest);
  return r;
}

/* What the last stripe is combined with: all the others, chained. */
static int
chain_stripes (enum crypto_hash hash, const uint8_t *in, size_t key_bytes,
               unsigned stripes, uint8_t block[CRYPTO_MAX_KEY])
{
  unsigned i;

  memset (block, 0, CRYPTO_MAX_KEY);
  for (i = 0; i + 1 < stripes; ++i) {
    xor_into (block, in + i * key_bytes, key_bytes);
    if (diffuse (hash, block, key_bytes) == -1)
      return -1;
  }
  return 0;
}

int
split_key (enum crypto_hash hash, const uint8_t *key, size_t key_bytes,
           unsigned stripes, uint8_t *out)
{
  uint8_t *last = out + (stripes - 1) * key_bytes;
  uint8_t block[CRYPTO_MAX_KEY];
  int r = -1;

  if (crypto_random (out, (stripes - 1) * key_bytes) == 0 &&
      chain_stripes (hash, out, key_bytes, stripes, block) == 0) {
    memcpy (last, key, key_bytes);
    xor_into (last, block, key_bytes);
    r = 0;
  }
  secret_wipe (block, sizeof block);
  return r;
}

int
split_merge (enum crypto_hash hash, const uint8_t *in, size_t key_bytes,
             unsigned stripes, uint8_t *key)
{
  uint8_t block[CRYPTO_MAX_KEY];
  int r = chain_stripes (hash, in, key_bytes, stripes, block);

  if (r == 0) {
    memcpy (key, in + (stripes - 1) * key_bytes, key_bytes);
    xor_into (key, block, key_bytes);
  }
  secret_wipe (block, sizeof block);
  return r;
}
