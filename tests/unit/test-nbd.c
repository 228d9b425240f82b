/* SPDX-License-Identifier: BSD-3-Clause */

/* storage/nbd*.c on real servers: nbdkit, with filters that take away what it
 * offers, that is killed, stopped, or replaced.
 */

#include <config.h>

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "check.h"
#include "far-server.h"
#include "odd-server.h"
#include "random.h"
#include "storage/nbd.h"

#define SIZE (UINT64_C (3) << 20)

static const struct nbd_options defaults = NBD_DEFAULTS;

static struct host_off
at (uint64_t offset)
{
  return (struct host_off) { offset };
}

/* Open what must be there, to be written. */
static struct storage *
open_to_write (const struct far_nbdkit *server, struct nbd_options options)
{
  struct storage *s = storage_nbd_open (server->uri, &options, "far");

  if (s == NULL) {
    fprintf (stderr, "%s\n", error_message ());
    abort ();
  }
  CHECK_OK (storage_make_writable (s, 0, 0));
  return s;
}

/* --------------------------------------------------------- against a model */

struct model {
  struct storage *s;
  uint64_t size;
  uint8_t *byte;
};

static void
write_some (struct model *m, uint64_t *state, uint64_t offset, uint64_t count)
{
  struct iovec iov[6];
  uint8_t *buf = malloc (count + 1);
  uint64_t done = 0;
  int nr;

  random_fill (state, buf, count);
  for (nr = 0; nr < 6; ++nr) {
    const uint64_t n = nr == 5 ? count - done
      : random_below (state, count - done + 1);

    iov[nr] = (struct iovec) { buf + done, n };
    done += n;
  }
  CHECK_OK (storage_writev (m->s, iov, 6, at (offset),
                            random_below (state, 4) == 0));
  memcpy (m->byte + offset, buf, count);
  free (buf);
}

static void
zero_some (struct model *m, uint64_t *state, uint64_t offset, uint64_t count)
{
  if (random_below (state, 2) == 0)
    CHECK_OK (storage_zero (m->s, at (offset), count,
                            random_below (state, 2) == 0));
  else if (!storage_punch (m->s, at (offset), count)) {
    /* It may hold anything: find out. */
    CHECK_OK (storage_read (m->s, m->byte + offset, count, at (offset)));
    return;
  }
  memset (m->byte + offset, 0, count);
}

static void
check_extents (struct model *m)
{
  uint64_t offset, length;

  for (offset = 0; offset < m->size; offset += length) {
    bool hole, zero;
    uint64_t known, i;

    length = 0;
    CHECK_OK (storage_extent (m->s, at (offset), m->size - offset, &hole,
                              &length));
    CHECK (length > 0 && length <= m->size - offset);
    if (length == 0)
      return;
    for (i = 0, zero = true; zero && i < length; ++i)
      zero = m->byte[offset + i] == 0;
    CHECK (!hole || zero);
    known = storage_hole (m->s, at (offset));
    CHECK (known <= m->size - offset);
    for (i = 0; i < known; ++i)
      if (m->byte[offset + i] != 0)
        break;
    CHECK (i >= known);
  }
}

static void
compare (struct model *m, uint64_t offset, uint64_t count)
{
  uint8_t *buf = malloc (count);

  CHECK_OK (storage_read (m->s, buf, count, at (offset)));
  CHECK (memcmp (buf, m->byte + offset, count) == 0);
  free (buf);
}

static void
one_call (struct model *m, uint64_t *state)
{
  const uint64_t offset = random_below (state, m->size);
  const uint64_t most = random_below (state, 4) == 0 ? 1 << 20 : 9000;
  uint64_t count = 1 + random_below (state, most);
  bool done;

  if (count > m->size - offset)
    count = m->size - offset;
  switch (random_below (state, 10)) {
  case 0: case 1: case 2: case 3:
    write_some (m, state, offset, count);
    break;
  case 4: case 5:
    zero_some (m, state, offset, count);
    break;
  case 6:
    CHECK_OK (storage_flush (m->s));
    CHECK_OK (storage_allocate (m->s, at (offset), count, &done));
    storage_prefetch (m->s, at (offset), count);
    break;
  default:
    compare (m, offset, count);
  }
}

