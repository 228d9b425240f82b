/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "crypto/luks-parts.h"
#include "crypto/luks-new.h"
#include "crypto/secret.h"
#include "crypto/split.h"

/* What the LUKS specification recommends at least. */
#define MIN_ITERATIONS 1000

/* All that must be wiped. */
struct making {
  uint8_t key[CRYPTO_MAX_KEY];      /* of all data */
  uint8_t slot_key[CRYPTO_MAX_KEY]; /* of the material */
  uint8_t material[LUKS_MAX_MATERIAL];
};

/* The iterations that take so long, where PBKDF2 computes so many blocks. */
static uint32_t
iterations_in (const struct effort *e, uint64_t milliseconds, unsigned blocks)
{
  const uint64_t nr = e->per_second * milliseconds / 1000 / blocks;

  return nr < MIN_ITERATIONS ? MIN_ITERATIONS
    : nr > UINT32_MAX ? UINT32_MAX : nr;
}

/* A random UUID, version 4 (RFC 4122). */
static int
put_uuid (uint8_t *field)
{
  uint8_t r[16];
  char text[LUKS_UUID_BYTES];
  size_t i, at = 0;

  if (crypto_random (r, sizeof r) == -1)
    return -1;
  r[6] = (r[6] & 0x0f) | 0x40;
  r[8] = (r[8] & 0x3f) | 0x80;
  for (i = 0; i < sizeof r; ++i)
    at += snprintf (text + at, sizeof text - at, "%s%02x",
                    i == 4 || i == 6 || i == 8 || i == 10 ? "-" : "", r[i]);
  memcpy (field, text, at);
  return 0;
}

static void
put_slots (uint8_t *header, uint32_t iterations)
{
  unsigned i;

  for (i = 0; i < LUKS_SLOTS; ++i) {
    uint8_t *slot = header + LUKS_SLOT + i * SLOT_BYTES;
    const size_t offset = LUKS_NEW_MATERIAL + i * LUKS_NEW_SLOT_BYTES;

    put_be32 (slot + SLOT_STATE, i == 0 ? SLOT_ACTIVE : SLOT_INACTIVE);
    put_be32 (slot + SLOT_ITERATIONS, i == 0 ? iterations : 0);
    put_be32 (slot + SLOT_MATERIAL, offset / CRYPTO_SECTOR);
    put_be32 (slot + SLOT_STRIPES, LUKS_STRIPES);
  }
}

/* All but the digest of the key. */
static int
put_header (uint8_t *header, unsigned milliseconds)
{
  struct effort e;

  if (effort_measure (&e, CRYPTO_SHA256) == -1)
    return -1;
  memset (header, 0, LUKS_HEADER_BYTES);
  memcpy (header + LUKS_MAGIC, luks_magic, sizeof luks_magic);
  header[LUKS_VERSION + 1] = 1;
  memcpy (header + LUKS_CIPHER_NAME, "aes", 3);
  memcpy (header + LUKS_CIPHER_MODE, "xts-plain64", 11);
  memcpy (header + LUKS_HASH, "sha256", 6);
  put_be32 (header + LUKS_PAYLOAD, LUKS_NEW_BYTES / CRYPTO_SECTOR);
  put_be32 (header + LUKS_KEY_BYTES, CRYPTO_MAX_KEY);
  /* As QEMU and cryptsetup: an eighth of the time.  It is one block. */
  put_be32 (header + LUKS_DIGEST_ITERATIONS,
            iterations_in (&e, milliseconds / 8, 1));
  put_slots (header, iterations_in (&e, milliseconds, 2));
  if (crypto_random (header + LUKS_DIGEST_SALT, LUKS_SALT_BYTES) == -1 ||
      crypto_random (header + LUKS_SLOT + SLOT_SALT, LUKS_SALT_BYTES) == -1)
    return -1;
  return put_uuid (header + LUKS_UUID);
}

/* Encipher the stripes of the key with the slot's. */
static int
encipher_material (const struct luks *luks, struct making *m)
{
  struct sectors *s = sectors_new (&luks->format, m->slot_key);
  int r;

  if (s == NULL)
    return -1;
  r = sectors_encipher (s, m->material, m->material, sizeof m->material, 0);
  if (r == -1)
    error_set (errno, "enciphering a key: %s", strerror (errno));
  sectors_free (s);
  return r;
}

static int
put_key (const struct passphrase *p, struct making *m, struct luks_new *out)
{
  struct luks luks;

  if (luks_decode ("a new LUKS header", 0, out->header, LUKS_NEW_BYTES,
                   &luks) == -1 ||
      crypto_random (m->key, sizeof m->key) == -1 ||
      crypto_pbkdf2 (luks.hash, m->key, sizeof m->key, luks.salt,
                     LUKS_SALT_BYTES, luks.iterations,
                     out->header + LUKS_DIGEST, LUKS_DIGEST_BYTES) == -1 ||
      crypto_pbkdf2 (luks.hash, p->bytes, p->count, luks.slot[0].salt,
                     LUKS_SALT_BYTES, luks.slot[0].iterations, m->slot_key,
                     sizeof m->slot_key) == -1 ||
      split_key (luks.hash, m->key, sizeof m->key, LUKS_STRIPES,
                 m->material) == -1 ||
      encipher_material (&luks, m) == -1)
    return -1;
  memcpy (out->material, m->material, sizeof out->material);
  return 0;
}

int
luks_make (const struct passphrase *p, unsigned milliseconds,
           struct luks_new *out)
{
  struct making *m;
  int r = -1;

  m = secret_new (sizeof *m);
  if (m == NULL)
    return -1;
  if (put_header (out->header, milliseconds) == 0)
    r = put_key (p, m, out);
  secret_free (m, sizeof *m);
  if (r == -1)
    memset (out, 0, sizeof *out);
  return r;
}
