/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libnbd.h>

#include "base/error.h"
#include "storage/nbd-parts.h"

#define CONTEXT "base:allocation"

/* No request has more data than this: servers need not take more. */
#define MOST_DATA (UINT32_C (32) << 20)

/* A single answer may take so many times as long as silence may. */
#define PATIENCE_FACTOR 10

/* So many CACHE commands may be unanswered: somebody has to read that. */
#define MAX_CACHING 16

static uint64_t
milliseconds (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec * UINT64_C (1000) + t.tv_nsec / 1000000;
}

/* -------------------------------------------------------------- connecting */

/* Fill in what the server has said.  Returns -1 with the error set. */
static int
ask_server (struct nbd_handle *nbd, struct far_server *s, const char *name)
{
  const int64_t size = nbd_get_size (nbd);
  const int64_t block = nbd_get_block_size (nbd, LIBNBD_SIZE_MINIMUM);
  const int64_t most = nbd_get_block_size (nbd, LIBNBD_SIZE_MAXIMUM);

  if (size == -1) {
    error_set (EIO, "%s: %s", name, nbd_get_error ());
    return -1;
  }
  *s = (struct far_server) {
    .size = size,
    .block = block > 1 ? block : 1,
    .most = most > 0 && most < MOST_DATA ? most : MOST_DATA,
    .read_only = nbd_is_read_only (nbd) != 0,
    .flush = nbd_can_flush (nbd) == 1,
    .fua = nbd_can_fua (nbd) == 1,
    .trim = nbd_can_trim (nbd) == 1,
    .zero = nbd_can_zero (nbd) == 1,
    .fast_zero = nbd_can_fast_zero (nbd) == 1,
    .cache = nbd_can_cache (nbd) == 1,
    .extents = nbd_can_meta_context (nbd, CONTEXT) == 1,
    .multi_conn = nbd_can_multi_conn (nbd) == 1,
  };
  if ((s->block & (s->block - 1)) != 0 || s->block > 65536 ||
      s->most < s->block) {
    error_set (EINVAL, "%s: the server says that a block has %" PRIi64
               " bytes, and a request %" PRIi64 " at most", name, block, most);
    return -1;
  }
  /* A last block that is not whole could not be read. */
  if (s->size % s->block != 0) {
    error_set (EINVAL, "%s: the server says that it has %" PRIu64 " bytes, "
               "which are not whole blocks of %" PRIu32, name, s->size,
               s->block);
    return -1;
  }
  /* Requests are whole blocks. */
  s->most -= s->most % s->block;
  return 0;
}

/* Returns -1 with libnbd's error. */
static int
begin_to_connect (struct conn *c, const struct far_place *place)
{
  if (place->uri != NULL)
    return nbd_aio_connect_uri (c->nbd, place->uri);
  c->started = conn_start_server (c->nbd, place->command);
  return c->started != NULL ? 0 : -1;
}

/* Returns -1 with the error set. */
static int
connect_to (struct conn *c, const struct far_place *place, unsigned seconds,
            const char *name)
{
  struct nbd_handle *nbd = c->nbd;
  const uint64_t end = milliseconds () + UINT64_C (1000) * seconds;

  if (nbd_set_uri_allow_local_file (nbd, true) == -1 ||
      nbd_add_meta_context (nbd, CONTEXT) == -1 ||
      nbd_set_pread_initialize (nbd, false) == -1 ||
      begin_to_connect (c, place) == -1)
    goto failed;
  while (!nbd_aio_is_ready (nbd)) {
    const uint64_t now = milliseconds ();

    if (nbd_aio_is_dead (nbd) || nbd_aio_is_closed (nbd))
      goto failed;
    if (now >= end) {
      c->timed_out = true;
      error_set (ETIMEDOUT, "%s: connecting: the server does not answer", name);
      return -1;
    }
    if (nbd_poll (nbd, end - now) == -1)
      goto failed;
  }
  return 0;

 failed:
  error_set (EIO, "%s: connecting: %s", name, nbd_get_error ());
  return -1;
}

