/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"
#include "base/stripe.h"
#include "crypto/secret.h"
#include "crypto/sectors.h"

/* An object of the library serves one thread at a time. */
struct worker {
  struct crypto_cipher *data;
  struct crypto_cipher *essiv; /* IV_ESSIV */
};

/* Workers that are idle; each thread begins at a place of its own, so that
 * threads mostly use different ones.
 */
#define IDLE_MAX (STRIPES * 2)

struct sectors {
  struct sector_format format;
  uint8_t *key; /* CRYPTO_MAX_KEY */
  struct worker *_Atomic idle[IDLE_MAX];
};

/* ----------------------------------------------------------------- workers */

static void
worker_free (struct worker *w)
{
  if (w == NULL)
    return;
  crypto_cipher_free (w->data);
  crypto_cipher_free (w->essiv);
  free (w);
}

/* A hash of 16 or 32 bytes is a key of AES. */
static struct crypto_cipher *
new_essiv (const struct sectors *s)
{
  const struct sector_format *f = &s->format;
  uint8_t salt[CRYPTO_MAX_DIGEST];
  struct crypto_cipher *c = NULL;

  if (crypto_digest (f->iv_hash, NULL, s->key, f->key_bytes, salt) == 0)
    c = crypto_cipher_new (CRYPTO_CBC, salt, crypto_digest_bytes (f->iv_hash));
  secret_wipe (salt, sizeof salt);
  return c;
}

static struct worker *
worker_new (const struct sectors *s)
{
  struct worker *w = calloc (1, sizeof *w);

  if (w == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  w->data = crypto_cipher_new (s->format.mode, s->key, s->format.key_bytes);
  if (w->data != NULL && s->format.iv == IV_ESSIV)
    w->essiv = new_essiv (s);
  if (w->data == NULL || (s->format.iv == IV_ESSIV && w->essiv == NULL)) {
    worker_free (w);
    return NULL;
  }
  return w;
}

/* Returns NULL with errno set. */
static struct worker *
take_worker (struct sectors *s)
{
  const unsigned start = stripe_of_thread () * (IDLE_MAX / STRIPES);
  struct worker *w;
  unsigned i;

  for (i = 0; i < IDLE_MAX; ++i) {
    struct worker *_Atomic *p = &s->idle[(start + i) % IDLE_MAX];

    if (atomic_load_explicit (p, memory_order_relaxed) != NULL) {
      w = atomic_exchange_explicit (p, NULL, memory_order_acq_rel);
      if (w != NULL)
        return w;
    }
  }
  w = worker_new (s);
  if (w == NULL)
    errno = error_errno ();
  return w;
}

static void
put_worker (struct sectors *s, struct worker *w)
{
  const unsigned start = stripe_of_thread () * (IDLE_MAX / STRIPES);
  unsigned i;

  for (i = 0; i < IDLE_MAX; ++i) {
    struct worker *none = NULL;

    if (atomic_compare_exchange_strong_explicit (
          &s->idle[(start + i) % IDLE_MAX], &none, w, memory_order_acq_rel,
          memory_order_relaxed))
      return;
  }
  worker_free (w);
}

struct sectors *
sectors_new (const struct sector_format *format, const uint8_t *key)
{
  struct sectors *s = calloc (1, sizeof *s);
  struct worker *w = NULL;

  if (s == NULL) {
    error_set (ENOMEM, "out of memory");
    return NULL;
  }
  s->format = *format;
  s->key = secret_new (CRYPTO_MAX_KEY);
  if (s->key != NULL) {
    memcpy (s->key, key, format->key_bytes);
    w = worker_new (s);
  }
  if (w == NULL) {
    sectors_free (s);
    return NULL;
  }
  put_worker (s, w);
  return s;
}

void
sectors_free (struct sectors *s)
{
  unsigned i;

  if (s == NULL)
    return;
  for (i = 0; i < IDLE_MAX; ++i)
    worker_free (s->idle[i]);
  secret_free (s->key, CRYPTO_MAX_KEY);
  free (s);
}

/* ----------------------------------------------------------------- sectors */

static bool
make_iv (const struct sector_format *f, struct worker *w, uint64_t number,
         uint8_t iv[CRYPTO_BLOCK])
{
  static const uint8_t zeros[CRYPTO_BLOCK];
  const unsigned bytes = f->iv == IV_PLAIN ? 4 : 8;
  unsigned i;

  memset (iv, 0, CRYPTO_BLOCK);
  for (i = 0; i < bytes; ++i)
    iv[i] = number >> (8 * i);
  return f->iv != IV_ESSIV ||
    crypto_encipher (w->essiv, zeros, iv, iv, CRYPTO_BLOCK);
}

typedef bool cipher_fn (struct crypto_cipher *c,
                        const uint8_t iv[CRYPTO_BLOCK], const void *in,
                        void *out, size_t count);

static int
each_sector (struct sectors *s, const uint8_t *in, uint8_t *out, size_t count,
             uint64_t number, cipher_fn *fn)
{
  struct worker *w = take_worker (s);
  uint8_t iv[CRYPTO_BLOCK];
  bool ok = true;

  if (w == NULL)
    return -1;
  for (; ok && count > 0; count -= CRYPTO_SECTOR) {
    ok = make_iv (&s->format, w, number++, iv) &&
      fn (w->data, iv, in, out, CRYPTO_SECTOR);
    in += CRYPTO_SECTOR;
    out += CRYPTO_SECTOR;
  }
  put_worker (s, w);
  if (!ok)
    errno = EIO;
  return ok ? 0 : -1;
}

int
sectors_encipher (struct sectors *s, const void *in, void *out, size_t count,
                  uint64_t first)
{
  return each_sector (s, in, out, count, first, crypto_encipher);
}

int
sectors_decipher (struct sectors *s, const void *in, void *out, size_t count,
                  uint64_t first)
{
  return each_sector (s, in, out, count, first, crypto_decipher);
}
