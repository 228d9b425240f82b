/* SPDX-License-Identifier: BSD-3-Clause */

/* The way to the data of encrypted images.  Spec: Header (crypt_method), Full
 * disk encryption header pointer.
 */

#ifndef CORE_QCOW2_UNLOCK_H
#define CORE_QCOW2_UNLOCK_H

#include "crypto/passphrase.h"
#include "crypto/sectors.h"
#include "qcow2/header.h"
#include "storage/storage.h"

/* How the sectors of an encrypted image's data are deciphered; s is the image,
 * wherever its data is.  passphrases may be NULL: none.  depth: how far below
 * the image the file is.  *sectors becomes the caller's, or NULL if the data is
 * to stay locked.  Returns -1 with the error set: EACCES if there is no
 * passphrase, or it is the wrong one; ENOTSUP, EINVAL, EIO, ENOMEM.
 */
extern int unlock (struct storage *s, const struct header *h,
                   const struct passphrases *passphrases, unsigned depth,
                   struct sectors **sectors);

#endif /* CORE_QCOW2_UNLOCK_H */
