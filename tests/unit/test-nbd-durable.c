/* SPDX-License-Identifier: BSD-3-Clause */

/* Durable writes to NBD servers: which requests they are, and what a lack of
 * space means (N4).
 */

#include <config.h>

#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

#include "check.h"
#include "odd-server.h"
#include "storage/durable.h"
#include "storage/nbd.h"

static const struct nbd_options defaults = NBD_DEFAULTS;

/* What the server got, since the text was cleared: W for a write, with its
 * number of 64 KiB and ! if it has FUA; F for a flush.  The client has had an
 * answer to all of it when it looks.
 */
static char requests[512];

/* What it answers to durable writes, others, and flushes. */
static _Atomic uint32_t durable_error, write_error, flush_error;

/* The 64 KiB of this number has no space; 0: all have.  And the host has lost
 * something: the next to be made durable is told, with ENOSPC.
 */
static _Atomic unsigned full;
static _Atomic bool lost;

static uint32_t
write_result (const struct odd_request *q)
{
  if (full != 0 && q->offset / 65536 == full)
    return ODD_ENOSPC;
  if (q->fua && atomic_exchange (&lost, false))
    return ODD_ENOSPC;
  return q->fua ? durable_error : write_error;
}

static uint32_t
answer (void *opaque, const struct odd_request *q)
{
  const size_t used = strlen (requests);

  (void) opaque;
  if (q->type == ODD_FLUSHES)
    strcat (requests, "F ");
  else if (q->type == ODD_WRITE)
    snprintf (requests + used, sizeof requests - used, "W%u%s ",
              (unsigned) (q->offset / 65536), q->fua ? "!" : "");
  return q->type == ODD_WRITE ? write_result (q)
    : q->type == ODD_FLUSHES ? flush_error : 0;
}

static struct storage *
start (struct odd_server *server, uint16_t flags)
{
  struct storage *s;

  *server = (struct odd_server) { .flags = flags, .error = answer };
  durable_error = write_error = flush_error = full = 0;
  lost = false;
  odd_start (server);
  s = storage_nbd_open (server->uri, &defaults, "far");
  if (s == NULL) {
    fprintf (stderr, "%s\n", error_message ());
    abort ();
  }
  CHECK_OK (storage_make_writable (s, 0, 0));
  requests[0] = '\0';
  return s;
}

static void
end (struct odd_server *server, struct storage *s)
{
  storage_close (s);
  odd_end (server);
}

/* A run in the 64 KiB of this number, of two pieces. */
static int
write_runs (struct storage *s, unsigned first, unsigned nr, bool all)
{
  static uint8_t buf[512];
  struct storage_run runs[8];
  struct iovec iov[16];
  unsigned i;

  for (i = 0; i < nr; ++i) {
    iov[2 * i] = iov[2 * i + 1] = (struct iovec) { buf, sizeof buf };
    runs[i] = (struct storage_run) {
      &iov[2 * i], 2, { (uint64_t) (first + i) * 65536 },
    };
  }
  requests[0] = '\0';
  return storage_write_durable_runs (s, runs, nr, all);
}

static void
test_requests (void)
{
  struct odd_server server;
  struct storage *s = start (&server, ODD_FLUSH | ODD_FUA);
  bool sticks;

  CHECK_EQ (s->durable_runs, 4);
  CHECK_OK (write_runs (s, 1, 2, false));
  CHECK_STR (requests, "W1! W2! ");
  CHECK_OK (write_runs (s, 3, 1, true));
  CHECK_STR (requests, "W3! F ");
  requests[0] = '\0';
  CHECK_OK (storage_write_durably (s, "x", 1, (struct host_off) { 0 },
                                   &sticks));
  CHECK_STR (requests, "W0 F "); /* the flush alone must be told of losses */
  end (&server, s);

  s = start (&server, ODD_FLUSH);
  CHECK_EQ (s->durable_runs, 0);
  CHECK_OK (storage_write_durably (s, "x", 1, (struct host_off) { 0 },
                                   &sticks));
  CHECK_STR (requests, "W0 F ");
  end (&server, s);
}

