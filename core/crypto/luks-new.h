/* SPDX-License-Identifier: BSD-3-Clause */

/* New LUKS headers, version 1, as QEMU makes them by default: AES-256 with XTS
 * and plain64, SHA-256, a random key, and a passphrase in slot 0.  Pure: no
 * I/O.
 */

#ifndef CORE_CRYPTO_LUKS_NEW_H
#define CORE_CRYPTO_LUKS_NEW_H

#include "crypto/effort.h"
#include "crypto/luks.h"
#include "crypto/passphrase.h"

#define LUKS_NEW_ALIGN ((size_t) 4096)
#define LUKS_NEW_SLOT_BYTES \
  ((LUKS_MAX_MATERIAL + LUKS_NEW_ALIGN - 1) / LUKS_NEW_ALIGN * LUKS_NEW_ALIGN)

/* Where the material of slot 0 is, from the header; and how much room all of
 * them have, with the header.  What is not written of it is zeros.
 */
#define LUKS_NEW_MATERIAL LUKS_NEW_ALIGN
#define LUKS_NEW_BYTES (LUKS_NEW_MATERIAL + LUKS_SLOTS * LUKS_NEW_SLOT_BYTES)

struct luks_new {
  uint8_t header[LUKS_HEADER_BYTES];
  uint8_t material[LUKS_MAX_MATERIAL];
};

/* Make one that takes so many milliseconds of this machine to open.  Returns -1
 * with the error set, and nothing in *out.
 */
extern int luks_make (const struct passphrase *p, unsigned milliseconds,
                      struct luks_new *out);

#endif /* CORE_CRYPTO_LUKS_NEW_H */
