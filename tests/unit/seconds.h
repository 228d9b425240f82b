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

/* ThreadSanitizer takes ten times as long, and learns nothing from tests of
 * one thread: these do one of so many rounds there, and with AddressSanitizer one
 * of half as many.  Without either, all are done.
 */
#if defined __SANITIZE_THREAD__
#define TEST_EACH(nr) (nr)
#elif defined __SANITIZE_ADDRESS__
#define TEST_EACH(nr) ((nr) / 2 | 1)
#elif defined __has_feature
#if __has_feature (thread_sanitizer)
#define TEST_EACH(nr) (nr)
#elif __has_feature (address_sanitizer)
#define TEST_EACH(nr) ((nr) / 2 | 1)
#endif
#endif
#ifndef TEST_EACH
#define TEST_EACH(nr) 1
#endif

#endif /* UNIT_SECONDS_H */
