/* SPDX-License-Identifier: BSD-3-Clause */

/* Memory for keys and passphrases (I15). */

#ifndef CORE_CRYPTO_SECRET_H
#define CORE_CRYPTO_SECRET_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* New memory, zeroed, that is in no core dump.  Returns NULL with the error
 * set.
 */
extern void *secret_new (size_t count);

/* Wipe it and give it back.  NULL is allowed. */
extern void secret_free (void *secret, size_t count);

/* Overwrite with zeros, which the compiler must not leave out. */
static inline void
secret_wipe (void *p, size_t count)
{
  explicit_bzero (p, count);
}

/* Whether these are the same, in a time that does not depend on the bytes. */
static inline bool
secret_equal (const uint8_t *a, const uint8_t *b, size_t count)
{
  volatile uint8_t difference = 0;
  size_t i;

  for (i = 0; i < count; ++i)
    difference |= a[i] ^ b[i];
  return difference == 0;
}

#endif /* CORE_CRYPTO_SECRET_H */
