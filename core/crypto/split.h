/* SPDX-License-Identifier: BSD-3-Clause */

/* The anti-forensic splitter of LUKS: a key becomes many stripes of its size,
 * all of which are needed to have it again, so that to overwrite any of them
 * destroys it.
 */

#ifndef CORE_CRYPTO_SPLIT_H
#define CORE_CRYPTO_SPLIT_H

#include <stddef.h>
#include <stdint.h>

#include "crypto/library.h"

/* Split key_bytes (at most CRYPTO_MAX_KEY) of key into so many stripes, and
 * merge them.  Return -1 with the error set.
 */
extern int split_key (enum crypto_hash hash, const uint8_t *key,
                      size_t key_bytes, unsigned stripes, uint8_t *out);
extern int split_merge (enum crypto_hash hash, const uint8_t *in,
                        size_t key_bytes, unsigned stripes, uint8_t *key);

#endif /* CORE_CRYPTO_SPLIT_H */
