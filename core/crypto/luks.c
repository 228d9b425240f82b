/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>

#include "base/bytes.h"
#include "base/error.h"
#include "crypto/luks-parts.h"
#include "crypto/luks.h"
#include "crypto/secret.h"
#include "crypto/split.h"

/* For messages. */
struct place {
  const char *name;
  uint64_t offset; /* of the header */
};

static int
decode_text (const struct place *at, const char *what, const uint8_t *buf,
             unsigned field, char text[LUKS_NAME_BYTES])
{
  if (memchr (buf + field, '\0', LUKS_NAME_BYTES) == NULL) {
    error_set (EINVAL, "%s: LUKS header: the name of the %s, at offset "
               "0x%" PRIx64 ", does not end", at->name, what,
               at->offset + field);
    return -1;
  }
  memcpy (text, buf + field, LUKS_NAME_BYTES);
  return 0;
}

static int
not_supported (const struct place *at, const char *what, const char *text,
               unsigned field)
{
  error_set (ENOTSUP, "%s: LUKS header: %s \"%s\" at offset 0x%" PRIx64
             " is not supported", at->name, what, text, at->offset + field);
  return -1;
}

static int
find_hash (const struct place *at, const char *what, const char *text,
           unsigned field, enum crypto_hash *hash)
{
  return crypto_find_hash (text, hash) ? 0
    : not_supported (at, what, text, field);
}

/* GENERATOR[:HASH], where a hash that is not needed is ignored. */
static int
decode_generator (const struct place *at, char *text, struct sector_format *f)
{
  char *hash = strchr (text, ':');

  if (hash != NULL)
    *hash++ = '\0';
  if (strcmp (text, "plain64") == 0)
    f->iv = IV_PLAIN64;
  else if (strcmp (text, "plain") == 0)
    f->iv = IV_PLAIN;
  else if (strcmp (text, "essiv") == 0)
    f->iv = IV_ESSIV;
  else
    return not_supported (at, "IV generator", text, LUKS_CIPHER_MODE);
  if (f->iv != IV_ESSIV)
    return 0;
  if (hash == NULL)
    return not_supported (at, "IV generator without a hash", text,
                          LUKS_CIPHER_MODE);
  if (find_hash (at, "hash of the IV generator", hash, LUKS_CIPHER_MODE,
                 &f->iv_hash) == -1)
    return -1;
  if (!crypto_has_cipher (CRYPTO_CBC, crypto_digest_bytes (f->iv_hash)))
    return not_supported (at, "hash of the IV generator", hash,
                          LUKS_CIPHER_MODE);
  return 0;
}

/* MODE-GENERATOR. */
static int
decode_mode (const struct place *at, char *text, struct sector_format *f)
{
  char *generator = strchr (text, '-');

  if (generator != NULL)
    *generator++ = '\0';
  if (strcmp (text, "xts") == 0)
    f->mode = CRYPTO_XTS;
  else if (strcmp (text, "cbc") == 0)
    f->mode = CRYPTO_CBC;
  else
    return not_supported (at, "cipher mode", text, LUKS_CIPHER_MODE);
  if (generator == NULL)
    return not_supported (at, "cipher mode without IV generator", text,
                          LUKS_CIPHER_MODE);
  return decode_generator (at, generator, f);
}