struct conn *
conn_open (const struct far_place *place, const struct nbd_options *options,
           unsigned seconds, const char *name)
{
  struct conn *c = calloc (1, sizeof *c);

  if (c == NULL) {
    error_set (ENOMEM, "%s: out of memory", name);
    return NULL;
  }
  pthread_mutex_init (&c->lock, NULL);
  c->patience = UINT64_C (1000) * options->timeout;
  c->fd = -1;
  c->wake = eventfd (0, EFD_CLOEXEC | EFD_NONBLOCK);
  if (c->wake == -1)
    error_set (errno, "%s: making an eventfd: %s", name, strerror (errno));
  else
    c->nbd = nbd_create ();
  if (c->wake != -1 && c->nbd == NULL)
    error_set (ENOMEM, "%s: %s", name, nbd_get_error ());
  if (c->nbd == NULL ||
      connect_to (c, place, seconds, name) == -1 ||
      ask_server (c->nbd, &c->server, name) == -1) {
    conn_close (c);
    return NULL;
  }
  c->fd = fcntl (nbd_aio_get_fd (c->nbd), F_DUPFD_CLOEXEC, 0);
  if (c->fd == -1) {
    error_set (errno, "%s: connecting: %s", name, strerror (errno));
    conn_close (c);
    return NULL;
  }
  return c;
}

void
conn_close (struct conn *c)
{
  if (c->nbd != NULL) {
    /* So that the server knows that nobody has gone astray. */
    if (nbd_aio_is_ready (c->nbd))
      (void) nbd_aio_disconnect (c->nbd, 0);
    if (c->started != NULL)
      conn_end_server (c->nbd, c->started, c->timed_out ? 0 : c->patience);
    nbd_close (c->nbd);
  }
  if (c->fd != -1)
    close (c->fd);
  if (c->wake != -1)
    close (c->wake);
  pthread_mutex_destroy (&c->lock);
  free (c);
}

bool
conn_is_lost (const struct conn *c)
{
  return nbd_aio_is_dead (c->nbd) || nbd_aio_is_closed (c->nbd);
}

/* ----------------------------------------------------------------- sending */

/* A command has its answer.  Called by libnbd, with its lock held. */
static int
answered (void *opaque, int *error)
{
  struct conn_wait *w = opaque;
  struct conn *c = w->conn;

  (void) error; /* see collect */
  pthread_mutex_lock (&c->lock);
  w->left--;
  if (w->left == 0)
    pthread_cond_signal (&w->changed); /* w ends once the lock is free */
  pthread_mutex_unlock (&c->lock);
  return 0; /* libnbd keeps the result */
}

static int
note_extents (void *opaque, const char *context, uint64_t offset,
              uint32_t *entries, size_t nr, int *error)
{
  struct far_extents *e = opaque;
  uint64_t at = offset;
  size_t i;

  (void) error;
  if (strcmp (context, CONTEXT) != 0)
    return 0;
  e->start = offset;
  e->nr = 0;
  for (i = 0; i + 1 < nr; i += 2) {
    const bool zero = (entries[i + 1] & 2) != 0; /* NBD_STATE_ZERO */

    at += entries[i];
    if (e->nr == 0 || e->extent[e->nr - 1].zero != zero) {
      if (e->nr == FAR_EXTENTS)
        break;
      e->extent[e->nr++].zero = zero;
    }
    e->extent[e->nr - 1].end = at;
  }
  return 0;
}

/* Returns -1 with nothing sent, and no callback to come. */
static int64_t
send_command (struct conn *c, const struct conn_command *m,
              struct conn_wait *w)
{
  const nbd_completion_callback done = {
    .callback = answered, .user_data = w,
  };
  const nbd_extent_callback extent = {
    .callback = note_extents, .user_data = m->extents,
  };

  switch (m->kind) {
  case CONN_READ:
    return nbd_aio_pread (c->nbd, m->buf, m->count, m->offset, done, m->flags);
  case CONN_WRITE:
    return nbd_aio_pwrite (c->nbd, m->buf, m->count, m->offset, done,
                           m->flags);
  case CONN_FLUSH:
    return nbd_aio_flush (c->nbd, done, m->flags);
  case CONN_TRIM:
    return nbd_aio_trim (c->nbd, m->count, m->offset, done, m->flags);
  case CONN_ZERO:
    return nbd_aio_zero (c->nbd, m->count, m->offset, done, m->flags);
  case CONN_EXTENTS:
    m->extents->nr = 0;
    return nbd_aio_block_status (c->nbd, m->count, m->offset, extent, done,
                                 m->flags);
  }
  abort ();
}

