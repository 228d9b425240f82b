/* SPDX-License-Identifier: BSD-3-Clause */

/* Mutations that know the format. */

#ifndef FUZZ_MUTATE_H
#define FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

/* Change something in the image of size bytes (> 0), in a place with room
 * for max.  Returns the new size.
 */
extern size_t mutate (uint8_t *data, size_t size, size_t max, uint64_t seed);

#endif /* FUZZ_MUTATE_H */
