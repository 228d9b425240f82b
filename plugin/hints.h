/* SPDX-License-Identifier: BSD-3-Clause */

/* Suggestions for unknown parameters. */

#ifndef QCOW2_HINTS_H
#define QCOW2_HINTS_H

/* Call nbdkit_error: key is unknown.  help is the list of parameters, one on
 * each line that starts with "key=".
 */
extern void hints_unknown (const char *key, const char *help);

#endif /* QCOW2_HINTS_H */