static int
decode_cipher (const struct place *at, const uint8_t *buf, struct luks *luks)
{
  char cipher[LUKS_NAME_BYTES], mode[LUKS_NAME_BYTES], hash[LUKS_NAME_BYTES];
  const uint32_t key_bytes = get_be32 (buf + LUKS_KEY_BYTES);

  if (decode_text (at, "cipher", buf, LUKS_CIPHER_NAME, cipher) == -1 ||
      decode_text (at, "cipher mode", buf, LUKS_CIPHER_MODE, mode) == -1 ||
      decode_text (at, "hash", buf, LUKS_HASH, hash) == -1)
    return -1;
  snprintf (luks->cipher, sizeof luks->cipher, "%s-%s", cipher, mode);
  if (strcmp (cipher, "aes") != 0)
    return not_supported (at, "cipher", cipher, LUKS_CIPHER_NAME);
  if (decode_mode (at, mode, &luks->format) == -1 ||
      find_hash (at, "hash", hash, LUKS_HASH, &luks->hash) == -1)
    return -1;
  /* Material of half a sector at its end is enciphered by nobody. */
  if (!crypto_has_cipher (luks->format.mode, key_bytes) ||
      key_bytes * LUKS_STRIPES % CRYPTO_SECTOR != 0) {
    error_set (ENOTSUP, "%s: LUKS header: a key of %" PRIu32 " bytes, at "
               "offset 0x%" PRIx64 ", is not supported for %s", at->name,
               key_bytes, at->offset + LUKS_KEY_BYTES, luks->cipher);
    return -1;
  }
  luks->format.key_bytes = key_bytes;
  return 0;
}

/* Decode the slot whose fields are at this offset in the header. */
static int
decode_slot (const struct place *at, const uint8_t *buf, unsigned field,
             uint64_t bytes, struct luks *luks, struct luks_slot *slot)
{
  const unsigned i = (field - LUKS_SLOT) / SLOT_BYTES;
  const uint64_t material = luks_material_bytes (luks);
  const uint32_t state = get_be32 (buf + field + SLOT_STATE);
  const uint32_t stripes = get_be32 (buf + field + SLOT_STRIPES);

  slot->active = state == SLOT_ACTIVE;
  slot->iterations = get_be32 (buf + field + SLOT_ITERATIONS);
  memcpy (slot->salt, buf + field + SLOT_SALT, LUKS_SALT_BYTES);
  slot->offset = (uint64_t) get_be32 (buf + field + SLOT_MATERIAL) *
    CRYPTO_SECTOR;
  if (state != SLOT_ACTIVE && state != SLOT_INACTIVE)
    error_set (EINVAL, "%s: LUKS header: key slot %u at offset 0x%" PRIx64
               ": state 0x%08" PRIx32 " is neither active nor inactive",
               at->name, i, at->offset + field, state);
  else if (!slot->active)
    return 0;
  else if (slot->iterations == 0)
    error_set (EINVAL, "%s: LUKS header: key slot %u at offset 0x%" PRIx64
               ": 0 iterations", at->name, i, at->offset + field);
  else if (stripes != LUKS_STRIPES)
    error_set (EINVAL, "%s: LUKS header: key slot %u at offset 0x%" PRIx64
               ": %" PRIu32 " stripes: must be %d", at->name, i,
               at->offset + field, stripes, LUKS_STRIPES);
  else if (slot->offset < LUKS_HEADER_BYTES || slot->offset > bytes ||
           material > bytes - slot->offset)
    error_set (EINVAL, "%s: LUKS header: key slot %u at offset 0x%" PRIx64
               ": its material, %" PRIu64 " bytes at 0x%" PRIx64 " from the "
               "header, is not within the header's %" PRIu64 " bytes",
               at->name, i, at->offset + field, material, slot->offset, bytes);
  else
    return 0;
  return -1;
}

/* No slot's material is in another's: what is two keys is none. */
static int
check_slots (const struct place *at, const struct luks *luks)
{
  const uint64_t material = luks_material_bytes (luks);
  unsigned i, j;

  for (i = 0; i < LUKS_SLOTS; ++i)
    for (j = i + 1; j < LUKS_SLOTS; ++j) {
      const struct luks_slot *a = &luks->slot[i], *b = &luks->slot[j];

      if (a->active && b->active && a->offset < b->offset + material &&
          b->offset < a->offset + material) {
        error_set (EINVAL, "%s: LUKS header at offset 0x%" PRIx64 ": the "
                   "material of key slots %u and %u overlaps", at->name,
                   at->offset, i, j);
        return -1;
      }
    }
  return 0;
}

