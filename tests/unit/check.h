/* SPDX-License-Identifier: BSD-3-Clause */

/* Assertions for unit tests.  A failed one is printed with its place and
 * counted, and the test goes on; check_result is what main returns.  They
 * may be used by several threads at once, and in several files of a program.
 */

#ifndef UNIT_CHECK_H
#define UNIT_CHECK_H

#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "base/error.h"

#define CHECK_MAX_PRINTED 10

/* Weak, so that all files of a program share it. */
_Atomic unsigned check_failures __attribute__ ((__weak__));

static inline void __attribute__ ((__format__ (__printf__, 3, 4), __cold__))
check_failed (const char *file, int line, const char *fmt, ...)
{
  char text[4096];
  va_list ap;

  if (atomic_fetch_add (&check_failures, 1) >= CHECK_MAX_PRINTED)
    return;
  va_start (ap, fmt);
  vsnprintf (text, sizeof text, fmt, ap);
  va_end (ap);
  fprintf (stderr, "%s:%d: failed: %s\n", file, line, text);
}

static inline void
check_equal (const char *file, int line, const char *what,
             uint64_t a, uint64_t b)
{
  if (a != b)
    check_failed (file, line, "%s: 0x%" PRIx64 " is not 0x%" PRIx64,
                  what, a, b);
}

static inline void
check_string (const char *file, int line, const char *what,
              const char *a, const char *b)
{
  if (a == NULL || strcmp (a, b) != 0)
    check_failed (file, line, "%s: \"%s\" is not \"%s\"", what,
                  a != NULL ? a : "(null)", b);
}

static inline void
check_contains (const char *file, int line, const char *text,
                const char *part)
{
  if (text == NULL || strstr (text, part) == NULL)
    check_failed (file, line, "\"%s\" does not contain \"%s\"",
                  text != NULL ? text : "(null)", part);
}

static inline void
check_error (const char *file, int line, int errnum, const char *part)
{
  if (error_errno () != errnum)
    check_failed (file, line, "errno %d is not %d: %s", error_errno (),
                  errnum, error_message ());
  check_contains (file, line, error_message (), part);
}

static inline void
check_ok (const char *file, int line, const char *what, int r)
{
  if (r != 0)
    check_failed (file, line, "%s returned %d: %s", what, r,
                  error_message ());
}

/* False under an old valgrind, which does not know it. */
static inline bool
have_openat2 (void)
{
  return syscall (SYS_openat2, -1, "", NULL, (size_t) 0) == 0 ||
    errno != ENOSYS;
}

/* A test that hangs is killed after this many seconds, unless the driver of
 * the tests sees to that: it knows how busy machines are.
 */
static inline void
check_time_limit (unsigned seconds)
{
  if (getenv ("TEST_LIMIT") == NULL)
    alarm (seconds);
}

/* Tests of many rounds stop at the first that fails. */
static inline bool
check_any_failed (void)
{
  return atomic_load (&check_failures) > 0;
}

static inline int
check_result (void)
{
  const unsigned n = atomic_load (&check_failures);

  if (n > 0)
    fprintf (stderr, "%u checks failed\n", n);
  return n > 0;
}

#define CHECK(cond)                                             \
  do {                                                          \
    if (!(cond))                                                \
      check_failed (__FILE__, __LINE__, "%s", #cond);           \
  } while (0)

/* Integers; the first is what was found, the second what should be. */
#define CHECK_EQ(a, b) check_equal (__FILE__, __LINE__, #a, (a), (b))
#define CHECK_STR(a, b) check_string (__FILE__, __LINE__, #a, (a), (b))
#define CHECK_HAS(text, part) check_contains (__FILE__, __LINE__, text, part)

/* The last error of this thread. */
#define CHECK_ERROR(errnum, part) \
  check_error (__FILE__, __LINE__, errnum, part)

/* A call that returns 0 or has set the error. */
#define CHECK_OK(call) check_ok (__FILE__, __LINE__, #call, (call))

#endif /* UNIT_CHECK_H */
