/* SPDX-License-Identifier: BSD-3-Clause */

/* --passphrase and --backing-passphrase, spelled as the plugin's parameters. */

#ifndef QCOW2_TOOL_PASSPHRASE_H
#define QCOW2_TOOL_PASSPHRASE_H

#include "crypto/passphrase.h"
#include "image.h"

struct tool_options;

/* Read those that were given, from files, descriptors or the terminal, once: they
 * stay until passphrases_wipe, which is to be called in any case.  Returns -1 with
 * the error set.
 */
extern int passphrases_read (const struct tool_options *o,
                             const struct passphrases **passphrases);
extern void passphrases_wipe (void);

/* Whether there are any. */
extern bool passphrases_are_given (const struct tool_options *o);

/* Whether what was given is for an image, or a file below it, that is encrypted: or
 * below the other one, which may be NULL.  Returns -1 with the error set.
 */
extern int passphrases_check (const struct tool_options *o,
                              const struct image *im,
                              const struct image *below);

#endif /* QCOW2_TOOL_PASSPHRASE_H */
