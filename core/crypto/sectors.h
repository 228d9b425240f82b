/* SPDX-License-Identifier: BSD-3-Clause */

/* Enciphering and deciphering sectors of 512 bytes, each with an initialization
 * vector that is made of its number.
 */

#ifndef CORE_CRYPTO_SECTORS_H
#define CORE_CRYPTO_SECTORS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/library.h"

#define CRYPTO_SECTOR ((size_t) 512)

/* How a number becomes an initialization vector: */
enum iv_generator {
  IV_PLAIN,   /* its low 32 bits, little endian */
  IV_PLAIN64, /* 64 bits, little endian */
  IV_ESSIV,   /* those, enciphered with the hash of the key */
};

struct sector_format {
  enum crypto_mode mode;
  size_t key_bytes;
  enum iv_generator iv;
  enum crypto_hash iv_hash; /* IV_ESSIV: of 16 or 32 bytes */
};

struct sectors;

/* Returns NULL with the error set.  The key is copied. */
extern struct sectors *sectors_new (const struct sector_format *format,
                                    const uint8_t *key);
extern void sectors_free (struct sectors *s); /* NULL is allowed */

/* Whole sectors, of which the first has this number; in and out may be the
 * same.  By several threads at once.  Return -1 with errno set: ENOMEM, EIO.
 */
extern int sectors_encipher (struct sectors *s, const void *in, void *out,
                             size_t count, uint64_t first);
extern int sectors_decipher (struct sectors *s, const void *in, void *out,
                             size_t count, uint64_t first);

#endif /* CORE_CRYPTO_SECTORS_H */
