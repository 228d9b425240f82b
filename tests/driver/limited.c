/* SPDX-License-Identifier: BSD-3-Clause */

/* limited COMMAND [ARGUMENT...]: run a test, but not for ever.
 *
 * After TEST_LIMIT seconds the test and all that it started are sent SIGTERM,
 * and TEST_GRACE seconds later SIGKILL.  The exit status is then 124, which
 * automake's driver takes for a failure.  So it is if the test itself ends, but
 * leaves processes behind that have not ended TEST_GRACE seconds later.
 * Otherwise it is the test's.
 *
 * The limit is there to end what hangs, and not to measure: on a busy machine
 * a test takes twenty times as long.  What takes more than that is given more
 * by the Makefile of its folder.
 *
 * Processes can leave a group or a session, as servers do that go into the
 * background, and what timeout(1) runs.  So this process becomes the
 * "subreaper" of all: if a parent ends, its children become those of this
 * process, so that the tree below it is complete.
 */

#include <config.h>

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

/* Seconds, unless the environment says otherwise. */
#define LIMIT 600
#define GRACE 20 /* a script cleans up meanwhile */

/* After SIGKILL; then the kernel does not let go of it. */
#define GIVE_UP 20

/* Exit statuses. */
#define TIMED_OUT 124
#define CANT_RUN 126

#define MAX_PROCESSES 65536

static double grace;
static pid_t test;
static bool ended;  /* the test, with this status as of waitpid(2) */
static int status;
static bool alive;  /* are there children, its own or adopted ones? */

struct process {
  pid_t pid, parent;
  bool below; /* this process is an ancestor */
  char name[32];
};

static double
now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec + t.tv_nsec / 1e9;
}

static void __attribute__ ((format (printf, 1, 2)))
say (const char *format, ...)
{
  va_list args;

  va_start (args, format);
  fputs ("limited: ", stderr);
  vfprintf (stderr, format, args);
  fputc ('\n', stderr);
  va_end (args);
}

/* ------------------------------------------------------------- the processes */

/* Returns false if it has gone, or is dead and only not waited for yet. */
static bool
look_at (const char *number, struct process *p)
{
  char file[64], line[512], *open, *close, state;
  size_t n, length;
  FILE *f;

  snprintf (file, sizeof file, "/proc/%.20s/stat", number);
  f = fopen (file, "r");
  if (f == NULL)
    return false;
  n = fread (line, 1, sizeof line - 1, f);
  fclose (f);
  line[n] = '\0';

  /* PID (NAME) STATE PARENT ...; the name may have anything in it */
  open = strchr (line, '(');
  close = strrchr (line, ')');
  if (open == NULL || close == NULL || close < open ||
      sscanf (close + 1, " %c %d", &state, &p->parent) != 2 ||
      state == 'Z' || state == 'X')
    return false;
  p->pid = atoi (line);
  p->below = false;
  length = close - open - 1;
  if (length >= sizeof p->name)
    length = sizeof p->name - 1;
  memcpy (p->name, open + 1, length);
  p->name[length] = '\0';
  return true;
}

static size_t
list_processes (struct process *list)
{
  DIR *dir = opendir ("/proc");
  struct dirent *e;
  size_t n = 0;

  if (dir == NULL)
    return 0;
  while (n < MAX_PROCESSES && (e = readdir (dir)) != NULL)
    if (isdigit ((unsigned char) e->d_name[0]) && look_at (e->d_name, &list[n]))
      ++n;
  closedir (dir);
  return n;
}

/* Send a signal, or none if it is 0, to all that is below this process.  With
 * a message, tell which they are.
 */
static void
each_below (int number, const char *message)
{
  static struct process list[MAX_PROCESSES];
  const size_t n = list_processes (list);
  const pid_t self = getpid ();
  bool more = true;

  while (more) {
    more = false;
    for (size_t i = 0; i < n; ++i) {
      bool is = list[i].parent == self;

      for (size_t j = 0; j < n && !is; ++j)
        is = list[j].below && list[j].pid == list[i].parent;
      if (is && !list[i].below)
        list[i].below = more = true;
    }
  }
  for (size_t i = 0; i < n; ++i) {
    if (!list[i].below)
      continue;
    if (message != NULL)
      say ("%s: %s (process %d)", message, list[i].name, (int) list[i].pid);
    if (number != 0)
      kill (list[i].pid, number);
  }
}

/* Note which children have ended. */
static void
reap (void)
{
  int s;
  pid_t pid;

  while ((pid = waitpid (-1, &s, WNOHANG)) > 0) {
    if (pid == test) {
      ended = true;
      status = s;
    }
  }
  alive = pid == 0;
}

/* ------------------------------------------------------------------- waiting */

/* Wait until there is nothing left to wait for (the test, or any child), or
 * for so long.  Returns the signal by which somebody wants all to end, or 0.
 */
