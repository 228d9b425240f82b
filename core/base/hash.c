/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <pthread.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/random.h>

#include "base/hash.h"

static struct hash_key the_key;
static pthread_once_t once = PTHREAD_ONCE_INIT;

/* These 16 bytes also protect the stack, so they must not be disclosed: they
 * are mixed first.
 */
static void
from_start (struct hash_key *key)
{
  const void *random = (const void *) getauxval (AT_RANDOM);
  struct hash_key k = {
    { UINT64_C (0x9e3779b97f4a7c15), UINT64_C (0xbf58476d1ce4e5b9) }
  };
  uint64_t bytes[2] = { 0, 0 };

  if (random != NULL)
    memcpy (bytes, random, sizeof bytes);
  key->word[0] = hash_mix (&k, bytes[0] ^ bytes[1] << 1);
  key->word[1] = hash_mix (&k, bytes[1] + key->word[0]);
}

static void
make_key (void)
{
  struct hash_key key;

  /* Don't wait for entropy soon after the host has booted. */
  if (getrandom (&key, sizeof key, GRND_NONBLOCK) != sizeof key)
    from_start (&key);
  key.word[0] |= 1;
  key.word[1] |= 1;
  the_key = key;
}

struct hash_key
hash_key (void)
{
  pthread_once (&once, make_key);
  return the_key;
}

void
hash_set_key (struct hash_key key)
{
  pthread_once (&once, make_key);
  the_key = key;
}
