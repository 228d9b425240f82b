/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "standin.h"

/* How often to look for the pid file. */
#define WAIT_NS 5000000

/* What an earlier server has left behind, since nbdkit does not remove its
 * socket when it ends.
 */
static void
remove_socket (const char *path)
{
  struct stat st;

  if (lstat (path, &st) == -1)
    return;
  if (!S_ISSOCK (st.st_mode))
    die ("%s: it exists, and is no socket", path);
  if (unlink (path) == -1)
    die ("%s: it can't be removed: %s", path, strerror (errno));
}

static void __attribute__ ((__noreturn__))
become (const struct arguments *a)
{
  execvp (a->argv[0], a->argv);
  die ("%s: %s", a->argv[0], strerror (errno));
}

/* Whether the file has the number of a process that is a child of this one: so
 * what an earlier server has left in it does not count.
 */
static bool
names_child (const char *path)
{
  FILE *f = fopen (path, "re");
  siginfo_t info;
  char line[32];
  bool found;

  if (f == NULL)
    return false;
  found = fgets (line, sizeof line, f) != NULL && strchr (line, '\n') != NULL &&
          waitid (P_PID, atoi (line), &info, WEXITED | WNOHANG | WNOWAIT) == 0;
  fclose (f);
  return found;
}

/* nbdkit has gone into the background, where it writes the pid file.  It is a
 * child of this process, which is its subreaper.
 */
static void
wait_for_pid_file (const char *path)
{
  const struct timespec moment = { .tv_nsec = WAIT_NS };

  while (!names_child (path)) {
    if (waitpid (-1, NULL, WNOHANG) != 0)
      die ("nbdkit has failed in the background: see the system's log");
    nanosleep (&moment, NULL);
  }
}

static void __attribute__ ((__noreturn__))
start (const struct arguments *a, const struct request *r)
{
  pid_t child;
  int status;

  if (prctl (PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == -1)
    die ("prctl: %s", strerror (errno));
  child = fork ();
  if (child == -1)
    die ("fork: %s", strerror (errno));
  if (child == 0)
    become (a);
  while (waitpid (child, &status, 0) == -1)
    if (errno != EINTR)
      die ("waitpid: %s", strerror (errno));
  if (status != 0)
    exit (EXIT_FAILURE); /* it has said why */
  if (r->pid_file != NULL)
    wait_for_pid_file (r->pid_file);
  exit (EXIT_SUCCESS);
}

void
run (const struct arguments *a, const struct request *r)
{
  if (r->socket != NULL)
    remove_socket (r->socket);
  if (r->background)
    start (a, r);
  become (a);
}
