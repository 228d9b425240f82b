/* SPDX-License-Identifier: BSD-3-Clause */

/* The error of a thread, damage that was reported, debug messages. */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

#include "check.h"

static void
test_set (void)
{
  char longer[5000];

  error_set (EINVAL, "%s: %d", "name", 42);
  CHECK_EQ (error_errno (), EINVAL);
  CHECK_STR (error_message (), "name: 42");
  CHECK (!error_repeated ());

  error_set_repeated ();
  CHECK (error_repeated ());
  CHECK_STR (error_message (), "name: 42");
  error_set (EIO, "another");
  CHECK (!error_repeated ());
  CHECK_EQ (error_errno (), EIO);

  memset (longer, 'x', sizeof longer - 1);
  longer[sizeof longer - 1] = '\0';
  error_set (EIO, "start %s", longer);
  CHECK (strlen (error_message ()) < sizeof longer);
  CHECK_HAS (error_message (), "start xxx");
}

static void *
other_thread (void *opaque)
{
  const unsigned nr = *(unsigned *) opaque;
  char expected[64];
  unsigned i;

  CHECK_EQ (error_errno (), 0);
  CHECK_STR (error_message (), "");
  for (i = 0; i < 1000; ++i) {
    error_set (1 + nr, "thread %u", nr);
    snprintf (expected, sizeof expected, "thread %u", nr);
    CHECK_EQ (error_errno (), 1 + nr);
    CHECK_STR (error_message (), expected);
  }
  return NULL;
}

static void
test_threads (void)
{
  pthread_t thread[4];
  unsigned nr[4], i;

  error_set (ENOSPC, "mine");
  for (i = 0; i < 4; ++i) {
    nr[i] = i;
    pthread_create (&thread[i], NULL, other_thread, &nr[i]);
  }
  for (i = 0; i < 4; ++i)
    pthread_join (thread[i], NULL);
  CHECK_EQ (error_errno (), ENOSPC);
  CHECK_STR (error_message (), "mine");
}

static void
test_damage (void)
{
  struct damage d = DAMAGE_INIT;
  uint64_t i;

  for (i = 0; i < DAMAGE_PLACES; ++i)
    CHECK (damage_is_new (&d, i * 0x10000));
  for (i = 0; i < DAMAGE_PLACES; ++i)
    CHECK (!damage_is_new (&d, i * 0x10000));
  CHECK (!damage_is_new (&d, 0x123)); /* full: never new again */
  CHECK_EQ (d.nr, DAMAGE_PLACES);
  pthread_mutex_destroy (&d.lock);
}

static struct damage shared_damage = DAMAGE_INIT;
static _Atomic unsigned nr_new;

static void *
damage_thread (void *opaque)
{
  uint64_t i;

  for (i = 0; i < 4 * DAMAGE_PLACES; ++i) {
    if (damage_is_new (&shared_damage, i % DAMAGE_PLACES))
      nr_new++;
  }
  return NULL;
}

/* Each place is new for exactly one thread. */
static void
test_damage_threads (void)
{
  pthread_t thread[8];
  unsigned i;

  for (i = 0; i < 8; ++i)
    pthread_create (&thread[i], NULL, damage_thread, NULL);
  for (i = 0; i < 8; ++i)
    pthread_join (thread[i], NULL);
  CHECK_EQ (nr_new, DAMAGE_PLACES);
}

static char *seen;

static void
take_message (const char *text)
{
  free (seen);
  seen = strdup (text);
}

static void
test_debug (void)
{
  debug_message ("to %s", "nowhere");
  debug_hooks.message = take_message;
  debug_message ("%s %d", "text", 7);
  debug_hooks.message = NULL;
  CHECK_STR (seen, "text 7");
  free (seen);
}

int
main (void)
{
  check_time_limit (100);
  CHECK_EQ (error_errno (), 0);
  test_set ();
  test_threads ();
  test_damage ();
  test_damage_threads ();
  test_debug ();
  return check_result ();
}
