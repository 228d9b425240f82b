/* SPDX-License-Identifier: BSD-3-Clause */

#include <config.h>

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "base/error.h"
#include "storage/nbd-parts.h"

/* N2: so much of the start is compared; the header of an image is in it, most
 * often in the cluster of it that is read.
 */
#define START_BYTES 65536

/* One connection more is not worth a longer wait: some servers take a client,
 * and let it wait until another has left.
 */
#define EXTRA_SECONDS 2

/* -------------------------------------------------------------- connecting */

static time_t
seconds_now (void)
{
  struct timespec t;

  clock_gettime (CLOCK_MONOTONIC, &t);
  return t.tv_sec;
}

/* Connect to a URI, as all do but the first. */
static struct conn *
connect_once (const struct pool *p, unsigned seconds)
{
  const struct far_place place = { .uri = p->uri };

  return conn_open (&place, &p->options, seconds, p->name);
}

/* The first: try several times.  Returns NULL with the error set. */
static struct conn *
connect_patiently (const struct pool *p, const struct far_place *place)
{
  const struct timespec second = { .tv_sec = 1 };
  unsigned retries = place->uri != NULL ? p->options.opening_retries : 0;
  struct conn *c;

  while ((c = conn_open (place, &p->options, p->options.timeout,
                         p->name)) == NULL && retries-- > 0)
    nanosleep (&second, NULL);
  return c;
}

/* The same for no longer than one answer may take: clients wait, and so does
 * the end of this process.
 */
static struct conn *
connect_in_time (const struct pool *p, unsigned retries)
{
  const struct timespec second = { .tv_sec = 1 };
  const time_t end = seconds_now () + p->options.timeout;
  time_t now = end - p->options.timeout;
  struct conn *c;

  while ((c = connect_once (p, end - now)) == NULL && retries-- > 0) {
    nanosleep (&second, NULL);
    now = seconds_now ();
    if (now >= end)
      break;
  }
  return c;
}

/* Read the start of what the server has.  Returns -1 with errno set. */
static int
read_start (const struct pool *p, struct conn *c, uint8_t *buf)
{
  uint32_t at;
  int r = 0;

  for (at = 0; r == 0 && at < p->start_bytes; at += c->server.most) {
    const uint32_t left = p->start_bytes - at;
    const struct conn_command read = {
      .kind = CONN_READ, .buf = buf + at, .offset = at,
      .count = left < c->server.most ? left : c->server.most,
    };

    r = conn_run (c, &read, 1);
  }
  return r;
}

static bool
servers_equal (const struct far_server *a, const struct far_server *b)
{
  return a->size == b->size && a->block == b->block && a->most == b->most &&
    a->read_only == b->read_only && a->flush == b->flush && a->fua == b->fua &&
    a->trim == b->trim && a->zero == b->zero &&
    a->fast_zero == b->fast_zero && a->cache == b->cache &&
    a->extents == b->extents && a->multi_conn == b->multi_conn;
}

/* Whether a connection leads to what was there when the storage was opened.
 * Returns -1 with errno set, ESTALE if not.
 */
static int
compare_start (const struct pool *p, struct conn *c)
{
  uint8_t *buf;
  int r = 0, err;

  if (!servers_equal (&p->server, &c->server)) {
    errno = ESTALE;
    return -1;
  }
  buf = malloc (p->start_bytes + 1); /* it may be empty */
  if (buf == NULL)
    return -1;
  r = read_start (p, c, buf);
  err = errno;
  if (r == 0 && memcmp (buf, p->start, p->start_bytes) != 0) {
    r = -1;
    err = ESTALE;
  }
  free (buf);
  errno = err;
  return r;
}

int
pool_init (struct pool *p, const struct far_place *place, const char *name,
           const struct nbd_options *options)
{
  struct conn *c;

  *p = (struct pool) { .name = name, .options = *options };
  if (p->options.connections == 0)
    p->options.connections = NBD_CONNECTIONS;
  if (p->options.timeout == 0)
    p->options.timeout = NBD_TIMEOUT;
  pthread_mutex_init (&p->lock, NULL);
  pthread_mutex_init (&p->settling, NULL);
  pthread_cond_init (&p->changed, NULL);
  p->uri = place->uri != NULL ? strdup (place->uri) : NULL;
  p->start = malloc (START_BYTES);
  if ((place->uri != NULL && p->uri == NULL) || p->start == NULL) {
    error_set (ENOMEM, "%s: out of memory", name);
    goto failed;
  }
  c = connect_patiently (p, place);
  if (c == NULL)
    goto failed;
  p->conn[p->nr++] = c;
  p->server = c->server;
  p->max = p->server.multi_conn && p->uri != NULL /* N3 */
    ? p->options.connections : 1;
  p->start_bytes = p->server.size < START_BYTES
    ? p->server.size & -(uint64_t) p->server.block : START_BYTES;
  if (read_start (p, c, p->start) == 0)
    return 0;
  error_set (EIO, "%s: reading %u bytes at offset 0x0: %s", name,
             p->start_bytes, strerror (errno));
 failed:
  pool_destroy (p);
  return -1;
}

