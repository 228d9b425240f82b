/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <signal.h>
#include <stdio.h>

#include "tool.h"

static volatile sig_atomic_t interrupted;

static void
note_signal (int sig)
{
  (void) sig;
  interrupted = 1;
}

void
tool_catch_signals (void)
{
  const struct sigaction a = { .sa_handler = note_signal,
                               .sa_flags = SA_RESTART };

  sigaction (SIGINT, &a, NULL);
  sigaction (SIGTERM, &a, NULL);
  sigaction (SIGHUP, &a, NULL);
}

bool
tool_progress (void *opaque, uint64_t done, uint64_t total)
{
  struct tool_progress *p = opaque;
  const unsigned percent =
    total > 0 ? (double) done * 100 / (double) total : 100;

  if (p->print && percent != p->percent) {
    p->percent = percent;
    fprintf (stderr, "\r%3u%%%s", percent, done == total ? "\n" : "");
  }
  return !interrupted;
}
