/* SPDX-License-Identifier: BSD-3-Clause */

/* SIGXFSZ comes when a file would grow beyond the limit that the process has
 * for that (RLIMIT_FSIZE), and by default ends it.  It is the only one:
 * SIGPIPE, which is about sockets, nbdkit ignores itself, and SIGBUS needs a
 * file that is mapped.
 *
 * It is caught, not ignored: exec keeps what is ignored, and so the command of
 * --run, and what that starts, would go on without this signal, too.  What is
 * caught becomes the default there.  A process in which it is ignored already
 * stays so.
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
