/* SPDX-License-Identifier: BSD-3-Clause */

/* Values of parameters: what nbdkit's functions parse, with errors that say
 * which parameter it is.  All return -1 with nbdkit_error called.
 */

#ifndef QCOW2_VALUES_H
#define QCOW2_VALUES_H

#include <stdbool.h>
#include <stdint.h>

/* One of several words, NULL after the last: its place in the list. */
extern int value_choose (const char *key, const char *value,
                         const char *const *words, const char *accepted);

extern int value_parse_bool (const char *key, const char *value, bool *b);
extern int value_parse_size (const char *key, const char *value,
                             uint64_t *size);

#endif /* QCOW2_VALUES_H */