static int
wait_for (bool all, double seconds)
{
  const double end = now () + seconds;
  sigset_t set;
  double left;

  sigemptyset (&set);
  sigaddset (&set, SIGCHLD);
  sigaddset (&set, SIGHUP);
  sigaddset (&set, SIGINT);
  sigaddset (&set, SIGTERM);
  reap ();
  while ((all ? alive : !ended) && (left = end - now ()) > 0) {
    struct timespec t = { (time_t) left, (long) (left * 1e9) % 1000000000 };
    const int number = sigtimedwait (&set, NULL, &t);

    reap ();
    if (number > 0 && number != SIGCHLD)
      return number;
  }
  return 0;
}

/* End all that is left. */
static void
end_all (void)
{
  const double give_up = now () + grace + GIVE_UP;

  each_below (SIGTERM, NULL);
  /* A stopped process takes it when it goes on. */
  each_below (SIGCONT, NULL);
  wait_for (true, grace);
  if (!alive)
    return;
  say ("SIGTERM was not enough");
  do {
    each_below (SIGKILL, NULL);
    wait_for (true, 0.2);
  } while (alive && now () < give_up);
  if (alive)
    each_below (0, "can't be killed");
}

/* --------------------------------------------------------------------- main */

/* To have memory from the system takes longer than most of what is done with
 * it, above all in virtual machines: it is taken in large pages where there are
 * any, and kept for what is allocated next.
 */
static void
keep_memory (void)
{
  setenv ("GLIBC_TUNABLES", "glibc.malloc.hugetlb=1", 0);
  setenv ("MALLOC_MMAP_THRESHOLD_", "33554432", 0);
  setenv ("MALLOC_TRIM_THRESHOLD_", "1073741824", 0);
  setenv ("MALLOC_TOP_PAD_", "16777216", 0);
}

static void
start (char **command, const char *limit)
{
  sigset_t set, old;

  sigfillset (&set);
  sigprocmask (SIG_BLOCK, &set, &old);
  test = fork ();
  if (test == -1) {
    say ("fork: %s", strerror (errno));
    exit (CANT_RUN);
  }
  if (test > 0)
    return;
  sigprocmask (SIG_SETMASK, &old, NULL);
  /* It needs no limit of its own: see tests/unit/check.h. */
  setenv ("TEST_LIMIT", limit, 1);
  keep_memory ();
  /* Ctrl-C is for this process, which ends all. */
  setsid ();
  execvp (command[0], command);
  say ("%s: %s", command[0], strerror (errno));
  _exit (CANT_RUN);
}

static double
seconds_of (const char *variable, double usual)
{
  const char *s = getenv (variable);
  const double seconds = s == NULL || *s == '\0' ? usual : atof (s);

  if (seconds > 0)
    return seconds;
  say ("%s=%s: a number of seconds is expected", variable, s);
  exit (CANT_RUN);
}

/* The test has ended.  Returns false if it leaves something behind. */
static bool
leaves_nothing (void)
{
  wait_for (true, grace);
  if (!alive)
    return true;
  each_below (0, "left behind by the test");
  end_all ();
  return false;
}

/* If TEST_TIMES is set: how long it took, and the time of all processors. */
static void
tell_time (double began)
{
  struct rusage u;

  getrusage (RUSAGE_CHILDREN, &u);
  say ("took %.1f s, %.1f s of the processors", now () - began,
       u.ru_utime.tv_sec + u.ru_utime.tv_usec / 1e6 +
       u.ru_stime.tv_sec + u.ru_stime.tv_usec / 1e6);
}

int
main (int argc, char **argv)
{
  const double began = now ();
  const double seconds = seconds_of ("TEST_LIMIT", LIMIT);
  char limit[32];
  int by;

  grace = seconds_of ("TEST_GRACE", GRACE);

  if (argc < 2) {
    fprintf (stderr, "usage: %s COMMAND [ARGUMENT...]\n", argv[0]);
    return CANT_RUN;
  }
  if (prctl (PR_SET_CHILD_SUBREAPER, 1) == -1) {
    say ("prctl: %s", strerror (errno));
    return CANT_RUN;
  }
  /* If it is ignored, as it may be here, there is nothing to wait for. */
  signal (SIGCHLD, SIG_DFL);
  snprintf (limit, sizeof limit, "%g", seconds);
  start (argv + 1, limit);
  by = wait_for (false, seconds);
  if (!ended) {
    if (by == 0) {
      say ("timed out after %s s", limit);
      each_below (0, "was running");
    }
    end_all ();
    return by == 0 ? TIMED_OUT : 128 + by;
  }
  if (!leaves_nothing ())
    return TIMED_OUT;
  if (getenv ("TEST_TIMES") != NULL)
    tell_time (began);
  if (WIFSIGNALED (status)) {
    say ("ended by signal %d (%s)", WTERMSIG (status),
         strsignal (WTERMSIG (status)));
    return 128 + WTERMSIG (status);
  }
  return WEXITSTATUS (status);
}
