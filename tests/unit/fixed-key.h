/* SPDX-License-Identifier: BSD-3-Clause */

/* For programs that do the same in each run: things are where they were. */

#ifndef UNIT_FIXED_KEY_H
#define UNIT_FIXED_KEY_H

#include "base/hash.h"

static inline void
fix_hash_key (void)
{
  const struct hash_key key = {
    { UINT64_C (0x9e3779b97f4a7c15), UINT64_C (0xbf58476d1ce4e5b9) }
  };

  hash_set_key (key);
}

#endif /* UNIT_FIXED_KEY_H */