int
luks_decode (const char *name, uint64_t offset, const uint8_t *buf,
             uint64_t bytes, struct luks *luks)
{
  const struct place at = { name, offset };
  const unsigned version = buf[LUKS_VERSION] << 8 | buf[LUKS_VERSION + 1];
  unsigned i;

  memset (luks, 0, sizeof *luks);
  if (memcmp (buf + LUKS_MAGIC, luks_magic, sizeof luks_magic) != 0) {
    error_set (EINVAL, "%s: no LUKS header at offset 0x%" PRIx64, name, offset);
    return -1;
  }
  if (version != 1) {
    error_set (ENOTSUP, "%s: LUKS header: version %u at offset 0x%" PRIx64
               " is not supported: only 1 is", name, version,
               offset + LUKS_VERSION);
    return -1;
  }
  if (decode_cipher (&at, buf, luks) == -1)
    return -1;
  luks->payload_sector = get_be32 (buf + LUKS_PAYLOAD);
  memcpy (luks->digest, buf + LUKS_DIGEST, LUKS_DIGEST_BYTES);
  memcpy (luks->salt, buf + LUKS_DIGEST_SALT, LUKS_SALT_BYTES);
  luks->iterations = get_be32 (buf + LUKS_DIGEST_ITERATIONS);
  if (luks->iterations == 0) {
    error_set (EINVAL, "%s: LUKS header: 0 iterations at offset 0x%" PRIx64,
               name, offset + LUKS_DIGEST_ITERATIONS);
    return -1;
  }
  for (i = 0; i < LUKS_SLOTS; ++i)
    if (decode_slot (&at, buf, LUKS_SLOT + i * SLOT_BYTES, bytes, luks,
                     &luks->slot[i]) == -1)
      return -1;
  return check_slots (&at, luks);
}

/* ---------------------------------------------------------------- unlocking */

/* Decipher the material, whose sectors are counted from 0. */
static int
decipher_material (const struct luks *luks, const struct luks_slot *slot,
                   const void *passphrase, size_t passphrase_bytes,
                   uint8_t *material)
{
  uint8_t key[CRYPTO_MAX_KEY];
  struct sectors *s = NULL;
  int r = -1;

  if (crypto_pbkdf2 (luks->hash, passphrase, passphrase_bytes, slot->salt,
                     LUKS_SALT_BYTES, slot->iterations, key,
                     luks->format.key_bytes) == 0)
    s = sectors_new (&luks->format, key);
  secret_wipe (key, sizeof key);
  if (s == NULL)
    return -1;
  r = sectors_decipher (s, material, material, luks_material_bytes (luks), 0);
  if (r == -1)
    error_set (errno, "deciphering a key: %s", strerror (errno));
  sectors_free (s);
  return r;
}

/* Whether this is the key of all data. */
static int
check_key (const struct luks *luks, const uint8_t *key, bool *fits)
{
  uint8_t digest[LUKS_DIGEST_BYTES];
  const int r = crypto_pbkdf2 (luks->hash, key, luks->format.key_bytes,
                               luks->salt, LUKS_SALT_BYTES, luks->iterations,
                               digest, sizeof digest);

  *fits = r == 0 && secret_equal (digest, luks->digest, sizeof digest);
  secret_wipe (digest, sizeof digest);
  return r;
}

int
luks_try (const struct luks *luks, const struct luks_slot *slot,
          const void *passphrase, size_t passphrase_bytes, uint8_t *material,
          uint8_t key[CRYPTO_MAX_KEY], bool *fits)
{
  int r = -1;

  *fits = false;
  if (decipher_material (luks, slot, passphrase, passphrase_bytes,
                         material) == 0 &&
      split_merge (luks->hash, material, luks->format.key_bytes, LUKS_STRIPES,
                   key) == 0)
    r = check_key (luks, key, fits);
  if (!*fits)
    secret_wipe (key, CRYPTO_MAX_KEY);
  secret_wipe (material, luks_material_bytes (luks));
  return r;
}