/* The one that polls waits for what may come in.  If something is left to be
 * sent, or nothing can come any more, it has to look again.
 */
static void
tell_poller (struct conn *c)
{
  static const uint64_t one = 1;

  if ((nbd_aio_get_direction (c->nbd) & LIBNBD_AIO_DIRECTION_WRITE) ||
      conn_is_lost (c))
    (void) !write (c->wake, &one, sizeof one); /* it can only be full: fine */
}

/* Note an error of libnbd's.  ENOSPC only stays if there is no other one: after
 * that, a caller may go on.  A flush that finds no space has lost something.
 */
static void
note_error (const struct conn_command *m, int *err)
{
  int e = nbd_get_errno ();

  if (e == 0 || (e == ENOSPC && m->kind == CONN_FLUSH))
    e = EIO;
  if (e == ENOSPC && m->no_space != NULL)
    *m->no_space = true;
  if (*err == 0 || *err == ENOSPC)
    *err = e;
}

/* cookies: what libnbd calls each command; -1: it was not sent. */
static void
send_all (struct conn *c, const struct conn_command *commands, unsigned nr,
          struct conn_wait *w, int64_t *cookies, int *err)
{
  unsigned i;

  for (i = 0; i < nr; ++i) {
    cookies[i] = send_command (c, &commands[i], w);
    if (cookies[i] != -1)
      continue;
    note_error (&commands[i], err);
    pthread_mutex_lock (&c->lock);
    w->left--;
    pthread_mutex_unlock (&c->lock);
  }
  tell_poller (c);
}

/* All commands have their answers: have libnbd forget them.  Only here does it
 * find that a read got fewer bytes than were asked for.
 */
static void
collect (struct conn *c, const struct conn_command *commands, unsigned nr,
         const int64_t *cookies, int *err)
{
  unsigned i;

  for (i = 0; i < nr; ++i)
    if (cookies[i] != -1 && nbd_aio_command_completed (c->nbd, cookies[i]) != 1)
      note_error (&commands[i], err);
}

/* ----------------------------------------------------------------- waiting */

/* Milliseconds until the connection is to be given up, if nothing comes.  w,
 * of the caller, is among those that wait.
 */
static uint64_t
patience_left (struct conn *c, uint64_t now)
{
  uint64_t since, silent, end;

  pthread_mutex_lock (&c->lock);
  since = c->first->since;
  silent = c->heard > since ? c->heard : since;
  end = silent + c->patience;
  if (end > since + PATIENCE_FACTOR * c->patience)
    end = since + PATIENCE_FACTOR * c->patience;
  pthread_mutex_unlock (&c->lock);
  return end > now ? end - now : 0;
}

/* The server owes answers and is silent: have libnbd find the connection
 * broken, so that all commands fail and it lets go of their memory.
 */
static void
give_up (struct conn *c)
{
  c->timed_out = true;
  (void) shutdown (c->fd, SHUT_RDWR);
}

/* Something happened to the socket: only libnbd knows what to do. */
static void
notify (struct conn *c, short events)
{
  /* Again, since others may have sent something meanwhile. */
  const unsigned direction = nbd_aio_get_direction (c->nbd);
  const bool broken = (events & (POLLHUP | POLLERR | POLLNVAL)) != 0;

  if ((direction & LIBNBD_AIO_DIRECTION_READ) && ((events & POLLIN) || broken))
    (void) nbd_aio_notify_read (c->nbd);
  else if ((direction & LIBNBD_AIO_DIRECTION_WRITE) &&
           ((events & POLLOUT) || broken))
    (void) nbd_aio_notify_write (c->nbd);
}

static bool
is_answered (struct conn *c, const struct conn_wait *w)
{
  bool r;

  pthread_mutex_lock (&c->lock);
  r = w->left == 0;
  pthread_mutex_unlock (&c->lock);
  return r;
}

