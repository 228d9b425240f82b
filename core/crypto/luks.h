/* SPDX-License-Identifier: BSD-3-Clause */

/* Headers of LUKS, version 1: which cipher it is, and the key of all data, in
 * up to eight slots, each for a passphrase.  The layout is that of the LUKS
 * On-Disk Format Specification 1.2.3; numbers are big endian.  Pure: no I/O.
 *
 * A header comes from a stranger, and what it asks for is work: slots are of
 * 4000 stripes, as all programs make them, which are 256 KB at most; and the
 * iterations of PBKDF2 are for crypto/effort.h to bound.
 */

#ifndef CORE_CRYPTO_LUKS_H
#define CORE_CRYPTO_LUKS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "crypto/sectors.h"

#define LUKS_HEADER_BYTES 592
#define LUKS_SLOTS 8
#define LUKS_STRIPES 4000
#define LUKS_SALT_BYTES 32
#define LUKS_DIGEST_BYTES 20
#define LUKS_MAX_MATERIAL ((size_t) CRYPTO_MAX_KEY * LUKS_STRIPES)

struct luks_slot {
  bool active;
  uint32_t iterations;
  uint8_t salt[LUKS_SALT_BYTES];
  uint64_t offset; /* of the key's material, in bytes from the header */
};

struct luks {
  struct sector_format format; /* of the material and of all data */
  char cipher[80];             /* for people */
  enum crypto_hash hash;
  uint8_t digest[LUKS_DIGEST_BYTES]; /* of the key */
  uint8_t salt[LUKS_SALT_BYTES];
  uint32_t iterations;
  uint32_t payload_sector; /* where data begins elsewhere: not in qcow2 */
  struct luks_slot slot[LUKS_SLOTS];
};

/* Decode and validate a header of LUKS_HEADER_BYTES.  It and the material of
 * its slots have so many bytes.  For messages, name is the image's, and offset
 * where the header is there.  Returns -1 with the error set: EINVAL if it is
 * malformed, ENOTSUP if it wants something that is not known here.
 */
extern int luks_decode (const char *name, uint64_t offset, const uint8_t *buf,
                        uint64_t bytes, struct luks *luks);

/* The bytes of a slot's material. */
static inline size_t
luks_material_bytes (const struct luks *luks)
{
  return luks->format.key_bytes * LUKS_STRIPES;
}

/* Try a passphrase in a slot, which is active.  material is what the slot has,
 * and is wiped.  Sets *fits, and the key if it does; the time that it takes
 * does not depend on how wrong a passphrase is.  Returns -1 with the error set.
 */
extern int luks_try (const struct luks *luks, const struct luks_slot *slot,
                     const void *passphrase, size_t passphrase_bytes,
                     uint8_t *material, uint8_t key[CRYPTO_MAX_KEY],
                     bool *fits);

#endif /* CORE_CRYPTO_LUKS_H */