/* ------------------------------------------------------------- connections */

/* The connection with the fewest users, or NULL.  lock held. */
static struct conn *
least_used (const struct pool *p)
{
  struct conn *c = NULL;
  unsigned i;

  for (i = 0; i < p->nr; ++i)
    if (c == NULL || p->conn[i]->users < c->users)
      c = p->conn[i];
  return c;
}

/* One connection more, if it leads to the same (N2), else NULL. */
static struct conn *
open_extra (const struct pool *p)
{
  struct conn *c = connect_once (p, EXTRA_SECONDS);

  if (c != NULL && compare_start (p, c) == -1) {
    conn_close (c);
    c = NULL;
  }
  return c;
}

/* A connection more, while others are in use.  Without it they have to do.
 * lock held, and released meanwhile.
 */
static void
add_connection (struct pool *p)
{
  struct conn *c;

  p->connecting = true;
  pthread_mutex_unlock (&p->lock);
  c = open_extra (p);
  pthread_mutex_lock (&p->lock);
  p->connecting = false;
  if (c != NULL)
    p->conn[p->nr++] = c;
  else
    p->max = p->nr > 0 ? p->nr : 1; /* it does not want that many */
  pthread_cond_broadcast (&p->changed);
}

/* All connections are lost: make one, if it leads to the same (N2).  lock held,
 * and released meanwhile.  Returns -1 with errno set.
 */
static int
connect_again (struct pool *p)
{
  struct conn *c;
  int err = ENOTCONN;

  p->connecting = true;
  pthread_mutex_unlock (&p->lock);
  c = connect_in_time (p, p->options.retries);
  if (c != NULL && compare_start (p, c) == -1) {
    err = errno;
    conn_close (c);
    c = NULL;
  }
  pthread_mutex_lock (&p->lock);
  p->connecting = false;
  p->replaced |= err == ESTALE;
  if (c != NULL)
    p->conn[p->nr++] = c;
  pthread_cond_broadcast (&p->changed);
  if (c != NULL)
    return 0;
  errno = err;
  return -1;
}

/* A connection to use until leave, or NULL with errno set. */
static struct conn *
enter (struct pool *p)
{
  struct conn *c = NULL;
  int err = 0;

  pthread_mutex_lock (&p->lock);
  while (c == NULL && err == 0) {
    c = least_used (p);
    if (c != NULL && (c->users == 0 || p->nr >= p->max || p->connecting ||
                      p->writable))
      break;
    if (c != NULL)
      add_connection (p);
    else if (p->replaced)
      err = ESTALE;
    else if (p->writable || p->uri == NULL) /* N1, N3 */
      err = ENOLINK;
    else if (p->connecting)
      pthread_cond_wait (&p->changed, &p->lock);
    else if (connect_again (p) == -1)
      err = errno;
    c = NULL; /* look again */
  }
  if (c != NULL)
    c->users++;
  pthread_mutex_unlock (&p->lock);
  errno = err;
  return c;
}

/* Whether it may still be handed out.  lock held. */
static bool
is_in_pool (const struct pool *p, const struct conn *c)
{
  unsigned i;

  for (i = 0; i < p->nr; ++i)
    if (p->conn[i] == c)
      return true;
  return false;
}

/* Nobody is to use a lost connection any more.  lock held. */
static void
drop (struct pool *p, const struct conn *c)
{
  unsigned i;

  for (i = 0; i < p->nr; ++i)
    if (p->conn[i] == c) {
      p->conn[i] = p->conn[--p->nr];
      if (p->writable) /* N1 */
        atomic_store (&p->lost, true);
      debug_message ("%s: a connection was lost", p->name);
    }
}

static void
leave (struct pool *p, struct conn *c)
{
  const bool lost = conn_is_lost (c);
  bool last;

  pthread_mutex_lock (&p->lock);
  if (lost)
    drop (p, c);
  c->users--;
  /* Another thread may have found it lost, and this one not yet. */
  last = c->users == 0 && !is_in_pool (p, c);
  pthread_mutex_unlock (&p->lock);
  if (last)
    conn_close (c);
}

/* --------------------------------------------------- before the first write */

/* Each is a connection that is being made. */
static void *
connect_extra (void *opaque)
{
  struct pool_extra *e = opaque;

  e->conn = open_extra (e->pool);
  return NULL;
}

