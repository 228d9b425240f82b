/* SPDX-License-Identifier: BSD-3-Clause */

/* JSON on stdout: members of objects and arrays, one on each line. */

#ifndef QCOW2_JSON_H
#define QCOW2_JSON_H

#include <stdbool.h>
#include <stdint.h>

/* Begin an object or array.  name is NULL outside of objects. */
extern void json_open (const char *name, char bracket);
extern void json_close (char bracket);

extern void json_number (const char *name, uint64_t value);
extern void json_bool (const char *name, bool value);

/* JSON is UTF-8: bytes that are not become U+FFFD.  Characters that may not be
 * printed (see core/base/error.h) become escapes, which readers decode.
 */
extern void json_string (const char *name, const char *value);

#endif /* QCOW2_JSON_H */
