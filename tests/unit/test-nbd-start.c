/* SPDX-License-Identifier: BSD-3-Clause */

/* storage_nbd_start: servers that are started for a storage, and end with it or
 * with this process.
 */

#include <config.h>

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "far-server.h"
#include "seconds.h"
#include "storage/nbd.h"

/* In seconds: enough for a server to start on a busy machine. */
#define PATIENCE 4

static const struct host_off start;

static char folder[] = "/tmp/start.XXXXXX";
static char pid_file[64];

/* The server's process; it is there once it has answered. */
static pid_t
server_pid (void)
{
  FILE *f = fopen (pid_file, "r");
  int pid = 0;

  if (f == NULL || fscanf (f, "%d", &pid) != 1 || pid <= 1)
    abort ();
  fclose (f);
  return pid;
}

/* Whether a process gets into this state, as proc(5) has it, within ten
 * seconds.  Who has ended is a zombie.
 */
static bool
gets_to (pid_t pid, char wanted)
{
  const struct timespec pause = { .tv_nsec = 5000000 };
  char path[64], state = 'Z';
  unsigned i;
  FILE *f;

  snprintf (path, sizeof path, "/proc/%d/stat", (int) pid);
  for (i = 0; i < 2000; ++i) {
    f = fopen (path, "r");
    if (f == NULL)
      return wanted == 'Z';
    (void) !fscanf (f, "%*d %*s %c", &state);
    fclose (f);
    if (state == wanted)
      return true;
    nanosleep (&pause, NULL);
  }
  return false;
}

/* It must have ended; it is not left behind if it has not. */
static void
check_has_ended (void)
{
  const pid_t pid = server_pid ();
  const bool ended = gets_to (pid, 'Z');

  CHECK (ended);
  if (!ended)
    kill (pid, SIGKILL);
}

/* Do something in a process of its own that must not take half a minute: who
 * waits for a server that does not end waits for ever.
 */
static void
in_time (void (*fn) (bool), bool arg)
{
  const double end = seconds () + 30;
  const struct timespec pause = { .tv_nsec = 10000000 };
  const pid_t child = fork ();
  int status = 1;
  pid_t r;

  if (child == 0) {
    fn (arg);
    _exit (check_result ());
  }
  while ((r = waitpid (child, &status, WNOHANG)) == 0 && seconds () < end)
    nanosleep (&pause, NULL);
  CHECK (r == child && status == 0);
  if (r == 0) {
    kill (child, SIGKILL);
    (void) waitpid (child, &status, 0);
    kill (server_pid (), SIGKILL);
  }
}

/* Start what this script has. */
static struct storage *
start_script (char *script, unsigned timeout)
{
  const struct nbd_options options = { .retries = 5, .timeout = timeout };
  char *command[] = { (char *) "bash", (char *) "-c", script, NULL };

  return storage_nbd_start (command, &options, "started");
}

/* A server with a mebibyte. */
static struct storage *
start_one (unsigned timeout)
{
  struct storage *s;
  char script[128];

  snprintf (script, sizeof script, "echo $$ > %s; exec nbdkit memory 1M",
            pid_file);
  s = start_script (script, timeout);
  if (s == NULL) {
    fprintf (stderr, "%s\n", error_message ());
    abort ();
  }
  return s;
}

static void
test_ends_with_storage (void)
{
  struct storage *s = start_one (0), *other = start_one (0);
  char buf[512];
  pid_t pid;

  CHECK (!storage_same (s, other));
  CHECK (storage_same (s, s));
  storage_close (s);
  pid = server_pid ();
  /* What the terminal sends to this process's group is not for the server. */
  CHECK (getpgid (pid) != getpgrp ());
  CHECK_OK (storage_make_writable (other, 0, 0));
  CHECK_OK (storage_write (other, "abc", 3, start));
  CHECK_OK (storage_flush (other));
  CHECK_OK (storage_read (other, buf, sizeof buf, start));
  CHECK (memcmp (buf, "abc", 3) == 0);
  storage_close (other);
  CHECK (kill (pid, 0) == -1 && errno == ESRCH);
}

