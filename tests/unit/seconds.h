/* SPDX-License-Identifier: BSD-3-Clause */

/* How long tests with threads run: a moment, or as long as TEST_SECONDS in
 * the environment says.
 */

#ifndef UNIT_SECONDS_H
#define UNIT_SECONDS_H

#include <stdlib.h>
#include <time.h>

static inline double
seconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static inline double
test_seconds (double usual)
{
  const char *s = getenv ("TEST_SECONDS");

  return s != NULL && atof (s) > 0 ? atof (s) : usual;
}

/* Sanitizers take five to twenty times as long: tests do one of so many rounds
 * there.  Without them, or with TEST_ALL in the environment, all are done.
 */
#if defined __SANITIZE_THREAD__ || defined __SANITIZE_ADDRESS__
#define TEST_SANITIZED
#elif defined __has_feature
#if __has_feature (thread_sanitizer) || __has_feature (address_sanitizer)
#define TEST_SANITIZED
#endif
#endif
#ifdef TEST_SANITIZED
#define TEST_EACH(nr) (getenv ("TEST_ALL") != NULL ? 1 : (nr))
#else
#define TEST_EACH(nr) 1
#endif

#endif /* UNIT_SECONDS_H */