static void
keep_extra (struct pool *p, struct conn *c)
{
  if (c == NULL)
    return;
  if (p->nr == 0 || p->nr == p->max)
    conn_close (c);
  else
    p->conn[p->nr++] = c;
}

/* Begin to make as many connections as there may be, all at once: it takes many
 * round trips to make one, and readers can do without.  lock held, and released
 * while another connection is being made.
 */
static void
begin_extras (struct pool *p)
{
  unsigned i;

  while (p->connecting)
    pthread_cond_wait (&p->changed, &p->lock);
  p->nr_extra = p->nr > 0 ? p->max - p->nr : 0;
  p->connecting = true;
  atomic_store (&p->unsettled, true);
  for (i = 0; i < p->nr_extra; ++i) {
    struct pool_extra *e = &p->extra[i];

    *e = (struct pool_extra) { .pool = p };
    e->started = pthread_create (&e->thread, NULL, connect_extra, e) == 0;
  }
}

/* N1: wait until all of them are made, or have failed. */
static void
settle (struct pool *p)
{
  unsigned i;

  if (!atomic_load (&p->unsettled))
    return;
  pthread_mutex_lock (&p->settling); /* others may have done it since */
  for (i = 0; i < p->nr_extra; ++i)
    if (p->extra[i].started)
      pthread_join (p->extra[i].thread, NULL);
  pthread_mutex_lock (&p->lock);
  for (i = 0; i < p->nr_extra; ++i)
    keep_extra (p, p->extra[i].conn);
  p->nr_extra = 0;
  p->connecting = false;
  pthread_cond_broadcast (&p->changed);
  pthread_mutex_unlock (&p->lock);
  atomic_store (&p->unsettled, false);
  pthread_mutex_unlock (&p->settling);
}

void
pool_destroy (struct pool *p)
{
  settle (p);
  while (p->nr > 0)
    conn_close (p->conn[--p->nr]);
  free (p->start);
  free (p->uri);
  pthread_cond_destroy (&p->changed);
  pthread_mutex_destroy (&p->settling);
  pthread_mutex_destroy (&p->lock);
}

/* ---------------------------------------------------------------- commands */

static bool
only_reads (const struct conn_command *commands, unsigned nr)
{
  unsigned i;

  for (i = 0; i < nr; ++i)
    if (commands[i].kind != CONN_READ && commands[i].kind != CONN_EXTENTS)
      return false;
  return true;
}

/* *again: the connection was lost. */
static int
run_once (struct pool *p, const struct conn_command *commands, unsigned nr,
          bool *again)
{
  struct conn *c = enter (p);
  int r, err;

  *again = false;
  if (c == NULL)
    return -1;
  r = conn_run (c, commands, nr);
  err = errno;
  *again = r == -1 && conn_is_lost (c);
  leave (p, c);
  errno = err;
  return r;
}

int
pool_run (struct pool *p, const struct conn_command *commands, unsigned nr)
{
  const bool reads = only_reads (commands, nr);
  unsigned losses = 0;
  bool again;
  int r;

  if (!reads)
    settle (p);
  do {
    if (!reads && atomic_load (&p->lost)) { /* N1 */
      errno = ENOLINK;
      return -1;
    }
    r = run_once (p, commands, nr, &again);
    /* Each of the others may be lost as well, and a new one once more. */
  } while (r == -1 && again && reads && losses++ <= p->max);
  /* An answered flush never lies. */
  if (r == 0 && !reads && atomic_load (&p->lost)) {
    errno = ENOLINK;
    r = -1;
  }
  return r;
}

void
pool_cache (struct pool *p, uint64_t offset, uint64_t count)
{
  struct conn *c;

  /* Nothing is worth a new connection here. */
  pthread_mutex_lock (&p->lock);
  c = least_used (p);
  if (c != NULL)
    c->users++;
  pthread_mutex_unlock (&p->lock);
  if (c == NULL)
    return;
  conn_cache (c, offset, count);
  leave (p, c);
}

int
pool_make_writable (struct pool *p)
{
  struct conn *c = NULL;
  bool again = true;
  unsigned losses;
  int r = -1, err = ENOTCONN;

  for (losses = 0; r == -1 && again && losses <= p->max; ++losses) {
    c = enter (p);
    again = false;
    if (c == NULL)
      return -1;
    r = compare_start (p, c);
    err = errno;
    again = r == -1 && conn_is_lost (c);
    leave (p, c);
  }
  if (r == -1) {
    errno = err;
    return -1;
  }
  pthread_mutex_lock (&p->lock);
  begin_extras (p);
  p->writable = true;
  pthread_mutex_unlock (&p->lock);
  return 0;
}
