/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#ifdef HAVE_GNUTLS
#include <gnutls/crypto.h>
#include <gnutls/gnutls.h>
#endif

#include "base/bytes.h"
#include "base/error.h"
#include "crypto/library.h"

static const struct {
  const char *name;
  size_t bytes;
} hashes[] = {
  [CRYPTO_MD5] = { "md5", 16 },
  [CRYPTO_SHA1] = { "sha1", 20 },
  [CRYPTO_SHA224] = { "sha224", 28 },
  [CRYPTO_SHA256] = { "sha256", 32 },
  [CRYPTO_SHA384] = { "sha384", 48 },
  [CRYPTO_SHA512] = { "sha512", 64 },
};

bool
crypto_find_hash (const char *name, enum crypto_hash *hash)
{
  size_t i;

  for (i = 0; i < sizeof hashes / sizeof hashes[0]; ++i)
    if (strcmp (name, hashes[i].name) == 0) {
      *hash = i;
      return true;
    }
  return false;
}

size_t
crypto_digest_bytes (enum crypto_hash hash)
{
  return hashes[hash].bytes;
}

bool
crypto_has_cipher (enum crypto_mode mode, size_t key_bytes)
{
  switch (mode) {
  case CRYPTO_CBC:
    return key_bytes == 16 || key_bytes == 24 || key_bytes == 32;
  case CRYPTO_XTS:
    return key_bytes == 32 || key_bytes == 64;
  }
  abort ();
}

#ifdef HAVE_GNUTLS

struct crypto_cipher {
  gnutls_cipher_hd_t handle;
};

const char *
crypto_library (void)
{
  return gnutls_check_version (NULL);
}

static const gnutls_mac_algorithm_t algorithms[] = {
  [CRYPTO_MD5] = GNUTLS_MAC_MD5,
  [CRYPTO_SHA1] = GNUTLS_MAC_SHA1,
  [CRYPTO_SHA224] = GNUTLS_MAC_SHA224,
  [CRYPTO_SHA256] = GNUTLS_MAC_SHA256,
  [CRYPTO_SHA384] = GNUTLS_MAC_SHA384,
  [CRYPTO_SHA512] = GNUTLS_MAC_SHA512,
};

/* Returns -1. */
static int
gnutls_failed (const char *what, int err)
{
  error_set (err == GNUTLS_E_MEMORY_ERROR ? ENOMEM : EIO, "GnuTLS: %s: %s",
             what, gnutls_strerror (err));
  return -1;
}

int
crypto_digest (enum crypto_hash hash, const uint32_t *prefix, const void *data,
               size_t count, uint8_t *digest)
{
  gnutls_hash_hd_t h;
  uint8_t number[4];
  int err;

  /* MACs have the numbers of their hashes. */
  err = gnutls_hash_init (&h, (gnutls_digest_algorithm_t) algorithms[hash]);
  if (err < 0)
    return gnutls_failed (hashes[hash].name, err);
  if (prefix != NULL) {
    put_be32 (number, *prefix);
    err = gnutls_hash (h, number, sizeof number);
  }
  if (err >= 0)
    err = gnutls_hash (h, data, count);
  gnutls_hash_deinit (h, digest);
  return err < 0 ? gnutls_failed (hashes[hash].name, err) : 0;
}

int
crypto_pbkdf2 (enum crypto_hash hash, const void *secret, size_t secret_bytes,
               const uint8_t *salt, size_t salt_bytes, uint32_t iterations,
               uint8_t *out, size_t count)
{
  const gnutls_datum_t key = { (uint8_t *) secret, secret_bytes };
  const gnutls_datum_t with = { (uint8_t *) salt, salt_bytes };
  const int err = gnutls_pbkdf2 (algorithms[hash], &key, &with, iterations,
                                 out, count);

  return err < 0 ? gnutls_failed ("PBKDF2", err) : 0;
}

int
crypto_random (void *buf, size_t count)
{
  const int err = gnutls_rnd (GNUTLS_RND_KEY, buf, count);

  return err < 0 ? gnutls_failed ("random numbers", err) : 0;
}

static gnutls_cipher_algorithm_t
find_cipher (enum crypto_mode mode, size_t key_bytes)
{
  if (mode == CRYPTO_XTS)
    return key_bytes == 64 ? GNUTLS_CIPHER_AES_256_XTS
      : GNUTLS_CIPHER_AES_128_XTS;
  return key_bytes == 32 ? GNUTLS_CIPHER_AES_256_CBC
    : key_bytes == 24 ? GNUTLS_CIPHER_AES_192_CBC : GNUTLS_CIPHER_AES_128_CBC;
}

struct crypto_cipher *
crypto_cipher_new (enum crypto_mode mode, const uint8_t *key, size_t key_bytes)
{
  static uint8_t no_iv[CRYPTO_BLOCK];
  const gnutls_datum_t iv = { no_iv, sizeof no_iv };
  const gnutls_datum_t k = { (uint8_t *) key, key_bytes };
  struct crypto_cipher *c = malloc (sizeof *c);
  int err;

  if (c == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  err = gnutls_cipher_init (&c->handle, find_cipher (mode, key_bytes), &k, &iv);
  if (err < 0) {
    gnutls_failed ("AES", err);
    free (c);
    return NULL;
  }
  return c;
}

bool
crypto_encipher (struct crypto_cipher *c, const uint8_t iv[CRYPTO_BLOCK],
                 const void *in, void *out, size_t count)
{
  gnutls_cipher_set_iv (c->handle, (void *) iv, CRYPTO_BLOCK);
  return gnutls_cipher_encrypt2 (c->handle, in, count, out, count) >= 0;
}

bool
crypto_decipher (struct crypto_cipher *c, const uint8_t iv[CRYPTO_BLOCK],
                 const void *in, void *out, size_t count)
{
  gnutls_cipher_set_iv (c->handle, (void *) iv, CRYPTO_BLOCK);
  return gnutls_cipher_decrypt2 (c->handle, in, count, out, count) >= 0;
}

void
crypto_cipher_free (struct crypto_cipher *c)
{
  if (c == NULL)
    return;
  gnutls_cipher_deinit (c->handle);
  free (c);
}

#else /* !HAVE_GNUTLS */

const char *
crypto_library (void)
{
  return NULL;
}

/* Returns -1. */
static int
no_library (void)
{
  error_set (ENOTSUP, "built without GnuTLS");
  return -1;
}

int
crypto_digest (enum crypto_hash hash, const uint32_t *prefix, const void *data,
               size_t count, uint8_t *digest)
{
  return no_library ();
}

int
crypto_pbkdf2 (enum crypto_hash hash, const void *secret, size_t secret_bytes,
               const uint8_t *salt, size_t salt_bytes, uint32_t iterations,
               uint8_t *out, size_t count)
{
  return no_library ();
}

int
crypto_random (void *buf, size_t count)
{
  return no_library ();
}

struct crypto_cipher *
crypto_cipher_new (enum crypto_mode mode, const uint8_t *key, size_t key_bytes)
{
  no_library ();
  return NULL;
}

bool
crypto_encipher (struct crypto_cipher *c, const uint8_t iv[CRYPTO_BLOCK],
                 const void *in, void *out, size_t count)
{
  return false;
}

bool
crypto_decipher (struct crypto_cipher *c, const uint8_t iv[CRYPTO_BLOCK],
                 const void *in, void *out, size_t count)
{
  return false;
}

void
crypto_cipher_free (struct crypto_cipher *c)
{
}

#endif /* !HAVE_GNUTLS */
