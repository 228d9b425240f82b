/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <inttypes.h>
#include <string.h>

#include "base/advice.h"
#include "base/error.h"
#include "crypto/effort.h"
#include "crypto/luks.h"
#include "crypto/secret.h"
#include "qcow2/misfits.h"
#include "qcow2/unlock.h"

/* -------------------------------------------------------------------- LUKS */

/* What it takes to try a passphrase, in memory for secrets. */
struct attempt {
  uint8_t key[CRYPTO_MAX_KEY];
  uint8_t material[LUKS_MAX_MATERIAL];
};

static int
try_slot (struct storage *s, const struct header *h, const struct luks *luks,
          const struct luks_slot *slot, const struct passphrase *p,
          struct attempt *a, bool *fits)
{
  const struct host_off material = { h->crypto.v + slot->offset };

  *fits = false;
  if (storage_read (s, a->material, luks_material_bytes (luks),
                    material) == -1 ||
      luks_try (luks, slot, p->bytes, p->count, a->material, a->key,
                fits) == -1) {
    error_append (" (%s, for a LUKS key slot)", s->name);
    return -1;
  }
  return 0;
}

static void
no_slot_fits (const struct storage *s)
{
  error_set (EACCES, "%s: the passphrase is wrong: it fits none of the LUKS "
             "header's key slots", s->name);
}

static void
slot_skipped (const struct storage *s, const struct effort *e)
{
  error_set (ENOTSUP, "%s: LUKS header: to try key slot %d would take %" PRIu64
             " seconds here, beside the others: the limit for all is %d "
             "seconds, and in the rest of them the passphrase does not fit",
             s->name, e->skipped, e->skipped_seconds, EFFORT_MAX_SECONDS);
}

/* Find the key, in any slot: each is tried until one fits.  *fits_none is set if
 * none does.
 */
static struct sectors *
find_key (struct storage *s, const struct header *h, const struct luks *luks,
          const struct passphrase *p, struct attempt *a, bool *fits_none)
{
  struct effort effort;
  bool fits = false;
  unsigned i;

  if (effort_measure (&effort, luks->hash) == -1)
    return NULL;
  for (i = 0; i < LUKS_SLOTS && !fits; ++i)
    if (luks->slot[i].active && effort_take (&effort, luks, i) &&
        try_slot (s, h, luks, &luks->slot[i], p, a, &fits) == -1)
      return NULL;
  if (fits)
    return sectors_new (&luks->format, a->key);
  *fits_none = effort.skipped == -1; /* else a faster machine may find one */
  if (*fits_none)
    no_slot_fits (s);
  else
    slot_skipped (s, &effort);
  return NULL;
}

static struct sectors *
try_luks (struct storage *s, const struct header *h,
          const struct passphrase *p, bool *fits_none)
{
  uint8_t buf[LUKS_HEADER_BYTES];
  struct luks luks;
  struct attempt *a;
  struct sectors *sectors;

  if (h->crypto_bytes < sizeof buf) {
    error_set (EINVAL, "%s: LUKS header at offset 0x%" PRIx64 ": its %" PRIu64
               " bytes are less than %zu", s->name, h->crypto.v,
               h->crypto_bytes, sizeof buf);
    return NULL;
  }
  if (storage_read (s, buf, sizeof buf, h->crypto) == -1 ||
      luks_decode (s->name, h->crypto.v, buf, h->crypto_bytes, &luks) == -1)
    return NULL;
  a = secret_new (sizeof *a);
  if (a == NULL)
    return NULL;
  sectors = find_key (s, h, &luks, p, a, fits_none);
  secret_free (a, sizeof *a);
  if (sectors != NULL)
    debug_message ("%s: LUKS, %s", s->name, luks.cipher);
  return sectors;
}

static struct sectors *
unlock_luks (struct storage *s, const struct header *h,
             const struct passphrase *p, struct misfits *misfits)
{
  struct storage_stamp stamp;
  /* A device does not tell what becomes of it. */
  const bool told = !s->fixed_size && storage_stamp (s, &stamp);
  struct sectors *sectors;
  bool fits_none = false;

  if (told && misfits_has (misfits, &stamp, p)) {
    no_slot_fits (s);
    return NULL;
  }
  sectors = try_luks (s, h, p, &fits_none);
  if (told && fits_none)
    misfits_add (misfits, &stamp, p);
  return sectors;
}

/* --------------------------------------------------------------------- AES */

/* The key is the passphrase, without more ado, and whether it is the right one
 * nothing tells.
 */
static struct sectors *
unlock_aes (const struct passphrase *p)
{
  static const struct sector_format aes = {
    .mode = CRYPTO_CBC, .key_bytes = 16, .iv = IV_PLAIN64,
  };
  uint8_t key[CRYPTO_MAX_KEY] = { 0 };
  struct sectors *sectors;

  memcpy (key, p->bytes, p->count < aes.key_bytes ? p->count : aes.key_bytes);
  sectors = sectors_new (&aes, key);
  secret_wipe (key, sizeof key);
  return sectors;
}

/* -------------------------------------------------------------------- both */

static const char *
encryption_name (const struct header *h)
{
  return h->encryption == ENCRYPTION_AES ? "AES" : "LUKS";
}

static struct sectors *
unlock_sectors (struct storage *s, const struct header *h,
                const struct passphrase *p, struct misfits *misfits)
{
  if (p->bytes != NULL)
    return h->encryption == ENCRYPTION_AES ? unlock_aes (p)
      : unlock_luks (s, h, p, misfits);
  error_set (EACCES, "%s: it is encrypted (%s), and its passphrase is missing",
             s->name, encryption_name (h));
  advise (ADVICE_PASSPHRASE);
  return NULL;
}

int
unlock (struct storage *s, const struct header *h,
        const struct passphrases *passphrases, unsigned depth,
        struct sectors **sectors)
{
  static const struct passphrases none;
  const struct passphrases *all = passphrases != NULL ? passphrases : &none;
  const struct passphrase p = passphrase_of (all, depth);

  *sectors = NULL;
  if (all->locked)
    return 0;
  if (crypto_library () == NULL) {
    error_set (ENOTSUP, "%s: encrypted, method %d (%s): encryption is not "
               "supported here; qemu-nbd serves it, and qemu-img convert "
               "makes an image of it without", s->name, h->encryption,
               encryption_name (h));
    return -1;
  }
  *sectors = unlock_sectors (s, h, &p, all->misfits);
  return *sectors == NULL ? -1 : 0;
}
