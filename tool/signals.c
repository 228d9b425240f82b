/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <time.h>

#include "tool.h"

/* Another one that comes sooner need not be somebody's who can't wait:
 * timeout(1) sends its signal to the process, and then to its group.
 */
#define SECOND_MILLISECONDS 1000

static _Atomic int64_t stopped; /* when, in milliseconds; 0: not */

static int64_t
milliseconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * INT64_C (1000) + t.tv_nsec / 1000000 + 1;
}

static void
stop (int number)
{
  const int64_t now = milliseconds ();
  int64_t first = 0;

  /* A shell may pass a SIGHUP on that the terminal has sent, too. */
  if (atomic_compare_exchange_strong (&stopped, &first, now) ||
      number == SIGHUP || now - first < SECOND_MILLISECONDS)
    return;
  signal (number, SIG_DFL);
  raise (number); /* once this has returned */
}

void
tool_catch_signals (void)
{
  const struct sigaction action = { .sa_handler = stop };
  struct sigaction old;

  sigaction (SIGINT, &action, NULL);
  sigaction (SIGTERM, &action, NULL);
  if (sigaction (SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
    sigaction (SIGHUP, &action, NULL); /* else nohup has started it */
}

bool
tool_is_stopped (void)
{
  return atomic_load (&stopped) != 0;
}
