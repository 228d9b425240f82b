/* SPDX-License-Identifier: BSD-3-Clause */

/* The layout of LUKS headers, version 1: what luks.c, which reads them, and
 * luks-new.c, which makes them, have in common.
 */

#ifndef CORE_CRYPTO_LUKS_PARTS_H
#define CORE_CRYPTO_LUKS_PARTS_H

#include "crypto/luks.h"

/* Offsets of the header's fields. */
enum {
  LUKS_MAGIC = 0,
  LUKS_VERSION = 6,
  LUKS_CIPHER_NAME = 8,
  LUKS_CIPHER_MODE = 40,
  LUKS_HASH = 72,
  LUKS_PAYLOAD = 104,
  LUKS_KEY_BYTES = 108,
  LUKS_DIGEST = 112,
  LUKS_DIGEST_SALT = 132,
  LUKS_DIGEST_ITERATIONS = 164,
  LUKS_UUID = 168,
  LUKS_SLOT = 208,
};

/* And of those of a slot. */
enum {
  SLOT_STATE = 0,
  SLOT_ITERATIONS = 4,
  SLOT_SALT = 8,
  SLOT_MATERIAL = 40,
  SLOT_STRIPES = 44,
  SLOT_BYTES = 48,
};

_Static_assert (LUKS_SLOT + LUKS_SLOTS * SLOT_BYTES == LUKS_HEADER_BYTES,
                "the slots end the header");

#define LUKS_NAME_BYTES 32 /* of each text, with the zero that ends it */
#define LUKS_UUID_BYTES 40 /* the same of the UUID */

#define SLOT_ACTIVE UINT32_C (0x00ac71f3)
#define SLOT_INACTIVE UINT32_C (0x0000dead)

static const uint8_t luks_magic[6] = { 'L', 'U', 'K', 'S', 0xba, 0xbe };

#endif /* CORE_CRYPTO_LUKS_PARTS_H */
