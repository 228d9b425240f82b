/* SPDX-License-Identifier: BSD-3-Clause */

/* What the fuzz targets do with their input. */

#ifndef FUZZ_EXERCISE_H
#define FUZZ_EXERCISE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Open these bytes as an image and read here and there in all that it
 * offers; what that costs is bounded.  Aborts, saying why, where core/
 * breaks its word.  Returns how many disks could be opened.
 */
extern unsigned exercise (const uint8_t *data, size_t size);

/* Open them for writing, write, zero, trim and flush here and there, close the
 * image, and open it again.  It must always open again; and if it was sound,
 * what was written must be there, all else must be as it was, and it must
 * still be sound.  Returns whether it could be written.
 */
extern bool exercise_write (const uint8_t *data, size_t size);

#endif /* FUZZ_EXERCISE_H */
