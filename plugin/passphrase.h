/* SPDX-License-Identifier: BSD-3-Clause */

/* passphrase= and backing-passphrase=, spelled as for nbdkit's luks filter. */

#ifndef QCOW2_PASSPHRASE_H
#define QCOW2_PASSPHRASE_H

#include "image.h"

/* Take one parameter.  Returns 1 if it is one of these, 0 if not, or -1 with
 * nbdkit_error called.
 */
extern int passphrase_set (const char *key, const char *value);

/* What was given, until it is wiped. */
extern const struct passphrases *passphrases_given (void);

/* Check that what was given has a use: an image that is not encrypted, though
 * its user thinks so, must not be written.  Returns -1 with nbdkit_error
 * called.
 */
extern int passphrases_check (const struct image *im, const char *file);

/* The same of the backing files alone, of an image that is to be made. */
extern int passphrases_check_below (const struct image *im, const char *file);

/* The files are open.  May be called again. */
extern void passphrases_wipe (void);

#define PASSPHRASE_HELP                                                  \
  "passphrase=+<FILE>|-|-<FD> The passphrase of an encrypted image: in a\n" \
  "                           file, asked for, or from a descriptor.\n"   \
  "backing-passphrase=...     That of its backing files, if another; again\n" \
  "                           for each one below.\n"

#endif /* QCOW2_PASSPHRASE_H */
