/* SPDX-License-Identifier: BSD-3-Clause */

/* Data that is enciphered: by AES, where the guest sees it, or by LUKS, where it is
 * in the file.
 */

#include <config.h>

#include <stdlib.h>
#include <string.h>

#include "content.h"
#include "crypto/luks-new.h"
#include "crypto/sectors.h"
#include "maker-image.h"
#include "must-have.h"

static const struct passphrase below = { "deeper", 6 };

const struct passphrases made_passphrases = {
  .image = { "secret", 6 }, .backing = &below, .nr_backing = 1,
};
const struct passphrases made_passphrases_below = { .image = { "deeper", 6 } };

const struct passphrases *
made_unlock (const struct made *m)
{
  return m->aes || m->luks || m->locked_below ? &made_passphrases : NULL;
}

static struct passphrase
its_passphrase (const struct maker *k)
{
  return passphrase_of (&made_passphrases, k->below);
}

/* The key of all data, as who has the passphrase finds it. */
static struct sectors *
unlock_made (struct luks_new *new, struct passphrase p)
{
  uint8_t key[CRYPTO_MAX_KEY];
  struct luks luks;
  bool fits;

  if (luks_decode ("made", 0, new->header, LUKS_NEW_BYTES, &luks) == -1 ||
      luks_try (&luks, &luks.slot[0], p.bytes, p.count, new->material, key,
                &fits) == -1 || !fits)
    abort ();
  return must_have (sectors_new (&luks.format, key));
}

static void
make_luks (struct maker *k)
{
  const struct passphrase passphrase = its_passphrase (k);
  struct luks_new *new = must_have (malloc (sizeof *new));
  uint8_t *p;

  if (luks_make (&passphrase, 1, new) == -1)
    abort ();
  /* No more than what slot 0 has. */
  k->luks_bytes = LUKS_NEW_MATERIAL + sizeof new->material;
  k->luks_data = p = must_have (calloc (1, k->luks_bytes));
  memcpy (p, new->header, sizeof new->header);
  memcpy (p + LUKS_NEW_MATERIAL, new->material, sizeof new->material);
  k->sectors = unlock_made (new, passphrase);
  free (new);
}

void
maker_place_luks (struct maker *k)
{
  const uint64_t size = k->b.cluster_size;

  if (k->luks_data == NULL)
    return;
  k->luks = build_clusters (&k->b, (k->luks_bytes + size - 1) / size);
  memcpy (k->b.data + k->luks, k->luks_data, k->luks_bytes);
  free (k->luks_data);
  k->luks_data = NULL;
}

void
maker_start_crypt (struct maker *k)
{
  static const struct sector_format aes = {
    .mode = CRYPTO_CBC, .key_bytes = 16, .iv = IV_PLAIN64,
  };
  const struct passphrase passphrase = its_passphrase (k);
  uint8_t key[CRYPTO_MAX_KEY] = { 0 };

  memcpy (key, passphrase.bytes, passphrase.count);
  if (k->m->aes)
    k->sectors = must_have (sectors_new (&aes, key));
  else if (k->m->luks)
    make_luks (k);
  if (!k->late)
    maker_place_luks (k);
}

void
maker_encipher (struct maker *k, uint64_t host, uint64_t guest, uint64_t count)
{
  uint8_t *p = k->b.data + host;

  if (k->sectors != NULL &&
      sectors_encipher (k->sectors, p, p, count,
                        (k->m->luks ? host : guest) / SECTOR) == -1)
    abort ();
}
