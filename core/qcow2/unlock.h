/* SPDX-License-Identifier: BSD-3-Clause */

/* The way to the data of encrypted images.  Spec: Header (crypt_method), Full
 * disk encryption header pointer.
 */

#ifndef CORE_QCOW2_UNLOCK_H
#define CORE_QCOW2_UNLOCK_H

#include "crypto/passphrase.h"
#include "qcow2/header.h"
#include "storage/storage.h"

/* A storage, on this one, through which the data of an encrypted image is read
 * and written in the clear; it is the caller's, and closed before the other.
 * passphrases may be NULL: none.  depth: how far below the image the file is.
 * Returns NULL with the error set: EACCES if there is no passphrase, or it is
 * the wrong one; ENOTSUP, EINVAL, EIO, ENOMEM.
 */
extern struct storage *unlock (struct storage *s, const struct header *h,
                               const struct passphrases *passphrases,
                               unsigned depth);

#endif /* CORE_QCOW2_UNLOCK_H */