static void
test_model (const char *arguments, bool fixed_block)
{
  struct far_nbdkit server;
  struct model m = { .size = SIZE };
  uint64_t state = 15;
  unsigned i;

  far_start (&server, arguments);
  m.s = open_to_write (&server, defaults);
  CHECK_EQ (storage_block_size (m.s) > 1, fixed_block);
  m.size = atomic_load (&m.s->size);
  m.byte = calloc (1, m.size);
  for (i = 0; i < 200 && !check_any_failed (); ++i)
    one_call (&m, &state);
  compare (&m, 0, m.size);
  check_extents (&m);
  storage_close (m.s);
  /* What is only read may be remembered. */
  m.s = storage_nbd_open (server.uri, &defaults, "far");
  check_extents (&m);
  check_extents (&m);
  compare (&m, 0, m.size);
  storage_close (m.s);
  if (check_any_failed ())
    fprintf (stderr, "with nbdkit %s\n", arguments);
  free (m.byte);
  far_end (&server);
}

static void
test_servers (void)
{
  test_model ("memory 3M", false);
  test_model ("memory 3000001", false);
  test_model ("--filter=multi-conn memory 3M multi-conn-mode=disable", false);
  test_model ("--filter=noextents --filter=nozero memory 3M", false);
  test_model ("--filter=nozero memory 3M zeromode=emulate", false);
  test_model ("--filter=fua memory 3M", false);
  test_model ("--filter=fua memory 3M fuamode=emulate", false);
  test_model ("--filter=blocksize-policy memory 3M blocksize-minimum=512 "
              "blocksize-preferred=4096 blocksize-error-policy=error", true);
  test_model ("--filter=blocksize-policy memory 3M blocksize-minimum=4096 "
              "blocksize-preferred=4096 blocksize-maximum=65536 "
              "blocksize-error-policy=error", true);
}

/* ------------------------------------------------------------------- edges */

/* A device of fixed size: zeros past the end when read, no space if written. */
static void
test_end (void)
{
  struct far_nbdkit server;
  uint8_t buf[8192];
  struct storage *s;
  bool hole;
  uint64_t length;

  far_start (&server, "memory 10000");
  s = open_to_write (&server, defaults);
  CHECK_EQ (atomic_load (&s->size), 10000);
  memset (buf, 1, sizeof buf);
  CHECK_OK (storage_write (s, buf, 1000, at (9000)));
  memset (buf, 2, sizeof buf);
  CHECK_OK (storage_read (s, buf, sizeof buf, at (9000)));
  CHECK (buf[0] == 1 && buf[999] == 1 && buf[1000] == 0 && buf[8191] == 0);
  CHECK_OK (storage_read (s, buf, sizeof buf, at (UINT64_C (1) << 62)));
  CHECK_EQ (storage_write (s, buf, 2, at (9999)), -1);
  CHECK_ERROR (ENOSPC, "far: writing at offset 0x270f");
  CHECK_EQ (storage_resize (s, 10001), -1);
  CHECK_ERROR (ENOSPC, "far: resizing to 10001 bytes");
  CHECK_EQ (storage_resize (s, 9000), -1); /* nothing would be cut off */
  CHECK_ERROR (ENOSPC, "far: resizing to 9000 bytes");
  CHECK_OK (storage_resize (s, 10000));
  CHECK_OK (storage_extent (s, at (10000), 5, &hole, &length));
  CHECK (hole && length == 5);
  CHECK_EQ (atomic_load (&s->size), 10000);
  storage_close (s);
  far_end (&server);
}

/* Nothing is said to be zeros because it was trimmed. */
static void
test_trim_proves_nothing (void)
{
  static uint8_t buf[65536];
  struct far_nbdkit server;
  struct storage *s;

  far_start (&server, "--filter=noextents --filter=nozero memory 1M");
  s = open_to_write (&server, defaults);
  memset (buf, 1, sizeof buf);
  CHECK_OK (storage_write (s, buf, sizeof buf, at (0)));
  CHECK (!storage_punch (s, at (0), sizeof buf));
  CHECK_EQ (storage_hole (s, at (0)), 0);
  storage_close (s);
  far_end (&server);
  far_start (&server, "--filter=nozero memory 1M");
  s = open_to_write (&server, defaults);
  CHECK_OK (storage_write (s, buf, sizeof buf, at (0)));
  CHECK (storage_punch (s, at (0), sizeof buf)); /* so it says */
  CHECK_OK (storage_read (s, buf, sizeof buf, at (0)));
  CHECK (buf[0] == 0 && buf[65535] == 0);
  storage_close (s);
  far_end (&server);
}

