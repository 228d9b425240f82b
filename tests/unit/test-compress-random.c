/* SPDX-License-Identifier: BSD-3-Clause */

/* As test-write-random, with writes that compress. */

#define TEST_COMPRESS 1
#include "test-write-random.c"
