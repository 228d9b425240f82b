/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <signal.h>

#include "tool.h"

static volatile sig_atomic_t stopped;

static void
stop (int signal)
{
  (void) signal;
  stopped = 1;
}

void
tool_catch_signals (void)
{
  const struct sigaction action = { .sa_handler = stop };

  sigaction (SIGINT, &action, NULL);
  sigaction (SIGTERM, &action, NULL);
  sigaction (SIGHUP, &action, NULL);
}

bool
tool_is_stopped (void)
{
  return stopped;
}
