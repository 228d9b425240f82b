/* SPDX-License-Identifier: BSD-3-Clause */

/* Mutations of images that know the format. */

#ifndef FUZZ_MUTATE_H
#define FUZZ_MUTATE_H

#include <stddef.h>
#include <stdint.h>

/* What is of most interest. */
enum mutate_for {
  MUTATE_HEADER,
  MUTATE_MAP,
  MUTATE_WRITE,
  MUTATE_SNAPSHOT,
  MUTATE_BITMAP,
  MUTATE_CHECK,
};

/* Change something in the image of size bytes (> 0), in a place with room
 * for max.  Returns the new size.
 */
extern size_t mutate_image (uint8_t *data, size_t size, size_t max,
                            uint64_t seed, enum mutate_for what);

#endif /* FUZZ_MUTATE_H */
