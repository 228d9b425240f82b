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
  const struct sigaction once = {
    .sa_handler = stop, .sa_flags = SA_RESETHAND,
  };
  struct sigaction old;

  /* Somebody who gives the second one does not want to wait; but a shell may
   * pass a SIGHUP on that the terminal has sent, too.
   */
  sigaction (SIGINT, &once, NULL);
  sigaction (SIGTERM, &once, NULL);
  if (sigaction (SIGHUP, NULL, &old) == 0 && old.sa_handler != SIG_IGN)
    sigaction (SIGHUP, &action, NULL); /* else nohup has started it */
}

bool
tool_is_stopped (void)
{
  return stopped;
}
