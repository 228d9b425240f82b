/* SPDX-License-Identifier: BSD-3-Clause */

/* What the fuzz target does with its input. */

#ifndef FUZZ_EXERCISE_H
#define FUZZ_EXERCISE_H

#include <stddef.h>
#include <stdint.h>

/* Open these bytes as an image and read here and there in all that it
 * offers; what that costs is bounded.  Aborts, saying why, where core/
 * breaks its word.  Returns how many disks could be opened.
 */
extern unsigned exercise (const uint8_t *data, size_t size);

#endif /* FUZZ_EXERCISE_H */
