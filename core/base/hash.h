/* SPDX-License-Identifier: BSD-3-Clause */

/* Hashes of what an image says: offsets, mostly.  Whoever makes an image must
 * not be able to choose values that collide, since then each lookup would go
 * through all of them.  So every hash has a key that is random for each
 * process, and that nothing of it tells.
 *
 * What is promised, for two different values that were chosen without knowing
 * the key: by hash_top, which is one multiplication by a secret odd number,
 * they collide in the top bits with a probability of at most 2 in 2^bits
 * (Dietzfelbinger and others, 1997).  hash_mix takes both words of the key, and
 * no bit of its result is worse than another.  Neither is for more than that:
 * it is no message authentication.
 */

#ifndef CORE_BASE_HASH_H
#define CORE_BASE_HASH_H

#include <stdint.h>

struct hash_key {
  uint64_t word[2]; /* odd */
};

/* The key of this process, made by the first call.  A table copies it when it
 * is made.  Never fails: without getrandom(2) it comes from the random bytes
 * that every process is given by the kernel when it starts.
 */
extern struct hash_key hash_key (void);

/* Have this key instead, in all tables that are made from now on: for tests in
 * which it matters where things are.
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

#endif /* CORE_BASE_HASH_H */
