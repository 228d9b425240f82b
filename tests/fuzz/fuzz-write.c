/* SPDX-License-Identifier: BSD-3-Clause */

/* The libFuzzer target that writes: see run-fuzz.sh. */

#include <config.h>

#include "exercise.h"
#include "mutate.h"
#include "random.h"

extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);
extern size_t LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max,
                                       unsigned seed);
extern size_t LLVMFuzzerMutate (uint8_t *data, size_t size, size_t max);

__attribute__ ((__visibility__ ("default"))) int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  exercise_write (data, size);
  return 0;
}

__attribute__ ((__visibility__ ("default"))) size_t
LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max,
                         unsigned seed)
{
  if (size == 0 || mix (seed) % 4 == 0)
    return LLVMFuzzerMutate (data, size, max);
  return mutate (data, size, max, seed);
}