/* Requests of less than what is read at opening, and written together. */
static void
test_small_requests (void)
{
  static uint8_t data[2][60000], back[60000];
  struct iovec iov[2] = { { data[0], 60000 }, { data[1], 60000 } };
  struct storage_run runs[2] = {
    { &iov[0], 1, { 0 } }, { &iov[1], 1, { 70000 } },
  };
  struct far_nbdkit server;
  struct storage *s;

  far_start (&server, "--filter=blocksize-policy memory 1M "
             "blocksize-minimum=1 blocksize-preferred=4096 "
             "blocksize-maximum=16384 blocksize-error-policy=error");
  s = open_to_write (&server, defaults);
  memset (data[0], 1, sizeof data[0]);
  memset (data[1], 2, sizeof data[1]);
  CHECK_OK (storage_write_many (s, runs, 2));
  CHECK_OK (storage_read (s, back, sizeof back, at (0)));
  CHECK (memcmp (back, data[0], sizeof back) == 0);
  CHECK_OK (storage_read (s, back, sizeof back, at (70000)));
  CHECK (memcmp (back, data[1], sizeof back) == 0);
  storage_close (s);
  far_end (&server);
}

/* Blocks that the end of the device cuts off can't be asked for. */
static void
test_part_of_a_block (void)
{
  struct far_nbdkit server;

  far_start (&server, "--filter=blocksize-policy memory 1000001 "
             "blocksize-minimum=512 blocksize-preferred=4096 "
             "blocksize-error-policy=error");
  CHECK (storage_nbd_open (server.uri, &defaults, "far") == NULL);
  CHECK_ERROR (EINVAL, "not whole blocks of 512");
  far_end (&server);
}

static void
test_no_server (void)
{
  struct far_nbdkit server;
  struct storage *s;

  CHECK (storage_nbd_is_uri ("nbd://localhost"));
  CHECK (storage_nbd_is_uri ("nbds+unix:///x?socket=/y"));
  CHECK (storage_nbd_is_uri ("nbd+vsock://2"));
  CHECK (!storage_nbd_is_uri ("./nbd://localhost"));
  CHECK (!storage_nbd_is_uri ("nbd:localhost:10809"));
  CHECK (!storage_nbd_is_uri ("nbdx://h") && !storage_nbd_is_uri ("/nbd"));
  s = storage_nbd_open ("nbd+unix:///?socket=/nonexistent/s", &defaults,
                        "far");
  CHECK (s == NULL);
  CHECK_ERROR (EIO, "far: connecting: ");
  s = storage_nbd_open ("nbd+what:///", &defaults, "far");
  CHECK (s == NULL);
  CHECK_ERROR (EIO, "far: connecting: ");

  far_start (&server, "-r memory 1M");
  s = storage_nbd_open (server.uri, &defaults, "far");
  CHECK_EQ (storage_check_writable (s), -1);
  CHECK_ERROR (EROFS, "read-only");
  CHECK_EQ (storage_make_writable (s, 0, 0), -1);
  CHECK_ERROR (EROFS, "read-only");
  storage_close (s);
  far_end (&server);
}

static void
test_no_flush (void)
{
  struct far_nbdkit server;
  struct nbd_options unsafe = defaults;
  struct storage *s;

  far_start (&server, "eval get_size=echo\t4096 pread=cat\t/dev/zero|"
             "head\t-c\t$3 pwrite=cat\t>/dev/null can_flush=exit\t3");
  s = storage_nbd_open (server.uri, &defaults, "far");
  CHECK_EQ (storage_check_writable (s), -1);
  CHECK_ERROR (ENOTSUP, "can't flush");
  CHECK_EQ (storage_make_writable (s, 0, 0), -1);
  CHECK_ERROR (ENOTSUP, "can't flush");
  storage_close (s);
  unsafe.without_flush = true;
  s = open_to_write (&server, unsafe);
  CHECK_OK (storage_write (s, "x", 1, at (5)));
  CHECK_OK (storage_flush (s));
  storage_close (s);
  far_end (&server);
}

/* ------------------------------------------------------------------ losses */

static void
test_lost_reading (void)
{
  struct far_nbdkit server;
  struct nbd_options options = defaults;
  struct storage *s;
  uint8_t buf[512];

  far_start (&server, "pattern 1M");
  s = storage_nbd_open (server.uri, &defaults, "far");
  CHECK_OK (storage_read (s, buf, 512, at (131072)));
  /* The same, restarted: no request notices. */
  far_kill (&server);
  far_start_again (&server, "pattern 1M");
  CHECK_OK (storage_read (s, buf, 512, at (131072)));
  CHECK_EQ (buf[5], 0x02);
  /* Another: nobody gets that for what there was. */
  far_kill (&server);
  far_start_again (&server, "memory 1M");
  CHECK_EQ (storage_read (s, buf, 512, at (131072)), -1);
  CHECK_ERROR (EIO, strerror (ESTALE));
  far_kill (&server);
  far_start_again (&server, "pattern 1M");
  CHECK_EQ (storage_read (s, buf, 512, at (131072)), -1);
  CHECK_ERROR (EIO, strerror (ESTALE));
  storage_close (s);
  /* Another size. */
  options.retries = 0;
  s = storage_nbd_open (server.uri, &options, "far");
  far_kill (&server);
  CHECK_EQ (storage_read (s, buf, 512, at (131072)), -1);
  CHECK_ERROR (EIO, strerror (ENOTCONN));
  far_start_again (&server, "pattern 2M");
  CHECK_EQ (storage_read (s, buf, 512, at (131072)), -1);
  CHECK_ERROR (EIO, strerror (ESTALE));
  storage_close (s);
  far_end (&server);
}

