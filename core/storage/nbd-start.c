/* SPDX-License-Identifier: BSD-3-Clause */

/* Servers that are started here, by libnbd, and end with this process. */

#include <config.h>

#include <dirent.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "storage/nbd-parts.h"

/* What this thread is having libnbd fork, in memory that both share: libnbd does
 * not tell.
 */
static _Thread_local struct started *starting;

/* The server is in a process group of its own: what is typed to stop this
 * process (^C) must not end the server before everything is written to it.  Nor
 * may it live on, with the image, when this process is killed.  All calls are
 * allowed in a child of a process with threads; setpgid and prctl can't fail.
 */
static void
in_child (void)
{
  if (starting == NULL)
    return;
  (void) setpgid (0, 0);
  (void) prctl (PR_SET_PDEATHSIG, SIGTERM);
  if (getppid () != starting->parent) /* that was too late */
    _exit (1);
  starting->pid = getpid ();
}

static int handler_error;

static void
add_handler (void)
{
  handler_error = pthread_atfork (NULL, NULL, in_child);
}

struct started *
conn_start_server (struct nbd_handle *nbd, char *const *command)
{
  static pthread_once_t once = PTHREAD_ONCE_INIT;
  struct started *s;
  int r;

  pthread_once (&once, add_handler);
  if (handler_error != 0) {
    errno = handler_error;
    return NULL;
  }
  s = mmap (NULL, sizeof *s, PROT_READ | PROT_WRITE,
            MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (s == MAP_FAILED)
    return NULL;
  s->parent = getpid ();
  starting = s;
  r = nbd_aio_connect_systemd_socket_activation (nbd, (char **) command);
  starting = NULL;
  if (r == 0)
    return s;
  if (s->pid > 0)
    (void) kill (-s->pid, SIGKILL);
  munmap (s, sizeof *s);
  return NULL;
}

/* Its status stays there for libnbd. */
static bool
has_ended (pid_t pid)
{
  siginfo_t info = { .si_pid = 0 };

  return waitid (P_PID, pid, &info, WEXITED | WNOHANG | WNOWAIT) == -1 ||
    info.si_pid == pid;
}

/* Whether a name in /proc is that of a process in this group, and not of one that
 * has ended, and waits to be waited for.
 */
static bool
lives_in_group (const char *name, pid_t group)
{
  char path[64], line[256], state;
  const char *rest = NULL;
  int of;
  FILE *f;

  if (name[0] < '0' || name[0] > '9')
    return false;
  snprintf (path, sizeof path, "/proc/%.20s/stat", name);
  f = fopen (path, "re");
  if (f == NULL) /* it is gone */
    return false;
  /* The program's name is in parentheses, and may have such in it. */
  if (fgets (line, sizeof line, f) != NULL)
    rest = strrchr (line, ')');
  fclose (f);
  return rest != NULL && sscanf (rest + 1, " %c %*d %d", &state, &of) == 2 &&
    of == group && state != 'Z' && state != 'X';
}

/* Whether all of a group have ended.  kill(2) does not tell: the first of them
 * is there until libnbd has waited for it, which keeps the number from others.
 */
static bool
group_has_ended (pid_t group)
{
  const struct dirent *entry;
  bool lives = false;
  DIR *dir;

  if (!has_ended (group))
    return false;
  dir = opendir ("/proc");
  if (dir == NULL) /* that is not known */
    return false;
  while (!lives && (entry = readdir (dir)) != NULL)
    lives = lives_in_group (entry->d_name, group);
  closedir (dir);
  return !lives;
}

static void
send_signal (struct nbd_handle *nbd, const struct started *s, int signal)
{
  const pid_t pid = s->pid;

  if (pid > 0)
    (void) kill (-pid, signal);
  (void) nbd_kill_subprocess (nbd, signal); /* it may have left its group */
}

void
conn_end_server (struct nbd_handle *nbd, struct started *s, uint64_t patience)
{
  const struct timespec pause = { .tv_nsec = 10000000 };
  uint64_t waited;

  send_signal (nbd, s, SIGTERM);
  for (waited = 0; waited < patience; waited += 10) {
    if (s->pid > 0 && group_has_ended (s->pid))
      break;
    nanosleep (&pause, NULL);
  }
  if (s->pid == 0 || !group_has_ended (s->pid))
    send_signal (nbd, s, SIGKILL);
  munmap (s, sizeof *s);
}
