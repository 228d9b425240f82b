/* SPDX-License-Identifier: BSD-3-Clause */

/* Small files in the working directory, for tests that make and replace some.
 */

#ifndef UNIT_FOLDER_H
#define UNIT_FOLDER_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FOLDER_LARGEST (1 << 20)
extern uint8_t folder_bytes[FOLDER_LARGEST]; /* of the last file loaded */

/* Returns the file's size; 0 if there is none. */
extern size_t folder_load (const char *path);

extern void folder_put (const char *path, const char *text);
extern bool folder_holds (const char *path, const char *text);

/* How many files there are; with remove there are none any more. */
extern unsigned folder_count (bool remove);

/* Whether a file, whatever its name, holds this. */
extern bool folder_has (const char *text);

/* Its permissions; 0 if there is none. */
extern unsigned folder_mode (const char *path);

#endif /* UNIT_FOLDER_H */
