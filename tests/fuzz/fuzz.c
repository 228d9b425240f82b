/* SPDX-License-Identifier: BSD-3-Clause */

/* A target for libFuzzer: which one, TARGET says.  See run-fuzz.sh. */

#include <config.h>

#include "fixed-key.h"
#include "memory.h"
#include "random.h"
#include "target.h"

extern int LLVMFuzzerInitialize (int *argc, char ***argv);
extern int LLVMFuzzerTestOneInput (const uint8_t *data, size_t size);
extern size_t LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max,
                                       unsigned seed);
extern size_t LLVMFuzzerMutate (uint8_t *data, size_t size, size_t max);

__attribute__ ((__visibility__ ("default"))) int
LLVMFuzzerInitialize (int *argc, char ***argv)
{
  (void) argc;
  (void) argv;
  fix_hash_key ();
  return 0;
}

__attribute__ ((__visibility__ ("default"))) int
LLVMFuzzerTestOneInput (const uint8_t *data, size_t size)
{
  memory_start ();
  TARGET.test (data, size);
  memory_end (TARGET.memory);
  return 0;
}

__attribute__ ((__visibility__ ("default"))) size_t
LLVMFuzzerCustomMutator (uint8_t *data, size_t size, size_t max,
                         unsigned seed)
{
  if (size == 0 || mix (seed) % 4 == 0)
    return LLVMFuzzerMutate (data, size, max);
  return TARGET.mutate (data, size, max, seed);
}