/* N1: once it may have been written, a new connection could hide a loss. */
static void
test_lost_writing (const char *arguments)
{
  struct far_nbdkit server;
  struct storage *s;
  uint8_t buf[512];

  far_start (&server, arguments);
  s = open_to_write (&server, defaults);
  CHECK_OK (storage_write (s, "x", 1, at (70000)));
  far_kill (&server);
  far_start_again (&server, arguments);
  CHECK_EQ (storage_flush (s), -1);
  CHECK_ERROR (EIO, "far: flushing: ");
  CHECK_EQ (storage_write (s, "x", 1, at (0)), -1);
  CHECK_ERROR (EIO, "far: writing at offset 0x0: ");
  CHECK (!storage_punch (s, at (0), 65536));
  CHECK_EQ (storage_flush (s), -1);
  CHECK_EQ (storage_read (s, buf, 512, at (70000)), -1);
  storage_close (s);
  far_end (&server);
}

/* Nor may what was written before this one opened it. */
static void
test_changed_before (void)
{
  struct far_nbdkit server;
  struct storage *s, *other;

  far_start (&server, "memory 1M");
  s = storage_nbd_open (server.uri, &defaults, "far");
  other = open_to_write (&server, defaults);
  CHECK_OK (storage_write (other, "x", 1, at (100)));
  CHECK_EQ (storage_make_writable (s, 0, 0), -1);
  CHECK_ERROR (EAGAIN, "somebody else");
  CHECK (storage_same (s, other));
  storage_close (other);
  storage_close (s);
  far_end (&server);
}

/* A server that takes requests and answers none. */
static void
test_silence (void)
{
  struct far_nbdkit server;
  struct nbd_options options = { .timeout = 1 };
  struct storage *s;
  static uint8_t big[8 << 20]; /* more than sockets take */

  far_start (&server, "memory 8M");
  s = open_to_write (&server, options);
  far_stop (&server);
  CHECK_EQ (storage_write (s, big, sizeof big, at (0)), -1);
  CHECK_ERROR (EIO, strerror (ETIMEDOUT));
  CHECK_EQ (storage_flush (s), -1);
  far_go_on (&server);
  CHECK_EQ (storage_flush (s), -1);
  storage_close (s);
  /* It does not answer when somebody connects, either. */
  far_stop (&server);
  s = storage_nbd_open (server.uri, &options, "far");
  CHECK (s == NULL);
  CHECK_ERROR (ETIMEDOUT, "does not answer");
  far_go_on (&server);
  far_end (&server);
}

/* Connecting again takes one timeout in all, whatever the retries. */
static void
test_silence_again (void)
{
  const struct nbd_options options = { .timeout = 2, .retries = 1000 };
  struct timespec before, after;
  struct far_nbdkit server;
  struct storage *s;
  uint8_t buf[512];

  far_start (&server, "pattern 1M");
  s = storage_nbd_open (server.uri, &options, "far");
  CHECK (s != NULL);
  far_kill (&server);
  far_start_again (&server, "pattern 1M");
  far_stop (&server);
  clock_gettime (CLOCK_MONOTONIC, &before);
  CHECK_EQ (storage_read (s, buf, sizeof buf, at (131072)), -1);
  clock_gettime (CLOCK_MONOTONIC, &after);
  CHECK (after.tv_sec - before.tv_sec < 20); /* of a busy machine */
  far_go_on (&server);
  storage_close (s);
  far_end (&server);
}

/* ------------------------------------------------- servers that misbehave */

/* Writes before 64 KiB find no space, others fail otherwise. */
static uint32_t
fail_writes (void *opaque, const struct odd_request *q)
{
  (void) opaque;
  if (q->type != ODD_WRITE)
    return 0;
  return q->offset < 65536 ? ODD_ENOSPC : ODD_EIO;
}

