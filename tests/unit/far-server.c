/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "far-server.h"

#define MAX_ARGUMENTS 64

static void
give_up (const char *what)
{
  perror (what);
  abort ();
}

static char *
in_folder (const struct far_nbdkit *s, const char *prefix, const char *name)
{
  char *r;

  if (asprintf (&r, "%s%s/%s", prefix, s->folder, name) == -1)
    give_up ("asprintf");
  return r;
}

int
have_nbdkit (void)
{
  return system ("nbdkit memory --version >/dev/null 2>&1") == 0;
}

static void
run_nbdkit (char *arguments, char *sock, char *pid_file)
{
  char *argv[MAX_ARGUMENTS + 8] = {
    (char *) "nbdkit", (char *) "-f", (char *) "-U", sock, (char *) "-P",
    pid_file,
  };
  unsigned n = 6;
  char *p;

  for (p = strtok (arguments, " "); p != NULL && n < MAX_ARGUMENTS;
       p = strtok (NULL, " "))
    argv[n++] = p;
  (void) prctl (PR_SET_PDEATHSIG, SIGKILL);
  execvp (argv[0], argv);
  _exit (127);
}

void
far_start_again (struct far_nbdkit *s, const char *arguments)
{
  const struct timespec pause = { .tv_nsec = 5000000 };
  char *sock = in_folder (s, "", "s"), *pid_file = in_folder (s, "", "p");
  char *copy = strdup (arguments);
  int status;

  unlink (sock);
  unlink (pid_file);
  s->pid = fork ();
  if (s->pid == -1 || copy == NULL)
    give_up ("fork");
  if (s->pid == 0)
    run_nbdkit (copy, sock, pid_file);
  while (access (pid_file, F_OK) == -1) {
    if (waitpid (s->pid, &status, WNOHANG) != 0) {
      fprintf (stderr, "nbdkit %s did not start\n", arguments);
      abort ();
    }
    nanosleep (&pause, NULL);
  }
  free (sock);
  free (pid_file);
  free (copy);
}

void
far_start (struct far_nbdkit *s, const char *arguments)
{
  const char *tmp = getenv ("TMPDIR");

  if (asprintf (&s->folder, "%s/farXXXXXX", tmp != NULL ? tmp : "/tmp") == -1 ||
      mkdtemp (s->folder) == NULL)
    give_up ("mkdtemp");
  s->uri = in_folder (s, "nbd+unix:///?socket=", "s");
  far_start_again (s, arguments);
}

static void
signal_and_wait (struct far_nbdkit *s, int sig)
{
  if (s->pid == 0)
    return;
  kill (s->pid, sig);
  if (waitpid (s->pid, NULL, 0) == -1)
    give_up ("waitpid");
  s->pid = 0;
}

void
far_kill (struct far_nbdkit *s)
{
  signal_and_wait (s, SIGKILL);
}

void
far_stop (struct far_nbdkit *s)
{
  kill (s->pid, SIGSTOP);
}

void
far_go_on (struct far_nbdkit *s)
{
  kill (s->pid, SIGCONT);
}

void
far_end (struct far_nbdkit *s)
{
  char *sock = in_folder (s, "", "s"), *pid_file = in_folder (s, "", "p");

  signal_and_wait (s, SIGTERM);
  unlink (sock);
  unlink (pid_file);
  if (rmdir (s->folder) == -1)
    give_up (s->folder);
  free (sock);
  free (pid_file);
  free (s->folder);
  free (s->uri);
}