/* N4: whether the server has lost something. */
static void
test_no_space (void)
{
  struct odd_server server;
  struct storage *s = start (&server, ODD_FLUSH | ODD_FUA);
  bool sticks;

  /* The writes themselves find none: nothing is lost. */
  durable_error = write_error = ODD_ENOSPC;
  CHECK_EQ (write_runs (s, 1, 2, true), -1);
  CHECK_ERROR (ENOSPC, "far: writing 2 ranges from offset 0x10000 on: ");
  CHECK_STR (requests, "W1! W2! F W1 W2 ");
  CHECK_EQ (storage_write_durably (s, "x", 1, (struct host_off) { 0 },
                                   &sticks), -1);
  CHECK_EQ (error_errno (), ENOSPC);
  CHECK (!sticks);
  /* They find some, and so it was making them durable that found none. */
  write_error = 0;
  CHECK_EQ (write_runs (s, 1, 2, true), -1);
  CHECK_EQ (error_errno (), EIO);
  CHECK_STR (requests, "W1! W2! F W1 W2 ");
  CHECK_EQ (storage_flush (s), -1); /* it stays so */
  end (&server, s);
  s = start (&server, ODD_FLUSH | ODD_FUA);
  durable_error = ODD_ENOSPC;
  write_error = ODD_EIO;
  CHECK_EQ (write_runs (s, 1, 2, true), -1);
  CHECK_EQ (error_errno (), EIO);
  end (&server, s);
  /* The flush beside them. */
  s = start (&server, ODD_FLUSH | ODD_FUA);
  flush_error = ODD_ENOSPC;
  CHECK_OK (write_runs (s, 1, 2, false));
  CHECK_EQ (write_runs (s, 1, 2, true), -1);
  CHECK_EQ (error_errno (), EIO);
  CHECK_STR (requests, "W1! W2! F ");
  end (&server, s);

  /* Without FUA a flush follows, in place of it. */
  s = start (&server, ODD_FLUSH);
  flush_error = ODD_ENOSPC;
  CHECK_EQ (storage_write_durably (s, "x", 1, (struct host_off) { 0 },
                                   &sticks), -1);
  CHECK_EQ (error_errno (), EIO);
  CHECK (sticks);
  end (&server, s);
}

/* N4: one write is told of the loss, another one finds no space. */
static void
test_lost_beside_full (unsigned which, bool all)
{
  struct odd_server server;
  struct storage *s = start (&server, ODD_FLUSH | ODD_FUA);

  full = which;
  lost = true;
  CHECK_EQ (write_runs (s, 1, 3, all), -1);
  CHECK (!lost);
  CHECK_EQ (error_errno (), EIO);
  CHECK_EQ (storage_flush (s), -1); /* it stays so */
  end (&server, s);
}

/* One finds no space, which is not for good; the others are not written twice. */
static void
test_one_full (void)
{
  struct odd_server server;
  struct storage *s = start (&server, ODD_FLUSH | ODD_FUA);

  full = 2;
  CHECK_EQ (write_runs (s, 1, 3, true), -1);
  CHECK_EQ (error_errno (), ENOSPC);
  CHECK_STR (requests, "W1! W2! W3! F W2 ");
  full = 0;
  CHECK_OK (write_runs (s, 1, 3, true));
  CHECK_OK (storage_flush (s));
  end (&server, s);
}

/* A durable write of several pieces, each a request of its own. */
static void
test_pieces (void)
{
  static uint8_t buf[65536];
  struct iovec iov[2] = { { buf, sizeof buf }, { buf, sizeof buf } };
  struct odd_server server;
  struct storage *s = start (&server, ODD_FLUSH | ODD_FUA);

  full = 2;
  lost = true;
  CHECK_EQ (storage_writev (s, iov, 2, (struct host_off) { 65536 }, true), -1);
  CHECK_EQ (error_errno (), ENOSPC);
  CHECK (lost); /* for the flush to be told */
  end (&server, s);
}

static void
test_past_the_end (void)
{
  struct odd_server server;
  struct storage *s = start (&server, ODD_FLUSH | ODD_FUA);

  CHECK_EQ (write_runs (s, ODD_SIZE / 65536 - 1, 2, true), -1);
  CHECK_EQ (error_errno (), ENOSPC);
  CHECK_STR (requests, "");
  end (&server, s);
}

int
main (void)
{
  unsigned i;

  check_time_limit (60);
  (void) signal (SIGPIPE, SIG_IGN);
  if (storage_nbd_library () == NULL) {
    printf ("SKIP: no libnbd\n");
    return 77;
  }
  test_requests ();
  test_no_space ();
  for (i = 0; i < 6; ++i)
    test_lost_beside_full (1 + i / 2, i % 2 != 0);
  test_one_full ();
  test_pieces ();
  test_past_the_end ();
  return check_result ();
}