/* N3: there is one start, and one connection. */
static void
test_lost (bool writable)
{
  struct storage *s = start_one (0);
  static uint8_t buf[65536];
  const double began = seconds ();

  if (writable)
    CHECK_OK (storage_make_writable (s, 0, 0));
  CHECK_EQ (kill (server_pid (), SIGKILL), 0);
  CHECK_EQ (storage_read (s, buf, sizeof buf,
                          (struct host_off) { 131072 }), -1);
  CHECK_EQ (error_errno (), EIO);
  CHECK_EQ (storage_read (s, buf, sizeof buf,
                          (struct host_off) { 131072 }), -1);
  if (writable)
    CHECK_EQ (storage_write (s, buf, sizeof buf, start), -1);
  /* Nor is that tried five times, a second apart. */
  CHECK (seconds () - began < 4);
  storage_close (s);
}

/* One that does nothing any more, and so would not end by SIGTERM. */
static void
test_silent (bool noticed)
{
  struct storage *s = start_one (PATIENCE);
  uint8_t buf[512];
  const pid_t pid = server_pid ();

  CHECK_EQ (kill (pid, SIGSTOP), 0);
  CHECK (gets_to (pid, 'T'));
  if (noticed)
    CHECK_EQ (storage_read (s, buf, sizeof buf,
                            (struct host_off) { 131072 }), -1);
  storage_close (s);
  CHECK (gets_to (pid, 'Z'));
}

/* One that never answers, and does not care for SIGTERM. */
static void
test_deaf (bool unused)
{
  char script[128];

  (void) unused;
  snprintf (script, sizeof script,
            "trap '' TERM; echo $$ > %s; exec sleep 300", pid_file);
  CHECK (start_script (script, 1) == NULL);
  CHECK_ERROR (ETIMEDOUT, "does not answer");
  CHECK (gets_to (server_pid (), 'Z'));
}

/* Others in between: the server ends with the process that was started, and that
 * does even if it does not care for SIGTERM.
 */
static void
test_wrapped (const char *before, const char *after)
{
  char script[256];
  struct storage *s;

  snprintf (script, sizeof script, "%s (export LISTEN_PID=$BASHPID; "
            "echo $BASHPID > %s; exec nbdkit memory 1M); %s", before, pid_file,
            after);
  s = start_script (script, PATIENCE);
  CHECK (s != NULL);
  storage_close (s);
  check_has_ended ();
}

/* Another beside the server, which ends at once by SIGTERM: it ends too, even if
 * it does not care for that.
 */
static void
test_beside (const char *trap)
{
  char script[256];
  struct storage *s;

  unlink (pid_file);
  snprintf (script, sizeof script, "(%s echo $BASHPID > %s; exec sleep 300) & "
            "until [ -s %s ]; do sleep 0.01; done; exec nbdkit memory 1M", trap,
            pid_file, pid_file);
  s = start_script (script, PATIENCE);
  CHECK (s != NULL);
  storage_close (s);
  check_has_ended ();
}

/* This process ends without closing anything. */
static void
test_ends_with_process (void)
{
  const pid_t child = fork ();
  int status;

  if (child == 0) {
    (void) start_one (0);
    kill (getpid (), SIGKILL);
  }
  CHECK (child != -1 && waitpid (child, &status, 0) == child);
  check_has_ended ();
}

static void
test_no_server (void)
{
  const struct nbd_options options = { .opening_retries = 1000 };
  static char *nothing[] = { (char *) "/nowhere", NULL };
  static char *no_server[] = { (char *) "true", NULL };

  CHECK (storage_nbd_start (nothing, &options, "started") == NULL);
  CHECK_ERROR (EIO, "connecting: ");
  CHECK (storage_nbd_start (no_server, &options, "started") == NULL);
  CHECK_ERROR (EIO, "connecting: ");
}

int
main (void)
{
  check_time_limit (120);
  (void) signal (SIGPIPE, SIG_IGN);
  if (storage_nbd_library () == NULL || !have_nbdkit ()) {
    printf ("SKIP: no libnbd, or no nbdkit\n");
    return 77;
  }
  if (mkdtemp (folder) == NULL)
    abort ();
  snprintf (pid_file, sizeof pid_file, "%s/pid", folder);
  test_ends_with_storage ();
  test_lost (false);
  test_lost (true);
  in_time (test_silent, false);
  if (!check_any_failed ())
    in_time (test_silent, true);
  if (!check_any_failed ())
    in_time (test_deaf, false);
  if (check_any_failed ()) /* the next ones would wait for ever */
    return check_result ();
  test_wrapped ("", "true");
  test_wrapped ("trap '' TERM;", "sleep 300");
  test_beside ("");
  test_beside ("trap '' TERM;");
  test_ends_with_process ();
  test_no_server ();
  unlink (pid_file);
  rmdir (folder);
  return check_result ();
}
