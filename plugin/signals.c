/* SPDX-License-Identifier: BSD-3-Clause */

/* SIGXFSZ is raised when a file would grow beyond the process's limit
 * (RLIMIT_FSIZE), and by default ends the process.  It is the only such signal:
 * nbdkit itself ignores SIGPIPE, which concerns sockets, and SIGBUS needs a
 * mapped file.
 *
 * It is caught, not ignored: ignored signals stay ignored after exec, in the
 * command of --run and whatever that starts, while caught ones are reset to the
 * default there.  If the signal is ignored already, that is left alone.
 */

#include <config.h>

#include <signal.h>
#include <stdbool.h>
#include <stddef.h>

#include "signals.h"

static struct sigaction before;
static bool caught;

static void
do_nothing (int sig)
{
}

void
signals_catch (void)
{
  struct sigaction sa = { .sa_handler = do_nothing, .sa_flags = SA_RESTART };

  sigemptyset (&sa.sa_mask);
  if (sigaction (SIGXFSZ, NULL, &before) == 0 &&
      !(before.sa_flags & SA_SIGINFO) && before.sa_handler == SIG_DFL)
    caught = sigaction (SIGXFSZ, &sa, NULL) == 0;
}

void
signals_release (void)
{
  if (caught)
    (void) sigaction (SIGXFSZ, &before, NULL);
  caught = false;
}
