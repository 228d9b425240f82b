/* SPDX-License-Identifier: BSD-3-Clause */

/* Servers that are started here, by libnbd, and end with this process. */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <sys/prctl.h>
#include <unistd.h>

#include <libnbd.h>

#include "storage/nbd-parts.h"

/* This thread is having libnbd fork. */
static _Thread_local bool starting;

/* The server is in a process group of its own: what is typed to stop this
 * process (^C) must not end the server before everything is written to it.  Nor
 * may it live on, with the image, when this process is killed.  Both calls are
 * allowed in a child of a process with threads, and can't fail in it.
 */
static void
in_child (void)
{
  if (!starting)
    return;
  (void) setpgid (0, 0);
  (void) prctl (PR_SET_PDEATHSIG, SIGTERM);
}

static int handler_error;

static void
add_handler (void)
{
  handler_error = pthread_atfork (NULL, NULL, in_child);
}

int
conn_start_server (struct nbd_handle *nbd, char *const *command)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  int r;

  pthread_once (&once, add_handler);
  if (handler_error != 0) {
    errno = handler_error;
    return -1;
  }
  starting = true;
  r = nbd_aio_connect_systemd_socket_activation (nbd, (char **) command);
  starting = false;
  return r;
}