/* Wait for an event, and have libnbd deal with it. */
static void
poll_once (struct conn *c)
{
  const unsigned direction = nbd_aio_get_direction (c->nbd);
  const uint64_t left = patience_left (c, milliseconds ());
  struct pollfd fds[2] = {
    { .fd = nbd_aio_get_fd (c->nbd) }, { .fd = c->wake, .events = POLLIN },
  };
  uint64_t value;

  if (direction & LIBNBD_AIO_DIRECTION_READ)
    fds[0].events |= POLLIN;
  if (direction & LIBNBD_AIO_DIRECTION_WRITE)
    fds[0].events |= POLLOUT;
  if (left == 0)
    give_up (c);
  if (poll (fds, 2, left < INT32_MAX ? (int) left : INT32_MAX) <= 0)
    return;
  if (fds[1].revents != 0)
    (void) !read (c->wake, &value, sizeof value);
  if (fds[0].revents == 0)
    return;
  if (fds[0].revents & POLLIN) { /* not if something could be sent */
    pthread_mutex_lock (&c->lock);
    c->heard = milliseconds ();
    pthread_mutex_unlock (&c->lock);
  }
  notify (c, fds[0].revents);
}

/* Poll for all until w has its answers. */
static void
poll_for_all (struct conn *c, const struct conn_wait *w)
{
  /* When a connection is lost libnbd answers all commands. */
  while (!is_answered (c, w) && !conn_is_lost (c))
    poll_once (c);
}

/* Have another one poll, if there is one.  lock held. */
static void
pass_on (struct conn *c)
{
  struct conn_wait *w;

  for (w = c->first; w != NULL && w->left == 0; w = w->next)
    ;
  if (w != NULL)
    pthread_cond_signal (&w->changed);
}

static void
link_wait (struct conn *c, struct conn_wait *w)
{
  pthread_mutex_lock (&c->lock);
  w->since = milliseconds ();
  w->prev = c->last;
  if (c->last != NULL)
    c->last->next = w;
  else
    c->first = w;
  c->last = w;
  pthread_mutex_unlock (&c->lock);
}

/* lock held */
static void
unlink_wait (struct conn *c, struct conn_wait *w)
{
  if (w->prev != NULL)
    w->prev->next = w->next;
  else
    c->first = w->next;
  if (w->next != NULL)
    w->next->prev = w->prev;
  else
    c->last = w->prev;
}

int
conn_run (struct conn *c, const struct conn_command *commands, unsigned nr)
{
  struct conn_wait w = {
    .conn = c, .left = nr, .changed = PTHREAD_COND_INITIALIZER,
  };
  int64_t cookies[CONN_MAX_COMMANDS];
  int err = 0;

  assert (nr <= CONN_MAX_COMMANDS);
  link_wait (c, &w);
  send_all (c, commands, nr, &w, cookies, &err);
  pthread_mutex_lock (&c->lock);
  while (w.left > 0) {
    if (c->polled) {
      pthread_cond_wait (&w.changed, &c->lock);
      continue;
    }
    c->polled = true;
    pthread_mutex_unlock (&c->lock);
    poll_for_all (c, &w);
    pthread_mutex_lock (&c->lock);
    c->polled = false;
  }
  unlink_wait (c, &w);
  if (!c->polled)
    pass_on (c);
  pthread_mutex_unlock (&c->lock);
  pthread_cond_destroy (&w.changed);
  collect (c, commands, nr, cookies, &err);
  if (err == 0)
    return 0;
  errno = c->timed_out ? ETIMEDOUT : err;
  return -1;
}

static int
cached (void *opaque, int *error)
{
  struct conn *c = opaque;

  (void) error;
  pthread_mutex_lock (&c->lock);
  c->caching--;
  pthread_mutex_unlock (&c->lock);
  return 1;
}

void
conn_cache (struct conn *c, uint64_t offset, uint64_t count)
{
  const nbd_completion_callback done = { .callback = cached, .user_data = c };
  bool many;

  pthread_mutex_lock (&c->lock);
  many = c->caching >= MAX_CACHING;
  if (!many)
    c->caching++;
  pthread_mutex_unlock (&c->lock);
  if (many)
    return;
  if (nbd_aio_cache (c->nbd, count, offset, done, 0) == -1) {
    pthread_mutex_lock (&c->lock);
    c->caching--;
    pthread_mutex_unlock (&c->lock);
  }
  tell_poller (c);
}
