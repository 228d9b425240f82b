/* SPDX-License-Identifier: BSD-3-Clause */

/* What core/ promises.  A fuzz target that finds a promise broken aborts. */

#ifndef FUZZ_PROMISE_H
#define FUZZ_PROMISE_H

#include <errno.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/error.h"

static inline void __attribute__ ((__noreturn__))
broken (const char *what)
{
  fprintf (stderr, "broken promise: %s (last error: %s)\n", what,
           error_message ());
  abort ();
}

static inline void
expect (bool ok, const char *what)
{
  if (!ok)
    broken (what);
}

/* A call failed: it must have said why, without a control character that the
 * image may have in its names.  No input is large enough for ENOMEM; EACCES is
 * for what is encrypted.
 */
static inline void
expect_error (void)
{
  const int err = error_errno ();
  const char *p = error_message ();

  expect (err == EINVAL || err == ENOTSUP || err == EIO || err == ENOSPC ||
          (err == EACCES && strstr (p, "encrypted") != NULL),
          "an unexpected errno");
  expect (*p != '\0', "a failure without a message");
  for (; *p != '\0'; ++p)
    expect ((unsigned char) *p >= ' ' && *p != 0x7f,
            "a control character in a message");
}

#endif /* FUZZ_PROMISE_H */
