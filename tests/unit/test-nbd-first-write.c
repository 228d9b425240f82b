/* SPDX-License-Identifier: BSD-3-Clause */

/* N1: connections that are begun when a storage is made writable, and take their
 * time.  What is read does not wait for them, and what is written does.
 */

#include <config.h>

#include <signal.h>
#include <stdio.h>

#include "check.h"
#include "far-server.h"
#include "seconds.h"
#include "storage/nbd.h"

static const struct nbd_options defaults = NBD_DEFAULTS;

static struct host_off
at (uint64_t offset)
{
  return (struct host_off) { offset };
}

static void
test_first_write (void)
{
  struct far_nbdkit server;
  struct storage *s;
  uint8_t buf[512];
  double began;

  far_start (&server, "--filter=delay memory 1M delay-open=2");
  s = storage_nbd_open (server.uri, &defaults, "far");
  CHECK (s != NULL);
  began = seconds ();
  CHECK_OK (storage_make_writable (s, 0, 0));
  CHECK_OK (storage_read (s, buf, sizeof buf, at (131072)));
  CHECK (seconds () - began < 2);
  CHECK_OK (storage_write (s, "x", 1, at (70000)));
  CHECK (seconds () - began >= 1.9);
  CHECK_OK (storage_flush (s));
  storage_close (s);
  /* Nor are they left behind. */
  s = storage_nbd_open (server.uri, &defaults, "far");
  CHECK (s != NULL);
  CHECK_OK (storage_make_writable (s, 0, 0));
  storage_close (s);
  far_end (&server);
}

int
main (void)
{
  check_time_limit (60);
  (void) signal (SIGPIPE, SIG_IGN);
  if (storage_nbd_library () == NULL || !have_nbdkit ()) {
    printf ("SKIP: no libnbd, or no nbdkit\n");
    return 77;
  }
  test_first_write ();
  return check_result ();
}
