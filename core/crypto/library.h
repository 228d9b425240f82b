/* SPDX-License-Identifier: BSD-3-Clause */

/* What is used of a library of ciphers, GnuTLS: this is the only file that
 * knows it.  Without it the functions fail (ENOTSUP), and everything that is
 * made of them can still be compiled.
 *
 * Whatever held a key is wiped before it is freed (I15); GnuTLS does so with
 * what it keeps itself.
 */

#ifndef CORE_CRYPTO_LIBRARY_H
#define CORE_CRYPTO_LIBRARY_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Its name and version, or NULL: there is none. */
extern const char *crypto_library (void);

enum crypto_hash {
  CRYPTO_MD5,
  CRYPTO_SHA1,
  CRYPTO_SHA224,
  CRYPTO_SHA256,
  CRYPTO_SHA384,
  CRYPTO_SHA512,
};

#define CRYPTO_MAX_DIGEST 64

/* Find a hash by its name in LUKS headers.  False: it is not known here. */
extern bool crypto_find_hash (const char *name, enum crypto_hash *hash);
extern size_t crypto_digest_bytes (enum crypto_hash hash);

/* The digest of count bytes, which follow those of prefix, if that is not NULL:
 * a number of 32 bits, big endian.  Returns -1 with the error set.
 */
extern int crypto_digest (enum crypto_hash hash, const uint32_t *prefix,
                          const void *data, size_t count, uint8_t *digest);

/* PBKDF2 with HMAC (RFC 8018), into count bytes of out.  Returns -1 with the
 * error set.
 */
extern int crypto_pbkdf2 (enum crypto_hash hash, const void *secret,
                          size_t secret_bytes, const uint8_t *salt,
                          size_t salt_bytes, uint32_t iterations,
                          uint8_t *out, size_t count);

/* Bytes that nobody can guess.  Returns -1 with the error set. */
extern int crypto_random (void *buf, size_t count);

/* AES.  An object has a key, and is used by one thread at a time. */
enum crypto_mode { CRYPTO_CBC, CRYPTO_XTS };

#define CRYPTO_BLOCK 16
#define CRYPTO_MAX_KEY 64

struct crypto_cipher;

/* Whether there is AES of this mode with keys of so many bytes, which for XTS
 * are two keys.
 */
extern bool crypto_has_cipher (enum crypto_mode mode, size_t key_bytes);

/* Returns NULL with the error set. */
extern struct crypto_cipher *crypto_cipher_new (enum crypto_mode mode,
                                                const uint8_t *key,
                                                size_t key_bytes);

/* Encipher or decipher whole blocks that start with this initialization vector;
 * in and out may be the same.  Returns false if the library fails.
 */
extern bool crypto_encipher (struct crypto_cipher *c,
                             const uint8_t iv[CRYPTO_BLOCK], const void *in,
                             void *out, size_t count);
extern bool crypto_decipher (struct crypto_cipher *c,
                             const uint8_t iv[CRYPTO_BLOCK], const void *in,
                             void *out, size_t count);

extern void crypto_cipher_free (struct crypto_cipher *c); /* NULL is allowed */

#endif /* CORE_CRYPTO_LIBRARY_H */
