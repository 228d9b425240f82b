/* SPDX-License-Identifier: BSD-3-Clause */

/* The door to the data of an encrypted image that nobody serves, for commands
 * that move or write clusters of it.
 */

#ifndef CORE_MANAGE_DOOR_H
#define CORE_MANAGE_DOOR_H

#include "crypto/passphrase.h"
#include "disk/layer.h"
#include "storage/storage.h"

/* Get the storage through which the data of a qcow2 image is read and written, on
 * its own, which must outlive it: *data becomes the caller's.  It is NULL for an
 * image that is not encrypted, and where there is no passphrase: commands refuse
 * what they can't do then.  Returns -1 with the error set: EACCES if the passphrase
 * is the wrong one, EINVAL if there is nothing to unlock; else as unlock.
 */
extern int door_open (struct storage *s, const struct passphrases *passphrases,
                      struct storage **data);

/* Set the error that a passphrase is missing, with the advice to give it.  what: the
 * image can't do without.
 */
extern void door_locked (const struct storage *s, const char *what);

/* Whether data of a layer can be copied into a file which is encrypted, or not: then
 * the layer must not be, either (I15).  If it is encrypted there must be a passphrase,
 * and one that is known to be right: with legacy AES that is not known, and garbage
 * would take the place of data.  Returns -1 with the error set: EACCES, ENOTSUP.
 */
extern int door_check (const struct layer *l, bool encrypted);

#endif /* CORE_MANAGE_DOOR_H */
