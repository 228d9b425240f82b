/* SPDX-License-Identifier: BSD-3-Clause */

/* Hashes of values from an image, mostly offsets.  The author of an image must
 * not be able to choose values that collide, as each lookup would then go
 * through all of them.  So hashes have a key that is random for each process
 * and never disclosed.
 *
 * Two different values chosen without knowing the key collide in the top bits
 * of hash_top, a multiplication by a secret odd number, with a probability of
 * at most 2 in 2^bits (Dietzfelbinger and others, 1997).  hash_mix uses both
 * words of the key, and all bits of its result are equally good.  Neither is
 * meant for message authentication.
 */

#ifndef CORE_BASE_HASH_H
#define CORE_BASE_HASH_H

#include <stdint.h>

struct hash_key {
  uint64_t word[2]; /* odd */
};

/* The key of this process, made by the first call.  A table copies it when it
 * is made.  Never fails: without getrandom(2) it is made from the random bytes
 * that the kernel gives every process at its start.
 */
extern struct hash_key hash_key (void);

/* Use this key for all tables made from now on: for tests that depend on the
 * places of entries.
 */
extern void hash_set_key (struct hash_key key);

/* The top bits (from 1 to 63) of a hash of value. */
static inline uint64_t
hash_top (const struct hash_key *key, uint64_t value, unsigned bits)
{
  return value * key->word[0] >> (64 - bits);
}

static inline uint64_t
hash_mix (const struct hash_key *key, uint64_t value)
{
  uint64_t hash = (value ^ value >> 32) * key->word[0];

  return (hash ^ hash >> 29) * key->word[1];
}

/* Of a string. */
static inline uint64_t
hash_string (const struct hash_key *key, const char *s)
{
  uint64_t hash = 0;

  for (; *s != '\0'; ++s)
    hash = hash_mix (key, hash + (unsigned char) *s);
  return hash;
}

#endif /* CORE_BASE_HASH_H */
