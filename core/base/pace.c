/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <time.h>

#include "base/pace.h"

#define SECOND UINT64_C (1000000000)

/* Less than that is not worth two changes of context. */
#define WORTH_IT (SECOND / 1000)

#define MAX_REST (SECOND / 20)

static uint64_t
cpu_time (clockid_t clock)
{
  struct timespec t = { 0 };

  clock_gettime (clock, &t);
  return t.tv_sec * SECOND + t.tv_nsec;
}

void
pace_begin (struct pace *pace)
{
  pace->own = cpu_time (CLOCK_THREAD_CPUTIME_ID);
  pace->all = cpu_time (CLOCK_PROCESS_CPUTIME_ID);
}

void
pace_rest (struct pace *pace)
{
  const uint64_t own = cpu_time (CLOCK_THREAD_CPUTIME_ID) - pace->own;
  const uint64_t rest = own < MAX_REST / 6 ? 6 * own : MAX_REST;
  uint64_t all;

  if (own < WORTH_IT)
    return;
  all = cpu_time (CLOCK_PROCESS_CPUTIME_ID) - pace->all;
  if (all > own && all - own >= own / 4)
    nanosleep (&(struct timespec) { .tv_nsec = rest }, NULL);
  pace_begin (pace);
}