/* What a server did not send is not read. */
static void
test_short_answers (void)
{
  struct odd_server server = {
    .flags = ODD_FLUSH, .error = fail_writes, .short_from = 65536,
  };
  struct storage *s;
  uint8_t buf[4096];

  odd_start (&server);
  s = storage_nbd_open (server.uri, &defaults, "far");
  CHECK (s != NULL);
  CHECK_OK (storage_read (s, buf, sizeof buf, at (0)));
  CHECK_EQ (storage_read (s, buf, sizeof buf, at (65536)), -1);
  CHECK_ERROR (EIO, "reading 4096 bytes at offset 0x10000");
  storage_close (s);
  odd_end (&server);
}

/* Of writes that are sent together: callers may go on after ENOSPC, and must
 * not after anything else.
 */
static void
test_worst_error (void)
{
  static uint8_t data[2][4096];
  struct iovec iov[2] = { { data[0], 4096 }, { data[1], 4096 } };
  struct storage_run runs[2] = {
    { &iov[0], 1, { 0 } }, { &iov[1], 1, { 65536 } },
  };
  struct odd_server server = {
    .flags = ODD_FLUSH, .error = fail_writes, .short_from = 65536,
  };
  struct storage *s;

  odd_start (&server);
  s = storage_nbd_open (server.uri, &defaults, "far");
  CHECK (s != NULL);
  CHECK_OK (storage_make_writable (s, 0, 0));
  CHECK_EQ (storage_write (s, data, 4096, at (0)), -1);
  CHECK_ERROR (ENOSPC, "");
  CHECK_EQ (storage_write_many (s, runs, 2), -1);
  CHECK_ERROR (EIO, "");
  storage_close (s);
  odd_end (&server);
}

/* ----------------------------------------------------------------- threads */

struct worker {
  struct storage *s;
  unsigned nr;
  bool may_fail;
  uint64_t done;
};

/* Each has its own part, and all of it is what it wrote last. */
static void *
work (void *opaque)
{
  struct worker *w = opaque;
  uint64_t state = w->nr;
  uint8_t part[65536] = { 0 }, buf[65536];
  const struct host_off start = { w->nr * sizeof part };
  unsigned i;

  for (i = 0; i < 100 && !check_any_failed (); ++i) {
    const uint64_t offset = random_below (&state, sizeof part);
    const uint64_t count = 1 + random_below (&state, sizeof part - offset);

    random_fill (&state, part + offset, count);
    if (storage_write (w->s, part + offset, count,
                       at (start.v + offset)) == -1 ||
        (i % 16 == 0 && storage_flush (w->s) == -1) ||
        storage_read (w->s, buf, sizeof buf, start) == -1) {
      CHECK (w->may_fail);
      CHECK_EQ (error_errno (), EIO);
      return NULL;
    }
    CHECK (memcmp (buf, part, sizeof part) == 0);
    w->done++;
  }
  return NULL;
}

#define WORKERS 16

static void
test_threads (const char *arguments, unsigned connections, bool kill_it)
{
  const struct timespec pause = { .tv_nsec = 30000000 };
  struct nbd_options options = { .connections = connections };
  struct far_nbdkit server;
  struct worker worker[WORKERS];
  pthread_t thread[WORKERS];
  struct storage *s;
  unsigned i;

  far_start (&server, arguments);
  s = open_to_write (&server, options);
  for (i = 0; i < WORKERS; ++i) {
    worker[i] = (struct worker) { .s = s, .nr = i, .may_fail = kill_it };
    CHECK_EQ (pthread_create (&thread[i], NULL, work, &worker[i]), 0);
  }
  if (kill_it) {
    nanosleep (&pause, NULL);
    far_kill (&server);
  }
  for (i = 0; i < WORKERS; ++i)
    pthread_join (thread[i], NULL);
  if (kill_it)
    CHECK_EQ (storage_flush (s), -1);
  storage_close (s);
  far_end (&server);
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
  test_servers ();
  test_end ();
  test_trim_proves_nothing ();
  test_small_requests ();
  test_part_of_a_block ();
  test_no_server ();
  test_no_flush ();
  test_lost_reading ();
  test_lost_writing ("memory 1M");
  test_lost_writing ("--filter=multi-conn memory 1M multi-conn-mode=disable");
  test_changed_before ();
  test_silence ();
  test_silence_again ();
  test_short_answers ();
  test_worst_error ();
  test_threads ("memory 1M", 4, false);
  test_threads ("memory 1M", 16, false);
  test_threads ("memory 1M", 1, false);
  test_threads ("memory 1M", 4, true);
  test_threads ("memory 1M", 1, true);
  return check_result ();
}
